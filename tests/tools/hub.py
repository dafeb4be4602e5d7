"""A stand-in for the Hugging Face Hub on loopback: what huggingface_hub asks for when it uploads a folder."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = tuple[int, dict[str, Any]]


class Hub(ThreadingHTTPServer):
    """Keeps what was uploaded.

    Attributes:
        token: what a request must carry.
        repositories: name → {"private": …, "files": {path: content}, "tags": […], "commits": […]}.
        unknown: requests that a hub would not have understood.
    """

    def __init__(self, token: str) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.token = token
        self.repositories: dict[str, dict[str, Any]] = {}
        self.blobs: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.unknown: list[str] = []

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def create(self, body: bytes) -> Answer:
        wanted = json.loads(body)
        name = f"{wanted['organization']}/{wanted['name']}"
        if name in self.repositories:
            return 409, {"error": "You already created this model repo", "url": f"{self.address}/{name}"}
        private = wanted.get("private", wanted.get("visibility") == "private")
        self.repositories[name] = {"private": private, "files": {}, "tags": [], "commits": []}
        return 200, {"url": f"{self.address}/{name}", "name": name}

    def preupload(self, body: bytes, repo: str) -> Answer:
        """As the Hub's .gitattributes have it: weights and pictures as large files, text in the commit."""
        files = json.loads(body)["files"]
        kinds = ["lfs" if file["path"].endswith((".pt", ".png")) else "regular" for file in files]
        return 200, {
            "files": [
                {"path": file["path"], "uploadMode": kind, "shouldIgnore": False}
                for file, kind in zip(files, kinds, strict=True)
            ]
        }

    def batch(self, body: bytes, repo: str) -> Answer:
        objects = [
            {**blob, "actions": {"upload": {"href": f"{self.address}/blobs/{blob['oid']}"}}}
            for blob in json.loads(body)["objects"]
        ]
        return 200, {"transfer": "basic", "objects": objects}

    def put(self, body: bytes, oid: str) -> Answer:
        if hashlib.sha256(body).hexdigest() != oid:
            return 400, {"error": "the content is not what was announced"}
        self.blobs[oid] = body
        return 200, {}

    def commit(self, body: bytes, repo: str) -> Answer:
        header, *operations = (json.loads(line) for line in body.splitlines())
        for operation in operations:
            value = operation["value"]
            large = operation["key"] == "lfsFile"
            content = self.blobs[value["oid"]] if large else base64.b64decode(value["content"])
            self.repositories[repo]["files"][value["path"]] = content
        self.repositories[repo]["commits"].append(header["value"]["summary"])
        return 200, {"commitUrl": f"{self.address}/{repo}/commit/1", "commitOid": "1" * 40, "success": True}

    def tag(self, body: bytes, repo: str) -> Answer:
        name = json.loads(body)["tag"]
        if name in self.repositories[repo]["tags"]:
            return 409, {"error": "Reference already exists"}
        self.repositories[repo]["tags"].append(name)
        return 200, {}

    def refs(self, body: bytes, repo: str) -> Answer:
        if repo not in self.repositories:
            return 404, {"error": "Repository not found", "code": "RepoNotFound"}
        tags = [
            {"name": tag, "ref": f"refs/tags/{tag}", "targetCommit": "1" * 40}
            for tag in self.repositories[repo]["tags"]
        ]
        return 200, {"branches": [], "converts": [], "tags": tags}


ROUTES: list[tuple[str, str, Callable[..., Answer]]] = [
    ("POST", r"/api/repos/create", Hub.create),
    ("POST", r"/api/models/([\w.-]+/[\w.-]+)/preupload/main", Hub.preupload),
    ("POST", r"/([\w.-]+/[\w.-]+)\.git/info/lfs/objects/batch", Hub.batch),
    ("PUT", r"/blobs/(\w{64})", Hub.put),
    ("POST", r"/api/models/([\w.-]+/[\w.-]+)/commit/main", Hub.commit),
    ("POST", r"/api/models/([\w.-]+/[\w.-]+)/tag/main", Hub.tag),
    ("GET", r"/api/models/([\w.-]+/[\w.-]+)/refs", Hub.refs),
    ("POST", r"/api/validate-yaml", lambda hub, body: (200, {"errors": [], "warnings": []})),
]


class Handler(BaseHTTPRequestHandler):
    """Answers one request."""

    server: Hub
    protocol_version = "HTTP/1.1"

    def do(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = self.path.partition("?")[0]
        self.server.requests.append(f"{self.command} {path}")
        status, answer = self.answer(path, body)
        content = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        if "code" in answer:
            self.send_header("X-Error-Code", answer["code"])
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = do_PUT = do_HEAD = do

    def answer(self, path: str, body: bytes) -> Answer:
        # What is put goes to a signed address, to which a token must not be sent.
        if (self.headers.get("Authorization") == f"Bearer {self.server.token}") == (self.command == "PUT"):
            return 401, {"error": "Invalid credentials in Authorization header"}
        for method, pattern, act in ROUTES:
            match = re.fullmatch(pattern, path)
            if method == self.command and match:
                return act(self.server, body, *match.groups())
        self.server.unknown.append(f"{self.command} {path}")
        return 404, {"error": "no such place"}

    def log_message(self, *_: Any) -> None:
        """Nothing on the console."""


@contextmanager
def running(token: str) -> Iterator[Hub]:
    """A hub that answers while the block runs."""
    with Hub(token) as hub:
        thread = threading.Thread(target=hub.serve_forever, daemon=True)
        thread.start()
        try:
            yield hub
        finally:
            hub.shutdown()
            thread.join()
