"""Several processes, one GPU each, or on the CPU: what the multi-GPU overlays call."""

from __future__ import annotations

import os

import torch
from monai.data import DistributedSampler
from regzoo.errors import RegZooError
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import Dataset

_HOW = "torchrun --standalone --nproc_per_node 2 -m monai.bundle run …"


def rank_device() -> torch.device:
    """The device of this process under ``torchrun``: its own GPU, or the CPU where there is none.

    Raises:
        RegZooError: more processes than GPUs.
    """
    if not torch.cuda.is_available():
        return torch.device("cpu")
    rank, count = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if rank >= count:
        raise RegZooError(f"process {rank} has no GPU of its own; start at most {count} with --nproc_per_node")
    return torch.device("cuda", rank)


def start_process_group() -> None:
    """Join the processes that ``torchrun`` started: NCCL between GPUs, else Gloo.

    Raises:
        RegZooError: nothing has started several processes.
    """
    if not torch.distributed.is_initialized() and not {"RANK", "WORLD_SIZE", "MASTER_ADDR"} <= os.environ.keys():
        raise RegZooError(f"multi_gpu configurations need several processes; start with {_HOW}, or leave them out")
    device = rank_device()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")


def check_processes() -> None:
    """Refuse to run a configuration for one process in several, which would all write the same files.

    Raises:
        RegZooError: ``torchrun`` started several processes, and no configuration has joined them.
    """
    count = int(os.environ.get("WORLD_SIZE") or 1)
    if count > 1 and not torch.distributed.is_initialized():
        raise RegZooError(
            f"{count} processes were started, but the configuration is for one; add configs/multi_gpu_train.json or "
            "configs/multi_gpu_evaluate.json to --config_file, or start without torchrun"
        )


def share_cases(data: Dataset) -> DistributedSampler:
    """A sampler that gives each process its share of the cases to evaluate, each case once.

    Raises:
        RegZooError: fewer cases than processes.
    """
    cases, count = len(data), torch.distributed.get_world_size()  # type: ignore[arg-type]
    if cases < count:
        raise RegZooError(
            f"{count} processes share {cases} cases to evaluate; start at most {cases} with --nproc_per_node"
        )
    return DistributedSampler(data, even_divisible=False, shuffle=False)


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
