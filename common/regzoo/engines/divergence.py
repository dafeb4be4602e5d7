"""Stopping a training whose loss or weights are no longer finite, before they are saved."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from regzoo.errors import RegZooError

#: Steps between two checks on a GPU, where the host has to wait for each value that it reads.
STEPS_BETWEEN_CHECKS = 20


def non_finite(values: Mapping[str, Any]) -> list[str]:
    """The names of the floating-point tensors that hold NaN or infinity; other values are ignored."""
    tensors = {k: v for k, v in values.items() if isinstance(v, torch.Tensor) and v.is_floating_point()}
    if not tensors:
        return []
    device = next(iter(tensors.values())).device
    finite = torch.stack([v.detach().isfinite().all().to(device) for v in tensors.values()])  # waits once
    return [name for name, good in zip(tensors, finite.tolist(), strict=True) if not good]


def flat_tensors(state: Any, name: str) -> dict[str, torch.Tensor]:
    """All tensors of a nested state dict, by their path."""
    if isinstance(state, torch.Tensor):
        return {name: state}
    if isinstance(state, Mapping):
        items: Iterable[tuple[Any, Any]] = state.items()
    elif isinstance(state, (list, tuple)):
        items = enumerate(state)
    else:
        return {}
    return {path: tensor for key, value in items for path, tensor in flat_tensors(value, f"{name}.{key}").items()}


def first_few(names: list[str]) -> str:
    """Names in one line; from a long list, the first three names and the number of the others."""
    rest = len(names) - 3
    return ", ".join(names[:3]) + (f" and {rest} more" if rest > 0 else "")


class DivergenceCheck:
    """Checks the values of each step: on the CPU at once, on a GPU every few steps and at the end of the epoch.

    Ignite's `TerminateOnNan` waits for the device in every step, cannot name the term, and ends a training as if it had
    succeeded. All processes of a group check the same steps and stop together.
    """

    def __init__(self) -> None:
        self.waiting: list[tuple[int, dict[str, torch.Tensor]]] = []

    def add(self, values: Mapping[str, torch.Tensor], epoch: int, step: int, rate: float, last: bool) -> None:
        """Add the scalars of a step.

        Args:
            values: name → scalar on the device, which must not be changed later.
            epoch, step: counted from 1.
            rate: the learning rate, for the message.
            last: whether this is the last step of the epoch.

        Raises:
            RegZooError: a value is NaN or infinite, here or in another process of the group.
        """
        self.waiting.append((step, dict(values)))
        on_cpu = all(value.device.type == "cpu" for value in values.values())
        if not (on_cpu or last or len(self.waiting) >= STEPS_BETWEEN_CHECKS):
            return
        named = {f"{number}:{name}": value for number, taken in self.waiting for name, value in taken.items()}
        self.waiting.clear()
        bad = [name.split(":", 1) for name in non_finite(named)]
        first = bad[0][0] if bad else ""
        names = [name for number, name in bad if number == first]
        stop_if_any(names, f"epoch {epoch}, step {first or step}", rate)


def stop_if_any(names: list[str], where: str, rate: float | None = None) -> None:
    """Raise `RegZooError` in all processes of a group if any process names values that are not finite."""
    import ignite.distributed as idist

    count = len(names)
    if idist.get_world_size() > 1:
        count = int(idist.all_reduce(count))
    if not count:
        return
    found = f"{first_few(names)} became NaN or infinite" if names else "the training diverged in another process"
    lower = "lower learning_rate" + ("" if rate is None else f" (now {rate:g})")
    raise RegZooError(f"{where}: {found}; {lower}, or check the images and labels for extreme values")
