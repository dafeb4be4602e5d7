"""Registration by the released networks, exported, gives what they give in PyTorch."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import onnxruntime
import pytest
import torch
from bundle_list import NAMES, OTHERS_SLOW
from monai.bundle import ConfigWorkflow
from regzoo.cli import main
from regzoo.datasets import load_records
from regzoo.errors import RegZooError
from regzoo.export import ExportedNetwork
from regzoo.inference import Registrar
from regzoo.spatial import as_tensor
from regzoo_tools.export import export_network
from torch import nn

BUNDLES = Path(__file__).resolve().parents[2] / "bundles"
WEAK, SEG, SDM = "prostate_mr_trus_weak_ddf", "prostate_mr_trus_conditional_seg", "prostate_mr_trus_sdm"
DDMR, OUTLINES = "abdominal_ct_ddmr", "hippocampus_mr_weak_ddf"
FORMATS = ["torchscript", "onnx"]
Exported = Callable[[str, str], str]


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Of bundles whose export takes minutes: fewer iterations of the demons, with weights that do not say how many."""
    weights = tmp_path_factory.mktemp("weights") / "weights.pt"
    torch.save(dict(torch.load(BUNDLES / OUTLINES / "models" / "model.pt", weights_only=True)), weights)
    return {OUTLINES: {"iterations": [1, 1], "checkpoint": str(weights)}}


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory, settings: dict[str, dict[str, Any]]) -> Exported:
    """Gives the file of a bundle's released network in a format, written once."""
    folder = tmp_path_factory.mktemp("exported")

    @cache
    def write(bundle: str, format: str) -> str:
        return str(export_network(BUNDLES / bundle, format, folder / bundle / format, **settings.get(bundle, {})).path)

    return write


def overlay(format: str) -> str:
    return f"configs/variants/{format}.json"


def pair_of(dataset: Path) -> dict[str, str]:
    record = load_records(dataset, "val")[0]
    return {"fixed": record["fixed_image"], "moving": record["moving_image"], "label": record["moving_label"]}


def check_in_onnx_runtime(path: str, network: nn.Module) -> None:
    """Without anything of ours between: batches of one and three of noise."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (image,) = session.get_inputs()
    assert image.shape[0] == "batch" and session.get_outputs()[0].shape[0] == "batch"
    for batch in (1, 3):
        example = torch.randn(batch, *image.shape[1:], generator=torch.Generator().manual_seed(9))
        (found,) = session.run(None, {"image": example.numpy()})
        with torch.no_grad():
            expected = network(example).numpy()
        # Outlines of noise let single voxels of a field differ by more, because each iteration follows the one before.
        difference = np.abs(found - expected) / np.abs(expected).max()
        assert np.quantile(difference, 0.9999) <= 1e-4 and difference.max() <= 1e-3


@pytest.mark.parametrize("bundle", OTHERS_SLOW)
@pytest.mark.parametrize("format", FORMATS)
def test_registration_is_the_same(
    bundle: str, format: str, dataset: Path, exported: Exported, settings: dict[str, dict[str, Any]]
) -> None:
    pair = pair_of(dataset)
    eager = Registrar(BUNDLES / bundle, device="cpu", **settings.get(bundle, {}))
    expected = eager.register(pair["fixed"], pair["moving"], pair["label"])
    if format == "onnx":
        check_in_onnx_runtime(exported(bundle, format), eager.network)
    given = {"overlays": [overlay(format)], "exported": exported(bundle, format), "device": "cpu"}
    registrar = Registrar(BUNDLES / bundle, **given, **settings.get(bundle, {}))
    assert isinstance(registrar.network, ExportedNetwork)
    found = registrar.register(pair["fixed"], pair["moving"], pair["label"])
    assert found.warped_label is not None and expected.warped_label is not None
    labels, wanted = as_tensor(found.warped_label), as_tensor(expected.warped_label)
    assert torch.equal(labels, wanted) and bool(labels.any())
    if bundle == SEG:
        return
    assert found.field is not None and expected.field is not None
    assert float(expected.field.displacement.norm(dim=0).max()) > 1
    torch.testing.assert_close(found.field.displacement, expected.field.displacement, atol=1e-3, rtol=0)  # mm
    image, as_it_should_be = as_tensor(found.warped_image), as_tensor(expected.warped_image)
    span = float(as_it_should_be.max() - as_it_should_be.min())
    torch.testing.assert_close(image, as_it_should_be, atol=1e-4 * span, rtol=0)


@pytest.mark.parametrize("format", FORMATS)
def test_bundle_run(
    format: str, prostate_phantoms: Path, exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `python -m monai.bundle run` does it, with the two bundles' command lines of the documentation."""
    bundle = {"torchscript": SEG, "onnx": WEAK}[format]
    pair = pair_of(prostate_phantoms)
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    workflow = ConfigWorkflow(
        config_file=[
            str(BUNDLES / bundle / "configs" / name) for name in ("inference.json", f"variants/{format}.json")
        ],
        meta_file=str(BUNDLES / bundle / "configs/metadata.json"),
        workflow_type="inference",
        bundle_root=str(BUNDLES / bundle),
        fixed_image=pair["fixed"],
        moving_image=pair["moving"],
        moving_label=pair["label"],
        exported=exported(bundle, format),
        output_dir=str(tmp_path),
        outputs="label",
        device="cpu",
    )
    workflow.initialize()
    assert workflow.check_properties() == []
    workflow.run()
    workflow.finalize()
    (written,) = tmp_path.glob("*/warped_label.nii.gz")
    expected = Registrar(BUNDLES / bundle, device="cpu").register(pair["fixed"], pair["moving"], pair["label"])
    assert expected.warped_label is not None
    found = np.moveaxis(np.asarray(nib.load(written).dataobj), -1, 0)
    np.testing.assert_array_equal(found, as_tensor(expected.warped_label).numpy())


def test_register_command(
    prostate_phantoms: Path,
    exported: Exported,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pair = pair_of(prostate_phantoms)
    common = ["regzoo", "register", str(BUNDLES / WEAK), "--overlays", overlay("torchscript"), "--device", "cpu"]
    common += ["--fixed", pair["fixed"], "--moving", pair["moving"], "--outputs", "field"]
    right = exported(WEAK, "torchscript")
    monkeypatch.setattr(sys, "argv", [*common, "--exported", right, "--out", str(tmp_path / "a")])
    main()
    assert (tmp_path / "a" / "field.nii.gz").is_file()
    capsys.readouterr()
    wrong, none = exported(SDM, "torchscript"), str(tmp_path / "none.ts")
    for given, said in (
        (wrong, "holds the network of another bundle (Segmentation-only"),
        (
            none,
            f"no such exported network; write it with: python -m regzoo export {BUNDLES / WEAK} "
            f"--format torchscript --out {none}, with the overlays",
        ),
    ):
        monkeypatch.setattr(sys, "argv", [*common, "--exported", given, "--out", str(tmp_path / "b")])
        with pytest.raises(SystemExit) as stop:
            main()
        error = capsys.readouterr().err
        assert stop.value.code == 1 and error.count("\n") == 1 and f"error: {given}: {said}" in error
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("format", FORMATS)
def test_a_file_of_other_weights_or_another_network_is_refused(format: str, exported: Exported, tmp_path: Path) -> None:
    """The settings of a bundle mean the same with the file as without: what it does not hold is not run."""
    root = BUNDLES / WEAK
    state = torch.load(root / "models" / "model.pt", weights_only=True)
    torch.save({"network": state, "epoch": 3}, tmp_path / "last.pt")
    torch.save({name: value * 2 for name, value in state.items()}, tmp_path / "other.pt")
    given: dict[str, Any] = {"exported": exported(WEAK, format), "device": "cpu"}
    for same in (root / "models" / "model.pt", tmp_path / "last.pt"):
        Registrar(root, [overlay(format)], **given, checkpoint=str(same))
    for settings, said in (
        ({"checkpoint": str(tmp_path / "other.pt")}, "holds other weights than .*other.pt; .*python -m regzoo export"),
        ({"checkpoint": "/nonexistent.pt"}, "^/nonexistent.pt: no such checkpoint; "),
        ({"channels": 4}, "holds another network than the LocalNet of the configuration; .*python -m regzoo export"),
    ):
        with pytest.raises(RegZooError, match=said):
            Registrar(root, [overlay(format)], **given, **settings)
    for variant in ("composite_net", "global_net", "delta0"):
        with pytest.raises(RegZooError, match=r"holds another network than the .*; .*python -m regzoo export"):
            Registrar(root, [f"configs/variants/{variant}.json", overlay(format)], **given)
    with pytest.raises(RegZooError, match="holds another network than the PyramidNet"):
        Registrar(
            BUNDLES / SDM, ["configs/variants/mix.json", overlay(format)], **given | {"exported": exported(SDM, format)}
        )


@pytest.mark.parametrize("format", FORMATS)
def test_a_bundle_with_an_exported_file_alone(
    format: str, prostate_phantoms: Path, exported: Exported, tmp_path: Path
) -> None:
    """No `models/model.pt`: it registers. With one of a later training: the file is out of date."""
    root, pair = tmp_path / "moved", pair_of(prostate_phantoms)
    shutil.copytree(BUNDLES / WEAK / "configs", root / "configs")
    (root / "models").mkdir()
    shutil.copy(exported(WEAK, format), root / "models" / {"torchscript": "model.ts", "onnx": "model.onnx"}[format])
    found = Registrar(root, [overlay(format)], device="cpu").register(pair["fixed"], pair["moving"], pair["label"])
    expected = Registrar(BUNDLES / WEAK, device="cpu").register(pair["fixed"], pair["moving"], pair["label"])
    assert found.warped_label is not None and expected.warped_label is not None
    assert torch.equal(as_tensor(found.warped_label), as_tensor(expected.warped_label))
    state = torch.load(BUNDLES / WEAK / "models" / "model.pt", weights_only=True)
    torch.save({name: value * 2 for name, value in state.items()}, root / "models" / "model.pt")
    with pytest.raises(RegZooError, match=f"holds other weights than .*model.pt; .*python -m regzoo export {root} "):
        Registrar(root, [overlay(format)], device="cpu")


@pytest.mark.parametrize("bundle", NAMES)
@pytest.mark.parametrize("format", [*FORMATS, "tensorrt"])
def test_a_missing_file_says_which_command_writes_it(bundle: str, format: str, tmp_path: Path) -> None:
    said = f"none: no such exported network; .*: python -m regzoo export {BUNDLES / bundle} --format {format} "
    if format == "tensorrt":  # the package is looked for first
        said = f"needs the package torch-tensorrt, .*pip install|{said}"
    with pytest.raises(RegZooError, match=said):
        Registrar(BUNDLES / bundle, overlays=[overlay(format)], exported=str(tmp_path / "none"), device="cpu")
