"""Reports of studies that were never run: the numbers against SciPy and NumPy, called without the package's readers."""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from helpers import make_affine
from regzoo.cli import main
from regzoo.errors import RegZooError
from regzoo.report import write_csv
from regzoo.spatial import DisplacementField, Grid
from regzoo_tools.study.cells import Cell, cells_of, folder_of, read_facts, recipe, write_facts
from regzoo_tools.study.description import Study, read_study
from regzoo_tools.study.maps import quantities
from regzoo_tools.study.plots import deformation_maps
from regzoo_tools.study.report import write_report
from scipy import stats
from synthetic import CASES, DDF, ERRORS, LABELS, description, fill, measured_in, rows_of, study_of

CLAIMS = [
    {"claim": "conditional lowers TRE by a third", "better": "conditional", "than": "ddf", "percent": 34},
    {"claim": "… by nine tenths", "better": "conditional", "than": "ddf", "percent": 90},
    {"claim": "ddf has the better DSC", "better": "ddf", "than": "conditional", "metric": "gland_dsc"},
    {"claim": "conditional has less bias", "better": "conditional", "than": "ddf", "metric": "bias_mm2"},
    {"claim": "conditional is as smooth", "better": "conditional", "than": "ddf", "metric": "log_jacobian_std"},
]


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    complete = study_of(tmp_path_factory.mktemp("study"), report={"claims": CLAIMS})
    page, cells = write_report(complete)
    assert page == complete.folder / "report" / "index.html" and cells == "38 of 38 cells"
    return complete


def table(study: Study, name: str, **where: object) -> list[dict[str, str]]:
    rows = rows_of(study.folder / "report" / f"{name}.csv")
    return [row for row in rows if all(row[key] == str(value) for key, value in where.items())]


def one(study: Study, name: str, **where: object) -> dict[str, str]:
    (row,) = table(study, name, **where)
    return row


def of_cases(study: Study, method: str, column: str, folds: int = 4) -> np.ndarray:
    """The values of all cases, means over the repeats, straight from the files of the cells."""
    found: dict[str, list[float]] = {case: [] for case in CASES}
    for file in sorted(study.folder.glob(f"cells/{method}_fold*of{folds}_*/evaluation/cases.csv")):
        for row in rows_of(file):
            found[row["case"]].append(float(row[column]))
    return np.array([np.mean(values) for values in found.values()])


@pytest.mark.parametrize("method, folds", [("ddf", 4), ("conditional", 2), ("identity", 2)])
def test_summaries(study: Study, method: str, folds: int) -> None:
    values = of_cases(study, method, "tre_mm", folds)
    row = one(study, "summary", method=method, folds=folds, metric="tre_mm")
    names = ("p10", "p25", "median", "p75", "p90", "mean")
    expected = [*np.percentile(values, (10, 25, 50, 75, 90)), values.mean()]
    assert [float(row[name]) for name in names] == pytest.approx(expected, rel=1e-5)
    assert float(row["std"]) == pytest.approx(values.std(ddof=1), rel=1e-4, abs=1e-6)
    assert (row["n"], row["missing"]) == ("12", "0")
    repeats = 1 if method == "identity" else 3
    assert (int(row["runs"]), int(row["repeats"])) == (folds * repeats, repeats)
    assert row["trained_on"] == ("" if method == "identity" else str(12 - 12 // folds))


def test_unregistered_cases_are_shown_once(study: Study) -> None:
    values = of_cases(study, "ddf", "before_tre_mm")
    row = one(study, "summary", method="unregistered", metric="tre_mm")
    assert float(row["median"]) == pytest.approx(np.median(values), rel=1e-5)
    assert {row["method"] for row in table(study, "summary")} == {"unregistered", "ddf", "conditional", "identity"}


@pytest.mark.parametrize("metric", ["tre_mm", "gland_dsc"])
def test_paired_tests(study: Study, metric: str) -> None:
    first, second = of_cases(study, "conditional", metric), of_cases(study, "ddf", metric)
    row = one(study, "wilcoxon", metric=metric, first="conditional", second="ddf")
    assert row["pairs"] == "12"
    assert float(row["p"]) == pytest.approx(stats.wilcoxon(first, second).pvalue, rel=1e-5)
    walsh = sorted((a + b) / 2 for a, b in itertools.combinations_with_replacement(first - second, 2))
    assert float(row["estimate"]) == pytest.approx(np.median(walsh), rel=1e-5)
    # Twelve pairs: the interval of 95 % leaves out 13 averages at each end (tables of the signed-rank statistic).
    assert (float(row["low"]), float(row["high"])) == pytest.approx((walsh[13], walsh[-14]), rel=1e-5)


def test_mann_whitney(study: Study) -> None:
    rows = table(study, "mann_whitney", metric="tre_mm")
    assert len(rows) == 6
    for row in rows:
        values = [of_cases(study, row[key], "tre_mm", 2 if row[key] == "identity" else 4) for key in ("better", "than")]
        assert float(row["p"]) == pytest.approx(stats.mannwhitneyu(*values, alternative="less").pvalue, rel=1e-5)
    p = np.sort([float(row["p"]) for row in rows])
    corrected = [min(p[j] * len(p) / (j + 1) for j in range(i, len(p))) for i in range(len(p))]
    assert np.sort([float(row["p_corrected"]) for row in rows]) == pytest.approx(corrected, rel=1e-4)


def test_range_tests(study: Study) -> None:
    groups = {name: of_cases(study, name, "tre_mm", n) for name, n in (("ddf", 4), ("conditional", 4), ("identity", 2))}
    error = np.mean([values.var(ddof=1) for values in groups.values()]) / 12
    reach = stats.studentized_range.ppf(0.95, 3, 33) * np.sqrt(error)
    for row in table(study, "tukey", metric="tre_mm"):
        difference = groups[row["first"]].mean() - groups[row["second"]].mean()
        p = stats.studentized_range.sf(abs(difference) / np.sqrt(error), 3, 33)
        found = [float(row[key]) for key in ("difference", "low", "high", "p")]
        assert found == pytest.approx([difference, difference - reach, difference + reach, p], rel=1e-3, abs=1e-9)


@pytest.mark.parametrize("method, folds", [("ddf", 2), ("conditional", 4)])
def test_bias_and_variance(study: Study, method: str, folds: int) -> None:
    errors: dict[tuple[str, str], list[list[float]]] = {}
    for file in sorted(study.folder.glob(f"cells/{method}_fold*of{folds}_*/evaluation/centroids.csv")):
        for row in rows_of(file):
            error = [float(row[f"warped_{axis}_mm"]) - float(row[f"fixed_{axis}_mm"]) for axis in "xyz"]
            errors.setdefault((row["case"], row["label"]), []).append(error)
    vectors = np.array(list(errors.values()))
    assert vectors.shape == (len(CASES) * len(LABELS), 3, 3)
    bias = np.square(vectors.mean(1)).sum(1)
    variance = np.square(vectors).sum(2).mean(1) - bias
    for metric, expected in (("bias_mm2", bias), ("variance_mm2", variance)):
        row = one(study, "training_sizes", method=method, folds=folds, metric=metric)
        found = [float(row[name]) for name in ("mean", "p25", "median", "p75", "n")]
        assert found == pytest.approx([expected.mean(), *np.percentile(expected, (25, 50, 75)), 36], rel=1e-4)


def test_more_training_cases_are_compared_with_the_fewest(study: Study) -> None:
    fewest, most = (one(study, "training_sizes", method="ddf", folds=folds, metric="tre_mm") for folds in (2, 4))
    assert float(fewest["trained_on"]) < float(most["trained_on"])
    assert fewest["pairs"] == "0" and fewest["estimate"] == ""
    differences = of_cases(study, "ddf", "tre_mm", 4) - of_cases(study, "ddf", "tre_mm", 2)
    assert most["pairs"] == "12" and float(most["p"]) == pytest.approx(stats.wilcoxon(differences).pvalue, rel=1e-4)
    assert float(most["low"]) <= float(most["estimate"]) <= float(most["high"])


def test_kinds_of_label(study: Study) -> None:
    found: dict[str, list[float]] = {}
    for file in study.folder.glob("cells/ddf_fold*of4_*/evaluation/labels.csv"):
        for row in rows_of(file):
            if row["name"] == "cyst":
                found.setdefault(row["case"], []).append(float(row["distance_after_mm"]))
    row = one(study, "labels", method="ddf", label="cyst", measure="distance_after_mm")
    assert float(row["median"]) == pytest.approx(np.median([np.mean(v) for v in found.values()]), rel=1e-5)
    assert row["n"] == "12"


def test_scores_of_challenges(study: Study) -> None:
    row = one(study, "muregpro", method="identity")
    # All cases are alike: the error, √3 · 4 mm at each landmark, is divided by its mean before registration.
    error, dsc = 4 * np.sqrt(3), 0.95 - 0.08 * np.sqrt(3)
    before = error * (1 + np.arange(12) / 20)
    # RTRE: 68 % of 12 cases is 8.
    terms = [error / before.mean(), error / before[:8].mean(), error / before.mean(), min(2 * error / 9, 1)]
    assert float(row["score"]) == pytest.approx(0.3 * dsc + np.dot((0.3, 0.1, 0.1, 0.2), 1 - np.array(terms)), rel=1e-4)
    ranks = {row["method"]: row for row in table(study, "learn2reg")}
    # Of three methods in DSC, HD95 and TRE, each beats those below; two deform alike, and one does not deform.
    expected = {"ddf": (0.55**3 * 0.775), "conditional": (1.0**3 * 0.1), "identity": (0.1**3 * 0.775)}
    for method, product in expected.items():
        assert float(ranks[method]["rank_score"]) == pytest.approx(product**0.25, rel=1e-5)
    tre = of_cases(study, "ddf", "tre_mm")
    assert float(ranks["ddf"]["TRE30"]) == pytest.approx(np.quantile(tre, 0.7), rel=1e-5)


def test_claims(study: Study) -> None:
    rows = table(study, "claims")
    assert [row["verdict"] for row in rows] == ["holds", "holds, but by less", "fails", "holds", "not measured"]
    medians = [np.median(of_cases(study, method, "tre_mm")) for method in ("conditional", "ddf")]
    assert float(rows[0]["change_percent"]) == pytest.approx(100 * (medians[0] / medians[1] - 1), rel=1e-4)
    assert (rows[0]["runs"], rows[0]["pairs"], rows[3]["pairs"]) == ("12+12", "12", "36")


def test_a_claim_is_about_the_cases_that_both_methods_measured(tmp_path: Path) -> None:
    study = study_of(tmp_path, report={"claims": CLAIMS})
    for file in study.folder.glob("cells/conditional_*/evaluation/cases.csv"):
        rows = rows_of(file)
        write_csv(file, list(rows[0]), [list(row.values()) for row in rows if row["case"] in CASES[:7]])
    write_report(study)
    row = table(study, "claims")[0]
    medians = [np.median(of_cases(study, "ddf", "tre_mm")[:7]), np.median(of_cases(study, "ddf", "tre_mm"))]
    assert row["pairs"] == "7" and medians[0] != medians[1]
    assert float(row["median_than"]) == pytest.approx(medians[0], rel=1e-4)


class References(HTMLParser):
    """The attributes of a page that may name another file, its elements and its text."""

    def __init__(self) -> None:
        super().__init__()
        self.references: list[str] = []
        self.elements: set[str] = set()
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.add(tag)
        self.references += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data")]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_needs_no_other_file(study: Study) -> None:
    content = (study.folder / "report" / "index.html").read_text(encoding="utf-8")
    page = References()
    page.feed(content)
    assert page.references and all(name.startswith(("#", "data:image/")) for name in page.references)
    assert not {"script", "link", "iframe", "object", "embed", "one"} & page.elements
    assert "url(" not in content and "@import" not in content and "://" not in content
    assert "Two methods & <one> baseline" in page.text
    for heading in ("Claims", "Results", "Box plots", "Bias and variance", "Scores of challenges", "Deformations"):
        assert heading in page.text
    assert "What is missing" not in page.text
    images = [name for name in page.references if name.startswith("data:")]
    assert sum(name.startswith("data:image/png") for name in images) == 2  # two cases of deformations
    assert sum(name.startswith("data:image/svg+xml") for name in images) == 3  # two box plots and the curves
    write_report(study)
    assert (study.folder / "report" / "index.html").read_text(encoding="utf-8") == content


def test_the_command(study: Study, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["regzoo", "study", "report", str(study.file)])
    main()
    assert capsys.readouterr().out == f"{study.folder / 'report' / 'index.html'}: 38 of 38 cells\n"


def test_an_incomplete_study(tmp_path: Path) -> None:
    def keep(cell: Cell) -> bool:
        return cell.method != "conditional" or (cell.folds, cell.fold, cell.repeat) == (4, 0, 0)

    study = study_of(tmp_path, keep)
    failed = next(cell for cell in cells_of(study) if cell.method == "ddf" and cell.folds == 4)
    write_facts(study, failed, {"status": "failed", "error": "out of memory", "recipe": recipe(study, failed)})
    page, cells = write_report(study)
    assert cells == "20 of 38 cells"
    text = References()
    text.feed(page.read_text(encoding="utf-8"))
    assert "What is missing" in text.text
    # The one fold of the second method has three cases; each lacks one repeat of the first method, but not all.
    assert one(study, "wilcoxon", metric="tre_mm", first="conditional", second="ddf")["pairs"] == "3"
    row = one(study, "summary", method="ddf", folds=4, metric="tre_mm")
    assert (row["n"], row["runs"]) == ("12", "11")


@pytest.mark.parametrize("file", sorted((Path(__file__).parents[3] / "studies").glob("*.json")), ids=lambda f: f.stem)
def test_the_studies_of_the_papers_ask_for_what_a_report_knows(file: Path, tmp_path: Path) -> None:
    scale = "small" if "scales" in json.loads(file.read_text()) else None
    with pytest.raises(RegZooError, match="no cell of this study is done"):
        write_report(read_study(file, scale, tmp_path))


def test_a_study_may_ask_for_some_comparisons(tmp_path: Path) -> None:
    asked = {"compare": [["conditional", "ddf"], ["ddf", "conditional"]], "metrics": ["tre_mm"]}
    study = study_of(tmp_path, folds=2, repeats=1, report=asked)
    write_report(study)
    pairs = [("conditional", "ddf"), ("ddf", "conditional")]
    assert [(row["first"], row["second"]) for row in table(study, "wilcoxon")] == pairs
    rows = table(study, "mann_whitney")
    assert [(row["better"], row["than"]) for row in rows] == pairs
    p = float(rows[0]["p"])
    assert float(rows[0]["p_corrected"]) == pytest.approx(2 * p, rel=1e-5)  # of two tests, the other has 1 − p
    assert [(row["first"], row["second"]) for row in table(study, "tukey")] == [("ddf", "conditional")]


def test_methods_on_two_data_sets_are_never_compared(tmp_path: Path) -> None:
    methods = {"ddf": {"bundle": DDF, "data": "a"}, "identity": {"bundle": DDF, "baseline": "identity", "data": "b"}}
    data = {"a": {"dataset_dir": "data"}, "b": {"dataset_dir": "data"}}
    study = study_of(tmp_path, data=data, methods=methods, folds=None, repeats=1)
    page, _ = write_report(study)
    assert not (study.folder / "report" / "wilcoxon.csv").exists()
    assert {row["data"] for row in table(study, "summary", method="unregistered")} == {"a", "b"}
    assert "Results: b" in page.read_text(encoding="utf-8")
    for asked in (
        {"claims": [{"claim": "x", "better": "ddf", "than": "identity"}]},
        {"compare": [["ddf", "identity"]]},
    ):
        asking = read_study(description(tmp_path, data=data, methods=methods, folds=None, repeats=1, report=asked))
        with pytest.raises(RegZooError, match="ddf is measured on the data a, and identity on b; name two methods"):
            write_report(asking)


def test_a_baseline_is_compared_on_the_folds_that_are_run(tmp_path: Path) -> None:
    study = study_of(tmp_path, folds=[2, 4], run_folds=1, repeats=1)
    write_report(study)
    assert one(study, "wilcoxon", metric="tre_mm", first="identity", second="ddf")["pairs"] == "3"
    assert [row["n"] for row in table(study, "summary", method="identity", metric="tre_mm")] == ["6", "3"]


def test_tables_of_an_earlier_report_are_removed(tmp_path: Path) -> None:
    study = study_of(tmp_path, folds=None, repeats=1, report={"claims": CLAIMS[:1]})
    write_report(study)
    folder = study.folder / "report"
    (folder / "mine.csv").touch()
    assert (folder / "claims.csv").is_file() and (folder / "wilcoxon.csv").is_file()
    content = json.loads(study.file.read_text())
    content["methods"], content["report"] = {"ddf": content["methods"]["ddf"]}, {}
    study.file.write_text(json.dumps(content))
    write_report(read_study(study.file))
    assert not (folder / "claims.csv").exists() and not (folder / "wilcoxon.csv").exists()
    assert (folder / "summary.csv").is_file() and (folder / "mine.csv").is_file()


def test_methods_that_only_a_scale_has_and_that_look_like_formulas(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither those nor infinite values end a report."""
    monkeypatch.setitem(ERRORS, "a $x_$ b", (1.0, 1.0))
    changes = {"methods": {"a $x_$ b": {"bundle": DDF}, "identity": {"bundle": DDF, "baseline": "identity"}}}
    changes |= {"report": {"cases": ["nobody"]}}
    file = description(tmp_path, folds=[2, 4], repeats=2, scales={"small": changes})
    content = json.loads(file.read_text())
    del content["methods"]
    file.write_text(json.dumps(content))
    study = read_study(file, "small")
    for cell in cells_of(study):
        fill(study, cell)
    cases = folder_of(study, cells_of(study)[0]) / "evaluation" / "cases.csv"
    header, first, *others = cases.read_text().splitlines()
    name, _, *values = first.split(",")
    cases.write_text("\n".join([header, ",".join([name, "inf", *values]), *others]))
    page = write_report(study)[0].read_text(encoding="utf-8")
    assert "a $x_$ b" in page and "nobody: no cell has kept a field of this case." in page


def test_cells_with_other_settings_are_left_out(tmp_path: Path) -> None:
    study_of(tmp_path)
    methods = json.loads((tmp_path / "study.json").read_text())["methods"]
    methods["ddf"]["settings"] = {"max_epochs": 3}
    changed = read_study(description(tmp_path, methods=methods))
    assert write_report(changed)[1] == "20 of 38 cells"
    assert {row["method"] for row in table(changed, "summary")} == {"unregistered", "conditional", "identity"}
    fill(changed, next(cell for cell in cells_of(changed) if cell.method == "ddf"))
    assert write_report(changed)[1] == "21 of 38 cells"


def test_cells_with_other_code_are_used_and_named(tmp_path: Path) -> None:
    methods = {"pretraining": {"bundle": DDF, "measured": False}, "ddf": {"bundle": DDF, "start": "pretraining"}}
    study = study_of(tmp_path, methods=methods, folds=2, repeats=1)
    assert "with other code" not in write_report(study)[0].read_text(encoding="utf-8")

    def change(cell: Cell, **parts: str) -> None:
        facts = read_facts(study, cell)
        facts["recipe"] |= parts
        write_facts(study, cell, {key: facts[key] for key in ("status", "trained_on", "training_seconds", "recipe")})

    for cell in cells_of(study):
        change(cell, code="old", **({"start": "old"} if cell.method == "ddf" else {}))
    page, cells = write_report(study)
    assert cells == "2 of 2 cells" and "with other code" in page.read_text(encoding="utf-8")
    change(next(cell for cell in cells_of(study) if cell.method == "pretraining"), study="old")
    assert write_report(study)[1] == "1 of 2 cells"


def no_change(study: Study) -> None:
    """Nothing is done."""


def measure(study: Study) -> None:
    fill(study, cells_of(study)[0])


def spoil(study: Study) -> None:
    fill(study, cells_of(study)[0])
    (folder_of(study, cells_of(study)[0]) / "evaluation" / "cases.csv").write_text("case,tre_mm\ncase00,near\n")


def twice(study: Study) -> None:
    first, second = [cell for cell in cells_of(study) if cell.method == "ddf" and cell.folds == 4][:2]
    for cell in (first, second):
        fill(study, cell)
    names = [folder_of(study, cell) / "evaluation" / "cases.csv" for cell in (first, second)]
    names[1].write_bytes(names[0].read_bytes())
    assert measured_in(first) != measured_in(second)


@pytest.mark.parametrize(
    "report, change, words",
    [
        ({}, no_change, "no cell of this study is done; run regzoo study run"),
        ({}, spoil, "cases.csv: is missing or is not a table"),
        ({}, twice, "case00 was measured in another fold"),
        ({"claim": []}, no_change, "report.claim: no such key; did you mean claims?"),
        ({"metrics": "tre_mm"}, no_change, "report.metrics"),
        ({"claims": [{"claim": "x", "better": "ddf"}]}, no_change, r"report.claims\[0\].than is missing"),
        ({"claims": [{"claim": "x", "better": "ddf", "than": "dff"}]}, no_change, "no method dff; did you mean ddf?"),
        ({"compare": [["ddf"]]}, no_change, "is not a pair of methods"),
        ({"metrics": ["tre_m"]}, measure, "report.metrics: no metric tre_m; did you mean tre_mm?"),
        (
            {"claims": [{"claim": "x", "better": "ddf", "than": "identity", "metric": "gland_dcs"}]},
            measure,
            r"report.claims\[0\].metric: no metric gland_dcs; did you mean gland_dsc?",
        ),
    ],
)
def test_mistakes(tmp_path: Path, report: dict[str, object], change: Callable[[Study], None], words: str) -> None:
    study = study_of(tmp_path, lambda cell: False, report=report)
    change(study)
    with pytest.raises(RegZooError, match=words) as error:
        write_report(study)
    assert "\n" not in str(error.value)


def test_a_metric_that_the_study_adds_may_be_named_before_it_is_measured(tmp_path: Path) -> None:
    added = {"validate#metrics#measures#mine": {"_target_": "regzoo_tools.study.measuring.Runtime"}}
    study = study_of(tmp_path, lambda cell: cell.method == "identity", evaluation=added, report={"metrics": ["mine"]})
    write_report(study)


def test_quantities_of_an_affine_deformation() -> None:
    """u = A x on an oblique grid: det J = det(I + A) and ‖∇u‖ = ‖A‖, whatever the voxels."""
    matrix = np.array([[0.1, 0.2, 0.0], [0.0, -0.3, 0.05], [0.1, 0.0, 0.2]])
    grid = Grid((8, 9, 7), make_affine((8, 9, 7), (1, 2, 3), (20, -10, 30), axes=(2, 0, 1), flips=(1, -1, 1)))
    affine = np.eye(4)
    affine[:3, :3] += matrix
    found = quantities(DisplacementField.from_affine(affine, grid))
    assert found["det J"] == pytest.approx(np.linalg.det(affine), abs=1e-4)
    assert found["‖∇u‖"] == pytest.approx(np.linalg.norm(matrix), abs=1e-4)
    corner = grid.to_world(np.array([[7, 0, 6]]))[0]
    assert found["‖u‖, mm"][7, 0, 6] == pytest.approx(np.linalg.norm(matrix @ corner), rel=1e-4)


def test_maps_name_their_methods() -> None:
    planes = ({name: np.ones((6, 5)) for name in ("det J", "‖u‖, mm", "‖∇u‖")}, 1.0)
    assert len({deformation_maps({"ddf": planes, name: planes}) for name in ("sdm", "demons")}) == 2
