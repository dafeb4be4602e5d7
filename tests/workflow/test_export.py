"""Exported files against PyTorch, run as another program would run them: every kind of network, and what goes wrong."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from helpers import smooth_noise
from monai.bundle import ConfigParser
from monai.data.torchscript_utils import load_net_with_metadata
from regzoo.cli import main
from regzoo.errors import RegZooError
from regzoo.networks import GlobalNet
from regzoo.spatial import warp
from regzoo.workflow import OnnxNetwork, TorchScriptNetwork, export_network, save_weights
from regzoo.workflow import export as exporting
from torch import nn

BUNDLES = Path(__file__).resolve().parents[2] / "bundles"
DOCS = BUNDLES.parent / "docs" / "export.md"
WEAK, SEG, SDM = "prostate_mr_trus_weak_ddf", "prostate_mr_trus_conditional_seg", "prostate_mr_trus_sdm"
DDMR = "abdominal_ct_ddmr"
SPACING = [4.0, 3.0, 2.0]
#: Every network and each of its forms, on grids that no level divides: bundle, overlay, settings.
KINDS: dict[str, tuple[str, str | None, dict[str, Any]]] = {
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
    "hippocampus": (DDMR, "hippocampus", {"channels": [2, 4], "size": [13, 16, 14]}),
}
#: `torch.export` takes seconds for each; the others are in the released bundles, see `test_exported_inference`.
IN_ONNX = ["composite", "voxelmorph, integrated"]


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


@pytest.mark.parametrize("kind", IN_ONNX)
def test_onnx(kind: str, tmp_path: Path) -> None:
    bundle, overlays, settings, network = case(kind, tmp_path)
    export = export_network(bundle, "onnx", tmp_path / "network.onnx", overlays, **settings)
    assert export.fixed_size and export.difference < 1e-4 and export.inputs == (2, *settings["size"])
    check_in_onnx_runtime(export.path, network, export.inputs)


@pytest.mark.parametrize("kind", KINDS)
def test_torchscript(kind: str, tmp_path: Path) -> None:
    bundle, overlays, settings, network = case(kind, tmp_path)
    export = export_network(bundle, "torchscript", tmp_path / "network.ts", overlays, **settings)
    loaded = torch.jit.load(tmp_path / "network.ts")
    assert not export.fixed_size
    for batch, larger in ((1, 0), (3, 0), (2, 5)):
        example = images(export.inputs[0], [n + larger for n in settings["size"]], batch)
        with torch.no_grad():
            expected = network(example)
            scale = float(expected.abs().max())
            assert scale > 0.1
            torch.testing.assert_close(loaded(example), expected, atol=1e-4 * scale, rtol=0)


def test_the_command_prints_what_it_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle, overlay, settings = KINDS["pyramid, images only"]
    fresh, later = definition(bundle, overlay, settings), trained(definition(bundle, overlay, settings))
    out = str(tmp_path / "network.ts")
    arguments = ["--format", "torchscript", "--out", out, "--overlays", f"configs/variants/{overlay}.json"]
    arguments += [f"--{name}={value}" for name, value in settings.items()] + [f"--checkpoint={tmp_path / 'weights.pt'}"]
    monkeypatch.setattr(sys, "argv", ["regzoo", "export", str(BUNDLES / bundle), *arguments])
    shapes = "image (batch, 2, 18, 14, 13) → pred (batch, 3, 18, 14, 13), float32; any batch, any other grid, too"
    for network, said in ((fresh, "nothing but zeros"), (later, "difference")):
        save_weights(network, tmp_path / "weights.pt")
        main()
        file, sizes, verified = capsys.readouterr().out.strip().splitlines()
        assert file.startswith(f"{out} (") and sizes == shapes and said in verified


def test_everything_is_tried_in_some_form() -> None:
    """A new network, or a variant with one of its own, has to be added above."""
    tried = {type(definition(*KINDS[kind])) for kind in KINDS}
    for path in BUNDLES.glob("*/configs/variants/*.json"):
        if path.stem != "paper" and "network_def" in json.loads(path.read_text(encoding="utf-8")):
            assert type(definition(path.parents[2].name, path.stem, {})) in tried
    assert GlobalNet in tried


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One small network in both formats."""
    folder = tmp_path_factory.mktemp("files")
    bundle, overlays, settings, network = case("local, not additive", folder)
    written = {
        format: export_network(bundle, format, folder / "out" / format, overlays, spacing=SPACING, **settings).path
        for format in ("onnx", "torchscript")
    }
    check_in_onnx_runtime(written["onnx"], network, (2, *settings["size"]))
    return written


def test_what_a_file_says_of_itself(files: dict[str, Path]) -> None:
    about = json.loads((BUNDLES / WEAK / "configs/metadata.json").read_text(encoding="utf-8"))
    properties = {entry.key: entry.value for entry in onnx.load(str(files["onnx"])).metadata_props}
    assert (properties["name"], properties["version"]) == (about["name"], about["version"])
    assert json.loads(properties["image"]) == ["batch", 2, 18, 14, 13]
    assert json.loads(properties["spacing"]) == SPACING
    _, metadata, more = load_net_with_metadata(str(files["torchscript"]), more_extra_files=["inference.json"])
    for told, config in (
        (json.loads(properties["metadata.json"]), json.loads(properties["inference.json"])),
        (metadata, json.loads(more["inference.json"])),
    ):
        assert told["export"]["outputs"]["pred"] == ["batch", 3, 18, 14, 13]
        assert told["export"]["spacing"] == SPACING and told["export"]["bundle"] == WEAK
        assert told["network_data_format"]["inputs"]["image"]["spatial_shape"] == [18, 14, 13]
        assert told["name"] == about["name"] and told["description"] == about["description"]
        assert (config["spacing"], config["channels"], config["align"]) == (SPACING, 2, "header")
    assert {path.name for path in files["onnx"].parent.iterdir()} == {"onnx", "torchscript"}
    assert str(BUNDLES).encode() not in files["onnx"].read_bytes()


def test_the_snippet_of_the_documentation(
    files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Run as it is printed."""
    (snippet,) = re.findall(r"```python\n(.*?)```", DOCS.read_text(encoding="utf-8"), flags=re.DOTALL)
    shutil.copy(files["onnx"], tmp_path / "model.onnx")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(compile(snippet, "export.md", "exec"), names)
    assert names["image"].shape == (1, 2, 18, 14, 13) and names["spacing"] == SPACING
    assert names["pred"].shape == (1, 3, 18, 14, 13)


def test_recording_a_network_leaves_nothing_behind() -> None:
    """Coordinates are cached by size: those of a recording, which are no numbers, must not be."""

    class Warp(nn.Module):
        def forward(self, image: torch.Tensor, ddf: torch.Tensor) -> torch.Tensor:
            return warp(image, ddf)

    shape = [5, 7, 11]  # no other test's
    image, ddf = images(1, shape, 1), torch.zeros(1, 3, *shape)
    ddf[:, 0] = 1.0
    recorded = torch.export.export(Warp(), (image, ddf)).module()(image, ddf)
    for found in (warp(image, ddf), recorded):
        np.testing.assert_allclose(found[:, :, :-1].numpy(), image[:, :, 1:].numpy(), atol=1e-5)


@pytest.mark.parametrize("factor", [1.01, float("nan")])
def test_a_file_that_does_something_else_is_not_written(
    factor: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, overlays, settings, _ = case("local", tmp_path)

    def wrong(network: nn.Module) -> torch.jit.ScriptModule:
        with torch.no_grad():
            next(network.parameters()).mul_(factor)
        return torch.jit.script(network)

    target = tmp_path / "out" / "network.ts"
    monkeypatch.setattr(exporting, "convert_to_torchscript", wrong)
    with pytest.raises(RegZooError, match=r"network\.ts: not written: .* differs from PyTorch by"):
        export_network(bundle, "torchscript", target, overlays, **settings)
    assert list(target.parent.iterdir()) == []


def test_mistakes_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ["--channels", "2", "--size", "[18,14,13]"]
    weights = case("local", tmp_path)[2]["checkpoint"]
    (tmp_path / "folder").mkdir()
    out = ["--out", str(tmp_path / "network")]
    for arguments, said in (
        (
            [WEAK, "--format", "caffe", *out],
            "'caffe' is no format to export to; use one of torchscript, onnx, tensorrt",
        ),
        ([WEAK, "--format", "onnx", "--checkpoint", str(tmp_path / "none.pt"), *out], "none.pt: no such checkpoint"),
        ([WEAK, "--format", "onnx", "--checkpoint", weights, *out], "holds the weights of another network"),
        ([WEAK, "--format", "onnx", "--overlays", "configs/variants/none.json", *out], "none.json: no such config"),
        ([WEAK, "--format", "onnx", "--sizes", "3", *out], "no setting called ['sizes']"),
        ([WEAK, "--format", "onnx", "--size", "[32,24]", *out], "three sizes"),
        (["none", "--format", "onnx", *out], "is no bundle"),
        (
            [WEAK, "--format", "torchscript", "--checkpoint", weights, *settings, "--out", str(tmp_path / "folder")],
            "folder",
        ),
    ):
        monkeypatch.setattr(sys, "argv", ["regzoo", "export", *arguments])
        with pytest.raises(SystemExit) as stop:
            main()
        error = capsys.readouterr().err
        assert stop.value.code == 1 and error.startswith("error: ") and error.count("\n") == 1
        assert said in error
    assert not (tmp_path / "network").exists()


@pytest.mark.parametrize(
    ("format", "module", "package"),
    [("onnx", "onnx", "onnx"), ("onnx", "onnxscript", "onnxscript"), ("onnx", "onnxruntime", "onnxruntime")],
)
def test_a_missing_package_is_named(
    format: str, module: str, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, overlays, settings, _ = case("local", tmp_path)
    monkeypatch.setitem(sys.modules, module, None)  # importing it fails
    with pytest.raises(RegZooError, match=f"needs the package {package}, .*pip install {package}$"):
        export_network(bundle, format, tmp_path / "network.onnx", overlays, **settings)
    assert not (tmp_path / "network.onnx").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_tensorrt_without_a_gpu_says_so(tmp_path: Path) -> None:
    bundle, overlays, settings, _ = case("local", tmp_path)
    with pytest.raises(RegZooError, match="there is no NVIDIA GPU that PyTorch can use"):
        export_network(bundle, "tensorrt", tmp_path / "network.ts", overlays, **settings)
    assert not (tmp_path / "network.ts").exists()


@pytest.mark.parametrize("kind", ["local", "pyramid", "voxelmorph, twice"])
def test_tensorrt(kind: str, tmp_path: Path) -> None:
    if not torch.cuda.is_available():
        pytest.skip("TensorRT needs an NVIDIA GPU")
    pytest.importorskip("torch_tensorrt", reason="torch-tensorrt is not installed")
    bundle, overlays, settings, network = case(kind, tmp_path)
    export = export_network(bundle, "tensorrt", tmp_path / "network.ts", overlays, **settings)
    root, size, spacing = BUNDLES / bundle, settings["size"], [3.0] * 3 if bundle != DDMR else [7.0] * 3
    compiled = TorchScriptNetwork(export.path, root, size, spacing, "cuda", needs="torch_tensorrt")
    for batch in (1, 4):
        example = images(export.inputs[0], size, batch)
        with torch.no_grad():
            expected = network(example)
            torch.testing.assert_close(compiled(example), expected, atol=1e-4 * float(expected.abs().max()), rtol=0)


@pytest.mark.parametrize(("format", "kind"), [("onnx", OnnxNetwork), ("torchscript", TorchScriptNetwork)])
def test_a_file_that_cannot_be_right_is_refused(
    format: str, kind: type[OnnxNetwork] | type[TorchScriptNetwork], files: dict[str, Path], tmp_path: Path
) -> None:
    here: tuple[Any, ...] = (BUNDLES / WEAK, [18, 14, 13], SPACING)
    network = kind(files[format], *here)
    assert network(images(2, [18, 14, 13], 2)).shape == (2, 3, 18, 14, 13)
    whole = files[format].read_bytes()
    for name, content in {"truncated": whole[: len(whole) // 2], "empty": b"", "text": b"not a network"}.items():
        (tmp_path / name).write_bytes(content)
    torch.jit.save(torch.jit.script(nn.ReLU()), str(tmp_path / "foreign"))
    again = rf"regzoo export {WEAK} --format {format}"
    for name in ("truncated", "empty", "text", "foreign"):
        with pytest.raises(RegZooError, match=rf"{name}: is damaged, or was not written by regzoo.*{again}"):
            kind(tmp_path / name, *here)
    with pytest.raises(RegZooError, match=rf"missing: no such exported network; write it with: {again} --out"):
        kind(tmp_path / "missing", *here)
    with pytest.raises(RegZooError, match=r"another bundle \(Weakly-supervised MR to TRUS"):
        kind(files[format], BUNDLES / SEG, *here[1:])
    with pytest.raises(RegZooError, match=r"exported for \[4\.0, 3\.0, 2\.0\] mm, not \[3\.0, 3\.0, 3\.0\]"):
        kind(files[format], *here[:2], [3.0, 3.0, 3.0])
    with pytest.raises(RegZooError, match=r"takes \(channels, X, Y, Z\) = \[2, .*, not \[3, 18, 14, 13\]"):
        network(images(3, [18, 14, 13], 1))
    if format == "onnx":
        with pytest.raises(RegZooError, match=r"exported for \[18, 14, 13\] voxels, not \[18, 14, 12\]"):
            kind(files[format], here[0], [18, 14, 12], here[2])
        with pytest.raises(RegZooError, match=r"= \[2, 18, 14, 13\], not \[2, 18, 14, 12\]"):
            network(images(2, [18, 14, 12], 1))
    else:
        assert kind(files[format], here[0], [18, 14, 12], here[2])(images(2, [18, 14, 12], 1)).shape[2:] == (18, 14, 12)


def test_a_provider_that_is_not_there_is_left_out(files: dict[str, Path], caplog: pytest.LogCaptureFixture) -> None:
    network = OnnxNetwork(
        files["onnx"], BUNDLES / WEAK, [18, 14, 13], SPACING, "cpu", providers=["TensorrtExecutionProvider"]
    )
    assert network.session.get_providers() == ["CPUExecutionProvider"]
    assert "without TensorrtExecutionProvider" in caplog.text
