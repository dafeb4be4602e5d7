"""`regzoo verify`: green for every bundle here, and red, check by check, for bundles with something wrong in them."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import logging
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import odd_networks
import pytest
import torch
from bundle_list import BUNDLES
from monai.bundle import ConfigWorkflow
from regzoo import cli
from regzoo.errors import RegZooError
from regzoo_tools.bundle import Bundle, own_code
from regzoo_tools.verification import CHECKS, FAILED, OK, SKIPPED, as_table, run_check, verify

Copy = Callable[..., Path]


@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda path: path.name)
def test_every_bundle_is_green(bundle: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in bundle.rglob("*")}
    path, hook, level = list(sys.path), sys.excepthook, logging.root.manager.disable
    rows = verify(bundle)
    assert [(row.check, row.detail) for row in rows if row.result != OK] == []
    assert [row.check for row in rows] == list(CHECKS)
    assert {path: path.stat().st_mtime_ns for path in bundle.rglob("*")} == before
    assert (sys.path, sys.excepthook, logging.root.manager.disable) == (path, hook, level)


# How to break a bundle. Each takes its folder.

#: The bundle's own but one.
STEPS = ["@request", "@load", "@alignment", "@resample", "@select_labels", "@stack"]


def write(name: str, text: str) -> Callable[[Path], object]:
    return lambda root: (root / name).write_text(text, encoding="utf-8")


def append(name: str, content: bytes) -> Callable[[Path], object]:
    def change(root: Path) -> None:
        with (root / name).open("ab") as file:
            file.write(content)

    return change


def replace(name: str, old: str, new: str) -> Callable[[Path], object]:
    def change(root: Path) -> None:
        text = (root / name).read_text(encoding="utf-8")
        assert old in text
        (root / name).write_text(text.replace(old, new), encoding="utf-8")

    return change


def remove(name: str) -> Callable[[Path], object]:
    return lambda root: (root / name).unlink()


def edit(name: str, id_: str, value: Any = None) -> Callable[[Path], object]:
    """Set an id of a configuration, or take it out if no value is given."""

    def change(root: Path) -> None:
        file = root / "configs" / f"{name}.json"
        content = json.loads(file.read_text(encoding="utf-8"))
        *way, last = id_.split("#")
        place = content
        for step in way:
            place = place[step]
        if value is None:
            del place[last]
        else:
            place[last] = value
        file.write_text(json.dumps(content, indent=4) + "\n", encoding="utf-8")

    return change


def weights(change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], object]:
    def save(root: Path) -> None:
        torch.save(change(torch.load(root / "models/model.pt", weights_only=True)), root / "models/model.pt")

    return save


def network(kind: str) -> Callable[[Path], object]:
    def change(root: Path) -> None:
        edit("inference", "network_def", {"_target_": f"odd_networks.{kind}"})(root)
        torch.save(getattr(odd_networks, kind)().state_dict(), root / "models/model.pt")

    return change


def large(name: str, size: int) -> Callable[[Path], object]:
    def make(root: Path) -> None:
        with (root / name).open("wb") as file:
            file.truncate(size)

    return make


def carry_package(change: Callable[[Path], object]) -> Callable[[Path], object]:
    def carry(root: Path) -> None:
        for name, path in own_code().items():
            (root / "regzoo" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, root / "regzoo" / name)
        change(root)

    return carry


LISTED = 'large_files:\n  - path: "models/model.pt"\n    url: "https://x.org/model.pt"\n'
INPUT, OUTPUT = "network_data_format#inputs#image", "network_data_format#outputs#pred"

BROKEN: list[tuple[str, str, Callable[[Path], object]]] = [
    ("required files", "configs/logging.conf", remove("configs/logging.conf")),
    ("required files", "LICENSE", remove("LICENSE")),
    ("required files", "models/model.pt", remove("models/model.pt")),
    ("licences", "Apache-2.0", write("LICENSE", "All rights reserved.\n")),
    ("licences", "data_license.txt is empty", write("docs/data_license.txt", " \n")),
    ("file sizes", "docs/large.bin (25.0 MB)", large("docs/large.bin", 25_000_001)),
    ("file sizes", "docs/large.bin (1.0 MB)", large("docs/large.bin", 1024 * 1024 + 1)),
    ("file sizes", "models/model.pt (25.0 MB)", large("models/model.pt", 25_000_001)),
    ("file sizes", "without a url or a hash_val", write("large_files.yml", LISTED)),
    ("file sizes", "is not the file", write("large_files.yml", f"{LISTED}    hash_val: 0ff\n    hash_type: sha256\n")),
    ("file sizes", "(md5 differs)", write("large_files.yml", f"{LISTED}    hash_val: 0ff\n")),
    ("file sizes", "use one of md5", write("large_files.yml", f"{LISTED}    hash_val: 0ff\n    hash_type: crc\n")),
    ("file sizes", "entry without a path", write("large_files.yml", "large_files:\n  - url: https://x.org/model.pt\n")),
    ("file sizes", "is not a list", write("large_files.json", '["models/model.pt"]')),
    ("JSON format", "configs/train.json", lambda root: reformat(root / "configs/train.json", indent=2)),
    ("JSON format", "configs/metadata.json", replace("configs/metadata.json", "RegZoo", "Ré")),
    ("JSON format", "is not JSON", write("configs/variants/new.json", "{,}\n")),
    ("README sections", "References", replace("docs/README.md", "# References", "# Sources")),
    ("links", "docs/README.md → nothing.md", append("docs/README.md", b"[a page](nothing.md#place)\n")),
    ("links", "→ nothing.png", append("docs/README.md", b"![a picture](nothing.png)\n")),
    ("package inside", "filters.py", carry_package(remove("regzoo/filters.py"))),
    ("package inside", "losses/overlap.py", carry_package(append("regzoo/losses/overlap.py", b"# edited\n"))),
    ("package inside", "more.so", carry_package(write("regzoo/more.so", "x"))),
    ("Python style", "F401", write("code.py", "import os\n")),
    ("Python style", "black", write("code.py", "value = 'text'\n")),
    ("Python style", "isort", write("code.py", "import torch\nimport os\n\nprint(torch, os)\n")),
    ("Python style", "B006", write("code.py", "def add(values=[]):\n    return values\n")),
    ("Python style", "C416", write("code.py", "values = [x for x in range(3)]\n")),
    ("Python style", "N818", write("code.py", "class Wrong(Exception):\n    pass\n")),
    ("Python style", "EXE001", write("code.py", "#!/usr/bin/env python\nx = 1\n")),
    # As in the zoo, where the package is no first party: between MONAI and PyTorch, not in a block of its own.
    ("Python style", "isort", write("code.py", "import torch\n\nimport regzoo\n\nprint(torch, regzoo)\n")),
    (
        "targets",
        "mix.json: _target_ monai.losses.DiceLos",
        edit("variants/mix", "loss", {"_target_": "monai.losses.DiceLos"}),
    ),
    ("targets", "CompoZe", edit("train", "network_def", [{"_target_": "CompoZe", "transforms": []}])),
    ("targets", "regzoo.nothing.At", edit("multi_gpu_train", "network", {"_target_": "regzoo.nothing.At"})),
    ("metadata schema", "'task' is a required property", edit("metadata", "task")),
    ("metadata schema", "available offline", edit("metadata", "schema", "https://x.org/schema.json")),
    ("metadata schema", "is missing", remove("configs/metadata.json")),
    ("metadata schema", "available offline", edit("metadata", "schema", "https://x.org/meta_schema_20240725.json")),
    ("version and changelog", "9.9.9 has no entry", edit("metadata", "version", "9.9.9")),
    ("version and changelog", "1.0 is not", edit("metadata", "version", "1.0")),
    ("version and changelog", "no name", edit("metadata", "name")),
    ("required packages", "regzoo", edit("metadata", "required_packages_version#regzoo")),
    ("required packages", "required_packages_version is not", edit("metadata", "required_packages_version", ["itk"])),
    ("required packages", "optional_packages_version is not", edit("metadata", "optional_packages_version", "itk")),
    ("version and changelog", "changelog is not an object; write", edit("metadata", "changelog", ["0.1.0"])),
    ("required packages", "newest", edit("metadata", "required_packages_version#itk", "newest!")),
    ("required packages", "'~=5.4'", edit("metadata", "required_packages_version#itk", "~=5.4")),
    ("required packages", "'!=5.4'", edit("metadata", "required_packages_version#itk", "!=5.4")),
    ("required packages", "'>=2' is not a version of numpy", edit("metadata", "numpy_version", ">=2")),
    ("required packages", "numpy_version", edit("metadata", "numpy_version")),
    ("network tensors", "value_range", edit("metadata", f"{INPUT}#value_range")),
    ("network tensors", "channel_def names [0, 1]", edit("metadata", f"{OUTPUT}#channel_def#2")),
    ("network tensors", "size in inference.json", edit("metadata", f"{INPUT}#spatial_shape", [16, 16, 16])),
    ("network tensors", "outputs::pred", edit("metadata", OUTPUT)),
    ("network in and out", "output channel number", edit("metadata", f"{OUTPUT}#num_channels", 2)),
    ("network in and out", "dtype", edit("metadata", f"{OUTPUT}#dtype", "float64")),
    ("batch of two", "but the metadata say", edit("metadata", f"{OUTPUT}#spatial_shape", [16, 24, 24])),
    ("weights", "another network", weights(lambda state: dict(list(state.items())[1:]))),
    ("weights", "torch.float16", weights(lambda state: {name: value.half() for name, value in state.items()})),
    ("weights", "not a plain state dict", weights(lambda state: {"network": state, "epoch": 3})),
    ("weights", "is missing", remove("models/model.pt")),
    ("TorchScript (script)", "odd_networks.py", network("Unscriptable")),
    ("TorchScript (trace)", "differs", network("Branching")),
    ("TorchScript (trace)", "differs", network("Faint")),
    ("train and inference agree", "spacing", edit("inference", "spacing", [1.0, 1.0, 1.0])),
    ("train and inference agree", "differ in inputs", edit("train", "inputs", ["fixed_image", "moving_image"])),
    ("train and inference agree", "differ in intensity", edit("inference", "intensity#lower", 1.0)),
    ("train and inference agree", "differ in resample", edit("train", "resample#interpolation", "bspline")),
    ("train and inference agree", "steps of training", edit("inference", "preprocessing#transforms", STEPS)),
    ("train and inference agree", "not the fixed image first", lambda root: swap_inputs(root)),
    ("ids of the zoo", "val_interval", edit("train", "val_interval")),
    ("ids of the zoo", "output_dir", edit("inference", "output_dir")),
    ("ids of the zoo", "evaluate.json does not override validate#handlers", write("configs/evaluate.json", "{}\n")),
    ("ids of the zoo", "multi_gpu_train.json does not override network", edit("multi_gpu_train", "network")),
    ("ids of the zoo", "multi_gpu_evaluate.json does not override finalize", edit("multi_gpu_evaluate", "finalize")),
    ("ids of MONAI Label", "postprocessing", edit("inference", "postprocessing")),
    ("ids of MONAI Label", "@_meta_", edit("inference", "size", "@_meta_#size")),
    ("ids of MONAI Label", "$import", edit("inference", "displayable_configs", {"moving_image": ""})),
    ("requests to train", "does not refuse", edit("train", "initialize", ["$@device"])),
    ("requests to train", "evaluates", lambda root: trust_requests(root)),
    ("properties: train", "val_interval", edit("train", "val_interval")),
    ("properties: evaluate", "another network", weights(lambda state: dict(list(state.items())[1:]))),
    ("properties: inference", "inferer", edit("inference", "inferer")),
]


def trust_requests(root: Path) -> None:
    edit("train", "imports", ["$import torch", "$import regzoo"])(root)
    edit("train", "initialize", ["$@device"])(root)


def swap_inputs(root: Path) -> None:
    for name in ("train", "inference"):
        edit(name, "inputs", ["moving_image", "fixed_image", "moving_label"])(root)


def reformat(path: Path, indent: int) -> None:
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")), indent=indent) + "\n", encoding="utf-8")


@pytest.mark.parametrize(("check", "detail", "change"), BROKEN, ids=[f"{b[0]}-{b[1]}" for b in BROKEN])
def test_what_is_wrong_is_found(check: str, detail: str, change: Callable[[Path], object], copy_bundle: Copy) -> None:
    root = copy_bundle()
    change(root)
    (row,) = verify(root, [check])
    assert row.result == FAILED and detail in row.detail and "\n" not in row.detail, row


def test_every_check_was_seen_to_fail() -> None:
    assert {check for check, *_ in BROKEN} == CHECKS.keys() - {"name", "logging.conf"}


@pytest.mark.parametrize("name", ["prostate_mr_detection_x", "prostate_DeepEdit_registration", "prostate", "a_b-c_d"])
def test_names(name: str, copy_bundle: Copy) -> None:
    root = copy_bundle(weights=False)
    (row,) = verify(root.rename(root.with_name(name)), ["name"])
    assert row.result == FAILED and name in row.detail


@pytest.mark.parametrize(
    ("old", "new", "refused_by_monai"),
    [
        ("class=StreamHandler", "class=eval", True),
        ("class=StreamHandler", "class=handlers.RotatingFileHandler", True),
        ("class=StreamHandler", "class=logging.handlers.RotatingFileHandler", False),
        ("args=(sys.stdout,)", "args=(open('x', 'w'),)", True),
        ("args=(sys.stdout,)", "args=(os.environ,)", True),
        ("args=(sys.stdout,)", "args=(sys.stderr,)", False),
    ],
)
def test_logging_conf(old: str, new: str, refused_by_monai: bool, copy_bundle: Copy) -> None:
    root = copy_bundle(weights=False)
    assert verify(root, ["logging.conf"])[0].result == OK
    replace("configs/logging.conf", old, new)(root)
    (row,) = verify(root, ["logging.conf"])
    assert (row.result == FAILED) == (refused_by_monai or "stderr" in new)
    if refused_by_monai:
        with pytest.raises(ValueError, match="refusing to apply"):
            ConfigWorkflow(config_file=str(root / "configs/train.json"))


def test_weights_that_are_elsewhere_are_not_looked_for(copy_bundle: Copy) -> None:
    root = copy_bundle(weights=False)
    write("large_files.yml", f"{LISTED}    hash_val: 0ff\n    hash_type: sha256\n")(root)
    found = {
        row.check: row for row in verify(root, ["required files", "file sizes", "weights", "properties: evaluate"])
    }
    assert [row.result for row in found.values()] == [OK, OK, SKIPPED, SKIPPED]
    assert "download_large_files" in found["weights"].detail


def test_what_is_listed_and_here_is_what_was_listed(copy_bundle: Copy) -> None:
    root = copy_bundle()
    digest = hashlib.md5((root / "models/model.pt").read_bytes()).hexdigest()
    write("large_files.yml", f"{LISTED}    hash_val: {digest}\n")(root)  # MONAI takes md5 if nothing is said
    large("models/model.onnx", 20_000_000)(root)  # an export
    large("docs/large.bin", 1024 * 1024)(root)  # exactly what the zoo takes
    assert verify(root, ["file sizes"])[0].result == OK


def test_a_package_inside_that_is_the_same(copy_bundle: Copy) -> None:
    root = copy_bundle(weights=False)
    carry_package(lambda _: None)(root)
    assert verify(root, ["package inside"])[0].result == OK


@pytest.mark.parametrize("pin", ["5.4.2", ">=5.3", "<6", "==5.4.2", ">=5.3,<6"])
def test_versions_that_the_zoo_reads(pin: str, copy_bundle: Copy) -> None:
    root = copy_bundle(weights=False)
    edit("metadata", "required_packages_version#itk", pin)(root)
    assert verify(root, ["required packages"])[0].result == OK


def test_links_in_code_are_no_links(copy_bundle: Copy) -> None:
    root = copy_bundle(weights=False)
    append("docs/README.md", b"`[a](b.md)`\n\n```\n[c](d.md)\n```\n\n[e](https://x.org/f) [g](#h)\n")(root)
    assert verify(root, ["links"])[0].result == OK


def test_tools_that_are_not_there_are_named(copy_bundle: Copy, monkeypatch: pytest.MonkeyPatch) -> None:
    root, find = copy_bundle(weights=False), importlib.util.find_spec
    write("code.py", "x = 1\n")(root)
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name in ("isort", "bugbear", "jsonschema") else find(name)
    )
    style, schema = verify(root, ["Python style", "metadata schema"])
    assert style.result == schema.result == SKIPPED
    assert "pip install isort flake8-bugbear" in style.detail and "pip install jsonschema" in schema.detail
    write("code.py", "x  =  1\n")(root)
    assert verify(root, ["Python style"])[0].result == FAILED  # what is there is asked nevertheless


def test_a_crash_is_a_red_row(copy_bundle: Copy) -> None:
    root = copy_bundle(weights=False)
    write("configs/metadata.json", "{")(root)
    rows = {row.check: row for row in verify(root, [name for name in CHECKS if not name.startswith("prop")])}
    assert {rows[name].result for name in ("metadata schema", "required packages", "batch of two")} == {FAILED}
    assert rows["licences"].result == OK

    def crash(_: Bundle) -> str:
        print("noise")
        raise KeyError("a\nbug")

    row = run_check("crash", crash, Bundle(root))
    assert row.result == FAILED and row.detail.startswith("KeyError") and "\n" not in as_table([row]).splitlines()[2]


def test_command(copy_bundle: Copy, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    few = {name: CHECKS[name] for name in ("licences", "JSON format")}
    monkeypatch.setattr("regzoo_tools.verification.CHECKS", few)
    root = copy_bundle(weights=False)
    monkeypatch.chdir(root)
    monkeypatch.setattr(sys, "argv", ["regzoo", "verify", "."])
    cli.main()
    assert "2 checks: 2 ok" in capsys.readouterr().out
    write("LICENSE", "none\n")(root)
    with pytest.raises(SystemExit) as stop:
        cli.main()
    shown = capsys.readouterr()
    assert stop.value.code == 1 and "2 checks: 1 ok, 1 FAILED" in shown.out and not shown.err
    assert [line.split("|")[1].strip() for line in shown.out.splitlines()[2:4]] == [FAILED, OK]


def test_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(RegZooError, match="is not a bundle"):
        verify(tmp_path)
