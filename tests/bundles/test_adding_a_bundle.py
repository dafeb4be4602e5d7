"""The page on adding a bundle, step by step as it is printed: the copy trains, verifies, and differs by few lines."""

from __future__ import annotations

import difflib
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from bundle_list import BUNDLES
from monai.bundle import ConfigWorkflow
from regzoo_tools.verification import OK, verify

PAGE = (BUNDLES[0].parents[1] / "docs" / "adding_a_bundle.md").read_text(encoding="utf-8")
SETTINGS, DESCRIPTION = (json.loads(block) for block in re.findall(r"```json\n(.*?)```", PAGE, flags=re.DOTALL))
OLD, NEW = re.findall(r"^cp -r (\w+) (\w+)$", PAGE, flags=re.MULTILINE)[0]
ORIGINAL = BUNDLES[0].parent / OLD
#: So that an epoch takes seconds.
SMALL = {"channels": [2, 4], "batch_size": 2, "samples_per_epoch": 4, "max_epochs": 1, "device": "cpu", "folds": 2}


def change(file: Path, values: dict[str, Any]) -> set[str]:
    """Set the values whose names a configuration has; returns these names."""
    config = json.loads(file.read_text(encoding="utf-8"))
    found = set()
    for name, value in values.items():
        *parents, last = name.split("#")
        place = config
        for parent in parents:
            place = place[parent]
        if last in place:
            place[last] = value
            found.add(name)
    file.write_text(json.dumps(config, indent=4) + "\n", encoding="utf-8")
    return found


@pytest.fixture
def added(tmp_path: Path) -> Path:
    """Steps 1 to 3."""
    root = tmp_path / "bundles" / NEW
    shutil.copytree(ORIGINAL, root, ignore=shutil.ignore_patterns("models", "output", "data"))
    kept = re.findall(r"`(\w+\.json)`", PAGE.split("## 2.")[0])
    for overlay in (root / "configs" / "variants").iterdir():
        if overlay.name not in kept:
            overlay.unlink()
    assert change(root / "configs" / "train.json", SETTINGS) == SETTINGS.keys()
    assert {"spacing", "size", "intensity"} <= change(root / "configs" / "inference.json", SETTINGS)
    assert change(root / "configs" / "metadata.json", DESCRIPTION) == DESCRIPTION.keys()
    # The pages link to the project's.
    for folder in ("docs", "benchmarks"):
        (tmp_path / folder).symlink_to(BUNDLES[0].parents[1] / folder, target_is_directory=True)
    return root


def test_the_copy_trains_and_verifies(added: Path, tmp_path: Path) -> None:
    changed = 0
    for file in added.glob("configs/**/*.json"):
        before, after = (
            path.read_text(encoding="utf-8").splitlines() for path in (ORIGINAL / file.relative_to(added), file)
        )
        lines = list(difflib.unified_diff(before, after, lineterm="", n=0))[2:]
        changed += max(sum(line.startswith(sign) for line in lines) for sign in "+-")
    assert 30 < changed < 150

    few = SETTINGS["phantoms"] | {"cases": 6, "held_out": 2, "spacing": 8.0}
    for name in ("train", "inference"):
        change(added / "configs" / f"{name}.json", {"channels": SMALL["channels"]})
    workflow = ConfigWorkflow(
        config_file=str(added / "configs" / "train.json"),
        logging_file=False,
        workflow_type="train",
        bundle_root=str(added),
        output_dir=str(tmp_path / "output"),
        phantoms=few,
        **{name: value for name, value in SMALL.items() if name != "channels"},
    )
    workflow.initialize()
    workflow.run()
    workflow.finalize()
    (added / "models").mkdir()
    shutil.copy(tmp_path / "output" / "model.pt", added / "models" / "model.pt")
    assert [row for row in verify(added) if row.result != OK] == []
