"""Curves of a training, read from files that TensorBoard's own writer wrote."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.image import imread
from regzoo.cli import main
from regzoo.errors import RegZooError
from regzoo_tools.curves import read_curves, training_figure
from torch.utils.tensorboard import SummaryWriter

TAGS = {"loss/total": 1.0, "loss/label": 0.5, "loss/deformation": 0.1, "learning_rate": 1e-3, "tre": 9.0}


def log(folder: Path, epochs: range, factor: float = 1.0) -> None:
    """What a training of these epochs leaves, in a file per handler as ours have them."""
    for tags in (["tre"], [tag for tag in TAGS if tag != "tre"]):
        writer = SummaryWriter(str(folder), filename_suffix=f".{len(tags)}.{epochs.start}")
        for epoch in epochs:
            for tag in tags:
                writer.add_scalar(tag, factor * TAGS[tag] / epoch, epoch)
        writer.close()


def test_a_resumed_training_is_one_curve(tmp_path: Path) -> None:
    log(tmp_path, range(1, 5), factor=7.0)
    log(tmp_path, range(3, 7))
    curves = read_curves(tmp_path)
    assert curves.keys() == TAGS.keys()
    for tag, value in TAGS.items():
        expected = {epoch: (7 if epoch < 3 else 1) * value / epoch for epoch in range(1, 7)}
        assert list(curves[tag]) == list(expected) and curves[tag] == pytest.approx(expected)


def drawn(path: Path) -> np.ndarray:
    return np.asarray(imread(path))[..., :3]


def test_figure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    log(tmp_path / "output", range(1, 6))
    assert training_figure(tmp_path / "plain.png", tmp_path / "output") == 5
    plain = drawn(tmp_path / "plain.png")
    width = plain.shape[1] // 3  # total loss, terms, one metric
    for panel in range(3):
        part = plain[:, panel * width : (panel + 1) * width]
        assert (np.ptp(part, axis=2) > 0.5).sum() > 100  # a coloured line
    torch.save({"best_metric_epoch": 4}, tmp_path / "output" / "last.pt")
    picture = tmp_path / "new" / "marked.png"
    picture.parent.mkdir()
    monkeypatch.setattr(sys, "argv", ["regzoo", "curves", str(tmp_path / "output"), "--out", str(picture)])
    main()
    assert capsys.readouterr().out == f"{picture}: 5 epochs\n"
    changed = np.abs(drawn(picture) - plain).max(axis=2) > 0.2
    columns = np.flatnonzero(changed.any(axis=0))
    # Of the validation alone, a line across at four fifths of 1…5: at ¾ of the way.
    assert columns.size <= 4 and 2 * width + 0.6 * width < columns.mean() < 2 * width + 0.9 * width


def test_no_log(tmp_path: Path) -> None:
    with pytest.raises(RegZooError, match="no log of a training"):
        training_figure(tmp_path / "none.png", tmp_path)
    with pytest.raises(RegZooError, match="nowhere: is not a folder; name the --output_dir"):
        training_figure(tmp_path / "none.png", tmp_path / "nowhere")
    assert list(tmp_path.iterdir()) == []
    log(tmp_path / "output", range(1, 3))
    (tmp_path / "output" / "last.pt").write_bytes(b"half a checkpoint")
    with pytest.raises(RegZooError, match=r"last\.pt: cannot be read as a checkpoint"):
        training_figure(tmp_path / "none.png", tmp_path / "output")
    assert not (tmp_path / "none.png").exists()
