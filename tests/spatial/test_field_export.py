"""A saved field, applied by SimpleITK and by ITK, gives the image that the package warps."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import itk
import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from helpers import LPS, from_sitk, make_affine, make_grid, rigid, smooth_ddf, smooth_noise, to_sitk, write
from monai.data import MetaTensor
from regzoo.errors import RegZooError
from regzoo.spatial import DisplacementField, Grid, resample
from regzoo.spatial.warp import Mode, sample_file

EDIT = rigid((6, -9, 4), (11, -7, 5))
#: fixed grid, moving grid, edit of the moving affine
PAIRS: dict[str, tuple[dict[str, Any], dict[str, Any], np.ndarray]] = {
    "same": ({"shape": (24, 22, 20)}, {"shape": (24, 22, 20)}, np.eye(4)),
    "oblique, anisotropic, odd": (
        {"shape": (31, 27, 13), "spacing": (1.1, 0.9, 2.3), "degrees": (20, -15, 30), "center": (30, -80, 55)},
        {"shape": (25, 33, 29), "spacing": (1.7, 1.2, 0.8), "degrees": (-10, 5, 12), "center": (31, -79, 54)},
        np.eye(4),
    ),
    "flipped and permuted": (
        {"shape": (21, 30, 25), "axes": (1, 2, 0), "flips": (-1, 1, -1), "spacing": (1.3, 0.8, 1)},
        {"shape": (30, 23, 27), "axes": (2, 0, 1), "flips": (1, -1, -1), "spacing": (1, 1.4, 0.9)},
        np.eye(4),
    ),
    "flipped, oblique, prealigned": (
        {"shape": (23, 28, 31), "axes": (0, 2, 1), "flips": (1, 1, -1), "degrees": (15, 25, -20), "center": (5, 9, 2)},
        {
            "shape": (35, 29, 17),
            "axes": (1, 0, 2),
            "flips": (-1, -1, 1),
            "spacing": (0.8, 1.1, 1.9),
            "center": (9, 1, 7),
        },
        EDIT,
    ),
    "thick slices": (
        {"shape": (41, 37, 21), "spacing": (0.9, 0.9, 2.2), "center": (12, -30, 40)},
        {
            "shape": (48, 45, 7),
            "spacing": (0.7, 0.7, 6),
            "flips": (-1, -1, 1),
            "degrees": (8, -4, 3),
            "center": (11, -29, 41),
        },
        np.eye(4),
    ),
}


class Pair:
    """A pair of files, the field a network's DDF gives for it, and that field as a file."""

    def __init__(self, name: str, folder: Path) -> None:
        fixed, moving, edit = PAIRS[name]
        self.fixed, moved = make_grid(**fixed), make_grid(**moving)
        # The moving file lies elsewhere; the edit of its affine brings it onto the fixed image.
        self.moving = Grid(moved.shape, np.linalg.inv(edit) @ moved.affine)
        network = self.fixed.network_grid((1.5, 1.5, 1.5), (22, 21, 19))
        ddf = torch.from_numpy(smooth_ddf(network.shape, 2.5))
        self.field = DisplacementField.from_ddf(ddf, network, self.fixed, edit)
        self.field_file = folder / "field.nii.gz"
        self.field.save(self.field_file)
        self.image = smooth_noise(moved.shape, 1.0, seed=3)
        self.image_file = Path(write(folder / "moving.nii.gz", self.image, self.moving.affine))

    def voxels(self) -> np.ndarray:
        """Where the field leads, (X, Y, Z, 3), voxels of the moving image."""
        return self.moving.to_voxels(self.field.points().numpy().transpose(1, 2, 3, 0))

    def edge(self) -> np.ndarray:
        """Where the field leads into the half voxel beyond the outermost centres, or just past it."""
        voxels, last = self.voxels(), np.array(self.moving.shape) - 1
        return (np.maximum(-voxels, voxels - last).max(-1) > 0) & (np.maximum(-voxels, voxels - last).max(-1) < 1)


@pytest.fixture(scope="module", params=list(PAIRS))
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return Pair(request.param, tmp_path_factory.mktemp("pair"))


def apply_with_sitk(field_file: Path, moving_file: Path, interpolator: int, background: float = 0.0) -> np.ndarray:
    field = sitk.ReadImage(str(field_file), sitk.sitkVectorFloat64)
    moving = sitk.ReadImage(str(moving_file), sitk.sitkFloat32)
    frame = sitk.VectorIndexSelectionCast(field, 0)
    return from_sitk(sitk.Resample(moving, frame, sitk.DisplacementFieldTransform(field), interpolator, background))


@pytest.mark.parametrize("background", [0.0, -1000.0])
def test_simpleitk_reproduces_every_voxel_of_the_warped_image(pair: Pair, background: float) -> None:
    ours = pair.field.warp(pair.image_file, background=background)[0].numpy()
    theirs = apply_with_sitk(pair.field_file, pair.image_file, sitk.sitkLinear, background)
    assert pair.edge().mean() > 0.01
    assert 0.001 < (theirs == background).mean() < 0.7
    np.testing.assert_allclose(ours, theirs, atol=0.05)
    # The pair is registered by something that matters: without the field the images differ a lot.
    still = DisplacementField(torch.zeros(3, *pair.fixed.shape), pair.fixed).warp(pair.image_file)[0].numpy()
    assert np.abs(still - theirs)[theirs != background].max() > 10


def test_simpleitk_reproduces_nearest_neighbour_labels(pair: Pair, tmp_path: Path) -> None:
    labels = write(tmp_path / "map.nii.gz", np.round(pair.image / 10).astype(np.int16), pair.moving.affine)
    ours = pair.field.warp(labels, mode="nearest")[0].numpy()
    theirs = apply_with_sitk(pair.field_file, Path(labels), sitk.sitkNearestNeighbor)
    # Points that lie half-way between voxels, to the precision of the files, may go either way.
    voxels = pair.voxels()
    sure = (np.abs(voxels - np.floor(voxels) - 0.5) > 1e-4).all(-1)
    assert sure.mean() > 0.99
    np.testing.assert_array_equal(ours[sure], theirs[sure])
    assert len(np.unique(ours)) > 5


@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
def test_points_on_the_very_edge_and_half_way_between_voxels_go_where_itk_takes_them(mode: Mode) -> None:
    # From 3 voxels below to 3 beyond in steps of a quarter: all that is exact in binary, at -1/2 and n - 1/2 too.
    moving = Grid((5, 4, 6), np.diag([2.0, 4.0, 8.0, 1.0]))
    fixed = Grid((41, 37, 45), np.diag([0.5, 1.0, 2.0, 1.0]))
    fixed.affine[:3, 3] = -3 * moving.spacing
    image = smooth_noise(moving.shape, 1.0, seed=5) + 200
    volume = MetaTensor(torch.from_numpy(image)[None], affine=torch.from_numpy(moving.affine))
    still = DisplacementField(torch.zeros(3, *fixed.shape), fixed)
    interpolator = sitk.sitkLinear if mode == "bilinear" else sitk.sitkNearestNeighbor
    frame = to_sitk(np.zeros(fixed.shape, np.float32), fixed.affine)
    theirs = from_sitk(sitk.Resample(to_sitk(image, moving.affine), frame, sitk.Transform(), interpolator, -7.0))
    assert 0.3 < (theirs == -7).mean() < 0.9
    np.testing.assert_allclose(still.warp(volume, mode, background=-7)[0].numpy(), theirs, atol=1e-3)
    seen = resample(volume.as_tensor(), moving, fixed, mode)
    np.testing.assert_allclose(seen[0].numpy(), np.where(theirs == -7, 0, theirs), atol=1e-3)


def test_slabs_of_a_row_and_the_whole_at_once_are_the_same(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = pair.field.warp(pair.image_file).numpy()
    monkeypatch.setattr(sys.modules[sample_file.__module__], "SLAB", 1)
    np.testing.assert_allclose(pair.field.warp(pair.image_file).numpy(), whole, atol=1e-3)


def test_itk_reproduces_the_warped_image(tmp_path: Path) -> None:
    pair = Pair("flipped, oblique, prealigned", tmp_path)
    field = itk.imread(str(pair.field_file), itk.Vector[itk.F, 3])
    moving = itk.imread(str(pair.image_file), itk.F)
    warp = itk.WarpImageFilter[type(moving), type(moving), type(field)].New(Input=moving, DisplacementField=field)
    warp.SetOutputSpacing(field.GetSpacing())
    warp.SetOutputOrigin(field.GetOrigin())
    warp.SetOutputDirection(field.GetDirection())
    warp.Update()
    theirs = itk.array_from_image(warp.GetOutput()).transpose(2, 1, 0)
    ours = pair.field.warp(pair.image_file)[0].numpy()
    np.testing.assert_allclose(ours, theirs, atol=0.05)


def test_points_go_where_simpleitk_takes_them(pair: Pair) -> None:
    rng = np.random.default_rng(1)
    points = pair.fixed.to_world(rng.uniform(1, np.array(pair.fixed.shape) - 2, size=(40, 3)))
    transform = sitk.DisplacementFieldTransform(sitk.ReadImage(str(pair.field_file), sitk.sitkVectorFloat64))
    expected = [LPS * transform.TransformPoint((LPS * point).tolist()) for point in points]
    np.testing.assert_allclose(pair.field.transform_points(points), expected, atol=2e-3)


def test_header_says_vector_field_in_lps(pair: Pair) -> None:
    image = nib.load(pair.field_file)
    assert image.shape == (*pair.fixed.shape, 1, 3)
    assert image.header["intent_code"] == 1007
    assert image.header.get_data_dtype() == np.float32
    for affine, code in (image.get_sform(coded=True), image.get_qform(coded=True)):
        assert code == 1
        np.testing.assert_allclose(affine, pair.fixed.affine, atol=1e-4)
    in_memory = pair.field.displacement.numpy().transpose(1, 2, 3, 0)
    np.testing.assert_allclose(np.asarray(image.dataobj)[:, :, :, 0] * LPS, in_memory, atol=1e-5)


def test_reads_what_simpleitk_writes(tmp_path: Path) -> None:
    shape = (9, 8, 7)
    affine = make_affine(shape, (1, 2, 1.5), (10, 20, 30), flips=(1, -1, 1))
    lps = smooth_ddf(shape, 3.0, 1.0).transpose(1, 2, 3, 0)
    sitk.WriteImage(to_sitk(lps, affine), str(tmp_path / "field.nii.gz"))
    field = DisplacementField.load(tmp_path / "field.nii.gz")
    np.testing.assert_allclose(field.grid.affine, affine, atol=1e-5)
    np.testing.assert_allclose(field.displacement.numpy().transpose(1, 2, 3, 0), lps * LPS, atol=1e-6)


@pytest.mark.parametrize("kind", ["missing", "damaged", "scalar", "unknown frame"])
def test_what_is_no_field_is_refused_in_one_line(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "field.nii.gz"
    if kind == "damaged":
        path.write_bytes(b"no NIfTI")
    elif kind == "scalar":
        write(path, np.zeros((4, 5, 6), np.float32))
    elif kind == "unknown frame":
        write(path, np.zeros((4, 5, 6, 1, 3), np.float32))  # no intent: LPS or RAS?
    with pytest.raises(RegZooError) as error:
        DisplacementField.load(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)
