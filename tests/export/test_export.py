"""Exported files against PyTorch, run as another program would run them: every kind of network; and what goes wrong."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from bundle_list import NAMES, config
from export_cases import BUNDLES, KINDS, WEAK, case, check_in_onnx_runtime, definition, images, trained
from regzoo.cli import main
from regzoo.engines import save_weights
from regzoo.errors import RegZooError
from regzoo.export import TorchScriptNetwork
from regzoo.networks import GlobalNet
from regzoo.spatial import warp
from regzoo_tools import network_writers
from regzoo_tools.export import export_network
from torch import nn

#: `torch.export` takes seconds for each; the others are in the released bundles, see `test_exported_inference`.
IN_ONNX = ["composite", "voxelmorph, integrated"]


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
    shapes = "image (batch, 2, 18, 14, 13) → pred (batch, 3, 18, 14, 13), float32; any batch, any grid"
    for network, said in ((fresh, "nothing but zeros"), (later, "difference")):
        save_weights(network, tmp_path / "weights.pt")
        main()
        file, sizes, verified = capsys.readouterr().out.strip().splitlines()
        assert file.startswith(f"{out} (") and sizes == shapes and said in verified


def test_everything_is_tried_in_some_form() -> None:
    """Also what no bundle uses."""
    tried = {type(definition(*KINDS[kind])) for kind in KINDS}
    assert {type(definition(bundle, None, {})) for bundle in NAMES} <= tried
    assert GlobalNet in tried


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
    monkeypatch.setattr(network_writers, "convert_to_torchscript", wrong)
    with pytest.raises(RegZooError, match=r"network\.ts: not written: .* differs from PyTorch by"):
        export_network(bundle, "torchscript", target, overlays, **settings)
    assert not target.parent.exists()


def test_mistakes_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ["--channels", "2", "--size", "[18,14,13]"]
    weights = case("local", tmp_path)[2]["checkpoint"]
    (tmp_path / "folder").mkdir()
    out = ["--out", str(tmp_path / "network")]
    for arguments, said in (
        ([WEAK, "--format", "caffe", *out], "'caffe' is not an export format; use one of torchscript, onnx, tensorrt"),
        ([WEAK, "--format", "onnx", "--checkpoint", str(tmp_path / "none.pt"), *out], "none.pt: no such checkpoint"),
        ([WEAK, "--format", "onnx", "--checkpoint", weights, *out], "holds the weights of another network"),
        ([WEAK, "--format", "onnx", "--overlays", "configs/variants/none.json", *out], "none.json: no such config"),
        ([WEAK, "--format", "onnx", "--sizes", "3", *out], "did you mean size"),
        ([WEAK, "--format", "onnx", "--size", "[32,24]", *out], "not 3"),
        (["nothing", "--format", "onnx", *out], "is not a bundle"),
        (["none", "--format", "onnx", *out], "has no network"),
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
    ("file", "content", "message"),
    [
        ("metadata", None, "no such file"),
        ("metadata", "{", "is not valid JSON"),
        ("metadata", "[1]", "is not a configuration"),
        ("metadata", '{"name": "A"}', "has no network_data_format::inputs::image::num_channels; add it"),
        ("metadata", '{"network_data_format": {}}', "has no name; add it, see regzoo verify"),
        ("train", "{", "is not valid JSON"),  # read for the names of its settings
    ],
)
def test_broken_files_of_a_bundle(file: str, content: str | None, message: str, tmp_path: Path) -> None:
    bundle, overlays, settings, _ = case("local", tmp_path)
    shutil.copytree(BUNDLES / bundle / "configs", tmp_path / "bundle" / "configs")
    broken = tmp_path / "bundle" / "configs" / f"{file}.json"
    broken.unlink() if content is None else broken.write_text(content)
    with pytest.raises(RegZooError, match=f"{broken}: {message}"):
        export_network(tmp_path / "bundle", "torchscript", tmp_path / "new" / "network.ts", overlays, **settings)
    assert not (tmp_path / "new").exists()


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
    root, size, spacing = BUNDLES / bundle, settings["size"], config(bundle, "inference")["spacing"]
    given = (export.path, root, definition(*KINDS[kind]), settings["checkpoint"], size, spacing, "cuda")
    compiled = TorchScriptNetwork(*given, needs="torch_tensorrt")
    for batch in (1, 4):
        example = images(export.inputs[0], size, batch)
        with torch.no_grad():
            expected = network(example)
            torch.testing.assert_close(compiled(example), expected, atol=1e-4 * float(expected.abs().max()), rtol=0)
