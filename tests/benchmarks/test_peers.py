"""Tools side by side: what is measured, against SimpleITK; what the tools' fields mean, against their own images."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

ROOT = Path(__file__).resolve().parents[2]
#: An oblique, anisotropic grid.
TURN = sitk.Euler3DTransform((0, 0, 0), 0.2, -0.3, 0.4).GetMatrix()


@pytest.fixture(scope="module")
def peers() -> Iterator[SimpleNamespace]:
    """The scripts as modules; they import their neighbours."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    import peer_measures
    import peer_methods
    import peer_pairs
    import peer_report
    import peer_runs
    import peer_tools

    yield SimpleNamespace(
        measures=peer_measures,
        methods=peer_methods,
        pairs=peer_pairs,
        report=peer_report,
        runs=peer_runs,
        tools=peer_tools,
    )
    sys.path.remove(str(ROOT / "benchmarks"))


def grid(size: tuple[int, int, int] = (32, 28, 24), spacing: tuple[float, ...] = (2, 2.5, 3)) -> sitk.Image:
    image = sitk.Image(size, sitk.sitkFloat32)
    image.SetSpacing(spacing)
    image.SetDirection(TURN)
    image.SetOrigin((-20, 15, 30))
    middle = image.TransformContinuousIndexToPhysicalPoint([(n - 1) / 2 for n in size])
    image.SetOrigin((np.array(image.GetOrigin()) - middle).tolist())
    return image


def ball(image: sitk.Image, center: tuple[float, float, float], radius: float) -> np.ndarray:
    """Distance from the surface of a ball, mm, positive inside: (Z, Y, X)."""
    sizes = (image.GetSize(), image.GetOrigin(), image.GetSpacing(), image.GetDirection())
    points = sitk.GetArrayFromImage(sitk.PhysicalPointSource(sitk.sitkVectorFloat64, *sizes))
    return radius - np.linalg.norm(points - center, axis=-1)


def like(array: np.ndarray, image: sitk.Image, vector: bool = False) -> sitk.Image:
    made = sitk.GetImageFromArray(array, isVector=vector)
    made.CopyInformation(image)
    return made


def linear_field(peers: SimpleNamespace, image: sitk.Image, matrix: np.ndarray, shift: np.ndarray) -> sitk.Image:
    points = peers.tools.grid_points(image)
    return like(points @ (matrix - np.eye(3)).T + shift, image, vector=True)


def test_a_shift_is_followed_from_fixed_to_moving(peers: SimpleNamespace) -> None:
    fixed = grid()
    moving = grid((30, 30, 26), (2.2, 2.1, 2.9))
    shift = np.array([6.0, -4.0, 3.0])
    masks = [like((ball(i, c, 14) > 0).astype(np.uint8), i) for i, c in ((fixed, (0, 0, 0)), (moving, tuple(shift)))]
    right, wrong = (linear_field(peers, fixed, np.eye(3), sign * shift) for sign in (1, -1))
    assert peers.measures.centroid_distance(masks[0], peers.measures.warp(masks[1], right, nearest=True)) < 0.6
    twice = peers.measures.centroid_distance(masks[0], peers.measures.warp(masks[1], wrong, nearest=True))
    assert twice == pytest.approx(2 * np.linalg.norm(shift), abs=0.5)
    dice, hausdorff = peers.measures.one_label(masks[0], peers.measures.warp(masks[1], right, nearest=True))
    assert dice > 0.95
    assert hausdorff <= 3


def test_dice_and_hausdorff_are_those_of_simpleitk(peers: SimpleNamespace) -> None:
    image = grid()
    a, b = (like((ball(image, c, r) > 0).astype(np.uint8), image) for c, r in (((0, 0, 0), 15), ((5, 2, -3), 12)))
    dice, hausdorff = peers.measures.one_label(a, b)
    overlap = sitk.LabelOverlapMeasuresImageFilter()
    overlap.Execute(a, b)
    assert dice == pytest.approx(overlap.GetDiceCoefficient())
    contours = [sitk.GetArrayFromImage(sitk.LabelContour(mask, fullyConnected=False)) > 0 for mask in (a, b)]
    maps = [
        np.abs(sitk.GetArrayFromImage(sitk.SignedMaurerDistanceMap(sitk.LabelContour(m, False), False, False, True)))
        for m in (a, b)
    ]
    expected = max(np.percentile(maps[1][contours[0]], 95), np.percentile(maps[0][contours[1]], 95))
    assert hausdorff == pytest.approx(expected, abs=0.6)


@pytest.mark.parametrize("slope", [0.3, -0.6, -1.3])
def test_folds_are_those_of_the_world_not_of_the_grid(peers: SimpleNamespace, slope: float) -> None:
    """Along an oblique direction n, u = slope · (n·x) n: det J = 1 + slope everywhere."""
    image, axis = grid(), np.array([0.6, 0.0, 0.8])
    field = linear_field(peers, image, np.eye(3) + slope * np.outer(axis, axis), np.zeros(3))
    np.testing.assert_allclose(peers.measures.determinant(field), 1 + slope, atol=1e-9)
    found = peers.measures.deformation_measures(field)
    assert found["folds_percent"] == (100 if slope < -1 else 0)


def test_the_jacobian_is_simpleitks_where_the_grid_is_not_turned(peers: SimpleNamespace) -> None:
    image = sitk.Image((20, 18, 16), sitk.sitkFloat32)
    image.SetSpacing((1.5, 2, 2.5))
    points = peers.tools.grid_points(image)
    field = like(2 * np.sin(points[..., ::-1] / 6), image, vector=True)
    expected = sitk.GetArrayFromImage(sitk.DisplacementFieldJacobianDeterminant(field))
    inner = (slice(1, -1),) * 3
    np.testing.assert_allclose(peers.measures.determinant(field)[inner], expected[inner], atol=1e-6)
    assert peers.measures.deformation_measures(field)["sdlogj"] == pytest.approx(
        np.log(peers.measures.determinant(field)).std()
    )


def test_a_pair_is_measured_on_the_grid_of_its_fixed_labels(peers: SimpleNamespace, tmp_path: Path) -> None:
    """Also of labels that are channels, and beyond the border of the field."""
    fixed, drawn, moving = grid((20, 18, 16)), grid((40, 36, 40), (1.5, 1.5, 2)), grid()
    shift = np.array([5.0, 0.0, -4.0])
    for side, image, centre in (("fixed", drawn, np.zeros(3)), ("moving", moving, shift)):
        masks = [(ball(image, tuple(centre + offset), 9) > 0).astype(np.uint8) for offset in ((12, 0, 0), (-10, 4, 0))]
        channels = [like(mask, image) for mask in masks]
        sitk.WriteImage(sitk.JoinSeries(channels), str(tmp_path / f"{side}_label.nii.gz"))
    field = linear_field(peers, fixed, np.eye(3), shift)
    sitk.WriteImage(field, str(tmp_path / "truth.nii.gz"))
    facts = peers.pairs.Facts("one", "other", True, [0], [0, 1], "rms")
    found = peers.measures.measure(tmp_path, facts, field)
    assert found["dice"] > 0.85
    assert found["tre_mm"] < 0.5
    assert found["error_mm"] < 1e-4
    before = peers.measures.measure(tmp_path, facts, linear_field(peers, fixed, np.eye(3), np.zeros(3)))
    assert before["tre_mm"] == pytest.approx(np.linalg.norm(shift), abs=0.6)
    assert before["error_mm"] == pytest.approx(np.linalg.norm(shift), abs=1e-4)


def test_a_label_that_left_the_grid_is_lost(peers: SimpleNamespace) -> None:
    image = grid()
    mask = like((ball(image, (0, 0, 0), 10) > 0).astype(np.uint8), image)
    found = peers.measures.overlap_measures([mask, mask], [mask, mask * 0])
    assert found["dice"] == 0.5
    assert found["lost"] == 1
    assert found["hd95_mm"] == 0


def write_pair(folder: Path, aligned: bool) -> None:
    """Two soft bodies; the second one is larger, on another grid if the headers do not align them."""
    fixed = grid((48, 44, 40), (1.4, 1.6, 1.8))
    moving = grid((48, 44, 40), (1.4, 1.6, 1.8)) if aligned else grid((50, 46, 44), (1.5, 1.5, 1.7))
    for side, image, radius, centre in (("fixed", fixed, 15, (0, 0, 0)), ("moving", moving, 18, (3, -2, 2))):
        organ = ball(image, (centre[0] + 5, centre[1], centre[2]), 6)
        body = 100 / (1 + np.exp(-ball(image, centre, radius) / 2)) + 60 / (1 + np.exp(-organ / 2))
        sitk.WriteImage(like(body.astype(np.float32), image), str(folder / f"{side}.nii.gz"))
    (folder / "pair.json").write_text(json.dumps({"aligned": aligned, "kind": "mr"}))


@pytest.mark.parametrize("aligned", [True, False])
def test_a_field_is_the_tools_own_image(peers: SimpleNamespace, tmp_path: Path, aligned: bool) -> None:
    """Demons, also behind an affine registration; and the check fails for what is not the image."""
    write_pair(tmp_path, aligned)
    pair, meter = peers.tools.Pair(tmp_path), peers.tools.Meter()
    field, own = peers.methods.METHODS["SimpleITK demons"].run(pair, meter)
    assert np.array_equal(pair.affine, np.eye(4)) == aligned
    assert peers.measures.disagreement(field, pair.moving, own, pair.affine) < peers.runs.AGREES
    back = like(-sitk.GetArrayFromImage(field), field, vector=True)
    assert peers.measures.disagreement(back, pair.moving, own, pair.affine) > peers.runs.AGREES
    assert not better(peers, pair, back)
    assert better(peers, pair, field)
    assert meter.wall > 0
    assert meter.cpu > 0
    assert meter.peak > 20


def better(peers: SimpleNamespace, pair: Any, field: sitk.Image) -> bool:
    """Whether a field brings the images nearer to each other."""
    still = sitk.GetArrayFromImage(sitk.Resample(pair.moving, pair.fixed))
    fixed, warped = (sitk.GetArrayFromImage(i) for i in (pair.fixed, peers.measures.warp(pair.moving, field)))
    return bool(np.abs(warped - fixed).mean() < 0.9 * np.abs(still - fixed).mean())


TOOLS = (
    "ANTs SyN (MI)",
    "ANTs SyN CC",
    "greedy NCC 100×50×10",
    "DIPY SyN CC",
    "NiftyReg NMI",
    "NiftyReg NMI, velocity",
    "convexAdam",
    "FireANTs greedy",
)


@pytest.mark.slow
@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("method", TOOLS)
def test_the_fields_of_the_tools_are_their_images(
    peers: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, aligned: bool
) -> None:
    """In their environment, if `make peers` has made it; a run fails where they are not."""
    if not peers.runs.TOOLS.is_file():
        pytest.skip("make peers has not made the tools' environment")
    if peers.methods.METHODS[method].package not in peers.runs.installed():
        pytest.skip(f"{method} could not be installed")
    monkeypatch.setattr(peers.runs, "DATA", tmp_path / "data")
    write_pair(tmp_path, aligned)
    run = peers.runs.Run("brain_2mm", tmp_path, method)
    run.run()
    known = json.loads(run.result.read_text())
    field, own = (sitk.ReadImage(str(run.folder / f"{name}.nii.gz")) for name in ("field", "own"))
    back = like(-sitk.GetArrayFromImage(field), field, vector=True)
    moving = peers.tools.Pair(tmp_path).moving
    wrong = peers.measures.disagreement(back, moving, own, np.asarray(known["affine"]))
    assert wrong > max(1.5, 3 * known["disagreement"])


def test_time_and_memory_are_those_of_the_block(peers: SimpleNamespace) -> None:
    meter = peers.tools.Meter()
    with meter:
        block = np.ones(50 * 2**20, dtype=np.uint8)
    with meter:
        total = sum(i for i in range(10**6))
    assert block.size
    assert total
    assert 0 < meter.cpu < 5
    assert meter.cpu <= 1.5 * meter.wall * 8


def rows(dice: float, tre: float, seconds: float, others: float = 0.0, count: int = 1) -> list[dict[str, float]]:
    row = {"dice": dice, "tre_mm": tre, "hd95_mm": 3.0, "sdlogj": 0.1, "folds_percent": 0.0, "lost": 0.0}
    return [row | {"seconds": seconds, "cpu_seconds": 2 * seconds, "peak_mib": 300, "others": others}] * count


def test_goals_are_read_from_the_rows(peers: SimpleNamespace) -> None:
    found = {
        "brain_2mm": {
            "": rows(0.52, 3.5, math.nan),
            "ANTs SyN (MI)": rows(0.66, 2.4, 8.0),
            "DIPY SyN CC": rows(0.79, 1.9, 45.0),
            "RegZoo": rows(0.78, 1.6, 4.5),
        }
    }
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in peers.report.goal_table(found).splitlines()]
    asked = {line[2]: line[3:] for line in lines[2:]}
    assert asked["Dice ≥ 0.77"] == ["0.780", "met"]
    assert asked["TRE, mm ≤ 1.55"] == ["1.60", "missed"]
    assert asked["s ≤ 0.5 × 8.0 (0.5 × ANTs SyN (MI))"] == ["4.5", "missed"]
    # DIPY is ahead, but takes ten times as long.
    assert asked["no peer ahead in 10 × the time"] == ["none", "met"]
    found["brain_2mm"]["DIPY SyN CC"] = rows(0.79, 1.9, 44.0)
    assert "DIPY SyN CC Dice 0.790" in peers.report.goal_table(found)


def test_a_busy_machine_is_marked(peers: SimpleNamespace) -> None:
    quiet, busy = rows(0.7, 2, 10.0), rows(0.7, 2, 10.0, others=0.5)
    assert "10.0*" not in peers.report.table({"": rows(0.5, 3, math.nan), "convexAdam": quiet})
    text = peers.report.table({"": rows(0.5, 3, math.nan), "convexAdam": busy})
    assert "10.0*" in text
    assert "CPU-seconds" in text
    assert "over 3 pairs" in peers.report.table({"": rows(0.5, 3, math.nan, count=3)})


def test_a_run_is_done_again_when_its_recipe_changes(
    peers: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peers.runs, "DATA", tmp_path)
    pair = tmp_path / "pair"
    pair.mkdir()
    write_pair(pair, aligned=True)
    run = peers.runs.Run("brain_2mm", pair, "")
    assert not run.is_done()
    run.run()
    assert run.is_done()
    sitk.WriteImage(sitk.ReadImage(str(pair / "fixed.nii.gz")) * 2, str(pair / "fixed.nii.gz"))
    assert not run.is_done()
    methods = peers.methods
    assert peers.runs.recipe(methods.METHODS["FireANTs SyN"]) != peers.runs.recipe(methods.METHODS["FireANTs greedy"])
