"""Registering files with a bundle: command lines, Python, the keys a server sends, and what is left on disk."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import regzoo
import SimpleITK as sitk
import torch
from bundle_list import BUNDLES, config, kind, needs_label, pairs, predicts_field
from helpers import line_of_failing
from monai.bundle import ConfigParser, ConfigWorkflow
from regzoo.datasets.records import case_name
from regzoo.engines import save_weights
from regzoo.inference import Registrar

ROOT = Path(__file__).resolve().parents[2]
BUNDLE = ROOT / "bundles" / "prostate_mr_trus_weak_ddf"
SEG = ROOT / "bundles" / "prostate_mr_trus_conditional_seg"
SDM = ROOT / "bundles" / "prostate_mr_trus_sdm"
OUTPUTS = {"warped_image.nii.gz", "warped_label.nii.gz", "field.nii.gz", "statistics.json", "quality.png"}


@pytest.fixture(scope="module")
def registrar() -> Registrar:
    return Registrar(BUNDLE, device="cpu")


def files(phantoms: Path, case: str) -> dict[str, str]:
    pair = pairs(phantoms)[int(case[4:]) - 8]
    return {"fixed": pair["fixed_image"], "moving": pair["moving_image"], "label": pair["moving_label"]}


def workflow(bundle: Path, **settings: Any) -> ConfigWorkflow:
    """A run of a bundle's inference in this process."""
    file = str(bundle / "configs" / "inference.json")
    return ConfigWorkflow(file, logging_file=False, bundle_root=str(bundle), device="cpu", **settings)


def warp_with_simpleitk(moving: sitk.Image, field: Path, fixed: str, background: float = 0.0) -> np.ndarray:
    transform = sitk.DisplacementFieldTransform(sitk.ReadImage(str(field), sitk.sitkVectorFloat64))
    warped = sitk.Resample(moving, sitk.ReadImage(fixed), transform, sitk.sitkLinear, background, sitk.sitkFloat32)
    return sitk.GetArrayFromImage(warped).transpose(2, 1, 0)


@pytest.mark.parametrize("bundle", [path for path in BUNDLES if predicts_field(path)], ids=lambda path: path.name)
def test_the_written_field_is_the_whole_transformation(bundle: Path, dataset: Path, tmp_path: Path) -> None:
    """With what the bundle does to align the two beforehand: the second one puts the gland on the image's centre."""
    pair = files(dataset, "case000008")
    Registrar(bundle, device="cpu").register(pair["fixed"], pair["moving"], pair["label"]).save(tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == OUTPUTS
    ours = nib.load(tmp_path / "out/warped_image.nii.gz")
    moving = sitk.ReadImage(pair["moving"], sitk.sitkFloat32)
    background = config(bundle, "inference").get("background", 0.0)  # outside a CT there is air
    theirs = warp_with_simpleitk(moving, tmp_path / "out/field.nii.gz", pair["fixed"], background)
    assert 0.01 < (theirs == background).mean() < 0.9  # brains are cut out of their heads
    scale = 100 / np.ptp(sitk.GetArrayFromImage(moving))
    assert np.abs(ours.get_fdata() - theirs).max() * scale < 0.05
    np.testing.assert_allclose(ours.affine, nib.load(pair["fixed"]).affine, atol=1e-5)
    labels = nib.load(tmp_path / "out/warped_label.nii.gz")
    assert labels.shape == (*ours.shape, *nib.load(pair["label"]).shape[3:])


def test_command_lines_and_python_give_the_same_files(
    registrar: Registrar, prostate_phantoms: Path, tmp_path: Path
) -> None:
    pair = files(prostate_phantoms, "case000009")
    registrar.register(pair["fixed"], pair["moving"], pair["label"]).save(tmp_path / "python")
    arguments = [f"--{name}={value}" for name, value in pair.items()]
    done = subprocess.run(
        [Path(sys.executable).with_name("regzoo"), "register", BUNDLE, *arguments, f"--out={tmp_path / 'cli'}"],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
    )
    assert done.returncode == 0, done.stderr
    command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", "configs/inference.json"]
    command += ["--fixed_image", pair["fixed"], "--moving_image", pair["moving"], "--moving_label", pair["label"]]
    command += ["--output_dir", str(tmp_path / "bundle"), "--device", "cpu"]
    done = subprocess.run(command, cwd=BUNDLE, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    for name in ("warped_image.nii.gz", "warped_label.nii.gz", "field.nii.gz"):
        expected = nib.load(tmp_path / "python" / name).get_fdata()
        for folder in (tmp_path / "cli", tmp_path / "bundle" / "case000009"):
            np.testing.assert_allclose(nib.load(folder / name).get_fdata(), expected, atol=1e-3)


def test_a_list_with_a_bad_case_registers_the_others(prostate_phantoms: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.nii.gz"
    bad.write_bytes(Path(files(prostate_phantoms, "case000009")["fixed"]).read_bytes()[:5000])
    listed = [files(prostate_phantoms, f"case00000{n}") for n in (8, 9)]
    listed[1]["fixed"] = str(bad)
    records = [{"fixed_image": pair["fixed"], "moving_image": pair["moving"]} for pair in listed]
    datalist = tmp_path / "pairs.json"
    datalist.write_text(json.dumps(records), encoding="utf-8")
    folders = {"dataset_dir": str(datalist), "output_dir": str(tmp_path / "out")}
    assert str(bad) in line_of_failing(workflow(BUNDLE, **folders, outputs="image,field"))
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["case000008"]


def test_label_map_comes_back_as_a_map_with_its_values(
    registrar: Registrar, prostate_phantoms: Path, tmp_path: Path
) -> None:
    pair = files(prostate_phantoms, "case000008")
    label = nib.load(pair["label"])
    gland = np.asarray(label.dataobj)[..., 0]
    values = np.where(np.arange(gland.shape[2]) > gland.shape[2] // 2, 7, 300).astype(np.int16) * gland
    nib.save(nib.Nifti1Image(values, label.affine), tmp_path / "map.nii.gz")
    result = registrar.register(pair["fixed"], pair["moving"], tmp_path / "map.nii.gz")
    result.save(tmp_path / "out")
    warped = np.asarray(nib.load(tmp_path / "out/warped_label.nii.gz").dataobj)
    assert warped.ndim == 3 and set(np.unique(warped)) == {0, 7, 300}
    assert [entry["label"] for entry in result.statistics["labels"]] == [7, 300]


def test_center_alignment_is_part_of_the_field(registrar: Registrar, prostate_phantoms: Path, tmp_path: Path) -> None:
    pair = files(prostate_phantoms, "case000008")
    moving = nib.load(pair["moving"])
    shifted = moving.affine.copy()
    shifted[:3, 3] += 500
    nib.save(nib.Nifti1Image(np.asarray(moving.dataobj), shifted), tmp_path / "far.nii.gz")
    with pytest.raises(regzoo.RegZooError, match="set align to center"):
        registrar.register(pair["fixed"], tmp_path / "far.nii.gz")
    centred = Registrar(BUNDLE, device="cpu", align="center")
    near = centred.register(pair["fixed"], pair["moving"])
    far = centred.register(pair["fixed"], tmp_path / "far.nii.gz")
    torch.testing.assert_close(far.warped_image.as_tensor(), near.warped_image.as_tensor(), atol=0.5, rtol=0)
    offset = (far.field.displacement - near.field.displacement).flatten(1)
    torch.testing.assert_close(offset, torch.full_like(offset, 500), atol=1e-2, rtol=0)


@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda path: path.name)
def test_the_keys_a_server_sends(bundle: Path, dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """MONAI Label reads these ids, takes them apart, sends ``image_path`` and hands ``pred`` and ``result`` out."""
    parser = ConfigParser()
    parser.read_config(str(bundle / "configs/inference.json"))
    parser["served"] = True
    monkeypatch.setenv("MONAI_LABEL_STUDIES", str(dataset))
    pair = files(dataset, "case000008")
    moving, label = (str(Path(pair[key]).relative_to(dataset)) for key in ("moving", "label"))
    request = {"model": bundle.name, "image": pair["fixed"], "image_path": pair["fixed"], "moving_image": moving}
    network = parser.get_parsed_content("network_def").eval()
    network.load_state_dict(torch.load(bundle / "models/model.pt", weights_only=True))
    inferer = parser.get_parsed_content("inferer")

    def answer(request: dict[str, Any]) -> dict[Any, Any]:
        data: dict[Any, Any] = request
        for step in parser.get_parsed_content("preprocessing").transforms:
            data = step(data)
        with torch.no_grad():
            data["pred"] = inferer(data["image"][None], network)[0]
        for step in parser.get_parsed_content("postprocessing").transforms:
            data = step(data)
        return data

    answers = [(answer(request | {"moving_label": label}), "label", torch.int32)]
    if not needs_label(bundle):
        answers.append((answer(request), "image", torch.float32))
    else:
        with pytest.raises(Exception, match="name it as moving_label"):
            answer(request)
    fixed = nib.load(pair["fixed"])
    for data, what, dtype in answers:
        given, result = data["pred"], json.loads(json.dumps(data["result"], allow_nan=False))
        assert given.shape == (1, *fixed.shape) and given.dtype == dtype
        np.testing.assert_allclose(given.affine, fixed.affine, atol=1e-5)
        assert given.any() and result["answer"] == what and result["case"] == case_name(pair["fixed"])
        assert ("deformation" in result) == predicts_field(bundle) and isinstance(result["warnings"], list)
        assert ("labels" in result) == (what == "label")
    with_label, result = answers[0][0]["pred"][0].numpy(), answers[0][0]["result"]
    shown = with_label == with_label.max()  # the last one is not covered by another
    entry = next(one for one in result["labels"] if one["label"] == with_label.max())
    np.testing.assert_allclose(entry["volume_mm3"], shown.sum() * abs(np.linalg.det(fixed.affine)), rtol=1e-4)
    centre = fixed.affine @ [*np.argwhere(shown).mean(0), 1]
    np.testing.assert_allclose(entry["centroid_ras_mm"], centre[:3], atol=2e-3)
    with pytest.raises(Exception, match="align: unknown method 'nearby'"):
        answer(request | {"moving_label": label, "align": "nearby"})
    if not needs_label(bundle):
        with pytest.raises(Exception, match="result_dtype: uint8 cannot hold the warped image"):
            answer(request | {"result_dtype": "uint8"})


def test_labels_propagated_without_a_field(prostate_phantoms: Path, tmp_path: Path) -> None:
    """Every channel as if it were alone, on the fixed grid, from a run of the bundle and from Python."""
    pair = files(prostate_phantoms, "case000008")
    labels = nib.load(pair["label"])
    masks_but_one = np.asarray(labels.dataobj).copy()
    masks_but_one[..., 2] = 0
    nib.save(nib.Nifti1Image(masks_but_one, labels.affine), tmp_path / "labels.nii.gz")
    pair["label"] = str(tmp_path / "labels.nii.gz")
    registrar = Registrar(SEG, device="cpu")
    result = registrar.register(pair["fixed"], pair["moving"], pair["label"])
    result.save(tmp_path / "python", ["label", "probability"])
    masks = nib.load(tmp_path / "python/warped_label.nii.gz")
    probability = nib.load(tmp_path / "python/probability.nii.gz")
    moving = nib.load(pair["label"])
    fixed = nib.load(pair["fixed"])
    for image in (masks, probability):
        assert image.shape == (*fixed.shape, moving.shape[3])
        np.testing.assert_allclose(image.affine, fixed.affine, atol=1e-5)
    np.testing.assert_array_equal(masks.get_fdata(), probability.get_fdata() >= 0.5)
    filled = np.flatnonzero(moving.get_fdata().any(axis=(0, 1, 2)))
    assert 2 < len(filled) < moving.shape[3]
    assert not probability.get_fdata()[..., np.setdiff1d(range(moving.shape[3]), filled)].any()
    for channel in filled[[0, -1]]:
        one = nib.Nifti1Image(moving.get_fdata()[..., channel].astype(np.uint8), moving.affine)
        nib.save(one, tmp_path / "one.nii.gz")
        alone = registrar.register(pair["fixed"], pair["moving"], tmp_path / "one.nii.gz").probability
        np.testing.assert_allclose(alone[0].numpy(), probability.get_fdata()[..., channel], atol=1e-4)
    named = {"fixed_image": pair["fixed"], "moving_image": pair["moving"], "moving_label": pair["label"]}
    run = workflow(SEG, **named, output_dir=str(tmp_path / "bundle"))
    for part in (run.initialize, run.run, run.finalize):
        part()
    folder = tmp_path / "bundle" / "case000008"
    assert {path.name for path in folder.iterdir()} == {"warped_label.nii.gz", "statistics.json", "quality.png"}
    np.testing.assert_array_equal(nib.load(folder / "warped_label.nii.gz").get_fdata(), masks.get_fdata())
    # The volume of what is found is that of the moving label.
    kept = Registrar(SEG, device="cpu", preserve_volume=True).register(pair["fixed"], pair["moving"], pair["label"])
    before = moving.get_fdata().sum(axis=(0, 1, 2)) * abs(np.linalg.det(moving.affine[:3, :3]))
    after = [entry["volume_mm3"] for entry in kept.statistics["labels"]]
    voxel = abs(np.linalg.det(fixed.affine[:3, :3]))
    found = np.array(after) > 0
    np.testing.assert_array_equal(found, masks.get_fdata().any(axis=(0, 1, 2)))
    np.testing.assert_allclose(np.array(after)[found], before[found], atol=1.5 * voxel)


def test_a_single_voxel_can_be_propagated(prostate_phantoms: Path, tmp_path: Path) -> None:
    pair = files(prostate_phantoms, "case000008")
    moving = nib.load(pair["label"])
    gland = moving.get_fdata()[..., 0]
    voxel = np.zeros(gland.shape, np.uint8)
    voxel[tuple(np.round(np.argwhere(gland).mean(0)).astype(int))] = 1
    nib.save(nib.Nifti1Image(voxel, moving.affine), tmp_path / "voxel.nii.gz")
    result = Registrar(SEG, device="cpu").register(pair["fixed"], pair["moving"], tmp_path / "voxel.nii.gz")
    (entry,) = result.statistics["labels"]
    fixed = nib.load(pair["fixed"].replace("us_images", "us_labels"))
    centre = (fixed.affine @ [*np.argwhere(fixed.get_fdata()[..., 0]).mean(0), 1])[:3]
    assert np.linalg.norm(np.array(entry["centroid_ras_mm"]) - centre) < 15
    assert result.statistics["warnings"] == []


def test_asking_for_a_field_where_there_is_none_writes_nothing(prostate_phantoms: Path, tmp_path: Path) -> None:
    pair = files(prostate_phantoms, "case000008")
    out = tmp_path / "out"
    with pytest.raises(regzoo.RegZooError, match=r"there is no field; use .*prostate_mr_trus_weak_ddf"):
        regzoo.register(SEG, pair["fixed"], pair["moving"], pair["label"], out, outputs="label,field", device="cpu")
    assert not out.exists()
    result = regzoo.register(SEG, pair["fixed"], pair["moving"], pair["label"], device="cpu")
    with pytest.raises(regzoo.RegZooError, match="there is no warped image"):
        _ = result.warped_image
    for bundle in (path for path in BUNDLES if needs_label(path) and kind(path) == "prostate"):
        with pytest.raises(regzoo.RegZooError, match=r"mr_images.*comes without its label.*--label"):
            regzoo.register(bundle, pair["fixed"], pair["moving"], device="cpu")


def test_two_images_are_enough_for_mix(prostate_phantoms: Path, tmp_path: Path) -> None:
    """Weights of the two-channel network as the overlay defines it; without a label the images' centres are aligned."""
    parser = ConfigParser()
    overlay = "configs/variants/mix.json"
    parser.read_config([str(SDM / "configs/inference.json"), str(SDM / overlay)])
    save_weights(parser.get_parsed_content("network_def"), tmp_path / "mix.pt")
    registrar = Registrar(SDM, [overlay], device="cpu", checkpoint=str(tmp_path / "mix.pt"))
    pair = files(prostate_phantoms, "case000008")
    field = registrar.register(pair["fixed"], pair["moving"]).field
    centres = []
    for name in ("fixed", "moving"):
        image = nib.load(pair[name])
        centres.append((image.affine @ [*(np.array(image.shape) - 1) / 2, 1])[:3])
    # An untrained network predicts no displacement.
    expected = torch.tensor(centres[1] - centres[0], dtype=torch.float32).view(3, 1, 1, 1)
    torch.testing.assert_close(field.displacement, expected.expand_as(field.displacement), atol=1e-3, rtol=0)


def test_unknown_settings_and_bundles(prostate_phantoms: Path) -> None:
    with pytest.raises(regzoo.RegZooError, match="prostate_mr_trus_weak_ddf"):
        Registrar("no_such_bundle")
    with pytest.raises(regzoo.RegZooError, match="sapcing"):
        Registrar(BUNDLE, sapcing=1)
    pair = files(prostate_phantoms, "case000008")
    with pytest.raises(regzoo.RegZooError, match="labels of the fixed image; set refine"):
        Registrar(BUNDLE, device="cpu").register(pair["fixed"], pair["moving"], fixed_label=pair["label"])
