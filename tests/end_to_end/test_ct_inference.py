"""Two CTs of any grids, with and without label maps: region alignment, label values, other software."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from monai.bundle import ConfigParser
from regzoo.datasets import load_records
from regzoo.engines import save_weights
from regzoo.inference import Registrar

BUNDLE = Path(__file__).resolve().parents[2] / "bundles" / "abdominal_ct_ddmr"
LIVER = 6


@pytest.fixture(scope="module")
def pair(abdomen_phantoms: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Two patients; the moving CT on an oblique, anisotropic, odd-sized grid in a world of its own."""
    folder = tmp_path_factory.mktemp("ct")
    record = load_records(abdomen_phantoms, "val")[0]
    image, label = (sitk.ReadImage(record[f"moving_{kind}"]) for kind in ("image", "label"))
    turn = sitk.Euler3DTransform()
    turn.SetRotation(0.12, -0.2, 0.3)
    centre = np.array(image.TransformContinuousIndexToPhysicalPoint([(n - 1) / 2 for n in image.GetSize()]))
    size, spacing, matrix = (43, 31, 27), (9.0, 10.0, 11.0), np.array(turn.GetMatrix()).reshape(3, 3)
    origin = centre - matrix @ (np.array(spacing) * (np.array(size) - 1) / 2)
    pair = {"fixed": str(record["fixed_image"]), "fixed_label": str(record["fixed_label"])}
    for name, volume, method, outside in (
        ("moving", image, sitk.sitkLinear, -1000),
        ("label", label, sitk.sitkNearestNeighbor, 0),
    ):
        oblique = sitk.Resample(
            volume, size, sitk.Transform(), method, origin.tolist(), spacing, matrix.ravel().tolist(), outside
        )
        oblique.SetOrigin((origin + np.array([-300.0, 450.0, 1200.0])).tolist())
        pair[name] = str(folder / f"{name}.nii.gz")
        sitk.WriteImage(oblique, pair[name])
    return pair


@pytest.fixture(scope="module")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> Registrar:
    """A network that predicts no displacement, so that only the alignment is left."""
    path = tmp_path_factory.mktemp("weights") / "untrained.pt"
    parser = ConfigParser()
    parser.read_config(str(BUNDLE / "configs/inference.json"))
    save_weights(parser.get_parsed_content("network_def"), path)
    return Registrar(BUNDLE, device="cpu", checkpoint=str(path))


def centroid(path: str, value: int) -> np.ndarray:
    """Of a label value, RAS mm."""
    volume = nib.load(path)
    return (volume.affine @ [*np.argwhere(np.asarray(volume.dataobj) == value).mean(0), 1])[:3]


def test_livers_are_put_together_across_worlds(untrained: Registrar, pair: dict[str, str]) -> None:
    result = untrained.register(pair["fixed"], pair["moving"], pair["label"], fixed_label=pair["fixed_label"])
    expected = centroid(pair["label"], LIVER) - centroid(pair["fixed_label"], LIVER)
    found = result.field.displacement.flatten(1)
    torch.testing.assert_close(found.mean(1), torch.tensor(expected, dtype=torch.float32), atol=0.05, rtol=0)
    assert float(found.std(1).max()) < 1e-2
    warped = result.warped_label
    assert warped is not None
    values = [entry["label"] for entry in result.statistics["labels"]]
    index = values.index(LIVER)
    mask = warped[index].numpy() > 0
    affine = nib.load(pair["fixed"]).affine
    np.testing.assert_allclose(
        (affine @ [*np.argwhere(mask).mean(0), 1])[:3], centroid(pair["fixed_label"], LIVER), atol=2.0
    )


def test_without_labels_the_bodies_are_put_together(untrained: Registrar, pair: dict[str, str]) -> None:
    result = untrained.register(pair["fixed"], pair["moving"])
    found = result.field.displacement.flatten(1).mean(1).numpy()
    # Patients lie in the middle of both phantoms; the second world is far from the first.
    middles = []
    for name in ("fixed", "moving"):
        volume = nib.load(pair[name])
        middles.append((volume.affine @ [*(np.array(volume.shape) - 1) / 2, 1])[:3])
    assert np.linalg.norm(middles[1] - middles[0]) > 1000
    np.testing.assert_allclose(found, middles[1] - middles[0], atol=25)


def test_other_software_makes_the_same_of_the_written_field(pair: dict[str, str], tmp_path: Path) -> None:
    """SimpleITK with the released weights' field, image and label map; the values of the map stay what they are."""
    registrar = Registrar(BUNDLE, device="cpu")
    registrar.register(pair["fixed"], pair["moving"], pair["label"], fixed_label=pair["fixed_label"]).save(
        tmp_path / "o"
    )
    fixed = sitk.ReadImage(pair["fixed"])
    moving, label = sitk.ReadImage(pair["moving"], sitk.sitkFloat32), sitk.ReadImage(pair["label"])
    field = sitk.ReadImage(str(tmp_path / "o/field.nii.gz"), sitk.sitkVectorFloat64)
    transform = sitk.DisplacementFieldTransform(field)

    def warp(image: sitk.Image, method: int, outside: float) -> np.ndarray:
        kind = image.GetPixelID()
        return sitk.GetArrayFromImage(sitk.Resample(image, fixed, transform, method, outside, kind)).T

    ours = np.asarray(nib.load(tmp_path / "o/warped_image.nii.gz").dataobj)
    theirs = warp(moving, sitk.sitkLinear, -1000)
    # Beyond the moving image ours fades to air over one voxel, SimpleITK's does not.
    core = sitk.ConstantPad(sitk.Crop(moving * 0 + 1, [1] * 3, [1] * 3), [1] * 3, [1] * 3)
    inner = warp(core, sitk.sitkLinear, 0) == 1
    assert inner.mean() > 0.2
    assert np.abs(ours - theirs)[inner].max() < 1.5  # Hounsfield units, of thousands
    written = nib.load(tmp_path / "o/warped_label.nii.gz")
    values = np.asarray(written.dataobj)
    assert set(np.unique(values)) <= set(np.unique(sitk.GetArrayFromImage(label)))
    liver = warp(sitk.Cast(label == LIVER, sitk.sitkFloat32), sitk.sitkLinear, 0)
    assert (values == LIVER)[liver > 0.51].all() and not (values == LIVER)[liver < 0.15].any()
    assert liver.max() == 1
    statistics = json.loads((tmp_path / "o/statistics.json").read_text(encoding="utf-8"))
    assert {entry["label"] for entry in statistics["labels"]} >= {LIVER}


def test_padding_changes_nothing_in_the_body(abdomen_phantoms: Path, tmp_path: Path) -> None:
    """The released weights; the corners outside the scanner's circle, which holds the body, have no measurement."""
    record = load_records(abdomen_phantoms, "val")[0]
    fixed, moving = (nib.load(record[f"{side}_image"]) for side in ("fixed", "moving"))
    values = np.asarray(moving.dataobj).round().clip(-1000).astype(np.int32)
    world = np.moveaxis(np.indices(values.shape), 0, -1) @ moving.affine[:2, :3].T
    solid = world[values > -500]
    radius = np.linalg.norm(world - (solid.max(0) + solid.min(0)) / 2, axis=-1)
    outside = radius > radius[values > -500].max() + 1
    assert outside.mean() > 0.02
    stored = {
        "plain": values.astype(np.int16),
        "far": np.where(outside, -32768, values).astype(np.int16),
        "nan": np.where(outside, np.nan, values).astype(np.float32),
        "wrapped": np.where(outside, -976, values + 1024).astype(np.uint16),
    }
    registrar = Registrar(BUNDLE, device="cpu")
    fields = {}
    for name, array in stored.items():
        nib.save(nib.Nifti1Image(array, moving.affine), tmp_path / f"{name}.nii.gz")
        fields[name] = registrar.register(record["fixed_image"], tmp_path / f"{name}.nii.gz").field.displacement.numpy()
    body = np.asarray(fixed.dataobj) > -500
    for name in ("far", "nan", "wrapped"):
        assert np.linalg.norm(fields[name] - fields["plain"], axis=0)[body].max() < 0.2
