"""The share of the processor's peak that each network reaches: ``python benchmarks/flops.py [--save]``.

A step is the forward and the backward pass of a bundle's network in float32, with the size and the batch of
``train.json`` and an overlay. As in a training, freed memory stays with the process. PyTorch counts the operations. The
peak is the faster of a large matrix product and a large 3³ convolution of 128 channels, in the same run: on some
processors, PyTorch's matrix products use only half the width of the registers.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from comparison import markdown
from monai.bundle import ConfigParser
from regzoo.case import IMAGE_KEYS
from regzoo.engines import use_device
from torch.nn.functional import conv3d
from torch.utils.flop_counter import FlopCounterMode
from trainings import BUNDLES, RESULTS, heading, save_result

ROUNDS = 3
HEADER = ("network", "settings", "pairs", "GFLOP a step", "step, CPU-ms", "GFLOP/s", "of the peak")


def best_time(run: Callable[[], object]) -> float:
    """The least CPU time of a few runs after a warm-up, s."""
    run()
    times = []
    for _ in range(ROUNDS):
        start = time.process_time()
        run()
        times.append(time.process_time() - start)
    return min(times)


def peak(size: int) -> float:
    """FLOP per CPU-second of a large matrix product or a large convolution, whichever is faster."""
    a, b = torch.randn(2, 8 * size, 8 * size)
    image, kernel = (
        t.contiguous(memory_format=torch.channels_last_3d)
        for t in (torch.randn(1, 128, size, size, size), torch.randn(128, 128, 3, 3, 3))
    )
    runs = (lambda: a @ b), (lambda: conv3d(image, kernel, padding=1))
    rates = []
    for run in runs:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            run()
        rates.append(counter.get_total_flops() / best_time(run))
    return max(rates)


def measure(bundle: Path, overlay: str, most: float, quick: bool) -> tuple[str, ...]:
    """The row of one network."""
    files = ["train.json", *([f"variants/{overlay}.json"] if overlay else [])]
    parser = ConfigParser()
    parser.read_config([str(bundle / "configs" / name) for name in files])
    network, batch = parser.get_parsed_content("network_def"), 1 if quick else int(parser["batch_size"])
    if parser["augmentation#_target_"].endswith("PartnerInBatch") and not quick:
        batch //= 2  # it makes one pair of two images
    image = torch.randn(batch, len(parser.config.get("inputs", IMAGE_KEYS)), *parser["size"])

    def step() -> None:
        network(image).square().mean().backward()

    with FlopCounterMode(display=False) as counter:
        step()
    seconds, operations = best_time(step), counter.get_total_flops()
    rate = operations / seconds
    numbers = f"{operations / 1e9:.1f}", f"{1000 * seconds:.0f}", f"{rate / 1e9:.0f}", f"{100 * rate / most:.0f} %"
    size = "×".join(map(str, parser["size"]))
    return bundle.name, f"{overlay or 'train'}, {size}", str(batch), *numbers


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure the networks that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--overlays", nargs="*", default=["", "demo"], help="variants; an empty one is train.json alone"
    )
    parser.add_argument("--quick", action="store_true", help="one sample and a small product: does it run?")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/flops.md")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    use_device("cpu")
    most = peak(8 if options.quick else 24)
    rows = [
        measure(bundle, overlay, most, options.quick)
        for bundle in sorted(BUNDLES.iterdir())
        for overlay in options.overlays
    ]
    what = f"Training steps; peak of {most / 1e9:.0f} GFLOP per CPU-second"
    text = f"{heading(what, torch.device('cpu'))}\n\n{markdown([HEADER, *rows])}"
    print(text)
    if options.save:
        note = "The script says what is measured."
        save_result(RESULTS / "flops.md", "Networks against the processor's peak", text, "flops.py", arguments, note)


if __name__ == "__main__":
    main()
