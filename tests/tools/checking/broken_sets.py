"""Data sets of pairs with a fault each, written without the package."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from helpers import ball, make_affine, smooth_noise, write

SHAPE, MM = (24, 24, 20), (3.0, 3.0, 3.0)


class PairSet:
    """Pairs with two labels each, the gland and a landmark, in a datalist."""

    def __init__(self, folder: Path, count: int = 4) -> None:
        self.folder = folder
        self.rows: list[dict[str, Any]] = [self._pair(number) for number in range(count)]

    def _pair(self, number: int) -> dict[str, str]:
        row = {"case": f"c{number}", "patient": f"p{number}"}
        for offset, side in enumerate(("fixed", "moving")):
            row[f"{side}_image"] = self.image(f"c{number}_{side}", 2 * number + offset)
            row[f"{side}_label"] = self.label(f"c{number}_{side}_label")
        return row

    def image(self, name: str, seed: int, shape: tuple[int, int, int] = SHAPE, **where: Any) -> str:
        """Write an image; its name."""
        affine = make_affine(shape, **{"spacing": MM, **where})
        write(self.folder / f"{name}.nii.gz", smooth_noise(shape, 2.0, seed), affine)
        return f"{name}.nii.gz"

    def label(self, name: str, *radii: float, **where: Any) -> str:
        """Write a 4-D label of balls, some mm in radius, 0 for an empty one; its name."""
        masks = [
            ball(SHAPE, (11.5, 11.5, 9.5), radius / MM[0]) if radius else np.zeros(SHAPE) for radius in radii or (15, 6)
        ]
        affine = make_affine(SHAPE, **{"spacing": MM, **where})
        nib.save(nib.Nifti1Image(np.stack(masks, -1).astype(np.uint8), affine), self.folder / f"{name}.nii.gz")
        return f"{name}.nii.gz"

    def write(self) -> Path:
        """Write the datalist; its path."""
        path = self.folder / "datalist.csv"
        columns = list(dict.fromkeys(key for row in self.rows for key in row))
        with path.open("w", newline="") as stream:
            table = csv.DictWriter(stream, columns)
            table.writeheader()
            table.writerows(self.rows)
        return path
