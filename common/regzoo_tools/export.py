"""Exporting the network of a bundle, and verifying the file against PyTorch."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path, PurePath
from typing import Any

import torch
import torch.nn.functional as F
from regzoo import __version__
from regzoo.bundles import find_bundle, read_metadata, writable
from regzoo.engines.weights import load_weights
from regzoo.errors import RegZooError, bad_file, user_error
from regzoo.export import INPUT, OUTPUT, ExportedNetwork, OnnxNetwork, TorchScriptNetwork, weights_digest
from regzoo.inference.registrar import inference_config
from regzoo.ownership import check_file, own_path
from regzoo.transforms import ResamplePaird
from regzoo_tools.network_writers import FILES, write_network

#: The largest accepted difference from PyTorch's prediction, as a share of the largest value of that prediction.
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Export:
    """An exported file, and how closely it follows the network.

    Attributes:
        inputs: channels and network grid of the input (C, X, Y, Z); the batch may have any size.
        outputs: the same for the output.
        fixed_size: whether the file takes only this grid.
        largest: the largest difference from PyTorch, voxels or logits.
        scale: the largest value of PyTorch's predictions, voxels or logits.
    """

    path: Path
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    fixed_size: bool
    largest: float
    scale: float

    @property
    def difference(self) -> float:
        """`largest` as a share of `scale`, or `largest` itself where the network predicts only zeros."""
        return self.largest / (self.scale or 1.0)

    def __str__(self) -> str:
        """The text that ``regzoo export`` prints."""
        inputs, outputs = (f"(batch, {', '.join(map(str, shape))})" for shape in (self.inputs, self.outputs))
        grid = "this grid only" if self.fixed_size else "any grid"
        verified = f"largest difference from PyTorch: {self.largest:.1e}"
        verified += f", which is {self.difference:.1e} of the largest value ({self.scale:.3g})"
        if self.scale == 0:
            verified = "the network predicts nothing but zeros, in this file and in PyTorch: the weights look untrained"
        size = self.path.stat().st_size / 1e6
        tensors = f"{INPUT} {inputs} → {OUTPUT} {outputs}, float32; any batch, {grid}"
        return f"{self.path} ({size:.2f} MB)\n{tensors}\n{verified}"


def export_network(
    bundle: str | PathLike[str],
    format: str,
    out: str | PathLike[str] | None = None,
    overlays: Sequence[str] = (),
    **overrides: Any,
) -> Export:
    """Export the ``network_def`` of a bundle's inference configuration with its weights, and verify the file.

    The file takes a batch (B, C, X, Y, Z) of any size and returns the network's prediction. No file is written if that
    differs from PyTorch's by more than `TOLERANCE` of the largest value, for random batches of one and of three on the
    network grid and, if the file takes any grid, for one on a larger grid.

    Arguments are those of the command `regzoo_tools.commands.export`.

    Raises:
        RegZooError: there is no such bundle or format, the weights do not fit, a package is missing, or the file's
            predictions differ from the network's.
    """
    if format not in FILES:
        raise RegZooError(f"{format!r} is not an export format; use one of {', '.join(FILES)}")
    path = Path(writable(find_bundle(bundle), f"models/{FILES[format]}") if out is None else out)
    if path.is_dir():
        raise bad_file(path, "is a folder", "name a file")
    check_file(path)
    root, parser = inference_config(bundle, overlays, overrides, ("network_def", "checkpoint", "spacing", "size"))
    if "network_def" not in parser.config:
        raise bad_file(bundle, "has no network to export", "name a bundle with a network")
    try:
        checkpoint = Path(parser.get_parsed_content("checkpoint"))
        network = load_weights(parser.get_parsed_content("network_def").eval(), checkpoint)
        grid = ResamplePaird(parser.get_parsed_content("spacing"), parser.get_parsed_content("size"))
    except RuntimeError as error:  # MONAI wraps errors that occur in a configuration
        raise user_error(error) or error from None
    sides = {"inputs": f"{INPUT}::num_channels", "outputs": OUTPUT}
    metadata = read_metadata(root, "name", *(f"network_data_format::{side}::{name}" for side, name in sides.items()))
    images = metadata["network_data_format"]["inputs"][INPUT]
    # A bundle has a list of inputs only if an overlay can leave one of them out.
    channels = len(parser["inputs"]) if "inputs" in parser.config else int(images["num_channels"])
    parser["bundle_root"] = "."
    config = json.dumps(_without_folders(parser.get()), default=str)

    examples = [_example(1, channels, grid.size), _example(3, channels, grid.size)]
    fixed_size = format != "torchscript"
    if not fixed_size:
        examples.append(_example(1, channels, [n + 3 for n in grid.size]))
    with torch.inference_mode():
        expected = [network(example) for example in examples]
    outputs = list(expected[0].shape[1:])
    export = {
        "format": format,
        "bundle": root.resolve().name,
        "inputs": {INPUT: ["batch", channels, *grid.size]},
        "outputs": {OUTPUT: ["batch", *outputs]},
        "fixed_size": fixed_size,
        "spacing": grid.spacing,
        "network": repr(network),
        "weights": weights_digest(network),
        "regzoo": __version__,
        "torch": torch.__version__,
    }
    with own_path(path) as temporary:
        write_network(network, format, temporary, _described(metadata, export), config)
        written = _open(format, temporary, root, network, checkpoint, grid.size, grid.spacing)
        with torch.inference_mode():
            found = [written(example) for example in examples]
        # PyTorch's maximum, unlike Python's, is NaN if any value is.
        scale = float(torch.stack([prediction.abs().max() for prediction in expected]).max())
        largest = float(torch.stack([(a - b).abs().max() for a, b in zip(found, expected, strict=True)]).max())
        result = Export(path, (channels, *grid.size), tuple(outputs), fixed_size, largest, scale)
        if not result.difference <= TOLERANCE:  # also if it is NaN
            problem = f"its prediction differs from PyTorch by {result.difference:.1e} of the largest value"
            fix = f"try other versions of torch and {'onnxruntime' if format == 'onnx' else format}, and report it"
            raise bad_file(path, f"not written: {problem}", fix)
    return result


def _open(format: str, path: Path, *expected: Any) -> ExportedNetwork:
    """Load a file that has just been written, as inference loads it."""
    if format == "onnx":
        return OnnxNetwork(path, *expected)
    if format == "tensorrt":
        return TorchScriptNetwork(path, *expected, device="cuda", needs="torch_tensorrt")
    return TorchScriptNetwork(path, *expected)


def _example(batch: int, channels: int, size: Sequence[int]) -> torch.Tensor:
    """Reproducible random input (B, C, X, Y, Z): smooth noise of about unit variance."""
    generator = torch.Generator().manual_seed(batch)
    coarse = torch.randn(batch, channels, *(max(n // 4, 2) for n in size), generator=generator)
    fine = torch.randn(batch, channels, *size, generator=generator)
    return F.interpolate(2 * coarse, list(size), mode="trilinear") + 0.2 * fine


def _described(metadata: dict[str, Any], export: dict[str, Any]) -> dict[str, Any]:
    """The bundle's metadata with the shapes of this export, and with the entry ``export`` for other programs."""
    described = copy.deepcopy(metadata)
    for side, name in (("inputs", INPUT), ("outputs", OUTPUT)):
        _, channels, *shape = export[side][name]
        described["network_data_format"][side][name] |= {"num_channels": channels, "spatial_shape": shape}
    return described | {"export": export}


def _without_folders(value: Any) -> Any:
    """A configuration with each absolute path, which is valid only on this machine, reduced to the file's name."""
    if isinstance(value, dict):
        return {key: _without_folders(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_without_folders(entry) for entry in value]
    if isinstance(value, str | PathLike) and PurePath(value).is_absolute():
        return PurePath(value).name
    return value
