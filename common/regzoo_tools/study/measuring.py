"""What a study adds to a bundle's evaluation: runtimes, centroids, displacement fields, a network that stays still."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any, ClassVar

import torch
from regzoo.case import REFERENCE, WARPED, Key
from regzoo.files import file_name, make_folder
from regzoo.metrics.base import CaseMetric, affine_of
from regzoo.report.tables import RowTable, label_names
from regzoo.spatial import centroids
from torch import nn

#: Entries of a case: when its work began, and its seconds, without those that a tool needs to start.
STARTED, UNTIMED, RUNTIME = "started", "untimed_s", "runtime_s"


class Still(nn.Module):
    """A network that predicts no displacement, for a baseline that is a pre-alignment, a refinement or a tool."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """(B, C, X, Y, Z) → zeros (B, 3, X, Y, Z)."""
        return torch.zeros_like(image[:, :1]).repeat(1, 3, 1, 1, 1)


class StartClock:
    """Note when the work on a case begins: the first step of its preprocessing."""

    def __call__(self, data: Mapping[str, Any]) -> dict[str, Any]:
        return {**data, STARTED: time.monotonic()}


class StopClock:
    """Note how long a case took, from its files to its warped image and labels: the last step of its postprocessing."""

    def __call__(self, data: Mapping[str, Any]) -> dict[str, Any]:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds = time.monotonic() - float(data[STARTED]) - data.get(UNTIMED, 0.0)
        return {**data, RUNTIME: torch.tensor([seconds])}


class Runtime(CaseMetric):
    """The seconds that a case took, see `StopClock`."""

    after: ClassVar[tuple[str, str]] = (RUNTIME, RUNTIME)
    before = None

    def measure(self, y_pred: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """The seconds of one case."""
        return y_pred


class CentroidTable(RowTable):
    """Ignite handler that writes ``centroids.csv``: where each label of a case lies and was predicted, RAS mm.

    Empty cells: the warped label has left the image. A label that is empty in the fixed image has no row, and neither
    has a case without labels of both images.
    """

    FILE = "centroids.csv"
    HEADER = ("case", "label", "name", *(f"{side}_{axis}_mm" for side in ("fixed", "warped") for axis in "xyz"))

    def rows(self, item: Mapping[str, Any]) -> list[list[Any]]:
        if REFERENCE.label not in item or WARPED.label not in item:
            return []
        affine = affine_of(item[REFERENCE.label])
        fixed, warped = (centroids(item[view.label], affine).tolist() for view in (REFERENCE, WARPED))
        return [
            [label, name, *fixed[label], *warped[label]]
            for label, name in enumerate(label_names(item, len(fixed)))
            if not math.isnan(fixed[label][0])
        ]


class SaveFields:
    """Save the displacement fields of the first `count` cases that have one, see `DisplacementField.save`."""

    def __init__(self, output_dir: str | PathLike[str], count: int) -> None:
        self.folder, self.left = Path(output_dir), count

    def __call__(self, data: dict[str, Any]) -> dict[str, Any]:
        if self.left > 0 and Key.FIELD in data:
            self.left -= 1
            data[Key.FIELD].save(make_folder(self.folder) / f"{file_name(str(data[Key.CASE]))}.nii.gz")
        return data
