"""`regzoo apply`, `invert`, `compose` and `convert`, as the console script runs them, beside SimpleITK."""

from __future__ import annotations

import io
import sys
from contextlib import suppress
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from helpers import LPS, from_sitk, make_grid, rigid, smooth_ddf, smooth_noise, to_sitk, write
from regzoo.cli import main
from regzoo.spatial import DisplacementField, Grid
from regzoo.spatial.transform_files import read_transformation, write_transformation
from regzoo.spatial.transformation import Affine, Transformation
from scipy.io import savemat

#: Fixed grid, moving grid, and another grid, on which a user wants the result.
GRIDS = {
    "oblique, anisotropic, odd": (
        make_grid((31, 27, 13), (1.1, 0.9, 2.3), (20, -15, 30), center=(30, -80, 55)),
        make_grid((25, 33, 29), (1.7, 1.2, 0.8), (-10, 5, 12), center=(31, -79, 54)),
        make_grid((18, 17, 15), (1.3, 1.2, 1.4), (5, 3, -7), center=(30, -80, 55)),
    ),
    "flipped and permuted": (
        make_grid((21, 30, 25), (1.3, 0.8, 1), (0, 0, 0), (1, 2, 0), (-1, 1, -1)),
        make_grid((30, 23, 27), (1, 1.4, 0.9), (0, 0, 0), (2, 0, 1), (1, -1, -1)),
        make_grid((17, 16, 15), (1.1, 1.1, 1.1), (0, 10, 0), (0, 2, 1), (-1, -1, 1)),
    ),
}


class Case:
    """A field, an affine map, an image and a map of labels, as files."""

    def __init__(self, name: str, folder: Path) -> None:
        self.folder = folder
        self.fixed, self.moving, self.other = GRIDS[name]
        self.affine = Affine(rigid((3, -4, 5), (0, 0, 0)))
        shift = self.moving.center - self.affine.transform_points(self.fixed.center[None])[0]
        self.affine.matrix[:3, 3] = shift
        deformed = torch.from_numpy(smooth_ddf(self.fixed.shape, 2.5))
        self.deformation = DisplacementField(deformed, self.fixed)
        self.whole = Transformation(self.deformation, self.affine)
        self.image = smooth_noise(self.moving.shape, 1.2, seed=3) + 20
        self.labels = (np.digitize(smooth_noise(self.moving.shape, 3, seed=4), [30, 55, 75]) * 7).astype(np.uint8)
        self.whole.on(self.fixed).save(self["field.nii.gz"])
        write_transformation(self["whole.h5"], self.whole, None)
        np.savetxt(self["affine.mat"], self.affine.matrix)
        self.deformation.save(self["deformation.nii.gz"])
        write(Path(self["moving.nii.gz"]), self.image, self.moving.affine)
        write(Path(self["labels.nii.gz"]), self.labels, self.moving.affine)
        write(
            Path(self["other.nii.gz"]),
            np.arange(np.prod(self.other.shape), dtype=np.float32).reshape(self.other.shape),
            self.other.affine,
        )

    def __getitem__(self, name: str) -> str:
        return str(self.folder / name)


@pytest.fixture(params=list(GRIDS))
def case(request: pytest.FixtureRequest, tmp_path: Path) -> Case:
    return Case(request.param, tmp_path)


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["regzoo", *arguments])
    main()


def sitk_transform(file: str) -> sitk.Transform:
    """A transform file, or a displacement field, as SimpleITK reads it."""
    if file.endswith(".nii.gz"):
        return sitk.DisplacementFieldTransform(sitk.ReadImage(file, sitk.sitkVectorFloat64))
    return sitk.ReadTransform(file)


def resampled(case: Case, transform: str, target: Grid, interpolator: int = sitk.sitkLinear) -> np.ndarray:
    reference = to_sitk(np.zeros(target.shape, np.float32), target.affine)
    moving = to_sitk(case.image, case.moving.affine)
    return from_sitk(sitk.Resample(moving, reference, sitk_transform(case[transform]), interpolator, 20.0))


def inside(case: Case, target: Grid) -> np.ndarray:
    """The voxels of a grid that lie well inside the fixed and go well inside the moving image."""
    points = target.to_world(np.moveaxis(np.indices(target.shape), 0, -1).reshape(-1, 3))
    kept = np.ones(len(points), bool)
    for grid, places in ((case.fixed, points), (case.moving, case.whole.points(points))):
        voxels = grid.to_voxels(places)
        kept &= ((voxels > 1) & (voxels < np.asarray(grid.shape) - 2)).all(1)
    return kept.reshape(target.shape)


@pytest.mark.parametrize("transform", ["field.nii.gz", "whole.h5"])
@pytest.mark.parametrize("reference", [False, True])
def test_an_image_as_simpleitk_resamples_it(
    case: Case, transform: str, reference: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["--reference", case["other.nii.gz"]] if reference else []
    call(
        monkeypatch, "apply", case[transform], "--image", case["moving.nii.gz"], "--out", case["out.nii.gz"], *arguments
    )
    target = case.other if reference else case.fixed
    written = nib.load(case["out.nii.gz"])
    np.testing.assert_allclose(written.affine, target.affine, atol=1e-4)
    kept = inside(case, target)
    assert kept.mean() > 0.15
    np.testing.assert_allclose(written.get_fdata()[kept], resampled(case, transform, target)[kept], atol=0.05)


def test_labels_keep_their_values_and_meet_the_image(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["apply", case["field.nii.gz"], "--label", case["labels.nii.gz"], "--out", case["out.nii.gz"]]
    call(monkeypatch, *arguments)
    written = nib.load(case["out.nii.gz"])
    found = np.asarray(written.dataobj)
    assert found.dtype == np.uint8 and set(np.unique(found)) == {0, 7, 14, 21}
    case.image = case.labels
    nearest = resampled(case, "field.nii.gz", case.fixed, sitk.sitkNearestNeighbor)
    assert (found == nearest)[inside(case, case.fixed)].mean() > 0.9


@pytest.mark.parametrize("suffix", [".nrrd", ".mha", ".seg.nrrd"])
def test_other_forms_hold_the_same_result(case: Case, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = case["field.nii.gz"]
    sources = {"--image": "moving.nii.gz", "--label": "labels.nii.gz"}
    if suffix == ".seg.nrrd":  # a segmentation, which an image is not
        del sources["--image"]
    for what, file in sources.items():
        for out in ("out.nii.gz", f"out{suffix}"):
            call(monkeypatch, "apply", whole, what, case[file], "--out", case[out])
        nifti, other = (sitk.ReadImage(case[out]) for out in ("out.nii.gz", f"out{suffix}"))
        np.testing.assert_array_equal(from_sitk(other), from_sitk(nifti))
        assert other.GetPixelID() == nifti.GetPixelID()
        for part in ("Origin", "Spacing", "Direction"):
            np.testing.assert_allclose(getattr(other, f"Get{part}")(), getattr(nifti, f"Get{part}")(), atol=1e-4)
        for out in ("out.nii.gz", f"out{suffix}"):
            Path(case[out]).unlink()


def test_from_fixed_to_moving_undoes_it(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """A smooth image that goes there and back stays the same, up to two interpolations."""
    field = case["field.nii.gz"]
    image = smooth_noise(case.fixed.shape, 4, seed=8)
    write(Path(case["fixed.nii.gz"]), image, case.fixed.affine)
    way = ["--from", "fixed", "--to", "moving", "--reference", case["moving.nii.gz"]]
    call(monkeypatch, "apply", field, "--image", case["fixed.nii.gz"], "--out", case["there.nii.gz"], *way)
    call(
        monkeypatch,
        "apply",
        field,
        "--image",
        case["there.nii.gz"],
        "--out",
        case["back.nii.gz"],
        "--from=moving",
        "--to=fixed",
    )
    error = np.abs(nib.load(case["back.nii.gz"]).get_fdata() - image)
    kept = inside(case, case.fixed)
    kept[:3], kept[-3:], kept[:, :3], kept[:, -3:], kept[..., :3], kept[..., -3:] = (False,) * 6
    assert kept.sum() > 100 and np.percentile(error[kept], 95) < 3


@pytest.mark.parametrize("out", ["inverse.nii.gz", "inverse.h5", "inverse.tfm"])
def test_the_inverse(case: Case, out: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    call(monkeypatch, "invert", case["field.nii.gz"], "--out", case[out], "--reference", case["moving.nii.gz"])
    assert "within" in capsys.readouterr().out
    share = np.random.default_rng(1).uniform(0.35, 0.65, (40, 3))
    points = case.fixed.to_world(share * (np.asarray(case.fixed.shape) - 1))
    there = case.whole.points(points)
    inverse = sitk_transform(case[out])
    back = np.array([inverse.TransformPoint((point * LPS).tolist()) for point in there]) * LPS
    assert np.linalg.norm(back - points, axis=1).max() < 0.1


def test_compose_in_the_order_of_the_point(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    call(monkeypatch, "compose", case["deformation.nii.gz"], case["affine.mat"], "--out", case["out.nii.gz"])
    composed = DisplacementField.load(case["out.nii.gz"])
    np.testing.assert_allclose(composed.displacement, case.whole.on(case.fixed).displacement, atol=1e-3)


def test_convert_keeps_a_known_affine_map_apart(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["convert", case["field.nii.gz"], case["out.h5"], "--affine", case["affine.mat"]]
    call(monkeypatch, *arguments)
    composite = sitk.CompositeTransform(sitk.ReadTransform(case["out.h5"]))
    affine, field = (composite.GetNthTransform(index).Downcast() for index in range(2))
    matrix = np.reshape(affine.GetMatrix(), (3, 3)) * np.outer(LPS, LPS)
    np.testing.assert_allclose(matrix, case.affine.matrix[:3, :3], atol=1e-6)
    lps = from_sitk(field.GetDisplacementField())
    theirs = np.moveaxis(case.deformation.displacement.numpy(), 0, -1) * LPS
    np.testing.assert_allclose(lps, theirs, atol=1e-3)


@pytest.mark.parametrize("out", ["a.tfm", "b.h5", "disp_0001_0002.nii.gz", "c.nii.gz"])
def test_every_form_holds_the_same_field(case: Case, out: str, monkeypatch: pytest.MonkeyPatch) -> None:
    call(monkeypatch, "convert", case["field.nii.gz"], case[out])
    again = read_transformation(case[out], case.fixed).on(case.fixed)
    np.testing.assert_allclose(again.displacement, case.whole.on(case.fixed).displacement, atol=1e-3)


@pytest.mark.parametrize("what", ["--image", "--label"])
def test_what_leaves_the_field_of_view_is_told_of(
    what: str, case: Case, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = case["moving.nii.gz" if what == "--image" else "labels.nii.gz"]
    call(monkeypatch, "apply", case["field.nii.gz"], what, file, "--out", case["o.nii.gz"])
    assert capsys.readouterr().err == ""
    image = nib.load(file)
    image.affine[:3, 3] += 500
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj), image.affine), file)
    call(monkeypatch, "apply", case["field.nii.gz"], what, file, "--out", case["o.nii.gz"])
    assert f"o.nii.gz: shows nothing of {file}; check that it lies in" in capsys.readouterr().err
    assert len(np.unique(nib.load(case["o.nii.gz"]).dataobj)) == 1


@pytest.mark.parametrize("masks", [False, True])
def test_each_label_that_is_lost_is_named(
    masks: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = np.zeros((12, 11, 10), np.uint8)
    labels[2:6, 2:6, 2:6], labels[8, 8, 8], labels[8, 3, 5:7] = 1, 4, 9
    if masks:
        labels = np.stack([labels == 1, labels == 2, labels == 4, labels == 9], -1).astype(np.uint8)
    path = write(tmp_path / "labels.nii", labels, np.eye(4))
    np.savetxt(tmp_path / "half.mat", Affine(rigid((0, 0, 0), (0.5, 0.5, 0.5))).matrix)
    out = tmp_path / "o.nii"
    call(monkeypatch, "apply", str(tmp_path / "half.mat"), "--label", path, "--reference", path, "--out", str(out))
    lost = ["mask 3", "mask 4"] if masks else ["label 4", "label 9"]
    lines = [f"warning: {out}: {name}: no part of it lies on the grid of this file" for name in lost]
    assert capsys.readouterr().err.splitlines() == lines
    assert set(np.unique(nib.load(out).dataobj)) == {0, 1}


def test_a_uniform_part_of_an_image_is_not_nothing(
    case: Case, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    image = nib.load(case["moving.nii.gz"])
    values = np.ones(image.shape, np.uint8)
    values[0, 0, 0] = 0
    nib.save(nib.Nifti1Image(values, image.affine), case["ones.nii.gz"])
    small = Grid((4, 4, 4), case.fixed.affine @ np.diag([0.5, 0.5, 0.5, 1]))
    small.affine[:3, 3] = case.fixed.to_world(np.array(case.fixed.shape) / 2)
    write(Path(case["small.nii.gz"]), np.zeros(small.shape, np.float32), small.affine)
    way = ["--image", case["ones.nii.gz"], "--reference", case["small.nii.gz"]]
    call(monkeypatch, "apply", case["field.nii.gz"], *way, "--out", case["o.nii.gz"])
    assert capsys.readouterr().err == ""
    np.testing.assert_allclose(nib.load(case["o.nii.gz"]).dataobj, 1, atol=1e-6)


def test_an_existing_file_of_somebody_else_stays(
    case: Case, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path(case["out.nii.gz"]).write_text("mine")
    with pytest.raises(SystemExit):
        call(monkeypatch, "convert", case["field.nii.gz"], case["out.nii.gz"])
    assert "already exists" in capsys.readouterr().err
    assert Path(case["out.nii.gz"]).read_text() == "mine"


#: What a user may get wrong: the command, with names of files of `broken_files`, and what the error says.
MISTAKES = {
    "nothing to apply": ("apply field.nii.gz --out o.nii.gz", "give one of"),
    "two things": ("apply field.nii.gz --image moving.nii.gz --label labels.nii.gz --out o.nii.gz", "give one of"),
    "a frame of an image": ("apply field.nii.gz --image moving.nii.gz --frame RAS --out o.nii.gz", "no effect"),
    "a background that no voxel holds": (
        "apply field.nii.gz --image moving.nii.gz --background 1e300 --out o.nii.gz",
        "background: 1e+300 is not a value of a voxel; use a smaller number",
    ),
    "an infinite background": (
        "apply field.nii.gz --image moving.nii.gz --background 1e400 --out o.nii.gz",
        "background: inf is not a value of a voxel",
    ),
    "a background of labels": ("apply field.nii.gz --label labels.nii.gz --background 3 --out o.nii.gz", "no effect"),
    "half a direction": ("apply field.nii.gz --image moving.nii.gz --from fixed --out o.nii.gz", "direction"),
    "twice the same side": ("apply field.nii.gz --image moving.nii.gz --from fixed --to fixed --out o.nii.gz", "dir"),
    "no grid of the moving": (
        "apply field.nii.gz --image moving.nii.gz --from fixed --to moving --out o.nii.gz",
        "--ref",
    ),
    "no grid of the fixed": ("apply affine.mat --image moving.nii.gz --out o.nii.gz", "--reference"),
    "no such suffix": ("apply field.nii.gz --image moving.nii.gz --out o.png", "suffix"),
    "over an input": ("apply field.nii.gz --image moving.nii.gz --out moving.nii.gz", "input"),
    "an image instead of a field": ("apply moving.nii.gz --image moving.nii.gz --out o.nii.gz", "displacement"),
    "no file": ("convert none.nii.gz o.h5", "no such file"),
    "text": ("convert text.txt o.h5", "4×4"),
    "fifteen numbers": ("convert short.mat o.h5", "4×4"),
    "a projective matrix": ("convert projective.mat o.h5", "0 0 0 1"),
    "a flat matrix": ("convert flat.mat o.h5", "flattens"),
    "NaN in a matrix": ("convert nan.mat o.h5", "NaN"),
    "a truncated HDF5 file": ("convert cut.h5 o.tfm", "damaged"),
    "a truncated ITK text": ("convert cut.tfm o.h5", "damaged"),
    "an unknown transform": ("convert unknown.tfm o.h5", "holds a MagicTransform, which cannot be read here"),
    "a damaged MATLAB file": ("convert cut.mat o.h5", "damaged"),
    "elastix's parameters": ("convert elastix.txt o.h5", "elastix"),
    "a MATLAB file of another form": ("convert v73.mat o.h5", "damaged"),
    "a MATLAB file with another centre": ("convert center.mat o.h5", "damaged"),
    "a name that is no text": ("convert name.mat o.h5", "damaged"),
    "an array for an archive": ("convert array.npz o.h5 --reference moving.nii.gz", "NumPy"),
    "a damaged archive": ("convert damaged.npz o.h5 --reference moving.nii.gz", "NumPy"),
    "nothing in a composite": ("convert nothing.tfm o.h5", "empty composite"),
    "a composite in a composite": ("convert nested.h5 o.nii.gz", "holds a composite inside a composite"),
    "a composite in a composite, as text": ("convert nested.tfm o.nii.gz", "flatten it"),
    "a field without points": ("convert pointless.tfm o.h5", "0×0×0"),
    "no grid for a field": ("convert affine.mat o.nii.gz", "error: o.nii.gz: is a field"),
    "an empty list of labels": ("apply field.nii.gz --label [] --out o.nii.gz", "[]: is not a list of files"),
    "numbers for labels": ("apply field.nii.gz --label [1,2] --out o.nii.gz", "[1, 2]: is not a list of files"),
    "masks that overlap": ("apply field.nii.gz --label masks.nii.gz --out o.nrrd", "error: o.nrrd: cannot hold a mask"),
    "an archive that is none": ("convert cut.npz o.h5 --reference moving.nii.gz", "NumPy"),
    "Learn2Reg without a grid": ("convert disp_1_2.npz o.h5", "as reference"),
    "Learn2Reg of another size": ("convert disp_1_2.npz o.h5 --reference moving.nii.gz", "voxels"),
    "2-D": ("convert flat2d.tfm o.h5", "3-D"),
    "velocities": ("convert flow.tfm o.h5", "VelocityFieldTransform, which cannot be read here"),
    "a B-spline of order 2": ("convert spline2.tfm o.h5", "holds a BSplineTransform of order 2, which cannot be read"),
    "a B-spline of order 1": ("convert spline1.h5 o.tfm", "of order 1, which cannot be read here; convert it to a dis"),
    "spherical coordinates": ("convert spherical.tfm o.h5", "cannot be read here"),
    "an affine map that would be overwritten": (
        "convert field.nii.gz affine.tfm --affine affine.tfm",
        "affine.tfm: is also an input",
    ),
    "an affine map apart in a field": ("convert field.nii.gz o.nii.gz --affine affine.mat", "--affine: has no effect"),
    "an affine map with a deformation": ("convert field.nii.gz o.h5 --affine field.nii.gz", "not affine"),
    "half of an odd size": ("convert field.nii.gz o.npz", "error: o.npz: needs an even number"),
    "half of two voxels": (
        "convert affine.mat o.npz --reference two.nii.gz",
        "error: o.npz: needs an even number of voxels, at least four, along each axis of the fixed image (6×2×4)",
    ),
    "no grid for the inverse of a matrix": ("invert affine.mat --out o.nii.gz", "name the moving image with --ref"),
    "an image for a segmentation": (
        "apply field.nii.gz --image moving.nii.gz --out o.seg.nrrd",
        "error: o.seg.nrrd: has the suffix of a segmentation",
    ),
    "a field for a segmentation": ("convert field.nii.gz o.Seg.nrrd", "error: o.Seg.nrrd: has the suffix of a segm"),
    "an unknown form": ("convert field.nii.gz o.xyz", "suffix"),
    "nothing to compose": ("compose --out o.nii.gz", "no transformation"),
    "no grid for an inverse": ("invert spline3.tfm --out o.nii.gz", "--reference"),
    "far away": ("invert far.nii.gz --out o.nii.gz", "--reference"),
}


@pytest.fixture(scope="module")
def broken_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("broken")
    case = Case("oblique, anisotropic, odd", folder)
    (folder / "text.txt").write_text("this is not a matrix\n")
    np.savetxt(folder / "short.mat", np.ones((3, 5)))
    np.savetxt(folder / "projective.mat", np.eye(4) + np.eye(4)[::-1])
    np.savetxt(folder / "flat.mat", np.diag([1, 1, 0, 1]))
    np.savetxt(folder / "nan.mat", np.diag([1, np.nan, 1, 1]))
    (folder / "cut.h5").write_bytes((folder / "whole.h5").read_bytes()[:3000])
    sitk.WriteTransform(sitk.AffineTransform(3), str(folder / "affine.tfm"))
    sitk.WriteTransform(sitk.AffineTransform(3), str(folder / "itk.mat"))
    (folder / "cut.mat").write_bytes((folder / "itk.mat").read_bytes()[:60])
    (folder / "cut.tfm").write_text((folder / "affine.tfm").read_text()[:70])
    text = (folder / "affine.tfm").read_text()
    (folder / "unknown.tfm").write_text(text.replace("AffineTransform", "MagicTransform"))
    (folder / "elastix.txt").write_text('(Transform "BSplineTransform")\n(NumberOfParameters 12)\n')
    (folder / "cut.npz").write_bytes(b"PK\x03\x04 and nothing more")
    np.savez(folder / "disp_1_2.npz", np.zeros((3, 8, 8, 8), np.float16))
    np.savez_compressed(folder / "damaged.npz", np.zeros((3, 8, 8, 8), np.float16))
    archive = bytearray((folder / "damaged.npz").read_bytes())
    archive[archive.index(b"PK\x01\x02") + 6] = 255  # the version of zip that is needed
    (folder / "damaged.npz").write_bytes(archive)
    write(folder / "two.nii.gz", np.zeros((6, 2, 4), np.float32), np.eye(4))
    np.save(folder / "array.npy", np.zeros((3, 8, 8, 8), np.float32))
    (folder / "array.npy").rename(folder / "array.npz")
    (folder / "v73.mat").write_bytes(b"MATLAB 7.3 MAT-file".ljust(124) + b"\0\2IM" + bytes(384) + b"\x89HDF\r\n\x1a\n")
    numbers = np.eye(3, 4).reshape(12, 1)
    parts = {"AffineTransform_double_3_3": numbers, "fixed": np.zeros((2, 1))}
    savemat(folder / "center.mat", parts, format="4")
    matlab = (folder / "itk.mat").read_bytes()
    (folder / "name.mat").write_bytes(matlab.replace(b"fixed", b"f\xfaxed").replace(b"AffineT", b"Affin\xfaT"))
    (folder / "nothing.tfm").write_text(f"{text.partition('Transform: ')[0]}Transform: CompositeTransform_double_3_3\n")
    pointless = f"Transform: DisplacementFieldTransform_double_3_3\nParameters: \nFixedParameters: {'0 ' * 18}\n"
    (folder / "pointless.tfm").write_text(text.partition("Transform: ")[0] + pointless)
    write(folder / "masks.nii.gz", np.stack([case.labels > 0] * 2, -1).astype(np.uint8), case.moving.affine)
    sitk.WriteTransform(sitk.AffineTransform(2), str(folder / "flat2d.tfm"))
    spherical = f"Parameters: {'0 ' * 12}\nFixedParameters: 0 0 0\n"
    velocities = f"Parameters: {'0 ' * 48}\nFixedParameters: 2 2 2 2 {'0 ' * 4} {'1 ' * 4} {'1 0 0 0 0 ' * 3} 1\n"
    for name, kind, text in (
        ("spherical", "AzimuthElevationToCartesian", spherical),
        ("flow", "VelocityField", velocities),
    ):
        head = f"#Insight Transform File V1.0\n#Transform 0\nTransform: {kind}Transform_double_3_3\n"
        (folder / f"{name}.tfm").write_text(head + text)
    image = to_sitk(np.zeros(case.fixed.shape, np.float32), case.fixed.affine)
    sitk.WriteTransform(sitk.BSplineTransformInitializer(image, [3, 3, 3]), str(folder / "spline3.tfm"))
    for name, order in (("spline2.tfm", 2), ("spline1.h5", 1)):
        sitk.WriteTransform(sitk.BSplineTransformInitializer(image, [3, 3, 3], order), str(folder / name))
    shift = sitk.TranslationTransform(3, (5.0, 0.0, 0.0))
    nested = sitk.CompositeTransform([shift, sitk.CompositeTransform([shift]), shift])
    for name in ("nested.h5", "nested.tfm"):  # into which only the first shift is written
        with suppress(RuntimeError):  # Composite Transform can only be 1st transform in a file
            sitk.WriteTransform(nested, str(folder / name))
    far = Transformation(Affine(rigid((0, 0, 0), (500, 0, 0)))).on(case.fixed)
    far.save(folder / "far.nii.gz")
    return folder


def test_a_file_name_that_is_not_text_is_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case("flipped and permuted", tmp_path)
    printed = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(printed, encoding="utf-8"))
    out = case["M\udcfcller.nii.gz"]
    call(monkeypatch, "convert", case["affine.mat"], out, "--reference", case["field.nii.gz"])
    sys.stdout.flush()
    assert Path(out).is_file() and printed.getvalue().decode() == out.replace("\udcfc", "\\udcfc") + "\n"


@pytest.mark.parametrize("name", list(MISTAKES))
def test_a_mistake_is_one_line_and_leaves_nothing(
    name: str, broken_files: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(broken_files)
    before = sorted(path.name for path in broken_files.iterdir())
    command, message = MISTAKES[name]
    with pytest.raises(SystemExit) as stop:
        call(monkeypatch, *command.split())
    assert stop.value.code == 1
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: ") and error.count("\n") == 0 and message in error and "traceback" not in error
    assert ";" in error and sorted(path.name for path in broken_files.iterdir()) == before
