"""Nothing that a client of MONAI Label sends for a training is evaluated; a user's own command line may compute."""

from __future__ import annotations

import contextlib
import importlib
import json
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from bundle_list import BUNDLES
from monai.bundle import ConfigParser, ConfigWorkflow
from regzoo.errors import user_error
from regzoo.monai_label import settings

each_bundle = pytest.mark.parametrize("bundle", BUNDLES, ids=lambda bundle: bundle.name)
PARAMETERS = ("device", "train#trainer#max_epochs", "train#dataset#data", "experiment_name", "run_name")


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that every injection would create."""
    made = tmp_path / "made"
    (tmp_path / "payload.py").write_text(f"import pathlib\npathlib.Path({str(made)!r}).touch()\n", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "payload", raising=False)
    config = {"expression": f"$open({str(made)!r}, 'w')", "secret": "hunter2"}
    (tmp_path / "other.json").write_text(json.dumps(config), encoding="utf-8")
    return made


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process is one of MONAI Label's."""
    monkeypatch.setenv("MONAI_LABEL_STUDIES", str(tmp_path))
    monkeypatch.setitem(sys.modules, "monailabel", types.ModuleType("monailabel"))


def injections(made: Path) -> dict[str, Any]:
    """Values that MONAI would evaluate, by kind."""
    expression = f"$open({str(made)!r}, 'w')"
    component = {"_target_": "pathlib.Path.touch", "self": f"$__import__('pathlib').Path({str(made)!r})"}
    return {
        "expression": expression,
        "import": "$import payload",
        "from": "$from payload import anything",
        "component": component,
        "component in a list": [{"image": component}],
        "expression in a list": [expression],
        "expression in a dictionary": {"image": expression},
        "reference": "@bundle_root",
        "macro": f"%{made.parent / 'other.json'}::expression",
        "plain macro": f"%{made.parent / 'other.json'}::secret",
    }


def workflow(bundle: Path, multi_gpu: bool = False, **overrides: Any) -> ConfigWorkflow:
    """A training with the overrides that MONAI Label makes."""
    names = ["train", "multi_gpu_train"] if multi_gpu else ["train"]
    files = [str(bundle / "configs" / f"{name}.json") for name in names]
    named = {"bundle_root": str(bundle), "device": "cpu", "train#trainer#max_epochs": 1, "train#dataset#data": []}
    more = {key: overrides.pop(key) for key in ("init_id", "tracking") if key in overrides}
    made = ConfigWorkflow(files, str(bundle / "configs" / "metadata.json"), False, **more, **named | overrides)
    return made


def refused(start: Callable[[], Any], parameter: str, made: Path) -> str:
    """The start of a training fails with one line on a parameter, and nothing has been evaluated; that line."""
    with pytest.raises(Exception) as caught:
        start()
    error = str(user_error(caught.value))
    assert error.startswith(parameter) and "\n" not in error, caught.value
    assert "hunter2" not in error and str(made.parent) not in error
    assert not made.exists() and "payload" not in sys.modules
    return error


def accepted(training: ConfigWorkflow) -> None:
    """The settings are let through: a training without data fails at its data, or later."""
    try:
        training.initialize()
    except Exception as error:
        assert "nowhere" in str(user_error(error)), error


@pytest.mark.usefixtures("served")
@each_bundle
@pytest.mark.parametrize("parameter", PARAMETERS)
def test_what_would_run_code_is_refused(bundle: Path, parameter: str, made: Path) -> None:
    for multi_gpu in (False, True):
        for kind, value in injections(made).items():
            if kind == "plain macro" and parameter not in ("device", "train#trainer#max_epochs"):
                continue  # MONAI has put the file's plain value in its place, which is as good as one from the client
            training = workflow(bundle, multi_gpu, **{parameter: value})
            refused(training.initialize, parameter, made)


@pytest.mark.usefixtures("served")
@each_bundle
@pytest.mark.parametrize("start", ["network", "train#trainer", "output_dir"])
def test_a_training_that_starts_elsewhere_evaluates_nothing_either(bundle: Path, start: str, made: Path) -> None:
    """MONAI Label passes ``run_id`` to torchrun as an argument, so that a client can send ``--init_id=network``."""
    for kind in ("expression", "import", "component", "macro"):
        training = workflow(bundle, init_id=start, dataset_dir="nowhere", device=injections(made)[kind])
        with contextlib.suppress(Exception):  # whatever MONAI says of a missing device or data set
            training.initialize()
            training.parser.get_parsed_content("network")
        assert not made.exists() and "payload" not in sys.modules


@pytest.mark.usefixtures("served")
@each_bundle
@pytest.mark.parametrize("target", ["imports", "initialize", "run", "finalize", "train#handlers"])
def test_a_file_of_tracking_settings_adds_nothing(bundle: Path, target: str, made: Path) -> None:
    """MONAI takes a ``tracking`` that it does not know for such a file, and a client can upload one."""
    for kind in ("expression", "import", "component"):
        tracking = {
            "handlers_id": {"trainer": {"id": "train#trainer", "handlers": target}},
            "configs": {"trainer": injections(made)[kind], "save_execute_config": False},
        }
        refused(workflow(bundle, tracking=tracking).initialize, target, made)


@pytest.mark.usefixtures("served")
@each_bundle
@pytest.mark.parametrize("value", [True, 0, -1, 2.5, "2", None, [2], {"epochs": 2}], ids=repr)
def test_epochs_that_are_not_a_number(bundle: Path, value: Any, made: Path) -> None:
    refused(workflow(bundle, **{"train#trainer#max_epochs": value}).initialize, "train#trainer#max_epochs", made)


@pytest.mark.usefixtures("served")
@each_bundle
@pytest.mark.parametrize("value", ["meta", "mps", "cpu:5", "cpu:0", "xla", "7", "cuda:99", 7, True, None], ids=repr)
def test_devices_that_this_machine_does_not_have(bundle: Path, value: Any, made: Path) -> None:
    refused(workflow(bundle, device=value).initialize, "device", made)


@pytest.mark.usefixtures("served")
@each_bundle
def test_only_weights_of_the_bundle_are_loaded(bundle: Path, made: Path) -> None:
    own = ConfigParser.load_config_file(bundle / "configs" / "train.json")["train"]["handlers"]
    loader = {"_target_": "CheckpointLoader", "load_dict": {"model": "$@network"}, "strict": False}

    def training(**changes: Any) -> ConfigWorkflow:
        path = {"load_path": str(bundle / "models" / "model.pt")}
        return workflow(bundle, **{"train#handlers": [loader | path | changes, *own], "dataset_dir": "nowhere"})

    outside = str(bundle / "models" / ".." / ".." / "weights.pt")
    for changes in ({"load_path": outside}, {"load_dict": {"model": "$exit()"}}, {"_target_": "os.mkdir"}):
        refused(training(**changes).initialize, "train#handlers#0", made)
    accepted(training())


@pytest.mark.usefixtures("served")
@each_bundle
def test_a_client_does_not_choose_where_runs_are_tracked(
    bundle: Path, made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = "http://127.0.0.1:5000"
    options = {"tracking": "mlflow", "save_execute_config": False, "dataset_dir": "nowhere"}
    refused(workflow(bundle, **options, tracking_uri=address).initialize, "tracking_uri", made)
    monkeypatch.setenv("MONAI_LABEL_TRACKING_URI", address)
    for named in ({"tracking_uri": address}, {}):
        accepted(workflow(bundle, **options, **named))


@pytest.mark.parametrize("kind", ["expression", "import", "component", "macro"])
def test_the_injections_of_these_tests_do_work(kind: str, made: Path) -> None:
    """Where nobody checks, as on a user's own command line."""
    training = workflow(BUNDLES[0], init_id="device", device=injections(made)[kind])
    training.initialize()
    assert made.exists()


@each_bundle
def test_on_the_command_line_a_user_may_compute(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even in a shell with the variables of a server."""
    monkeypatch.setenv("MONAI_LABEL_STUDIES", "/s")
    monkeypatch.delitem(sys.modules, "monailabel", raising=False)  # another test may have imported it
    training = workflow(bundle, dataset_dir="nowhere", device="$torch.device('cpu')")
    accepted(training)
    assert training.parser.get_parsed_content("device") == torch.device("cpu")


def test_the_module_has_only_what_it_says() -> None:
    assert callable(importlib.import_module("regzoo.monai_label.settings").check_request)
    with pytest.raises(AttributeError, match="nothing"):
        _ = settings.nothing
