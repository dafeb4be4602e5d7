"""Transformations of other programs take points where SimpleITK takes them, and ours are read by SimpleITK."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import scipy.io
import SimpleITK as sitk
import torch
from helpers import LPS, make_grid, rigid, smooth_ddf, to_sitk
from regzoo.errors import RegZooError
from regzoo.spatial import DisplacementField, Grid
from regzoo.spatial.transform_files import read_transformation, write_transformation
from regzoo.spatial.transformation import Affine, Transformation
from scipy.ndimage import map_coordinates, zoom

GRIDS = {
    "oblique, anisotropic, odd": make_grid((31, 27, 13), (1.1, 0.9, 2.3), (20, -15, 30), center=(30, -80, 55)),
    "flipped and permuted": make_grid((21, 30, 25), (1.3, 0.8, 1), (0, 0, 0), (1, 2, 0), (-1, 1, -1)),
    "straight": make_grid((24, 22, 20), (2, 2, 2)),
}


@pytest.fixture(params=list(GRIDS))
def grid(request: pytest.FixtureRequest) -> Grid:
    return GRIDS[request.param]


def inner_points(grid: Grid, margin: float = 0.25) -> np.ndarray:
    """Random points (N, 3), RAS mm, that stay away from the border."""
    share = np.random.default_rng(1).uniform(margin, 1 - margin, (50, 3))
    return grid.to_world(share * (np.asarray(grid.shape) - 1))


def reference_image(grid: Grid) -> sitk.Image:
    return to_sitk(np.zeros(grid.shape, np.float32), grid.affine)


def sitk_field(grid: Grid, amplitude: float = 3.0, seed: int = 0) -> sitk.DisplacementFieldTransform:
    """A smooth field on a grid, LPS mm."""
    values = smooth_ddf(grid.shape, amplitude, seed=seed).astype(np.float64)
    image = sitk.GetImageFromArray(values.transpose(3, 2, 1, 0), isVector=True)
    image.CopyInformation(reference_image(grid))
    return sitk.DisplacementFieldTransform(image)


def sitk_bspline(grid: Grid) -> sitk.BSplineTransform:
    spline = sitk.BSplineTransformInitializer(reference_image(grid), [4, 5, 3], order=3)
    spline.SetParameters(np.random.default_rng(2).normal(0, 1.5, len(spline.GetParameters())).tolist())
    return spline


def sitk_euler(grid: Grid) -> sitk.Euler3DTransform:
    euler = sitk.Euler3DTransform()
    euler.SetRotation(0.05, -0.08, 0.1)
    euler.SetTranslation((3.0, -4.0, 2.0))
    euler.SetCenter((grid.center * LPS).tolist())
    return euler


def sitk_affine(grid: Grid) -> sitk.AffineTransform:
    affine = sitk.AffineTransform(3)
    affine.SetMatrix((np.eye(3) + np.random.default_rng(3).normal(0, 0.05, (3, 3))).ravel().tolist())
    affine.SetTranslation((1.0, 2.0, -3.0))
    affine.SetCenter((grid.center * LPS).tolist())
    return affine


def sitk_composite(grid: Grid) -> sitk.CompositeTransform:
    return sitk.CompositeTransform([sitk_euler(grid), sitk_bspline(grid), sitk_affine(grid), sitk_field(grid)])


KINDS = {
    "displacement field": sitk_field,
    "B-spline": sitk_bspline,
    "Euler": sitk_euler,
    "affine": sitk_affine,
    "composite": sitk_composite,
}


def by_sitk(transform: sitk.Transform, points: np.ndarray) -> np.ndarray:
    """Where SimpleITK takes points (N, 3), RAS mm."""
    return np.array([transform.TransformPoint((point * LPS).tolist()) for point in points]) * LPS


@pytest.mark.parametrize("suffix", [".h5", ".tfm"])
@pytest.mark.parametrize("kind", list(KINDS))
def test_points_go_where_simpleitk_takes_them(kind: str, suffix: str, grid: Grid, tmp_path: Path) -> None:
    transform, file, points = KINDS[kind](grid), tmp_path / f"t{suffix}", inner_points(grid)
    sitk.WriteTransform(transform, str(file))
    read, expected = read_transformation(file), by_sitk(transform, points)
    assert np.abs(expected - points).max() > 1
    np.testing.assert_allclose(read.points(points), expected, atol=0.01)
    np.testing.assert_allclose(read.inverse().points(expected), points, atol=0.01)
    sampled = read.on(grid).displacement.numpy()
    theirs = sitk.TransformToDisplacementField(transform, sitk.sitkVectorFloat64, *_geometry(grid))
    theirs = sitk.GetArrayFromImage(theirs).transpose(3, 2, 1, 0) * LPS.reshape(3, 1, 1, 1)
    inner = tuple(slice(n // 4, n - n // 4) for n in grid.shape)
    np.testing.assert_allclose(sampled[(slice(None), *inner)], theirs[(slice(None), *inner)], atol=0.01)


def _geometry(grid: Grid) -> tuple:
    image = reference_image(grid)
    return image.GetSize(), image.GetOrigin(), image.GetSpacing(), image.GetDirection()


@pytest.mark.parametrize("kind", ["AffineTransform_double_3_3", "MatrixOffsetTransformBase_float_3_3"])
def test_the_affine_file_of_ants(kind: str, grid: Grid, tmp_path: Path) -> None:
    transform, file, points = sitk_affine(grid), tmp_path / "0GenericAffine.mat", inner_points(grid)
    dtype = np.float32 if "float" in kind else np.float64
    parameters = np.array([*transform.GetMatrix(), *transform.GetTranslation()], dtype)[:, None]
    center = np.array(transform.GetCenter(), dtype)[:, None]
    scipy.io.savemat(file, {kind: parameters, "fixed": center}, format="4")
    np.testing.assert_allclose(read_transformation(file).points(points), by_sitk(transform, points), atol=0.01)


def test_the_matrix_of_greedy_is_in_ras(grid: Grid, tmp_path: Path) -> None:
    matrix, points, file = rigid((4, -7, 10), (3, 1, -5)), inner_points(grid), tmp_path / "affine.mat"
    file.write_text("\n".join(" ".join(f"{value:.9f}" for value in row) for row in matrix) + "\n")
    expected = points @ matrix[:3, :3].T + matrix[:3, 3]
    np.testing.assert_allclose(read_transformation(file).points(points), expected, atol=1e-5)


def test_a_warp_then_an_affine_map_as_ants_applies_them(grid: Grid, tmp_path: Path) -> None:
    warp, affine, points = sitk_field(grid), sitk_affine(grid), inner_points(grid)
    file = tmp_path / "1Warp.nii.gz"
    sitk.WriteImage(warp.GetDisplacementField(), str(file))
    sitk.WriteTransform(affine, str(tmp_path / "0GenericAffine.mat"))
    both = read_transformation(tmp_path / "0GenericAffine.mat") @ read_transformation(file)
    expected = by_sitk(sitk.CompositeTransform([affine, warp]), points)
    np.testing.assert_allclose(both.points(points), expected, atol=0.01)


def rewritten(name: str, on: Grid | None, grid: Grid, folder: Path) -> tuple[sitk.Transform, Path]:
    """A transformation of SimpleITK, and the file of another form in which we wrote it."""
    transform, source = sitk_composite(grid), folder / "in.h5"
    sitk.WriteTransform(transform, str(source))
    write_transformation(folder / name, read_transformation(source), on)
    return transform, folder / name


@pytest.mark.parametrize("suffix", [".h5", ".tfm"])
def test_simpleitk_reads_what_is_written(suffix: str, grid: Grid, tmp_path: Path) -> None:
    transform, file = rewritten(f"out{suffix}", None, grid, tmp_path)
    points = inner_points(grid)
    written = sitk.ReadTransform(str(file))
    assert sitk.CompositeTransform(written).GetNumberOfTransforms() == 4
    np.testing.assert_allclose(by_sitk(written, points), by_sitk(transform, points), atol=0.01)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize("name", ["X.TFM", "X.H5", "X.MHA"])
def test_suffixes_in_upper_case(name: str, grid: Grid, tmp_path: Path) -> None:
    field = DisplacementField(torch.full((3, *grid.shape), 2.0), grid)
    write_transformation(tmp_path / name, Transformation(field), None)
    assert [file.name for file in tmp_path.iterdir()] == [name]
    points = inner_points(grid)
    np.testing.assert_allclose(read_transformation(tmp_path / name).points(points), points + 2, atol=1e-4)


@pytest.mark.parametrize("suffix", [".nrrd", ".mha"])
def test_simpleitk_reads_a_field_in_its_own_formats(suffix: str, grid: Grid, tmp_path: Path) -> None:
    transform, file = rewritten(f"out{suffix}", grid, grid, tmp_path)
    points = inner_points(grid)
    written = sitk.DisplacementFieldTransform(sitk.ReadImage(str(file), sitk.sitkVectorFloat64))
    ours = read_transformation(file)
    np.testing.assert_allclose(ours.points(points), by_sitk(written, points), atol=0.01)
    np.testing.assert_allclose(
        by_sitk(written, grid.to_world(np.eye(3) + 3)), by_sitk(transform, grid.to_world(np.eye(3) + 3)), atol=0.01
    )


def evaluated(disp: np.ndarray, moving: np.ndarray) -> np.ndarray:
    """The moving image as the evaluation of Learn2Reg warps it; `disp` is (3, X, Y, Z), voxels."""
    identity = np.meshgrid(*map(np.arange, moving.shape), indexing="ij")
    return map_coordinates(moving, identity + disp, order=1)


@pytest.mark.parametrize("name", ["disp_0001_0002.nii.gz", "disp_0001_0002.npz"])
def test_learn2reg_warps_as_we_do(name: str, tmp_path: Path) -> None:
    import nibabel as nib
    from helpers import smooth_noise
    from monai.data import MetaTensor

    grid = make_grid((30, 26, 22), (1.1, 0.9, 2.3), (20, -15, 30), (1, 0, 2), (-1, 1, 1), (30, -80, 55))
    field = DisplacementField(torch.from_numpy(smooth_ddf(grid.shape, 4, sigma=5)), grid)
    moving = smooth_noise(grid.shape, 1.5, seed=5)
    write_transformation(tmp_path / name, Transformation(field), None)
    if name.endswith("npz"):
        disp = np.load(tmp_path / name)["arr_0"]
        assert disp.dtype == np.float16 and disp.shape == (3, 15, 13, 11)
        disp = np.array([zoom(part.astype("float32"), 2, order=2) for part in disp])
    else:
        disp = nib.load(tmp_path / name).get_fdata()
        assert disp.shape == (*grid.shape, 3)
        disp = disp.transpose(3, 0, 1, 2)
    ours = field.warp(MetaTensor(torch.from_numpy(moving)[None], affine=torch.as_tensor(grid.affine)))[0].numpy()
    inner = (slice(4, -4),) * 3
    tolerance = 0.5 if name.endswith("npz") else 0.05
    np.testing.assert_allclose(evaluated(disp, moving)[inner], ours[inner], atol=tolerance)
    back = read_transformation(tmp_path / name, grid).on(grid).displacement.numpy()
    np.testing.assert_allclose(back, np.einsum("ij,jxyz->ixyz", grid.affine[:3, :3], disp), atol=1e-4)


def test_there_and_back(grid: Grid) -> None:
    """A large affine part and a smooth field: 0.1 mm is met with a wide margin."""
    field = DisplacementField(torch.from_numpy(smooth_ddf(grid.shape, 4, sigma=5)), grid)
    both = Transformation(field, Affine(rigid((15, -30, 20), (120, -60, 90))))
    points = inner_points(grid)
    there = both.points(points)
    assert np.linalg.norm(there - points, axis=1).min() > 50
    np.testing.assert_allclose(both.inverse().points(there), points, atol=0.01)
    np.testing.assert_allclose(both.inverse().inverse().points(points), there, atol=1e-6)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_byte_order_mark_is_read(encoding: str, end: str, tmp_path: Path) -> None:
    """Of ITK's text and of a matrix: an editor or a shell of Windows writes it."""
    grid = GRIDS["straight"]
    transform, points = sitk_euler(grid), inner_points(grid)
    expected = np.array([transform.TransformPoint((point * LPS).tolist()) for point in points]) * LPS
    sitk.WriteTransform(transform, str(tmp_path / "plain.tfm"))
    matrix = np.eye(4)
    matrix[:3, :3] = np.diag(LPS) @ np.reshape(transform.GetMatrix(), (3, 3)) @ np.diag(LPS)
    matrix[:3, 3] = np.array(transform.TransformPoint((0.0, 0.0, 0.0))) * LPS
    rows = "\n".join(" ".join(map(repr, map(float, row))) for row in matrix)
    texts = {"itk.tfm": (tmp_path / "plain.tfm").read_text(), "greedy.mat": rows}
    for name, text in texts.items():
        (tmp_path / name).write_text(text.replace("\n", end), encoding=encoding, newline="")
        np.testing.assert_allclose(read_transformation(tmp_path / name).points(points), expected, atol=1e-9)
    (tmp_path / "bad.tfm").write_text("#Insight Transform File V1.0\nTransform: x\n", encoding=encoding)
    with pytest.raises(RegZooError, match=f"^{tmp_path / 'bad.tfm'}: is damaged"):
        read_transformation(tmp_path / "bad.tfm")


def test_numbers_beyond_float32(tmp_path: Path) -> None:
    line = r"holds numbers beyond the range of float32, 3\.4e38 \([0-9]+ of them\); check the scale"
    euler = sitk_euler(GRIDS["straight"])
    euler.SetTranslation((1e300, 0, 0))
    sitk.WriteTransform(euler, str(tmp_path / "euler.tfm"))
    np.savetxt(tmp_path / "greedy.mat", np.diag([1e300, 1, 1, 1]))
    np.savez(tmp_path / "disp.npz", np.full((3, 4, 4, 4), -1e39))
    for name in ("euler.tfm", "greedy.mat", "disp.npz"):
        with pytest.raises(RegZooError, match=f"{name}: {line}"):
            read_transformation(tmp_path / name, make_grid((4, 4, 4)))
