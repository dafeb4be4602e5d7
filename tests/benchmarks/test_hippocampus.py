"""The cross-validation on the hippocampi, on small subjects with two labels that the intensities show."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from helpers import ball, make_affine, write

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks"
SHAPE = (30, 44, 36)


@pytest.fixture(scope="module")
def script() -> Iterator[ModuleType]:
    sys.path.insert(0, str(SCRIPT))
    import hippocampus

    yield hippocampus
    sys.path.remove(str(SCRIPT))


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
    for number in range(10):
        subject(root, number, 0.3 * number, (30 + number % 2, 44, 36))
    return root


def test_known_labels_are_matched(script: ModuleType, task: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a network that is always right, 2.7 mm between two subjects are found, and centres alone miss them."""
    fixed, moving = (script.load(record) for record in (script.load_single_records(task)[i] for i in (0, 9)))
    assert tuple(fixed.image.shape[1:]) == script.SIZE and float(fixed.image.max()) == pytest.approx(1)
    assert fixed.labels.sum() == fixed.native.sum() > 1000
    monkeypatch.setattr(script, "outlined", lambda network, subject: subject.labels)
    before, images, after = (script.measure(method, fixed, moving, None) for method in script.METHODS)
    assert before["anterior"] < 0.75 and before["CPU, s"] < images["CPU, s"]
    assert min(after["anterior"], after["posterior"], images["anterior"]) > 0.93
    assert after["HD95, mm"] <= 1 and after["folds, %"] == 0 and before["SDlogJ"] == pytest.approx(0, abs=1e-3)


def test_the_network_learns(script: ModuleType, task: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A subject that the training did not see is outlined, although its intensities are of another size."""
    monkeypatch.setattr(script, "SIZE", (16, 32, 16))
    monkeypatch.setattr(script, "CHANNELS", (8, 16, 32))
    monkeypatch.setattr(script, "WARM_UP", 10)
    monkeypatch.setattr(script, "RATE", 0.006)
    subjects = [script.load(record) for record in script.load_single_records(task)[:9]]
    network = script.train(subjects[1:], 100)
    found = (script.outlined(network, subjects[0]) > 0.5).float()
    expected = subjects[0].labels
    overlap = 2 * (found * expected).sum((1, 2, 3)) / (found + expected).sum((1, 2, 3))
    assert overlap.min() > 0.6


def test_augmentation_keeps_labels_on_their_image(script: ModuleType, task: Path) -> None:
    subjects = [script.load(record) for record in script.load_single_records(task)[:4]]
    images, labels = script.augmented(subjects, torch.tensor([4, 5, 1002, 2003]))
    inside = labels[:, 1:].sum(1, keepdim=True)
    for image, mask in zip(images, inside, strict=True):
        assert image[mask > 0.99].min() > image[mask < 0.01].max()
    assert torch.allclose(labels.sum(1), torch.ones(()), atol=1e-5)


def test_table_and_start_again(
    script: ModuleType, task: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """All folds, each pair within its fold; a second start reads what is known."""
    monkeypatch.setattr(script, "METHODS", (script.UNREGISTERED,))
    out = tmp_path / "table.md"
    arguments = [str(task), "--steps", "1", "--pairs", "2", "--work", str(tmp_path / "work"), "--out", str(out)]
    script.main(arguments)
    text = out.read_text()
    pairs = [json.loads((tmp_path / f"work/fold{k}_pairs.json").read_text())["testing"] for k in range(5)]
    named = [{Path(pair[side]).name for pair in fold for side in ("fixed_image", "moving_image")} for fold in pairs]
    assert all(len(names) == 2 for names in named) and len(set.union(*named)) == 10
    assert "10 pairs" in text and "centres aligned" in text and ".796" in text
    monkeypatch.setattr(script, "train", None)
    script.main(arguments)
    assert out.read_text() == text and "fold 0" in capsys.readouterr().out
