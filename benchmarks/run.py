"""Compare RegZoo's components with MONAI's own: ``python benchmarks/run.py [--quick] [--device cuda] [--save]``.

Prints one table: time of forward and backward, float32, ours and MONAI's in turn in one process; the difference to an
independent computation; and the peak of the memory that one run takes.
"""

from __future__ import annotations

import argparse
import math
import platform
from dataclasses import dataclass
from pathlib import Path

import monai
import numpy as np
import torch
from comparison import verdict
from contests import CONTESTS, Size, sigmas
from measure import PeakMemory, alternate, checked_device, machine
from regzoo.files import write_text

SIZE: Size = (96, 96, 80)
QUICK_SIZE: Size = (32, 32, 16)
RESULTS = Path(__file__).resolve().parent / "results"
HEADER = ("component", "RegZoo", "MONAI", "ratio", "target", "difference", "RegZoo peak", "MONAI peak", "rounds")


@dataclass(frozen=True)
class Row:
    """One measured contest; times in s, memory in MiB."""

    title: str
    ours: float
    theirs: float
    rounds: int
    target: str
    difference: str
    our_peak: float
    their_peak: float

    @property
    def cells(self) -> tuple[str, ...]:
        """What the table shows, in the order of `HEADER`."""
        times = (f"{1000 * t:.1f} ms" for t in (self.ours, self.theirs))
        peaks = ("—" if math.isnan(peak) else f"{peak:.0f} MiB" for peak in (self.our_peak, self.their_peak))
        return (
            self.title,
            *times,
            f"{self.theirs / self.ours:.1f}×",
            self.target,
            self.difference,
            *peaks,
            f"{self.rounds}",
        )


def measure(name: str, size: Size, device: torch.device, seconds: float, peak: PeakMemory) -> Row:
    """Run one contest."""
    contest = CONTESTS[name]
    ours, theirs = (contest.prepare(side, size, device) for side in ("ours", "theirs"))
    difference = "—"
    if contest.truth is not None:
        error = np.abs(ours().cpu().double().numpy() - contest.truth(size)).max()
        difference = f"{error:.1e} ({contest.truth_from})"
    ours_time, theirs_time, rounds = alternate(ours, theirs, device, seconds)
    target = "—"
    if device.type == "cpu":
        target = f"≥ {contest.target:g}×"
        if size != QUICK_SIZE:
            target += f" {verdict(theirs_time / ours_time >= contest.target)}"
    peaks = peak(name, "ours", size), peak(name, "theirs", size)
    return Row(contest.title, ours_time, theirs_time, rounds, target, difference, *peaks)


def table(rows: list[Row]) -> str:
    """The rows as a Markdown table with aligned columns."""
    lines = [HEADER, *(row.cells for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(HEADER))]
    text = ["| " + " | ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)) + " |" for line in lines]
    return "\n".join([text[0], "|" + "|".join("-" * (w + 2) for w in widths) + "|", *text[1:]])


def facts(size: Size, device: torch.device, threads: int) -> str:
    """Where and with what it was measured."""
    volume = "×".join(str(n) for n in size)
    software = f"PyTorch {torch.__version__}, MONAI {monai.__version__}, Python {platform.python_version()}"
    work = f"{volume} voxels if no others are named, batch 1, {len(sigmas(size))} scales, float32, forward + backward"
    return f"{work}; {machine(device, threads)}; {software}"


def main(arguments: list[str] | None = None) -> None:
    """Run the contests that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small volumes: does everything run? times mean nothing")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--threads", type=int, default=2, help="of PyTorch on the CPU")
    parser.add_argument("--seconds", type=float, default=20, help="for the rounds of each row")
    parser.add_argument("--only", nargs="+", choices=list(CONTESTS), default=list(CONTESTS), help="some of the rows")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/<device>.md")
    options = parser.parse_args(arguments)
    device = checked_device(parser, options)
    torch.set_num_threads(options.threads)
    torch.backends.cudnn.allow_tf32 = False  # float32 is what the table says
    size, seconds = (QUICK_SIZE, 0.2) if options.quick else (SIZE, options.seconds)
    heading = facts(size, device, options.threads)
    print(heading, flush=True)
    peak = PeakMemory(device, options.threads)
    rows = []
    for name in options.only:
        print(f"measuring: {CONTESTS[name].title} … ", end="", flush=True)
        own_size = size if options.quick else CONTESTS[name].size or size
        rows.append(measure(name, own_size, device, seconds, peak))
        print(", ".join(rows[-1].cells[1:4]), flush=True)
    print("\n" + table(rows))
    if options.save:
        path = RESULTS / f"{device.type}.md"
        write_text(path, f"# Against MONAI's components, {device.type}\n\n{heading}\n\n{table(rows)}\n\n{EXPLANATION}")
        print(f"written: {path}")


EXPLANATION = """\
Written by `python benchmarks/run.py --save`. Times are medians of rounds in which both run in turn in one process,
after a warm-up. *difference* is the largest absolute difference of our result (the loss; the warped label) to the
independent computation in brackets. *peak* is the memory that one forward and backward pass takes above inputs and
parameters, gradients and the state of Adam included: on a CPU the resident memory of a fresh process, on a GPU what
PyTorch's allocator counts. MONAI's multiscale Dice truncates its kernels at three standard deviations, ours does not.
"""

if __name__ == "__main__":
    main()
