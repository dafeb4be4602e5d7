"""What the Model Zoo's checks and MONAI's contract ask of every bundle."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from monai.bundle import ConfigParser, ConfigWorkflow, ckpt_export, verify_metadata, verify_net_in_out
from regzoo.datasets import load_records
from regzoo.workflow import load_weights

ROOT = Path(__file__).resolve().parents[2]
BUNDLES = sorted(path.parent.parent for path in (ROOT / "bundles").glob("*/configs/metadata.json"))
SCHEMA = Path(__file__).with_name("meta_schema_20240725.json")
#: What training and inference may do differently. All else that both have must agree, or weights would be used on
#: another input than they know.
OWN = {"imports", "output_dir", "network", "split", "initialize", "run", "finalize"}

pytestmark = pytest.mark.parametrize("bundle", BUNDLES, ids=lambda path: path.name)


def config(bundle: Path, *names: str) -> ConfigParser:
    parser = ConfigParser()
    parser.read_config([str(bundle / "configs" / name) for name in names])
    parser["bundle_root"] = str(bundle)
    return parser


def channels(bundle: Path) -> tuple[int, int]:
    """Of the network's input and output, as the metadata have them."""
    formats = json.loads((bundle / "configs/metadata.json").read_text(encoding="utf-8"))["network_data_format"]
    return formats["inputs"]["image"]["num_channels"], formats["outputs"]["pred"]["num_channels"]


def test_files(bundle: Path) -> None:
    wanted = ["LICENSE", "models/model.pt", "docs/README.md", "docs/data_license.txt", "configs/logging.conf"]
    wanted += [
        f"configs/{name}.json"
        for name in ("metadata", "train", "inference", "evaluate", "multi_gpu_train", "multi_gpu_evaluate")
    ]
    assert [name for name in wanted if not (bundle / name).is_file()] == []
    assert (bundle / "models/model.pt").stat().st_size < 20e6
    assert not any(word in bundle.name for word in ("deepedit", "deepgrow", "detection", "classification"))


def test_json_format(bundle: Path) -> None:
    for path in sorted((bundle / "configs").rglob("*.json")):
        text = path.read_text(encoding="utf-8")
        assert text == json.dumps(json.loads(text), indent=4, ensure_ascii=False) + "\n", path


def test_metadata(bundle: Path) -> None:
    verify_metadata(meta_file=str(bundle / "configs/metadata.json"), filepath=str(SCHEMA))
    metadata = json.loads((bundle / "configs/metadata.json").read_text(encoding="utf-8"))
    assert metadata["version"] in metadata["changelog"] and metadata["name"]
    size = config(bundle, "inference.json")["size"]
    for data in (
        metadata["network_data_format"]["inputs"]["image"],
        metadata["network_data_format"]["outputs"]["pred"],
    ):
        assert data["spatial_shape"] == size
        assert sorted(map(int, data["channel_def"])) == list(range(data["num_channels"]))


def test_train_and_inference_share_their_knobs(bundle: Path) -> None:
    train, inference = config(bundle, "train.json"), config(bundle, "inference.json")
    shared = (train.get().keys() & inference.get().keys()) - OWN
    assert {"spacing", "size", "channels", "norm", "align", "network_def"} <= shared
    for knob in shared:
        assert train[knob] == inference[knob], knob
    inputs = train.get("inputs", ["fixed_image", "moving_image"])
    assert inputs[0] == "fixed_image" and len(inputs) == channels(bundle)[0]


def test_network_input_and_output(bundle: Path) -> None:
    verify_net_in_out(
        net_id="network_def",
        meta_file=str(bundle / "configs/metadata.json"),
        config_file=str(bundle / "configs/inference.json"),
    )
    parser = config(bundle, "inference.json")
    size = parser["size"]
    inputs, outputs = channels(bundle)
    image = torch.zeros(2, inputs, *size)
    assert parser.get_parsed_content("network_def").eval()(image).shape == (2, outputs, *size)


@pytest.mark.parametrize("trace", [False, True], ids=["script", "trace"])
def test_torchscript_export(bundle: Path, trace: bool, tmp_path: Path) -> None:
    shape = [1, channels(bundle)[0], *config(bundle, "inference.json")["size"]]
    ckpt_export(
        net_id="network_def",
        filepath=str(tmp_path / "model.ts"),
        ckpt_file=str(bundle / "models/model.pt"),
        meta_file=str(bundle / "configs/metadata.json"),
        config_file=str(bundle / "configs/inference.json"),
        key_in_ckpt="",
        use_trace=trace,
        input_shape=shape if trace else None,
    )
    exported = torch.jit.load(tmp_path / "model.ts").eval()
    network = config(bundle, "inference.json").get_parsed_content("network_def").eval()
    load_weights(network, bundle / "models/model.pt")
    image = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(exported(image), network(image), rtol=1e-4, atol=1e-4)


def test_released_weights_load_strictly_and_are_plain_float32(bundle: Path) -> None:
    state = torch.load(bundle / "models/model.pt", weights_only=True)
    assert all(value.dtype in (torch.float32, torch.int64) for value in state.values())
    load_weights(config(bundle, "inference.json").get_parsed_content("network_def"), bundle / "models/model.pt")


@pytest.mark.parametrize(
    ("kind", "files"),
    [("train", ["train.json"]), ("train", ["train.json", "evaluate.json"]), ("inference", ["inference.json"])],
    ids=["train", "evaluate", "inference"],
)
def test_bundle_properties(
    bundle: Path, kind: str, files: list[str], dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(bundle)
    (pair, *_) = load_records(dataset, "val")
    images = {name: pair[name] for name in ("fixed_image", "moving_image")}
    overrides = images if kind == "inference" else {"folds": 2}
    workflow = ConfigWorkflow(
        config_file=[str(bundle / "configs" / name) for name in files],
        meta_file=str(bundle / "configs/metadata.json"),
        workflow_type=kind,
        dataset_dir="" if kind == "inference" else str(dataset),
        output_dir=str(tmp_path),
        **({"checkpoint": str(bundle / "models/model.pt")} if "evaluate.json" in files else {}),
        **overrides,
    )
    workflow.initialize()
    assert workflow.check_properties() == []
