"""The bundles as they are found, and what makes a training of any of them tiny: read from their own files."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

BUNDLES = sorted(path.parents[1] for path in Path(__file__).parents[1].glob("bundles/*/configs/train.json"))
NAMES = [path.name for path in BUNDLES]
#: One bundle that trains on single images and one that trains on pairs: for what networks and losses have no part in.
REPRESENTATIVES = ["abdominal_ct_ddmr", "prostate_mr_trus_weak_ddf"]
#: All bundles, for tests of half a minute each: `make test` runs the representatives, `make test-slow` the others.
OTHERS_SLOW = [pytest.param(name, marks=[pytest.mark.slow] if name not in REPRESENTATIVES else []) for name in NAMES]
#: A coarse grid over the phantoms of a kind: voxel size (mm) and size.
GRIDS = {
    "prostate": (5.0, [18, 14, 13]),
    "abdomen": (16.0, [20, 14, 13]),
    "brain": (12.0, [14, 18, 13]),
    "hippocampus": (3.0, [12, 17, 13]),
}
#: Widths of the levels of a network, if the setting is a list.
LEVELS = [2, 4]


def config(bundle: str | Path, name: str) -> dict[str, Any]:
    """A configuration of a bundle, by the bundle's name or folder."""
    folder = BUNDLES[0].parent / bundle  # a whole path stays what it is
    return json.loads((folder / "configs" / f"{name}.json").read_text(encoding="utf-8"))


def training(bundle: str | Path) -> dict[str, Any]:
    """The configuration of a bundle's training."""
    return config(bundle, "train")


def predicts_field(bundle: str | Path) -> bool:
    """Whether a bundle's network predicts a displacement field, and not a propagated label."""
    prediction = config(bundle, "metadata")["network_data_format"]["outputs"]["pred"]
    return bool(prediction["format"] == "displacement field")


def needs_label(bundle: str | Path) -> bool:
    """Whether a bundle cannot register without the label of the moving image."""
    inference = config(bundle, "inference")
    need = inference["load"].get("need", ())
    return "moving_label" in (inference[need[1:]] if isinstance(need, str) else need)


def pairs(phantoms: Path) -> list[dict[str, str]]:
    """The pairs held out of a data set of phantoms; of single images, each with the next one."""
    from regzoo.datasets import load_records, load_single_records
    from regzoo.datasets.records import pair_record
    from regzoo.errors import RegZooError

    try:
        return [dict(record) for record in load_records(phantoms, "val")]
    except RegZooError:
        ones = load_single_records(phantoms, "val")
        return [dict(pair_record(*two)) for two in pairwise(ones)]


def kind(bundle: str | Path) -> str:
    """The kind of phantoms that a bundle trains on, see `GRIDS`."""
    return str(training(bundle)["phantoms"].get("kind", "prostate"))


def on_single_images(bundle: str | Path) -> bool:
    """Whether a bundle trains on single images."""
    return "max_images" in training(bundle)


def narrow(bundle: str | Path) -> int | list[int]:
    """The smallest ``channels`` of a bundle's network."""
    if kind(bundle) == "hippocampus":  # MONAI's BasicUNet has six
        return [2] * 6
    return LEVELS if isinstance(training(bundle)["channels"], list) else LEVELS[0]


def tiny(bundle: str | Path) -> dict[str, Any]:
    """Settings for a training of a few seconds."""
    spacing, size = GRIDS[kind(bundle)]
    return {
        "spacing": [spacing] * 3,
        "size": size,
        "channels": narrow(bundle),
        "batch_size": 2,
        "samples_per_epoch": 6,
        "max_epochs": 2,
        "folds": 4,
        "device": "cpu",
    }


def logged(bundle: str | Path) -> set[str]:
    """The tags of a training's log, beside those that every training has: terms of the loss, and metrics."""
    config = training(bundle)
    return {f"loss/{term}" for term in config["loss"]["terms"]} | set(config["validate"]["metrics"]["measures"])
