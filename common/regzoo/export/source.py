"""What is exported: a bundle's network with its weights, and what a file says of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path, PurePath
from typing import Any

import torch
import torch.nn.functional as F
from regzoo import __version__
from regzoo.engines.weights import load_weights
from regzoo.errors import user_error
from regzoo.export.exported import INPUT, OUTPUT, bundle_metadata, weights_digest
from regzoo.inference.registrar import inference_config
from regzoo.transforms import ResamplePaird
from torch import nn


@dataclass(frozen=True)
class Source:
    """A bundle's network with its weights, and what is written beside it.

    Attributes:
        root: the bundle's folder.
        network: in evaluation mode, on the CPU.
        checkpoint: the file of the weights.
        channels: of its input.
        size: network grid, voxels.
        spacing: its voxel size, mm.
        metadata: of the bundle, JSON values.
        config: the inference configuration with overlays and settings, JSON; of files elsewhere the names alone.
    """

    root: Path
    network: nn.Module
    checkpoint: Path
    channels: int
    size: list[int]
    spacing: list[float]
    metadata: dict[str, Any]
    config: str

    @classmethod
    def read(cls, bundle: str | PathLike[str], overlays: Sequence[str], overrides: dict[str, Any]) -> Source:
        """From a bundle's folder, or its name."""
        root, parser = inference_config(bundle, overlays, overrides, ("network_def", "checkpoint", "spacing", "size"))
        try:
            network = parser.get_parsed_content("network_def").eval()
            checkpoint = Path(parser.get_parsed_content("checkpoint"))
            load_weights(network, checkpoint)
            grid = ResamplePaird(parser.get_parsed_content("spacing"), parser.get_parsed_content("size"))
        except RuntimeError as error:  # MONAI wraps what goes wrong in a configuration
            raise user_error(error) or error from None
        metadata = bundle_metadata(root)
        # Overlays can leave an input out; where none can, the metadata say how many there are.
        images = metadata["network_data_format"]["inputs"][INPUT]
        channels = len(parser["inputs"]) if "inputs" in parser.config else int(images["num_channels"])
        parser["bundle_root"] = "."
        config = json.dumps(_without_folders(parser.get()), default=str)
        return cls(root, network, checkpoint, channels, grid.size, grid.spacing, metadata, config)

    def images(self, batch: int, larger: int = 0) -> torch.Tensor:
        """Random input, the same at every call: smooth noise (B, C, X, Y, Z) of about unit variance."""
        size = [n + larger for n in self.size]
        generator = torch.Generator().manual_seed(batch)
        coarse = torch.randn(batch, self.channels, *(max(n // 4, 2) for n in size), generator=generator)
        fine = torch.randn(batch, self.channels, *size, generator=generator)
        return F.interpolate(2 * coarse, size, mode="trilinear") + 0.2 * fine

    def described(self, format: str, outputs: Sequence[int]) -> dict[str, Any]:
        """The bundle's metadata with what a program needs to know of the exported file, under ``export``."""
        data = json.loads(json.dumps(self.metadata))
        images = data["network_data_format"]["inputs"][INPUT]
        predicted = data["network_data_format"]["outputs"][OUTPUT]
        images["num_channels"], images["spatial_shape"] = self.channels, self.size
        predicted["num_channels"], predicted["spatial_shape"] = outputs[0], list(outputs[1:])
        data["export"] = {
            "format": format,
            "bundle": self.root.resolve().name,
            "inputs": {INPUT: ["batch", self.channels, *self.size]},
            "outputs": {OUTPUT: ["batch", *outputs]},
            "fixed_size": format != "torchscript",
            "spacing": self.spacing,
            "network": repr(self.network),
            "weights": weights_digest(self.network),
            "regzoo": __version__,
            "torch": torch.__version__,
        }
        return dict(data)


def _without_folders(value: Any) -> Any:
    """A configuration in which what was an absolute path is the name of the file: folders are this machine's affair."""
    if isinstance(value, dict):
        return {key: _without_folders(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_without_folders(entry) for entry in value]
    if isinstance(value, str | PathLike) and PurePath(value).is_absolute():
        return PurePath(value).name
    return value
