"""Checks of the network: its input and output, its weights, and its export."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from monai.bundle import ckpt_export, verify_net_in_out
from regzoo.engines import load_weights
from regzoo_tools.bundle import Bundle, CheckError
from regzoo_tools.export import TOLERANCE
from torch import nn


def make_network(bundle: Bundle) -> nn.Module:
    """``network_def`` of the inference, in evaluation mode."""
    network = bundle.config("inference").get_parsed_content("network_def")
    if not isinstance(network, nn.Module):
        raise CheckError("network_def of inference.json is not a torch.nn.Module")
    return network.eval()


def in_and_out(bundle: Bundle) -> str:
    """MONAI's own check of channels and types, with one tensor of the size that the metadata give."""
    verify_net_in_out(net_id="network_def", device="cpu", **bundle.for_monai("inference"))
    return "channels and types as in the metadata"


def batch_of_two(bundle: Bundle) -> str:
    """The full output shape for a batch of two, which MONAI's check does not cover."""
    shape, wanted = bundle.shape(batch=2)
    with torch.inference_mode():
        found = list(make_network(bundle)(torch.zeros(shape)).shape)
    if found != wanted:
        raise CheckError(f"{shape} → {found}, but the metadata say {wanted}")
    return f"{shape} → {found}"


def weights(bundle: Bundle) -> str:
    """Plain tensors of float32 (and counters) that fit the network exactly."""
    path = bundle.weights()
    state = torch.load(path, map_location="cpu", weights_only=True)
    plain = isinstance(state, dict) and all(isinstance(value, torch.Tensor) for value in state.values())
    if not plain:
        raise CheckError(f"{path.name} is not a plain state dict; save network.state_dict()")
    others = {str(value.dtype) for value in state.values()} - {"torch.float32", "torch.int64"}
    if others:
        raise CheckError(f"{path.name} holds {', '.join(sorted(others))}; save float32")
    load_weights(make_network(bundle), path)
    return f"{sum(value.numel() for value in state.values()) / 1e6:.2f} million values, which fit the network"


def torchscript(bundle: Bundle, trace: bool) -> str:
    """MONAI exports the released weights, traced or scripted, and the file gives the same output on noise."""
    path, (shape, _) = bundle.weights(), bundle.shape()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.ts"
        ckpt_export(
            net_id="network_def",
            filepath=str(file),
            ckpt_file=str(path),
            key_in_ckpt="",
            use_trace=trace,
            input_shape=shape if trace else None,
            **bundle.for_monai("inference"),
        )
        exported = torch.jit.load(str(file), map_location="cpu").eval()
    network = load_weights(make_network(bundle), path)
    image = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        prediction = network(image)
        scale = float(prediction.abs().max())
        difference = float((exported(image) - prediction).abs().max())
    if not difference <= TOLERANCE * scale:  # NaN fails too
        raise CheckError(f"the output differs from the network's by {difference:.3g}; its largest value is {scale:.3g}")
    return f"largest difference {difference:.1e}, largest value {scale:.3g}"
