"""Exported files: what they say of themselves, and which are refused where they are to be run."""

from __future__ import annotations

import json
import re
import shutil
import zipfile
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from export_cases import BUNDLES, KINDS, SEG, WEAK, case, check_in_onnx_runtime, definition, images, trained
from monai.data.torchscript_utils import load_net_with_metadata
from regzoo.engines import save_weights
from regzoo.errors import RegZooError
from regzoo.export import OnnxNetwork, TorchScriptNetwork
from regzoo_tools.export import export_network
from torch import nn

DOCS = BUNDLES.parent / "docs" / "export.md"
SPACING = [4.0, 3.0, 2.0]
#: The one that mistakes are made with.
SMALL = "local, not additive"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One small network in both formats, and its weights."""
    folder = tmp_path_factory.mktemp("files")
    bundle, overlays, settings, network = case(SMALL, folder)
    written = {
        format: export_network(bundle, format, folder / "out" / format, overlays, spacing=SPACING, **settings).path
        for format in ("onnx", "torchscript")
    } | {"weights": folder / "weights.pt"}
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
        assert (config["checkpoint"], config["bundle_root"]) == ("weights.pt", ".")
    exported = [path.name for path in files["onnx"].parent.iterdir() if path.name != ".regzoo.files.json"]
    assert sorted(exported) == ["onnx", "torchscript"]
    # Nothing of this machine's folders, except for where PyTorch keeps them in TorchScript: with the code.
    with zipfile.ZipFile(files["torchscript"]) as archive:
        parts = {name: archive.read(name) for name in archive.namelist() if not name.endswith(".debug_pkl")}
    parts["onnx"] = files["onnx"].read_bytes()
    for place in (BUNDLES.parent, files["weights"].parent):
        assert not [name for name, content in parts.items() if str(place).encode() in content]


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


Kind = type[OnnxNetwork] | type[TorchScriptNetwork]
both = pytest.mark.parametrize(("format", "kind"), [("onnx", OnnxNetwork), ("torchscript", TorchScriptNetwork)])


def wanted(files: dict[str, Path], **other: Any) -> dict[str, Any]:
    """What the files are to be, or something else."""
    usual = {"bundle_root": BUNDLES / WEAK, "network_def": definition(*KINDS[SMALL]), "checkpoint": files["weights"]}
    return usual | {"size": [18, 14, 13], "spacing": SPACING} | other


@both
def test_a_file_that_cannot_be_right_is_refused(
    format: str, kind: Kind, files: dict[str, Path], tmp_path: Path
) -> None:
    network = kind(files[format], **wanted(files))
    assert network(images(2, [18, 14, 13], 2)).shape == (2, 3, 18, 14, 13)
    whole = files[format].read_bytes()
    for name, content in {"truncated": whole[: len(whole) // 2], "empty": b"", "text": b"not a network"}.items():
        (tmp_path / name).write_bytes(content)
    torch.jit.save(torch.jit.script(nn.ReLU()), str(tmp_path / "foreign"))
    again = rf"python -m regzoo export {BUNDLES / WEAK} --format {format} --out"
    for name in ("truncated", "empty", "text", "foreign"):
        with pytest.raises(RegZooError, match=rf"{name}: is damaged, or was not written by this regzoo.*{again}"):
            kind(tmp_path / name, **wanted(files))
    with pytest.raises(RegZooError, match=rf"missing: no such exported network; write it with: {again}"):
        kind(tmp_path / "missing", **wanted(files))
    with pytest.raises(RegZooError, match=r"another bundle \(Weakly-supervised MR to TRUS"):
        kind(files[format], **wanted(files, bundle_root=BUNDLES / SEG))
    with pytest.raises(RegZooError, match=r"exported for \[4\.0, 3\.0, 2\.0\] mm, not \[3\.0, 3\.0, 3\.0\]"):
        kind(files[format], **wanted(files, spacing=[3.0, 3.0, 3.0]))
    with pytest.raises(RegZooError, match=r"takes \(channels, X, Y, Z\) = \[2, .*, not \[3, 18, 14, 13\]"):
        network(images(3, [18, 14, 13], 1))
    smaller = wanted(files, size=[18, 14, 12])
    if format == "onnx":
        with pytest.raises(RegZooError, match=r"exported for \[18, 14, 13\] voxels, not \[18, 14, 12\]"):
            kind(files[format], **smaller)
        with pytest.raises(RegZooError, match=r"= \[2, 18, 14, 13\], not \[2, 18, 14, 12\]"):
            network(images(2, [18, 14, 12], 1))
    else:
        assert kind(files[format], **smaller)(images(2, [18, 14, 12], 1)).shape[2:] == (18, 14, 12)


@both
def test_a_file_of_another_network_is_refused(format: str, kind: Kind, files: dict[str, Path]) -> None:
    """One of other layers, and one that computes something else with the same weights."""
    again = rf"python -m regzoo export {BUNDLES / WEAK} --format {format} --out {files[format]}, with the overlays"
    same_weights = definition(WEAK, "no_additive_upsampling", KINDS[SMALL][2])
    for module in same_weights.modules():
        if isinstance(module, nn.InstanceNorm3d):
            module.eps = 0.1
    same_weights.load_state_dict(torch.load(files["weights"], weights_only=True))
    for network in (definition(*KINDS["composite"]), same_weights):
        said = f"{format}: holds another network than the {type(network).__name__} of the configuration; .*{again}"
        with pytest.raises(RegZooError, match=said):
            kind(files[format], **wanted(files, network_def=network))


@both
def test_a_file_of_other_weights_is_refused(format: str, kind: Kind, files: dict[str, Path], tmp_path: Path) -> None:
    network = definition(*KINDS[SMALL])
    state = torch.load(files["weights"], weights_only=True)
    torch.save({"network": state, "epoch": 7, "settings": {}}, tmp_path / "last.pt")
    torch.save(dict(reversed(state.items())), tmp_path / "copy.pt")
    example = images(2, [18, 14, 13], 1)
    expected = kind(files[format], **wanted(files))(example)
    for same in ("last.pt", "copy.pt"):
        assert torch.equal(kind(files[format], **wanted(files, checkpoint=tmp_path / same))(example), expected)
    name = next(name for name, value in state.items() if value.dtype.is_floating_point)
    state[name].view(-1)[-1] += 1e-3
    torch.save(state, tmp_path / "other.pt")
    save_weights(definition(*KINDS["local"]), tmp_path / "foreign.pt")
    again = rf"python -m regzoo export {BUNDLES / WEAK} --format {format} --out {files[format]}, with the overlays"
    for wrong, said in (
        ("other.pt", rf"^{files[format]}: holds other weights than {tmp_path / 'other.pt'}; .*{again}"),
        ("foreign.pt", r"foreign\.pt: holds the weights of another network"),
        ("none.pt", r"none\.pt: no such checkpoint"),
    ):
        with pytest.raises(RegZooError, match=said):
            kind(files[format], **wanted(files, checkpoint=tmp_path / wrong, network_def=network))


@both
def test_a_bundle_with_no_weights_but_the_file(format: str, kind: Kind, files: dict[str, Path], tmp_path: Path) -> None:
    """Its own `models/model.pt` may be missing, however it is named, and nothing else; if it comes, it is compared."""
    root = tmp_path / WEAK
    shutil.copytree(BUNDLES / WEAK / "configs", root / "configs")
    own, other = root / "models" / "model.pt", root / "models" / "monai_label.pt"
    for named in (own, root / "configs" / ".." / "models" / "model.pt"):
        kind(files[format], **wanted(files, bundle_root=root, checkpoint=named))
    with pytest.raises(RegZooError, match=r"monai_label\.pt: no such checkpoint"):
        kind(files[format], **wanted(files, bundle_root=root, checkpoint=other))
    own.parent.mkdir()
    shutil.copy(files["weights"], own)
    kind(files[format], **wanted(files, bundle_root=root, checkpoint=own))
    save_weights(trained(definition(*KINDS[SMALL]), seed=1), own)  # as after a training
    with pytest.raises(RegZooError, match=r"holds other weights than .*model\.pt"):
        kind(files[format], **wanted(files, bundle_root=root, checkpoint=own))


def test_a_provider_that_is_not_there_is_left_out(files: dict[str, Path], caplog: pytest.LogCaptureFixture) -> None:
    network = OnnxNetwork(files["onnx"], **wanted(files), device="cpu", providers=["TensorrtExecutionProvider"])
    assert network.session.get_providers() == ["CPUExecutionProvider"]
    assert "without TensorrtExecutionProvider" in caplog.text
