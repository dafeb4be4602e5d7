"""Draws the pictures of `monai_label.md` from the answers of a real server.

Run in the environment of ``make test-label``: ``.venv-label/bin/python docs/make_monai_label_figures.py``.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import matplotlib
import nibabel as nib
import numpy as np
from make_figures import FIXED, MOVING, save
from regzoo.datasets import Record, load_records
from regzoo.spatial import Grid, as_tensor, read_image, read_label_file, resample
from regzoo_phantoms import AbdomenPhantoms, ProstatePhantoms

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
from label_server import LabelServer

matplotlib.use("Agg")
import matplotlib.pyplot as plt

#: Of the phantoms shown; trainings have others.
SEED = 7
#: Organs shown of the CT, by their values in Learn2Reg's label maps.
ORGANS = {1: "spleen", 2: "right kidney", 3: "left kidney", 6: "liver", 7: "stomach", 8: "aorta"}


def put(record: Record, studies: Path, fixed: str, moving: str) -> None:
    """A pair, and the finished label of the moving image, as the page has them."""
    shutil.copy(record["fixed_image"], studies / f"{fixed}.nii.gz")
    shutil.copy(record["moving_image"], studies / f"{moving}.nii.gz")
    shutil.copy(record["moving_label"], studies / "labels" / "final" / f"{moving}.nii.gz")


def labels_on_fixed(record: Record) -> tuple[np.ndarray, np.ndarray]:
    """The label file of the fixed image, and that of the moving image where the headers place it: (C, X, Y, Z)."""
    target = Grid.of(read_image(record["fixed_image"]))
    fixed = read_label_file(record["fixed_label"]).volume
    moving = read_label_file(record["moving_label"]).volume
    return as_tensor(fixed).numpy(), resample(as_tensor(moving), Grid.of(moving), target, mode="nearest").numpy()


class Slice:
    """A slice of a volume along the body's axes: axial, seen from the feet.

    Args:
        file: the fixed image.
        at: a mask whose middle the slice goes through.
    """

    def __init__(self, file: str, at: np.ndarray) -> None:
        image = nib.load(file)
        self.codes = nib.orientations.io_orientation(image.affine)
        volume = self.turned(np.asarray(image.dataobj))
        self.level = round(np.argwhere(self.turned(at)).mean(axis=0)[2])
        spacing = np.asarray(nib.affines.voxel_sizes(image.affine))[np.argsort(self.codes[:, 0])]
        self.extent = (0, volume.shape[0] * spacing[0], 0, volume.shape[1] * spacing[1])
        self.shown = volume[:, :, self.level].T

    def turned(self, volume: np.ndarray) -> np.ndarray:
        """With axes nearest to R, A, S."""
        return nib.orientations.apply_orientation(volume, self.codes)

    def draw(self, axis: Any, title: str, window: tuple[float, float]) -> None:
        """The image, the patient's right on the left."""
        axis.imshow(self.shown, cmap="gray", origin="lower", extent=self.extent, vmin=window[0], vmax=window[1])
        axis.invert_xaxis()
        axis.set_title(title, fontsize=11)
        axis.axis("off")

    def outline(self, axis: Any, mask: np.ndarray, colour: Any, width: float = 1.8, style: str = "solid") -> None:
        """The border of a mask."""
        cut = self.turned(mask)[:, :, self.level].T
        if cut.any():
            axis.contour(cut, [0.5], colors=[colour], linewidths=width, linestyles=style, extent=self.extent)


def prostate(server: LabelServer, record: Record) -> None:
    """The gland of an MR in the ultrasound: unregistered, and in the answers of three bundles."""
    fixed, before = (masks[0] > 0.5 for masks in labels_on_fixed(record))
    view = Slice(record["fixed_image"], fixed)
    names = [name for name in server.names if name.startswith("prostate")]
    figure, axes = plt.subplots(1, 1 + len(names), figsize=(13, 3.1), layout="constrained")
    window = (0.0, float(np.percentile(view.shown, 99.7)))
    view.draw(axes[0], "unregistered", window)
    view.outline(axes[0], before, MOVING)
    for axis, name in zip(axes[1:], names, strict=True):
        answer = server.infer(name, "trus01", moving_image="mr01", moving_label="mr01_gland")
        assert answer.image is not None, answer.detail
        view.draw(axis, name.removeprefix("prostate_mr_trus_"), window)
        view.outline(axis, np.asarray(answer.image.dataobj) == 1, MOVING)
    for axis in axes:
        view.outline(axis, fixed, FIXED, 1.2, "dashed")
    handles = [
        plt.Line2D([], [], color=MOVING, label="gland of the MR, propagated"),
        plt.Line2D(
            [], [], color=FIXED, linestyle="dashed", label="gland drawn in the ultrasound (the server does not know it)"
        ),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=2, frameon=False)
    save(figure, "monai_label_prostate.png")


def abdomen(server: LabelServer, record: Record) -> None:
    """Organs of one CT in another: unregistered, and in the server's answer."""
    fixed, before = (labels[0] for labels in labels_on_fixed(record))
    answer = server.infer("abdominal_ct_ddmr", "ct01", moving_image="ct02", moving_label="ct02")
    assert answer.image is not None, answer.detail
    view = Slice(record["fixed_image"], fixed == 6)
    figure, axes = plt.subplots(1, 3, figsize=(13, 4.2), layout="constrained")
    colours = dict(zip(ORGANS, plt.get_cmap("tab10").colors, strict=False))
    titles = ("labels of the fixed CT", "labels of the moving CT, unregistered", "the server's answer")
    for axis, title, labels in zip(axes, titles, (fixed, before, np.asarray(answer.image.dataobj)), strict=True):
        view.draw(axis, title, (-160.0, 240.0))
        for value, colour in colours.items():
            view.outline(axis, labels == value, colour)
    handles = [plt.Line2D([], [], color=colour, label=ORGANS[value]) for value, colour in colours.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)
    save(figure, "monai_label_ct.png")


def main() -> None:
    """Start a server, ask it, draw."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        studies = folder / "studies"
        (studies / "labels" / "final").mkdir(parents=True)
        sets = (
            ProstatePhantoms(pairs=1, held_out=0, seed=SEED).write(folder / "mr", workers=1),
            AbdomenPhantoms(cases=2, held_out=0, seed=SEED, spacing=3.0).write(folder / "ct", workers=1),
        )
        pair, cts = (load_records(phantoms, "train")[0] for phantoms in sets)
        put(pair, studies, "trus01", "mr01")
        put(cts, studies, "ct01", "ct02")
        label = nib.load(pair["moving_label"])
        gland = np.asarray(label.dataobj)[..., 0].astype(np.uint8)
        nib.save(nib.Nifti1Image(gland, label.affine), studies / "mr01_gland.nii.gz")
        with LabelServer(folder / "server", studies) as server:
            prostate(server, pair)
            abdomen(server, cts)


if __name__ == "__main__":
    main()
