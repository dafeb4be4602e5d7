"""Folders of studies that were never run: what their cells would have written, with errors drawn at random."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from helpers import make_affine, smooth_ddf
from regzoo.spatial import DisplacementField, Grid
from regzoo_tools.study.cells import Cell, cells_of, folder_of, outdated, read_facts, recipe, write_facts
from regzoo_tools.study.description import Study, read_study

CASES = [f"case{number:02d}" for number in range(12)]
LABELS = ("gland", "cyst", "apex")
DDF, CONDITIONAL = "prostate_mr_trus_weak_ddf", "prostate_mr_trus_conditional_seg"
#: Mean error along each axis, mm, and SD of a prediction.
ERRORS = {"ddf": (2.0, 1.0), "conditional": (0.5, 1.0), "identity": (4.0, 0.0), "pretraining": (3.0, 1.0)}


def finished(study: Study) -> list[dict[str, Any]]:
    """The facts of the cells that are done and up to date, in the order of the study."""
    facts = [(cell, read_facts(study, cell)) for cell in cells_of(study)]
    return [known for cell, known in facts if known.get("status") == "done" and not outdated(study, cell, known)]


def description(folder: Path, **changes: Any) -> Path:
    """The JSON file of a study of two methods and a baseline."""
    (folder / "data").mkdir(parents=True, exist_ok=True)
    content: dict[str, Any] = {
        "title": "Two methods & <one> baseline",
        "data": {"prostate": {"dataset_dir": "data"}},
        "methods": {
            "ddf": {"bundle": DDF},
            "conditional": {"bundle": CONDITIONAL},
            "identity": {"bundle": DDF, "baseline": "identity"},
        },
        "folds": [2, 4],
        "repeats": 3,
    }
    file = folder / "study.json"
    file.write_text(json.dumps(content | changes), encoding="utf-8")
    return file


def study_of(folder: Path, keep: Callable[[Cell], bool] = lambda cell: True, **changes: Any) -> Study:
    """A study whose cells are done, as far as they are to be kept."""
    study = read_study(description(folder, **changes))
    for cell in cells_of(study):
        if keep(cell):
            fill(study, cell)
    return study


def measured_in(cell: Cell) -> list[str]:
    """The cases that a cell measures."""
    return CASES if cell.folds is None else CASES[cell.fold :: cell.folds]


def fill(study: Study, cell: Cell) -> None:
    """Write what a cell would have written."""
    rng = np.random.default_rng([cell.repeat, cell.folds or 0, cell.fold or 0, list(study.methods).index(cell.method)])
    bias, deviation = ERRORS[cell.method]
    tables: dict[str, list[Sequence[Any]]] = {
        "cases": [
            (
                *("case", "tre_mm", "gland_dsc", "gland_hd95_mm", "log_jacobian_std", "runtime_s"),
                *("before_tre_mm", "before_gland_dsc", "before_gland_hd95_mm"),
            )
        ],
        "labels": [("case", "label", "name", "distance_before_mm", "distance_after_mm", "dsc_before", "dsc_after")],
        "centroids": [("case", "label", "name", *(f"{s}_{a}_mm" for s in ("fixed", "warped") for a in "xyz"))],
    }
    for case in measured_in(cell):
        place = np.random.default_rng(CASES.index(case)).uniform(-10, 10, (3, 3))
        errors = bias + deviation * rng.normal(size=(3, 3))
        distances = np.linalg.norm(errors, axis=1)
        before = 4.0 * np.sqrt(3) * (1 + CASES.index(case) / 20)
        tre = np.sqrt(np.mean(distances[1:] ** 2))
        dsc = 0.95 - 0.02 * distances[0]
        values = (tre, dsc, 2 * tre, "" if cell.method == "conditional" else 0.1, 0.5, before, 0.7, 9.0)
        tables["cases"].append((case, *values))
        for label, name in enumerate(LABELS):
            tables["labels"].append((case, label, name, before, distances[label], 0.7, dsc))
            tables["centroids"].append((case, label, name, *place[label], *(place + errors)[label]))
    folder = folder_of(study, cell) / "evaluation"
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in tables.items():
        with (folder / f"{name}.csv").open("w", newline="") as file:
            csv.writer(file).writerows(rows)
    if cell.method != "conditional":
        keep_field(folder / "fields" / f"{measured_in(cell)[0]}.nii.gz", amplitude=bias)
    trained = {"trained_on": None, "training_seconds": None}
    if not study.methods[cell.method].baseline:
        trained = {"trained_on": len(CASES) - len(measured_in(cell)), "training_seconds": 90.0}
    facts = {"status": "done", "evaluation_seconds": 1.0, "seconds": 100.0, "error": None, **trained}
    write_facts(study, cell, facts | {"recipe": recipe(study, cell)})


def keep_field(path: Path, amplitude: float) -> None:
    """A smooth displacement field, as an evaluation keeps it."""
    shape = (14, 12, 10)
    grid = Grid(shape, make_affine(shape, (2, 2, 3), (10, 0, 5)))
    path.parent.mkdir(exist_ok=True)
    DisplacementField(smooth_ddf(shape, amplitude), grid).save(path)


def rows_of(path: Path) -> list[dict[str, str]]:
    """A table."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))
