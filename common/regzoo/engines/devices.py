"""What follows from the device of a training: the current GPU, the precision, and the processes that load data."""

from __future__ import annotations

import torch
from regzoo.startup import keep_freed_memory

#: Processes that load data for a GPU, so that it does not wait for them.
WORKERS = 4


def use_device(device: str | torch.device) -> None:
    """Make a GPU the current one, and let cuDNN time its convolutions; on the CPU, keep freed memory for later tensors.

    ``cuda`` without a number is the current GPU already. Pinning memory and PyTorch's queries otherwise use GPU 0, and
    would make a context on it. All batches of a training have one size, so the fastest convolution is looked for once.
    """
    device = torch.device(device)
    if device.type == "cuda":
        if device.index is not None:
            torch.cuda.set_device(device)
        torch.backends.cudnn.benchmark = True
    elif device.type == "cpu":
        keep_freed_memory()


def mixed_precision(device: str | torch.device) -> bool:
    """Whether the networks run in bfloat16: on a GPU with the hardware for it. `use_device` comes first."""
    return torch.device(device).type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


def loading_workers(device: str | torch.device) -> int:
    """Processes that load data beside the training: `WORKERS` for a GPU; none on the CPU, whose cores are busy."""
    return WORKERS if torch.device(device).type == "cuda" else 0
