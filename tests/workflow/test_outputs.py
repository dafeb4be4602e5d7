"""What a registration leaves on disk: forms of labels, statistics, all files or none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from helpers import ball, make_affine, smooth_ddf, smooth_noise
from ignite.engine import Engine
from monai.data import MetaTensor
from regzoo.spatial import DisplacementField
from regzoo.transforms import AlignPaird, ApplyFieldd, ResamplePaird
from regzoo.workflow import RegistrationResult, SaveRegistration
from scipy.ndimage import center_of_mass

FIXED, MOVING = (18, 16, 15), (17, 19, 14)
AFFINES = {
    "fixed": make_affine(FIXED, (1.5, 1.2, 2), (10, -5, 15), (1, 0, 2), (-1, 1, 1), (30, -20, 10)),
    "moving": make_affine(MOVING, (1.3, 1.1, 1.8), (-5, 0, 8), center=(31, -19, 11)),
}
OUTPUTS = {"warped_image.nii.gz", "warped_label.nii.gz", "field.nii.gz", "statistics.json"}


def applied(label: str = "masks") -> dict[Any, Any]:
    """A pair after the bundle's postprocessing; the third label is nowhere."""
    item: dict[Any, Any] = {"case": "A 1/2", "label_names": ["gland", "cyst"]}
    for seed, (side, shape) in enumerate((("fixed", FIXED), ("moving", MOVING))):
        image = torch.from_numpy(smooth_noise(shape, 1, seed))[None]
        item[f"{side}_image"] = MetaTensor(image, affine=torch.from_numpy(AFFINES[side]))
    if label != "none":
        masks = np.stack([ball(MOVING, (8, 9, 7), 5), ball(MOVING, (8, 12, 7), 2), np.zeros(MOVING)])
        masks[0] *= 1 - masks[1]
        item["moving_label"] = MetaTensor(torch.from_numpy(masks).float(), affine=torch.from_numpy(AFFINES["moving"]))
    if label == "map":
        item["moving_label_values"] = [2, 300, 301]
    size = (12, 12, 12)
    item = ResamplePaird((2, 2, 2), size, keep_native=True)(AlignPaird()(item))
    item["pred"] = torch.from_numpy(smooth_ddf(size, 1.5))
    return ApplyFieldd()(item)


def test_files_of_a_result(tmp_path: Path) -> None:
    item = applied()
    result = RegistrationResult.of(item)
    assert result.save(tmp_path / "out", picture=False) == tmp_path / "out"
    assert {path.name for path in (tmp_path / "out").iterdir()} == OUTPUTS
    image = nib.load(tmp_path / "out/warped_image.nii.gz")
    assert image.get_data_dtype() == np.float32
    np.testing.assert_allclose(image.affine, AFFINES["fixed"], atol=1e-5)
    np.testing.assert_array_equal(image.get_fdata(), item["warped_image"][0].numpy())
    masks = nib.load(tmp_path / "out/warped_label.nii.gz")
    assert masks.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(masks.get_fdata(), (item["warped_label"].numpy() >= 0.5).transpose(1, 2, 3, 0))
    field = DisplacementField.load(tmp_path / "out/field.nii.gz")
    np.testing.assert_allclose(field.displacement.numpy(), item["field"].displacement.numpy(), atol=1e-5)


def test_a_label_map_stays_one(tmp_path: Path) -> None:
    item = applied("map")
    RegistrationResult.of(item).save(tmp_path, picture=False)
    written = np.asarray(nib.load(tmp_path / "warped_label.nii.gz").dataobj)
    assert written.shape == FIXED
    # Every voxel goes to the largest share, the background's included.
    soft = item["warped_label"].numpy()
    shares = np.concatenate([1 - soft.sum(0, keepdims=True), soft])
    np.testing.assert_array_equal(written, np.array([0, 2, 300, 301])[shares.argmax(0)])
    assert set(np.unique(written)) == {0, 2, 300}


def test_a_second_result_leaves_nothing_of_the_first(tmp_path: Path) -> None:
    RegistrationResult.of(applied()).save(tmp_path)
    RegistrationResult.of(applied("none")).save(tmp_path, picture=False)
    assert {path.name for path in tmp_path.iterdir()} == OUTPUTS - {"warped_label.nii.gz"}


def test_without_label_there_is_no_label_file(tmp_path: Path) -> None:
    result = RegistrationResult.of(applied("none"))
    assert result.warped_label is None
    assert result.label_map() is None
    RegistrationResult.of(applied()).save(tmp_path, picture=False)
    (tmp_path / "notes.txt").write_text("mine")
    result.save(tmp_path, picture=False)  # nothing of the earlier result remains
    assert {path.name for path in tmp_path.iterdir()} == OUTPUTS - {"warped_label.nii.gz"} | {"notes.txt"}
    assert "labels" not in json.loads((tmp_path / "statistics.json").read_text())


def test_statistics_are_those_of_the_written_masks(tmp_path: Path) -> None:
    RegistrationResult.of(applied()).save(tmp_path, picture=False)
    masks = nib.load(tmp_path / "warped_label.nii.gz")
    found = json.loads((tmp_path / "statistics.json").read_text())
    voxel = np.prod(masks.header.get_zooms()[:3])
    assert [entry.get("name") for entry in found["labels"]] == ["gland", "cyst", None]
    for entry, mask in zip(found["labels"], masks.get_fdata().transpose(3, 0, 1, 2), strict=True):
        assert entry["volume_mm3"] == pytest.approx(mask.sum() * voxel, abs=0.1)
        if mask.any():
            expected = masks.affine @ [*center_of_mass(mask), 1]
            np.testing.assert_allclose(entry["centroid_ras_mm"], expected[:3], atol=2e-3)
        else:
            assert entry["centroid_ras_mm"] is None
    assert found["deformation"]["folded_voxels_percent"] == 0


def test_all_files_or_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(*_: object) -> None:
        raise KeyboardInterrupt

    result = RegistrationResult.of(applied())
    monkeypatch.setattr(RegistrationResult, "draw", crash)
    with pytest.raises(KeyboardInterrupt):
        result.save(tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
    result.save(tmp_path / "out", picture=False)
    before = {path: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    with pytest.raises(KeyboardInterrupt):
        result.save(tmp_path / "out")
    assert {path: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


def test_handler_writes_each_case_into_its_folder(tmp_path: Path) -> None:
    engine = Engine(lambda *_: [applied()])
    SaveRegistration(tmp_path / "run", pictures=True).attach(engine)
    engine.run([[{"index": 0}]])
    (folder,) = (tmp_path / "run").iterdir()
    assert folder.is_dir()
    assert folder.name.startswith("A")
    assert {path.name for path in folder.iterdir()} == OUTPUTS | {"quality.png"}
    assert (folder / "quality.png").read_bytes().startswith(b"\x89PNG")
