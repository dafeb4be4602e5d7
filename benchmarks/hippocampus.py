"""Cross-validation on the hippocampus MRs of the Decathlon: ``python benchmarks/hippocampus.py --help``.

A network learns to outline the anterior and the posterior hippocampus from the labels of four fifths of the patients.
Pairs of the other fifth are refined on their images alone, and on the labels that the network predicts for both images.
No registration sees a label of its pair. The moving label map is carried onto the grid of the fixed one by nearest
neighbour. If it is started again, the benchmark continues with what is missing.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from comparison import markdown
from monai.data import MetaTensor
from monai.losses import DiceCELoss
from monai.networks.nets import UNet
from monai.optimizers import WarmupCosineSchedule
from monai.transforms import ResizeWithPadOrCrop, ScaleIntensityRangePercentiles
from regzoo.augmentation import random_affine
from regzoo.case import FIXED, SIDES, Key, Record
from regzoo.datasets import draw_pairs, load_single_records
from regzoo.datasets.folders import case_name
from regzoo.datasets.splits import patient_folds
from regzoo.errors import one_line_errors
from regzoo.files import write_json
from regzoo.metrics import FoldedVoxels, LabelHausdorff, LogJacobianStd, dice
from regzoo.refinement import RefinementOptions, Volumes, options_for, refine
from regzoo.spatial import DisplacementField, Grid, read_image, read_label_file, to_channels
from trainings import DATA, RESULTS, heading, save_result

FOLDS = 5
#: The network's grid around the centre of an image, voxels of 1 mm; it holds all labels.
SIZE = (32, 48, 40)
CHANNELS, BATCH, RATE, WARM_UP, CORNER_SHIFT, GAMMA = (16, 32, 64, 128), 4, 0.003, 30, 0.15, 0.4
#: The network sees voxels of 2 mm, so shifts of the image by one voxel give other predictions.
SHIFTS = ((0, 0, 0), (1, 1, 0), (1, 0, 1), (0, 1, 1))
LABELS = ("anterior", "posterior")
UNREGISTERED, IMAGES, OUTLINES = METHODS = (
    "centres aligned",
    "refined on the images",
    "refined on the network's labels",
)
#: Chosen on 16 pairs of another division of the same images.
OPTIONS = {
    IMAGES: options_for("mr", steps=(40, 40, 20), lattice=2, smoothness=0.5, window=9),
    OUTLINES: RefinementOptions(
        {"labels": 1.0}, spacing=1.0, steps=(40, 40, 20), lattice=2, smoothness=0.03, sigmas=(0.0, 1.0)
    ),
}
#: Column of a row → how its mean is written.
OTHERS = {"HD95, mm": ".2f", "SDlogJ": ".3f", "folds, %": ".4f", "CPU, s": ".2f"}
NOTE = (
    "Five-fold cross-validation, patients apart; means over the pairs, drawn within each fold with a fixed seed. CPU: "
    "processor time of all threads for the network and the refinement. Published mean Dice on the 60 validation pairs "
    "of Learn2Reg 2020, task 4, which are not these pairs: unregistered .55, a network trained with labels .796, with "
    "a symmetric loss .830, pretrained besides .839."
)
Row = dict[str, float]


class Subject(NamedTuple):
    """An image (1, X, Y, Z) in [0, 1] on the network's grid, centred on the origin, and its labels (2, …) there."""

    image: torch.Tensor
    labels: torch.Tensor
    grid: Grid
    native: MetaTensor  #: the labels on the grid of the file, likewise centred


def load(record: Record) -> Subject:
    """Read an image and its labels. Nothing is interpolated."""
    image = ScaleIntensityRangePercentiles(0, 99, 0, 1, clip=True)(read_image(Path(record[FIXED.image])))
    native = to_channels(read_label_file(record[FIXED.label]).volume, [1, 2])
    shift = torch.eye(4, dtype=torch.float64)
    shift[:3, 3] = -torch.as_tensor(Grid.of(image).center)
    image.affine, native.affine = shift @ image.affine, shift @ native.affine
    cropped = ResizeWithPadOrCrop(SIZE, mode="edge")(image)
    labels = ResizeWithPadOrCrop(SIZE)(native.float())
    return Subject(cropped.as_tensor().float(), labels.as_tensor(), Grid.of(cropped), native)


def make_network() -> UNet:
    """MONAI's U-Net; it works on voxels of 2 mm and its last layer goes back to 1 mm."""
    return UNet(3, 1, 1 + len(LABELS), CHANNELS, [2] * (len(CHANNELS) - 1), num_res_units=1, norm="instance")


def augmented(subjects: Sequence[Subject], seeds: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Images (B, 1, …) and labels with the background (B, 3, …), moved, mirrored and with other intensities."""
    grid = F.affine_grid(random_affine(seeds, CORNER_SHIFT), [len(subjects), 1, *SIZE], align_corners=True)
    mirrored = torch.where(seeds % 2 == 0, 1.0, -1.0).view(-1, 1, 1, 1, 1) * torch.tensor([0.0, 0.0, 1.0])
    grid = grid * (mirrored + torch.tensor([1.0, 1.0, 0.0]))
    images = F.grid_sample(torch.stack([s.image for s in subjects]), grid, padding_mode="border", align_corners=True)
    labels = F.grid_sample(torch.stack([s.labels for s in subjects]), grid, align_corners=True)
    exponents = ((seeds // 2 % 1000) / 500 - 1).mul(GAMMA).exp().view(-1, 1, 1, 1, 1)
    return images.clamp(0, 1) ** exponents, torch.cat([1 - labels.sum(1, keepdim=True), labels], dim=1)


def train(subjects: Sequence[Subject], steps: int, seed: int = 0) -> UNet:
    """A network that outlines the labels of the subjects it has seen."""
    torch.manual_seed(seed)
    network, loss = make_network(), DiceCELoss(softmax=True)
    optimizer = torch.optim.AdamW(network.parameters(), RATE)
    schedule = WarmupCosineSchedule(optimizer, WARM_UP, steps)
    order: list[int] = []
    for step in range(steps):
        if len(order) < BATCH:
            order = torch.randperm(len(subjects)).tolist()
        batch, order = [subjects[index] for index in order[:BATCH]], order[BATCH:]
        images, labels = augmented(batch, torch.randint(2**31, (len(batch),)))
        value = loss(network(images), labels)
        optimizer.zero_grad()
        value.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 2.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 99:
            print(f"step {step + 1} of {steps}: loss {value.item():.3f}", flush=True)
    return network.eval()


@torch.no_grad()
def outlined(network: UNet, subject: Subject) -> torch.Tensor:
    """The predicted probabilities of the labels (2, X, Y, Z), the mean over shifted and mirrored images."""
    images = torch.stack([subject.image.roll(shift, (1, 2, 3)) for shift in SHIFTS])
    plain, mirrored = network(torch.cat([images, images.flip(2)])).softmax(1)[:, 1:].chunk(2)
    found = (plain + mirrored.flip(2)) / 2
    back = [labels.roll([-n for n in shift], (1, 2, 3)) for labels, shift in zip(found, SHIFTS, strict=True)]
    return torch.stack(back).mean(0)


def side(subject: Subject, labels: torch.Tensor | None) -> Volumes:
    """What a refinement sees of a subject."""
    return Volumes(subject.grid, subject.image, labels)


def register(method: str, fixed: Subject, moving: Subject, network: UNet) -> DisplacementField:
    """The field of a pair on the grid of the fixed labels; the centres of the images coincide before."""
    target = Grid.of(fixed.native)
    if method == UNREGISTERED:
        return DisplacementField.from_affine(np.eye(4), target)
    labels = [None, None] if method == IMAGES else [outlined(network, subject) for subject in (fixed, moving)]
    refined = refine(side(fixed, labels[0]), side(moving, labels[1]), OPTIONS[method])
    return DisplacementField.from_ddf(refined.ddf, refined.grid, target)


def measure(method: str, fixed: Subject, moving: Subject, network: UNet) -> Row:
    """What a method reaches on a pair."""
    start = time.process_time()
    field = register(method, fixed, moving, network)
    seconds = time.process_time() - start
    warped, reference = field.warp(moving.native, mode="nearest"), fixed.native
    ddf = field.ddf()
    return dict(zip(LABELS, dice(warped, reference).tolist(), strict=True)) | {
        "HD95, mm": float(LabelHausdorff(label=None).measure(warped, reference)),
        "SDlogJ": float(LogJacobianStd().measure(ddf, ddf)),
        "folds, %": float(FoldedVoxels().measure(ddf, ddf)),
        "CPU, s": seconds,
    }


def table(found: Mapping[str, Sequence[Row]]) -> str:
    """A line for each method: means over the pairs."""
    lines = [["method", *(f"Dice, {label}" for label in LABELS), "Dice", "Dice, worst 30 %", *OTHERS]]
    for method, rows in found.items():
        overlap = np.asarray([[row[label] for label in LABELS] for row in rows])
        mean = np.sort(overlap.mean(axis=1))
        worst = mean[: max(round(0.3 * len(mean)), 1)]
        values = [*overlap.mean(axis=0), mean.mean(), worst.mean()]
        others = [format(float(np.nanmean([row[name] for row in rows])), form) for name, form in OTHERS.items()]
        lines.append([method, *(f"{value:.3f}" for value in values), *others])
    return markdown(lines)


def results_of(fold: int, parts: Sequence[Sequence[Record]], options: argparse.Namespace) -> dict[str, list[Row]]:
    """The rows of all methods on the pairs of a fold, from its files if they are there."""
    weights, rows = options.work / f"fold{fold}.pt", options.work / f"fold{fold}.json"
    if rows.is_file():
        found: dict[str, list[Row]] = json.loads(rows.read_text(encoding="utf-8"))
        return found
    network = make_network().eval()
    if weights.is_file():
        network.load_state_dict(torch.load(weights, weights_only=True))
    else:
        seen = [load(record) for index, part in enumerate(parts) if index != fold for record in part]
        network = train(seen, options.steps)
        torch.save(network.state_dict(), weights)
    subjects = {record[Key.CASE]: load(record) for record in parts[fold]}
    pairs = draw_pairs(parts[fold], options.work / f"fold{fold}_pairs.json", options.pairs)
    found = {method: [] for method in METHODS}
    for pair in pairs:
        fixed, moving = (subjects[case_name(pair[image.image])] for image in SIDES)
        for method in METHODS:
            found[method].append(measure(method, fixed, moving, network))
    print(f"fold {fold}\n{table(found)}", flush=True)
    write_json(rows, found)
    return found


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder of the task, as downloaded")
    parser.add_argument("--fold", type=int, nargs="+", default=list(range(FOLDS)), help="only these")
    parser.add_argument("--pairs", type=int, default=60, help="per fold")
    parser.add_argument("--steps", type=int, default=1000, help="of each training")
    parser.add_argument("--work", type=Path, default=DATA / "hippocampus", help="for the weights and the rows")
    parser.add_argument("--out", type=Path, default=RESULTS / "hippocampus.md", help="for the table")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, register, measure and print."""
    options = parse(arguments)
    options.work.mkdir(parents=True, exist_ok=True)
    records = load_single_records(options.data, "train")
    parts = patient_folds(records, FOLDS)
    found: dict[str, list[Row]] = {method: [] for method in METHODS}
    for fold in options.fold:
        for method, rows in results_of(fold, parts, options).items():
            found[method].extend(rows)
    work = f"{len(records)} images, {len(options.fold)} of {FOLDS} folds, {len(found[UNREGISTERED])} pairs"
    text = f"{heading(work)}\n\n{table(found)}"
    print(text)
    save_result(options.out, "Hippocampus: cross-validation", text, "hippocampus.py", arguments, NOTE)


if __name__ == "__main__":
    one_line_errors()
    main()
