"""Cross-validation on the hippocampus MRs of the Decathlon: ``python benchmarks/hippocampus.py --help``.

The bundle is trained on four fifths of the patients, with the settings of its ``train.json``. Pairs of the other fifth
are registered by a refinement of the images alone, by the network alone, and by the network with the refinement that
the bundle offers. No registration sees a label of its pair. The moving label map is carried onto the grid of the fixed
one by nearest neighbour. The weights are those of the last epoch, because the best epoch is chosen on the held-out
fifth. If it is started again, a finished training is not repeated.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from comparison import markdown
from regzoo.case import FIXED, MOVING, SIDES, Record
from regzoo.datasets import draw_pairs, load_single_records
from regzoo.datasets.splits import patient_folds
from regzoo.errors import one_line_errors
from regzoo.inference import Registrar
from regzoo.metrics import FoldedVoxels, LabelHausdorff, LogJacobianStd, dice
from regzoo.spatial import read_label_file, to_channels
from trainings import DATA, RESULTS, RUN, execute, heading, save_result, words

BUNDLE, FOLDS = "hippocampus_mr_weak_ddf", 5
#: Name → value in the label maps.
LABELS = {"anterior": 1, "posterior": 2}
#: Column of a row → how its mean is written.
OTHERS = {"HD95, mm": ".2f", "SDlogJ": ".3f", "folds, %": ".4f", "s": ".2f", "CPU, s": ".2f"}
ITSELF = "itself, mm"
#: Dice and HD95 of a published method on the validation pairs of the challenge.
PUBLISHED = {
    "published: unregistered": ("0.55", "—"),
    "published: trained with labels": ("0.796", "—"),
    "published: with a symmetric loss": ("0.830", "—"),
    "published: with pretraining": ("0.839", "1.63"),
}
NOTE = (
    "Five-fold cross-validation, patients apart; means over the pairs, drawn within each fold with a fixed seed. Worst "
    "30 %: the mean Dice of the worst pairs. Dice30: the quantile of 30 %, as Learn2Reg scores it. SDlogJ is as in "
    "Learn2Reg. Seconds and CPU-seconds of all threads are from the files to the field. Itself: the largest "
    "displacement when the fixed image of a pair is registered to itself. The published rows (Estienne et al. 2020, "
    "arXiv:2010.10897) are for the 60 validation pairs of Learn2Reg 2020, task 4, which are not these pairs."
)
Row = dict[str, float]


def registrars(checkpoint: Path) -> dict[str, Registrar]:
    """Each method by its name."""
    weights = str(checkpoint)
    return {
        "centres aligned": Registrar("none", align="center"),
        "refinement alone": Registrar("none", align="center", refine="mr"),
        "network alone": Registrar(BUNDLE, checkpoint=weights),
        "network and refinement": Registrar(BUNDLE, checkpoint=weights, refine=True),
    }


def measure(registrar: Registrar, pair: Record) -> Row:
    """What a method reaches on a pair."""
    start, used = time.perf_counter(), time.process_time()
    field = registrar.register(pair[FIXED.image], pair[MOVING.image]).field
    seconds, used = time.perf_counter() - start, time.process_time() - used
    with tempfile.TemporaryDirectory() as folder:
        copy = shutil.copy(pair[FIXED.image], folder)
        still = registrar.register(pair[FIXED.image], copy).field.displacement.norm(dim=0)
    reference, moving = (to_channels(read_label_file(pair[side.label]).volume, list(LABELS.values())) for side in SIDES)
    warped, ddf = field.warp(moving, mode="nearest"), field.ddf()
    return dict(zip(LABELS, dice(warped, reference).tolist(), strict=True)) | {
        "HD95, mm": float(LabelHausdorff(label=None).measure(warped, reference)),
        "SDlogJ": float(LogJacobianStd("learn2reg").measure(ddf, ddf)),
        "folds, %": float(FoldedVoxels().measure(ddf, ddf)),
        "s": seconds,
        "CPU, s": used,
        ITSELF: float(still.max()),
    }


def table(found: Mapping[str, Sequence[Row]]) -> str:
    """A line for each method: means over the pairs."""
    dices = [*(f"Dice, {label}" for label in LABELS), "Dice", "Dice, worst 30 %", "Dice30"]
    lines = [["method", *dices, *OTHERS, ITSELF]]
    for method, rows in found.items():
        overlap = np.asarray([[row[label] for label in LABELS] for row in rows])
        mean = np.sort(overlap.mean(axis=1))
        worst = mean[: max(round(0.3 * len(mean)), 1)]
        values = [*overlap.mean(axis=0), mean.mean(), worst.mean(), np.quantile(mean, 0.3)]
        others = [format(float(np.nanmean([row[name] for row in rows])), form) for name, form in OTHERS.items()]
        itself = max(row[ITSELF] for row in rows)
        lines.append([method, *(f"{value:.3f}" for value in values), *others, f"{itself:.1g}"])
    for name, (mean_dice, distance) in PUBLISHED.items():
        empty = ["—"] * (len(OTHERS) - 1)
        lines.append([name, "—", "—", mean_dice, "—", "—", distance, *empty, "—"])
    return markdown(lines)


def train(fold: int, options: argparse.Namespace) -> Path:
    """The weights of a fold's last epoch; the training itself sees whether it is done, and with which settings."""
    folder = options.work / f"fold{fold}"
    given = {"dataset_dir": options.data.resolve(), "fold": fold, "folds": FOLDS, "output_dir": folder.resolve()}
    given |= {"max_epochs": options.epochs} if options.epochs else {}
    command = [*RUN, "training", "--config_file", "configs/train.json", *words(given)]
    execute(command, BUNDLE, folder.with_suffix(".log"))
    return Path(folder / "last.pt")


def results_of(fold: int, records: Sequence[Record], options: argparse.Namespace) -> dict[str, list[Row]]:
    """The rows of all methods on the pairs of a fold."""
    methods = registrars(train(fold, options))
    pairs = draw_pairs(records, options.work / f"fold{fold}_pairs.json", options.pairs)
    found = {name: [measure(registrar, pair) for pair in pairs] for name, registrar in methods.items()}
    print(f"fold {fold}\n{table(found)}", flush=True)
    return found


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder of the task, as downloaded")
    parser.add_argument("--fold", type=int, nargs="+", default=list(range(FOLDS)), help="only these")
    parser.add_argument("--pairs", type=int, default=60, help="per fold")
    parser.add_argument("--epochs", type=int, default=0, help="of each training; 0: as the bundle")
    parser.add_argument("--work", type=Path, default=DATA / "hippocampus", help="for the weights")
    parser.add_argument("--out", type=Path, default=RESULTS / "hippocampus.md", help="for the table")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, register, measure and print."""
    options = parse(arguments)
    options.work.mkdir(parents=True, exist_ok=True)
    records = load_single_records(options.data, "train")
    parts = patient_folds(records, FOLDS)
    found: dict[str, list[Row]] = {}
    for fold in options.fold:
        for name, rows in results_of(fold, parts[fold], options).items():
            found.setdefault(name, []).extend(rows)
    pairs = len(next(iter(found.values())))
    text = f"{heading(f'{len(records)} images, {len(options.fold)} of {FOLDS} folds, {pairs} pairs')}\n\n{table(found)}"
    print(text)
    save_result(options.out, "Hippocampus: cross-validation", text, "hippocampus.py", arguments, NOTE)


if __name__ == "__main__":
    one_line_errors()
    main()
