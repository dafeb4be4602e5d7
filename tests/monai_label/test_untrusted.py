"""A client sends a running server what it must not: to be evaluated, of a wrong type, or from another web page."""

from __future__ import annotations

import json
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("monailabel", reason="run by `make test-label`, in an environment of its own")

import numpy as np
from bundle_list import NAMES
from label_load import hang_up, same
from label_server import LabelServer
from label_studies import DDMR, WEAK_DDF, Studies
from test_settings import injections

each_bundle = pytest.mark.parametrize("bundle", NAMES)
ELSEWHERE = "https://elsewhere.example"


def named(studies: Studies, bundle: str = WEAK_DDF) -> dict[str, str]:
    """The parameters of a request for the first pair."""
    pair = studies.pairs(bundle)[0]
    return {"moving_image": pair.moving, "moving_label": pair.moving}


def logged(server: LabelServer, text: str, start: int = 0) -> bool:
    """Whether a text comes to be in the server's log, which it writes after it has answered."""
    end = time.monotonic() + 5
    while text not in server.log.read_text()[start:] and time.monotonic() < end:
        time.sleep(0.1)
    return text in server.log.read_text()[start:]


@pytest.mark.usefixtures("untouched")
@each_bundle
@pytest.mark.parametrize("parameter", ["device", "max_epochs"])
def test_a_training_evaluates_nothing(bundle: str, parameter: str, server: LabelServer, tmp_path: Path) -> None:
    made = tmp_path / "made"
    (tmp_path / "other.json").write_text(json.dumps({"expression": f"$open({str(made)!r}, 'w')", "secret": "hunter2"}))
    before = len(server.log.read_text())
    for value in injections(made).values():
        assert server.train(bundle, val_split=0.0, **{"max_epochs": 1, parameter: value}).status_code == 500
        assert not made.exists()
    assert logged(server, {"device": "device: not a device", "max_epochs": "not a number of epochs"}[parameter], before)
    assert not list((server.models / bundle).glob("output/*"))


@pytest.mark.usefixtures("untouched")
def test_the_reason_is_told_by_the_task(server: LabelServer, tmp_path: Path) -> None:
    """Of a training in the background; the value is not repeated."""
    from test_http_training import in_the_background

    made = tmp_path / "made"
    task = in_the_background(server, DDMR, {"max_epochs": f"$open({str(made)!r}, 'w')", "val_split": 0.0})
    assert task["status"] == "ERROR" and not made.exists()
    assert any("train#trainer#max_epochs: not a number of epochs" in line for line in task["details"]), task["details"]


@pytest.mark.usefixtures("untouched")
def test_an_uploaded_file_of_tracking_settings(server: LabelServer, studies: Studies, tmp_path: Path) -> None:
    """MONAI would write the configuration to a path that this file names, before it asks the bundle."""
    made = tmp_path / "made"
    file = studies.folder / "tracking.json"
    file.write_text(json.dumps({"handlers_id": {}, "configs": {"save_execute_config": str(made)}}))
    options = {"max_epochs": 1, "val_split": 0.0}
    for value in (str(file), [str(file)], "--device=x", {"configs": {}}, 1):
        for address, body in (
            (f"/train/{DDMR}", options | {"tracking": value}),
            ("/train/", {"train": {DDMR: options | {"tracking": value}}}),
            ("/train", {DDMR: options | {"tracking": value}}),
        ):
            answer = server.ask("POST", address, params={"run_sync": "true"}, json=body, follow_redirects=True)
            assert answer.status_code == 400 and answer.json()["detail"].startswith("tracking: "), (value, answer.text)
            assert not made.exists()
    file.unlink()


@pytest.mark.usefixtures("untouched")
def test_arguments_for_torchrun(server: LabelServer, tmp_path: Path) -> None:
    """MONAI Label passes ``run_id`` and ``tracking`` to it as they are, so that a client can add options."""
    made = tmp_path / "made"
    written = server.models / DDMR / "configs" / "monailabel_train.json"
    expression = injections(made)["expression"]
    request = {"max_epochs": 1, "val_split": 0.0, "force_multi_gpu": True, "gpus": "0"}
    before = set(server.temporary.iterdir())
    server.train(DDMR, **request, device=expression)
    server.train(DDMR, **request, run_id="--init_id=network", tracking=f"--device={expression}")
    written.unlink()
    for left in set(server.temporary.iterdir()) - before:  # torchrun's
        shutil.rmtree(left)
    assert not made.exists()
    assert not list((server.models / DDMR).glob("output/*"))


@pytest.mark.usefixtures("untouched")
@each_bundle
@pytest.mark.parametrize(
    "wrong",
    [
        *({"device": value} for value in ("meta", "mps", "cpu:5", "xla", "7", "true", ["meta"])),
        *({"result_compress": value} for value in (1, 0, "true")),
        *({"save_label": value} for value in (1, "false")),
        {"result_extension": 7},
        {"result_dtype": True},
    ],
    ids=str,
)
def test_values_of_another_type(bundle: str, wrong: dict[str, Any], server: LabelServer, studies: Studies) -> None:
    answer = server.infer(bundle, studies.pairs(bundle)[0].fixed, **named(studies, bundle), **wrong)
    assert answer.status == 400 and answer.detail.startswith(f"{next(iter(wrong))}: "), answer


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize("device", [7, True, {"cpu": 1}], ids=str)
def test_devices_that_monai_label_itself_cannot_read(device: Any, server: LabelServer, studies: Studies) -> None:
    """It fails before it asks the bundle, with no reason."""
    answer = server.infer(WEAK_DDF, studies.pairs(WEAK_DDF)[0].fixed, **named(studies), device=device)
    assert answer.status == 500 and answer.detail == "Internal Server Error"


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize(
    "extra",
    [
        {"latencies": 5},
        {"latencies": {"pre": 5}},
        {"description": {"a": 1}},
        {"result": 5, "centroids": 5, "label_names": 5, "pred": 5, "skip_writer": True, "result_write_to_file": False},
    ],
    ids=str,
)
def test_what_is_never_taken_from_a_client(extra: dict[str, Any], server: LabelServer, studies: Studies) -> None:
    fixed = studies.pairs(WEAK_DDF)[0].fixed
    usual = server.infer(WEAK_DDF, fixed, **named(studies))
    answer = server.infer(WEAK_DDF, fixed, **named(studies), **extra)
    assert answer.status == 200, answer.detail
    assert usual.image is not None and answer.image is not None
    np.testing.assert_array_equal(answer.image.dataobj, usual.image.dataobj)
    assert answer.params["labels"] == usual.params["labels"]
    assert set(answer.params["latencies"]["transform"]) == {"pre", "post"}


@each_bundle
def test_errors_name_files_as_the_client_knows_them(
    bundle: str, server: LabelServer, studies: Studies, tmp_path: Path
) -> None:
    """Every error of every test is searched for folders of the server, by `LabelServer.ask`."""
    fixed = studies.pairs(bundle)[0].fixed
    answer = server.infer(bundle, fixed, **(named(studies, bundle) | {"moving_image": "flat"}))
    assert answer.status == 400 and answer.detail.startswith("flat.nii.gz: ")
    (tmp_path / "sent.nii.gz").write_bytes(b"this is no image")
    answer = server.infer(bundle, "", file=tmp_path / "sent.nii.gz", **named(studies, bundle))
    assert answer.status == 400 and answer.detail.startswith("the file sent with the request: ")


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
def test_no_page_of_another_address_may_ask(method: str, server: LabelServer) -> None:
    """A browser asks for leave first, and is refused; the server's own pages are not."""
    asks = {"Access-Control-Request-Method": method, "Access-Control-Request-Headers": "content-type"}
    for origin in (ELSEWHERE, "null", server.url.replace("http", "https"), f"{server.url}.example"):
        answer = server.ask("OPTIONS", f"/train/{WEAK_DDF}", headers=asks | {"Origin": origin})
        assert answer.status_code == 403 and "access-control-allow-origin" not in answer.headers
    answer = server.ask("OPTIONS", f"/train/{WEAK_DDF}", headers=asks | {"Origin": server.url})
    assert answer.status_code == 200 and answer.headers["access-control-allow-origin"] == server.url


@pytest.mark.usefixtures("untouched")
def test_no_page_of_another_address_is_answered(server: LabelServer, studies: Studies) -> None:
    """Nor may it send the forms for which browsers do not ask for leave."""
    data = {"params": json.dumps(named(studies) | {"save_label": True})}
    query = {"image": studies.pairs(WEAK_DDF)[0].fixed}
    for method, address in (("POST", f"/infer/{WEAK_DDF}"), ("POST", "/reload"), ("GET", "/info/")):
        answer = server.ask(
            method, address, params=query, headers={"Origin": ELSEWHERE}, **({"data": data} if method == "POST" else {})
        )
        assert answer.status_code == 403 and "access-control-allow-origin" not in answer.headers


def test_a_name_that_a_page_has_made_to_point_here(server: LabelServer) -> None:
    address = server.url.removeprefix("http://")
    for host, status in ((address, 200), ("localhost", 200), ("rebound.example:8000", 400)):
        assert server.ask("GET", "/info/", headers={"Host": host}).status_code == status


@pytest.mark.usefixtures("untouched")
def test_clients_that_hang_up(server: LabelServer, studies: Studies) -> None:
    """Their requests are dropped, whether they hang up at once or while they wait, and nobody else's are."""
    pair = studies.pairs(WEAK_DDF)[0]
    usual = server.infer(WEAK_DDF, pair.fixed, **named(studies))
    before = server.log.read_text().count("Infer Request (final)")
    with ThreadPoolExecutor(4) as pool:
        answers = [pool.submit(server.infer, WEAK_DDF, pair.fixed, **named(studies)) for _ in range(4)]
        hang_up(server, WEAK_DDF, (pair.fixed, pair.moving), 30)
        for answer in answers:
            assert same(answer.result(), usual)
    assert server.log.read_text().count("Infer Request (final)") - before < 4 + 10  # of 34
