"""Copies of bundles that a test may break."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def copy_bundle(tmp_path: Path) -> Callable[..., Path]:
    """Copies a bundle into a folder laid out like the project, so that links out of the bundle lead somewhere."""

    def copy(name: str = "prostate_mr_trus_sdm", project: str = "project", weights: bool = True) -> Path:
        target = tmp_path / project / "bundles" / name
        shutil.copytree(
            ROOT / "bundles" / name,
            target,
            ignore=shutil.ignore_patterns("output", "data", "__pycache__", *([] if weights else ["models"])),
        )
        for folder in ("docs", "benchmarks", "CONTRIBUTING.md", "bundles/prostate_mr_trus_weak_ddf"):
            link = tmp_path / project / folder
            if not link.exists():
                link.symlink_to(ROOT / folder)
        return target

    return copy
