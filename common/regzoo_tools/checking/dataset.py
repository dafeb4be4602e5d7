"""Findings about several cases of a data set."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from regzoo.case import FIXED, LABEL_KEYS, MOVING, Key, Record
from regzoo.datasets.records import patients_of, record_files
from regzoo.spatial import decimals
from regzoo.transforms.load import label_number, names_labels, other_values
from regzoo_tools.checking.cases import CaseFacts
from regzoo_tools.checking.findings import Finding, finding_of

#: Voxel sizes that differ from the median by more than this factor are reported.
FACTOR = 3.0


def compare_cases(facts: Sequence[CaseFacts], gland_first: bool) -> list[Finding]:
    """Findings about several cases; `gland_first` says that the first label has to be the gland, the largest."""
    found = [*_identical(facts), *_voxel_sizes(facts), *_label_values(facts)]
    return found + (list(_first_labels(facts)) if gland_first else [])


def _identical(facts: Sequence[CaseFacts]) -> Iterator[Finding]:
    """Images of the same content: within a pair, or of different patients."""
    first: dict[str, tuple[str, CaseFacts]] = {}
    for case in facts:
        for image in case.images.values():
            file, other = first.setdefault(image.digest, (image.file, case))
            if os.path.realpath(file) == os.path.realpath(image.file):
                continue
            if other is case:
                problem = f"holds the same image as the other of its pair, {file}"
                yield Finding("error", image.file, problem, "name the right file", case.case)
            elif _owner(case.record) != _owner(other.record):
                problem = f"holds the same image as {file} of case {other.case}, so folds would leak"
                yield Finding("error", image.file, problem, "remove one, or give both the same patient", case.case)


def _owner(record: Record) -> Any:
    return patients_of(record) or record[Key.CASE]


def _voxel_sizes(facts: Sequence[CaseFacts]) -> Iterator[Finding]:
    """Images whose voxels are much larger or smaller than those of the other images of their side."""
    for side in (FIXED.name, MOVING.name):
        images = [(case, case.images[side]) for case in facts if side in case.images]
        if len(images) < 3:
            continue
        sizes = np.sort([image.spacing for _, image in images], axis=1)
        median = np.median(sizes, axis=0)
        for (case, image), size in zip(images, sizes, strict=True):
            if (size > FACTOR * median).any() or (size * FACTOR < median).any():
                shown, usual = ("×".join(f"{mm:.3g}" for mm in one) for one in (image.spacing, median))
                problem = f"has voxels of {shown} mm, but the median of the {side} images is {usual} mm"
                yield Finding("warning", image.file, problem, "check its header, or export it again", case.case)


def _label_values(facts: Sequence[CaseFacts]) -> Iterator[Finding]:
    """The first case whose maps hold other values than those before, where nothing says which values there are."""
    cases = [case for case in facts if case.values and not names_labels(case.record)]
    for case in cases:
        if case.values != cases[0].values:
            files = [record_files(one.record, LABEL_KEYS)[0] for one in (case, cases[0])]
            line = other_values(files[0], case.values, files[1], cases[0].values)
            yield finding_of(line, "warning", files[:1], case.case)
            return


def _first_labels(facts: Sequence[CaseFacts]) -> Iterator[Finding]:
    """Cases whose first label is smaller than another one, and therefore is probably not the gland."""
    for case in facts:
        for side, volumes in case.volumes.items():
            largest = int(np.argmax(volumes))
            if volumes[0] < volumes[largest]:
                first, other = (label_number(case.values, channel) for channel in (0, largest))
                sizes = f"{volumes[0] / 1000:.3g} mL, less than {other} with {volumes[largest] / 1000:.3g} mL"
                problem = f"{first} has {sizes}; the gland must come first"
                fix = "put the gland first in every file, or name its value first in label_values"
                yield Finding("warning", case.label_file(side, 0), problem, fix, case.case, 0)
                break


def label_table(facts: Sequence[CaseFacts]) -> list[Mapping[str, Any]]:
    """For each label, in order: its name, number of cases, median volume (mm³) and least share in view."""
    rows: dict[str, dict[str, list[float]]] = {}
    for case in facts:
        count = max((len(volumes) for volumes in case.volumes.values()), default=0)
        numbers = [label_number(case.values, channel) for channel in range(count)]
        names = case.names if len(case.names) == count else numbers
        for channel, name in enumerate(names):
            row = rows.setdefault(name, {"cases": [], "volumes": [], "shares": []})
            volumes = [case.volumes[side][channel] for side in case.volumes]
            shares = [case.shares[side][channel] for side in case.shares]
            row["cases"].append(float(min(volumes) > 0))
            row["volumes"] += [volume for volume in volumes if volume > 0]
            row["shares"] += [share for share in shares if share == share]
    return [
        {
            "name": name,
            "cases": int(sum(row["cases"])),
            "median_mm3": _median(row["volumes"]),
            "least_share_in_view": round(min(row["shares"]), 4) if row["shares"] else None,
        }
        for name, row in rows.items()
    ]


def _median(volumes: Sequence[float]) -> float | None:
    """The median of volumes above 0, rounded; None without any."""
    if not volumes:
        return None
    median = float(np.median(volumes))
    return round(median, decimals(median, 1))
