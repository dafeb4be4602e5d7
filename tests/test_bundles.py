"""Bundles by name, and the folders that they write to."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import regzoo.bundles
from bundle_list import BUNDLES
from monai.bundle import ConfigParser
from regzoo.bundles import all_bundles, find_bundle

#: Settings that name what a bundle writes, or reads from what it wrote.
WRITTEN = {"output_dir", "evaluation_dir", "exported", "init_weights"}


def written(bundle: Path, config: Path) -> dict[str, Path]:
    """Where the settings of a configuration lead."""
    parser = ConfigParser(globals={"regzoo": "regzoo"})
    base = "inference" if config.stem in ("inference", "onnx", "torchscript", "tensorrt") else "train"
    parser.read_config([str(bundle / "configs" / f"{base}.json"), str(config)])
    parser["bundle_root"] = str(bundle)
    paths = {name: parser.get_parsed_content(name) for name in WRITTEN & parser.config.keys()}
    if "data_folder" in json.loads(config.read_text(encoding="utf-8")):
        parser["phantoms"] = {"kind": "brain", "cases": 1, "held_out": 1, "spacing": 16.0}
        paths["data_folder"] = parser.get_parsed_content("data_folder")
    return {name: Path(path) for name, path in paths.items() if path}


@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda bundle: bundle.name)
def test_an_installed_bundle_writes_into_the_working_folder(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(regzoo.bundles, "INSTALLED", bundle.parent)
    for config in bundle.glob("configs/**/*.json"):
        if config.stem != "metadata":
            paths = written(bundle, config)
            assert paths and all(path.parts[0] == bundle.name for path in paths.values()), (config, paths)


@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda bundle: bundle.name)
def test_a_bundle_of_a_checkout_writes_into_its_own_folder(bundle: Path) -> None:
    for name in ("inference", "variants/demo", "variants/onnx"):
        paths = written(bundle, bundle / "configs" / f"{name}.json")
        assert paths and all(path.is_relative_to(bundle) for path in paths.values()), (name, paths)


def test_all_bundles_are_found_from_any_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    found = all_bundles()
    assert [found.pop("none").name, *found.values()] == ["none", *BUNDLES]
    mine = tmp_path / "bundles" / "mine" / "configs"
    mine.mkdir(parents=True)
    (mine / "inference.json").touch()
    assert all_bundles()["mine"].resolve() == find_bundle("mine").resolve() == mine.parent
