"""The side-by-side comparison: what it would run, what it does not run again, and what it makes of the results."""

from __future__ import annotations

import ast
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from regzoo.errors import RegZooError
from regzoo.report import write_csv
from scipy.stats import wilcoxon

ROOT = Path(__file__).resolve().parents[2]
DDF, SEG = "weakly-supervised DDF", "conditional segmentation"


@pytest.fixture(scope="module")
def script() -> Iterator[ModuleType]:
    """The script as a module; it imports its neighbours."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    import side_by_side

    yield side_by_side
    sys.path.remove(str(ROOT / "benchmarks"))


def cells(text: str) -> dict[str, list[str]]:
    """The rows of all Markdown tables in a text by their first two cells, and by the first one alone."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    return {row[0]: row for row in reversed(rows)} | {f"{row[0]}, {row[1]}": row for row in rows}


def overrides(command: list[str]) -> dict[str, str]:
    """The options of a bundle's command line."""
    start = next(i for i, word in enumerate(command) if word.startswith("--"))
    return {
        key.removeprefix("--"): value for key, value in zip(command[start::2], command[start + 1 :: 2], strict=True)
    }


@pytest.mark.parametrize("contest", ["label_driven", "sdm"])
def test_methods_are_run_alike(script: ModuleType, tmp_path: Path, contest: str) -> None:
    options = script.parse([contest, "--epochs", "3", "--samples", "40", "--batch-size", "4", "--folds", "6"])
    alike = []
    for bundle, overlays in script.CONTESTS[contest].methods.values():
        training, evaluation = script.commands((bundle, overlays), Path("/data"), 2, tmp_path, options)
        assert training[1:5] == ["-m", "monai.bundle", "run", "training"]
        assert evaluation[1:4] == ["-m", "monai.bundle", "run"]
        trained, evaluated = overrides(training), overrides(evaluation)
        configs = ["configs/train.json", *(f"configs/variants/{name}.json" for name in ("demo", *overlays))]
        assert ast.literal_eval(trained.pop("config_file")) == configs
        assert ast.literal_eval(evaluated.pop("config_file")) == [*configs, "configs/evaluate.json"]
        # MONAI does not complain about an option that no config has.
        keys: set[str] = set()
        for config in [*configs, "configs/evaluate.json"]:
            keys |= json.loads((ROOT / "bundles" / bundle / config).read_text()).keys()
        assert trained.keys() | evaluated.keys() <= keys
        assert evaluated["eval_split"] == "fold"
        assert evaluated["checkpoint"] == str(tmp_path / "last.pt")
        assert trained["output_dir"] == str(tmp_path)
        assert {key: trained[key] for key in ("max_epochs", "samples_per_epoch", "batch_size", "fold", "folds")} == {
            "max_epochs": "3",
            "samples_per_epoch": "40",
            "batch_size": "4",
            "fold": "2",
            "folds": "6",
        }
        assert {key: evaluated[key] for key in trained.keys() & evaluated.keys()} == {
            key: value for key, value in trained.items() if key != "val_interval"
        }
        alike.append((trained, evaluated))
    assert all(each == alike[0] for each in alike)


def test_other_settings_go_elsewhere(script: ModuleType) -> None:
    def folder(method: tuple[str, list[str]], data: str, fold: int, *words: str) -> Path:
        return script.run_folder(method, Path(data), fold, script.parse(["label_driven", *words]))

    method = ("prostate_mr_trus_weak_ddf", ["msce"])
    folders = [folder(method, "/a/set", 0, *words) for words in ([], ["--epochs", "3"], ["--samples", "9"])]
    folders += [folder(method, "/a/set", 0, *words) for words in (["--batch-size", "3"], ["--holdout", "cyst"])]
    folders += [folder(method, "/a/set", 0, "--folds", "3"), folder(method, "/a/set", 1), folder(method, "/b/set", 0)]
    folders += [folder(("prostate_mr_trus_weak_ddf", []), "/a/set", 0)]
    assert len(set(folders)) == len(folders)
    assert all((ROOT / "benchmarks" / "data") in path.parents for path in folders)  # git ignores it
    assert folder(method, "/a/set", 0, "--runs", "3") == folders[0]
    with pytest.raises(SystemExit):
        script.parse(["sdm", "--holdout", "cyst"])


def test_another_recipe_is_another_run(script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    configs = tmp_path / "a_bundle" / "configs"
    (configs / "variants").mkdir(parents=True)
    for name in ("train.json", "variants/demo.json"):
        (configs / name).write_text("{}")
    monkeypatch.setattr(script, "BUNDLES", tmp_path)
    options = script.parse(["label_driven"])
    before = script.run_folder(("a_bundle", []), Path("/set"), 0, options)
    assert script.run_folder(("a_bundle", []), Path("/set"), 0, options) == before
    (configs / "variants/demo.json").write_text('{"learning_rate": 1}')
    assert script.run_folder(("a_bundle", []), Path("/set"), 0, options) != before


def test_ad_hoc_landmarks_are_those_of_phantoms(script: ModuleType) -> None:
    assert script.parse(["label_driven"]).holdout == ("calcification",)
    assert not script.parse(["label_driven", "--dataset-dir", "mine"]).holdout
    assert script.parse(["label_driven", "--dataset-dir", "mine", "--holdout", "cyst"]).holdout == ["cyst"]
    assert not script.parse(["label_driven", "--holdout"]).holdout


def test_mistakes_on_the_command_line(script: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    for words, said in ((["--only", "MDSC"], "mDSC, SDM, MIX, MIX+"), (["--runs", "6"], "6 of 5 folds")):
        with pytest.raises(SystemExit):
            script.parse(["sdm", *words])
        assert said in capsys.readouterr().err


def results(folder: Path, rows: dict[str, tuple[float, ...]], header: tuple[str, ...]) -> Path:
    write_csv(
        folder / "evaluation" / "cases.csv", ["case", *header], [[case, *values] for case, values in rows.items()]
    )
    return folder / "evaluation" / "cases.csv"


def test_report_of_known_values(script: ModuleType, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    before, ddf = rng.uniform(3, 8, size=(2, 30))
    seg = ddf - rng.normal(0.3, 1, size=30)
    seg[4] = np.nan
    cases = [f"case{i:06d}" for i in range(30)]
    header = ("tre_mm", "before_tre_mm", "adhoc_tre_mm", "gland_dsc", "folded_percent")
    found = {}
    for name, tre in (("A", ddf), ("B", seg)):
        rows = {c: (t, b, float("nan"), 0.9, 0.5) for c, t, b in zip(cases, tre.tolist(), before.tolist(), strict=True)}
        if name == "B":  # the other order, and no field
            rows = {case: values[:4] for case, values in reversed(rows.items())}
        # In two folds.
        tables = []
        for fold, part in enumerate((cases[:17], cases[17:])):
            mine = {case: values for case, values in rows.items() if case in part}
            tables.append(results(tmp_path / f"{name}{fold}", mine, header[: 5 - (name == "B")]))
        found[name] = script.pooled(tables)
    text = script.report(found, {"A": 2.5, "B": float("nan")}, [("A", "B")])
    rows = cells(text)
    # Landmarks that nobody measured have no column.
    assert rows["method"] == ["method", "pairs", "TRE, mm", "gland DSC", "folded, %", "training, min"]
    for name, values in (("unregistered", before), ("A", ddf), ("B", seg)):
        low, middle, high = np.nanpercentile(values, (10, 50, 90))
        missing = ", 1 missing" if name == "B" else ""
        assert rows[name][1:3] == ["30", f"{middle:.2f} ({low:.2f}–{high:.2f}){missing}"]
    assert rows["unregistered"][3:] == ["—", "—", "—"]
    assert rows["A"][3:] == ["0.900 (0.900–0.900)", "0.500 (0.500–0.500)", "2.50"]
    assert rows["B"][4:] == ["—", "—"]
    known = ~np.isnan(seg)
    expected = wilcoxon(seg[known], ddf[known])
    assert 0.001 < expected.pvalue < 0.5
    _, metric, pairs, difference, p = rows["B − A, TRE, mm"]
    assert (metric, pairs) == ("TRE, mm", "29")
    assert float(difference) == pytest.approx(np.median((seg - ddf)[known]), rel=0.01)
    assert float(p) == pytest.approx(expected.pvalue, rel=0.01)
    assert rows["B − A, gland DSC"][2:] == ["30", "0", "—"]
    assert "folded" not in text.split("Wilcoxon")[1]


def test_tests_of_a_contest(script: ModuleType) -> None:
    first, each = script.CONTESTS["label_driven"], script.CONTESTS["sdm"]
    assert first.pairs(list(first.methods)) == [(DDF, SEG)]
    assert len(each.pairs(list(each.methods))) == 6
    assert first.pairs([SEG]) == each.pairs(["MIX"]) == []
    values = {"tre_mm": {f"{i}": float(i) for i in range(20)}}
    worse = {"tre_mm": {case: value + 1 + value / 50 for case, value in values["tre_mm"].items()}}
    rows = cells(script.report({"A": values, "B": worse}, {"A": 1.0, "B": 1.0}, [("A", "B")]))
    # All of 20 differences have one sign: p = 2 / 2^20.
    assert rows["B − A, TRE, mm"][2:] == ["20", "1.19", "< 0.001"]


def test_cases_that_do_not_match(script: ModuleType, tmp_path: Path) -> None:
    one = results(tmp_path / "one", {"a": (1.0,), "b": (2.0,)}, ("tre_mm",))
    two = results(tmp_path / "two", {"b": (1.0,), "c": (2.0,)}, ("tre_mm",))
    with pytest.raises(RegZooError, match=r"two/evaluation/cases.csv: b is in another fold too"):
        script.pooled([one, two])
    with pytest.raises(RegZooError, match="A and B were measured on different cases"):
        script.report({"A": script.pooled([one]), "B": script.pooled([two])}, {"A": 1, "B": 1}, [("A", "B")])


class FakeRuns:
    """Stands in for the bundle: writes what a training or an evaluation leaves, and counts."""

    def __init__(self, error: float) -> None:
        self.commands: list[tuple[str, str]] = []
        self.error = error

    def __call__(self, command: list[str], bundle: str, log: Path) -> None:
        options = overrides(command)
        folder = Path(options["output_dir"])
        self.commands.append(("training" if "training" in command else "evaluation", bundle))
        if "training" in command:
            torch.save({"epoch": int(options["max_epochs"])}, folder / "last.pt")
        else:
            rows = {f"case{options['fold']}{i}": (self.error + i, 9.0 + i) for i in range(4)}
            results(folder, rows, ("tre_mm", "before_tre_mm"))


def test_a_comparison_from_start_to_end(
    script: ModuleType,
    prostate_phantoms: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(script, "DATA", tmp_path / "data")
    monkeypatch.setattr(script, "RESULTS", tmp_path / "results")
    runs = FakeRuns(2.0)
    monkeypatch.setattr(script, "execute", runs)
    arguments = ["label_driven", "--dataset-dir", str(prostate_phantoms), "--runs", "2", "--epochs", "3"]
    with pytest.raises(RegZooError, match="missing: no such data set"):
        script.main(["sdm", "--dataset-dir", str(tmp_path / "missing")])
    script.main([*arguments, "--only", DDF])
    assert [kind for kind, _ in runs.commands] == ["training", "evaluation"] * 2
    assert not (tmp_path / "results").exists()
    script.main(arguments)
    # The first method was there.
    assert [bundle for _, bundle in runs.commands[4:]] == ["prostate_mr_trus_conditional_seg"] * 4
    saved = (tmp_path / "results" / "side_by_side_label_driven.md").read_text()
    rows = cells(saved)
    assert rows["unregistered"][1:3] == ["8", "10.5 (9.00–12.0)"]
    assert rows[SEG][2] == "3.50 (2.00–5.00)"
    assert "3 epochs of 1600 samples in batches of 8" in saved
    assert "label_driven --dataset-dir" in saved
    assert saved.split("\n\n")[2] in capsys.readouterr().out
    # A training that was stopped goes on; what was measured before it ended is measured again.
    last = next((tmp_path / "data").rglob("prostate_mr_trus_weak_ddf_*/fold1of5*")) / "last.pt"
    torch.save({"epoch": 2}, last)
    os.utime(last.parent / "evaluation" / "cases.csv", (1, 1))
    count = len(runs.commands)
    script.main([*arguments, "--no-save"])
    assert runs.commands[count:] == [(kind, "prostate_mr_trus_weak_ddf") for kind in ("training", "evaluation")]


def test_time_of_a_training_that_was_stopped(script: ModuleType, tmp_path: Path) -> None:
    clock, last = tmp_path / "clock.json", tmp_path / "last.pt"
    assert script.training_seconds(tmp_path) == 0
    clock.write_text('{"seconds": 0.0, "started": 1000.0}')
    assert script.training_seconds(tmp_path) == 0  # stopped in its first epoch
    last.touch()
    os.utime(last, (1060, 1060))
    assert script.training_seconds(tmp_path) == 60  # up to the last epoch it finished
    clock.write_text('{"seconds": 60.0, "started": 5000.0}')
    assert script.training_seconds(tmp_path) == 60
    os.utime(last, (5030, 5030))
    assert script.training_seconds(tmp_path) == 90
    clock.write_text('{"seconds": 90.0, "started": null}')
    assert script.training_seconds(tmp_path) == 90


def test_a_failing_run_is_one_line(script: ModuleType, tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    command = [
        sys.executable,
        "-c",
        "import os; print(os.getcwd(), os.environ['OMP_WAIT_POLICY']); print('error: why'); raise SystemExit(3)",
    ]
    with pytest.raises(RegZooError, match=r"log.txt: the run ended with status 3 \(error: why\); mend"):
        script.execute(command, "prostate_mr_trus_weak_ddf", log)
    assert log.read_text().split()[:2] == [str(ROOT / "bundles" / "prostate_mr_trus_weak_ddf"), "passive"]
