"""Where the time of a training step goes: ``python benchmarks/profile_step.py [--device cuda] [--save]``.

The step is that of `run.py`: the paper's configuration with n0 = 16, one pair of 96×96×80 voxels. The backward pass is
divided among the parts whose gradients it computes: every autograd node carries the number of the operation that made
it, and that operation lies in the time span of a part.
"""

from __future__ import annotations

import argparse
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from contests import Size, Training
from measure import machine, synchronise
from regzoo.files import write_text
from regzoo.losses import RegistrationLoss
from regzoo.spatial import warp
from run import QUICK_SIZE, RESULTS, SIZE
from torch import nn
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile, record_function

PREFIX = "part: "
#: The parts in the order in which a step goes through them.
PARTS = (
    "encoder, first 7³ convolution",
    "encoder, the rest",
    "decoder",
    "heads and resize",
    "label warp",
    "multiscale Dice",
    "bending energy",
    "optimiser (Adam)",
)
OTHER = "anything else"
BACKWARD = "backward"
EVALUATE = "autograd::engine::evaluate_function: "


def mark(module: nn.Module, part: str) -> None:
    """Give the forward pass of a module a span of its own in the profile."""
    spans: list[Any] = []

    def enter(*_: Any) -> None:
        spans.append(record_function(PREFIX + part))
        spans[-1].__enter__()

    def leave(*_: Any) -> None:
        spans.pop().__exit__(None, None, None)

    module.register_forward_pre_hook(enter)
    module.register_forward_hook(leave)


def instrumented_step(training: Training) -> Callable[[], None]:
    """A training step whose parts leave spans in the profile."""
    network, loss = training.network, training.loss
    encoder, decoder = network.get_submodule("encoder"), network.get_submodule("decoder")
    mark(network, "heads and resize")  # what of the network is in none of the spans inside it
    mark(encoder, "encoder, the rest")
    mark(encoder.get_submodule("levels.0.first"), "encoder, first 7³ convolution")
    for block in decoder.children():
        mark(block, "decoder")
    dice, bending = (loss.terms[name].get_submodule("loss") for name in ("label", "deformation"))
    mark(dice, "multiscale Dice")
    mark(bending, "bending energy")

    def step() -> None:
        training.optimizer.zero_grad(set_to_none=True)
        value = forward(training, loss, dice, bending)
        with record_function(PREFIX + BACKWARD):
            value.backward()
        with record_function(PREFIX + "optimiser (Adam)"):
            training.optimizer.step()

    return step


def forward(training: Training, loss: RegistrationLoss, dice: nn.Module, bending: nn.Module) -> torch.Tensor:
    """The loss of the step, its terms taken apart so that the warp can be told from the Dice."""
    ddf = training.network(training.image)
    with record_function(PREFIX + "label warp"):
        warped = warp(training.targets["moving_label"], ddf)
    weights = loss.weights
    return weights["label"] * dice(warped, training.targets["fixed_label"]) + weights["deformation"] * bending(ddf)


class Spans:
    """The spans of the parts on one thread, which may lie inside one another."""

    def __init__(self, events: list[FunctionEvent]) -> None:
        found = [(e.time_range.start, e.time_range.end, e.name[len(PREFIX) :]) for e in events if is_span(e)]
        self.spans = sorted(found, key=lambda span: (span[0], -span[1]))
        self.starts = [span[0] for span in self.spans]

    def part(self, time: float) -> str:
        """The innermost part at a time; empty outside of all."""
        for start, end, name in reversed(self.spans[: bisect_right(self.starts, time)]):
            if start <= time <= end:
                return name
        return ""


def is_span(event: FunctionEvent) -> bool:
    """Whether an event is the span of a part, on the CPU's time line."""
    return event.name.startswith(PREFIX) and event.device_type == torch.autograd.DeviceType.CPU


def divide(events: list[FunctionEvent], device: torch.device) -> dict[tuple[str, str], float]:
    """Time of each part in the forward and in the backward pass, µs."""

    def own_time(event: FunctionEvent) -> float:
        return event.self_device_time_total if device.type == "cuda" else event.self_cpu_time_total

    def total(event: FunctionEvent) -> float:
        return own_time(event) + sum(total(child) for child in event.cpu_children)

    events = [event for event in events if event.device_type == torch.autograd.DeviceType.CPU]
    spans = Spans(events)
    # An operation peeks at the number that the next autograd node will get, so the last to have seen it made the node.
    makers = sorted((e for e in events if e.sequence_nr >= 0 and not e.name.startswith(EVALUATE)), key=start_of)
    maker = {e.sequence_nr: spans.part(start_of(e)) for e in makers if spans.part(start_of(e)) != BACKWARD}
    spent: dict[tuple[str, str], float] = defaultdict(float)
    for event in events:
        part = spans.part(start_of(event))
        if part == BACKWARD:
            if event.name.startswith(EVALUATE):
                spent[maker.get(event.sequence_nr, OTHER) or OTHER, BACKWARD] += total(event)
        elif part in PARTS:
            spent[part, "forward"] += own_time(event)
    return spent


def start_of(event: FunctionEvent) -> float:
    """When an event began, µs."""
    return float(event.time_range.start)


@contextmanager
def profiler(device: torch.device) -> Iterator[profile]:
    """PyTorch's profiler for a device."""
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device.type == "cuda" else [])
    with profile(activities=activities) as running:
        yield running
        synchronise(device)


def measure(size: Size, device: torch.device, steps: int) -> dict[tuple[str, str], float]:
    """Time of each part in one step, averaged over `steps` after a warm-up, ms."""
    step = instrumented_step(Training.of(size, device))
    step()
    synchronise(device)
    with profiler(device) as running:
        for _ in range(steps):
            step()
    return {key: time / steps / 1000 for key, time in divide(list(running.events()), device).items()}


def table(spent: dict[tuple[str, str], float]) -> str:
    """The parts as a Markdown table: ms and per cent of the step, forward and backward."""
    whole = sum(spent.values())

    def line(part: str) -> str:
        forward_time, backward_time = spent.get((part, "forward"), 0.0), spent.get((part, BACKWARD), 0.0)
        both = forward_time + backward_time
        cells = [f"{100 * time / whole:5.1f} %" for time in (forward_time, backward_time, both)]
        return f"| {part:<30} | {' | '.join(cells)} | {both:8.1f} ms |"

    head = f"| {'part':<30} | forward | backward | both | time |\n|{'-' * 32}|--------:|--------:|--------:|---------:|"
    rows = [line(part) for part in (*PARTS, OTHER)]
    return "\n".join([head, *rows, f"\nwhole step: {whole:.0f} ms"])


def verdict(spent: dict[tuple[str, str], float]) -> str:
    """What the table says about where to go on, in words made from its figures."""
    whole = sum(spent.values())
    share = {part: (spent.get((part, "forward"), 0.0) + spent.get((part, BACKWARD), 0.0)) / whole for part in PARTS}
    network = sum(share[part] for part in PARTS[:4])
    losses = sum(share[part] for part in PARTS[4:7])
    first = max(PARTS, key=lambda part: share[part])
    return (
        f"The network takes {100 * network:.0f} % of the step, warp and losses {100 * losses:.0f} %: making the losses "
        f"free would make a step {1 / (1 - losses):.2f} times as fast at most. The largest part is: {first} "
        f"({100 * share[first]:.0f} %); whoever wants a faster step has to begin there."
    )


def main(arguments: list[str] | None = None) -> None:
    """Profile the step that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small volume: does it run?")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--threads", type=int, default=2, help="of PyTorch on the CPU")
    parser.add_argument("--steps", type=int, default=3, help="to average over")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/profile_<device>.md")
    options = parser.parse_args(arguments)
    device = torch.device(options.device)
    torch.set_num_threads(options.threads)
    size = QUICK_SIZE if options.quick else SIZE
    spent = measure(size, device, options.steps)
    heading = f"Training step, {'×'.join(map(str, size))} voxels; {machine(device, options.threads)}"
    text = f"{heading}\n\n{table(spent)}\n\n{verdict(spent)}\n"
    print(text)
    if options.save:
        path = RESULTS / f"profile_{device.type}.md"
        write_text(path, f"# Where the time of a training step goes\n\n{text}")
        print(f"written: {path}")


if __name__ == "__main__":
    main()
