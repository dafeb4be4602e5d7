"""Maps of the deformations that the cells of a study kept."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from regzoo.files import file_name
from regzoo.report.planes import PLANES, Orientation
from regzoo.spatial import DisplacementField
from regzoo_tools.study.results import Group
from regzoo_tools.study.tables import Row

#: Without a choice, maps are drawn of this many cases.
CASES = 2


def quantities(field: DisplacementField) -> dict[str, np.ndarray]:
    """det J, ‖u‖ in mm and ‖∇u‖ (Frobenius) of a transformation x → x + u(x), each (X, Y, Z).

    u contains the pre-alignment.
    """
    displacement = field.displacement.double().cpu().numpy()
    # ∂u/∂x in the world: derivatives along the array axes, times the inverse of the affine.
    along_axes = np.stack(np.gradient(displacement, axis=(1, 2, 3)))
    gradient = np.einsum("kcxyz,kw->cwxyz", along_axes, np.linalg.inv(field.grid.affine[:3, :3]))
    return {
        "det J": field.jacobian().as_tensor()[0].cpu().numpy(),
        "‖u‖, mm": np.linalg.norm(displacement, axis=0),
        "‖∇u‖": np.sqrt(np.square(gradient).sum(axis=(0, 1))),
    }


def kept_cases(groups: Sequence[Group], folder: Path) -> list[str]:
    """The cases whose field at least one cell kept, those that most methods kept first."""
    counts: dict[str, int] = {}
    for group in groups:
        for case in dict.fromkeys(case for metric in group.metrics.values() for case in metric):
            counts[case] = counts.get(case, 0) + (field_file(group, case, folder) is not None)
    return sorted((case for case, count in counts.items() if count), key=lambda case: -counts[case])


def field_file(group: Group, case: str, folder: Path) -> Path | None:
    """The field of a case that the first of a group's cells kept."""
    place = f"evaluation/fields/{file_name(case)}.nii.gz"
    files = (folder / "cells" / cell["cell"] / place for cell in group.cells)
    return next((file for file in files if file.is_file()), None)


def case_maps(
    groups: Sequence[Group], case: str, folder: Path
) -> tuple[dict[str, tuple[dict[str, np.ndarray], float]], list[Row]]:
    """By method, the axial planes of a case through its first label and the height of a pixel over its width.

    Also a row per method and quantity, with the statistics of the whole volume.
    """
    columns, rows = {}, []
    for group in groups:
        if (file := field_file(group, case, folder)) is None:
            continue
        field = DisplacementField.load(file)
        found = quantities(field)
        turn = Orientation(field.grid.affine)
        spacing = field.grid.spacing[turn.source]
        position = (np.array(field.grid.shape)[turn.source] - 1) // 2
        label = next((one for one in group.labels if one.case == case and not np.isnan(one.fixed).any()), None)
        if label is not None:
            voxel = np.round(field.grid.to_voxels(label.fixed[None])[0]).astype(int)
            marker = np.zeros(field.grid.shape, dtype=bool)
            marker[tuple(np.clip(voxel, 0, np.array(field.grid.shape) - 1))] = True
            position = np.argwhere(turn.volume(marker))[0]
        planes = {name: PLANES[0].of(turn.volume(volume), position) for name, volume in found.items()}
        columns[group.method] = (planes, float(spacing[1] / spacing[0]))
        for name, volume in found.items():
            row: Row = {"data": group.data, "case": case, "method": group.method, "quantity": name}
            row |= {"mean": float(volume.mean()), "sd": float(volume.std())}
            rows.append(row | {"min": float(volume.min()), "max": float(volume.max())})
    return columns, rows
