"""``regzoo study report``: the tables, tests and figures of a study, as one page and as CSV files."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from regzoo.datasets.text import read_json
from regzoo.errors import bad_file
from regzoo.files import make_folder, write_text
from regzoo.report import write_csv
from regzoo_tools.study import sections, tables
from regzoo_tools.study.cells import Cell, outdated, read_facts, start_of
from regzoo_tools.study.description import Study, checked, unknown
from regzoo_tools.study.maps import CASES, case_maps, kept_cases
from regzoo_tools.study.measuring import RUNTIME
from regzoo_tools.study.page import page
from regzoo_tools.study.results import BIAS, VARIANCE, Facts, Group, main_setting, read_groups, unregistered
from regzoo_tools.study.status import STATES, states
from regzoo_tools.study.tables import Row
from regzoo_tools.study.work import evaluation_settings

#: What is tested unless the study says so.
TESTED = ("tre_mm", "adhoc_tre_mm", "gland_dsc", "dsc")
#: The part of an evaluation's configuration that lists its metrics.
METRICS = "validate#metrics"
#: The largest number of methods that are all compared with each other on the page.
METHODS = 5


@dataclass(frozen=True)
class Claim:
    """A sentence that a study tests: one method is better than another, by a paired test of a metric.

    Attributes:
        metric: a column of ``cases.csv``, or ``bias_mm2`` or ``variance_mm2``.
        percent: by how much the median is better, at least.
    """

    claim: str
    better: str
    than: str
    metric: str = "tre_mm"
    percent: int = 0


@dataclass(frozen=True)
class Options:
    """The key ``report`` of a study.

    Attributes:
        metrics: what is tested and drawn; by default `TESTED`.
        compare: pairs of methods; by default all, and of more than `METHODS` methods the page shows only the paired
            tests with the first. Range tests take all methods named here.
        cases: whose deformations are shown; by default the first that most methods kept.
        claims: see `Claim`.
    """

    metrics: list[str] = field(default_factory=list)
    compare: list[list[str]] = field(default_factory=list)
    cases: list[str] = field(default_factory=list)
    claims: list[dict[str, Any]] = field(default_factory=list)


def write_report(study: Study) -> tuple[Path, str]:
    """Write ``report/index.html`` and the CSV files of what is done into the folder of a study.

    Returns:
        The page, and in words how many cells it is made from.

    Raises:
        RegZooError: no cell is done, or the study's ``report`` is not valid.
    """
    options, claims = _options(study)
    done, progress = _progress(study)
    if not done:
        raise bad_file(study.folder, "no cell of this study is done", f"run regzoo study run {study.file}")
    order = list(study.methods)
    groups = read_groups(done, study.folder)
    _check_metrics(study, options, claims, groups)
    groups.sort(key=lambda group: (order.index(group.method), group.folds or 0, group.size or 0))
    found: dict[str, list[Row]] = {}
    main: list[Group] = []
    parts: dict[str, str] = {}
    for name in study.data:
        if not (here := [group for group in groups if group.data == name]):
            continue
        largest = main_setting(here)
        main += largest
        suffix = f": {name}" if len(study.data) > 1 else ""
        for heading, html in _data_sections(study, options, here, largest, found).items():
            parts[heading + suffix] = html
    found["claims"] = tables.claims(claims, main)
    found["values"] = tables.values(groups)
    first = {"Claims": sections.claims(found["claims"]), "What is missing": sections.missing(progress)}
    complete = f"{len(done)} of {sum(row['cells'] for row in progress)} cells"
    folder = make_folder(study.folder / "report")
    for name, rows in found.items():
        _write(folder / f"{name}.csv", rows)
    top = sections.top(study, complete)
    text = page(study.title or study.file.stem, top, first | parts | {"How it was computed": sections.notes()})
    write_text(folder / "index.html", text)
    return folder / "index.html", complete


def _write(path: Path, rows: Sequence[Row]) -> None:
    """Write a table; of a table without rows, remove what an earlier report has left."""
    if not rows:
        path.unlink(missing_ok=True)
        return
    write_csv(path, list(rows[0]), [["" if value is None else value for value in row.values()] for row in rows])


def _options(study: Study) -> tuple[Options, list[Row]]:
    """The study's ``report`` and its claims, checked."""
    options = Options(**checked(study.file, "report.", study.report, Options))
    claims, named = [], [("report.compare", pair) for pair in options.compare]
    for number, entry in enumerate(options.claims):
        place = f"report.claims[{number}]"
        claims.append(asdict(Claim(**checked(study.file, f"{place}.", entry, Claim))))
        named.append((place, [claims[-1][key] for key in ("better", "than")]))
    # A scale may leave methods out; what is asked of them is then not measured.
    known = [*study.methods, *(read_json(study.file).get("methods") or ())]
    for place, pair in named:
        if wrong := next((name for name in pair if name not in known), None):
            raise unknown(study.file, place, f"no method {wrong}", wrong, known)
        if len(pair) != 2:
            raise bad_file(study.file, f"{place}: {pair} is not a pair of methods", "write two names")
        data = [study.data_of(study.methods[name]) for name in pair if name in study.methods]
        if len(set(data)) > 1:
            problem = f"{pair[0]} is measured on the data {data[0]}, and {pair[1]} on {data[1]}"
            raise bad_file(study.file, f"{place}: {problem}", "name two methods with the same data")
    return options, claims


def _check_metrics(study: Study, options: Options, claims: Sequence[Row], groups: Sequence[Group]) -> None:
    """Refuse a metric that nothing has measured, and that no evaluation of the study would measure."""
    found = {RUNTIME: None, BIAS: None, VARIANCE: None} | dict.fromkeys(tables.measured(groups))
    for method in study.methods.values():
        found |= dict.fromkeys(study.config(method).get(METRICS, {}).get("measures", {}))
        keys = (key.lstrip("+").replace("::", "#") for key in evaluation_settings(study, method))
        found |= dict.fromkeys(key.split("#")[3] for key in keys if key.startswith(f"{METRICS}#measures#"))
    named = [("report.metrics", metric) for metric in options.metrics]
    named += [(f"report.claims[{number}].metric", claim["metric"]) for number, claim in enumerate(claims)]
    for place, metric in named:
        if metric not in found:
            raise unknown(study.file, place, f"no metric {metric}", metric, found)


def _progress(study: Study) -> tuple[list[Facts], list[Row]]:
    """The facts of the cells that are done, and for each method how many are in which state.

    A cell that was run with other code counts; one that was run with other settings or data does not.
    """
    done: list[Facts] = []
    counts: dict[str, Row] = {}
    found = states(study)
    used = [state for state in STATES if state in {*found.values(), "done"}]
    for cell, state in found.items():
        if not study.methods[cell.method].measured:
            continue
        facts = read_facts(study, cell)
        new_code = state == "outdated" and facts["status"] == "done" and _only_code_changed(study, cell)
        if state == "done" or new_code:
            state = "done"
            done.append(facts)
        empty = {"method": cell.method} | dict.fromkeys(["cells", *used, "with other code"], 0)
        row = counts.setdefault(cell.method, empty)
        row["cells"] += 1
        row[state] += 1
        row["with other code"] += new_code
    return done, list(counts.values())


def _only_code_changed(study: Study, cell: Cell) -> bool:
    """Whether nothing but the code has changed since a cell, and the one that it started from, were run."""
    changed, start = set(outdated(study, cell, read_facts(study, cell))), start_of(study, cell)
    if "starting weights" in changed and (start is None or not _only_code_changed(study, start)):
        return False
    return "code" in changed and changed <= {"code", "starting weights"}


def _data_sections(
    study: Study, options: Options, groups: Sequence[Group], main: Sequence[Group], found: dict[str, list[Row]]
) -> dict[str, str]:
    """The sections on one data set; adds the rows of its tables to those of the others."""

    def add(name: str, rows: list[Row]) -> list[Row]:
        found.setdefault(name, []).extend(rows)
        return rows

    names = [group.method for group in main]
    before = unregistered(main)
    shown = tables.measured(groups)
    metrics = [metric for metric in options.metrics or TESTED if metric in shown]
    asked = [(a, b) for a, b in options.compare if {a, b} <= set(names)]
    # Of two methods, the later one comes first, so that a difference says what it changes.
    pairs = asked or [(b, a) for a, b in itertools.combinations(names, 2)]
    tested = [group for group in main if not asked or any(group.method in pair for pair in asked)]
    paired = add("wilcoxon", tables.wilcoxon(main, metrics, pairs))
    if not asked and len(names) > METHODS:
        paired = [row for row in paired if row["second"] == names[0]]
    ordered = asked or list(itertools.permutations(names, 2))
    summary = add("summary", tables.summary([*before, *groups]))
    sizes = add("training_sizes", tables.training_sizes(groups, metrics) if len(groups) > len(main) else [])
    cases = options.cases or kept_cases(main, study.folder)[:CASES]
    maps = {case: case_maps(main, case, study.folder) for case in cases}
    add("deformations", [row for _, rows in maps.values() for row in rows])
    return {
        "Results": sections.results(study, [*before, *groups], summary, shown),
        "Box plots": sections.boxes([*before, *main], metrics),
        "Paired Wilcoxon tests": sections.wilcoxon(paired),
        "Mann–Whitney U tests": sections.better(add("mann_whitney", tables.better(main, metrics, ordered)), names),
        "Tukey's range tests": sections.ranges(add("tukey", tables.ranges(tested, metrics)), names),
        "Kinds of label": sections.kinds(add("labels", tables.kinds(main)), names),
        "Bias and variance": sections.sizes(sizes, metrics),
        "Scores of challenges": sections.scores(
            add("muregpro", tables.muregpro(main)), add("learn2reg", tables.learn2reg(main))
        ),
        "Deformations": sections.maps([(case, columns) for case, (columns, _) in maps.items()]),
    }
