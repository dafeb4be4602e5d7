"""Corresponding points of two images: how they are paired, in which frame they are, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from helpers import LPS, make_grid, to_sitk
from regzoo.errors import RegZooError
from regzoo.spatial.landmarks import read_landmarks

FIXED = make_grid((20, 16, 12), (1.5, 2, 3), (10, 20, -15), (1, 0, 2), (-1, 1, 1), center=(30, -20, 10))
MOVING = make_grid((18, 22, 14), (2, 1, 2.5), (-5, 8, 12), (0, 2, 1), (1, -1, 1), center=(-40, 5, 60))
VOXELS = np.array([[3, 4, 5], [10, 8, 2], [6.5, 1, 7.25]])


def table(path: Path, points: np.ndarray, names: list[str] | None = None) -> Path:
    head = "x,y,z" if names is None else "name,x,y,z"
    rows = [",".join(map(repr, map(float, point))) for point in points]
    rows = rows if names is None else [f"{name},{row}" for name, row in zip(names, rows, strict=True)]
    path.write_text("\n".join([head, *rows]) + "\n", encoding="utf-8")
    return path


def keypoints(path: Path, voxels: np.ndarray) -> Path:
    np.savetxt(path, voxels, delimiter=",", fmt="%.6f")
    return path


def markups(path: Path, points: np.ndarray, names: list[str]) -> Path:
    """A list of 3D Slicer, LPS."""
    controls = [{"label": n, "position": (p * LPS).tolist()} for n, p in zip(names, points, strict=True)]
    markup = {"type": "Fiducial", "coordinateSystem": "LPS", "controlPoints": controls}
    path.write_text(json.dumps({"markups": [markup]}), encoding="utf-8")
    return path


def test_keypoints_of_learn2reg_are_voxel_indices(tmp_path: Path) -> None:
    """SimpleITK says where a continuous index lies."""
    read = read_landmarks(
        keypoints(tmp_path / "a.csv", VOXELS), keypoints(tmp_path / "b.csv", VOXELS + 1), FIXED, MOVING
    )
    for found, grid, voxels in ((read.fixed, FIXED, VOXELS), (read.moving, MOVING, VOXELS + 1)):
        image = to_sitk(np.zeros(grid.shape, np.float32), grid.affine)
        expected = [image.TransformContinuousIndexToPhysicalPoint(voxel.tolist()) for voxel in voxels]
        np.testing.assert_allclose(found, np.array(expected) * LPS, atol=1e-4)
    assert read.names == ["1", "2", "3"]


@pytest.mark.parametrize(
    ("names", "others"),
    [
        (["apex", "base", "cyst"], ["cyst", "apex", "base"]),
        (["US-1", "US-2", "US-10"], ["MR-10", "MR-1", "MR-2"]),
        (["P10", "P11", "P12"], ["Q12", "Q10", "Q11"]),
        (["US lesion", "US lesion 2", "US left"], ["MR left", "MR lesion", "MR lesion 2"]),
    ],
)
def test_points_with_names_are_paired_by_them(names: list[str], others: list[str], tmp_path: Path) -> None:
    fixed, moving = FIXED.to_world(VOXELS), MOVING.to_world(VOXELS)
    files = table(tmp_path / "a.csv", fixed * LPS, names), markups(tmp_path / "b.mrk.json", moving, others)
    read = read_landmarks(*files, FIXED, MOVING, "LPS")
    np.testing.assert_allclose(read.fixed, fixed)
    np.testing.assert_allclose(read.moving, moving[[1, 2, 0]])
    assert read.names == names


def test_points_without_names_are_paired_by_their_order(tmp_path: Path) -> None:
    fixed, moving = FIXED.to_world(VOXELS), MOVING.to_world(VOXELS)
    read = read_landmarks(
        table(tmp_path / "a.csv", fixed, ["c", "a", "b"]), table(tmp_path / "b.csv", moving), FIXED, MOVING, "RAS"
    )
    np.testing.assert_allclose(read.moving, moving)
    assert read.names == ["c", "a", "b"]


@pytest.mark.parametrize(
    ("fixed", "moving", "line"),
    [
        ((VOXELS, None), (VOXELS[:2], None), "b.csv: holds 2 points, {}/a.csv holds 3"),
        ((VOXELS, ["a", "b", "c"]), (VOXELS, ["a", "b", "x"]), "b.csv: has no point of the name 'c', which {}/a.csv"),
        ((VOXELS, ["P10", "P11", "P12"]), (VOXELS, ["P1", "P11", "P12"]), "b.csv: has no point of the name 'P10'"),
        ((VOXELS[:1], ["urethra"]), (VOXELS[:1], ["apex"]), "b.csv: has no point of the name 'urethra'"),
        ((VOXELS, ["a", "a", "c"]), (VOXELS, ["a", "b", "c"]), "a.csv: has points with the same name"),
        ((VOXELS, ["a", "", "c"]), (VOXELS, ["a", "b", "c"]), "a.csv: has points with the same name, or with none"),
        (
            (VOXELS + np.array([0, 0, 9]), None),
            (VOXELS, None),
            "a.csv: has 2 of 3 points outside its image, first number 1",
        ),
        ((VOXELS, None), (VOXELS * -1, ["a", "b", "c"]), "b.csv: has 3 of 3 points outside its image, first a"),
    ],
)
def test_points_that_do_not_fit(
    fixed: tuple[np.ndarray, list[str] | None], moving: tuple[np.ndarray, list[str] | None], line: str, tmp_path: Path
) -> None:
    a = table(tmp_path / "a.csv", FIXED.to_world(fixed[0]), fixed[1])
    b = table(tmp_path / "b.csv", MOVING.to_world(moving[0]), moving[1])
    with pytest.raises(RegZooError) as caught:
        read_landmarks(a, b, FIXED, MOVING, "RAS")
    assert line.format(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    good = keypoints(tmp_path / "a.csv", VOXELS)
    for name, content, line in (
        ("empty.csv", "", "is empty"),
        ("two.csv", "1,2\n3,4\n", "names no columns x, y and z"),
        ("frame.csv", "x,y,z\n1,2,3\n", "does not say whether its points are RAS or LPS"),
        ("word.csv", "1,2,three\n", "names no columns x, y and z"),
        ("nan.csv", "1,2,nan\n", "names no columns x, y and z"),
        ("image.nii.gz", "", "is not a list of points"),
    ):
        (tmp_path / name).write_text(content, encoding="utf-8")
        with pytest.raises(RegZooError, match=line) as caught:
            read_landmarks(good, tmp_path / name, FIXED, MOVING)
        assert str(tmp_path / name) in str(caught.value)
