"""Several processes, one GPU each, or on the CPU: what the multi-GPU overlays call."""

from __future__ import annotations

import os

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel


def rank_device() -> torch.device:
    """The device of this process under ``torchrun``: its own GPU, or the CPU where there is none."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


def start_process_group() -> None:
    """Join the processes that ``torchrun`` started: NCCL between GPUs, else Gloo."""
    device = rank_device()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")


def stop_process_group() -> None:
    """Leave together once all have finished, so that no process exits while the last exchange is being cleared away."""
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def distributed(network: nn.Module, device: str | torch.device) -> DistributedDataParallel:
    """The network on this process's device, its gradients averaged over all processes."""
    device = torch.device(device)
    devices = [device] if device.type == "cuda" else None
    # Broadcasting buffers would make every forward pass a meeting of all processes, also those of a validation, of
    # which one process may have more than another: they would wait for ever.
    return DistributedDataParallel(network.to(device), device_ids=devices, broadcast_buffers=False)
