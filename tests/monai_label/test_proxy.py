"""The proxy of the page on MONAI Label, run as it is printed, but for the ports: what it lets through and what not."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import ssl
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("monailabel", reason="run by `make test-label`, in an environment of its own")
if shutil.which("nginx") is None or shutil.which("openssl") is None:
    pytest.skip("nginx or openssl is not installed (apt-get install nginx-light openssl)", allow_module_level=True)

import httpx
from label_server import BUNDLES, ROOT, LabelServer, free_port
from label_studies import ENVIRONMENT, WEAK_DDF, fingerprints

PAGE = (ROOT / "docs" / "monai_label.md").read_text(encoding="utf-8")
LOGIN = ("alice", "change me")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, prostate_phantoms: Path) -> Iterator[LabelServer]:
    """A server of its own, since the doors that the proxy closes are tried on it."""
    folder = tmp_path_factory.mktemp("behind")
    bundles = [bundle for bundle in BUNDLES if bundle.name == WEAK_DDF]
    with LabelServer(folder / "server", folder / "studies", bundles, ENVIRONMENT) as started:
        for name, kind in (("us01", "us"), ("mr01", "mr")):
            (image,) = list((prostate_phantoms / "val" / f"{kind}_images").glob("*.nii.gz"))[:1]
            started.upload("image", name, image)
            started.upload("label", name, next((prostate_phantoms / "val" / f"{kind}_labels").glob("*.nii.gz")))
        yield started


@pytest.fixture(scope="module")
def proxy(server: LabelServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A client of the proxy that trusts its certificate; without a login."""
    folder, port = tmp_path_factory.mktemp("proxied"), free_port()
    (config,) = re.findall(r"```nginx\n(.*?)```", PAGE, flags=re.DOTALL)
    (commands,) = re.findall(r"```bash\n(mkdir -p proxy\n.*?)```", PAGE, flags=re.DOTALL)
    (folder / "proxy").mkdir()
    config = config.replace("8443", str(port)).replace("http://127.0.0.1:8000", server.url)
    as_root = f"user {os.environ.get('USER', 'root')};\n" if os.geteuid() == 0 else ""
    (folder / "proxy" / "nginx.conf").write_text(as_root + config, encoding="utf-8")
    commands = commands.replace("8443", str(port))
    done = subprocess.run(["bash", "-euo", "pipefail", "-c", commands], cwd=folder, capture_output=True, text=True)
    try:
        assert done.returncode == 0, done.stderr
        assert WEAK_DDF in done.stdout
        trusted = ssl.create_default_context(cafile=str(folder / "proxy" / "certificate.pem"))
        with httpx.Client(base_url=f"https://localhost:{port}", verify=trusted, timeout=60) as client:
            yield client
    finally:
        with contextlib.suppress(OSError, ValueError):
            os.kill(int((folder / "proxy" / "nginx.pid").read_text()), signal.SIGTERM)


def test_who_has_no_login_gets_nothing(proxy: httpx.Client) -> None:
    for login in (None, ("alice", "wrong"), ("bob", "change me")):
        for method, address in (("GET", "/info/"), ("POST", f"/infer/{WEAK_DDF}?image=us01"), ("GET", "/datastore/")):
            assert proxy.request(method, address, auth=login).status_code == 401


def test_what_clients_need(proxy: httpx.Client, prostate_phantoms: Path, server: LabelServer) -> None:
    own = {"Origin": str(proxy.base_url).rstrip("/")}
    assert WEAK_DDF in proxy.get("/info/", auth=LOGIN, headers=own).json()["models"]
    assert "mr01" in proxy.get("/datastore/?output=all", auth=LOGIN).text
    image = next((prostate_phantoms / "val" / "us_images").glob("*.nii.gz"))
    files = {"file": (image.name, image.read_bytes())}
    assert proxy.put("/datastore/image?image=us-02.b", auth=LOGIN, files=files).status_code == 200
    note = {"info": '{"moving_image": "mr01", "moving_label": "mr01"}'}
    assert proxy.put("/datastore/image/info?image=us-02.b", auth=LOGIN, data=note).status_code == 200
    answer = proxy.post(f"/infer/{WEAK_DDF}?image=us-02.b&output=json", auth=LOGIN, headers=own)
    assert answer.status_code == 200 and answer.json()["answer"] == "label"
    assert proxy.post("/activelearning/first", auth=LOGIN, json={}).status_code == 200
    refusal = proxy.post(f"/infer/{WEAK_DDF}?image=us01", auth=LOGIN, data={"params": '{"moving_image": "x"}'})
    assert refusal.status_code == 400 and refusal.json()["detail"].startswith("moving_image: ")


@pytest.mark.parametrize("origin", ["https://elsewhere.example", "null", "http://localhost:8443"])
def test_pages_of_other_addresses(origin: str, proxy: httpx.Client) -> None:
    for method in ("OPTIONS", "GET", "POST", "PUT"):
        for address in ("/info/", f"/infer/{WEAK_DDF}?image=us01", "/datastore/image?image=x"):
            answer = proxy.request(method, address, auth=LOGIN, headers={"Origin": origin})
            assert answer.status_code == 403 and "access-control-allow-origin" not in answer.headers


def test_other_host_names(proxy: httpx.Client) -> None:
    assert proxy.get("/info/", auth=LOGIN, headers={"Host": "rebound.example"}).status_code == 421


@pytest.mark.parametrize(
    ("method", "address"),
    [
        *((method, f"/model/{WEAK_DDF}") for method in ("GET", "PUT", "DELETE")),
        *((method, "/train/") for method in ("GET", "DELETE")),
        *(("POST", f"/{room}/{WEAK_DDF}") for room in ("train", "batch/infer", "infer_wsi", "scoring")),
        *(("GET", f"/{room}/") for room in ("logs", "logs/gpu", "proxy/dicom/wado/x", "ohif", "session", "docs", "")),
        *(("POST", room) for room in ("/reload", f"/info/../train/{WEAK_DDF}", f"/infer/..%2ftrain/{WEAK_DDF}")),
        *(("DELETE", f"/datastore/{kind}?id=mr01&tag=final") for kind in ("image", "label")),
        *(("PUT", room) for room in ("/datastore/?image=x", "/datastore/updatelabelinfo?label=mr01&tag=final")),
        ("GET", "/datastore/dataset"),
        ("POST", "/datastore/image?image=x"),
    ],
)
def test_doors_that_are_closed(method: str, address: str, proxy: httpx.Client, server: LabelServer) -> None:
    before = fingerprints(server.models, server.studies)
    files = {"file": ("x.pt", b"x")} if method in ("POST", "PUT") else None
    assert proxy.request(method, address, auth=LOGIN, files=files).status_code in (400, 403)
    assert fingerprints(server.models, server.studies) == before


#: Ways to write a name that leaves the folder: {} is the name of the parameter.
LEAVING = [
    "{}=../outside",
    "{}=..%2Foutside",
    "{}=%2e%2e%2foutside",
    "{}=x&{}=../outside",
    "{}=/etc/outside",
    "{}=a/../../outside",
    "{}=..",
    "{}=..%5Coutside",
]


@pytest.mark.parametrize("query", [*LEAVING, "%69mage=..%2Foutside"])
@pytest.mark.parametrize("kind", ["image", "label"])
@pytest.mark.parametrize("parameter", ["image", "tag"])
def test_ids_and_tags_stay_in_the_studies(
    query: str, kind: str, parameter: str, proxy: httpx.Client, server: LabelServer
) -> None:
    places = (server.studies.parent,)
    before = {name: content for name, content in fingerprints(*places).items() if "/server/" not in name}
    address = httpx.URL(f"/datastore/{kind}?{'image=mr01&' if parameter == 'tag' else ''}").copy_with(
        query=f"{'image=mr01&' if parameter == 'tag' else ''}{query.replace('{}', parameter)}".encode()
    )
    files = {"file" if kind == "image" else "label": ("x.nii.gz", b"x")}
    assert proxy.put(address, auth=LOGIN, files=files).status_code == 400
    assert {name: content for name, content in fingerprints(*places).items() if "/server/" not in name} == before


def test_what_the_proxy_is_for(server: LabelServer, tmp_path: Path) -> None:
    """The server itself does all that the page warns of."""
    outside = server.studies.parent / "outside.nii.gz"
    put: dict[str, Any] = {"params": {"image": "../outside"}, "files": {"file": ("x.nii.gz", b"x")}}
    assert server.ask("PUT", "/datastore/image", **put).status_code == 200 and outside.read_bytes() == b"x"
    weights = server.models / WEAK_DDF / "models" / "model.pt"
    kept = weights.read_bytes()
    replaced = server.ask("PUT", f"/model/{WEAK_DDF}", files={"file": ("x.pt", b"x")})
    assert replaced.status_code == 200 and weights.read_bytes() == b"x"
    weights.write_bytes(kept)
    main = server.folder / "app" / "main.py"
    made, written = tmp_path / "made", main.read_text(encoding="utf-8")
    code = f"{written}\nopen({str(made)!r}, 'w')\n".encode()
    put = {"params": {"image": f"../server/app/{main.stem}"}, "files": {"file": ("main.py", code)}}
    assert server.ask("PUT", "/datastore/image", **put).status_code == 200 and main.read_bytes() == code
    assert server.ask("POST", "/reload").status_code == 200
    server.ask("GET", "/info/")
    end = time.monotonic() + 30
    while not made.exists() and time.monotonic() < end:
        time.sleep(0.1)
    assert made.exists()
