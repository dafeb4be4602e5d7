"""Quality-control pictures: orientation, what they show, and the handler that draws them."""

from __future__ import annotations

import warnings
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
from monai.engines import IterationEvents
from regzoo.errors import RegZooError
from regzoo.report import FigureWriter, case_figure, summary_figure, write_csv
from regzoo.report.boxplots import _paired_boxes
from regzoo.report.figures import file_name
from regzoo.report.picture import Picture
from regzoo.report.planes import PLANES, Orientation
from regzoo.report.volumes import Deformation
from regzoo_tools.checking.sheet import Thumbnail, contact_sheet
from scipy.ndimage import gaussian_filter

SHAPE = (21, 17, 15)
FIXED, MOVING, FOLDED, PROPAGATED = (53, 208, 255), (255, 176, 46), (125, 255, 58), (255, 95, 176)


def affine_of(codes: str, spacing: tuple[float, float, float] = (1.0, 1.5, 2.0), tilt: float = 0.0) -> np.ndarray:
    """An affine whose axes run to the given directions, optionally tilted about the first axis (radians)."""
    affine = np.eye(4)
    affine[:3, :3] = nib.orientations.inv_ornt_aff(nib.orientations.axcodes2ornt(codes), SHAPE)[:3, :3]
    turn = np.array([[1, 0, 0], [0, np.cos(tilt), -np.sin(tilt)], [0, np.sin(tilt), np.cos(tilt)]])
    affine[:3, :3] = turn @ affine[:3, :3] * spacing
    return affine


def case(folded: bool = False) -> dict[str, Any]:
    """A case on an RAS grid of `SHAPE`; the gland's centroid is a voxel."""
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


def item_of(
    fixed: np.ndarray,
    moving: np.ndarray,
    warped: np.ndarray | None = None,
    fixed_label: np.ndarray | None = None,
    moving_label: np.ndarray | None = None,
    warped_label: np.ndarray | None = None,
    ddf: np.ndarray | None = None,
    affine: np.ndarray | None = None,
    probability: np.ndarray | None = None,
    label_map: bool = False,
) -> dict[str, Any]:
    """A case of volumes (X, Y, Z) and labels (X, Y, Z) or (C, X, Y, Z), for voxels of 1 mm if it has no affine."""
    volumes = {"reference_image": fixed, "unregistered_image": moving, "warped_image": warped, "ddf": ddf}
    volumes |= {"reference_label": fixed_label, "unregistered_label": moving_label, "warped_label": warped_label}
    volumes["probability"] = probability
    item: dict[str, Any] = {"case": "case", "moving_label_is_map": label_map, "labels_predicted": warped is None}
    for key, volume in volumes.items():
        if volume is not None:
            values = torch.from_numpy(np.ascontiguousarray(volume, dtype=np.float32))
            item[key] = MetaTensor(
                values if values.ndim == 4 else values[None], affine=np.eye(4) if affine is None else affine
            )
    return item


def registration_figure(path: Path, *volumes: np.ndarray, **more: Any) -> None:
    case_figure(path, item_of(*volumes, **more))


def pixels(path: Path) -> np.ndarray:
    return (imread(path)[..., :3] * 255).round().astype(int)


def count(picture: Path | np.ndarray, color: tuple[int, int, int]) -> int:
    array = pixels(picture) if isinstance(picture, Path) else picture
    return int((np.abs(array - color).max(-1) <= 3).sum())


def propagated() -> dict[str, Any]:
    """`case` with labels that were propagated without a transformation."""
    given = {key: value for key, value in case().items() if key not in ("warped", "ddf")}
    return given | {"probability": np.stack([gaussian_filter(label, 0.8) for label in given["warped_label"]])}


def columns(path: Path, number: int = 3) -> list[np.ndarray]:
    """The panels of each column of a picture, without headings and legend."""
    picture = pixels(path)[round(0.78 * 120) : round(-0.42 * 120)]
    starts = [round((0.34 + i * 2.4) * 120) for i in range(number)]
    return [picture[:, start : start + round(2.35 * 120)] for start in starts]


@pytest.mark.parametrize("codes", ["RAS", "LPS", "PIR", "SLA", "AIL"])
def test_orientation_keeps_every_voxel_where_it_is_in_the_world(codes: str) -> None:
    affine = affine_of(codes, tilt=0.3)
    turn = Orientation(affine)
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
    deformation, axial = Deformation(torch.from_numpy(ddf), turn), PLANES[0]
    found = np.stack([deformation.plane(axial, np.array([0, 0, z])) for z in range(turned.shape[3])], axis=3)
    np.testing.assert_allclose(
        np.einsum("ji,jxyz->ixyz", np.stack(steps), found), turn.volume(in_world), rtol=1e-6, atol=1e-5
    )


def test_the_same_anatomy_gives_the_same_picture_however_it_is_stored(tmp_path: Path) -> None:
    reference = affine_of("RAS")
    original = case()
    registration_figure(tmp_path / "ras.png", **original, affine=reference)
    image = nib.Nifti1Image(original["fixed"], reference)
    for codes in ("LPS", "SLA"):
        change = nib.orientations.ornt_transform(nib.io_orientation(reference), nib.orientations.axcodes2ornt(codes))
        other = image.as_reoriented(change).affine
        stored = {k: nib.apply_orientation(np.moveaxis(v, range(-3, 0), range(3)), change) for k, v in original.items()}
        stored = {k: np.moveaxis(v, range(3), range(-3, 0)) for k, v in stored.items()}
        matrix = np.linalg.inv(other[:3, :3]) @ reference[:3, :3]
        stored["ddf"] = np.einsum("ij,jxyz->ixyz", matrix, stored["ddf"])
        path = tmp_path / f"{codes}.png"
        registration_figure(path, **stored, affine=other)
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


def test_labels_propagated_without_a_transformation(tmp_path: Path) -> None:
    full, path = tmp_path / "full.png", tmp_path / "propagated.png"
    registration_figure(full, **case(), affine=affine_of("RAS"))
    registration_figure(path, **propagated(), affine=affine_of("RAS"))
    assert pixels(path).shape[1] < 0.65 * pixels(full).shape[1]
    fixed, unregistered, result = columns(path)
    assert all(count(column, FIXED) > 100 for column in (fixed, unregistered))
    assert [count(column, MOVING) > 100 for column in (fixed, unregistered, result)] == [False, True, False]
    assert [count(column, PROPAGATED) > 100 for column in (fixed, unregistered, result)] == [False, False, True]
    assert count(path, FOLDED) == 0 == count(full, PROPAGATED)
    # The legend names all three.
    legend = pixels(path)[round(-0.42 * 120) :]
    assert all(count(legend, color) > 20 for color in (FIXED, MOVING, PROPAGATED))


def test_propagated_labels_are_shown_on_the_fixed_image(tmp_path: Path) -> None:
    volumes = {key: case()[key] for key in ("fixed", "moving")}
    registration_figure(tmp_path / "none.png", **volumes, warped_label=np.zeros(SHAPE))
    fixed, unregistered, result = columns(tmp_path / "none.png")
    # Letters at the edges are only on the fixed image.
    assert (fixed != result).mean() < 0.02 and (fixed != unregistered).mean() > 0.5


def test_probability_shows_small_labels_and_hides_none(tmp_path: Path) -> None:
    volumes = {key: case()[key] for key in ("fixed", "moving")}
    gland, cyst = case()["fixed_label"] * 0.9
    zone, nothing = np.where(np.arange(SHAPE[0])[:, None, None] < 11, gland, 0), np.zeros(SHAPE)

    def result(*probability: np.ndarray) -> np.ndarray:
        path = tmp_path / "p.png"
        registration_figure(path, **volumes, fixed_label=case()["fixed_label"], probability=np.stack(probability))
        return columns(path)[2]

    def tinted(*probability: np.ndarray) -> float:
        """The share of the third column that a probability changes."""
        return float((np.abs(result(*probability) - result(nothing)).max(-1) > 12).mean())

    alone, small = tinted(gland), tinted(cyst)
    assert alone > 5 * small > 0
    assert tinted(gland, zone, cyst) == pytest.approx(small, rel=0.02)
    assert tinted(gland, nothing) == tinted(nothing) == 0
    # Half of it, give or take the antialiasing of releases of matplotlib.
    assert 0.3 * alone < tinted(gland, zone) < 0.72 * alone


def test_facts_of_propagated_labels() -> None:
    def shifted(labels: np.ndarray, voxels: int, axis: int) -> np.ndarray:
        return np.concatenate([labels[:1], np.roll(labels[1:], voxels, axis)])

    given = propagated()

    def item(labels: dict[str, np.ndarray], affine: np.ndarray | None = None) -> dict[str, Any]:
        named = {f"{key}_label": label for key, label in labels.items()}
        return item_of(given["fixed"], given["moving"], **named, affine=affine)

    gland, cyst = given["fixed_label"]
    labels = np.stack([gland, cyst, np.roll(cyst, 2, 2)])
    everything = {"fixed": labels, "warped": shifted(labels, 1, 2), "moving": shifted(labels, 2, 3)}
    # Array axes run to P, I, R with voxels of 1, 1.5 and 2 mm: two voxels before, one after.
    picture = Picture(item(everything, affine_of("PIR")))
    assert picture.facts() == "gland DSC 1.00 → 1.00   ·   landmark TRE 4.0 → 1.5 mm"
    everything["warped"][1] = 0
    picture = Picture(item(everything, affine_of("PIR")))
    assert picture.facts().endswith("landmark TRE 4.0 → 1.5 mm   ·   1 of 3 labels not found")
    single = {key: label[:1] for key, label in everything.items()}
    assert Picture(item(single)).facts() == "DSC 1.00 → 1.00"  # of whatever it is
    del everything["fixed"]
    assert Picture(item(everything)).facts() == "1 of 3 labels not found"


def test_a_single_label_outside_the_planes_is_dotted(tmp_path: Path) -> None:
    start = np.zeros((2, *SHAPE))
    start[0, 4, 4, 4], start[1, 12, 12, 11] = 0.3, 1  # the moving voxel is smaller than a fixed one
    volumes = {key: case()[key] for key in ("fixed", "moving")}
    for name, both in (("one", False), ("two", True)):
        moving, warped = (np.stack([label] * 2) if both else label for label in start)
        registration_figure(tmp_path / f"{name}.png", **volumes, moving_label=moving, warped_label=warped)
    # The planes go through the propagated voxel, a diamond one voxel wide.
    found = {name: [count(c, MOVING) for c in columns(tmp_path / f"{name}.png")] for name in ("one", "two")}
    assert found["one"][1] > 10 > found["two"][1] == 0
    assert all(count(columns(tmp_path / f"{name}.png")[2], PROPAGATED) > 10 for name in found)


def test_constant_and_empty_input(tmp_path: Path) -> None:
    flat = np.full(SHAPE, 3.0)
    label = np.zeros((2, *SHAPE))
    holes = flat.copy()
    holes[:5] = np.nan
    registration_figure(tmp_path / "flat.png", flat, flat, holes, label, label, label[0], np.zeros((3, *SHAPE)))
    assert pixels(tmp_path / "flat.png").std() > 1


@pytest.mark.parametrize("name", ["a$%$b", "M\udcfcller", "日本"])
def test_the_name_of_a_case_may_be_any_file_name(name: str, tmp_path: Path) -> None:
    flat = np.full(SHAPE, 3.0)
    thumbnail = Thumbnail(name, {"fixed": np.zeros((9, 9), np.uint8)}, {})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        case_figure(tmp_path / "case.png", item_of(flat, flat, flat) | {"case": name})
        contact_sheet(tmp_path / "sheet.png", [thumbnail], name)
    for picture in ("case.png", "sheet.png"):
        assert pixels(tmp_path / picture).std() > 1


def test_drawing_in_threads(tmp_path: Path) -> None:
    paths = [tmp_path / f"{i}.png" for i in range(3)]
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda path: registration_figure(path, **case()), paths))
    registration_figure(tmp_path / "alone.png", **case())
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
        engine.state.output = [output for _, output in data]
        engine.fire_event(IterationEvents.MODEL_COMPLETED)
        return engine.state.output

    data = [[item("case000001", True), item("a/b: c", False)], [item("case000003", False)]]
    evaluator = Engine(step)
    evaluator.register_events(*IterationEvents)
    FigureWriter(tmp_path / "all").attach(evaluator)
    FigureWriter(tmp_path / "two", limit=2).attach(evaluator)
    evaluator.run(data)
    assert sorted(p.name for p in (tmp_path / "all").iterdir()) == ["a_b_c.png", "case000001.png", "case000003.png"]
    assert sorted(p.name for p in (tmp_path / "two").iterdir()) == ["a_b_c.png", "case000001.png"]
    assert count(tmp_path / "all" / "case000001.png", FIXED) > 300
    assert count(tmp_path / "all" / "case000003.png", FIXED) == 0
    labels_only = {k: v for k, v in (data[0][0][0] | data[0][0][1]).items() if k not in ("warped_image", "ddf")}
    case_figure(
        tmp_path / "labels.png", labels_only | {"probability": labels_only["warped_label"], "labels_predicted": True}
    )
    assert count(tmp_path / "labels.png", PROPAGATED) > 300
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
    rows = [[f"case{i}", *row.tolist()] for i, row in enumerate(values)]
    write_csv(table, header, rows)
    summary_figure(tmp_path / "all.png", table)
    write_csv(table, header[:3], [row[:3] for row in rows])
    summary_figure(tmp_path / "one.png", table)
    assert pixels(tmp_path / "all.png").shape[1] > 1.5 * pixels(tmp_path / "one.png").shape[1]
    write_csv(table, header[:3], [[*row[:2], np.nan] for row in rows])  # as where a label was predicted, not a field
    summary_figure(tmp_path / "before.png", table)
    with pytest.raises(RegZooError, match="cannot be read"):
        summary_figure(tmp_path / "no.png", tmp_path / "missing.csv")
    write_csv(table, ["case", "tre"], [["a", 1.0]])
    with pytest.raises(RegZooError, match=r"cases.csv: has no metric with a column before_<metric>; evaluate"):
        summary_figure(tmp_path / "no.png", table)
    assert not (tmp_path / "no.png").exists()


def test_of_a_label_map_no_label_comes_first() -> None:
    """The planes go through the largest, and the picture tells the mean Dice."""
    volumes = case()
    images = {key: volumes[key] for key in ("fixed", "moving", "warped")}
    labels = {key: volumes[f"{key}_label"][::-1].copy() for key in ("fixed", "moving", "warped")}
    labels["fixed"][0] = 0
    labels["fixed"][0, 2:4, 2:4, 2:4] = 1  # far from the gland, which is now the second
    named = {f"{key}_label": label for key, label in labels.items()}
    first, of_map = (Picture(item_of(**images, **named, label_map=known)) for known in (False, True))
    # The picture's axes run to the left; those of the case run to the right.
    assert tuple(first.center) == (SHAPE[0] - 3, 2, 2) and tuple(of_map.center) == (SHAPE[0] - 11, 8, 7)
    scores = []
    for moved in ("moving", "warped"):
        pairs = [(labels["fixed"][channel] > 0, labels[moved][channel] > 0) for channel in range(2)]
        scores.append(np.mean([2 * (a & b).sum() / (a.sum() + b.sum()) for a, b in pairs]))
    assert of_map.facts() == f"mean DSC {scores[0]:.2f} → {scores[1]:.2f}"
    assert first.facts().startswith("gland DSC 0.00 → 0.00")
