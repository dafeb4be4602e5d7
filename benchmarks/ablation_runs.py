"""The trainings, evaluations and timings of the ablation: what they are, where they go, what of it is done."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from regzoo.datasets import Record
from regzoo.engines import evaluation_pairs
from regzoo.files import make_folder
from regzoo.inference import Registrar
from regzoo.report import write_csv
from regzoo_phantoms import embedded_phantoms
from trainings import BUNDLES, DATA, RUN, clocked, execute, fingerprint, is_trained, training_seconds, words

BUNDLE = "abdominal_ct_ddmr"
#: The designs of the paper's Table 1 and their overlays.
DESIGNS = {
    "BL-N": "bl_n",
    "BL-NS": "bl_ns",
    "SG-ND": "sg_nd",
    "SG-NSD": "sg_nsd",
    "UW-NSD": "uw_nsd",
    "UW-NSDH": "uw_nsdh",
}


@dataclass(frozen=True)
class Stage:
    """One way to train a design.

    Attributes:
        title: in words.
        kind: of the phantoms it is trained and measured on.
        overlays: beyond those of the demo and of the design.
        parent: the stage whose weights of the same design it starts from; None: from scratch.
        parts: how much of the epochs it gets, of 2: two steps take no longer than one.
    """

    title: str
    kind: str
    overlays: tuple[str, ...] = ()
    parent: str | None = None
    parts: int = 2

    def epochs(self, whole: int) -> int:
        """Its share of the epochs of a training; the second of two steps gets an odd one."""
        first = max(1, whole // 2)
        return whole if self.parts == 2 else first if self.overlays == ("finetune_decoder",) else max(1, whole - first)


STAGES = {
    "brain": Stage("brain MR", "brain", ("pretrain_brain",)),
    "scratch": Stage("abdominal CT, from scratch", "abdomen"),
    "one_step": Stage("abdominal CT, fine-tuned from brain MR at once", "abdomen", ("finetune",), "brain"),
    "decoder": Stage("abdominal CT, decoder only", "abdomen", ("finetune_decoder",), "brain", parts=1),
    "two_steps": Stage("abdominal CT, fine-tuned in two steps", "abdomen", ("finetune",), "decoder", parts=1),
}


@dataclass(frozen=True)
class Data:
    """Phantoms of one kind, the grid that the network sees them on, and the pairs that every method is measured on.

    Attributes:
        kind: ``abdomen`` or ``brain``.
        folder: of the phantoms.
        pairs: how many.
        spacing: of the network's grid, mm.
        size: of the network's grid, voxels.
        overlays: of the bundle, for data of this kind.
        split: what the evaluation calls the pairs: ``listed_test``, the same patient breathed out and in, as the
            phantoms list them, or ``val``, different patients, drawn once and stored. No training sees these patients.
        align: how the pairs are aligned beforehand; None: as the bundle does.
    """

    kind: str
    folder: Path
    pairs: int
    spacing: tuple[float, ...]
    size: tuple[int, ...]
    overlays: tuple[str, ...]
    split: str
    align: str | None

    @property
    def pairs_file(self) -> Path:
        """Where pairs that are drawn are stored once and for all."""
        return self.folder.parent / f"{self.folder.name}_{self.pairs}_pairs.json"

    def test_pairs(self) -> list[Record]:
        """The pairs that the bundle's evaluation takes: what another method is to be measured on."""
        return evaluation_pairs(self.folder, self.split, self.pairs_file, self.pairs)


def phantoms(kind: str, options: argparse.Namespace) -> Data:
    """The phantoms of a kind, written if they are not there."""
    brain = kind == "brain"
    cases, voxel = (options.brain_cases, options.brain_voxel) if brain else (options.cases, options.voxel)
    spacing, size = (options.brain_spacing, options.brain_size) if brain else (options.spacing, options.size)
    made: dict[str, Any] = {"cases": cases, "held_out": options.held_out, "spacing": voxel, "seed": options.seed}
    made |= {"breathing": True} if options.breathing and not brain else {}
    folder = DATA / "ablation" / "_".join([kind, *(f"{key}{value}" for key, value in made.items())])
    pairs = options.pairs or options.held_out
    overlays = ("demo", "pretrain_brain") if brain else ("demo",)
    embedded_phantoms(folder, kind=kind, **made)
    split, align = ("val", None) if brain else ("listed_test" if options.breathing else "val", options.align)
    return Data(kind, folder, pairs, (float(spacing),) * 3, tuple(size), overlays, split, align)


#: Settings of a training that its evaluation needs, too.
USED = ("spacing", "size", "channels", "align")


class Trained:
    """A design as a stage trains it, in a folder that its recipe names.

    Args:
        stage: name of the stage.
        design: name of the design.
        data: kind → phantoms.
        options: the command line.
    """

    def __init__(self, stage: str, design: str, data: dict[str, Data], options: argparse.Namespace) -> None:
        self.stage, self.design = STAGES[stage], design
        self.data, self.options = data[self.stage.kind], options
        self.epochs = self.stage.epochs(options.epochs)
        parent = self.stage.parent
        self.parent = Trained(parent, design, data, options) if parent else None
        self.configs = configurations(["demo", DESIGNS[design], *self.stage.overlays])
        self.settings: dict[str, object] = {
            "dataset_dir": self.data.folder,
            "spacing": list(self.data.spacing),
            "size": list(self.data.size),
            "channels": list(options.channels),
            "max_epochs": self.epochs,
            "samples_per_epoch": options.samples,
            "early_stop": self.epochs,  # all designs see equally many samples
        }
        if self.data.align:
            self.settings["align"] = self.data.align
        if self.parent:
            self.settings["init_weights"] = self.parent.checkpoint
        recipe = fingerprint(*contents(self.configs), json.dumps(self.settings, default=str).encode())
        self.folder = DATA / "ablation" / f"{stage}_{DESIGNS[design]}_{recipe}"

    @property
    def checkpoint(self) -> Path:
        """The weights that the validation, on other pairs than the test's, has picked."""
        return self.folder / "model.pt"

    def training(self) -> list[str]:
        """The command that trains it, to be run in the bundle's folder."""
        settings = self.settings | {"output_dir": self.folder}
        return [*RUN, "training", "--config_file", str(self.configs), *words(settings)]

    def evaluation(self) -> tuple[list[str], Path]:
        """The command that measures it on the test pairs, and the folder of the results."""
        configs = [*self.configs, "configs/evaluate.json"]
        measured: dict[str, object] = {
            "eval_split": self.data.split,
            "pairs_file": self.data.pairs_file,
            "eval_pairs": self.data.pairs,
        }
        recipe = fingerprint(*contents(configs[-1:]), json.dumps(measured, default=str).encode())
        folder = self.folder / f"evaluation_{recipe}"
        here = {"output_dir": self.folder, "checkpoint": self.checkpoint, "evaluation_dir": folder, "pictures": 0}
        grid = {key: self.settings[key] for key in ("dataset_dir", *USED) if key in self.settings}
        return [*RUN, "--config_file", str(configs), *words(grid | measured | here)], folder

    def train(self) -> None:
        """Train it, after what it starts from, as far as that is not done."""
        if self.parent:
            self.parent.train()
        if not is_trained(make_folder(self.folder), self.epochs):
            print(f"training {self.design}, {self.stage.title} … ", end="", flush=True)
            with clocked(self.folder):
                execute(self.training(), BUNDLE, self.folder / "log.txt")
            print("done", flush=True)

    def evaluate(self) -> list[Path]:
        """Measure it as far as that is not done; returns the tables: values, and seconds, of each test pair."""
        command, folder = self.evaluation()
        values, seconds = folder / "cases.csv", folder / "runtimes.csv"
        trained = self.checkpoint.stat().st_mtime
        if not values.is_file() or values.stat().st_mtime < trained:
            print(f"measuring {self.design}, {self.stage.title} … ", end="", flush=True)
            execute(command, BUNDLE, self.folder / "log.txt")
            print("done", flush=True)
        if not seconds.is_file() or seconds.stat().st_mtime < trained:
            write_csv(seconds, ["case", "runtime_s"], self.runtimes())
        return [values, seconds]

    def runtimes(self) -> list[tuple[str, float]]:
        """Test pair → seconds from the files to the warped image and labels, with a network that is already loaded.

        That is reading, resampling to the network's grid, one forward pass, and applying the field on the fixed
        image's own grid. The first pair is registered once before, for what happens once only.
        """
        registrar = Registrar(
            BUNDLES / BUNDLE,
            [f"configs/variants/{name}.json" for name in self.data.overlays],
            checkpoint=str(self.checkpoint),
            **{key: self.settings[key] for key in USED if key in self.settings},
        )
        pairs = self.data.test_pairs()
        times = []
        for pair in [pairs[0], *pairs]:
            start = time.perf_counter()
            registrar.register(pair["fixed_image"], pair["moving_image"], pair["moving_label"], pair["fixed_label"])
            times.append((str(pair["case"]), time.perf_counter() - start))
        return times[1:]

    def minutes(self) -> float:
        """How long its training took, with the steps before it on data of this kind."""
        before = self.parent.minutes() if self.parent and self.parent.data == self.data else 0.0
        return before + training_seconds(self.folder) / 60


def configurations(overlays: Sequence[str]) -> list[str]:
    """Files of the bundle, relative to its folder."""
    return ["configs/train.json", *(f"configs/variants/{name}.json" for name in overlays)]


def contents(files: Sequence[str]) -> list[bytes]:
    """What files of the bundle hold."""
    return [(BUNDLES / BUNDLE / file).read_bytes() for file in files]
