"""What comes back: on the fixed image's grid, equal to an independent warp, better than nothing, rightly measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("monailabel", reason="run by `make test-label`, in an environment of its own")

import nibabel as nib
import numpy as np
import SimpleITK as sitk
from bundle_list import NAMES, REPRESENTATIVES, needs_label, predicts_field
from helpers import from_sitk, to_sitk
from label_server import Answer, LabelServer
from label_studies import DDMR, PROSTATE, Studies
from label_truth import dice, masks_of, paint, register, registrar, warped, warped_label_map

each_bundle = pytest.mark.parametrize("bundle", NAMES)
each_pair = pytest.mark.parametrize("which", [0, -1], ids=["phantom", "oblique"])
#: Oblique pairs share a place, not an organ that could be sought.
ALIGN = {0: {}, -1: {"align": "header"}}


def on_grid_of(answer: Answer, fixed: Path) -> np.ndarray:
    """The voxels of an answer, after its geometry was compared with the file's."""
    assert answer.status == 200, answer.detail
    assert answer.image is not None
    expected = nib.load(fixed)
    assert answer.image.shape == expected.shape
    np.testing.assert_allclose(answer.image.affine, expected.affine, atol=1e-4)
    return np.asarray(answer.image.dataobj)


def test_all_bundles_are_served(server: LabelServer) -> None:
    info = server.get("/info/")
    assert set(info["models"]) == set(NAMES) == set(info["trainers"])
    for model in info["models"].values():
        assert model["type"] == "segmentation" and model["dimension"] == 3
        # Options of a bundle's own would be written into its configuration, where MONAI runs what begins with $.
        assert set(model["config"]) == {"device", "model_filename"}
        assert model["config"]["model_filename"] == ["model.pt"]


@each_bundle
@each_pair
def test_labels_are_those_of_an_independent_warp(
    bundle: str, which: int, server: LabelServer, studies: Studies, tmp_path: Path
) -> None:
    pair = studies.pairs(bundle)[which]
    answer = server.infer(bundle, pair.fixed, moving_image=pair.moving, moving_label=pair.moving, **ALIGN[which])
    found = on_grid_of(answer, pair.fixed_file)
    assert np.issubdtype(found.dtype, np.integer)
    register(bundle, pair, tmp_path, **ALIGN[which])
    if not predicts_field(bundle):
        propagated = np.asarray(nib.load(tmp_path / "warped_label.nii.gz").dataobj)
        np.testing.assert_array_equal(found, paint(masks_of(propagated)))
    else:
        expected, sure = warped_label_map(pair.label_file, tmp_path / "field.nii.gz", pair.fixed_file)
        assert sure[expected > 0].mean() > 0.8
        np.testing.assert_array_equal(found[sure], expected[sure])
    assert len(np.unique(found)) > 2
    labels = np.asarray(nib.load(pair.label_file).dataobj)
    if labels.ndim == 3:  # a map, whose values come back
        assert set(np.unique(found)) <= {0, *masks_of(labels)}
        assert found.max() > (255 if which else labels.max() // 2)


@pytest.mark.parametrize("bundle", [name for name in NAMES if not needs_label(name)])
@each_pair
def test_without_a_label_comes_the_warped_image(
    bundle: str, which: int, server: LabelServer, studies: Studies, tmp_path: Path
) -> None:
    pair = studies.pairs(bundle)[which]
    answer = server.infer(bundle, pair.fixed, moving_image=pair.moving, **ALIGN[which])
    found = on_grid_of(answer, pair.fixed_file)
    assert found.dtype == np.float32 and answer.params["answer"] == "image" and "labels" not in answer.params
    # The alignment of CTs may go by organs where a label says where they are.
    saved = tmp_path / "out"
    registrar(bundle, ALIGN[which].get("align")).register(pair.fixed_file, pair.moving_file).save(saved, "field")
    moving = nib.load(pair.moving_file)
    image = np.asarray(moving.dataobj).astype(np.float32)
    expected = warped(image, moving.affine, saved / "field.nii.gz", pair.fixed_file)
    inside = warped(
        np.pad(np.ones(np.subtract(moving.shape, 2)), 1), moving.affine, saved / "field.nii.gz", pair.fixed_file
    )
    assert (inside == 1).mean() > 0.05
    assert np.abs(found - expected)[inside == 1].max() < 1e-3 * np.ptp(image)


@pytest.mark.parametrize("bundle", [name for name in NAMES if needs_label(name)])
@pytest.mark.usefixtures("untouched")
def test_a_bundle_that_needs_the_label_says_so(bundle: str, server: LabelServer, studies: Studies) -> None:
    pair = studies.pairs(bundle)[0]
    for empty in ({}, {"moving_label": ""}, {"moving_label": None}, {"moving_label": []}):
        answer = server.infer(bundle, pair.fixed, moving_image=pair.moving, **empty)
        assert answer.status == 400 and "moving_label" in answer.detail and "\n" not in answer.detail


@pytest.mark.parametrize("bundle", PROSTATE)
def test_the_gland_comes_nearer(bundle: str, server: LabelServer, studies: Studies) -> None:
    pair = studies.prostate[0]
    answer = server.infer(bundle, pair.fixed, moving_image=pair.moving, moving_label=studies.gland.name)
    found = on_grid_of(answer, pair.fixed_file)
    assert set(np.unique(found)) == {0, 1}
    truth = np.asarray(nib.load(studies.fixed_label_file(pair)).dataobj)[..., 0] > 0
    before = unregistered(studies.gland, pair.fixed_file)
    assert dice(found == 1, truth) > dice(before, truth) + 0.05


#: Phantoms are outside what its weights were trained on.
ON_PATIENTS = pytest.param(
    "hippocampus_mr_weak_ddf", marks=pytest.mark.xfail(strict=True, reason="trained on patients, measured on phantoms")
)
ON_PHANTOMS = [name for name in NAMES if name not in (*PROSTATE, *ON_PATIENTS.values)]


@pytest.mark.parametrize("bundle", [*ON_PHANTOMS, ON_PATIENTS])
def test_organs_come_nearer(bundle: str, server: LabelServer, studies: Studies) -> None:
    pair = studies.pairs(bundle)[0]
    answer = server.infer(bundle, pair.fixed, moving_image=pair.moving, moving_label=pair.moving)
    found = on_grid_of(answer, pair.fixed_file)
    truth = masks_of(np.asarray(nib.load(studies.fixed_label_file(pair)).dataobj))
    label = nib.load(pair.label_file)
    labels = np.asarray(label.dataobj)
    before = {value: unregistered_mask(labels == value, label.affine, pair.fixed_file) for value in truth}
    gains = [dice(found == value, mask) - dice(before[value], mask) for value, mask in truth.items()]
    assert np.mean(gains) > 0.1


def unregistered(label_file: Path, fixed: Path) -> np.ndarray:
    """The mask of a file on another grid, as the headers place it."""
    label = nib.load(label_file)
    return unregistered_mask(np.asarray(label.dataobj) > 0, label.affine, fixed)


def unregistered_mask(mask: np.ndarray, affine: np.ndarray, fixed: Path) -> np.ndarray:
    """The same of an array."""
    reference = sitk.ReadImage(str(fixed))
    found = sitk.Resample(to_sitk(mask.astype(np.float32), affine), reference, sitk.Transform(), sitk.sitkLinear)
    return from_sitk(found) >= 0.5


@each_bundle
@each_pair
def test_measures_are_those_of_the_image(bundle: str, which: int, server: LabelServer, studies: Studies) -> None:
    """Volumes and centroids again from the voxels that came back; of masks that do not overlap."""
    pair = studies.pairs(bundle)[which]
    label = studies.gland.name if pair in studies.prostate else pair.moving
    answer = server.infer(bundle, pair.fixed, moving_image=pair.moving, moving_label=label, **ALIGN[which])
    found = on_grid_of(answer, pair.fixed_file)
    assert answer.params["case"] == pair.fixed and answer.params["answer"] == "label"
    affine = nib.load(pair.fixed_file).affine
    voxel = abs(np.linalg.det(affine[:3, :3]))
    entries = {entry["label"]: entry for entry in answer.params["labels"]}
    values = set(np.unique(found)) - {0}
    assert values and values <= set(entries)
    if pair == studies.oblique["prostate"]:  # one ball in the other: the smaller one is whole in the map
        values = {2}
    for value, entry in entries.items():
        mask = found == value
        if value in values:
            assert entry["volume_mm3"] == pytest.approx(mask.sum() * voxel, rel=1e-3)
            centre = (affine @ [*np.argwhere(mask).mean(axis=0), 1])[:3]
            np.testing.assert_allclose(entry["centroid_ras_mm"], centre, atol=2e-3)
        elif not mask.any():
            assert entry["volume_mm3"] == 0 and entry["centroid_ras_mm"] is None
    assert isinstance(answer.params["warnings"], list)
    deformation = answer.params.get("deformation")
    assert (deformation is None) == (not predicts_field(bundle))
    if deformation:
        assert 0 <= deformation["folded_voxels_percent"] < 100
    assert 0 < answer.params["latencies"]["infer"] <= answer.params["latencies"]["total"]
    assert {"label_names", "centroids"} <= set(answer.params)


@pytest.mark.parametrize("bundle", [*REPRESENTATIVES, "prostate_mr_trus_conditional_seg"])
def test_alignment_is_the_requests(bundle: str, server: LabelServer, studies: Studies, tmp_path: Path) -> None:
    pair = studies.pairs(bundle)[0]
    for align in ("header", "center", "label", "rigid"):
        answer = server.infer(bundle, pair.fixed, moving_image=pair.moving, moving_label=pair.moving, align=align)
        found = on_grid_of(answer, pair.fixed_file)
        register(bundle, pair, tmp_path / align, align)
        if not predicts_field(bundle):
            propagated = np.asarray(nib.load(tmp_path / align / "warped_label.nii.gz").dataobj)
            np.testing.assert_array_equal(found, paint(masks_of(propagated)))
        else:
            field = tmp_path / align / "field.nii.gz"
            expected, sure = warped_label_map(pair.label_file, field, pair.fixed_file)
            np.testing.assert_array_equal(found[sure], expected[sure])
    default = server.infer(bundle, pair.fixed, moving_image=pair.moving, moving_label=pair.moving)
    own = json.loads((server.models / bundle / "configs" / "inference.json").read_text(encoding="utf-8"))["align"]
    again = server.infer(bundle, pair.fixed, moving_image=pair.moving, moving_label=pair.moving, align=own)
    np.testing.assert_array_equal(on_grid_of(default, pair.fixed_file), on_grid_of(again, pair.fixed_file))


def test_a_label_of_the_fixed_image_places_cts(server: LabelServer, studies: Studies, tmp_path: Path) -> None:
    """By the livers instead of by the bodies; the other bundles have no use for it."""
    pair = studies.abdomen[0]
    named = {"moving_image": pair.moving, "moving_label": pair.moving}
    with_organ = server.infer(DDMR, pair.fixed, **named, fixed_label=pair.fixed)
    without = server.infer(DDMR, pair.fixed, **named)
    fixed_label = studies.fixed_label_file(pair)
    registrar(DDMR).register(pair.fixed_file, pair.moving_file, pair.label_file, fixed_label).save(tmp_path, "field")
    expected, sure = warped_label_map(pair.label_file, tmp_path / "field.nii.gz", pair.fixed_file)
    found = on_grid_of(with_organ, pair.fixed_file)
    np.testing.assert_array_equal(found[sure], expected[sure])
    assert (found != on_grid_of(without, pair.fixed_file)).any()
