"""Writing a network in each format: TorchScript, ONNX and TensorRT."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data.torchscript_utils import save_net_with_metadata
from monai.networks.utils import convert_to_onnx, convert_to_torchscript, convert_to_trt
from monai.utils import optional_import
from regzoo.errors import RegZooError
from regzoo.export import INPUT, METADATA, OUTPUT, require
from torch import nn

#: The name of each format's file in a bundle's ``models`` folder.
FILES = {"torchscript": "model.ts", "onnx": "model.onnx", "tensorrt": "model_trt.ts"}
#: The first ONNX operator set that can sample volumes; ONNX Runtime has supported it since version 1.17.
OPSET = 20
#: The smallest, usual and largest batch that TensorRT prepares for.
TENSORRT_BATCHES = (1, 1, 16)


def write_network(network: nn.Module, format: str, path: Path, metadata: dict[str, Any], config: str) -> None:
    """Write a network to a file in one of the formats of `FILES`, without verifying it.

    Args:
        network: in evaluation mode, on the CPU.
        metadata: of the bundle, with the entry ``export``.
        config: the inference configuration, JSON.

    Raises:
        RegZooError: the format needs a package that is not installed, or a GPU where there is none.
    """
    writers = {"torchscript": _write_torchscript, "onnx": _write_onnx, "tensorrt": _write_tensorrt}
    with _quiet():
        writers[format](network, path, metadata, config)


def _write_torchscript(network: nn.Module, path: Path, metadata: dict[str, Any], config: str) -> None:
    """Like MONAI's ``ckpt_export``, which loads weights less strictly and cannot write to a temporary name."""
    with path.open("wb") as stream:  # MONAI appends a suffix to a name that has none
        save_net_with_metadata(
            network if isinstance(network, torch.jit.ScriptModule) else convert_to_torchscript(network),
            stream,
            include_config_vals=False,
            meta_values=metadata,
            more_extra_files={"inference.json": config.encode()},
        )


def _write_onnx(network: nn.Module, path: Path, metadata: dict[str, Any], config: str) -> None:
    """Write ONNX through `torch.export`; a trace supports neither memory layouts nor all of our operators."""
    onnx = require("onnx", "onnx", "exporting to ONNX")
    require("onnxscript", "onnxscript", "exporting to ONNX")
    require("onnxruntime", "onnxruntime", "verifying an exported ONNX network")
    export = metadata["export"]
    model = convert_to_onnx(
        network,
        # With a batch of one, the exporter would make the batch size a constant.
        [torch.zeros(2, *export["inputs"][INPUT][1:])],
        input_names=[INPUT],
        output_names=[OUTPUT],
        opset_version=OPSET,
        # The remaining arguments go to torch.onnx.export.
        dynamo=True,
        dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
        external_data=False,
        verbose=False,
        custom_translation_table={torch.ops.aten._adaptive_avg_pool3d.default: _adaptive_average},
    )
    entries = {
        "name": metadata["name"],
        "version": metadata["version"],
        "bundle": export["bundle"],
        INPUT: json.dumps(export["inputs"][INPUT]),
        OUTPUT: json.dumps(export["outputs"][OUTPUT]),
        "spacing": json.dumps(export["spacing"]),
        METADATA: json.dumps(metadata),
        "inference.json": config,
    }
    onnx.helper.set_model_props(model, entries)
    for part in (*model.graph.node, *model.graph.value_info, *model.graph.input, *model.graph.output):
        del part.metadata_props[:]  # the exporter's notes, which contain paths of this machine
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, str(path))


def _adaptive_average(image: Any, output_size: Sequence[int]) -> Any:
    """Adaptive average pooling as a matrix product along each axis, because ONNX has no operator for it."""
    op = optional_import("onnxscript")[0].opset20
    constant = optional_import("onnx.numpy_helper")[0].from_array
    sizes = [int(n) for n in image.shape[2:]]
    for inputs, outputs in zip(reversed(sizes), reversed(output_size), strict=True):
        matrix = np.zeros((inputs, outputs), np.float32)
        for i in range(outputs):
            window = slice(i * inputs // outputs, -(-(i + 1) * inputs // outputs))
            matrix[window, i] = 1 / (window.stop - window.start)
        # Pool the last axis, and make it the first of the three.
        image = op.Transpose(op.MatMul(image, op.Constant(value=constant(matrix))), perm=[0, 1, 4, 2, 3])
    return image


def _write_tensorrt(network: nn.Module, path: Path, metadata: dict[str, Any], config: str) -> None:
    """Write TorchScript that runs in TensorRT, except for what only PyTorch can do (sampling of volumes)."""
    if not torch.cuda.is_available():
        raise RegZooError("tensorrt: there is no NVIDIA GPU that PyTorch can use; export on the GPU that will run it")
    require("torch_tensorrt", "torch-tensorrt", "exporting to TensorRT")
    compiled = convert_to_trt(
        network,
        precision="fp32",
        input_shape=[1, *metadata["export"]["inputs"][INPUT][1:]],
        dynamic_batchsize=TENSORRT_BATCHES,
        disable_tf32=True,  # TF32's ten bits are too few for a displacement
        truncate_long_and_double=True,
    )
    _write_torchscript(compiled, path, metadata, config)
    network.cpu()


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide the exporters' warnings about future changes in PyTorch and about packages that are not needed."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
