"""Studies whose bundles are only pretended to run."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

#: ``-S -E``: starts in a few milliseconds.
PYTHON = [sys.executable, "-S", "-E", str(Path(__file__).with_name("pretend_python.py"))]
BUNDLE = "prostate_mr_trus_weak_ddf"


@pytest.fixture
def write_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Writes ``study.json`` with two methods on a data set of four pairs; entries may be changed.

    Without folds, the data set holds the last pair out.
    """
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # or PyTorch would be asked for the GPUs

    def write(**changes: Any) -> Path:
        (tmp_path / "images").mkdir(exist_ok=True)
        names = [f"{name}.nii.gz" for name in "abcdefgh"]
        for name in names:
            (tmp_path / "images" / name).touch()
        splits = ["train", "train", "train", "train" if changes.get("folds", 3) else "val"]
        rows = [f"{names[2 * i]},{names[2 * i + 1]},{split}\n" for i, split in enumerate(splits)]
        (tmp_path / "images" / "datalist.csv").write_text("".join(["fixed_image,moving_image,split\n", *rows]))
        study = {"data": {"prostate": {"dataset_dir": "images"}}, "python": PYTHON, "folds": 3}
        study["methods"] = {"sum": {"bundle": BUNDLE}, "finest level": {"bundle": BUNDLE, "overlays": ["delta0"]}}
        path = tmp_path / "study.json"
        path.write_text(json.dumps({key: value for key, value in (study | changes).items() if value is not None}))
        return path

    return write
