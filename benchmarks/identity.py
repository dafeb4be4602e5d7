"""How far the released networks move an image that is registered to itself: nothing should move.

Made on phantoms with a seed of their own, so that no training has seen them. ``python benchmarks/identity.py`` takes
about a minute on two cores and prints a table.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path

import numpy as np
from comparison import markdown
from regzoo.case import SIDES
from regzoo.datasets import load_records
from regzoo.inference import Registrar
from regzoo.spatial import Grid, as_tensor, centroids, label_values, read_image, read_label_file, to_channels
from regzoo_phantoms import embedded_phantoms
from trainings import BUNDLES, phantom_kind

#: Kind of phantoms → the parameter that counts those to train on, the voxel size (mm), and the modalities in a pair.
PHANTOMS = {
    "prostate": ("pairs", 1.6, ("TRUS", "MR")),
    "abdomen": ("cases", 3.0, ("CT",)),
    "hippocampus": ("cases", 1.0, ("MR",)),
}
#: Not the seed of the trainings.
SEED = 1


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="Displacement of an image that is registered to itself.")
    parser.add_argument("--bundles", nargs="*", default=sorted(path.name for path in BUNDLES.iterdir()))
    parser.add_argument("--cases", type=int, default=6, help="phantoms of each kind (default: 6)")
    parser.add_argument("--coarser", type=float, default=1.0, help="factor of the phantoms' voxel size (default: 1)")
    options = parser.parse_args()
    lines = [["Bundle", "Image", "Displacement, mm: median", "90 %", "Dice with itself", "Centroids move, mm"]]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for bundle in options.bundles:
            kind = phantom_kind(bundle)
            count, spacing, images = PHANTOMS[kind]
            parameters = {count: 2, "held_out": options.cases, "seed": SEED, "spacing": spacing * options.coarser}
            records = load_records(embedded_phantoms(folder / kind, kind, **parameters), "val")
            registrar = Registrar(BUNDLES / bundle, device="cpu")
            for side, image in zip(SIDES, images, strict=False):
                files = {str(r[side.image]): str(r[side.label]) for r in records[: options.cases]}
                rows = [measure(registrar, path, label, folder) for path, label in files.items()]
                shown = [f"{value:.2f}" if np.isfinite(value) else "no field" for value in np.mean(rows, axis=0)]
                lines.append([f"`{bundle}`", image, *shown])
    print(markdown(lines))


def measure(registrar: Registrar, image: str, label: str, folder: Path) -> tuple[float, float, float, float]:
    """Register an image to a copy of itself.

    Args:
        registrar: a bundle with its weights.
        image, label: files; the label may be a map or a 4-D file.
        folder: for the copy.

    Returns:
        Median and 90th percentile of the displacement in the body or, if the first label is a gland, in the gland, mm,
        NaN without a field; mean Dice of the labels with themselves; mean distance of their centroids, mm.
    """
    copy = folder / f"copy_of_{Path(image).name}"
    shutil.copy(image, copy)
    both = {"fixed_label": label} if registrar.aligns_by_organ else {}
    result = registrar.register(image, copy, label, **both)
    file = read_label_file(label)
    masks = as_tensor(to_channels(file.volume, label_values(file.volume)) if file.is_map else file.volume).numpy() > 0
    there = masks.any(axis=(1, 2, 3))
    assert result.warped_label is not None
    warped = result.warped_label.numpy() > 0
    dice = 2 * (masks & warped).sum((1, 2, 3))[there] / (masks.sum((1, 2, 3)) + warped.sum((1, 2, 3)))[there]
    affine = result.warped_label.affine
    places = [centroids(result.warped_label.new_tensor(m.astype(np.float32)), affine).numpy() for m in (masks, warped)]
    shift = np.linalg.norm(places[0] - places[1], axis=1)[there]
    if result.transformation is None:
        return np.nan, np.nan, float(dice.mean()), float(np.nanmean(shift))
    values = as_tensor(read_image(image))[0].numpy()
    region = values > -500 if values.min() < -500 else masks[0]
    size = np.linalg.norm(result.field.displacement.numpy(), axis=0)[region]
    assert result.field.grid.same_as(Grid.of(read_image(image)))
    return float(np.median(size)), float(np.percentile(size, 90)), float(dice.mean()), float(np.nanmean(shift))


if __name__ == "__main__":
    main()
