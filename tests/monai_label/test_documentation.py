"""The commands of the page on MONAI Label, run as they are printed, but for the port and the length of a training."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("monailabel", reason="run by `make test-label`, in an environment of its own")

import httpx
import nibabel as nib
import numpy as np
from bundle_list import NAMES
from label_server import LEFT_OVER, ROOT, free_port
from label_studies import ENVIRONMENT, WEAK_DDF
from test_http_training import SMALL

PAGE = (ROOT / "docs" / "monai_label.md").read_text(encoding="utf-8")
SWITCH = " --conf skip_trainers true"
BASH = re.findall(r"```bash\n(.*?)```", PAGE, flags=re.DOTALL)


def block(beginning: str) -> str:
    """The one that has a line beginning so."""
    (found,) = [text for text in BASH if re.search(rf"^{re.escape(beginning)}", text, flags=re.MULTILINE)]
    return found


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as the repository's, with bundles that train for seconds, and the environment in its place."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in NAMES:
        shutil.copytree(ROOT / "bundles" / name, folder / "bundles" / name, ignore=LEFT_OVER)
        file = folder / "bundles" / name / "configs" / "train.json"
        file.write_text(json.dumps(json.loads(file.read_text(encoding="utf-8")) | SMALL), encoding="utf-8")
    (folder / ".venv-label").symlink_to(sys.prefix)
    return folder


def run(checkout: Path, commands: str, port: int) -> str:
    """Run commands in a shell that stops at the first that fails; what they print."""
    commands = commands.replace("8000", str(port)).replace('"max_epochs": 20', '"max_epochs": 1')
    if "SERVER=" not in commands:
        commands = f"source .venv-label/bin/activate\nSERVER=http://127.0.0.1:{port}\n{commands}"
    shell = ["bash", "-euo", "pipefail", "-c", commands]
    done = subprocess.run(
        shell, cwd=checkout, env=os.environ | ENVIRONMENT, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, (commands, done.stdout[-2000:], done.stderr[-2000:])
    return done.stdout


@contextlib.contextmanager
def started(checkout: Path, start: str) -> Iterator[int]:
    """A server, on a free port."""
    number = free_port()
    start = "source .venv-label/bin/activate\n" + start.replace("8000", str(number))
    environment = os.environ | ENVIRONMENT | {"MONAI_LABEL_SESSION_PATH": str(checkout / "sessions")}
    with (checkout / "log").open("wb") as log:
        process = subprocess.Popen(
            ["bash", "-c", start], cwd=checkout, env=environment, stdout=log, stderr=log, start_new_session=True
        )
    try:
        end = time.monotonic() + 120
        while True:
            assert process.poll() is None and time.monotonic() < end, (checkout / "log").read_text()[-2000:]
            with contextlib.suppress(httpx.TransportError):
                httpx.get(f"http://127.0.0.1:{number}/info/", timeout=10).raise_for_status()
                break
            time.sleep(0.2)
        yield number
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(30)


@pytest.fixture(scope="module")
def port(checkout: Path) -> Iterator[int]:
    """The server of the page."""
    run(checkout, block("monailabel apps"), 0)
    with started(checkout, block("monailabel start_server")) as number:
        yield number


@pytest.fixture(scope="module")
def training_port(checkout: Path, port: int) -> Iterator[int]:
    """The server of the page that trains."""
    start = block("monailabel start_server")
    assert start.count(SWITCH) == 1 and f"`{SWITCH.strip()}`" in PAGE.partition("## Training")[2]
    with started(checkout, start.replace(SWITCH, "")) as number:
        yield number


@pytest.fixture(scope="module")
def pair_there(checkout: Path, port: int) -> None:
    """The pair of the page, in the studies."""
    run(checkout, block("regzoo phantom"), port)


@pytest.mark.usefixtures("pair_there")
def test_the_commands(checkout: Path, port: int) -> None:
    models = set(httpx.get(f"http://127.0.0.1:{port}/info/", timeout=30).json()["models"])
    assert models == set(NAMES)
    assert httpx.get(f"http://127.0.0.1:{port}/info/", timeout=30).json()["trainers"] == {}
    ask = 'curl -sS --fail-with-body -X POST "$SERVER/infer/prostate_mr_trus_weak_ddf?image=trus01&output='
    printed = run(checkout, block(f"{ask}json"), port)
    assert json.loads(printed)["case"] == "trus01"
    fixed = nib.load(checkout / "phantoms/train/us_images/case000000.nii.gz")
    answer = nib.load(checkout / "propagated.nii.gz")
    assert answer.shape == fixed.shape and np.asarray(answer.dataobj).any()
    np.testing.assert_allclose(answer.affine, fixed.affine, atol=1e-4)
    run(checkout, block('curl -sS --fail-with-body -X PUT "$SERVER/datastore/image/info'), port)
    np.testing.assert_array_equal(nib.load(checkout / "noted.nii.gz").dataobj, answer.dataobj)
    (python,) = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    run(checkout, f"MPLBACKEND=Agg python - <<'END'\n{python}END\n", port)
    assert (checkout / "propagated.png").stat().st_size > 5000


def test_web_pages_of_other_addresses(port: int) -> None:
    """A browser asks for leave with such a request before it sends what a page wants it to."""
    for origin, status in (("https://elsewhere.example", 403), (f"http://127.0.0.1:{port}", 200)):
        headers = {"Origin": origin, "Access-Control-Request-Method": "PUT"}
        answer = httpx.options(f"http://127.0.0.1:{port}/datastore/image", headers=headers, timeout=30)
        assert answer.status_code == status
        assert answer.headers.get("access-control-allow-origin") == (origin if status == 200 else None)


@pytest.mark.usefixtures("pair_there")
def test_the_error(checkout: Path, port: int) -> None:
    """That of the page, word for word."""
    answer = httpx.post(
        f"http://127.0.0.1:{port}/infer/{WEAK_DDF}",
        params={"image": "trus01"},
        data={"params": '{"moving_image": "mr02"}'},
        timeout=60,
    )
    (printed,) = [json.loads(text) for text in re.findall(r"```json\n(.*?)```", PAGE, flags=re.DOTALL)]
    assert answer.status_code == 400 and answer.json() == printed


@pytest.mark.usefixtures("pair_there")
def test_the_training(checkout: Path, training_port: int) -> None:
    """With another pair, named as the page says, since an image drawn on has to have a partner."""
    for name, kind in (("fixed01", "us"), ("moving01", "mr"), ("case7_fixed", "us"), ("case7_moving", "mr")):
        for what, field in (("image", "file"), ("label", "label")):
            source = checkout / "phantoms" / "train" / f"{kind}_{what}s" / "case000000.nii.gz"
            with source.open("rb") as stream:
                files = {field: (source.name, stream)}
                put = f"http://127.0.0.1:{training_port}/datastore/{what}"
                httpx.put(put, params={"image": name}, files=files, timeout=60).raise_for_status()
    run(checkout, block('curl -sS --fail-with-body -X POST "$SERVER/train'), training_port)
    end = time.monotonic() + 120
    while (task := httpx.get(f"http://127.0.0.1:{training_port}/train/", timeout=30).json())["status"] in (
        "SUBMITTED",
        "RUNNING",
    ):
        assert time.monotonic() < end, task
        time.sleep(0.5)
    assert task["status"] == "DONE", task["details"]
    assert (checkout / "apps/monaibundle/model" / WEAK_DDF / "models" / "monai_label.pt").is_file()
    assert not (checkout / "bundles" / WEAK_DDF / "models" / "monai_label.pt").exists()  # served are copies
