"""Quality-control pictures: orientation, what they show, and the handler that draws them."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from ignite.engine import Engine
from matplotlib.figure import Figure
from matplotlib.image import imread
from monai.data import MetaTensor
from regzoo.errors import RegZooError
from regzoo.report import FigureWriter, case_figure, registration_figure, summary_figure, write_csv
from regzoo.report.boxplots import _paired_boxes
from regzoo.report.figures import file_name
from regzoo.report.planes import PLANES, Orientation
from scipy.ndimage import gaussian_filter

SHAPE = (21, 17, 15)
FIXED, MOVING, FOLDED = (53, 208, 255), (255, 176, 46), (125, 255, 58)


def affine_of(codes: str, spacing: tuple[float, float, float] = (1.0, 1.5, 2.0), tilt: float = 0.0) -> np.ndarray:
    """An affine whose axes run to the given directions, optionally tilted about the first axis (radians)."""
    affine = np.eye(4)
    affine[:3, :3] = nib.orientations.inv_ornt_aff(nib.orientations.axcodes2ornt(codes), SHAPE)[:3, :3]
    turn = np.array([[1, 0, 0], [0, np.cos(tilt), -np.sin(tilt)], [0, np.sin(tilt), np.cos(tilt)]])
    affine[:3, :3] = turn @ affine[:3, :3] * spacing
    return affine


def case(folded: bool = False) -> dict[str, Any]:
    """A case on a RAS grid of `SHAPE`; the gland's centroid is a voxel."""
    rng = np.random.default_rng(0)
    gland, cyst = np.zeros(SHAPE), np.zeros(SHAPE)
    gland[6:15, 5:12, 4:11], cyst[8:11, 6:9, 6:9] = 1, 1
    ddf = np.stack([gaussian_filter(rng.normal(size=SHAPE), 4) * 8 for _ in range(3)]).astype(np.float32)
    if folded:
        ddf[0, 9:12, 7:10, 6:9] += [[[2.5]], [[0.0]], [[-2.5]]]
    labels = np.stack([gland, cyst])
    noise = {k: gaussian_filter(rng.normal(size=SHAPE), 1) for k in ("fixed", "moving", "warped")}
    return noise | {
        "fixed_label": labels,
        "moving_label": np.roll(labels, 2, 1),
        "warped_label": np.roll(labels, 1, 2),
        "ddf": ddf,
    }


def pixels(path: Path) -> np.ndarray:
    return (imread(path)[..., :3] * 255).round().astype(int)


def count(path: Path, color: tuple[int, int, int]) -> int:
    return int((np.abs(pixels(path) - color).max(-1) <= 3).sum())


@pytest.mark.parametrize("codes", ["RAS", "LPS", "PIR", "SLA", "AIL"])
def test_orientation_keeps_every_voxel_where_it_is_in_the_world(codes: str) -> None:
    affine = affine_of(codes, tilt=0.3)
    turn = Orientation.of(affine)
    index = np.stack(np.meshgrid(*[np.arange(n) for n in SHAPE], indexing="ij"))
    world = np.moveaxis(nib.affines.apply_affine(affine, np.moveaxis(index, 0, -1)), -1, 0)
    turned = turn.volume(world)
    # Going up an axis leads left, to the front, up.
    steps = [np.diff(turned, axis=1 + axis).reshape(3, -1)[:, 0] for axis in range(3)]
    assert [int(np.abs(step).argmax()) for step in steps] == [0, 1, 2]
    assert steps[0][0] < 0 < min(steps[1][1], steps[2][2])
    # A displacement in voxels of the turned grid is the same displacement in the world.
    ddf = np.random.default_rng(1).normal(size=(3, *SHAPE))
    in_world = np.einsum("ij,jxyz->ixyz", affine[:3, :3], ddf)
    np.testing.assert_allclose(
        np.einsum("ji,jxyz->ixyz", np.stack(steps), turn.field(ddf)), turn.volume(in_world), atol=1e-9
    )


def test_the_same_anatomy_gives_the_same_picture_however_it_is_stored(tmp_path: Path) -> None:
    reference = affine_of("RAS")
    original = case()
    registration_figure(tmp_path / "ras.png", **original, spacing=(1.0, 1.5, 2.0), title="case", affine=reference)
    image = nib.Nifti1Image(original["fixed"], reference)
    for codes in ("LPS", "SLA"):
        change = nib.orientations.ornt_transform(nib.io_orientation(reference), nib.orientations.axcodes2ornt(codes))
        other = image.as_reoriented(change).affine
        stored = {k: nib.apply_orientation(np.moveaxis(v, range(-3, 0), range(3)), change) for k, v in original.items()}
        stored = {k: np.moveaxis(v, range(3), range(-3, 0)) for k, v in stored.items()}
        matrix = np.linalg.inv(other[:3, :3]) @ reference[:3, :3]
        stored["ddf"] = np.einsum("ij,jxyz->ixyz", matrix, stored["ddf"])
        spacing = np.linalg.norm(other[:3, :3], axis=0)
        path = tmp_path / f"{codes}.png"
        registration_figure(path, **stored, spacing=spacing, title="case", affine=other)
        assert np.abs(pixels(path) - pixels(tmp_path / "ras.png")).mean() < 0.05


@pytest.mark.parametrize("corner", ["right anterior superior", "left posterior inferior"])
def test_radiological_convention(tmp_path: Path, corner: str) -> None:
    # Array axes run to R, A, S; the picture shows the whole 20 mm cube in three squares 2.35 inches wide.
    start = 14 if corner.startswith("right") else 3
    blob = np.zeros((21, 21, 21))
    blob[(slice(start, start + 3),) * 3] = 1
    flat = np.zeros_like(blob)
    path = tmp_path / "corner.png"
    registration_figure(path, blob, flat, flat, fixed_label=blob, affine=np.eye(4))
    first_column = pixels(path)[:, : round(2.7 * 120)]
    white = (first_column >= 254).all(-1)
    x = (0.34 + 2.35 / 2) * 120
    for row, plane in enumerate(PLANES):
        y = (0.78 + 2.35 / 2 + row * 2.4) * 120
        mine = white[round(y - 130) : round(y + 130)]
        vertical, horizontal = np.argwhere(mine).mean(0) - (130, x)
        assert abs(vertical) > 40 < abs(horizontal), plane.name
        # Right and anterior on the left of the picture, anterior and superior at the top.
        assert (horizontal < 0) == (vertical < 0) == corner.startswith("right"), plane.name


def test_what_is_marked(tmp_path: Path) -> None:
    smooth, folded, bare = (tmp_path / f"{n}.png" for n in ("smooth", "folded", "bare"))
    registration_figure(smooth, **case(), affine=affine_of("RAS"))
    registration_figure(folded, **case(folded=True), affine=affine_of("RAS"))
    only_images = {k: v for k, v in case().items() if k in ("fixed", "moving", "warped")}
    registration_figure(bare, **only_images)
    assert count(smooth, FIXED) > 300 < count(smooth, MOVING)
    # The legend has a patch of the colour, folded voxels come on top.
    assert count(folded, FOLDED) > 1.5 * count(smooth, FOLDED) > 0
    assert count(bare, FIXED) == count(bare, MOVING) == count(bare, FOLDED) == 0
    assert pixels(bare).shape[1] < pixels(smooth).shape[1]
    assert not list(tmp_path.glob(".partial*"))


def test_constant_and_empty_input(tmp_path: Path) -> None:
    flat = np.full(SHAPE, 3.0)
    label = np.zeros((2, *SHAPE))
    holes = flat.copy()
    holes[:5] = np.nan
    registration_figure(tmp_path / "flat.png", flat, flat, holes, label, label, label[0], np.zeros((3, *SHAPE)))
    assert pixels(tmp_path / "flat.png").std() > 1


def test_drawing_in_threads(tmp_path: Path) -> None:
    paths = [tmp_path / f"{i}.png" for i in range(3)]
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda path: registration_figure(path, **case(), title="case"), paths))
    registration_figure(tmp_path / "alone.png", **case(), title="case")
    for path in paths:
        assert (pixels(path) == pixels(tmp_path / "alone.png")).all()


def test_handler_draws_the_cases_of_an_evaluator(tmp_path: Path) -> None:
    def item(name: str, full: bool) -> tuple[dict[str, Any], dict[str, Any]]:
        volumes = {k: torch.from_numpy(np.asarray(v, dtype=np.float32)) for k, v in case().items()}
        affine = torch.from_numpy(affine_of("LPS"))
        batch = {"case": name, "reference_image": MetaTensor(volumes["fixed"][None], affine=affine)}
        output = {"unregistered_image": volumes["moving"][None], "warped_image": volumes["warped"][None]}
        if full:
            batch["reference_label"] = volumes["fixed_label"]
            output |= {"unregistered_label": volumes["moving_label"], "warped_label": volumes["warped_label"]}
            output["ddf"] = volumes["ddf"]
        return batch, output

    def step(engine: Engine, data: list[tuple[dict[str, Any], dict[str, Any]]]) -> list[dict[str, Any]]:
        engine.state.batch = [batch for batch, _ in data]
        return [output for _, output in data]

    data = [[item("case000001", True), item("a/b: c", False)], [item("case000003", False)]]
    evaluator = Engine(step)
    FigureWriter(tmp_path / "all").attach(evaluator)
    FigureWriter(tmp_path / "two", limit=2).attach(evaluator)
    evaluator.run(data)
    assert sorted(p.name for p in (tmp_path / "all").iterdir()) == ["a_b_c.png", "case000001.png", "case000003.png"]
    assert sorted(p.name for p in (tmp_path / "two").iterdir()) == ["a_b_c.png", "case000001.png"]
    assert count(tmp_path / "all" / "case000001.png", FIXED) > 300
    assert count(tmp_path / "all" / "case000003.png", FIXED) == 0
    with pytest.raises(KeyError, match="warped_image"):
        case_figure(tmp_path / "no.png", {**data[0][0][0], "unregistered_image": torch.zeros(1, *SHAPE)})


def test_file_names_stay_in_their_folder() -> None:
    assert file_name("../../etc/passwd") == "etc_passwd"
    assert file_name("case000001") == "case000001"
    assert file_name("...") == "case"


def test_box_plots_follow_tukey() -> None:
    axes = Figure().subplots()
    values = np.array([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 30.0])
    _paired_boxes(axes, values, values / 2)
    heights = [np.asarray(line.get_ydata(), dtype=float) for line in axes.lines]
    # The whisker ends at the last value within 1.5 box lengths (5.5 - 2.5 = 3) of the box, not at the outlier.
    assert any(h.tolist() == [5.5, 6.0] for h in heights)
    assert any(h.tolist() == [4.0, 4.0] for h in heights)
    assert {text.get_text() for text in axes.texts} == {"4", "2"}


def test_summary_figure(tmp_path: Path) -> None:
    table = tmp_path / "cases.csv"
    rng = np.random.default_rng(0)
    header = ["case", "before_tre", "tre", "before_dice", "dice", "folds"]
    values = np.stack([rng.normal(m, 0.1 * m, 12) for m in (8, 3, 0.6, 0.9, 0.1)], axis=1)
    values[3, 1] = np.nan
    write_csv(table, header, [[f"case{i}", *row.tolist()] for i, row in enumerate(values)])
    summary_figure(tmp_path / "all.png", table, title="held-out pairs")
    summary_figure(tmp_path / "one.png", table, metrics=["tre"])
    assert pixels(tmp_path / "all.png").shape[1] > 1.5 * pixels(tmp_path / "one.png").shape[1]
    with pytest.raises(RegZooError, match=r"cases.csv: has no column before_folds; evaluate"):
        summary_figure(tmp_path / "no.png", table, metrics=["folds"])
    with pytest.raises(RegZooError, match="cannot be read"):
        summary_figure(tmp_path / "no.png", tmp_path / "missing.csv")
    write_csv(table, ["case", "tre"], [["a", 1.0]])
    with pytest.raises(RegZooError, match="no metric with a column before_"):
        summary_figure(tmp_path / "no.png", table)
    assert not (tmp_path / "no.png").exists()
