"""Fields of other programs: converted exactly, or refused by name."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from helpers import make_affine, smooth_ddf, to_sitk
from regzoo.errors import RegZooError
from regzoo.spatial import DisplacementField, Grid
from regzoo.spatial.transform_files import read_transformation, write_transformation
from regzoo.spatial.transformation import Affine, Transformation

SHAPE = (12, 10, 9)
AFFINE = make_affine(SHAPE, (2, 1.5, 3), (10, 20, 30), flips=(1, -1, 1), center=(30, -20, 400))
#: A displacement in RAS mm, (X, Y, Z, 3), and where it takes each voxel.
MOVES = smooth_ddf(SHAPE, 3.0, 4.0).transpose(1, 2, 3, 0)
POINTS = nib.affines.apply_affine(AFFINE, np.stack(np.indices(SHAPE), -1)) + MOVES
LPS = np.array([-1, -1, 1])


def save(path: Path, vectors: np.ndarray, code: int = 1007, name: str = "", about: str = "", kind: float = 0) -> Path:
    image = nib.Nifti1Image(vectors[:, :, :, None].astype(np.float32), AFFINE)
    image.header.set_intent(code, name=name, allow_unknown=True)
    image.header["intent_p1"] = kind
    image.header["descrip"] = about
    nib.save(image, path)
    return path


@pytest.mark.parametrize(
    ("program", "vectors", "header"),
    [
        ("ITK and ANTs", MOVES * LPS, {}),
        ("ITK, as a displacement", MOVES, {"code": 1006}),
        ("NiftyReg, a deformation", POINTS, {"name": "NREG_TRANS", "kind": 0}),
        ("NiftyReg, a displacement", MOVES, {"name": "NREG_TRANS", "kind": 1}),
        ("SPM", POINTS, {"name": "Mapping", "about": "Deformation field"}),
    ],
)
def test_one_field_of_several_programs(program: str, vectors: np.ndarray, header: dict, tmp_path: Path) -> None:
    field = DisplacementField.load(save(tmp_path / "field.nii.gz", vectors, **header))
    np.testing.assert_allclose(field.displacement.numpy(), MOVES.transpose(3, 0, 1, 2), atol=1e-4)
    np.testing.assert_allclose(field.grid.affine, AFFINE, atol=1e-4)


@pytest.mark.parametrize("code", [1006, 1007])
def test_vectors_mean_to_us_what_they_mean_to_itk(code: int, tmp_path: Path) -> None:
    path = save(tmp_path / "field.nii", MOVES, code)
    transform = sitk.DisplacementFieldTransform(sitk.ReadImage(str(path), sitk.sitkVectorFloat64))
    point = nib.affines.apply_affine(AFFINE, (5, 4, 3))
    expected = LPS * transform.TransformPoint((LPS * point).tolist())
    np.testing.assert_allclose(DisplacementField.load(path).transform_points(point[None])[0], expected, atol=1e-3)


@pytest.mark.parametrize(
    ("header", "words"),
    [
        ({"name": "NREG_TRANS", "kind": 2}, "cubic spline grid of NiftyReg"),
        ({"name": "NREG_TRANS", "kind": 4}, "velocity field of NiftyReg"),
        ({"name": "NREG_TRANS", "kind": 5}, "spline grid of velocities of NiftyReg"),
        ({"name": "NREG_TRANS", "kind": 17}, "kind 17 of NiftyReg"),
        ({"name": "Velocity"}, "marked 'Velocity'"),
        ({"about": "DARTEL flow field"}, "marked 'DARTEL flow field'"),
        ({"code": 2006}, "an FSL warp"),
        ({"code": 0}, "intent 0, so the frame"),
    ],
)
def test_other_transformations_are_refused_by_name(header: dict, words: str, tmp_path: Path) -> None:
    path = save(tmp_path / "field.nii.gz", MOVES, **header)
    with pytest.raises(RegZooError, match=words) as error:
        DisplacementField.load(path)
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("code", [1006, 1007])
@pytest.mark.parametrize("signs", [1, LPS])
def test_positions_without_a_mark_are_not_displacements(code: int, signs: int, tmp_path: Path) -> None:
    with pytest.raises(RegZooError, match="positions, not displacements"):
        DisplacementField.load(save(tmp_path / "field.nii.gz", POINTS * signs, code))


@pytest.mark.parametrize("code", [1006, 1007])
@pytest.mark.parametrize("signs", [1, LPS])
def test_positions_under_a_strong_deformation_are_not_displacements(code: int, signs: int, tmp_path: Path) -> None:
    points = nib.affines.apply_affine(AFFINE, np.stack(np.indices(SHAPE), -1))
    strained = points + (points - points.mean((0, 1, 2))) @ np.diag([0.3, -0.2, 0.15])
    with pytest.raises(RegZooError, match="positions, not displacements"):
        DisplacementField.load(save(tmp_path / "field.nii.gz", strained * signs, code))


@pytest.mark.parametrize("turn", [[[-1, 0, 0], [0, -1, 0], [0, 0, 1]], [[0, 1, 0], [-1, 0, 0], [0, 0, 1]]])
def test_a_field_may_turn_an_image_round(turn: list[list[int]], tmp_path: Path) -> None:
    points = nib.affines.apply_affine(AFFINE, np.stack(np.indices(SHAPE), -1))
    field = DisplacementField.load(save(tmp_path / "field.nii.gz", points @ np.transpose(turn) - points, 1006))
    np.testing.assert_allclose(field.transform_points(points[3, 4, 5][None])[0], turn @ points[3, 4, 5], atol=1e-3)


@pytest.mark.parametrize("scale", [0.2, 1.8, 2.0])
@pytest.mark.parametrize("name", ["field.nii.gz", "field.mha", "field.nrrd"])
def test_a_written_field_may_scale_an_image(scale: float, name: str, tmp_path: Path) -> None:
    scaled = Transformation(Affine(np.diag([scale, scale, scale, 1])))
    write_transformation(tmp_path / name, scaled, Grid(SHAPE, AFFINE))
    points = nib.affines.apply_affine(AFFINE, [[0, 0, 0], [5, 4, 3]])
    np.testing.assert_allclose(read_transformation(tmp_path / name).points(points), scale * points, atol=1e-3)


@pytest.mark.parametrize("name", ["field.mha", "field.mhd", "field.nrrd"])
@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_fields_of_itk_in_its_own_formats(name: str, kind: type, tmp_path: Path) -> None:
    sitk.WriteImage(to_sitk((MOVES * LPS).astype(kind), AFFINE), str(tmp_path / name), useCompression=True)
    field = DisplacementField.load(tmp_path / name)
    np.testing.assert_allclose(field.displacement.numpy(), MOVES.transpose(3, 0, 1, 2), atol=1e-5)
    np.testing.assert_allclose(field.grid.affine, AFFINE, atol=1e-5)


@pytest.mark.parametrize("name", ["field.mha", "field.nrrd"])
def test_the_same_formats_with_something_else(name: str, tmp_path: Path) -> None:
    for voxels in (MOVES[..., :2], MOVES[..., 0]):
        sitk.WriteImage(to_sitk(np.ascontiguousarray(voxels), AFFINE), str(tmp_path / name))
        with pytest.raises(RegZooError, match=r"so it is not a displacement field; write it"):
            DisplacementField.load(tmp_path / name)


def test_a_field_lies_where_an_image_of_that_header_lies(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    image = nib.load(save(tmp_path / "field.nii", MOVES * LPS))
    elsewhere = AFFINE.copy()
    elsewhere[1, 3] += 12
    image.set_sform(AFFINE, 2)
    image.set_qform(elsewhere, 1)
    nib.save(image, tmp_path / "two.nii")
    np.testing.assert_allclose(DisplacementField.load(tmp_path / "two.nii").grid.affine, AFFINE, atol=1e-4)
    assert "12 mm away" in caplog.text
    with pytest.raises(RegZooError, match="12 mm away"):
        DisplacementField.load(tmp_path / "two.nii", strict_headers=True)
    image.header.set_xyzt_units("meter")
    small = np.diag([1e-3, 1e-3, 1e-3, 1]) @ AFFINE
    image.set_sform(small, 1)
    image.set_qform(small, 1)
    nib.save(image, tmp_path / "metres.nii")
    np.testing.assert_allclose(DisplacementField.load(tmp_path / "metres.nii").grid.affine, AFFINE, atol=1e-4)
    assert len(caplog.records) == 1
