"""Writing the network of a bundle to a file that other programs run: TorchScript, ONNX or TensorRT."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from monai.data.torchscript_utils import save_net_with_metadata
from monai.networks.utils import convert_to_onnx, convert_to_torchscript, convert_to_trt
from monai.utils import optional_import
from regzoo import __version__
from regzoo.errors import RegZooError, bad_file, user_error
from regzoo.files import atomic_path
from regzoo.transforms import ResamplePaird
from regzoo.workflow.checkpoint import load_weights
from regzoo.workflow.exported import (
    INPUT,
    METADATA,
    OUTPUT,
    ExportedNetwork,
    OnnxNetwork,
    TorchScriptNetwork,
    bundle_metadata,
    require,
)
from regzoo.workflow.registrar import inference_config
from torch import nn

#: What each format is called in a bundle's ``models`` folder.
FILES = {"torchscript": "model.ts", "onnx": "model.onnx", "tensorrt": "model_trt.ts"}
#: The largest difference from PyTorch that is let pass, as a share of the largest value of its prediction.
TOLERANCE = 1e-4
#: Sampling of volumes came with this version of ONNX; ONNX Runtime knows it since 1.17.
OPSET = 20
#: Smallest, usual and largest batch that TensorRT prepares for.
TENSORRT_BATCHES = (1, 1, 16)


@dataclass(frozen=True)
class Export:
    """What was written, and how well it does what the network does.

    Attributes:
        path: the file.
        inputs: channels of the input and network grid (C, X, Y, Z); the batch may be of any size.
        outputs: the same of the output.
        fixed_size: whether the file takes no other grid.
        difference: the largest difference from PyTorch, as a share of `scale`.
        scale: the largest value of PyTorch's predictions, voxels or logits.
    """

    path: Path
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    fixed_size: bool
    difference: float
    scale: float

    def __str__(self) -> str:
        """What the command prints."""
        inputs, outputs = (f"(batch, {', '.join(map(str, shape))})" for shape in (self.inputs, self.outputs))
        grid = "this grid only" if self.fixed_size else "any other grid, too"
        verified = f"largest difference from PyTorch: {self.difference:.1e} of the largest value ({self.scale:.3g})"
        if self.scale == 0:
            verified = "these weights predict nothing but zeros, here and in PyTorch: they are those of no training"
        return (
            f"{self.path} ({self.path.stat().st_size / 1e6:.2f} MB)\n"
            f"{INPUT} {inputs} → {OUTPUT} {outputs}, float32; any batch, {grid}\n{verified}"
        )


@dataclass(frozen=True)
class Source:
    """A bundle's network with its weights, and what is written beside it.

    Attributes:
        root: the bundle's folder.
        network: in evaluation mode, on the CPU.
        channels: of its input.
        size: network grid, voxels.
        spacing: its voxel size, mm.
        metadata: of the bundle, JSON values.
        config: the inference configuration with overlays and settings, JSON.
    """

    root: Path
    network: nn.Module
    channels: int
    size: list[int]
    spacing: list[float]
    metadata: dict[str, Any]
    config: str

    @classmethod
    def read(cls, bundle: str | PathLike[str], overlays: Sequence[str], overrides: dict[str, Any]) -> Source:
        """From a bundle's folder, or its name."""
        root, parser = inference_config(bundle, overlays, overrides)
        try:
            network = parser.get_parsed_content("network_def").eval()
            load_weights(network, parser.get_parsed_content("checkpoint"))
            grid = ResamplePaird(parser.get_parsed_content("spacing"), parser.get_parsed_content("size"))
        except RuntimeError as error:  # MONAI wraps what goes wrong in a configuration
            raise user_error(error) or error from None
        metadata = bundle_metadata(root)
        # Overlays can leave an input out; where none can, the metadata say how many there are.
        images = metadata["network_data_format"]["inputs"][INPUT]
        channels = len(parser["inputs"]) if "inputs" in parser.config else int(images["num_channels"])
        parser["bundle_root"] = "."
        return cls(root, network, channels, grid.size, grid.spacing, metadata, json.dumps(parser.get(), default=str))

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
            "regzoo": __version__,
            "torch": torch.__version__,
        }
        return dict(data)


def export_network(
    bundle: str | PathLike[str],
    format: str,
    out: str | PathLike[str] | None = None,
    overlays: Sequence[str] = (),
    **overrides: Any,
) -> Export:
    """Export the ``network_def`` of a bundle's inference configuration with its weights, and verify the file.

    The file takes a batch (B, C, X, Y, Z) of any B and gives what the network gives. Random input goes through the
    file, as it will be run, and through PyTorch: batches of one and of three on the network grid, and one on a larger
    grid where the file takes any. If a value differs by more than `TOLERANCE` of the largest, nothing is written.

    Args:
        bundle: a bundle's folder, or its name.
        format: ``torchscript``, ``onnx`` or ``tensorrt`` (which needs an NVIDIA GPU).
        out: the file; ``models/model.ts``, ``model.onnx`` or ``model_trt.ts`` in the bundle if not given.
        overlays: further configuration files, relative to the bundle, as for `Registrar`.
        overrides: any id of ``configs/inference.json``, such as ``checkpoint``, ``size`` or ``spacing``.

    Raises:
        RegZooError: no such bundle or format, weights that do not fit, a missing package, or a file that does not do
            what the network does.
    """
    if format not in FILES:
        raise RegZooError(f"{format!r} is no format to export to; use one of {', '.join(FILES)}")
    source = Source.read(bundle, overlays, overrides)
    path = Path(out) if out is not None else source.root / "models" / FILES[format]
    if path.is_dir():
        raise bad_file(path, "is a folder", "name a file")
    examples = [source.images(1), source.images(3)]
    if format == "torchscript":
        examples.append(source.images(1, larger=3))
    with torch.inference_mode():
        expected = [source.network(example) for example in examples]
    outputs = list(expected[0].shape[1:])
    with atomic_path(path) as temporary:
        with _quiet():
            _WRITERS[format](source, temporary, source.described(format, outputs))
        written = _open(format, temporary, source)
        with torch.inference_mode():
            found = [written(example) for example in examples]
        # PyTorch's maximum, unlike Python's, is NaN where there is one.
        scale = float(torch.stack([prediction.abs().max() for prediction in expected]).max())
        largest = float(torch.stack([(a - b).abs().max() for a, b in zip(found, expected, strict=True)]).max())
        difference = largest / (scale or 1.0)  # a network that predicts nothing has no scale
        if not difference <= TOLERANCE:  # neither is NaN
            raise bad_file(
                path,
                f"not written: what it predicts differs from PyTorch by {difference:.1e} of the largest value",
                f"try other versions of torch and {'onnxruntime' if format == 'onnx' else format}, and report it",
            )
    return Export(path, (source.channels, *source.size), tuple(outputs), format != "torchscript", difference, scale)


def _open(format: str, path: Path, source: Source) -> ExportedNetwork:
    """A file that has just been written, as inference runs it."""
    where = (path, source.root, source.size, source.spacing)
    if format == "onnx":
        return OnnxNetwork(*where)
    if format == "tensorrt":
        return TorchScriptNetwork(*where, device="cuda", needs="torch_tensorrt")
    return TorchScriptNetwork(*where)


def _write_torchscript(source: Source, path: Path, metadata: dict[str, Any]) -> None:
    """As MONAI's ``ckpt_export`` does, with weights that were loaded strictly."""
    _save_script(convert_to_torchscript(source.network), source, path, metadata)


def _save_script(script: nn.Module, source: Source, path: Path, metadata: dict[str, Any]) -> None:
    files = {"inference.json": source.config.encode()}
    with path.open("wb") as stream:  # a name without a suffix would be given one
        save_net_with_metadata(script, stream, include_config_vals=False, meta_values=metadata, more_extra_files=files)


def _write_onnx(source: Source, path: Path, metadata: dict[str, Any]) -> None:
    """By way of `torch.export`; a trace knows neither layouts in memory nor all of our operators."""
    onnx = require("onnx", "onnx", "exporting to ONNX")
    require("onnxscript", "onnxscript", "exporting to ONNX")
    require("onnxruntime", "onnxruntime", "verifying an exported ONNX network")
    model = convert_to_onnx(
        source.network,
        # A batch of one would be taken for the only one there is.
        [source.images(2)],
        input_names=[INPUT],
        output_names=[OUTPUT],
        opset_version=OPSET,
        # The rest is handed to torch.onnx.export.
        dynamo=True,
        dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
        external_data=False,
        verbose=False,
        custom_translation_table={torch.ops.aten._adaptive_avg_pool3d.default: _adaptive_average},
    )
    export = metadata["export"]
    entries = {
        "name": metadata["name"],
        "version": metadata["version"],
        "bundle": export["bundle"],
        INPUT: json.dumps(export["inputs"][INPUT]),
        OUTPUT: json.dumps(export["outputs"][OUTPUT]),
        "spacing": json.dumps(export["spacing"]),
        METADATA: json.dumps(metadata),
        "inference.json": source.config,
    }
    onnx.helper.set_model_props(model, entries)
    for part in (*model.graph.node, *model.graph.value_info, *model.graph.input, *model.graph.output):
        del part.metadata_props[:]  # the exporter's diary, with the paths of this machine
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, str(path))


def _adaptive_average(image: Any, output_size: Sequence[int]) -> Any:
    """Adaptive average pooling in ONNX, which has no operator for it: along each axis a product with a matrix."""
    op = optional_import("onnxscript")[0].opset20
    constant = optional_import("onnx.numpy_helper")[0].from_array
    sizes = [int(n) for n in image.shape[2:]]
    for inputs, outputs in zip(reversed(sizes), reversed(output_size), strict=True):
        matrix = np.zeros((inputs, outputs), np.float32)
        for i in range(outputs):
            window = slice(i * inputs // outputs, -(-(i + 1) * inputs // outputs))
            matrix[window, i] = 1 / (window.stop - window.start)
        # The last axis is pooled and becomes the first of the three.
        image = op.Transpose(op.MatMul(image, op.Constant(value=constant(matrix))), perm=[0, 1, 4, 2, 3])
    return image


def _write_tensorrt(source: Source, path: Path, metadata: dict[str, Any]) -> None:
    """By way of TorchScript, in which what TensorRT cannot do (sampling of volumes) stays with PyTorch."""
    if not torch.cuda.is_available():
        raise RegZooError("tensorrt: there is no NVIDIA GPU that PyTorch can use; export on the GPU that is to run it")
    require("torch_tensorrt", "torch-tensorrt", "exporting to TensorRT")
    compiled = convert_to_trt(
        source.network,
        precision="fp32",
        input_shape=[1, source.channels, *source.size],
        dynamic_batchsize=TENSORRT_BATCHES,
        disable_tf32=True,  # ten bits of a displacement are not enough
        truncate_long_and_double=True,
    )
    _save_script(compiled, source, path, metadata)
    source.network.cpu()


_WRITERS: dict[str, Callable[[Source, Path, dict[str, Any]], None]] = {
    "torchscript": _write_torchscript,
    "onnx": _write_onnx,
    "tensorrt": _write_tensorrt,
}


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what exporters say of PyTorch's own plans and of packages that are not needed."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            for kind in (DeprecationWarning, FutureWarning, UserWarning):
                warnings.simplefilter("ignore", kind)
            yield
    finally:
        logger.setLevel(level)
