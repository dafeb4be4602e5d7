"""The fields of an evaluation, scored as Learn2Reg scores them: `map_coordinates` in voxels, nearest neighbours."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
from bundle_list import BUNDLES
from monai.bundle import ConfigWorkflow
from regzoo.errors import RegZooError
from regzoo.report import Learn2RegFields, field_files, read_csv
from scipy.ndimage import map_coordinates

BUNDLE = BUNDLES[0].parent / "hippocampus_mr_weak_ddf"


def voxels(path: str) -> np.ndarray:
    return np.asarray(nib.load(path).dataobj)


def overlap(disp: np.ndarray, fixed: np.ndarray, moving: np.ndarray, value: int) -> float:
    """The Dice of a label."""
    warped = map_coordinates(moving, np.indices(fixed.shape) + disp, order=0)
    return float(2 * ((warped == value) & (fixed == value)).sum() / ((warped == value).sum() + (fixed == value).sum()))


def test_an_evaluation_can_be_scored_elsewhere(hippocampus_phantoms: Path, tmp_path: Path) -> None:
    """The images of a pair lie on different grids here, unlike those of the challenge."""
    workflow = ConfigWorkflow(
        config_file=[str(BUNDLE / "configs" / f"{name}.json") for name in ("train", "evaluate")],
        logging_file=False,
        bundle_root=str(BUNDLE),
        dataset_dir=str(hippocampus_phantoms),
        output_dir=str(tmp_path),
        checkpoint=str(BUNDLE / "models" / "model.pt"),
        learn2reg=True,
        pictures=0,
        device="cpu",
    )
    workflow.initialize()
    workflow.run()
    workflow.finalize()
    table = read_csv(tmp_path / "evaluation" / "labels.csv")
    ours = {(case, name): dsc for case, name, dsc in zip(table["case"], table["name"], table["dsc_after"], strict=True)}
    pairs = json.loads((tmp_path / "evaluation" / "pairs.json").read_text(encoding="utf-8"))["testing"]
    assert len(pairs) == 4
    scores, unregistered = [], []
    for pair in pairs:
        numbers = [Path(pair[f"{side}_image"]).name.split("_")[1] for side in ("fixed", "moving")]
        disp = np.load(tmp_path / "evaluation" / "disp_{}_{}.npz".format(*numbers))["arr_0"]
        fixed, moving = (voxels(pair[f"{side}_label"]) for side in ("fixed", "moving"))
        assert disp.dtype == np.float16 and disp.shape == (3, *fixed.shape)
        for value, name in enumerate(("anterior", "posterior"), 1):
            found = overlap(disp.astype("float32"), fixed, moving, value)
            scores.append((found, float(ours[pair["case"], name])))
            unregistered.append(abs(found - overlap(np.zeros_like(disp), fixed, moving, value)))
    # We interpolate labels linearly; these have only some hundred voxels.
    np.testing.assert_allclose(*np.transpose(scores), atol=0.08)
    assert np.mean(scores, axis=0) == pytest.approx([np.mean(scores)] * 2, abs=0.01)
    assert max(unregistered) > 0.2


@pytest.mark.parametrize(
    ("images", "expected"),
    [
        (("hippocampus_001.nii.gz", "hippocampus_204.nii.gz"), "disp_0001_0204.npz"),
        (("AbdomenCTCT_0010_0000.nii.gz", "AbdomenCTCT_0002_0000.nii.gz"), "disp_0010_0002.npz"),
        (("NLST_0004_0000.nii.gz", "NLST_0004_0001.nii.gz"), "disp_0004_0004.npz"),
        (("AbdomenMRCT_0004_0001.nii.gz", "AbdomenMRCT_0004_0000.nii.gz"), "disp_0004_0001_0004_0000.npz"),
        (("a_1.nii.gz", "b_1.nii.gz"), "disp_0001_0001.npz"),
        (("a.nii.gz", "b_1.nii.gz"), "disp_a_b_1.npz"),
    ],
)
def test_names(images: tuple[str, str], expected: str) -> None:
    """As the evaluation of Learn2Reg forms them, where the names of the images are those of Learn2Reg."""
    fixed, moving = images
    assert field_files([{"case": "c", "fixed_image": fixed, "moving_image": moving}]) == {"c": expected}


def test_names_of_pairs_with_the_same_numbers() -> None:
    records = [{"case": x, "fixed_image": f"{x}_1.nii.gz", "moving_image": f"{x}_2.nii.gz"} for x in "ab"]
    assert field_files(records) == {"a": "disp_a_1_a_2.npz", "b": "disp_b_1_b_2.npz"}


def test_a_case_without_a_field_is_an_error(tmp_path: Path) -> None:
    item = {"case": "c", "fixed_image": "a_1.nii.gz", "moving_image": "b_2.nii.gz"}
    dataset = SimpleNamespace(data=[item])
    engine = SimpleNamespace(
        data_loader=SimpleNamespace(dataset=dataset), state=SimpleNamespace(batch=[item], output=[{}])
    )
    with pytest.raises(RegZooError, match="c: its labels were predicted without a field"):
        Learn2RegFields(tmp_path)._write(engine)  # type: ignore[arg-type]
