"""Weights in files: read safely, loaded strictly, and written with a note of their training."""

from __future__ import annotations

import logging
import re
from collections import OrderedDict
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from regzoo.bundles import BUNDLE_FOLDERS
from regzoo.engines.divergence import first_few, non_finite
from regzoo.engines.identity import file_hash
from regzoo.errors import RegZooError, bad_file
from regzoo.files import atomic_path
from torch import nn

logger = logging.getLogger(__name__)

#: An entry of a state dict's metadata, next to PyTorch's own entries for modules. PyTorch pickles the metadata with the
#: tensors and ignores unknown entries, so any program can copy, load or average such weights.
ORIGIN = "regzoo"
#: The entries under which programs save the weights of a network; the first is that of our trainings.
WRAPPERS = ("network", "state_dict", "model", "model_state_dict")
#: Prefixes that a parallel and a compiled network add to the names of their weights.
PREFIXES = ("module.", "_orig_mod.")
#: How to make a file of weights, in words.
ALONE = "save the weights alone, as torch.save(network.state_dict(), FILE) does"


def unwrap(network: nn.Module) -> nn.Module:
    """The network inside a `DistributedDataParallel` or compiled wrapper."""
    inner = getattr(network, "module", network)
    return getattr(inner, "_orig_mod", inner)


def read_checkpoint(path: str | PathLike[str]) -> dict[str, Any]:
    """Read a file written by `torch.save` onto the CPU, tensors and plain values only.

    Raises:
        RegZooError: the file is missing or damaged.
    """
    if not Path(path).is_file():
        raise bad_file(path, "no such checkpoint", "train first, or name a file as checkpoint")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # on a damaged file the unpickler can raise anything
        if re.search("Unsupported (global|class)", str(error)):
            raise bad_file(path, "holds Python objects, such as a whole network, not weights", ALONE) from error
        raise bad_file(path, "cannot be read as a checkpoint", "copy it again, or name another one") from error
    if not isinstance(content, dict):
        raise bad_file(path, "holds no state dict", "name a file of weights")
    return content


def load_weights(network: nn.Module, path: str | PathLike[str]) -> nn.Module:
    """Load the weights of a network strictly, from a plain state dict or a training checkpoint, and return it.

    Raises:
        RegZooError: the file is missing or damaged, or holds no weights or those of another network.
    """
    load_state(network, read_checkpoint(path), path)
    return network


def load_state(network: nn.Module, content: Mapping[str, Any], path: str | PathLike[str]) -> None:
    """Load the content of a checkpoint into a network, strictly; NaN and infinite weights are refused."""
    state = _unwrapped(content)
    if state and not any(isinstance(value, torch.Tensor) for value in state.values()):
        raise bad_file(path, f"holds no weights of a network, but {first_few(list(map(str, state)))}", ALONE)
    if names := non_finite(state):
        raise bad_file(path, f"holds NaN or infinity in {first_few(names)}", "use weights of a training that converged")
    network = unwrap(network)
    try:
        network.load_state_dict(state, strict=True)
    except (RuntimeError, AttributeError, TypeError) as error:
        problem = f"holds the weights of another network than this {type(network).__name__}{_misfits(network, state)}"
        fix = "use the configuration it was trained with (channels, variant overlay), or another file"
        raise bad_file(path, problem, fix) from error


def _unwrapped(content: Mapping[str, Any]) -> Mapping[str, Any]:
    """The state dict in the content of a checkpoint, with the names that the network itself gives to its weights."""
    state = next((inner for key in WRAPPERS if isinstance(inner := content.get(key), Mapping)), content)
    while prefix := next((one for one in PREFIXES if state and all(str(name).startswith(one) for name in state)), ""):
        state = {str(name).removeprefix(prefix): value for name, value in state.items()}
    return state


def _misfits(network: nn.Module, state: Mapping[str, torch.Tensor]) -> str:
    """The parameters of a state dict that do not fit a network, in words; empty if all names and shapes fit."""
    if not all(isinstance(value, torch.Tensor) for value in state.values()):
        return ""
    own = network.state_dict()
    parts = [
        f"{name} is {_shape(own[name])} here, {_shape(state[name])} in the file"
        for name in own
        if name in state and own[name].shape != state[name].shape
    ]
    parts += [f"{name} is not in the file" for name in own if name not in state]
    parts += [f"{name} is not in the network" for name in state if name not in own]
    return f" ({first_few(parts)})" if parts else ""


def _shape(value: torch.Tensor) -> str:
    return "×".join(map(str, value.shape)) or "a single number"


def save_weights(network: nn.Module, path: str | PathLike[str], origin: Mapping[str, Any] | None = None) -> None:
    """Write the weights of a network as a plain float32 state dict on the CPU, atomically.

    `origin` says in plain values how they were trained; `origin_of` reads it.
    """
    state = OrderedDict((name, value.detach().cpu()) for name, value in unwrap(network).state_dict().items())
    if origin:
        state._metadata = {ORIGIN: dict(origin)}  # type: ignore[attr-defined]
    with atomic_path(path) as temporary:
        torch.save(state, temporary)


def origin_of(content: Mapping[str, Any]) -> dict[str, Any]:
    """How the weights of a checkpoint were trained; empty if the checkpoint does not say."""
    metadata = getattr(content, "_metadata", None) or {}
    origin = metadata.get(ORIGIN) or content.get("origin")
    return dict(origin) if isinstance(origin, Mapping) else {}


def starting_weights(init_weights: str | PathLike[str] | None, bundle_root: str | PathLike[str]) -> Path | None:
    """The file of ``init_weights``: a path, ``released`` for the bundle's own weights, or a bundle's name or folder.

    Raises:
        RegZooError: there is no such file.
    """
    if not init_weights:
        return None
    named, own = Path(init_weights), Path(bundle_root)
    places = [Path(), own.resolve().parent, *BUNDLE_FOLDERS]
    folders = [own] if str(init_weights) == "released" else [place / named for place in places]
    for path in (named, *(folder / "models" / "model.pt" for folder in folders)):
        if path.is_file():
            return path
    raise bad_file(named, "no such weights to start from", "set init_weights to a file, a bundle or `released`")


def starting_hash(init_weights: str | PathLike[str] | None, bundle_root: str | PathLike[str]) -> str:
    """The `file_hash` of `starting_weights`; empty for none."""
    path = starting_weights(init_weights, bundle_root)
    return "" if path is None else file_hash(path)


def starting_network(
    network: nn.Module,
    init_weights: str | PathLike[str] | None,
    bundle_root: str | PathLike[str],
    freeze_encoder: bool = False,
) -> nn.Module:
    """Prepare a network for training, in place, and return it.

    Args:
        network: with random weights.
        init_weights: weights to load instead, see `starting_weights`; empty to keep the random ones.
        freeze_encoder: give the encoder no gradients, and keep the statistics of its normalisation.

    Raises:
        RegZooError: the weights are missing or do not fit, or the network has no encoder to freeze.
    """
    path = starting_weights(init_weights, bundle_root)
    if path is not None:
        load_weights(network, path)
        logger.info("the training starts from the weights in %s", path)
    if freeze_encoder:
        parts: list[nn.Module] = getattr(network, "contracting_path", list)()
        if not parts:
            raise RegZooError(f"{type(network).__name__} has no encoder to freeze; leave freeze_encoder out")
        for part in parts:
            part.requires_grad_(False)
            part.register_forward_pre_hook(_stay_in_evaluation)
    return network


def _stay_in_evaluation(module: nn.Module, inputs: Any) -> None:
    """Undo the trainer's `train()`, after which a batch normalisation would update its statistics."""
    module.eval()


def trainable(*modules: nn.Module) -> list[nn.Parameter]:
    """The parameters of networks and losses that a training changes."""
    return [parameter for module in modules for parameter in module.parameters() if parameter.requires_grad]
