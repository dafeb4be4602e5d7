"""`regzoo package`: the same zip from any clone, with what a machine without the package needs and nothing else."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import regzoo
from bundle_list import BUNDLES, NAMES
from monai.bundle import ConfigParser, download_large_files
from regzoo import cli
from regzoo.errors import RegZooError
from regzoo_tools.linked_pages import Link, Pages, links, rewrite
from regzoo_tools.packing import package
from regzoo_tools.verification import CHECKS, OK, verify
from zip_only import environment

OF_FILES = list(CHECKS)[: list(CHECKS).index("network in and out")]
Copy = Callable[..., Path]


def unpack(file: Path, folder: Path) -> Path:
    """The bundle in a zip."""
    with zipfile.ZipFile(file) as archive:
        archive.extractall(folder)
    (bundle,) = folder.iterdir()
    return bundle


@pytest.fixture
def unpacked(copy_bundle: Copy, tmp_path: Path) -> Path:
    return unpack(package(copy_bundle("abdominal_ct_ddmr"), tmp_path / "bundle.zip"), tmp_path / "elsewhere")


def clone(copy_bundle: Copy, project: str, mode: int, time: int, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A bundle and this package in a folder of their own, with other permissions, times and leftovers."""
    root = copy_bundle("abdominal_ct_ddmr", project)
    code = root.parents[1] / "common" / "regzoo"
    shutil.copytree(Path(regzoo.__file__).parent, code, ignore=shutil.ignore_patterns("__pycache__"))
    for leftover in (root / "output/train/model.pt", root / "models/other.pt", code / "__pycache__/x.pyc"):
        leftover.parent.mkdir(parents=True, exist_ok=True)
        leftover.write_text(project, encoding="utf-8")
    for path in [*root.rglob("*"), *code.rglob("*")]:
        if path.is_file():
            path.chmod(mode)
        os.utime(path, (time, time))
    monkeypatch.setattr(regzoo, "__file__", str(code / "__init__.py"))
    return root


def test_two_clones_give_the_same_bytes(copy_bundle: Copy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digests, mask = set(), os.umask(0o022)
    try:
        for project, mode, time, umask in (("a", 0o644, 1_600_000_000, 0o022), ("b", 0o600, 1_700_000_001, 0o077)):
            os.umask(umask)
            with monkeypatch.context() as patch:
                root = clone(copy_bundle, project, mode, time, patch)
                file = package(root, tmp_path / f"{project}.zip")
            digests.add(hashlib.sha256(file.read_bytes()).hexdigest())
    finally:
        os.umask(mask)
    assert len(digests) == 1
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        assert not [name for name in archive.namelist() if re.search(r"pycache|/output/|other\.pt|/data/", name)]
        assert archive.namelist() == sorted(archive.namelist())


@pytest.mark.parametrize("name", NAMES)
def test_what_is_inside(name: str, tmp_path: Path) -> None:
    file = package(name, tmp_path / "bundle.zip")
    assert file.stat().st_size <= 25e6
    bundle = unpack(file, tmp_path / "elsewhere")
    assert bundle.name == name
    home = Path(regzoo.__file__).parent
    code = {path.relative_to(home) for path in home.rglob("*.py")} | {Path("py.typed")}
    assert code <= {path.relative_to(bundle / "regzoo") for path in (bundle / "regzoo").rglob("*")}
    packages = json.loads((bundle / "configs/metadata.json").read_text(encoding="utf-8"))["required_packages_version"]
    assert "regzoo" not in packages and "itk" in packages
    assert (bundle / "models/model.pt").read_bytes() == (Path("bundles") / name / "models/model.pt").read_bytes()
    # What looks at the files alone; the whole of it runs from the zip in an environment of its own. The code is
    # the same in each zip: its style is checked once.
    checks = [check for check in OF_FILES if check != "Python style" or name == NAMES[0]]
    assert [row for row in verify(bundle, checks) if row.result != OK] == []


def test_packing_what_was_unpacked_gives_the_same_zip(unpacked: Path, tmp_path: Path) -> None:
    again = package(unpacked, tmp_path / "again.zip")
    assert again.read_bytes() == (tmp_path / "bundle.zip").read_bytes()


@pytest.mark.parametrize("change", [Path.unlink, lambda path: path.write_text("# edited\n", encoding="utf-8")])
def test_another_package_inside_is_not_replaced(
    change: Callable[[Path], object], unpacked: Path, tmp_path: Path
) -> None:
    change(unpacked / "regzoo/filters.py")
    with pytest.raises(RegZooError, match=r"1 files differ: filters\.py.*run python -m regzoo"):
        package(unpacked, tmp_path / "again.zip")
    assert not (tmp_path / "again.zip").exists()


def test_configurations_find_the_package_before_they_use_it(unpacked: Path) -> None:
    for path in sorted((unpacked / "configs").rglob("*.json")):
        config = json.loads(path.read_text(encoding="utf-8"))
        if "initialize" in config:
            assert config["initialize"][:2] == [
                "$sys.path.insert(0, os.path.abspath(@bundle_root))",
                "$import regzoo",
            ], path
        if path.stem in ("train", "inference"):
            assert {"$import os", "$import sys", "$import regzoo"} <= set(config["imports"])
    parser = ConfigParser()
    parser.read_config(str(unpacked / "configs/inference.json"))
    parser["bundle_root"] = str(unpacked)
    before = list(sys.path)
    try:
        parser.get_parsed_content("initialize::0")
        assert sys.path[0] == str(unpacked)
    finally:
        sys.path[:] = before


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_a_zip_alone_says_what_it_lacks(unpacked: Path, tmp_path: Path) -> None:
    """It holds neither phantoms nor the tools of a release: a line says so, and nothing is written."""
    assert not [path for path in unpacked.rglob("*") if path.name.startswith("regzoo_")]
    before = files(unpacked)
    variables = environment(tmp_path / "site", PYTHONDONTWRITEBYTECODE="1")

    def refused(*arguments: str) -> str:
        command = [sys.executable, "-m", *arguments]
        done = subprocess.run(command, cwd=unpacked, env=variables, text=True, capture_output=True, check=False)
        assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
        (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        return line

    for command in (
        ["verify", "."],
        ["export", ".", "--format", "onnx"],
        ["phantom", "brain", str(tmp_path / "set")],
        ["check", str(tmp_path)],
    ):
        line = refused("regzoo", *command)
        assert line.startswith(f"error: regzoo {command[0]}: is not part of a packaged bundle; install regzoo"), line
    line = refused("monai.bundle", "run", "training", "--config_file", "configs/train.json")
    assert "no data set was named" in line and "name one as dataset_dir" in line
    assert files(unpacked) == before and not (tmp_path / "set").exists()


def test_pages_come_along_and_their_links_stay_inside(unpacked: Path) -> None:
    pages = {path.name for path in (unpacked / "docs").glob("*.md")}
    assert {"README.md", "data.md", "conventions.md", "phantoms.md", "studies.md"} <= pages
    assert (unpacked / "docs/images/ddmr_case.png").is_file()
    count = 0
    for page in unpacked.rglob("*.md"):
        for link in links(page.read_text(encoding="utf-8")):
            if link.local:
                target = (page.parent / link.path).resolve()
                assert target.is_file() and target.is_relative_to(unpacked.resolve()), (page, link)
                count += 1
    assert count > 8


def test_links_to_what_stays_behind_become_text(copy_bundle: Copy, tmp_path: Path) -> None:
    root = copy_bundle("prostate_mr_trus_conditional_seg", weights=False)
    (root / "models").mkdir()
    (root / "models/model.pt").touch()
    assert "](../../prostate_mr_trus_weak_ddf/" in (root / "docs/README.md").read_text(encoding="utf-8")
    page = unpack(package(root, tmp_path / "bundle.zip"), tmp_path / "elsewhere") / "docs/README.md"
    text = page.read_text(encoding="utf-8")
    assert "`prostate_mr_trus_weak_ddf`" in text and "](../../" not in text
    (root / "docs/README.md").write_text("[gone](gone.md)\n", encoding="utf-8")
    with pytest.raises(RegZooError, match=r"README\.md: links to gone\.md, which does not exist; correct the link"):
        package(root, tmp_path / "bundle.zip")
    # A page of the project is wrong, too, where the project's other pages are.
    (root / "docs/README.md").write_text("[gone](../../../docs/gone.md)\n", encoding="utf-8")
    with pytest.raises(RegZooError, match=r"links to \.\./\.\./\.\./docs/gone\.md, which does not exist; correct"):
        package(root, tmp_path / "bundle.zip")


def test_a_bundle_that_was_copied_out_of_the_project(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As docs/monai_label.md copies it: the project's pages are not there, but its own come along."""
    root = tmp_path / "app" / "prostate_mr_trus_weak_ddf"
    shutil.copytree(BUNDLES[0].parent / root.name, root, ignore=shutil.ignore_patterns("models", "output", "data"))
    (root / "models").mkdir()
    (root / "models/model.pt").touch()
    outside = (root / "docs/README.md").read_text(encoding="utf-8").count("](../../../")
    docs = unpack(package(root, tmp_path / "bundle.zip"), tmp_path / "elsewhere") / "docs"
    text = (docs / "README.md").read_text(encoding="utf-8")
    assert "](../../" not in text and "](images/" in text and list(docs.glob("*.md")) == [docs / "README.md"]
    (warning,) = (record.getMessage() for record in caplog.records)
    assert warning.startswith(f"{root}: its links to missing files outside it ({outside}, such as ../../../docs/")


def test_rewriting_leaves_code_and_the_web_alone() -> None:
    text = "[a](b.md#c) ![d](e.png) `[f](g.md)` [h](https://x.org) [i](#j)\n```\n[k](l.md)\n```\n[m](n.md)\n"
    assert list(links("[a](b.md#c)")) == [Link(False, "a", "b.md", "#c")]
    changed = rewrite(text, lambda link: f"<{link.path}{link.anchor}>")
    assert changed == "<b.md#c> <e.png> `[f](g.md)` [h](https://x.org) [i](#j)\n```\n[k](l.md)\n```\n<n.md>\n"
    assert rewrite(text, str) == text


def test_titles_and_encoded_paths() -> None:
    text = """[a](my%20page.md#b "What it is") ![c]( <two words.png> ) [d](e.md 'f')"""
    assert list(links(text)) == [
        Link(False, "a", "my page.md", "#b", ' "What it is"'),
        Link(True, "c", "two words.png"),
        Link(False, "d", "e.md", "", " 'f'"),
    ]
    expected = """[a](my%20page.md#b "What it is") ![c](two%20words.png) [d](e.md 'f')"""
    assert rewrite(text, str) == expected and list(links(expected)) == list(links(text))


def test_a_bundle_at_the_top_of_the_file_system(tmp_path: Path) -> None:
    pages = Pages(Path("/prostate_mr_trus_x"), tmp_path)
    assert pages.project == Path("/") and pages.place(Path("/etc/page.md")) is None


def test_weights_that_are_to_be_fetched(copy_bundle: Copy, tmp_path: Path) -> None:
    root, folder = copy_bundle("abdominal_ct_ddmr"), tmp_path / "served"
    folder.mkdir()
    shutil.copy(root / "models/model.pt", folder / "weights.pt")

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            """Nothing on the console."""

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/weights.pt"
        bundle = unpack(package(root, tmp_path / "bundle.zip", large_files=url), tmp_path / "elsewhere")
        assert not (bundle / "models").exists()
        metadata = json.loads((bundle / "configs/metadata.json").read_text(encoding="utf-8"))
        assert "pyyaml" in metadata["required_packages_version"]  # MONAI needs it to read this:
        assert [path.name for path in bundle.glob("large_files*")] == ["large_files.yml"]
        rows = verify(bundle, ["required files", "file sizes", "JSON format", "weights"])
        assert [row.result for row in rows] == ["ok", "ok", "ok", "skipped"]
        download_large_files(str(bundle))
        assert (bundle / "models/model.pt").read_bytes() == (root / "models/model.pt").read_bytes()
        assert verify(bundle, ["weights"])[0].result == "ok"

        # Another file at that address is not taken for the weights.
        (bundle / "models/model.pt").unlink()
        (folder / "weights.pt").write_bytes(b"something else")
        with pytest.raises(Exception, match="hash check of downloaded file failed"):
            download_large_files(str(bundle))
        server.shutdown()


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("bundle.zip", {"large_files": "models/model.pt"}, "is not an address"),
        ("bundle.zip", {"large_files": 'https://x.org/"'}, "is not an address"),
        ("bundle.tar", {}, "let it end in .zip"),
    ],
)
def test_mistakes_leave_no_zip(
    name: str, options: dict[str, str], message: str, copy_bundle: Copy, tmp_path: Path
) -> None:
    with pytest.raises(RegZooError, match=message):
        package(copy_bundle("abdominal_ct_ddmr"), tmp_path / "out" / name, **options)
    assert list(tmp_path.glob("out/*")) == []


def test_no_weights_and_no_metadata(copy_bundle: Copy, tmp_path: Path) -> None:
    root = copy_bundle("abdominal_ct_ddmr", weights=False)
    with pytest.raises(RegZooError, match=r"model\.pt: no such file; train"):
        package(root, tmp_path / "bundle.zip")
    (root / "large_files.yml").write_text("large_files:\n  - url: https://x.org/model.pt\n", encoding="utf-8")
    with pytest.raises(RegZooError, match=r"large_files\.yml has an entry without a path"):
        package(root, tmp_path / "bundle.zip")
    (root / "configs/metadata.json").unlink()
    with pytest.raises(RegZooError, match=r"metadata\.json: no such file"):
        package(root, tmp_path / "bundle.zip")


@pytest.mark.parametrize("name", ["evaluate", "metadata"])
def test_a_configuration_that_is_no_json(name: str, copy_bundle: Copy, tmp_path: Path) -> None:
    root = copy_bundle("abdominal_ct_ddmr")
    (root / f"configs/{name}.json").write_text('{"a": 1,}')
    with pytest.raises(RegZooError, match=rf"{root}/configs/{name}.json: is not valid JSON"):
        package(root, tmp_path / "bundle.zip")
    assert not (tmp_path / "bundle.zip").exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("configs/train.json", b"[1]", "is not a configuration; write"),
        ("configs/metadata.json", b"[1]", "is not a configuration; write"),
        ("configs/metadata.json", b"{}", "has no version; add it"),
        ("configs/metadata.json", b'{"version": "../1"}', "its version '../1' is not of the form 1.2.3"),
        ("configs/metadata.json", b'{"version": null}', "its version None is not of the form 1.2.3"),
        (
            "configs/metadata.json",
            b'{"version": "0.1.0", "required_packages_version": ["itk"]}',
            'required_packages_version is not an object; write {"package": "version"}',
        ),
        ("docs/README.md", b"\xff\xfe\xfa", "is not UTF-8 text"),
        ("large_files.yml", b"large_files: [{", "large_files.yml cannot be read"),
        ("large_files.yml", b"\xff\xfa", "large_files.yml cannot be read"),
    ],
)
def test_broken_files(
    name: str, content: bytes, message: str, copy_bundle: Copy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The name of the zip is made of the version."""
    root, folder = copy_bundle("abdominal_ct_ddmr"), tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    (root / name).write_bytes(content)
    with pytest.raises(RegZooError, match=re.escape(message)) as error:
        package(root)
    assert str(error.value).startswith(str(root)) and "\n" not in str(error.value)
    assert list(folder.iterdir()) == []


def test_code_of_the_bundle_comes_along(copy_bundle: Copy, tmp_path: Path) -> None:
    root = copy_bundle("abdominal_ct_ddmr")
    for name in ("scripts/net.py", "scripts/__pycache__/net.pyc"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text("x = 1\n", encoding="utf-8")
    with zipfile.ZipFile(package(root, tmp_path / "bundle.zip")) as archive:
        packed = [name for name in archive.namelist() if "/scripts/" in name]
    assert packed == [f"{root.name}/scripts/net.py"]


def test_a_zip_is_not_packed_into_the_next_one(copy_bundle: Copy) -> None:
    root = copy_bundle("abdominal_ct_ddmr")
    with pytest.raises(RegZooError, match=r"docs/bundle\.zip: is among the files to be packed; name a file outside"):
        package(root, root / "docs" / "bundle.zip")
    assert package(root, root / "bundle.zip").is_file()


def test_command(
    copy_bundle: Copy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = copy_bundle("abdominal_ct_ddmr")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["regzoo", "package", str(root)])
    cli.main()
    shown, file = capsys.readouterr().out, tmp_path / "abdominal_ct_ddmr_v0.1.0.zip"
    assert file.name in shown and hashlib.sha256(file.read_bytes()).hexdigest() in shown
