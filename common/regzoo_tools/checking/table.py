"""A check's report as text for the terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
from regzoo.case import FIXED, MOVING, Key
from regzoo.datasets.records import is_single, patients_of
from regzoo.datasets.splits import linked_groups
from regzoo_tools.checking.cases import CaseFacts
from regzoo_tools.checking.command import Report
from regzoo_tools.checking.findings import Finding

#: The most warnings of one kind that are shown.
SHOWN = 10


def as_text(report: Report) -> str:
    """The report: a summary of the data, the proposals, and the findings."""
    rows = [("data", report.data), ("cases", _cases(report))]
    rows += [(f"{side} images", line) for side in (FIXED.name, MOVING.name) if (line := _images(report.facts, side))]
    labels = _labels(report) or ["none that can be read"]
    rows += [("" if n else "labels", line) for n, line in enumerate(labels)]
    if report.spacing and report.size:
        bundle = f" for {report.bundle}" if report.bundle else ", about 64³ voxels (name a bundle with --bundle)"
        rows.append(("proposed", f'--spacing "{_list(report.spacing)}" --size "{_list(report.size)}"{bundle}'))
    if report.folds:
        rows.append(("", f"--folds {report.folds}"))
    rows += [("", note) for note in report.notes]
    rows += [("" if n else "estimate", line) for n, line in enumerate(_cost(report))]
    lines = [f"{name:14}  {text}" for name, text in rows]
    findings = list(_lines(report.findings))
    counts = Counter(finding.severity for finding in report.findings)
    lines += ["", *findings, ""] if findings else [""]
    return "\n".join([*lines, ", ".join(_count(counts[kind], kind) for kind in ("error", "warning"))])


def _lines(findings: Sequence[Finding]) -> Iterator[str]:
    """All errors, and the first warnings of each kind; warnings with the same advice are of one kind."""
    for error in (finding for finding in findings if finding.severity == "error"):
        yield error.line()
    kinds: dict[str, list[Finding]] = {}
    for warning in (finding for finding in findings if finding.severity == "warning"):
        kinds.setdefault(warning.fix, []).append(warning)
    for same in kinds.values():
        yield from (warning.line() for warning in same[:SHOWN])
        if len(same) > SHOWN:
            yield f"warning: {len(same) - SHOWN} more of this kind; --out FOLDER writes them all to check.json"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _cases(report: Report) -> str:
    records = report.records
    kind = "images" if all(map(is_single, records)) else "pairs"
    splits = Counter(record[Key.SPLIT] for record in records)
    parts = ", ".join(f"{split} {count}" for split, count in splits.items())
    groups = linked_groups(records) if records else {}
    named = {patient for record in records for patient in patients_of(record)}
    patients = len(named) + sum(not any(map(patients_of, group)) for group in groups.values())
    note = "" if named else "; none is named, so each case counts as one"
    if len(groups) < patients:
        note = f"; their pairs link them into {_count(len(groups), 'group')}, which folds cannot divide"
    return f"{len(records)} {kind} ({parts or 'none'}) of {_count(patients, 'patient')}{note}"


def _images(facts: Sequence[CaseFacts], side: str) -> str:
    images = [case.images[side] for case in facts if side in case.images]
    if not images:
        return ""
    shape = np.median([image.shape for image in images], axis=0)
    spacing = np.asarray([image.spacing for image in images])
    middle = "×".join(map(_mm, np.median(spacing, axis=0)))
    return (
        f"{len(images)} readable, median {'×'.join(f'{n:.0f}' for n in shape)} voxels of {middle} mm "
        f"(from {_mm(spacing.min())} to {_mm(spacing.max())} mm)"
    )


def _mm(length: float) -> str:
    return f"{length:.2f}" if length > 0.1 else f"{length:.2g}"


def _labels(report: Report) -> list[str]:
    lines = []
    for row in report.labels:
        volume = "empty" if row["median_mm3"] is None else f"{row['median_mm3'] / 1000:.3g} mL (median)"
        least = row["least_share_in_view"]
        view = f", at least {100 * least:.1f} % in view" if report.bundle and least is not None else ""
        lines.append(f"{row['name']}: in {_count(row['cases'], 'case')}, {volume}{view}")
    return lines


def _cost(report: Report) -> list[str]:
    if report.cost is None:
        return []
    cost = report.cost
    training = sum(record[Key.SPLIT] == "train" for record in report.records)
    cached, minutes = cost.case_bytes * training, cost.epoch_seconds / 60
    speed = f"{cost.step_seconds:.2f} s a step and {minutes:.1f} min an epoch on this machine ({cost.device})"
    return [
        f"{speed}, without the validation",
        f"{(cost.step_bytes + cached) / 1e9:.1f} GB of memory, {cached / 1e9:.2f} GB of it for the cached cases",
        "estimated from a few steps on one case; other work on this machine slows it down",
    ]


def _list(values: Sequence[float]) -> str:
    return "[" + ",".join(f"{value:g}" for value in values) + "]"
