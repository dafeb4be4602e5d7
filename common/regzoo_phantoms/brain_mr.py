"""T1-weighted MR of a head, with its label map."""

from __future__ import annotations

import numpy as np
from regzoo.spatial.grid import Grid
from regzoo_phantoms.brain_anatomy import CORTEX, VALUES, BrainAnatomy
from regzoo_phantoms.canvas import Canvas, Lattice
from regzoo_phantoms.fields import SmoothField

#: Brightness of tissues in T1-weighted MR, 1 = white matter.
TISSUE = {
    "white": 1.0,
    "grey": 0.68,
    "fluid": 0.24,
    "thalamus": 0.84,
    "caudate": 0.7,
    "putamen": 0.77,
    "pallidum": 0.92,
    "hippocampus": 0.67,
    "brain_stem": 0.93,
    "cerebellum": 0.68,
    "scalp": 1.15,
    "bone": 0.1,
    "marrow": 0.45,
    "muscle": 0.5,
}
#: Distance between the points where the cortex's folds are drawn at random and where shapes are evaluated, mm.
FOLDS, LATTICE = 4.0, 3.0


def t1_image(anatomy: BrainAnatomy, grid: Grid, scalp: bool, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A T1-weighted image with bias field and Rician noise, and its label map.

    Args:
        scalp: whether there is a head around the brain, or nothing, as after skull stripping.

    Returns:
        The image, int16, and the labels, uint8, both (X, Y, Z).
    """
    canvas = Canvas(grid, anatomy.to_body, 0.0, LATTICE)
    tissue = {name: value * float(rng.normal(1, 0.04)) for name, value in TISSUE.items()}
    hull = anatomy.cerebrum(canvas.coarse)
    behind = np.minimum(anatomy.distance("cerebellum", canvas.coarse), anatomy.distance("brain_stem", canvas.coarse))
    brain = np.minimum(hull, behind)
    if scalp:
        _paint_head(canvas, anatomy, brain, tissue)
    _paint_cerebrum(canvas, anatomy, hull, tissue, rng)
    _paint_below(canvas, anatomy, hull, tissue)
    _paint_deep(canvas, anatomy, tissue)
    image = canvas.image
    bias = SmoothField.random(rng, length=rng.uniform(55, 90), components=1, terms=8).scaled(rng.uniform(0.05, 0.14))
    coarse = Lattice(grid, 8.0)
    image *= coarse.up(np.exp(bias(coarse.points)[0]))
    noise = np.float32(rng.uniform(0.015, 0.035))
    real = image + noise * rng.standard_normal(image.shape, np.float32)
    image = np.hypot(real, noise * rng.standard_normal(image.shape, np.float32))
    if not scalp:
        image *= canvas.lattice.up(brain) < 0.5
    scale = np.float32(rng.uniform(350, 800))
    return np.clip(np.rint(scale * image), 0, 32767).astype(np.int16), canvas.labels


def _sided(name: str, x: np.ndarray) -> np.ndarray:
    """The values of a structure with two labels: left where x < 0."""
    return np.where(x < 0, VALUES[f"{name}_left"], VALUES[f"{name}_right"])


def _paint_head(canvas: Canvas, anatomy: BrainAnatomy, brain: np.ndarray, tissue: dict[str, float]) -> None:
    """Scalp, skull, muscles, eyes and the fluid around the brain."""
    q = canvas.coarse
    head = anatomy.distance("head", q)
    soft = np.minimum(np.minimum(head, anatomy.distance("neck", q)), anatomy.distance("face", q))
    canvas.paint(soft, tissue["scalp"])
    canvas.paint(soft + 4.5, tissue["muscle"])
    skull = np.maximum(head + 6, -np.float32(58) - q[2])
    canvas.paint(np.maximum(head + 3, -np.float32(30) - q[2]), tissue["scalp"] * 0.8)
    canvas.paint(skull, tissue["bone"])
    canvas.paint(np.abs(skull + 4) - 1.3, tissue["marrow"])
    canvas.paint(np.maximum(skull + 9, -np.float32(58) - q[2]), tissue["muscle"])
    canvas.paint(np.minimum(np.maximum(skull + 9, brain - 9), brain - 2.5), tissue["fluid"])
    eye = anatomy.distance("eye", q)
    canvas.paint(eye - 5, tissue["scalp"])
    canvas.paint(eye, tissue["fluid"])


def _paint_cerebrum(
    canvas: Canvas, anatomy: BrainAnatomy, hull: np.ndarray, tissue: dict[str, float], rng: np.random.Generator
) -> None:
    """Fluid, cortex and white matter of the hemispheres."""
    box = canvas.box_near(hull)
    if box is None:
        return
    lattice = Lattice(canvas.grid, FOLDS)
    folds: np.ndarray = rng.standard_normal(lattice.shape, np.float32)
    for axis in (0, 1, 2) * 2:
        padded = np.pad(folds, [(int(a == axis),) * 2 for a in range(3)], mode="edge")
        lower, middle, upper = (np.take(padded, range(i, i + folds.shape[axis]), axis) for i in range(3))
        folds = (lower + 2 * middle + upper) / 4
    folds /= folds.std()
    q = canvas.body(box)
    outline = canvas.lattice.up(hull, box)
    pial = anatomy.pial_depth(q, lattice.up(folds, box), outline)
    canvas.paint_box(box, outline, tissue["fluid"])
    canvas.paint_box(box, -pial, tissue["grey"], _sided("cerebral_cortex", q[0]))
    canvas.paint_box(box, CORTEX - pial, tissue["white"], _sided("cerebral_white_matter", q[0]))


def _paint_below(canvas: Canvas, anatomy: BrainAnatomy, hull: np.ndarray, tissue: dict[str, float]) -> None:
    """Cerebellum with its leaves, and the brain stem."""
    cerebellum = anatomy.distance("cerebellum", canvas.coarse)
    box = canvas.box_near(cerebellum)
    if box is not None:
        fine, q = canvas.lattice.up(cerebellum, box), canvas.body(box)
        leaves = np.float32(0.1) * np.sin(fine * np.float32(1.6) + q[2] * np.float32(0.9)) * np.clip(-fine / 3, 0, 1)
        canvas.paint_box(box, fine, tissue["cerebellum"] + leaves, _sided("cerebellum", q[0]))
        canvas.paint_box(box, anatomy.distance("arbor", q), tissue["white"] * 0.97)
    stem = np.maximum(anatomy.distance("brain_stem", canvas.coarse), -hull)
    canvas.paint(stem, tissue["brain_stem"], VALUES["brain_stem"])


def _paint_deep(canvas: Canvas, anatomy: BrainAnatomy, tissue: dict[str, float]) -> None:
    """Ventricles and nuclei, each in its own box: shape, tissue, and the label; 0 removes that of the tissue around."""
    steps = (
        ("ventricle_body", "fluid", "lateral_ventricle"),
        ("ventricle_horn", "fluid", "lateral_ventricle"),
        ("hippocampus", "hippocampus", "hippocampus"),
        ("putamen", "putamen", "putamen"),
        ("pallidum", "pallidum", None),
        ("caudate", "caudate", "caudate"),
        ("thalamus", "thalamus", "thalamus"),
        ("third_ventricle", "fluid", 0),
        ("fourth_ventricle", "fluid", 0),
    )
    for name, kind, label in steps:
        low, high = anatomy.shapes[name].bounds()
        box = canvas.box_of(low * [0, 1, 1] - high * [1, 0, 0], high)
        if box is None:
            continue
        q = canvas.body(box)
        value = _sided(label, q[0]) if isinstance(label, str) else label
        canvas.paint_box(box, anatomy.distance(name, q), tissue[kind], value)
