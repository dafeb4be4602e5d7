"""The cross-validation on the hippocampi, on small subjects with two labels that the intensities show."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from helpers import ball, make_affine, write

SCRIPT = "hippocampus"
SHAPE = (30, 44, 36)
METHODS = ("centres aligned", "refinement alone", "network alone", "network and refinement")
WEIGHTS = Path(__file__).resolve().parents[2] / "bundles/hippocampus_mr_weak_ddf/models/model.pt"


def subject(root: Path, number: int, shift: float, shape: tuple[int, int, int] = SHAPE) -> None:
    """Two balls, one behind the other, at a distance from the centre of the image."""
    middle = [(n - 1) / 2 for n in shape]
    labels = np.zeros(shape, dtype=np.uint8)
    for value, along in ((1, 7), (2, -7)):
        labels[ball(shape, (middle[0], middle[1] + along + shift, middle[2]), 6) > 0] = value
    image = 10.0 ** (number % 4) * (1 + 2 * labels).astype(np.float32)
    affine = make_affine(shape, (1.0, 1.0, 1.0))
    for folder, values in (("imagesTr", image), ("labelsTr", labels)):
        (root / folder).mkdir(parents=True, exist_ok=True)
        write(root / folder / f"hippocampus_{number:03d}.nii.gz", values, affine)


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("task") / "Task04_Hippocampus"
    for number in range(10):  # odd numbers: two consecutive images would be of one patient
        subject(root, 2 * number + 1, 0.3 * number, (30 + number % 2, 44, 36))
    return root


def test_methods_are_measured(script: ModuleType, task: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each pair lies within its fold. The intensities, of other sizes in each image, show the labels."""
    rows: list[dict[str, float]] = []
    measure = script.measure
    monkeypatch.setattr(script, "measure", lambda *given: rows.append(measure(*given)) or rows[-1])
    monkeypatch.setattr(script, "train", lambda fold, options: WEIGHTS)
    out, work = tmp_path / "table.md", tmp_path / "work"
    arguments = [str(task), "--fold", "0", "3", "--pairs", "1", "--work", str(work), "--out", str(out)]
    script.main(arguments)
    text = out.read_text()
    named = [json.loads((work / f"fold{k}_pairs.json").read_text())["testing"][0]["case"] for k in (0, 3)]
    assert len(set(named)) == 2 and "2 pairs" in text and "0.796" in text
    assert [line.split("|")[1].strip() for line in text.splitlines() if line.startswith("| ")][1:5] == list(METHODS)
    means = {name: np.mean([row["anterior"] for row in rows[k::4]]) for k, name in enumerate(METHODS)}
    assert means["refinement alone"] > means["centres aligned"] and means["refinement alone"] > 0.93
    assert all(row["SDlogJ"] < 1e-3 for row in rows[::4]) and all(row["itself, mm"] < 0.3 for row in rows)


def test_a_fold_is_trained(script: ModuleType, task: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the bundle, without the fold, up to the wanted epoch."""
    commands: list[list[str]] = []

    def execute(command: list[str], bundle: str, log: Path) -> None:
        commands.append([bundle, *command])

    monkeypatch.setattr(script, "execute", execute)
    options = script.parse([str(task), "--epochs", "3", "--work", str(tmp_path)])
    assert script.train(2, options) == tmp_path / "fold2/last.pt"
    (command,) = commands
    given = dict(zip(command[6::2], command[7::2], strict=True))
    assert command[0] == script.BUNDLE and given["--dataset_dir"] == str(task)
    assert (given["--fold"], given["--folds"], given["--max_epochs"]) == ("2", "5", "3")
