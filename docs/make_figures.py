"""Draws the pictures of the documentation: ``python docs/make_figures.py``. Two are diagrams, one shows a phantom."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from monai.data import MetaTensor
from regzoo.datasets import load_records
from regzoo.files import atomic_path
from regzoo.spatial import DisplacementField, Grid, as_tensor, read_image, read_label_file, resample
from regzoo_phantoms import ProstatePhantoms

matplotlib.use("Agg")
import matplotlib.pyplot as plt

IMAGES = Path(__file__).resolve().parent / "images"
FIXED, MOVING, NETWORK = "tab:blue", "tab:orange", "tab:green"
#: Of the phantom shown: a pair with most labels drawn.
SEED, CASE = 4, 0


def save(figure: Any, name: str) -> None:
    """Write a figure into docs/images."""
    path = IMAGES / name
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=110)
    plt.close(figure)
    print(path)


def rectangle(axis: Any, shape: tuple[int, int], affine: np.ndarray, colour: str, style: str = "-") -> None:
    """The voxels of a 2-D grid as lines, in the world."""
    n, m = shape
    for i in range(n + 1):
        ends = np.array([[i - 0.5, -0.5, 1], [i - 0.5, m - 0.5, 1]]) @ affine.T
        strong = i in (0, n)
        axis.plot(*ends[:, :2].T, color=colour, linestyle=style, linewidth=1.8 if strong else 0.5, alpha=0.9)
    for j in range(m + 1):
        ends = np.array([[-0.5, j - 0.5, 1], [n - 0.5, j - 0.5, 1]]) @ affine.T
        strong = j in (0, m)
        axis.plot(*ends[:, :2].T, color=colour, linestyle=style, linewidth=1.8 if strong else 0.5, alpha=0.9)


def grid_matrix(origin: tuple[float, float], spacing: float, degrees: float) -> np.ndarray:
    """Voxel → world of a 2-D grid."""
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return np.array([[c * spacing, -s * spacing, origin[0]], [s * spacing, c * spacing, origin[1]], [0, 0, 1]])


def arrow(axis: Any, start: Any, end: Any, colour: str = "black", width: float = 1.8) -> None:
    """An arrow between two points of the world."""
    axis.annotate(
        "",
        xy=end,
        xytext=start,
        arrowprops={"arrowstyle": "-|>", "color": colour, "lw": width, "shrinkA": 0, "shrinkB": 0},
    )


def draw_worlds(axis: Any) -> None:
    """One place in the body and its coordinates in two worlds."""
    place = np.array([30.0, 22.0])
    for sign, colour, names in ((1, "black", ("R (+x of RAS)", "A (+y of RAS)")), (-1, "tab:red", ("L", "P"))):
        arrow(axis, (0, 0), (sign * 46, 0), colour)
        arrow(axis, (0, 0), (0, sign * 34), colour)
        suffix = "" if sign > 0 else " (+{} of LPS)"
        axis.text(
            sign * 47,
            2.0 * sign,
            names[0] + suffix.format("x"),
            color=colour,
            ha="right" if sign > 0 else "left",
            va="center",
        )
        axis.text(2, sign * 35, names[1] + suffix.format("y"), color=colour, va="center")
    axis.scatter(*place, s=55, color="tab:purple", zorder=5)
    axis.text(
        place[0] + 1.5,
        place[1] + 2.5,
        "one place in the body\nNIfTI, MONAI: (30, 22, 5) RAS mm\nITK, ANTs: (−30, −22, 5) LPS mm",
        color="tab:purple",
        ha="center",
        va="bottom",
    )
    axis.set_xlim(-52, 62)
    axis.set_ylim(-38, 42)
    axis.set_title("World: one place, two sets of signs", fontsize=12)


def draw_grids(axis: Any) -> None:
    """The grids of a pair and a displacement from fixed to moving."""
    fixed, moving = grid_matrix((12, 16), 6, 0), grid_matrix((44, 0), 7, 24)
    network = grid_matrix((9, 12.5), 9, 0)
    rectangle(axis, (9, 8), fixed, FIXED)
    rectangle(axis, (8, 8), moving, MOVING)
    rectangle(axis, (7, 6), network, NETWORK, "--")
    x = (fixed @ [3, 5, 1])[:2]
    there = (moving @ [3.3, 3.4, 1])[:2]
    arrow(axis, x, there, "black", 2.4)
    axis.scatter(*x, s=50, color=FIXED, edgecolor="black", zorder=6)
    axis.scatter(*there, s=50, color=MOVING, edgecolor="black", zorder=6)
    box = {"facecolor": "white", "alpha": 0.85, "edgecolor": "none", "pad": 1.5}
    axis.text(x[0] - 1.5, x[1] + 2.5, "fixed voxel x", ha="center", bbox=box)
    axis.text(there[0] + 2, there[1] - 7.5, "its correspondent in the\nmoving image: x + u(x)", bbox=box)
    axis.text((x[0] + there[0]) / 2 - 5, (x[1] + there[1]) / 2 - 4, "u(x)", ha="center", style="italic", bbox=box)
    axis.text(9, 70.5, "fixed image's grid: where results live", color=FIXED, va="bottom")
    axis.text(9, 74.5, "network grid: same centre, axes along R, A, S", color=NETWORK, va="bottom")
    axis.text(9, 78.5, "moving image's grid: sampled once, at x + u(x)", color=MOVING, va="bottom")
    axis.set_xlim(-2, 100)
    axis.set_ylim(-8, 84)
    axis.set_title("Direction: warped(x) = moving(x + u(x))", fontsize=12)


def frames() -> None:
    """The diagram of `conventions.md`."""
    figure, axes = plt.subplots(1, 2, figsize=(14, 6), layout="constrained", width_ratios=[1, 1.1])
    draw_worlds(axes[0])
    draw_grids(axes[1])
    for axis in axes:
        axis.set_aspect("equal")
        axis.axis("off")
    save(figure, "frames.png")


def phantom_pair() -> None:
    """The picture of `phantoms.md`: MR, ultrasound, and the MR through the true displacement, with labels."""
    with tempfile.TemporaryDirectory() as folder:
        root = ProstatePhantoms(pairs=CASE + 1, held_out=0, seed=SEED, spacing=0.8).write(Path(folder) / "phantoms")
        record = load_records(root, "train")[CASE]
        fixed, moving = (read_image(record[f"{side}_image"]) for side in ("fixed", "moving"))
        labels = [read_label_file(record[f"{side}_label"]).volume for side in ("fixed", "moving")]
        field = DisplacementField.load(root / "train" / "ddf" / f"{record['case']}.nii.gz")
    both = torch.stack([as_tensor(label).flatten(1).amax(1) > 0 for label in labels]).all(dim=0)
    fixed_label, moving_label = (MetaTensor(as_tensor(label)[both], affine=label.affine) for label in labels)
    columns = [
        ("MR (moving), unregistered", moving, moving_label),
        ("ultrasound (fixed)", fixed, fixed_label),
        ("MR after the true displacement", field.warp(moving), field.warp(moving_label)),
    ]
    target = Grid.of(fixed).network_grid((0.5, 0.5, 0.5), (188, 128, 140))
    draw_pair(columns, target, [name for name, kept in zip(record["label_names"], both, strict=True) if kept])


def draw_pair(columns: list[tuple[str, MetaTensor, MetaTensor]], target: Grid, names: list[str]) -> None:
    """Axial and sagittal slices through the gland of the ultrasound, on one grid."""
    volumes = [(title, _onto(image, target), _onto(label, target)) for title, image, label in columns]
    gland = np.argwhere(volumes[1][2][0] > 0.5).mean(axis=0).round().astype(int)
    extent = np.asarray(target.shape) * target.spacing
    heights = [extent[1] / extent[0], extent[2] / extent[1]]
    figure, axes = plt.subplots(2, 3, figsize=(13, 9), layout="constrained", height_ratios=heights)
    colours = plt.get_cmap("tab10").colors + plt.get_cmap("Set2").colors
    outlined = set()
    for column, (title, image, label) in enumerate(volumes):
        views = [
            ((slice(None), slice(None), gland[2]), (extent[0], extent[1])),
            ((gland[0], slice(None), slice(None)), (extent[1], extent[2])),
        ]
        for row, (cut, size) in enumerate(views):
            axis = axes[row, column]
            box = (0, size[0], 0, size[1])
            # An axial slice is seen from the feet: the patient's right is on the left of the page.
            shown = image[0][cut].T
            axis.imshow(shown, cmap="gray", origin="lower", extent=box, vmax=np.percentile(image[0], 99.7))
            for index, mask in enumerate(label):
                if (mask[cut] > 0.5).any():
                    axis.contour(mask[cut].T, levels=[0.5], colors=[colours[index]], linewidths=1.4, extent=box)
                    outlined.add(index)
            if row == 0:
                axis.invert_xaxis()
                axis.set_title(title, fontsize=12)
            axis.axis("off")
    handles = [plt.Line2D([], [], color=colours[i], label=names[i].replace("_", " ")) for i in sorted(outlined)]
    figure.legend(handles=handles, loc="outside lower center", ncols=5, frameon=False)
    save(figure, "phantom_pair.png")


def _onto(volume: MetaTensor, target: Grid) -> np.ndarray:
    """A volume (C, X, Y, Z) resampled onto a grid."""
    return resample(as_tensor(volume), Grid.of(volume), target).numpy()


if __name__ == "__main__":
    frames()
    phantom_pair()
