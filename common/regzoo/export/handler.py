"""Writing the network of a bundle to a file that other programs run: TorchScript, ONNX or TensorRT."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from regzoo.bundles import find_bundle
from regzoo.errors import RegZooError, bad_file
from regzoo.export.exported import INPUT, OUTPUT, ExportedNetwork, OnnxNetwork, TorchScriptNetwork
from regzoo.export.formats import FILES, write_network
from regzoo.export.source import Source
from regzoo.ownership import check_file, own_path

#: The largest difference from PyTorch that is let pass, as a share of the largest value of its prediction.
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Export:
    """What was written, and how well it does what the network does.

    Attributes:
        path: the file.
        inputs: channels of the input and network grid (C, X, Y, Z); the batch may be of any size.
        outputs: the same of the output.
        fixed_size: whether the file takes no other grid.
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
        """`largest` as a share of `scale`; as it is if the network predicts nothing, which is no scale."""
        return self.largest / (self.scale or 1.0)

    def __str__(self) -> str:
        """What the command prints."""
        inputs, outputs = (f"(batch, {', '.join(map(str, shape))})" for shape in (self.inputs, self.outputs))
        grid = "this grid only" if self.fixed_size else "any other grid, too"
        verified = (
            f"largest difference from PyTorch: {self.largest:.1e}, "
            f"which is {self.difference:.1e} of the largest value ({self.scale:.3g})"
        )
        if self.scale == 0:
            verified = "these weights predict nothing but zeros, here and in PyTorch: they are those of no training"
        return (
            f"{self.path} ({self.path.stat().st_size / 1e6:.2f} MB)\n"
            f"{INPUT} {inputs} → {OUTPUT} {outputs}, float32; any batch, {grid}\n{verified}"
        )


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
    path = Path(out) if out is not None else find_bundle(bundle) / "models" / FILES[format]
    if path.is_dir():
        raise bad_file(path, "is a folder", "name a file")
    check_file(path)
    source = Source.read(bundle, overlays, overrides)
    examples = [source.images(1), source.images(3)]
    if format == "torchscript":
        examples.append(source.images(1, larger=3))
    with torch.inference_mode():
        expected = [source.network(example) for example in examples]
    outputs = list(expected[0].shape[1:])
    with own_path(path) as temporary:
        write_network(source, format, temporary, source.described(format, outputs))
        written = _open(format, temporary, source)
        with torch.inference_mode():
            found = [written(example) for example in examples]
        # PyTorch's maximum, unlike Python's, is NaN where there is one.
        scale = float(torch.stack([prediction.abs().max() for prediction in expected]).max())
        largest = float(torch.stack([(a - b).abs().max() for a, b in zip(found, expected, strict=True)]).max())
        inputs = (source.channels, *source.size)
        export = Export(path, inputs, tuple(outputs), format != "torchscript", largest, scale)
        if not export.difference <= TOLERANCE:  # neither is NaN
            raise bad_file(
                path,
                f"not written: what it predicts differs from PyTorch by {export.difference:.1e} of the largest value",
                f"try other versions of torch and {'onnxruntime' if format == 'onnx' else format}, and report it",
            )
    return export


def _open(format: str, path: Path, source: Source) -> ExportedNetwork:
    """A file that has just been written, as inference runs it."""
    given = (path, source.root, source.network, source.checkpoint, source.size, source.spacing)
    if format == "onnx":
        return OnnxNetwork(*given)
    if format == "tensorrt":
        return TorchScriptNetwork(*given, device="cuda", needs="torch_tensorrt")
    return TorchScriptNetwork(*given)
