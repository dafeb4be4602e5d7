"""The measurement of an image that is registered to itself, on fields that are known."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from helpers import ball, make_affine, make_grid, smooth_noise, write
from monai.data import MetaTensor
from regzoo.spatial import DisplacementField

SCRIPT = "identity"
SHAPE, SPACING = (20, 18, 16), (2.0, 2.0, 2.0)
AFFINE = make_affine(SHAPE, SPACING)
GLAND, CYST = ball(SHAPE, (9, 9, 8), 5), ball(SHAPE, (8, 8, 8), 2)


def registrar(voxels: int, has_field: bool = True) -> Any:
    """Moves everything by so many voxels along the first axis."""
    warped = np.stack([np.roll(mask, -voxels, 0) for mask in (GLAND, CYST)]).astype(np.uint8)
    displacement = torch.zeros(3, *SHAPE)
    displacement[0] = 2.0 * voxels
    field = DisplacementField(displacement, make_grid(SHAPE, SPACING)) if has_field else None

    def register(fixed: str, moving: str, label: str) -> Any:
        assert Path(moving).read_bytes() == Path(fixed).read_bytes() and moving != fixed
        masks = MetaTensor(torch.from_numpy(warped), affine=torch.from_numpy(AFFINE))
        return SimpleNamespace(warped_label=masks, transformation=field, field=field)

    return SimpleNamespace(aligns_by_organ=False, register=register)


@pytest.mark.parametrize("form", ["4-D", "map"])
@pytest.mark.parametrize("voxels", [0, 2])
def test_a_shift_is_measured_in_mm(voxels: int, form: str, script: ModuleType, tmp_path: Path) -> None:
    stack = np.stack([GLAND, CYST], -1)
    labels = stack if form == "4-D" else GLAND + CYST
    image = write(tmp_path / "image.nii.gz", smooth_noise(SHAPE, 1, 0), AFFINE)
    label = write(tmp_path / "label.nii.gz", labels.astype(np.uint8), AFFINE)
    (tmp_path / "copies").mkdir()
    median, most, dice, shift = script.measure(registrar(voxels), image, label, tmp_path / "copies")
    assert (median, most) == pytest.approx((2 * voxels, 2 * voxels))
    if form == "4-D":
        overlaps = [(m * np.roll(m, -voxels, 0)).sum() / m.sum() for m in (GLAND, CYST)]
        assert dice == pytest.approx(np.mean(overlaps)) and shift == pytest.approx(2 * voxels, abs=1e-4)
    without = script.measure(registrar(voxels, has_field=False), image, label, tmp_path / "copies")
    assert np.isnan(without[:2]).all() and without[2:] == (dice, shift)
