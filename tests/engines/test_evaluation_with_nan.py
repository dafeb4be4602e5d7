"""An evaluation that meets NaN, in a file or in what the network predicts, ends in one line and writes no table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from bundle_list import NAMES, tiny
from helpers import line_of_failing
from monai.bundle import ConfigParser, ConfigWorkflow
from regzoo.datasets import load_records
from regzoo.engines import save_weights
from test_divergence import BUNDLES

WEAK = "prostate_mr_trus_weak_ddf"


def line_of_evaluation(bundle: str, dataset: Path, output: Path, **overrides: Any) -> str:
    """The line that an evaluation of untrained weights ends in; the last one that it logs is that of the run."""
    configs = BUNDLES / bundle / "configs"
    settings = {key: value for key, value in tiny(bundle).items() if key in ("spacing", "size", "channels", "device")}
    parser = ConfigParser()
    parser.read_config(str(configs / "train.json"))
    for key, value in settings.items():
        parser[key] = value
    network = parser.get_parsed_content("network_def")
    if overrides.pop("overflow", False):  # finite weights, of which a prediction is not
        for value in network.state_dict().values():
            if value.is_floating_point():
                value.fill_(3e38)
    save_weights(network, output / "model.pt")
    workflow = ConfigWorkflow(
        config_file=[str(configs / "train.json"), str(configs / "evaluate.json")],
        logging_file=False,
        bundle_root=str(BUNDLES / bundle),
        dataset_dir=str(dataset),
        output_dir=str(output),
        pictures=0,
        **settings,
        **overrides,
    )
    return line_of_failing(workflow)


@pytest.mark.parametrize("bundle", NAMES)
def test_a_prediction(bundle: str, dataset: Path, tmp_path: Path) -> None:
    line = line_of_evaluation(bundle, dataset, tmp_path, overflow=True)
    assert "the network predicts NaN or infinity; use other weights" in line
    assert not list((tmp_path / "evaluation").glob("*.csv"))


@pytest.mark.parametrize("key", ["fixed_image", "moving_image", "fixed_label", "moving_label"])
@pytest.mark.parametrize("bundle", [WEAK])
def test_a_file(bundle: str, key: str, dataset: Path, tmp_path: Path) -> None:
    records = load_records(dataset, "val")
    file = nib.load(records[0][key])
    values = file.get_fdata().astype(np.float32)
    values[(2,) * values.ndim] = np.nan
    bad = tmp_path / "bad.nii.gz"
    nib.save(nib.Nifti1Image(values, file.affine), bad)
    records[0][key] = str(bad)
    (tmp_path / "list.json").write_text(json.dumps({"validation": records}), encoding="utf-8")
    line = line_of_evaluation(bundle, tmp_path / "list.json", tmp_path)
    assert str(bad) in line and ("NaN" in line or "not a whole" in line or "infinite" in line)
