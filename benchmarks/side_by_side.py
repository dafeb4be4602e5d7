"""Train methods alike on the same folds, and compare: ``python benchmarks/side_by_side.py label_driven`` (or ``sdm``).

Every method starts from its bundle's demo overlay and sees the same pairs in equally many epochs, samples and batches.
The pairs of the fold that it did not see are measured with its last weights, so that they have chosen nothing. Started
again, it goes on where it was stopped. Prints medians with the 10th and 90th percentile, and paired Wilcoxon tests.
"""

from __future__ import annotations

import argparse
import itertools
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from comparison import pooled, report
from regzoo.datasets import load_records
from regzoo.errors import one_line_errors
from regzoo.files import make_folder
from regzoo_phantoms import embedded_phantoms
from trainings import (
    BUNDLES,
    DATA,
    RESULTS,
    RUN,
    clocked,
    execute,
    fingerprint,
    heading,
    is_trained,
    save_result,
    training_seconds,
)

Method = tuple[str, list[str]]  # a bundle and some of its overlays
SDM = "prostate_mr_trus_sdm"


@dataclass(frozen=True)
class Contest:
    """Methods to compare, the first with all others or each with each, and kinds of landmark no training may see."""

    methods: dict[str, Method]
    each_with_each: bool = False
    holdout: tuple[str, ...] = ()

    def pairs(self, names: Sequence[str]) -> list[tuple[str, str]]:
        """Which of the named methods are compared."""
        return list(itertools.combinations(names, 2)) if self.each_with_each else [(names[0], n) for n in names[1:]]


CONTESTS = {
    "label_driven": Contest(
        {
            "weakly-supervised DDF": ("prostate_mr_trus_weak_ddf", []),
            "conditional segmentation": ("prostate_mr_trus_conditional_seg", []),
        },
        holdout=("calcification",),
    ),
    "sdm": Contest(
        {"mDSC": (SDM, ["mdsc"]), "SDM": (SDM, ["sdm"]), "MIX": (SDM, ["mix"]), "MIX+": (SDM, [])}, each_with_each=True
    ),
}


def run_folder(method: Method, data: Path, fold: int, options: argparse.Namespace) -> Path:
    """Where a training goes; other settings go elsewhere, so that they are never taken for each other."""
    name = f"fold{fold}of{options.folds}_epochs{options.epochs}_samples{options.samples}_batch{options.batch_size}"
    name = "_".join([name, *(["without", *options.holdout] if options.holdout else [])])
    data_name = f"{data.stem}_{zlib.crc32(str(data).encode()):08x}"
    recipe = fingerprint(*((BUNDLES / method[0] / path).read_bytes() for path in configurations(method)))
    method_name = "_".join([method[0], *method[1], recipe])
    return DATA / "side_by_side" / data_name / method_name / name


def configurations(method: Method) -> list[str]:
    """The files that a method is trained with, relative to its bundle."""
    return ["configs/train.json", *(f"configs/variants/{name}.json" for name in ("demo", *method[1]))]


def commands(method: Method, data: Path, fold: int, folder: Path, options: argparse.Namespace) -> list[list[str]]:
    """The training and the evaluation, to be run in the bundle's folder."""
    configs = configurations(method)
    same = ["--dataset_dir", str(data), "--fold", str(fold), "--folds", str(options.folds)]
    same += ["--output_dir", str(folder), "--max_epochs", str(options.epochs)]
    same += ["--samples_per_epoch", str(options.samples), "--batch_size", str(options.batch_size)]
    same += ["--holdout", str(list(options.holdout))] if options.holdout else []
    # One validation at the end: it chooses nothing here.
    training = [*RUN, "training", "--config_file", str(configs), *same, "--val_interval", str(options.epochs)]
    evaluation = [*RUN, "--config_file", str([*configs, "configs/evaluate.json"]), *same, "--eval_split", "fold"]
    evaluation += ["--checkpoint", str(folder / "last.pt"), "--evaluation_dir", str(folder / "evaluation")]
    return [training, [*evaluation, "--pictures", "0"]]


def train_and_evaluate(method: Method, data: Path, fold: int, folder: Path, options: argparse.Namespace) -> None:
    """What of it is not done yet."""
    training, evaluation = commands(method, data, fold, make_folder(folder), options)
    last, table, log = folder / "last.pt", folder / "evaluation" / "cases.csv", folder / "log.txt"
    if not is_trained(folder, options.epochs):
        print("training … ", end="", flush=True)
        with clocked(folder):
            execute(training, method[0], log)
    if not table.is_file() or table.stat().st_mtime < last.stat().st_mtime:
        print("evaluating … ", end="", flush=True)
        execute(evaluation, method[0], log)
    print("done", flush=True)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("contest", choices=list(CONTESTS))
    parser.add_argument("--epochs", type=int, default=9)
    parser.add_argument("--samples", type=int, default=1600, help="per epoch")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--folds", type=int, default=5, help="parts of the pairs; one is measured, the others train")
    parser.add_argument("--runs", type=int, default=1, help="how many of the folds are measured in turn")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="some of the methods; nothing is saved then")
    parser.add_argument("--dataset-dir", type=Path, help="instead of phantoms")
    parser.add_argument("--pairs", type=int, default=250, help="of phantoms")
    parser.add_argument("--spacing", type=float, default=2.0, help="of phantoms, mm")
    parser.add_argument("--seed", type=int, default=2, help="of phantoms")
    parser.add_argument("--holdout", nargs="*", metavar="KIND", help="kinds of landmark that no training sees")
    parser.add_argument("--save", action=argparse.BooleanOptionalAction, default=True, help="write benchmarks/results/")
    options = parser.parse_args(arguments)
    methods = CONTESTS[options.contest].methods
    if unknown := set(options.only or ()) - methods.keys():
        parser.error(f"--only: {min(unknown)!r} is no method of {options.contest}; use some of {', '.join(methods)}")
    if not 1 <= options.runs <= options.folds:
        parser.error(f"--runs: {options.runs} of {options.folds} folds cannot be measured")
    if options.holdout and not CONTESTS[options.contest].holdout:
        parser.error(f"--holdout: the methods of {options.contest} are trained with the gland only")
    if options.holdout is None:  # other data sets may have other names
        options.holdout = () if options.dataset_dir else CONTESTS[options.contest].holdout
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the contest that the command line asks for."""
    options = parse(arguments)
    contest = CONTESTS[options.contest]
    names = [name for name in contest.methods if not options.only or name in options.only]
    if options.dataset_dir:
        data, what = options.dataset_dir.resolve(), f"data set {options.dataset_dir.name}"
        load_records(data, "train")  # says at once if there is something wrong with it
    else:
        made = {"pairs": options.pairs, "held_out": 0, "spacing": options.spacing, "seed": options.seed}
        data = embedded_phantoms(DATA / "_".join(["phantoms", *(f"{k}{v}" for k, v in made.items())]), **made)
        what = f"{options.pairs} pairs of phantoms, {options.spacing:g} mm, seed {options.seed}"
    found, minutes = {}, {}
    for name in names:
        folders = [run_folder(contest.methods[name], data, fold, options) for fold in range(options.runs)]
        for fold, folder in enumerate(folders):
            print(f"{name}, fold {fold}: ", end="", flush=True)
            train_and_evaluate(contest.methods[name], data, fold, folder, options)
        found[name] = pooled([folder / "evaluation" / "cases.csv" for folder in folders])
        minutes[name] = sum(map(training_seconds, folders)) / len(folders) / 60
    work = f"{what}; {options.runs} of {options.folds} folds measured, each by a training on the others"
    work += f"; {options.epochs} epochs of {options.samples} samples in batches of {options.batch_size}"
    work += f"; landmarks no training saw (ad hoc): {', '.join(options.holdout)}" if options.holdout else ""
    text = f"{heading(work)}\n\n{report(found, minutes, contest.pairs(names))}"
    print(f"\n{text}")
    if options.save and not options.only:
        path, title = RESULTS / f"side_by_side_{options.contest}.md", f"Side by side: {options.contest}"
        note = "Values are medians (10th–90th percentile) over the pairs."
        save_result(path, title, text, "side_by_side.py", arguments, note)


if __name__ == "__main__":
    one_line_errors()
    main()
