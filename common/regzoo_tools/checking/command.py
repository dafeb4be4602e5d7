"""`regzoo check`: examine every case of a data set, and all cases together, before a training."""

from __future__ import annotations

import json
import multiprocessing
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from regzoo.case import Key, Record
from regzoo.datasets import load_records, load_single_records
from regzoo.datasets.loading import pairs_all_images
from regzoo.datasets.records import is_single, real_files, record_files
from regzoo.datasets.text import SPLIT_WORDS
from regzoo.errors import RegZooError, collected_problems
from regzoo.files import make_folder
from regzoo.ownership import check_file, own_path
from regzoo_tools.checking.cases import CaseFacts
from regzoo_tools.checking.dataset import compare_cases, label_table
from regzoo_tools.checking.findings import Finding, Severity, collected_warnings, finding_of
from regzoo_tools.checking.plan import Cost, Plan, available_bytes
from regzoo_tools.checking.proposals import propose_folds, propose_grid
from regzoo_tools.checking.sheet import contact_sheet

#: Files of the output folder.
REPORT, SHEET = "check.json", "contact_sheet.png"
#: Cases on the contact sheet.
ON_SHEET = 40
#: With fewer cases, starting processes costs more time than it saves.
WORTH_WORKERS = 16
#: Cases that a process gets at a time.
PART = 4
#: The share of the memory that a training may use.
MEMORY = 0.8


@dataclass
class Report:
    """The results of a check.

    Attributes:
        facts: of each case, in order.
        findings: all, errors first.
        labels: see `regzoo_tools.checking.dataset.label_table`.
        spacing, size, folds: proposals; None if there is none.
        cost: of a training with these values; None if not estimated.
        notes: remarks about the proposals.
    """

    data: str
    bundle: str | None
    facts: list[CaseFacts]
    findings: list[Finding]
    labels: Sequence[Any] = ()
    spacing: list[float] | None = None
    size: list[int] | None = None
    folds: int | None = None
    cost: Cost | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def records(self) -> list[Record]:
        """The cases as they are listed."""
        return [facts.record for facts in self.facts]

    def failed(self, strict: bool = False) -> bool:
        """Whether there are errors, or if strict, any findings."""
        return any(strict or finding.severity == "error" for finding in self.findings)


def check_data(
    data: str | PathLike[str],
    bundle: str | PathLike[str] | None = None,
    out: str | PathLike[str] | None = None,
    estimate: bool = True,
    **settings: Any,
) -> Report:
    """Check a data set as a training will read it. Every problem is a finding; a bad file does not stop the check.

    Arguments are those of the command `regzoo_tools.commands.check`, and:

    Args:
        estimate: run a few steps of the training to estimate its time and memory.

    Raises:
        RegZooError: the data set is in no known layout, no such bundle or setting, or `out` holds another's files.
    """
    folder = None if out is None else Path(out)
    if folder is not None:
        check_file(folder / REPORT)
        check_file(folder / SHEET)
        make_folder(folder)
    plan = Plan(bundle, str(data), settings)
    records, findings = _records(plan)
    drawn = set(range(0, len(records), -(-len(records) // ON_SHEET))) if folder and records else set()
    facts = _examine(plan, records, drawn)
    findings += [finding for case in facts for finding in case.findings]
    findings += compare_cases(facts, plan.gland_first)
    report = Report(str(data), plan.name, facts, findings, label_table(facts))
    if not any(finding.severity == "error" for finding in findings) and (error := plan.split_error()):
        report.findings.append(finding_of(error, "error", [], otherwise=data))
    _propose(plan, report, estimate)
    report.findings.sort(key=lambda finding: finding.severity != "error")
    if folder is not None:
        _write(report, folder, frame="the network's field of view" if plan.bundle else "the whole image")
    return report


def _records(plan: Plan) -> tuple[list[Record], list[Finding]]:
    """The readable records of a data set with their splits, and findings about the others."""

    def read(loader: Callable[..., list[Record]], **options: Any) -> tuple[list[Record], list[str], list[str]]:
        with collected_problems() as problems, collected_warnings() as warnings:
            records = loader(plan.data, None, **options)
            kept = list(map(str, problems)), list(warnings)
            homes: dict[tuple[str, ...], str] = {}
            for split in SPLIT_WORDS:
                try:
                    homes |= {real_files(record): split for record in loader(plan.data, split, **options)}
                except RegZooError:  # no such split
                    continue
        return [{"split": homes.get(real_files(r), "train")} | r for r in records], *kept

    # Pairs of any two images would have every image examined with each of the others.
    if plan.single or (plan.bundle is None and pairs_all_images(plan.data)):
        records, problems, warnings = read(load_single_records)
    else:
        try:
            records, problems, warnings = read(load_records, direction=plan.direction)
        except RegZooError as error:
            if plan.bundle is not None:
                raise
            try:
                records, problems, warnings = read(load_single_records)
            except RegZooError:
                raise error from None
    files = [file for record in records for file in record_files(record)]
    lines: list[tuple[str, Severity]] = [(line, "error") for line in dict.fromkeys(problems)]
    lines += [(line, "warning") for line in dict.fromkeys(warnings)]
    findings = [finding_of(line, severity, files, otherwise=line.partition(": ")[0]) for line, severity in lines]
    missing = {finding.file for finding in findings if finding.problem == "no such file"}
    # A case with a missing file has a finding already and is not examined.
    return [record for record in records if not missing & set(record_files(record))], findings


def _examine(plan: Plan, records: Sequence[Record], drawn: set[int]) -> list[CaseFacts]:
    """Examine all cases, in several processes if that is faster."""
    jobs = [(record, number in drawn) for number, record in enumerate(records)]
    workers = min(os.cpu_count() or 1, len(jobs))
    if workers < 2 or len(jobs) < WORTH_WORKERS:
        return _examine_some(plan, jobs)
    parts = [jobs[start : start + PART] for start in range(0, len(jobs), PART)]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        return list(chain.from_iterable(pool.map(partial(_examine_some, plan), parts)))


def _examine_some(plan: Plan, jobs: Sequence[tuple[Record, bool]]) -> list[CaseFacts]:
    examiner = plan.examiner()
    return [examiner(*job) for job in jobs]


def _propose(plan: Plan, report: Report, estimate: bool) -> None:
    """Add proposals, and the cost of a training with them."""
    training = [record for record in report.records if record[Key.SPLIT] == "train"]
    if any(Key.FOLD in record for record in training):
        report.notes.append("the data set has folds of its own")
    elif any(record[Key.SPLIT] == "val" for record in report.records) and Path(report.data).is_file():
        report.notes.append("the data set's validation part chooses the epoch; no folds are needed")
    else:
        report.folds = propose_folds(training)
    grid = propose_grid(report.facts, plan.spacing)
    if grid is None:
        return
    report.spacing, report.size = grid
    whole = [
        facts.record
        for facts in report.facts
        if facts.record[Key.SPLIT] == "train" and facts.reach and all(f.severity == "warning" for f in facts.findings)
    ]
    if plan.bundle is None or not estimate or not whole:
        return
    for _ in range(3):
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            report.cost = pool.submit(plan.measure, whole[0], report.spacing, report.size).result()
        budget = MEMORY * available_bytes(report.cost.device)
        needed = report.cost.step_bytes + report.cost.case_bytes * len(training)
        if needed <= budget:
            return
        asked = f"spacing {report.spacing} and size {report.size} would need {needed / 1e9:.1f} GB"
        report.notes.append(f"{asked}, but {budget / 1e9:.1f} GB are available; larger voxels are proposed")
        larger = propose_grid(report.facts, report.spacing, max(1.1, (needed / budget) ** (1 / 3)))
        assert larger is not None
        report.spacing, report.size = larger


def _write(report: Report, folder: Path, frame: str) -> None:
    """Write the results into a folder."""
    content = {
        "regzoo_check": 1,
        "data": report.data,
        "bundle": report.bundle,
        "cases": [
            {
                "case": facts.case,
                "split": facts.record[Key.SPLIT],
                "images": {side: vars(image) for side, image in facts.images.items()},
                "label_names": facts.names,
                "label_values": facts.values,
                "volumes_mm3": facts.volumes,
                "shares_in_view": {
                    side: [None if share != share else share for share in shares]
                    for side, shares in facts.shares.items()
                },
            }
            for facts in report.facts
        ],
        "labels": list(report.labels),
        "proposed": {"spacing": report.spacing, "size": report.size, "folds": report.folds},
        "estimate": None if report.cost is None else vars(report.cost),
        "notes": report.notes,
        "findings": [vars(finding) for finding in report.findings],
    }
    with own_path(folder / REPORT) as temporary:
        temporary.write_text(json.dumps(content, indent=4) + "\n", encoding="utf-8")
    thumbnails = [facts.thumbnail for facts in report.facts if facts.thumbnail]
    if thumbnails:
        kind = "images" if all(map(is_single, report.records)) else "pairs"
        title = f"{report.data}: {len(thumbnails)} of {len(report.records)} {kind}, {frame}"
        contact_sheet(folder / SHEET, thumbnails, title)
    else:
        (folder / SHEET).unlink(missing_ok=True)
