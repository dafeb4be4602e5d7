"""What a training step of each bundle asks of a GPU, counted without one: ``python benchmarks/kernels.py [--save]``.

The steps are those of `training_step.py`, on the tracked device of the tests, which computes nothing here. It notes
each operation that a GPU would launch, with its bytes and floating-point operations, each wait of the host, and the
memory of all tensors. The step that counts is the second of a training, with its augmentation and its optimiser;
gradients are not accumulated.

The roofline is the least time of a step on a GPU: that of each operation is its bytes over the bandwidth, or its
floating-point operations over the peak, whichever is longer. Convolutions and products in float32 count at the peak of
TF32, which cuDNN uses for convolutions. A measured step takes longer: no kernel reaches either limit, and the GPU waits
for the host where kernels are shorter than their launch, some microseconds. The memory does not include the workspaces
of cuDNN, what the allocator loses to fragments, and CUDA itself.
"""

from __future__ import annotations

import argparse
import gc
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from comparison import markdown
from ignite.engine import Events
from training_step import BUNDLES, about, phantoms, training
from trainings import HERE, RESULTS, save_result

sys.path.append(str(HERE.parent / "tests" / "device"))
from cuda_rules import Launch, Log  # type: ignore[import-not-found]
from tracked_device import tracked_device  # type: ignore[import-not-found]


class Device(NamedTuple):
    """Peaks of a GPU: bytes per second of its memory, and dense floating-point operations per second."""

    bandwidth: float
    bfloat16: float
    tf32: float


#: Source: NVIDIA's data sheets; the A100 with 80 GB (SXM), and the H200 (SXM).
DEVICES = {"A100": Device(2.04e12, 312e12, 156e12), "H200": Device(4.8e12, 989e12, 494e12)}
HEADER = (
    *("bundle", "batch", "size", "precision", "kernels", "of the augmentation", "waits", "uploaded, MB"),
    *("moved, GB", "GFLOP", "memory, GiB", *(f"{name} ≥, ms" for name in DEVICES)),
)


class Counted(NamedTuple):
    """A training step as the device sees it.

    Attributes:
        launches: its operations.
        augmentation: how many of them are of the augmentation.
        waits: how often the host waits for the device.
        uploaded: bytes.
        memory: the largest in use, bytes.
    """

    launches: Sequence[Launch]
    augmentation: int
    waits: int
    uploaded: int
    memory: int

    def roofline(self, device: Device) -> float:
        """The least time of the step, s."""
        return sum(
            max(one.moved / device.bandwidth, one.flops / (device.bfloat16 if one.narrow else device.tf32))
            for one in self.launches
        )


class Enough(Exception):
    """Ends a training after the step that counts."""


class Watched:
    """An augmentation that notes how many operations it launched the last time."""

    def __init__(self, augmentation: Callable[..., Any], log: Log) -> None:
        self.augmentation, self.log, self.launched = augmentation, log, 0

    def __call__(self, *batch: Any) -> Any:
        before = len(self.log.launches)
        made = self.augmentation(*batch)
        self.launched = len(self.log.launches) - before
        return made


def count(bundle: str, data: Path, quick: bool = False) -> tuple[tuple[str, str, str], Counted]:
    """Batch, size and precision of a bundle's training, and its second step."""
    found = list[Counted]()
    gc.collect()  # the training before this one
    with tempfile.TemporaryDirectory() as output, tracked_device(values=False) as log:
        workflow, trainer = training(bundle, data, output, 4, quick, device="cuda", num_workers=0)
        trainer.accumulation_steps = 1
        watched = trainer.prepare_batch.augmentation = Watched(trainer.prepare_batch.augmentation, log)

        def after_a_step() -> None:
            if trainer.state.iteration == 2:
                uploaded, waits = sum(log.uploads), sum(log.waits.values())
                found.append(Counted(list(log.launches), watched.launched, waits, uploaded, log.peak))
                raise Enough
            log.clear()

        trainer.add_event_handler(Events.ITERATION_COMPLETED, after_a_step)
        with suppress(Enough):
            trainer.run()
        return about(workflow, trainer), found[0]


def row(bundle: str, setting: tuple[str, str, str], step: Counted) -> tuple[str, ...]:
    """The cells of `HEADER`."""
    return (
        *(bundle, *setting, f"{len(step.launches)}", f"{step.augmentation}", f"{step.waits}"),
        f"{step.uploaded / 1e6:.1f}",
        f"{sum(one.moved for one in step.launches) / 1e9:.1f}",
        f"{sum(one.flops for one in step.launches) / 1e9:.0f}",
        f"{step.memory / 2**30:.2f}",
        *(f"{1000 * step.roofline(device):.1f}" for device in DEVICES.values()),
    )


def main(arguments: list[str] | None = None) -> None:
    """Count the steps of the bundles that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small volumes and networks: does everything run?")
    parser.add_argument("--bundles", nargs="+", choices=BUNDLES, default=BUNDLES)
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/kernels.md")
    options = parser.parse_args(arguments)
    if options.quick and options.save:
        parser.error("figures of --quick mean nothing and are not saved; leave one of the two out")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for bundle in options.bundles:
            rows.append(row(bundle, *count(bundle, phantoms(bundle, Path(folder), 4), options.quick)))
            print(", ".join(rows[-1]), flush=True)
    text = markdown([HEADER, *rows])
    print(f"\n{text}")
    if options.save:
        note = "The script says what is counted. Nothing here is a measurement."
        save_result(
            RESULTS / "kernels.md", "A training step as a GPU would see it", text, "kernels.py", arguments, note
        )


if __name__ == "__main__":
    main()
