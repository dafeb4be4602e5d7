"""``regzoo register none``: any two images, without a network."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from regzoo import Registrar, RegZooError
from regzoo.inference import register
from scipy.ndimage import gaussian_filter

QUICK = {"align": "header", "refine_options": {"spacing": 2.0, "steps": [10, 10]}}


def write(path: Path, array: np.ndarray) -> str:
    nib.save(nib.Nifti1Image(array, np.diag([2.0, 2.0, 2.0, 1.0])), path)
    return str(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [('{"device": "cpu",}', "overlay.json: is not valid JSON"), ("[1]", "overlay.json: is not a configuration")],
)
def test_an_overlay_that_is_none(text: str, message: str, tmp_path: Path) -> None:
    overlay = tmp_path / "overlay.json"
    overlay.write_text(text)
    with pytest.raises(RegZooError, match=message) as error:
        Registrar("none", overlays=str(overlay))
    assert "\n" not in str(error.value)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A ball in texture, and the same 4 mm further along the first axis, both with a mask of the ball."""
    folder = tmp_path_factory.mktemp("pair")
    points = np.stack(np.meshgrid(*[np.arange(n) for n in (36, 32, 30)], indexing="ij"))
    texture = gaussian_filter(np.random.default_rng(0).standard_normal(points.shape[1:]), 2) * 200
    files = {}
    for side, centre in (("fixed", (16, 16, 15)), ("moving", (18, 16, 15))):
        ball = np.linalg.norm(points - np.reshape(centre, (3, 1, 1, 1)), axis=0) < 7
        image = np.roll(texture, centre[0] - 16, axis=0) + 100 * gaussian_filter(ball.astype(float), 1)
        files[side] = write(folder / f"{side}.nii.gz", image.astype(np.float32))
        files[f"{side}_label"] = write(folder / f"{side}_label.nii.gz", ball.astype(np.uint8))
        files[f"{side}_empty"] = write(folder / f"{side}_empty.nii.gz", np.zeros_like(ball, dtype=np.uint8))
        files[f"{side}_all"] = write(folder / f"{side}_all.nii.gz", np.ones_like(ball, dtype=np.uint8))
        files[f"{side}_other"] = write(folder / f"{side}_other.nii.gz", ball.astype(np.uint8) * 2)
    return files


def overlap(file: Path, other: str) -> float:
    a, b = (np.asarray(nib.load(path).dataobj) > 0 for path in (file, other))
    return float(2 * (a & b).sum() / (a.sum() + b.sum()))


@pytest.mark.parametrize("kind", ["mr", "other", "labels"])
def test_two_images_are_registered(pair: dict[str, str], kind: str, tmp_path: Path) -> None:
    labels = {"label": pair["moving_label"]} | ({"fixed_label": pair["fixed_label"]} if kind == "labels" else {})
    before = overlap(Path(pair["moving_label"]), pair["fixed_label"])
    register("none", pair["fixed"], pair["moving"], out=tmp_path / "out", refine=kind, **labels, **QUICK)
    assert overlap(tmp_path / "out" / "warped_label.nii.gz", pair["fixed_label"]) > max(0.93, before)
    statistics = json.loads((tmp_path / "out" / "statistics.json").read_text())
    assert statistics["refinement"]["improved"]
    assert statistics["deformation"]["folded_voxels_percent"] == 0


def test_without_refinement_it_is_the_pre_alignment(pair: dict[str, str]) -> None:
    result = register("none", pair["fixed"], pair["moving"], align="header")
    assert float(result.field.displacement.abs().max()) < 1e-4
    assert "refinement" not in result.statistics


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"refine": "labels"}, "no moving_label"),
        ({"refine": "labels", "label": "moving_label"}, "no fixed_label"),
        ({"refine": "labels", "label": "moving_label", "fixed_label": "fixed_other"}, "no label in common"),
        (
            {"refine": "mr", "fixed_mask": "fixed_empty"},
            "fixed_empty.nii.gz: leaves no voxel that counts: no voxel is 0.5 or more; ",
        ),
        (
            {"refine": "mr", "moving_mask": "moving_all", "exclude": True},
            "moving_all.nii.gz: leaves no voxel .* all voxels are 0.5 or more; ",
        ),
        ({"refine": "pet"}, "pet"),
        ({"refine": "mr", "refine_seconds": -1}, "refine_seconds"),
        ({"refine": "mr", "refine_options": {"spacing": 2.0, "levels": 3}}, "levels"),
        ({"refine": "mr", "refine_options": {1: 2}}, "there is no option '1'"),
        ({"refine": "mr", "refine_options": {"seconds": 0}}, "seconds: 0 is not a positive number"),
        ({"refine_seconds": 5, "refine_options": {}}, "refine_seconds: has no effect without refine"),
        ({}, "refine_options: has no effect without refine"),
        ({"refine": "mr", "exclude": True}, "exclude: has no effect without fixed_mask or moving_mask"),
        ({"fixed_mask": "fixed_label"}, "set refine"),
        ({"fixed_label": "fixed_label"}, "set refine"),
    ],
)
def test_what_cannot_be_refined_is_one_line(pair: dict[str, str], settings: dict[str, object], words: str) -> None:
    given = {key: pair.get(str(value), value) for key, value in settings.items()}
    with pytest.raises(RegZooError, match=words) as caught:
        register("none", pair["fixed"], pair["moving"], **{**QUICK, **given})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("fixed", np.zeros((4, 4, 4)), "fixed_image: is a ndarray, not the path of a file; save it, and name the file"),
        ("moving", ["a", "b"], "moving_image: is a list"),
        ("label", torch.zeros(4, 4, 4), "moving_label: is a Tensor"),
        ("fixed_label", ["a.nii.gz", 3], "fixed_label: is a int"),
        ("fixed_mask", nib.Nifti1Image(np.zeros((2, 2, 2)), np.eye(4)), "fixed_mask: is a Nifti1Image"),
    ],
)
def test_images_in_memory_are_refused(pair: dict[str, str], key: str, value: object, words: str) -> None:
    with pytest.raises(RegZooError, match=words) as caught:
        register("none", **{"fixed": pair["fixed"], "moving": pair["moving"], key: value})
    assert "\n" not in str(caught.value)


def test_masks_count_in_the_pre_alignment(pair: dict[str, str]) -> None:
    masks = {"fixed_mask": pair["fixed_label"], "moving_mask": pair["moving_label"]}
    with pytest.raises(RegZooError, match="leaves no voxel that counts"):
        register("none", pair["fixed"], pair["moving"], align="rigid", exclude=True, fixed_mask=pair["fixed_all"])
    fields = [
        register("none", pair["fixed"], pair["moving"], align="rigid", exclude=exclude, **masks).field.displacement
        for exclude in (False, True)
    ]
    assert not torch.equal(*fields)


def test_some_pairs_of_a_registrar_may_lack_the_mask_that_excludes(pair: dict[str, str]) -> None:
    registrar = Registrar("none", align="rigid", exclude=True)
    assert registrar.register(pair["fixed"], pair["moving"]).field is not None


def test_masks_exclude_on_request(pair: dict[str, str]) -> None:
    """All but the ball, then the ball alone: the mask is read the other way round."""
    masks = {"fixed_mask": pair["fixed_label"], "moving_mask": pair["moving_label"]}
    results = [
        register("none", pair["fixed"], pair["moving"], refine="mr", exclude=exclude, **masks, **QUICK)
        for exclude in (False, True)
    ]
    fields = [result.field.displacement for result in results]
    assert float((fields[0] - fields[1]).abs().max()) > 0.1
