"""How a bundle trains on a data set, from its configs/train.json, and the cost of a step."""

from __future__ import annotations

import re
import resource
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser
from regzoo.bundles import find_bundle
from regzoo.case import Record
from regzoo.engines.options import check_config, unknown
from regzoo.errors import RegZooError, user_error
from regzoo.transforms.load import AlignPaird, LoadPaird
from regzoo.transforms.resample import ResamplePaird
from regzoo_tools.checking.cases import Examiner

#: The steps from files to a training's cases, in its configuration.
_STEPS = "train::preprocessing::transforms"
#: Number of timed steps, after a first step that is not timed.
TIMED_STEPS = 2


@dataclass
class Cost:
    """What a training costs on `device` (cpu or cuda), estimated from a few of its steps.

    Attributes:
        step_seconds, epoch_seconds: of a step, and of the steps of an epoch, without the validation.
        step_bytes: memory of the program with one step on `device`.
        case_bytes: memory that a case takes in the cache.
    """

    device: str
    step_seconds: float
    epoch_seconds: float
    step_bytes: int
    case_bytes: int


class Plan:
    """The training of a bundle; without a bundle, the parts that all trainings share.

    Args:
        bundle: a bundle's name or folder, or None.
        settings: ids of ``configs/train.json`` with other values.

    Raises:
        RegZooError: no such bundle or setting.
    """

    def __init__(self, bundle: str | PathLike[str] | None, data: str, settings: Mapping[str, Any]) -> None:
        self.bundle, self.data, self.settings = bundle, data, dict(settings)
        self.name = None if bundle is None else find_bundle(bundle, "train.json").resolve().name
        self.spacing: list[float] | None = None
        self.single = self.gland_first = False
        self.direction = "mr_to_us"
        if bundle is None:
            if settings:
                raise RegZooError(f"--{next(iter(settings))}: is a setting of a bundle; name one with --bundle")
            return
        parser = self.parser()
        self.spacing = [float(mm) for mm in parser.get_parsed_content("spacing")]
        # Only a training on single images has this setting.
        self.single = "max_images" in parser
        self.direction = str(parser.config.get("direction", self.direction))
        self.gland_first = not self.single

    def parser(self, **more: Any) -> ConfigParser:
        """The configuration of the training, not yet evaluated, with further settings."""
        assert self.bundle is not None
        root = find_bundle(self.bundle, "train.json").resolve()
        file = root / "configs" / "train.json"
        parser = ConfigParser()
        parser.read_config(str(file))
        for name, value in self.settings.items():
            if name not in parser:
                raise unknown(name, list(parser.config), file)
            parser[name] = value
        check_config(parser, [file], self.settings)
        for name, value in {"bundle_root": str(root), "dataset_dir": self.data, **more}.items():
            parser[name] = value
        return parser

    def examiner(self) -> Examiner:
        """An examiner with the bundle's own steps up to the network grid."""
        if self.bundle is None:
            return Examiner(LoadPaird(), [AlignPaird("header")])
        parser = self.parser()
        steps: list[Any] = []
        for number in range(len(parser[_STEPS])):
            step = parser.get_parsed_content(f"{_STEPS}::{number}")
            steps.append(step)
            if isinstance(step, ResamplePaird):
                load, *between, view = steps
                return Examiner(load, between, view)
        raise RegZooError(f"{self.bundle}: its configs/train.json has no ResamplePaird; check it with regzoo verify")

    def split_error(self) -> RegZooError | None:
        """The training's own error about the division of the records; None if it accepts the division."""
        if self.bundle is None:
            return None
        with tempfile.TemporaryDirectory(prefix="regzoo-") as folder:
            try:
                self.parser(output_dir=folder).get_parsed_content("division")
            except Exception as error:
                if known := user_error(error):
                    return known
                raise
        return None

    def measure(self, record: Record, spacing: list[float], size: list[int]) -> Cost:
        """Run a few steps of the training on a case without errors, with another network grid.

        Call it in a separate process: it measures the memory of the process.
        """
        with tempfile.TemporaryDirectory(prefix="regzoo-") as folder:
            more: dict[str, Any] = {"train#dataset#data": [record], "validate#dataset#data": [record]}
            more |= {"spacing": spacing, "size": size, "output_dir": folder, "num_workers": 0, "cache_rate": 1.0}
            parser = self.parser(**more)
            epoch = int(parser.get_parsed_content("samples_per_epoch"))
            batch = int(parser.get_parsed_content("batch_size"))
            parser["samples_per_epoch"] = batch * (1 + TIMED_STEPS)
            device, amp = torch.device(parser.get_parsed_content("device")), bool(parser.get_parsed_content("amp"))
            network = parser.get_parsed_content("network").train()
            names = ("loss_function", "optimizer", "prepare_batch")
            loss, optimizer, prepare = (parser.get_parsed_content(f"train#trainer#{name}") for name in names)
            loader = parser.get_parsed_content("train#dataloader")
            seconds = []
            for batch_of in loader:
                start = time.perf_counter()
                image, targets = prepare(batch_of, device)
                optimizer.zero_grad()
                with torch.autocast(device.type, dtype=torch.bfloat16, enabled=amp):
                    loss(network(image), targets).backward()
                optimizer.step()
                if device.type == "cuda":
                    torch.cuda.synchronize()
                seconds.append(time.perf_counter() - start)
            cached = sum(v.numel() * v.element_size() for v in loader.dataset[0].values() if torch.is_tensor(v))
            step = min(seconds[1:])
            return Cost(device.type, step, step * -(-epoch // batch), _peak_bytes(device), cached)


def _peak_bytes(device: torch.device) -> int:
    """The most memory that this process has used on a device."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_reserved())
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def available_bytes(device: str) -> int:
    """The memory that a training may use: of the GPU, or of this machine."""
    if device == "cuda":
        return int(torch.cuda.get_device_properties(0).total_memory)
    facts = Path("/proc/meminfo")
    found = re.search(r"MemAvailable:\s*(\d+) kB", facts.read_text()) if facts.is_file() else None
    return int(found[1]) * 1024 if found else 8 << 30
