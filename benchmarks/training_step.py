"""Time and memory of a training step of each bundle: ``python benchmarks/training_step.py [--device cuda] [--save]``.

The steps are those of ``configs/train.json`` with ``configs/variants/paper.json``, on a few phantoms: loading, copying
to the device, augmentation, forward, loss, backward and optimiser. *rate* is the speed of a training, *waiting for
data* its share in which the loop waits for the loader. On a GPU, memory is what PyTorch's allocator counts.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from comparison import markdown
from ignite.engine import Engine, Events
from measure import checked_device, synchronise
from monai.bundle import ConfigWorkflow
from monai.engines import SupervisedTrainer
from regzoo_phantoms import AbdomenPhantoms, ProstatePhantoms
from trainings import RESULTS, heading, save_result

ROOT = Path(__file__).resolve().parents[1]
#: The bundles of papers, which have settings of a paper's size.
BUNDLES = sorted(path.parents[2].name for path in ROOT.glob("bundles/*/configs/variants/paper.json"))
#: What makes a step small, of the bundles on CTs and of the others.
QUICK: dict[bool, dict[str, Any]] = {
    True: {"spacing": [16.0] * 3, "size": [20, 14, 13], "channels": [2, 4]},
    False: {"spacing": [5.0] * 3, "size": [18, 14, 13], "channels": 2},
}
HEADER = ("bundle", "batch", "size", "precision", "step, ms", "rate, samples/s", "waiting for data", "memory, GiB")


def on_ct(bundle: str) -> bool:
    """Whether a bundle registers CTs."""
    return bundle.startswith("abdominal_ct")


def phantoms(bundle: str, folder: Path, coarser: float) -> Path:
    """A few phantoms for a bundle, written once; their voxels are larger by a factor."""
    data = folder / ("ct" if on_ct(bundle) else "prostate")
    if not data.exists() and on_ct(bundle):
        AbdomenPhantoms(cases=6, held_out=2, seed=0, spacing=3.0 * coarser).write(data, workers=1)
    elif not data.exists():
        ProstatePhantoms(pairs=6, held_out=2, seed=0, spacing=1.6 * coarser).write(data, workers=1)
    return data


class Stopwatch:
    """Ignite handler of a trainer: the time of each step, and of the wait for its data, s."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.steps, self.waits = device, list[float](), list[float]()

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.GET_BATCH_STARTED, self._begin)
        engine.add_event_handler(Events.GET_BATCH_COMPLETED, self._loaded)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._end)

    def _begin(self) -> None:
        self.begin = time.perf_counter()

    def _loaded(self) -> None:
        self.waits.append(time.perf_counter() - self.begin)

    def _end(self) -> None:
        synchronise(self.device)
        self.steps.append(time.perf_counter() - self.begin)


def training(
    bundle: str, data: Path, output: str, steps: int, quick: bool, **settings: Any
) -> tuple[ConfigWorkflow, SupervisedTrainer]:
    """A training of one epoch, made ready, and its trainer."""
    folder = ROOT / "bundles" / bundle
    settings |= {"folds": 2, "max_epochs": 1, "val_interval": 2, "show_progress": False}
    if quick:
        settings |= QUICK[on_ct(bundle)] | {"batch_size": 2}
    workflow = ConfigWorkflow(
        config_file=[str(folder / "configs" / name) for name in ("train.json", "variants/paper.json")],
        meta_file=str(folder / "configs" / "metadata.json"),
        logging_file=False,
        workflow_type="train",
        bundle_root=str(folder),
        dataset_dir=str(data),
        output_dir=output,
        **settings,
    )
    workflow.parser["samples_per_epoch"] = steps * workflow.parser["batch_size"]
    workflow.initialize()
    return workflow, workflow.parser.get_parsed_content("train#trainer")


def about(workflow: ConfigWorkflow, trainer: SupervisedTrainer) -> tuple[str, str, str]:
    """Batch, size and precision of a training."""
    size = "×".join(str(n) for n in workflow.parser["size"])
    return str(workflow.parser["batch_size"]), size, "bfloat16" if trainer.amp else "float32"


def measure(bundle: str, data: Path, device: torch.device, steps: int, quick: bool) -> tuple[str, ...]:
    """The row of one bundle: the means over the second half of its steps.

    Processes that load data finish their batches in bursts, so a median would miss the waits.
    """
    with tempfile.TemporaryDirectory() as output:
        workflow, trainer = training(bundle, data, output, steps, quick, device=str(device))
        watch = Stopwatch(device)
        watch.attach(trainer)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        trainer.run()
    late = slice(len(watch.steps) // 2, None)
    step, wait = statistics.mean(watch.steps[late]), statistics.mean(watch.waits[late])
    memory = f"{torch.cuda.max_memory_allocated(device) / 2**30:.2f}" if device.type == "cuda" else "—"
    rate = f"{workflow.parser['batch_size'] / step:.2f}"
    return bundle, *about(workflow, trainer), f"{1000 * step:.0f}", rate, f"{100 * wait / step:.0f} %", memory


def main(arguments: list[str] | None = None) -> None:
    """Measure the bundles that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small volumes and networks: does everything run?")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--steps", type=int, default=30, help="of each bundle; the second half counts")
    parser.add_argument("--bundles", nargs="+", choices=BUNDLES, default=BUNDLES)
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/training_step_<device>.md")
    options = parser.parse_args(arguments)
    device = checked_device(parser, options)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for bundle in options.bundles:
            data = phantoms(bundle, Path(folder), 4 if options.quick else 1)
            rows.append(measure(bundle, data, device, options.steps, options.quick))
            print(", ".join(rows[-1]), flush=True)
    text = f"{heading('Training steps', device)}\n\n{markdown([HEADER, *rows])}"
    print(f"\n{text}")
    if options.save:
        path, note = RESULTS / f"training_step_{device.type}.md", "The script says what is measured."
        save_result(path, "A training step of each bundle", text, "training_step.py", arguments, note)


if __name__ == "__main__":
    main()
