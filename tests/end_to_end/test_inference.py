"""Registering files with a bundle: command lines, Python, the keys a server sends, and what is left on disk."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import regzoo
import SimpleITK as sitk
import torch
from monai.bundle import ConfigParser
from regzoo.workflow import Registrar

ROOT = Path(__file__).resolve().parents[2]
BUNDLE = ROOT / "bundles" / "prostate_mr_trus_weak_ddf"
OUTPUTS = {"warped_image.nii.gz", "warped_label.nii.gz", "field.nii.gz", "statistics.json", "quality.png"}


@pytest.fixture(scope="module")
def registrar() -> Registrar:
    return Registrar(BUNDLE, device="cpu")


def files(phantoms: Path, case: str) -> dict[str, str]:
    folders = {"fixed": "us_images", "moving": "mr_images", "label": "mr_labels"}
    return {key: str(phantoms / "val" / folder / f"{case}.nii.gz") for key, folder in folders.items()}


def bundle_run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", "configs/inference.json", *arguments]
    return subprocess.run(command, cwd=BUNDLE, capture_output=True, text=True, timeout=300, check=False)


def warp_with_simpleitk(moving: sitk.Image, field: Path, fixed: str) -> np.ndarray:
    transform = sitk.DisplacementFieldTransform(sitk.ReadImage(str(field), sitk.sitkVectorFloat64))
    warped = sitk.Resample(moving, sitk.ReadImage(fixed), transform, sitk.sitkLinear, 0.0, sitk.sitkFloat32)
    return sitk.GetArrayFromImage(warped).transpose(2, 1, 0)


def test_the_written_field_is_the_whole_transformation(
    registrar: Registrar, prostate_phantoms: Path, tmp_path: Path
) -> None:
    pair = files(prostate_phantoms, "case000008")
    registrar.register(pair["fixed"], pair["moving"], pair["label"]).save(tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == OUTPUTS
    ours = nib.load(tmp_path / "out/warped_image.nii.gz")
    moving = sitk.ReadImage(pair["moving"], sitk.sitkFloat32)
    theirs = warp_with_simpleitk(moving, tmp_path / "out/field.nii.gz", pair["fixed"])
    # Beyond the moving image both give 0, but fade to it differently around its outermost voxels.
    inside = sitk.ConstantPad(sitk.Crop(moving * 0 + 1, [1] * 3, [1] * 3), [1] * 3, [1] * 3)
    away = warp_with_simpleitk(inside, tmp_path / "out/field.nii.gz", pair["fixed"]) == 1
    assert away.mean() > 0.2
    scale = 100 / np.ptp(sitk.GetArrayFromImage(moving))
    assert np.abs(ours.get_fdata() - theirs)[away].max() * scale < 0.05
    np.testing.assert_allclose(ours.affine, nib.load(pair["fixed"]).affine, atol=1e-5)
    assert nib.load(tmp_path / "out/warped_label.nii.gz").shape == (*ours.shape, nib.load(pair["label"]).shape[3])


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
    done = bundle_run(
        *("--fixed_image", pair["fixed"], "--moving_image", pair["moving"], "--moving_label", pair["label"]),
        *("--output_dir", str(tmp_path / "bundle"), "--device", "cpu"),
    )
    assert done.returncode == 0, done.stderr[-2000:]
    for name in ("warped_image.nii.gz", "warped_label.nii.gz", "field.nii.gz"):
        expected = nib.load(tmp_path / "python" / name).get_fdata()
        for folder in (tmp_path / "cli", tmp_path / "bundle" / "case000009"):
            np.testing.assert_allclose(nib.load(folder / name).get_fdata(), expected, atol=1e-3)


def test_a_list_with_a_bad_case_registers_the_others(prostate_phantoms: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.nii.gz"
    bad.write_bytes(Path(files(prostate_phantoms, "case000009")["fixed"]).read_bytes()[:5000])
    pairs = [files(prostate_phantoms, f"case00000{n}") for n in (8, 9)]
    pairs[1]["fixed"] = str(bad)
    records = [{"fixed_image": pair["fixed"], "moving_image": pair["moving"]} for pair in pairs]
    datalist = tmp_path / "pairs.json"
    datalist.write_text(json.dumps(records), encoding="utf-8")
    done = bundle_run("--dataset_dir", str(datalist), "--output_dir", str(tmp_path / "out"), "--pictures", "False")
    assert done.returncode != 0
    assert done.stderr.strip().splitlines()[-1].startswith("error: ") and str(bad) in done.stderr
    assert "Traceback" not in done.stderr
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
    result.save(tmp_path / "out", picture=False)
    warped = np.asarray(nib.load(tmp_path / "out/warped_label.nii.gz").dataobj)
    assert warped.ndim == 3 and set(np.unique(warped)) == {0, 7, 300}
    assert [entry["label"] for entry in result.statistics["labels"]] == [7, 300]


def test_center_alignment_is_part_of_the_field(registrar: Registrar, prostate_phantoms: Path, tmp_path: Path) -> None:
    pair = files(prostate_phantoms, "case000008")
    moving = nib.load(pair["moving"])
    shifted = moving.affine.copy()
    shifted[:3, 3] += 500
    nib.save(nib.Nifti1Image(np.asarray(moving.dataobj), shifted), tmp_path / "far.nii.gz")
    with pytest.raises(regzoo.RegZooError, match="--align center"):
        registrar.register(pair["fixed"], tmp_path / "far.nii.gz")
    centred = Registrar(BUNDLE, device="cpu", align="center")
    near = centred.register(pair["fixed"], pair["moving"])
    far = centred.register(pair["fixed"], tmp_path / "far.nii.gz")
    torch.testing.assert_close(far.warped_image.as_tensor(), near.warped_image.as_tensor(), atol=0.5, rtol=0)
    offset = (far.field.displacement - near.field.displacement).flatten(1)
    torch.testing.assert_close(offset, torch.full_like(offset, 500), atol=1e-2, rtol=0)


def test_the_keys_a_server_sends(prostate_phantoms: Path) -> None:
    """MONAI Label reads these four ids, sends ``image`` and ``image_path`` and takes ``pred``."""
    parser = ConfigParser()
    parser.read_config(str(BUNDLE / "configs/inference.json"))
    assert "@_meta_" not in (BUNDLE / "configs/inference.json").read_text(encoding="utf-8")
    pair = files(prostate_phantoms, "case000008")
    request = {"image": pair["fixed"], "image_path": pair["fixed"], "moving_image": pair["moving"]}
    network = parser.get_parsed_content("network_def").eval()
    network.load_state_dict(torch.load(BUNDLE / "models/model.pt", weights_only=True))
    for extra, kind in (({"moving_label": pair["label"]}, torch.int32), ({}, torch.float32)):
        data = parser.get_parsed_content("preprocessing")(request | extra)
        with torch.no_grad():
            data["pred"] = parser.get_parsed_content("inferer")(data["image"][None], network)[0]
        answer = parser.get_parsed_content("postprocessing")(data)["pred"]
        fixed = nib.load(pair["fixed"])
        assert answer.shape == (1, *fixed.shape) and answer.dtype == kind
        np.testing.assert_allclose(answer.affine, fixed.affine, atol=1e-5)


def test_unknown_settings_and_bundles(prostate_phantoms: Path) -> None:
    with pytest.raises(regzoo.RegZooError, match="prostate_mr_trus_weak_ddf"):
        Registrar("no_such_bundle")
    with pytest.raises(regzoo.RegZooError, match="sapcing"):
        Registrar(BUNDLE, sapcing=1)
