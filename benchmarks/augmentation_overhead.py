"""What the augmentation layer adds to a training step: ``python benchmarks/augmentation_overhead.py [--device cuda]``.

The step is that of the paper's network: forward, warp, image and deformation loss, backward, Adam; on a GPU under
bfloat16 autocast. It is run with a moving image made beforehand and with one made anew, in turn, and the augmentation
alone as well. The paper's own layer added 7.7 % to an epoch and 74 MB.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from measure import checked_device, machine, synchronise
from monai.networks.nets import VoxelMorphUNet
from regzoo.augmentation import SingleImageAugmentation
from regzoo.files import write_text
from regzoo.losses import BendingEnergy
from regzoo.networks import LocalNet
from regzoo.spatial import warp
from torch import nn

RESULTS = Path(__file__).resolve().parent / "results"
TARGET_SHARE, TARGET_MEGABYTES = 7.7, 74.0
Pair = dict[str, torch.Tensor]


def make_network(name: str, channels: list[int]) -> nn.Module:
    """A network from an image pair to a DDF; `channels` from full resolution to the bottom."""
    if name == "localnet":
        depth = len(channels) - 1
        return LocalNet(channels=channels[0], depth=depth, levels=range(depth + 1))
    # MONAI wants the channels of a level on the way down and up; the last pair is a level and the bottom below it.
    pairs = [width for width in channels[:-2] for _ in range(2)] + channels[-2:]
    return VoxelMorphUNet(3, 2, unet_out_channels=16, channels=pairs, final_conv_channels=(16, 16))


class Training:
    """A network in training on one image.

    Args:
        options: of the command line.
        device: to train on.
    """

    def __init__(self, options: argparse.Namespace, device: torch.device) -> None:
        torch.manual_seed(0)
        shape = (options.size,) * 3
        labels = torch.arange(options.labels, device=device).view(1, -1, 1, 1, 1)
        image = torch.nn.functional.interpolate(torch.rand(1, 1, 9, 9, 9, device=device), shape, mode="trilinear")
        regions = (image * options.labels).floor() == labels
        self.fixed: Pair = {"fixed_image": image, "fixed_label": regions.float()}
        self.augmentation = SingleImageAugmentation([options.spacing] * 3)
        self.seed = 0
        self.device = device
        self.network = make_network(options.network, options.channels).to(device)
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=1e-4)
        self.bending = BendingEnergy()
        self.ready = self.augment()

    def augment(self) -> Pair:
        """A new moving image."""
        self.seed += 1
        return self.augmentation(self.fixed, torch.tensor([self.seed]))

    def step(self, pair: Pair) -> torch.Tensor:
        """One step on a pair."""
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.device.type == "cuda"):
            ddf = self.network(torch.cat([pair["fixed_image"], pair["moving_image"]], dim=1))
        ddf = ddf.float()
        loss = (warp(pair["moving_image"], ddf) - pair["fixed_image"]).square().mean() + self.bending(ddf)
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    def plain_step(self) -> torch.Tensor:
        """A step without augmentation."""
        return self.step(self.ready)

    def augmented_step(self) -> torch.Tensor:
        """A step with augmentation."""
        return self.step(self.augment())

    def augment_only(self) -> torch.Tensor:
        """The augmentation alone."""
        return self.augment()["moving_image"]


@dataclass(frozen=True)
class Result:
    """Medians of the rounds in seconds, and memory on a GPU in MB, NaN elsewhere.

    Attributes:
        alone: the augmentation.
        plain: a step without it.
        augmented: a step with it.
        rounds: how often each was run.
        peak_alone: memory the augmentation takes above its input, its results included.
        peak_step: what it adds to the largest memory in use during a step.
    """

    alone: float
    plain: float
    augmented: float
    rounds: int
    peak_alone: float
    peak_step: float


def timed(run: Callable[[], torch.Tensor], device: torch.device) -> float:
    """Seconds that a run takes; on a GPU between two events, until the last kernel has ended."""
    if device.type == "cuda":
        synchronise(device)
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        end.record()
        synchronise(device)
        return start.elapsed_time(end) / 1000
    begun = time.perf_counter()
    run()
    return time.perf_counter() - begun


def peak(run: Callable[[], torch.Tensor], device: torch.device) -> float:
    """Largest memory in use during a run above that before it, MB (10⁶ bytes); NaN on a CPU."""
    if device.type != "cuda":
        return float("nan")
    synchronise(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    run()
    synchronise(device)
    return (torch.cuda.max_memory_allocated(device) - before) / 1e6


def measure(training: Training, seconds: float) -> Result:
    """Run all three in turn: whatever else the machine does disturbs all of them."""
    device = training.device
    runs = (training.augment_only, training.plain_step, training.augmented_step)
    once = sum(timed(run, device) for run in runs)  # a warm-up, too
    rounds = max(3, min(50, int(seconds / once)))
    times = [[timed(run, device) for run in runs] for _ in range(rounds)]
    alone, plain, augmented = (statistics.median(column) for column in zip(*times, strict=True))
    peaks = [peak(run, device) for run in runs]
    return Result(alone, plain, augmented, rounds, peaks[0], peaks[2] - peaks[1])


def report(result: Result) -> str:
    """The figures as Markdown."""
    added = 100 * (result.augmented / result.plain - 1)
    share = 100 * result.alone / result.plain
    lines = [
        "| what | figure | paper |",
        "|------|-------:|------:|",
        f"| augmentation alone | {1000 * result.alone:.1f} ms | |",
        f"| step without it | {1000 * result.plain:.1f} ms | |",
        f"| step with it | {1000 * result.augmented:.1f} ms | |",
        f"| added to the step, with over without | {added:+.1f} % | {TARGET_SHARE} % |",
        f"| alone over the step without it | {share:.1f} % | {TARGET_SHARE} % |",
    ]
    measured = not math.isnan(result.peak_alone)
    if measured:
        lines += [
            f"| peak memory of the augmentation alone | {result.peak_alone:.1f} MB | {TARGET_MEGABYTES:.0f} MB |",
            f"| added to the peak memory of a step | {result.peak_step:.1f} MB | {TARGET_MEGABYTES:.0f} MB |",
        ]
    note = f"Medians of {result.rounds} rounds in which all three run in turn."
    return "\n".join([*lines, "", note + ("" if measured else " Memory is measured on a GPU only.")])


def main(arguments: list[str] | None = None) -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small volume and network: does it run?")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--threads", type=int, default=2, help="of PyTorch on the CPU")
    parser.add_argument("--size", type=int, default=128, help="voxels along each axis")
    parser.add_argument("--spacing", type=float, default=2.0, help="voxel size, mm")
    parser.add_argument("--labels", type=int, default=1, help="label channels")
    parser.add_argument("--network", choices=("voxelmorph", "localnet"), default="voxelmorph")
    parser.add_argument("--channels", type=int, nargs="+", default=[32, 64, 128, 256, 512, 1024], help="of each level")
    parser.add_argument("--seconds", type=float, default=60, help="for the rounds")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/augmentation_<device>.md")
    options = parser.parse_args(arguments)
    device = checked_device(parser, options)
    if len(options.channels) < 3:
        parser.error("--channels takes at least three numbers, from full resolution to the bottom")
    if options.quick:
        options.size, options.channels, options.seconds = 32, [4, 8, 16], 0.5
    torch.set_num_threads(options.threads)
    heading = (
        f"{options.size}³ voxels of {options.spacing:g} mm, batch 1, {options.labels} label channel(s), "
        f"{options.network} {'-'.join(map(str, options.channels))}; {machine(device, options.threads)}; "
        f"PyTorch {torch.__version__}"
    )
    print(heading, flush=True)
    text = report(measure(Training(options, device), options.seconds))
    print("\n" + text)
    if options.save:
        path = RESULTS / f"augmentation_{device.type}.md"
        write_text(path, f"# What the augmentation layer adds to a training step\n\n{heading}\n\n{text}\n")
        print(f"written: {path}")


if __name__ == "__main__":
    main()
