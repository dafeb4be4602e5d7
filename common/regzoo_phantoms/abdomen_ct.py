"""Contrast-enhanced CT of an abdomen in the portal venous phase, with its label map."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from regzoo.spatial.grid import Grid
from regzoo_phantoms.abdomen_anatomy import PITCH, VALUES, AbdomenAnatomy, oval
from regzoo_phantoms.canvas import Canvas
from regzoo_phantoms.scene import cover

AIR = -1000.0
#: Mean and spread between patients, Hounsfield units.
TISSUE = {
    "fat": (-102, 4),
    "skin": (5, 8),
    "muscle": (56, 4),
    "lung": (-840, 25),
    "blood": (48, 3),
    "fluid": (8, 4),
    "wall": (62, 5),
    "bowel": (42, 8),
    "liver": (106, 9),
    "spleen": (116, 8),
    "pancreas": (92, 8),
    "kidney": (172, 16),
    "artery": (158, 9),
    "portal": (178, 12),
    "vein": (166, 12),
    "marrow": (195, 30),
    "cortex": (620, 50),
    "disc": (88, 8),
    "cord": (28, 5),
}
#: Vertebrae that are labelled, counted from L1 upwards: L3 to T11, which are nearly always whole in the field of view.
LABELLED_VERTEBRAE = (-2, 2)


def random_contrast(rng: np.random.Generator) -> dict[str, float]:
    """Hounsfield units of a patient's tissues and stomach contents, and the level of the contents, y in mm."""
    hounsfield = {name: float(rng.normal(mean, spread)) for name, (mean, spread) in TISSUE.items()}
    hounsfield["meal"] = float(rng.choice([15.0, 35.0, 150.0], p=[0.45, 0.35, 0.2]))
    return hounsfield | {"filled": float(rng.uniform(80, 118))}


def ct_image(
    anatomy: AbdomenAnatomy,
    hounsfield: dict[str, float],
    grid: Grid,
    tissue: Callable[[np.ndarray], np.ndarray],
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """A CT and its label map.

    Args:
        hounsfield: see `random_contrast`.
        tissue: points of the image's world (3, ...) → the same tissue before breathing moved it (3, ...), RAS mm.

    Returns:
        The image, Hounsfield units, int16, and the labels, uint8, both (X, Y, Z).
    """
    canvas = Canvas(grid, lambda points: anatomy.to_body(tissue(points)), AIR)
    found = anatomy.distances(canvas.coarse)
    _paint_walls(canvas, found, hounsfield, rng)
    _paint_bowel(canvas, anatomy, found, hounsfield, rng)
    _paint_organs(canvas, found, hounsfield, rng)
    _paint_vessels(canvas, anatomy, found, hounsfield)
    _paint_spine(canvas, hounsfield, rng)
    _paint_table(canvas, anatomy)
    image = _scanned(canvas, found["skin"], rng)
    return np.clip(np.rint(image), -1024, 3071).astype(np.int16), canvas.labels


def _paint_walls(canvas: Canvas, found: dict[str, np.ndarray], hu: dict[str, float], rng: np.random.Generator) -> None:
    """Skin, fat, muscle with ribs, lungs, heart, muscles beside the spine."""
    canvas.paint(found["skin"], hu["skin"])
    canvas.paint(found["skin"] + 2.5, hu["fat"] + 7 * canvas.noise(rng))
    # Fat between the muscles of the back and the flanks.
    streaks = np.clip(canvas.noise(rng) - 1.0, 0, 1) * 80
    canvas.paint(found["wall"], hu["muscle"] - streaks)
    _paint_ribs(canvas, found, hu)
    canvas.paint(found["cavity"], hu["fat"] + 9 * canvas.noise(rng))
    canvas.paint(np.maximum(np.minimum(found["domes"], found["lungs"]) - 3, found["cavity"]), hu["muscle"])
    vessels = np.clip(canvas.noise(rng) - 1.6, 0, 1) * 420
    canvas.paint(found["lungs"], hu["lung"] + 18 * canvas.noise(rng) + vessels)
    above = 1 - found["domes"]
    canvas.paint(np.maximum(found["heart"], above), hu["wall"] + 50)
    canvas.paint(np.maximum(np.maximum(found["heart"] + 11, above + 8), -8 - canvas.coarse[0]), hu["vein"] - 10)
    canvas.paint(np.maximum(np.maximum(found["domes"], -found["domes"] - 3), found["cavity"] + 1), hu["muscle"])
    inner = np.maximum(found["cavity"] + 1, found["domes"] + 3)
    canvas.paint(inner, hu["fat"] + 9 * canvas.noise(rng))
    for side in ("right", "left"):
        canvas.paint(found[f"psoas_{side}"], hu["muscle"])
        canvas.paint(found[f"crus_{side}"], hu["muscle"])
    canvas.paint(found["sternum"], 0.6 * hu["cortex"])


def _paint_ribs(canvas: Canvas, found: dict[str, np.ndarray], hu: dict[str, float]) -> None:
    """Bands that slope down to the front in the wall, bone at the back and cartilage at the front."""
    x, y, z = canvas.coarse
    arch = np.maximum(0.75 * y - 35, -30) - z
    box = canvas.box_near(np.maximum(np.abs(found["wall"] + 6) - 4, arch))
    if box is None:
        return
    phase = canvas.lattice.up((z + 0.5 * y + 0.12 * np.abs(x)) / PITCH, box)
    phase -= np.floor(phase)
    across = (phase - np.float32(0.5)) * np.float32(PITCH / 6.5)
    along = (canvas.lattice.up(found["wall"], box) + np.float32(6.5)) * np.float32(1 / 4.2)
    rib = np.maximum((np.hypot(across, along) - 1) * np.float32(4.5), canvas.lattice.up(arch, box))
    rib = np.maximum(rib, 20 - np.abs(canvas.lattice.up(x, box)))
    front = np.clip((canvas.lattice.up(y, box) - 80) / 10, 0, 1)
    bone = np.where(rib < -2, np.float32(hu["marrow"]), np.float32(0.8 * hu["cortex"]))
    canvas.paint_box(box, rib, bone * (1 - front) + 110 * front)


def _paint_bowel(
    canvas: Canvas,
    anatomy: AbdomenAnatomy,
    found: dict[str, np.ndarray],
    hu: dict[str, float],
    rng: np.random.Generator,
) -> None:
    """Loops of small bowel in the fat of the mesentery, the colon with gas and stool, the duodenum."""
    below = np.maximum(found["cavity"] + 4, np.minimum(found["mesentery"], found["jejunum"]))
    loops, oral = anatomy.loops(canvas.coarse)
    # Walls around the loops, and oral contrast in some.
    canvas.paint(np.maximum(below, -9 * (loops + np.float32(0.08))), hu["wall"] - 8)
    lumen = np.maximum(below, 2 - 12 * (loops - np.float32(0.1)))
    canvas.paint(lumen, hu["bowel"] - 18 + np.clip(oral - np.float32(0.9), 0, 1.2) * 120)
    front = canvas.coarse[1]
    for name in ("colon_left", "colon_right"):
        tube = np.maximum(found[name], found["cavity"] + 2)
        canvas.paint(tube, hu["wall"])
        stool = hu["bowel"] + 40 * canvas.noise(rng) - np.where(canvas.noise(rng) > 0.9, 300, 0).astype(np.float32)
        canvas.paint(tube + 3, stool)
        canvas.paint(np.maximum(tube + 4, rng.uniform(85, 118) - front + 8 * canvas.noise(rng)), AIR + 40)
    canvas.paint(found["duodenum"], hu["wall"])
    canvas.paint(found["duodenum"] + 3.5, hu["bowel"] - 20)


def _paint_organs(canvas: Canvas, found: dict[str, np.ndarray], hu: dict[str, float], rng: np.random.Generator) -> None:
    """Stomach, pancreas, spleen, liver, gallbladder, kidneys."""
    canvas.paint(np.maximum(found["oesophagus"], -found["lungs"]), hu["wall"])
    canvas.paint(found["pancreas"], hu["pancreas"] + 8 * canvas.noise(rng), VALUES["pancreas"])
    canvas.paint(found["stomach"], hu["wall"] + 12, VALUES["stomach"])
    lumen = found["stomach"] + 4.5
    canvas.paint(lumen, hu["meal"] + 8 * canvas.noise(rng))
    # The patient lies on the back: gas gathers at the front.
    canvas.paint(np.maximum(lumen, np.float32(hu["filled"]) - canvas.coarse[1]), AIR + 20)
    for name in ("spleen", "liver"):
        canvas.paint(found[name], hu[name] + 2.5 * canvas.noise(rng), VALUES[name])
    canvas.paint(found["gallbladder"], hu["wall"], VALUES["gallbladder"])
    canvas.paint(found["gallbladder"] + 2, hu["fluid"])
    for side in ("right", "left"):
        cortex = np.clip(found[f"kidney_{side}"] + 7, 0, 5) * 5
        canvas.paint(
            found[f"kidney_{side}"], hu["kidney"] - 12 + cortex + 6 * canvas.noise(rng), VALUES[f"kidney_{side}"]
        )
        canvas.paint(found[f"pelvis_{side}"], 0.5 * (hu["fat"] + hu["fluid"]))


def _paint_vessels(canvas: Canvas, anatomy: AbdomenAnatomy, found: dict[str, np.ndarray], hu: dict[str, float]) -> None:
    """Every piece of every vessel in its own small box, at the voxels themselves."""
    for vessel in anatomy.vessels:
        for piece in vessel.tube.parts():
            box = canvas.box_of(*piece.bounds())
            if box is None:
                continue
            distance = piece.distance(canvas.body(box))
            if vessel.inside:
                distance = np.maximum(distance, canvas.lattice.up(found["liver"], box) + 2)
            canvas.paint_box(box, distance, hu[vessel.kind], VALUES[vessel.label] if vessel.label else 0)


def _paint_spine(canvas: Canvas, hu: dict[str, float], rng: np.random.Generator) -> None:
    """Vertebrae with arches and processes, discs and the canal."""
    box = canvas.box_of(np.array([-46.0, -70.0, -1e3]), np.array([46.0, 24.0, 1e3]))
    if box is None:
        return
    x, y, z = canvas.body(box)
    y = y + np.float32(0.0011) * np.maximum(z, 0) ** 2  # the thoracic spine bends backwards
    number = np.rint(z * np.float32(1 / PITCH))
    w = z - np.float32(PITCH) * number
    side = np.abs(x)
    column = oval(x, y, 23, 17)
    body = np.maximum(column, np.abs(w) - np.float32(12.5))
    canal = oval(x, y + 27, 10, 8.5)
    arch = np.maximum(np.maximum(oval(x, y + 28, 17, 15), -canal), np.abs(w - 1) - 11)
    spinous = np.maximum(np.maximum(side - np.float32(3.5), np.abs(y + 50) - 13), np.abs(w + 5) - 10)
    wing = np.abs(y + 25 + np.float32(0.15) * side) - 4
    transverse = np.maximum(np.maximum(wing, np.maximum(side - 40, 10 - side)), np.abs(w - 1) - 5)
    bone = np.minimum(np.minimum(body, arch), np.minimum(spinous, transverse))
    canvas.paint_box(box, np.maximum(column + 1, 12 - np.abs(w)), hu["disc"], 0)
    canvas.paint_box(box, canal, hu["cord"], 0)
    # Dense at the surface, spongy inside.
    shell = cover(-bone - 2.2, 1.2)
    texture = canvas.lattice.up(30 * canvas.noise(rng), box)
    value = hu["marrow"] + texture
    value += (hu["cortex"] - value) * shell
    lowest, highest = LABELLED_VERTEBRAE
    label = np.where((number >= lowest) & (number <= highest), VALUES["vertebrae"], 0)
    canvas.paint_box(box, bone, value, label)


def _paint_table(canvas: Canvas, anatomy: AbdomenAnatomy) -> None:
    """The table under the back; it belongs to the world, not to the body."""
    x, y, _ = canvas.lattice.points
    top = anatomy.centre[1] - 1.06 * anatomy.scale[1] * (62 + anatomy.fat) - 16
    height = canvas.lattice.up(y - np.float32(top) - np.float32(0.0006) * x * x)
    surface = np.abs(height) - np.float32(1.8)
    air = canvas.image < AIR + 60
    canvas.image += np.where(air, cover(surface, canvas.blur) * np.float32(1100), np.float32(0))


def _scanned(canvas: Canvas, skin: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The image with a scanner's noise, streaks across the thick direction, and cupping."""
    image = canvas.image
    noise = rng.standard_normal(image.shape, np.float32)
    for axis in (0, 1):  # reconstruction kernels correlate the noise in the plane
        noise = _smoothed(noise, axis)
    noise *= np.float32(rng.uniform(9, 15) / 0.375)
    streaks = canvas.noise(rng)
    for _ in range(3):
        streaks = _smoothed(streaks, 0)
    noise += canvas.lattice.up(streaks * np.float32(12))
    # Less noise in the air around the patient, and a little beam hardening inside.
    depth = np.clip(-skin * np.float32(1 / 110), 0, 1)
    noise *= canvas.lattice.up(np.float32(0.35) + np.float32(0.65) * np.clip(depth * 8, 0, 1))
    noise -= canvas.lattice.up(depth * np.float32(rng.uniform(0, 6)))
    image += noise
    return image


def _smoothed(values: np.ndarray, axis: int) -> np.ndarray:
    """Weights ¼, ½, ¼ along an axis; the ends go round, which does no harm to noise."""
    result = values * np.float32(0.5)
    for shift in (1, -1):
        result += np.float32(0.25) * np.roll(values, shift, axis)
    return result
