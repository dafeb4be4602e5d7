"""Pairs that nobody should register: a refinement leaves them as they are, or says in one line what to do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from regzoo import Registrar, RegZooError
from regzoo.inference import register
from regzoo.refinement import KINDS
from scipy.ndimage import gaussian_filter

SHAPE = (36, 32, 30)
SPACING = 2.0
#: The moving image is the fixed image, this many voxels further along the first axis.
SHIFT = 2
POINTS = np.stack(np.meshgrid(*[np.arange(n) for n in SHAPE], indexing="ij"))
TEXTURE = gaussian_filter(np.random.default_rng(0).standard_normal(SHAPE), 2) * 200


def ball(shift: int = 0) -> np.ndarray:
    return np.linalg.norm(POINTS - np.reshape((16 + shift, 16, 15), (3, 1, 1, 1)), axis=0) < 7


def image(shift: int = 0) -> np.ndarray:
    return np.roll(TEXTURE, shift, axis=0) + 100 * gaussian_filter(ball(shift).astype(float), 1)


class Files:
    """Writes volumes into a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, name: str, array: np.ndarray, spacing: float = SPACING, origin: float = 0.0) -> str:
        affine = np.diag([spacing, spacing, spacing, 1.0])
        affine[0, 3] = origin
        volume = array.astype(np.uint8 if array.dtype == bool else np.float32)
        nib.save(nib.Nifti1Image(volume, affine), self.folder / f"{name}.nii.gz")
        return str(self.folder / f"{name}.nii.gz")


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


def displacement(kind: str, *pair: str, align: str = "header", **settings: Any) -> torch.Tensor:
    """The displacements (X, Y, Z, 3), mm, of a refined pair, after checks that hold for every pair."""
    result = Registrar("none", refine=kind, align=align).register(*pair, **settings)
    done = result.statistics["refinement"]
    assert done["objective_after"] <= done["objective_before"]
    assert result.statistics["deformation"]["folded_voxels_percent"] == 0
    found = result.field.displacement
    assert torch.isfinite(found).all()
    return found.movedim(0, -1)


def error_mm(field: torch.Tensor, truth: float, inside: np.ndarray) -> float:
    """The mean distance from a shift along the first axis."""
    return float(np.linalg.norm(field.numpy()[inside] - [truth, 0, 0], axis=-1).mean())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("align", ["header", "affine"])
def test_identical_images_stay_where_they_are(files: Files, kind: str, align: str) -> None:
    pair = [files(name, image()) for name in ("fixed", "moving")]
    labels = {key: files(key, ball()) for key in ("label", "fixed_label")} if "labels" in KINDS[kind].similarity else {}
    assert float(displacement(kind, *pair, align=align, **labels).norm(dim=-1).max()) < 0.05


def test_images_without_overlap_are_aligned_if_that_is_allowed(files: Files) -> None:
    pair = files("fixed", image()), files("moving", image(SHIFT), origin=500)
    assert error_mm(displacement("mr", *pair, align="affine"), 500 + SHIFT * SPACING, ball()) < 0.5


@pytest.mark.parametrize("kind", ["mr", "ct", "other"])
@pytest.mark.parametrize("coarse", ["fixed", "moving"])
def test_voxels_ten_times_as_large(files: Files, kind: str, coarse: str) -> None:
    """Six blobs on a grid of 1 mm and on one of 10 mm, 6 mm apart."""
    pair = []
    middles = np.random.default_rng(1).uniform(10, 50, (6, 3, 1, 1, 1))
    for side, shift in (("fixed", 0), ("moving", 6)):
        spacing = 10 if side == coarse else 1
        points = np.stack(np.meshgrid(*[np.arange(0, 61, spacing)] * 3, indexing="ij"))
        points[0] -= shift
        blobs = sum(np.exp(-((points - middle) ** 2).sum(0) / 128) for middle in middles)
        pair.append(files(side, 100 * np.asarray(blobs), spacing))
    field = displacement(kind, *pair)
    inside = np.pad(np.ones(np.subtract(field.shape[:3], 2), bool), 1)
    assert error_mm(field, 6, inside) <= 6


@pytest.mark.parametrize("kind", ["mr", "ct", "other"])
def test_inverted_contrast(files: Files, kind: str) -> None:
    pair = files("fixed", image()), files("moving", image(SHIFT).max() - image(SHIFT))
    field = displacement(kind, *pair)
    if kind != "mr":  # its windows see zeros beyond the border, which decide for a volume as small as this
        assert error_mm(field, SHIFT * SPACING, ball()) < 1


def test_two_slices_are_a_volume(files: Files) -> None:
    thin = np.s_[:, :, 15:17]
    pair = files("fixed", image()[thin]), files("moving", image(SHIFT)[thin])
    assert error_mm(displacement("mr", *pair), SHIFT * SPACING, ball()[thin]) < 1


def test_a_small_mask_is_enough(files: Files) -> None:
    """Fewer than a hundredth of all voxels count. Only the finest level learns; it finds two fifths of the shift."""
    fixed, moving, core = (
        np.pad(array, 5, mode="edge")
        for array in (
            image(),
            image(SHIFT),
            np.linalg.norm(POINTS - np.reshape((16, 16, 15), (3, 1, 1, 1)), axis=0) < 5,
        )
    )
    assert core.mean() < 0.01
    pair = files("fixed", fixed), files("moving", moving)
    assert (
        error_mm(displacement("mr", *pair, fixed_mask=files("mask", core)), SHIFT * SPACING, core)
        < 0.65 * SHIFT * SPACING
    )


def test_an_empty_mask_of_what_to_exclude_excludes_nothing(files: Files) -> None:
    pair = files("fixed", image()), files("moving", image(SHIFT))
    found = Registrar("none", refine="mr", align="header", exclude=True, refine_options={"steps": [5]}).register(
        *pair, fixed_mask=files("mask", np.zeros(SHAPE, bool))
    )
    assert found.statistics["refinement"]["improved"]


EVERY, NOTHING = np.ones(SHAPE, bool), np.zeros(SHAPE, bool)
LEFT = POINTS[0] < SHAPE[0] // 3
FLAT, THIN = np.full(SHAPE, 5.0), image()[:, :, 15:16]
NAN = np.where(ball(), np.nan, image())


@pytest.mark.parametrize(
    ("changes", "settings", "words"),
    [
        ({"moving": FLAT}, {}, r"moving.nii.gz: is constant: every voxel is 5; check"),
        ({"fixed": FLAT}, {}, r"fixed.nii.gz: is constant: every voxel is 5; check"),
        ({"moving": THIN}, {}, r"moving.nii.gz: is a 2-D image \(36×32×1\); give"),
        ({"fixed": THIN}, {}, r"fixed.nii.gz: is a 2-D image \(36×32×1\); give"),
        ({"moving": NAN}, {}, r"moving.nii.gz: holds NaN or infinity in \d+ voxels; replace"),
        ({"fixed": NAN}, {}, r"fixed.nii.gz: holds NaN or infinity in \d+ voxels; replace"),
        ({"fixed_mask": NOTHING}, {}, r"fixed_mask.nii.gz: leaves .*: no voxel is 0.5 or more; check"),
        ({"moving_mask": NOTHING}, {}, r"moving_mask.nii.gz: leaves .*: no voxel is 0.5 or more; check"),
        ({"fixed_mask": EVERY}, {"exclude": True}, r"fixed_mask.nii.gz: leaves .*: all voxels are 0.5 or more; check"),
        ({"moving_mask": EVERY}, {"exclude": True}, r"moving_mask.nii.gz: .*: all voxels are 0.5 or more; check"),
        ({"fixed_mask": LEFT, "moving_mask": ~LEFT}, {}, r"fixed.nii.gz: .* no voxels in common that count; check"),
        ({"fixed_mask": LEFT, "moving_mask": ~LEFT}, {"refine": "other"}, r"fixed.nii.gz: .* that count; "),
        ({"label": ball()}, {"refine": "labels"}, r"fixed.nii.gz: .* no fixed_label; name one"),
        ({"fixed_label": ball()}, {"refine": "labels"}, r"fixed.nii.gz: .* no moving_label; name one"),
        (
            {"fixed_label": ball(), "label": 2.0 * ball()},
            {"refine": "labels"},
            r"fixed.nii.gz: .* no label in common; give",
        ),
    ],
    ids=lambda value: "-".join(map(str, value)) if isinstance(value, dict) else "",
)
def test_one_line_says_what_to_do(
    files: Files, changes: dict[str, np.ndarray], settings: dict[str, Any], words: str
) -> None:
    volumes = {"fixed": image(), "moving": image(SHIFT)} | changes
    paths = {name: files(name, array) for name, array in volumes.items()}
    out = files.folder / "out"
    with pytest.raises(RegZooError, match=words) as caught:
        register("none", out=out, align="header", **{"refine": "mr", **paths, **settings})
    assert "\n" not in str(caught.value) and not out.exists()


def test_images_without_overlap_are_not_refined(files: Files) -> None:
    pair = files("fixed", image()), files("moving", image(SHIFT), origin=500)
    with pytest.raises(RegZooError, match=r"moving.nii.gz: does not overlap .*; set align"):
        register("none", *pair, out=files.folder / "out", refine="mr", align="header")
    assert not (files.folder / "out").exists()
