"""Writing a network in each format: TorchScript, ONNX and TensorRT."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data.torchscript_utils import save_net_with_metadata
from monai.networks.utils import convert_to_onnx, convert_to_torchscript, convert_to_trt
from monai.utils import optional_import
from regzoo.errors import RegZooError
from regzoo.export.exported import INPUT, METADATA, OUTPUT, require
from regzoo.export.source import Source
from torch import nn

#: What each format is called in a bundle's ``models`` folder.
FILES = {"torchscript": "model.ts", "onnx": "model.onnx", "tensorrt": "model_trt.ts"}
#: Sampling of volumes came with this version of ONNX; ONNX Runtime knows it since 1.17.
OPSET = 20
#: Smallest, usual and largest batch that TensorRT prepares for.
TENSORRT_BATCHES = (1, 1, 16)


def write_network(source: Source, format: str, path: Path, metadata: dict[str, Any]) -> None:
    """Write a network to a file of one of the formats of `FILES`, unverified.

    Raises:
        RegZooError: a package or a GPU that the format needs is not there.
    """
    with _quiet():
        _WRITERS[format](source, path, metadata)


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
