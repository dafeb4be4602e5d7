"""Networks to export: every kind, small, with weights as after training, and what a file of one should do."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from bundle_list import NAMES, tiny
from helpers import smooth_noise
from monai.bundle import ConfigParser
from regzoo.engines import save_weights
from torch import nn

BUNDLES = Path(__file__).resolve().parents[2] / "bundles"
WEAK, SEG, SDM = "prostate_mr_trus_weak_ddf", "prostate_mr_trus_conditional_seg", "prostate_mr_trus_sdm"
DDMR = "abdominal_ct_ddmr"
#: The forms of networks that differ in what is exported, on grids that no level divides: bundle, overlay, settings.
FORMS: dict[str, tuple[str, str | None, dict[str, Any]]] = {
    "local": (WEAK, None, {"channels": 2, "size": [18, 14, 13]}),
    "local, δ1-4": (WEAK, "delta1to4", {"channels": 2, "size": [18, 14, 13]}),
    "local, not additive": (WEAK, "no_additive_upsampling", {"channels": 2, "size": [18, 14, 13], "norm": "instance"}),
    "global": (WEAK, "global_net", {"channels": 2, "size": [35, 18, 20]}),
    "composite": (WEAK, "composite_net", {"channels": 2, "size": [18, 14, 35]}),
    "conditional": (SEG, None, {"channels": 2, "size": [18, 14, 13]}),
    "pyramid": (SDM, None, {"channels": 2, "size": [18, 14, 13]}),
    "pyramid, images only": (SDM, "mix", {"channels": 2, "size": [18, 14, 13], "norm": "instance"}),
    "voxelmorph, twice": (DDMR, None, {"channels": [2, 4], "size": [18, 14, 13]}),
    "voxelmorph, once": (DDMR, None, {"channels": [2, 4], "size": [16, 12, 8], "stride": 1, "passes": 1, "norm": None}),
    "voxelmorph, integrated": (
        DDMR,
        "diffeomorphic",
        {"channels": [2, 4], "size": [18, 14, 13], "integration_steps": 3},
    ),
}


def others() -> Iterator[tuple[str, str | None]]:
    """Every bundle, and every variant with a network of its own, that `FORMS` does not list."""
    for bundle in NAMES:
        variants = sorted((BUNDLES / bundle / "configs" / "variants").glob("*.json"))
        own = [path.stem for path in variants if "network_def" in json.loads(path.read_text(encoding="utf-8"))]
        for overlay in (None, *own):
            if (bundle, overlay) not in [form[:2] for form in FORMS.values()]:
                yield bundle, overlay


#: All networks to export.
KINDS = FORMS | {
    f"{bundle}, {overlay}" if overlay else bundle: (
        bundle,
        overlay,
        {key: value for key, value in tiny(bundle).items() if "channels" in key} | {"size": [18, 14, 13]},
    )
    for bundle, overlay in others()
}


def definition(bundle: str, overlay: str | None, settings: dict[str, Any]) -> nn.Module:
    """The network of a bundle, without the code that exports it."""
    parser = ConfigParser()
    configs = BUNDLES / bundle / "configs"
    parser.read_config(
        [str(configs / "inference.json"), *([str(configs / f"variants/{overlay}.json")] if overlay else [])]
    )
    parser.update(settings)
    network = parser.get_parsed_content("network_def")
    assert isinstance(network, nn.Module)
    return network


def trained(network: nn.Module, seed: int = 0) -> nn.Module:
    """As after training: no parameter is zero, statistics are not those of the start, displacements of some voxels."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in network.state_dict().items():
            if name.endswith("running_var"):
                value.uniform_(0.5, 2.0, generator=generator)
            elif value.dtype.is_floating_point and not bool(value.any()):
                value.normal_(std=0.02 if "theta" in name else 0.2, generator=generator)
    return network.eval()


def images(channels: int, shape: list[int], batch: int) -> torch.Tensor:
    volumes = [[smooth_noise(shape, 1.5, 7 * b + c, top=3) - 1.5 for c in range(channels)] for b in range(batch)]
    return torch.from_numpy(np.array(volumes))


def case(kind: str, folder: Path) -> tuple[str, list[str], dict[str, Any], nn.Module]:
    """Arguments of an export, and the network that was saved for it."""
    bundle, overlay, settings = KINDS[kind]
    network = trained(definition(bundle, overlay, settings))
    save_weights(network, folder / "weights.pt")
    overlays = [f"configs/variants/{overlay}.json"] if overlay else []
    return bundle, overlays, {**settings, "checkpoint": str(folder / "weights.pt")}, network


def runtime(path: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def check_in_onnx_runtime(path: Path, network: nn.Module, inputs: tuple[int, ...]) -> None:
    """Batches of any size through the file alone."""
    session = runtime(path)
    assert session.get_inputs()[0].shape == ["batch", *inputs]
    for batch in (1, 2, 5):
        example = images(inputs[0], list(inputs[1:]), batch)
        (found,) = session.run(["pred"], {"image": example.numpy()})
        with torch.no_grad():
            expected = network(example).numpy()
        scale = np.abs(expected).max()
        assert scale > 0.1
        np.testing.assert_allclose(found, expected, atol=1e-4 * scale, rtol=0)
