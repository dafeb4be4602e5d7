"""The studies of the papers, with little data and one short epoch: every method trains and is measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from monai.bundle import ConfigWorkflow
from regzoo.report import read_csv
from regzoo_tools.study import work
from regzoo_tools.study.cells import Cell, cells_of, folder_of, read_facts
from regzoo_tools.study.description import Study, merged, read_study
from regzoo_tools.study.scheduling import run_study, write_phantoms
from synthetic import finished

STUDIES = Path(__file__).resolve().parents[3] / "studies"
SHORT = {"max_epochs": 1, "samples_per_epoch": 4, "num_workers": 0}
PROSTATE = {
    "data": {"prostate": {"phantoms": {"pairs": 8, "spacing": 4.0}}},
    "settings": SHORT | {"batch_size": 2, "val_interval": 1, "channels": 4},
    "evaluation": {"refine_seconds": 0.1},
    "run_folds": 1,
}
SINGLE = {"cases": 4, "held_out": 2, "spacing": 6.0}
#: Losses whose methods differ from the others' by one overlay, which `test_every_variant_trains` tries.
ALIKE = [
    f"{loss} {step}"
    for loss in ("BL-N", "BL-NS", "SG-ND", "SG-NSD", "UW-NSD")
    for step in ("brain", "CT", "decoder", "one step", "two steps")
]
#: Changes of the small scales.
TINY: dict[str, dict[str, Any]] = {
    "hu2018": PROSTATE | {"folds": 2},
    "hu2019": PROSTATE | {"folds": [2, 3], "repeats": 2},
    "bashkanov2021": PROSTATE | {"folds": 2},
    "perezdefrutos2023": {
        "data": {"CT": {"phantoms": SINGLE}, "brain": {"phantoms": SINGLE}},
        "settings": SHORT | {"channels": [4, 8, 8]},
        "evaluation": {"refine_seconds": 0.1},
        "methods": dict.fromkeys(ALIKE),
    },
}


def in_this_process(study: Study, cell: Cell, part: str, lock: int) -> None:
    """What the command of a training or an evaluation does, without the seconds that a process takes to start."""
    *files, last = study.config_files(study.methods[cell.method])
    files = [*files, *([last] if part == "evaluation" else []), folder_of(study, cell) / f"{part}.json"]
    workflow = ConfigWorkflow(
        config_file=[str(file) for file in files],
        workflow_type="train",
        logging_file=False,
        bundle_root=str(last.parents[1]),
    )
    workflow.initialize()
    workflow.run()
    workflow.finalize()


@pytest.mark.parametrize("path", sorted(STUDIES.glob("*.json")), ids=lambda path: path.stem)
def test_every_scale_is_valid(path: Path) -> None:
    for scale in (None, *json.loads(path.read_text()).get("scales", {})):
        assert cells_of(read_study(path, scale))


@pytest.mark.slow
@pytest.mark.parametrize("name", TINY)
def test_every_method_of_a_paper(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = json.loads((STUDIES / f"{name}.json").read_text())
    content["scales"]["tiny"] = merged(content["scales"]["small"], TINY[name])
    path = tmp_path / f"{name}.json"
    path.write_text(json.dumps(content))
    study = read_study(path, "tiny")
    monkeypatch.setattr(work, "_execute", in_this_process)
    cells = cells_of(study)
    write_phantoms(study, cells)
    for cell in cells:
        work.run_cell(study, cell)
    facts = {cell: read_facts(study, cell) for cell in cells}
    assert {cell.name: one["error"] for cell, one in facts.items() if one["status"] == "failed"} == {}
    assert {one["method"] for one in facts.values() if one["status"] == "skipped"} <= {"SyN", "greedy", "SyN brain"}
    for one in finished(study):
        folder = study.folder / "cells" / one["cell"] / "evaluation"
        assert folder.is_dir() == study.methods[one["method"]].measured
        if folder.is_dir():
            table = read_csv(folder / "cases.csv")
            assert all(table["runtime_s"]) and table["case"] and table.keys() & {"tre_mm", "dsc"}


@pytest.mark.slow
def test_a_training_of_two_processes(tmp_path: Path) -> None:
    methods = {"ddf": {"bundle": "prostate_mr_trus_weak_ddf"}}
    small = {"spacing": [5.0] * 3, "size": [18, 14, 13]}
    changes = {"title": "two", "methods": methods, "processes": 2, "folds": 2, "settings": small}
    content = merged(PROSTATE, changes)
    path = tmp_path / "two.json"
    path.write_text(json.dumps(content))
    study = read_study(path)
    run_study(study)
    (facts,) = finished(study)
    folder = study.folder / "cells" / facts["cell"]
    (run,) = json.loads((folder / "training" / "run.json").read_text())["runs"]
    assert run["versions"]["processes"] == "2"
    assert all(read_csv(folder / "evaluation" / "cases.csv")["tre_mm"])
