"""Measuring time and memory of functions that compete with each other."""

from __future__ import annotations

import argparse
import ctypes
import gc
import multiprocessing
import os
import platform
import statistics
import subprocess
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from contests import CONTESTS, Run, Side, Size

if TYPE_CHECKING:  # not on Windows
    import resource

WARM_UP_SIZE: Size = (32, 32, 16)
STATUS, CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")
MIB = 2**20


def alternate(ours: Run, theirs: Run, device: torch.device, seconds: float) -> tuple[float, float, int]:
    """Median times of two contestants, run in turn after one warm-up each.

    Whatever disturbs the machine meanwhile disturbs both.

    Args:
        ours: a contestant.
        theirs: the other one.
        device: that they run on.
        seconds: how long the rounds may take altogether; there are between 2 and 30.

    Returns:
        Seconds of ours, seconds of theirs, number of rounds.
    """
    round_time = _once(ours, device) + _once(theirs, device)
    rounds = max(2, min(30, int(seconds / round_time)))
    times = [(_once(ours, device), _once(theirs, device)) for _ in range(rounds)]
    return statistics.median(t[0] for t in times), statistics.median(t[1] for t in times), rounds


def _once(run: Run, device: torch.device) -> float:
    synchronise(device)
    start = time.perf_counter()
    run()
    synchronise(device)
    return time.perf_counter() - start


def synchronise(device: torch.device) -> None:
    """Wait for a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class PeakMemory:
    """Measures how much memory one run of a contestant takes above its inputs, parameters and the libraries, MiB.

    Gradients and, for a training step, the state of the optimiser are part of it.

    On a CPU every measurement has a process of its own, because memory that an earlier run has freed is not handed back
    to the system and would hide what the next one takes. The processes are forked from a server that has imported the
    libraries and computed nothing. The high-water mark of the resident memory is read from Linux; it cannot be had from
    `getrusage`, which counts the parent's. On a GPU PyTorch counts.
    """

    def __init__(self, device: torch.device, threads: int) -> None:
        self.device = device
        self.threads = threads
        self.context = multiprocessing.get_context("forkserver" if platform.system() == "Linux" else "spawn")
        if isinstance(self.context, multiprocessing.context.ForkServerContext):
            self.context.set_forkserver_preload(
                ["monai.losses", "monai.networks.nets", "regzoo.losses", "scipy.ndimage"]
            )

    def __call__(self, contest: str, side: Side, size: Size) -> float:
        """Peak of a contestant, MiB; NaN where it cannot be measured."""
        if self.device.type == "cuda":
            return _peak_on_gpu(contest, side, size, self.device)
        with ProcessPoolExecutor(1, mp_context=self.context) as pool:
            return pool.submit(_peak_on_cpu, contest, side, size, self.threads).result()


def _peak_on_gpu(contest: str, side: Side, size: Size, device: torch.device) -> float:
    CONTESTS[contest].prepare(side, WARM_UP_SIZE, device)()  # what libraries allocate when they are first used
    run = CONTESTS[contest].prepare(side, size, device)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    run()
    synchronise(device)
    return (torch.cuda.max_memory_allocated(device) - before) / MIB


def _peak_on_cpu(contest: str, side: Side, size: Size, threads: int) -> float:
    torch.set_num_threads(threads)
    device = torch.device("cpu")
    CONTESTS[contest].prepare(side, WARM_UP_SIZE, device)()  # what libraries allocate when they are first used
    run = CONTESTS[contest].prepare(side, size, device)
    if not CLEAR_REFS.exists():
        return float("nan")
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:  # glibc: what the warm-up has freed goes back to the system and is not used again unseen
        trim(0)
    CLEAR_REFS.write_text("5")  # the high-water mark falls to what is in use now
    before = _status("VmRSS")
    run()
    return (_status("VmHWM") - before) / MIB


def _status(entry: str) -> int:
    """A size in bytes from the kernel's account of this process."""
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(f"{entry}:"))
    return int(line.split()[1]) * 1024


def checked_device(parser: argparse.ArgumentParser, options: argparse.Namespace) -> torch.device:
    """The device of ``--device``; ends the program if it is missing, or if times of ``--quick`` are to be saved."""
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("there is no GPU that PyTorch can use; leave --device out")
    if options.quick and options.save:
        parser.error("times of --quick mean nothing and are not saved; leave one of the two out")
    return device


def used_by(command: Sequence[str], folder: Path | None = None, **environment: str) -> resource.struct_rusage:
    """The CPU time and peak memory of a command that runs on the CPU; what it prints is dropped.

    Raises:
        RuntimeError: it fails.
    """
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""} | environment
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=said)
        _, status, usage = os.wait4(process.pid, 0)
        said.seek(0)
        if status != 0:
            code = os.waitstatus_to_exitcode(status)
            raise RuntimeError(f"{' '.join(command)}: ended with status {code}: {said.read().strip()}")
    return usage


def machine(device: torch.device, threads: int) -> str:
    """The machine in words: processor or GPU, threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")
    return f"{model or platform.processor() or platform.machine()}, {threads} thread{'s' if threads > 1 else ''}"
