"""Exported files that run in place of the network that a bundle's configuration defines."""

from __future__ import annotations

import hashlib
import json
import logging
import shlex
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.utils import optional_import
from regzoo.bundles import read_metadata
from regzoo.engines.weights import load_weights, unwrap
from regzoo.errors import RegZooError, bad_file
from regzoo.spatial import as_tensor
from torch import nn

logger = logging.getLogger(__name__)

#: Names of the input and the output of an exported network, and of the entry of its file that describes it.
INPUT, OUTPUT, METADATA = "image", "pred", "metadata.json"


def require(module: str, package: str, purpose: str) -> Any:
    """Import an optional dependency; the error names the package to install."""
    imported, installed = optional_import(module)
    if not installed:
        raise RegZooError(f"{purpose} needs the package {package}, which is not installed; pip install {package}")
    return imported


def weights_digest(network: nn.Module) -> str:
    """SHA-256 of a network's weights: their names, types, shapes and values."""
    digest = hashlib.sha256()
    for name, value in sorted(unwrap(network).state_dict().items()):
        values = value.detach().cpu().contiguous().numpy()
        digest.update(f"{name} {values.dtype.str} {values.shape}\n".encode())
        digest.update(values.tobytes())
    return digest.hexdigest()


class ExportedNetwork(nn.Module):
    """A network from a file written by ``regzoo export``: takes (B, C, X, Y, Z), any B, and returns the prediction.

    The description in the file is compared with the configuration that uses it, so that a file of another bundle,
    network, grid or training is refused instead of giving a wrong answer.

    Args:
        bundle_root: the bundle from which it must have been exported.
        network_def: the network that the configuration defines. `checkpoint` is loaded into it, and its weights are
            compared with those of the file.
        checkpoint: the weights of the configuration. The bundle's own ``models/model.pt`` may be missing, because the
            exported file is enough to run; any other file must exist.
        size: network grid of the configuration, voxels.
        spacing: voxel size of the network grid, mm.

    Raises:
        RegZooError: the file is missing, damaged, or of another network.
    """

    #: The format's name on the command line.
    format = ""

    def __init__(
        self,
        path: str | PathLike[str],
        bundle_root: str | PathLike[str],
        network_def: nn.Module,
        checkpoint: str | PathLike[str],
        size: Sequence[int],
        spacing: Sequence[float],
        device: str | torch.device = "cpu",
    ) -> None:
        super().__init__()
        self.path = Path(path)
        self.device = torch.device(device)
        command = ["python", "-m", "regzoo", "export", str(bundle_root), "--format", self.format, "--out", str(path)]
        fix = f"{shlex.join(command)}, with the overlays and settings used here"
        if not self.path.is_file():
            raise bad_file(self.path, "no such exported network", f"write it with: {fix}")
        try:
            metadata = self._load()
            name, export = metadata["name"], metadata["export"]
            self.channels, *self.grid = (int(n) for n in export["inputs"][INPUT][1:])
            self.fixed_size, voxel = bool(export["fixed_size"]), [float(mm) for mm in export["spacing"]]
            network, weights = export["network"], export["weights"]
        except RegZooError:
            raise
        except Exception as error:  # each library raises its own errors for a damaged file
            problem = "is damaged, or was not written by this regzoo's export"
            raise bad_file(self.path, problem, f"write it again: {fix}") from error
        problem = ""
        if name != read_metadata(bundle_root, "name")["name"]:
            problem = f"holds the network of another bundle ({name})"
        elif self.fixed_size and self.grid != [int(n) for n in size]:
            problem = f"was exported for {self.grid} voxels, not {list(size)}"
        elif not np.allclose(voxel, [float(mm) for mm in spacing], rtol=1e-3):
            problem = f"was exported for {voxel} mm, not {list(spacing)}"
        elif network != repr(network_def):
            problem = f"holds another network than the {type(network_def).__name__} of the configuration"
        elif not self._has_weights(weights, network_def, Path(checkpoint), Path(bundle_root)):
            problem = f"holds other weights than {checkpoint}"
        if problem:
            raise bad_file(self.path, problem, f"write it again: {fix}")

    def _has_weights(self, digest: str, network_def: nn.Module, checkpoint: Path, bundle_root: Path) -> bool:
        """Whether a digest is that of a checkpoint's weights; also true if the bundle comes without weights."""
        own = bundle_root.resolve() / "models" / "model.pt"
        if not own.exists() and checkpoint.resolve() == own:
            logger.info("%s: there is no %s to compare its weights with", self.path, checkpoint)
            return True
        return digest == weights_digest(load_weights(network_def, checkpoint))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """(B, C, X, Y, Z) float32 → the prediction, on the device of the input.

        Raises:
            RegZooError: the input's channels or size differ from the file's.
        """
        image = as_tensor(image)
        expected = [self.channels, *(self.grid if self.fixed_size else image.shape[2:])]
        if list(image.shape[1:]) != expected:
            problem = f"takes (channels, X, Y, Z) = {expected}, not {list(image.shape[1:])}"
            raise bad_file(self.path, problem, "export it with the overlays and settings used here")
        return self._run(image)

    def _load(self) -> Mapping[str, Any]:
        """Open the file, and return its metadata."""
        raise NotImplementedError

    def _run(self, image: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError


class TorchScriptNetwork(ExportedNetwork):
    """An `ExportedNetwork` run by PyTorch, without the network's own Python code.

    Args:
        needs: a package whose operators the file uses: ``torch_tensorrt`` for a file compiled by TensorRT.
    """

    format = "torchscript"

    def __init__(self, *args: Any, needs: str | None = None, **kwargs: Any) -> None:
        if needs is not None:
            require(needs, needs.replace("_", "-"), "running a compiled network")
            self.format = "tensorrt" if needs == "torch_tensorrt" else self.format
        super().__init__(*args, **kwargs)

    def _load(self) -> Mapping[str, Any]:
        extra = {METADATA: ""}
        self.network = torch.jit.load(str(self.path), map_location=self.device, _extra_files=extra).eval()
        return dict(json.loads(extra[METADATA]))

    def _run(self, image: torch.Tensor) -> torch.Tensor:
        prediction: torch.Tensor = self.network(image.to(self.device))
        return prediction.to(image.device)


class OnnxNetwork(ExportedNetwork):
    """An `ExportedNetwork` run by ONNX Runtime, on the CPU with as many threads as PyTorch uses.

    Args:
        providers: execution providers of ONNX Runtime, the preferred first; by default CUDA on a GPU, and the CPU.
            Providers that the installed ONNX Runtime lacks are left out, with a warning.
    """

    format = "onnx"

    def __init__(self, *args: Any, providers: Sequence[str] | None = None, **kwargs: Any) -> None:
        self.wanted = list(providers) if providers is not None else None
        super().__init__(*args, **kwargs)

    def _load(self) -> Mapping[str, Any]:
        runtime = require("onnxruntime", "onnxruntime", "running an ONNX network")
        options = runtime.SessionOptions()
        options.log_severity_level = 3  # errors only
        options.intra_op_num_threads = torch.get_num_threads()
        # PyTorch computes between calls; threads that spin until the next call would occupy its cores.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        self.session = runtime.InferenceSession(str(self.path), options, providers=self._providers(runtime))
        return dict(json.loads(self.session.get_modelmeta().custom_metadata_map[METADATA]))

    def _providers(self, runtime: Any) -> list[Any]:
        """The wanted providers that the installed ONNX Runtime has, and the CPU."""
        gpu = self.device.type == "cuda"
        wanted = self.wanted or (["CUDAExecutionProvider"] if gpu else [])
        missing = sorted(set(wanted) - set(runtime.get_available_providers()))
        if missing:
            logger.warning("ONNX Runtime is installed without %s (pip install onnxruntime-gpu)", ", ".join(missing))
        index = {"device_id": self.device.index or 0} if gpu else {}
        options = {name: index if name.startswith(("CUDA", "Tensorrt")) else {} for name in wanted}
        return [*((name, options[name]) for name in wanted if name not in missing), "CPUExecutionProvider"]

    def _run(self, image: torch.Tensor) -> torch.Tensor:
        (prediction,) = self.session.run([OUTPUT], {INPUT: np.ascontiguousarray(image.float().cpu().numpy())})
        return torch.from_numpy(prediction).to(image.device)
