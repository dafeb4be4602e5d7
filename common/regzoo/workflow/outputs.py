"""What a registration leaves on disk."""

from __future__ import annotations

import dataclasses
import math
import tempfile
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.data import MetaTensor

from regzoo.files import file_name, make_folder, write_json, write_nifti
from regzoo.metrics import centroids, deformation_statistics
from regzoo.report.engine import cases_of
from regzoo.report.figures import case_figure
from regzoo.spatial import DisplacementField, Grid, plain
from regzoo.transforms import label_map, label_masks

WHO = ("reference", "unregistered", "warped")
OUTPUTS = {"warped_image.nii.gz", "warped_label.nii.gz", "field.nii.gz", "statistics.json", "quality.png"}


@dataclasses.dataclass
class RegistrationResult:
    """One registered pair, everything on the fixed image's own grid.

    Attributes:
        case: name of the pair.
        field: the whole fixed-to-moving transformation.
        fixed_image: (1, X, Y, Z), as loaded.
        warped_image: (1, X, Y, Z), the moving image seen in the fixed image's frame.
        warped_label: (C, X, Y, Z) uint8 masks, or None without a moving label.
        label_values: for labels that came as an integer map, the value of each channel.
        statistics: deformation statistics, and per label its volume and centroid.
        pictured: what the quality-control picture shows.
    """

    case: str
    field: DisplacementField
    fixed_image: MetaTensor
    warped_image: MetaTensor
    warped_label: MetaTensor | None
    label_values: list[int] | None
    statistics: dict[str, Any]
    pictured: Mapping[str, Any] = dataclasses.field(repr=False, default_factory=dict)

    @classmethod
    def of(cls, item: Mapping[str, Any]) -> RegistrationResult:
        """From what `regzoo.transforms.ApplyFieldd` leaves in a dict."""
        label = item.get("warped_label")
        mask = None
        if label is not None:
            mask = MetaTensor(label_masks(plain(label), "moving_label_values" in item), affine=label.affine)
        keys = ("case", "ddf", *(f"{who}_image" for who in WHO), *(f"{who}_label" for who in WHO))
        return cls(
            case=str(item.get("case", "case")),
            field=item["field"],
            fixed_image=item["reference_image"],
            warped_image=item["warped_image"],
            warped_label=mask,
            label_values=item.get("moving_label_values"),
            statistics=_statistics(item, mask),
            pictured={key: item[key] for key in keys if key in item},
        )

    def label_map(self) -> MetaTensor | None:
        """The warped labels in the form they came in: an integer map (X, Y, Z), or masks along the last axis."""
        if self.warped_label is None:
            return None
        masks, affine = self.warped_label.as_tensor().cpu(), self.warped_label.affine
        if self.label_values is None:
            return MetaTensor(masks.movedim(0, -1), affine=affine)
        return MetaTensor(label_map(masks, self.label_values), affine=affine)

    def save(self, folder: str | PathLike[str], picture: bool = True) -> Path:
        """Write the result into a folder; nothing of it if something fails, and nothing of an earlier result remains.

        ``warped_image.nii.gz`` float32; ``warped_label.nii.gz`` in the form of the moving label; ``field.nii.gz``, the
        transformation for ITK, ANTs and 3D Slicer (LPS mm); ``statistics.json``; ``quality.png``.
        """
        target = Path(folder)
        new = not target.exists()
        try:
            with tempfile.TemporaryDirectory(dir=make_folder(target), prefix=".partial-") as name:
                part = Path(name)
                self._write(part, picture)
                written = [file.replace(target / file.name) for file in part.iterdir()]
            for stale in OUTPUTS - {file.name for file in written}:
                (target / stale).unlink(missing_ok=True)
        except BaseException:
            if new and target.exists() and not any(target.iterdir()):
                target.rmdir()
            raise
        return target

    def _write(self, folder: Path, picture: bool) -> None:
        affine = self.field.grid.affine
        write_nifti(folder / "warped_image.nii.gz", plain(self.warped_image)[0].cpu().numpy(), affine)
        labels = self.label_map()
        if labels is not None:
            array = plain(labels).numpy()
            small = array.max(initial=0) < 256
            write_nifti(folder / "warped_label.nii.gz", array.astype(np.uint8 if small else np.int32), affine)
        self.field.save(folder / "field.nii.gz")
        write_json(folder / "statistics.json", self.statistics)
        if picture:
            self.draw(folder / "quality.png")

    def draw(self, path: str | Path) -> None:
        """Write the quality-control picture, see `regzoo.report.registration_figure`."""
        case_figure(path, self.pictured)


def _statistics(item: Mapping[str, Any], labels: torch.Tensor | None) -> dict[str, Any]:
    """Deformation statistics and, per label, volume and centroid, as plain values for JSON."""
    grid: Grid = item["field"].grid
    deformation = deformation_statistics(item["ddf"], grid.spacing.tolist())
    # JSON has no NaN, which the logarithm gives where every voxel folds.
    found: dict[str, Any] = {"deformation": {k: v if math.isfinite(v) else None for k, v in deformation.items()}}
    if labels is not None:
        voxel = float(abs(np.linalg.det(grid.affine[:3, :3])))
        values, names = item.get("moving_label_values"), item.get("label_names")
        found["labels"] = [
            {
                "label": values[index] if values else index,
                **({"name": str(names[index])} if names and index < len(names) else {}),
                "volume_mm3": round(float(mask.sum()) * voxel, 1),
                "centroid_ras_mm": None if not bool(mask.any()) else [round(float(x), 3) for x in centre],
            }
            for index, (mask, centre) in enumerate(
                zip(labels, centroids(labels, torch.as_tensor(grid.affine)), strict=True)
            )
        ]
    return found


class SaveRegistration:
    """Ignite handler of an evaluator: writes every registered case to ``<output_dir>/<case>/``.

    Args:
        output_dir: folder to write to.
        pictures: draw a quality-control picture per case.
    """

    def __init__(self, output_dir: str | Path, pictures: bool = True) -> None:
        self.output_dir = make_folder(output_dir)
        self.pictures = pictures

    def attach(self, engine: Engine) -> None:
        """Register with an evaluator."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Write the cases of the current iteration."""
        for item in cases_of(engine):
            result = RegistrationResult.of(item)
            folder = result.save(self.output_dir / file_name(result.case), self.pictures)
            print(f"{result.case}: {folder}", flush=True)
