"""A MONAI Label server on copies of bundles, with what it needs in one folder: started, asked and stopped for sure.

Runs in the environment of ``make test-label``. The app is the stock ``monaibundle`` that comes with MONAI Label.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import dataclasses
import gzip
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx
import nibabel as nib
import psutil

ROOT = Path(__file__).resolve().parents[1]
BUNDLES = sorted(path.parent.parent for path in (ROOT / "bundles").glob("*/configs/inference.json"))
#: What a bundle's own trainings and demos leave in it; a copy does without.
LEFT_OVER = shutil.ignore_patterns("output", "data", "__pycache__")
PR_SET_PDEATHSIG = 1


@dataclasses.dataclass
class Answer:
    """What the server said to a request.

    Attributes:
        status: of HTTP.
        params: the JSON part, or of an error the whole JSON.
        image: the file that came back, as nibabel reads it.
    """

    status: int
    params: dict[str, Any]
    image: nib.Nifti1Image | None

    @property
    def detail(self) -> str:
        """The line of an error."""
        return str(self.params.get("detail", ""))


class LabelServer:
    """A server on loopback; use it as a context manager.

    Args:
        folder: where everything goes: ``app/`` with the bundles in ``app/model/``, ``tmp/`` and ``server.log``.
        studies: the studies folder.
        bundles: folders of bundles, copied.
        environment: further environment variables.
        patience: seconds to wait for the start.

    Attributes:
        url: where it listens, once started.
    """

    def __init__(
        self,
        folder: Path,
        studies: Path,
        bundles: Sequence[Path] = BUNDLES,
        environment: Mapping[str, str] | None = None,
        patience: float = 120,
    ) -> None:
        self.folder, self.studies, self.patience = folder, studies, patience
        self.names = [bundle.name for bundle in bundles]
        self.models, self.temporary, self.log = folder / "app" / "model", folder / "tmp", folder / "server.log"
        self.url = ""
        self._process: subprocess.Popen[bytes] | None = None
        self._environment = {**os.environ, **(environment or {})}
        self._environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
        self._environment["TMPDIR"] = str(self.temporary)
        self._environment["MONAI_LABEL_SESSION_PATH"] = str(folder / "sessions")
        shutil.copytree(Path(sys.prefix) / "monailabel" / "sample-apps" / "monaibundle", folder / "app")
        for bundle in bundles:
            shutil.copytree(bundle, self.models / bundle.name, ignore=LEFT_OVER)
        for place in (self.temporary, folder / "sessions", studies):
            place.mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> LabelServer:
        port = free_port()
        command = ["monailabel", "start_server", "--app", str(self.folder / "app"), "--studies", str(self.studies)]
        for key, value in (("models", ",".join(self.names)), ("zoo_source", "local"), ("sam2", "false")):
            command += ["--conf", key, value]
        command += ["--host", "127.0.0.1", "--port", str(port), "--uvicorn_app", "regzoo.monai_label.app:app"]
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                command,
                cwd=self.folder,
                env=self._environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_die_with_parent,
            )
        atexit.register(self.stop)
        self.url = f"http://127.0.0.1:{port}"
        try:
            self._wait()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """End the server and all that it started."""
        process, self._process = self._process, None
        if process is None:
            return
        atexit.unregister(self.stop)
        for end in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, end)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)
        # What it had started is in its group still, if it did not end with it.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)

    def _wait(self) -> None:
        """Until it answers.

        Raises:
            RuntimeError: it ended, or took too long; with the end of its log.
        """
        assert self._process is not None
        end = time.monotonic() + self.patience
        while time.monotonic() < end and self._process.poll() is None:
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"{self.url}/info/", timeout=10).status_code == 200:
                    return
            time.sleep(0.2)
        raise RuntimeError(f"MONAI Label did not start; {self.log} ends with\n{self.log.read_text()[-3000:]}")

    def memory(self) -> int:
        """The resident memory of the server and of all that it started, in bytes."""
        assert self._process is not None
        server = psutil.Process(self._process.pid)
        return sum(int(process.memory_info().rss) for process in (server, *server.children(recursive=True)))

    def infer(
        self, bundle: str, fixed: str, output: str | None = "all", file: Path | None = None, **params: Any
    ) -> Answer:
        """Ask for an inference.

        Args:
            bundle: its name.
            fixed: id of the fixed image; empty if its file comes along.
            output: ``image``, ``json`` or ``all``.
            file: the fixed image itself.
            params: the parameters of the request.
        """
        answer = self.post(f"/infer/{bundle}", {"image": fixed, "output": output}, params, file)
        content = answer.headers.get("content-type", "")
        if answer.status_code != 200 or content.startswith("application/json"):
            return Answer(answer.status_code, _json(answer), None)
        parts = _parts(answer.content, content) if content.startswith("multipart/") else {"image": answer.content}
        read = json.loads(parts["params"]) if "params" in parts else {}
        return Answer(answer.status_code, read, nib.Nifti1Image.from_bytes(gzip.decompress(parts["image"])))

    def post(
        self, address: str, query: Mapping[str, str | None], params: Any = None, file: Path | None = None
    ) -> httpx.Response:
        """Send a form with parameters and, if there is one, a file."""
        files = {"file": (file.name, file.read_bytes())} if file else None
        asked = {key: value for key, value in query.items() if value}
        form = {"params": params if isinstance(params, str) else json.dumps(params or {})}
        return self.ask("POST", address, params=asked, data=form, files=files)

    def upload(self, kind: str, identity: str, file: Path) -> None:
        """Put an ``image``, or the finished ``label`` of one, into the studies."""
        field = {"image": "file", "label": "label"}[kind]
        files = {field: (file.name, file.read_bytes())}
        self.ask("PUT", f"/datastore/{kind}", params={"image": identity}, files=files).raise_for_status()

    def train(self, bundle: str, **request: Any) -> httpx.Response:
        """Train, and wait for the end of it."""
        return self.ask("POST", f"/train/{bundle}", params={"run_sync": "true"}, json=request)

    def get(self, address: str) -> Any:
        """The JSON at an address."""
        return self.ask("GET", address).raise_for_status().json()

    def ask(self, method: str, address: str, **request: Any) -> httpx.Response:
        """Send any request, and make sure that an error shows none of the server's folders.

        Raises:
            AssertionError: it does.
        """
        answer = httpx.request(method, self.url + address, **({"timeout": 600} | request))
        if answer.is_error:
            places = {re.escape(str(place)) for path in (self.studies, self.folder) for place in (path, path.resolve())}
            shown = re.findall("|".join([*places, rf"\b{tempfile.gettempprefix()}\w{{8}}\b"]), answer.text)
            assert not shown, f"{method} {address} shows {', '.join(shown)}: {answer.text}"
        return answer


def _die_with_parent() -> None:
    """Let the kernel end the server when the process that started it was killed; on Linux."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def free_port() -> int:
    """A port of loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _json(answer: httpx.Response) -> dict[str, Any]:
    """The JSON of an answer; of what is none, its text as ``detail``."""
    try:
        content = answer.json()
    except json.JSONDecodeError:
        return {"detail": answer.text}
    return content if isinstance(content, dict) else {"detail": content}


def _parts(content: bytes, content_type: str) -> dict[str, bytes]:
    """The parts of a multipart answer by their names."""
    boundary = re.search(r'boundary="?([^";]+)', content_type)
    assert boundary, content_type
    parts = {}
    for part in content.split(b"--" + boundary.group(1).encode())[1:-1]:
        head, _, body = part.partition(b"\r\n\r\n")
        name = re.search(rb'name="([^"]+)"', head)
        assert name, head
        parts[name.group(1).decode()] = body.removesuffix(b"\r\n")
    return parts
