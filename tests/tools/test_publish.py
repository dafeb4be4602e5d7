"""`regzoo publish`, against a stand-in for the Hugging Face Hub on loopback."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import huggingface_hub.constants
import pytest
from hub import Hub, running
from regzoo import cli
from regzoo_tools.bundle import Bundle
from regzoo_tools.linked_pages import links
from regzoo_tools.packing import stage
from regzoo_tools.verification import CHECKS

TOKEN = "hf_thisIsTheSecretOfTheTest"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    with running(TOKEN) as server:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", server.address)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "no_token"))
        monkeypatch.delenv("HF_TOKEN", raising=False)
        yield server


@pytest.fixture
def fast_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the files alone; that every check is green is for test_verify.py to say."""
    few = ("required files", "licences", "JSON format", "links", "required packages", "targets")
    monkeypatch.setattr("regzoo_tools.verification.CHECKS", {name: CHECKS[name] for name in few})


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["regzoo", "publish", *arguments])
    cli.main()


def test_every_file_arrives(
    hub: Hub,
    fast_checks: None,
    copy_bundle: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    root = copy_bundle("abdominal_ct_ddmr")
    call(monkeypatch, str(root), "--repo", "clinic/ddmr", "--token", TOKEN)
    shown = capsys.readouterr()
    assert shown.out.strip().endswith(f"{hub.address}/clinic/ddmr") and "6 checks: 6 ok" in shown.out
    assert TOKEN not in shown.out + shown.err and hub.unknown == []

    repository = hub.repositories["clinic/ddmr"]
    assert repository["private"] and repository["tags"] == ["0.1.0"]
    assert repository["commits"] == ["abdominal_ct_ddmr 0.1.0"]
    staged = stage(Bundle(root), tmp_path / "staged")
    expected = {path.relative_to(staged).as_posix(): path.read_bytes() for path in staged.rglob("*") if path.is_file()}
    files = dict(repository["files"])
    card, page = files.pop("README.md").decode(), files.pop("docs/README.md").decode()
    del expected["docs/README.md"]
    assert files == expected and "regzoo/networks/voxelmorph.py" in files

    # The model card is the page, with what the Hub sorts by on top, and its links lead to files in the repository.
    assert card.startswith("---\ntags:\n- monai") and "license: apache-2.0" in card and card.endswith(page)
    inside = [link.path for link in links(card) if link.path.startswith(hub.address)]
    assert not [link for link in links(card) if link.local] and len(inside) > 3
    for path in inside:
        _, _, kind, branch, *name = path.removeprefix(f"{hub.address}/").split("/")
        assert branch == "main" and kind == ("resolve" if path.endswith(".png") else "blob") and "/".join(name) in files


def test_again_with_a_version_and_for_everybody(
    hub: Hub, fast_checks: None, copy_bundle: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = copy_bundle("abdominal_ct_ddmr")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    for version in ("0.1.0", "0.1.0-rc.1"):
        call(monkeypatch, str(root), "--repo", "clinic/ddmr", "--version", version, "--noprivate")
    repository = hub.repositories["clinic/ddmr"]
    assert not repository["private"] and repository["tags"] == ["0.1.0", "0.1.0-rc.1"]


def refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Ask for a publication that fails; the one line that says why, in which the token does not stand."""
    with pytest.raises(SystemExit) as stop:
        call(monkeypatch, *arguments)
    error = capsys.readouterr().err
    assert stop.value.code == 1 and error.count("\n") == 1 and TOKEN not in error
    return error


def test_a_version_is_published_once(
    hub: Hub,
    fast_checks: None,
    copy_bundle: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = [str(copy_bundle("abdominal_ct_ddmr")), "--repo", "clinic/ddmr", "--token", TOKEN]
    call(monkeypatch, *arguments)
    capsys.readouterr()
    hub.requests.clear()
    error = refused(monkeypatch, capsys, *arguments)
    assert "has the version 0.1.0 already; raise the version in configs/metadata.json" in error
    assert hub.requests == ["GET /api/models/clinic/ddmr/refs"]


def test_mistakes_are_one_line_and_nothing_is_sent(
    hub: Hub,
    fast_checks: None,
    copy_bundle: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    root, find = copy_bundle("abdominal_ct_ddmr"), importlib.util.find_spec
    red = copy_bundle("prostate_mr_trus_sdm")
    (red / "LICENSE").write_text("none\n", encoding="utf-8")
    for bundle, repo, message in (
        (root, "ddmr", "organisation/name"),
        (root / "none", "clinic/ddmr", "is not a bundle"),
        (red, "clinic/ddmr", "these checks failed: licences"),
    ):
        assert message in refused(monkeypatch, capsys, str(bundle), "--repo", repo, "--token", TOKEN)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "huggingface_hub" else find(name))
    with pytest.raises(SystemExit):
        call(monkeypatch, str(root), "--repo", "clinic/ddmr")
    assert "pip install huggingface_hub" in capsys.readouterr().err
    # Whether the version is new was looked up once; nothing else was asked for, and nothing sent.
    assert hub.requests == ["GET /api/models/clinic/ddmr/refs"]


def test_a_refusal_of_the_hub_is_one_line_without_the_token(
    hub: Hub,
    fast_checks: None,
    copy_bundle: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    root = copy_bundle("abdominal_ct_ddmr")
    error = refused(monkeypatch, capsys, str(root), "--repo", "clinic/ddmr", "--token", f"{TOKEN}wrong")
    assert error.startswith("error: clinic/ddmr") and "401" in error and hub.repositories == {}
