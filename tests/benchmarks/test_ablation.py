"""The ablation: what it would run, what it does not run again, its statistics, and two designs from start to end."""

from __future__ import annotations

import ast
import itertools
import json
import math
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from monai.bundle import ConfigWorkflow
from regzoo.report import write_csv
from scipy.stats import studentized_range

ROOT = Path(__file__).resolve().parents[2]
BUNDLE = ROOT / "bundles" / "abdominal_ct_ddmr"
#: Phantoms and networks as small as they can be.
TINY = ["--size", "16", "16", "16", "--spacing", "20", "--brain-size", "16", "16", "16", "--brain-spacing", "14"]
TINY += ["--channels", "2", "4", "--cases", "4", "--brain-cases", "4", "--held-out", "2"]
TINY += ["--voxel", "16", "--brain-voxel", "12"]


@pytest.fixture(scope="module")
def scripts() -> Iterator[None]:
    """The folder of the scripts on the path: they import their neighbours."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    yield
    sys.path.remove(str(ROOT / "benchmarks"))


@pytest.fixture
def script(scripts: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script as a module that writes into a folder of the test."""
    import ablation
    import ablation_runs

    for module in (ablation, ablation_runs):
        monkeypatch.setattr(module, "DATA", tmp_path / "data")
    monkeypatch.setattr(ablation, "RESULTS", tmp_path / "results")
    return ablation


@pytest.fixture
def runs(script: ModuleType) -> ModuleType:
    """The module of the trainings."""
    import ablation_runs

    return ablation_runs


def cells(text: str) -> list[list[str]]:
    """The rows of all Markdown tables in a text."""
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]


def overrides(command: list[str]) -> dict[str, str]:
    """The options of a bundle's command line."""
    start = next(i for i, word in enumerate(command) if word.startswith("--"))
    keys = [key.removeprefix("--") for key in command[start::2]]
    return dict(zip(keys, command[start + 1 :: 2], strict=True))


class FakeRuns:
    """Stands in for the bundle: writes what a training or an evaluation leaves, and remembers the commands."""

    def __init__(self) -> None:
        self.commands: list[tuple[str, dict[str, str]]] = []

    def __call__(self, command: list[str], bundle: str, log: Path) -> None:
        options = overrides(command)
        folder = Path(options["output_dir"])
        kind = "training" if "training" in command else "evaluation"
        self.commands.append((kind, options))
        if kind == "training":
            torch.save({"epoch": int(options["max_epochs"])}, folder / "last.pt")
            torch.save({}, folder / "model.pt")
        else:
            # Better with each overlay, so that the tests have something to find.
            error = 20.0 - len(options["config_file"]) / 30
            rows = [[f"case{i}", 0.1 * i, 0.05 * i, error + i, 25.0 + i] for i in range(2)]
            header = ["case", "dsc", "before_dsc", "tre_mm", "before_tre_mm"]
            write_csv(Path(options["evaluation_dir"]) / "cases.csv", header, rows)


@pytest.fixture
def fake(script: ModuleType, runs: ModuleType, monkeypatch: pytest.MonkeyPatch) -> FakeRuns:
    """No run takes place."""
    fake = FakeRuns()
    monkeypatch.setattr(runs, "execute", fake)
    monkeypatch.setattr(runs.Trained, "runtimes", lambda self: [("case0", 0.5), ("case1", 0.7)])
    return fake


def test_all_of_the_ablation_and_nothing_twice(script: ModuleType, fake: FakeRuns, tmp_path: Path) -> None:
    script.main([*TINY, "--skip-ants", "--epochs", "5"])
    trained = [options for kind, options in fake.commands if kind == "training"]
    assert len(trained) == 30
    assert len(fake.commands) == 54
    saved = (tmp_path / "results" / "ablation.md").read_text()
    assert [line for line in saved.splitlines() if line.startswith("## Table")] == [
        "## Table 2: brain MR",
        "## Table 3: abdominal CT, from scratch",
        "## Table 4: abdominal CT, fine-tuned from brain MR at once",
        "## Table 5: abdominal CT, fine-tuned in two steps",
    ]
    assert "python benchmarks/ablation.py --size 16 16 16" in saved
    rows = cells(saved)
    assert [row[0] for row in rows].count("unregistered") == 4
    assert rows[0] == ["method", "pairs", "DSC", "TRE, mm", "runtime, s", "training, min"]
    # Each training starts from the weights it should: the same design's, of the stage before.
    by_folder = {options["output_dir"]: options for options in trained}
    stages: dict[str, str] = {}
    for options in trained:
        design = Path(options["output_dir"]).name.rpartition("_")[0]
        parent = Path(options["init_weights"]).parent.name.rpartition("_")[0] if "init_weights" in options else ""
        stages[design] = parent
        assert options["max_epochs"] == options["early_stop"]
    assert len(stages) == 30
    for overlay in ("bl_n", "uw_nsdh"):
        chain = {name.removesuffix(f"_{overlay}"): stages[name] for name in stages if name.endswith(f"_{overlay}")}
        assert chain == {
            "brain": "",
            "scratch": "",
            "one_step": f"brain_{overlay}",
            "decoder": f"brain_{overlay}",
            "two_steps": f"decoder_{overlay}",
        }
    epochs = {Path(folder).name: int(options["max_epochs"]) for folder, options in by_folder.items()}
    assert {name.split("_")[0]: count for name, count in epochs.items()} == {
        "brain": 5, "scratch": 5, "one": 5, "decoder": 2, "two": 3,
    }  # fmt: skip
    # Nothing again; after a stop the rest alone, and what was measured before it, anew.
    script.main([*TINY, "--skip-ants", "--epochs", "5"])
    assert len(fake.commands) == 54
    folder = next((tmp_path / "data" / "ablation").glob("one_step_sg_nd_*"))
    torch.save({"epoch": 3}, folder / "last.pt")
    os.utime(next(folder.glob("evaluation_*")) / "cases.csv", (1, 1))
    script.main([*TINY, "--skip-ants", "--epochs", "5"])
    assert [kind for kind, _ in fake.commands[54:]] == ["training", "evaluation"]
    assert all(options["output_dir"] == str(folder) for _, options in fake.commands[54:])
    # A part of it does not overwrite the whole.
    (tmp_path / "results" / "ablation.md").unlink()
    script.main([*TINY, "--skip-ants", "--epochs", "5", "--tables", "3"])
    assert len(fake.commands) == 56
    assert not (tmp_path / "results" / "ablation.md").exists()


def test_commands_are_understood_and_alike(script: ModuleType, fake: FakeRuns) -> None:
    script.main([*TINY, "--skip-ants", "--designs", "BL-N", "UW-NSD", "--align", "header"])
    pairs: dict[str, set[str]] = {}
    for kind, options in fake.commands:
        # MONAI does not complain about an option that no config has.
        configs = ast.literal_eval(options["config_file"])
        keys = set().union(*(json.loads((BUNDLE / config).read_text()) for config in configs))
        assert options.keys() - {"config_file"} <= keys
        brain = "brain" in Path(options["dataset_dir"]).name
        assert brain == ("configs/variants/pretrain_brain.json" in configs)
        assert options.get("align") == (None if brain else "header")
        if kind == "evaluation":
            assert options["checkpoint"] == f"{options['output_dir']}/model.pt"
            pairs.setdefault(options["dataset_dir"], set()).add(options["pairs_file"])
    # One file of pairs for each kind of images.
    assert [len(files) for files in pairs.values()] == [1, 1]


def test_ants_stands_beside_the_designs(
    script: ModuleType, fake: FakeRuns, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[tuple[str, list[str]]] = []

    def values(data: Any, methods: list[str]) -> dict[str, Any]:
        asked.append((data.kind, methods))
        return {m: {"tre_mm": {"case0": 50.0, "case1": 51.0}, "dsc": {"case0": 0.1, "case1": 0.2}} for m in methods}

    monkeypatch.setattr(script, "ants_values", values)
    arguments = [*TINY, "--tables", "2", "5", "--designs", "BL-N", "SG-NSD"]
    monkeypatch.setattr(script, "TOOLS", Path(__file__))
    script.main(arguments)
    text = capsys.readouterr().out
    assert asked == [("abdomen", ["SyN", "SyNCC"]), ("brain", ["SyN"])]
    brain, abdomen, tests = text.split("## ")[1:]
    methods = ["unregistered", "BL-N", "SG-NSD", "SyN"]
    assert [row[0] for row in cells(brain)][2:6] == methods
    assert [row[0] for row in cells(abdomen)][2:7] == [*methods, "SyNCC"]
    # 2 of 2 against 2 are the other way round with a chance of 1 in 6, the smallest p that so few can have.
    rows = {row[0]: row[1:] for row in cells(tests)}
    assert float(rows["BL-N than SyN"][0]) == pytest.approx(1 / 6, rel=0.3)
    assert rows.keys() == {"better", "SG-NSD than BL-N"} | {
        f"{design} than {method}" for design in ("BL-N", "SG-NSD") for method in ("SyN", "SyNCC")
    } | {next(key for key in rows if key.startswith("---"))}
    # Without ANTs the rest is there, and the line says what to do.
    monkeypatch.setattr(script, "TOOLS", Path(__file__) / "missing")
    script.main(arguments)
    text = capsys.readouterr().out
    assert len(asked) == 2
    assert "SyN and SyNCC are left out: make peers" in text and "BL-N than SyN" not in text


def test_another_recipe_goes_elsewhere(
    script: ModuleType, runs: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configs = tmp_path / "abdominal_ct_ddmr" / "configs"
    (configs / "variants").mkdir(parents=True)
    for file in [BUNDLE / "configs" / "train.json", *(BUNDLE / "configs" / "variants").glob("*.json")]:
        (configs / file.relative_to(BUNDLE / "configs")).write_text("{}")
    monkeypatch.setattr(runs, "BUNDLES", tmp_path)

    def folders(*words: str) -> dict[str, Path]:
        options = script.parse([*TINY, *words])
        kinds = ("brain", "abdomen")
        data = {kind: runs.Data(kind, Path("/set", kind), 2, (9.0,) * 3, (16,) * 3, (), "val", None) for kind in kinds}
        return {stage: runs.Trained(stage, "SG-ND", data, options).folder for stage in runs.STAGES}

    before = folders()
    assert folders() == before
    assert len(set(before.values())) == 5
    for words in (["--epochs", "7"], ["--samples", "9"], ["--channels", "8", "8"]):
        assert not set(folders(*words).values()) & set(before.values())
    # What starts from another training is another training.
    (configs / "variants" / "finetune_decoder.json").write_text('{"learning_rate": 1}')
    after = folders()
    assert {stage for stage in before if after[stage] != before[stage]} == {"decoder", "two_steps"}
    (configs / "variants" / "pretrain_brain.json").write_text('{"learning_rate": 1}')
    assert {stage for stage in before if folders()[stage] != after[stage]} == set(before) - {"scratch"}


def test_mistakes_on_the_command_line(script: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    for words, said in ((["--designs", "BLN"], "BL-N"), (["--tables", "1"], "2, 3, 4, 5"), (["--epochs", "0"], "one")):
        with pytest.raises(SystemExit):
            script.parse(words)
        assert said in capsys.readouterr().err


def test_tukey_and_mann_whitney_of_known_values(script: ModuleType) -> None:
    from ablation_tables import one_sided, tukey

    rng = np.random.default_rng(0)
    samples = {"A": rng.normal(5, 1, 6), "B": rng.normal(6, 1, 6), "C": rng.normal(6.5, 1, 6)}

    def values(tre: np.ndarray) -> dict[str, dict[str, float]]:
        cases = {f"case{i}": float(x) for i, x in enumerate(tre)}
        return {"tre_mm": cases | {"lost": math.nan}, "dsc": {case: 1 - x / 10 for case, x in cases.items()}}

    found = {name: values(sample) for name, sample in samples.items()}
    head, *rows = cells(tukey(found))
    assert head == ["", "A", "B", "C"]
    squares = np.mean([sample.var(ddof=1) for sample in samples.values()])
    for (i, a), (j, b) in itertools.combinations(enumerate(samples), 2):
        q = abs(samples[a].mean() - samples[b].mean()) / np.sqrt(squares / 6)
        p = studentized_range.sf(q, 3, 15)
        assert 0.001 < p < 0.999
        assert float(rows[1 + i][1 + j]) == pytest.approx(p, rel=0.01)
        assert float(rows[1 + j][1 + i]) == pytest.approx(p, rel=0.01)  # DSC is a straight line of TRE here

    def exact(better: np.ndarray, worse: np.ndarray) -> float:
        """Chance that as many of all pairs, or more, are in the right order when the two are mixed at random."""
        joined = np.concatenate([better, worse])

        def count(chosen: tuple[int, ...]) -> int:
            rest = [i for i in range(len(joined)) if i not in chosen]
            return int((joined[list(chosen)][:, None] < joined[rest][None]).sum())

        seen = count(tuple(range(len(better))))
        return float(np.mean([count(c) >= seen for c in itertools.combinations(range(len(joined)), len(better))]))

    raw = sorted(
        ((exact(samples["A"], samples[name]), name) for name in ("B", "C")), key=lambda pair: pair[0], reverse=True
    )
    corrected = {raw[0][1]: raw[0][0], raw[1][1]: min(raw[0][0], 2 * raw[1][0])}
    text = one_sided({f"A than {name}": (found["A"], found[name]) for name in ("B", "C")})
    for name, tre, dsc in cells(text)[2:]:
        assert float(tre) == pytest.approx(corrected[name[-1]], rel=0.01)
        assert dsc == tre


def in_process(command: list[str], bundle: str, log: Path) -> None:
    """Run a command of the bundle without starting Python anew."""
    options: dict[str, Any] = overrides(command)
    numbers = {"config_file", "spacing", "size", "channels", "max_epochs", "samples_per_epoch", "early_stop"}
    for key in numbers & options.keys():
        options[key] = ast.literal_eval(options[key])
    options["config_file"] = [str(BUNDLE / file) for file in options["config_file"]]
    options |= {key: int(options[key]) for key in ("eval_pairs", "pictures") if key in options}
    workflow = ConfigWorkflow(workflow_type="train", logging_file=False, bundle_root=str(BUNDLE), **options)
    workflow.initialize()
    workflow.run()
    workflow.finalize()


def test_two_designs_from_brain_to_abdomen(
    script: ModuleType,
    runs: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(runs, "execute", in_process)
    arguments = [
        *TINY,
        "--designs",
        "BL-N",
        "UW-NSDH",
        "--tables",
        "5",
        "--epochs",
        "2",
        "--samples",
        "8",
    ]  # two steps: the first has a rate of 0
    script.main([*arguments, "--skip-ants"])
    # Of rows by the same name the first: the table of results comes before those of the tests.
    rows = {row[0]: row for row in reversed(cells(capsys.readouterr().out))}
    assert rows["method"][:8] == ["method", "pairs", "SSIM", "NCC", "DSC", "HD, mm", "HD95, mm", "TRE, mm"]
    assert rows["method"][-3:] == ["folded, %", "runtime, s", "training, min"]
    for name in ("BL-N", "UW-NSDH"):
        assert rows[name][1] == "2"
        assert 0 < float(rows[name][-2].split()[0]) < 60
        assert float(rows[name][-1]) > 0
    assert rows["unregistered"][-3:] == ["—", "—", "—"]
    # The decoder alone is trained in the first step, all of it in the second.
    folders = {folder.name[:-9]: folder for folder in (tmp_path / "data" / "ablation").glob("*_uw_nsdh_*")}
    weights = {
        stage: torch.load(folders[f"{stage}_uw_nsdh"] / "last.pt", weights_only=True)["network"]
        for stage in ("brain", "decoder", "two_steps")
    }
    chosen = torch.load(folders["brain_uw_nsdh"] / "model.pt", weights_only=True)
    first = next(name for name, value in chosen.items() if value.is_floating_point())
    assert torch.equal(chosen[first], weights["decoder"][first])
    assert not torch.equal(weights["decoder"][first], weights["two_steps"][first])
    # Both were measured on the same pairs: the patients held out, breathed out and in.
    (listing,) = (tmp_path / "data" / "ablation").glob("abdomen_*/AbdomenCTCT_dataset.json")
    pairs = json.loads(listing.read_text())["test_paired_images"]
    assert len(pairs) == 2
    tables = list((tmp_path / "data" / "ablation").glob("two_steps_*/evaluation_*/cases.csv"))
    assert len(tables) == 2
    cases = [[line.split(",")[0] for line in table.read_text().splitlines()[1:]] for table in tables]
    assert cases[0] == cases[1]
    for case, pair in zip(cases[0], pairs, strict=True):
        assert all(Path(file).name.removesuffix(".nii.gz") in case for file in pair.values())
