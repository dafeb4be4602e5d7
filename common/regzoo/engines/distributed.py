"""Training and evaluation in several processes, on one GPU each or on the CPU, for the multi-GPU overlays."""

from __future__ import annotations

import os

import torch
from monai.data import DistributedSampler
from regzoo.errors import RegZooError
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import Dataset

_COMMAND = "torchrun --standalone --nproc_per_node 2 -m monai.bundle run …"


def start_process_group() -> None:
    """Join the processes that ``torchrun`` started: NCCL between GPUs, else Gloo.

    Raises:
        RegZooError: there is only this process, or there are more processes than GPUs.
    """
    import ignite.distributed as idist

    if torch.distributed.is_initialized():
        return
    if not {"RANK", "WORLD_SIZE", "MASTER_ADDR"} <= os.environ.keys():
        raise RegZooError(f"multi_gpu configurations need several processes; start with {_COMMAND}, or leave them out")
    gpus, rank = torch.cuda.is_available(), int(os.environ.get("LOCAL_RANK", "0"))
    if gpus and rank >= (count := torch.cuda.device_count()):
        raise RegZooError(f"process {rank} has no GPU of its own; start at most {count} with --nproc_per_node")
    idist.initialize("nccl" if gpus else "gloo")


def check_processes() -> None:
    """Raise `RegZooError` if ``torchrun`` started several processes that would all write the same files."""
    count = int(os.environ.get("WORLD_SIZE") or 1)
    if count > 1 and not torch.distributed.is_initialized():
        fix = "add configs/multi_gpu_train.json or multi_gpu_evaluate.json to --config_file, or start without torchrun"
        raise RegZooError(f"{count} processes were started, but the configuration is for one; {fix}")


def share_cases(data: Dataset) -> DistributedSampler:
    """A sampler that gives each process its share of the cases to evaluate, and no case to two; see `check_share`."""
    check_share(len(data))  # type: ignore[arg-type]
    return DistributedSampler(data, even_divisible=False, shuffle=False)


def check_share(cases: int) -> None:
    """Raise `RegZooError` if there are fewer cases than processes."""
    import ignite.distributed as idist

    if cases < (count := idist.get_world_size()):
        fix = f"start at most {cases} with --nproc_per_node"
        raise RegZooError(f"{count} processes cannot share {cases} cases to evaluate; {fix}")


def distributed(network: nn.Module, device: str | torch.device) -> DistributedDataParallel:
    """The network on this process's device, with its gradients averaged over all processes.

    Ignite's `auto_model` would wrap the network in a `DataParallel` where ``torchrun`` starts one process on a machine
    with several GPUs.
    """
    device = torch.device(device)
    devices = [device] if device.type == "cuda" else None
    parallel = DistributedDataParallel(network.to(device), device_ids=devices)
    # Broadcasting buffers would make every forward pass a collective call, also in validation; ranks with fewer batches
    # would deadlock. The argument of this name is deprecated, and its successor is new in PyTorch 2.13.
    parallel.broadcast_buffers = False
    return parallel
