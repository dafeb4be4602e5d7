"""The files around the package agree with it and with each other."""

from __future__ import annotations

import importlib
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import regzoo
import yaml
from packaging.requirements import Requirement

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    """The file pyproject.toml."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_the_package_states_its_version_once(project: dict[str, Any]) -> None:
    from setuptools.config.pyprojecttoml import read_configuration

    assert "version" not in project["project"]
    assert read_configuration(ROOT / "pyproject.toml")["project"]["version"] == regzoo.__version__


def test_every_bundle_asks_for_this_version() -> None:
    for metadata in ROOT.glob("bundles/*/configs/metadata.json"):
        required = json.loads(metadata.read_text(encoding="utf-8"))["required_packages_version"]
        assert required["regzoo"] == regzoo.__version__, metadata


def test_the_citation_names_the_papers_of_the_bundles() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    papers = set()
    for metadata in ROOT.glob("bundles/*/configs/metadata.json"):
        references = json.loads(metadata.read_text(encoding="utf-8"))["references"]
        papers |= {doi for reference in references for doi in re.findall(r"doi\.org/(\S+)", reference)}
    assert {reference["doi"] for reference in citation["references"]} == papers


def test_the_lowest_versions_are_those_of_the_ranges(project: dict[str, Any]) -> None:
    """`make lowest` installs for each requirement the version that its range begins with."""
    lines = (ROOT / "constraints-lowest.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if "==" in line)
    extras = project["project"]["optional-dependencies"]
    required = [*project["project"]["dependencies"]]
    for extra in ("export", "tracking", "zoo", "docs", "dev"):
        required += [line for line in extras[extra] if not line.startswith("regzoo[")]
    lowest = {}
    for requirement in map(Requirement, required):
        (bound,) = (part.version for part in requirement.specifier if part.operator == ">=")
        lowest[requirement.name] = bound
    assert {name: pins.get(name) for name in lowest} == lowest


def test_the_hosted_checks_run_targets_that_exist(project: dict[str, Any]) -> None:
    workflow = (ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8")
    jobs = yaml.safe_load(workflow)["jobs"]
    runs = [step["run"] for job in jobs.values() for step in job["steps"] if "run" in step]
    named = {word for run in runs for word in re.findall(r"make ([a-z -]+)", run)}
    targets = {target for words in named for target in words.split()} | set(
        jobs["environments"]["strategy"]["matrix"]["target"]
    )
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert targets <= set(re.findall(r"^([a-z-]+):", makefile, flags=re.MULTILINE))
    # What continuous integration of this repository runs is run there, too.
    assert set(re.findall(r"^make (\S+)", (ROOT / ".ci/run").read_text(), flags=re.MULTILINE)) <= targets
    pythons = {row["python"] for row in jobs["test"]["strategy"]["matrix"]["include"]}
    assert project["project"]["requires-python"] == f">={min(pythons, key=lambda text: int(text.split('.')[1]))}"


def test_the_menu_of_the_site_names_every_page() -> None:
    menu = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").splitlines()
    for page in ROOT.glob("docs/*.md"):
        assert any(line.endswith(f": {page.name}") for line in menu), page


def test_the_picture_of_the_architecture_shows_every_room() -> None:
    picture = (ROOT / "docs/images/architecture.svg").read_text(encoding="utf-8")
    page = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    package = ROOT / "common/regzoo"
    rooms = {path.parent.name for path in package.glob("*/__init__.py")} | {
        path.stem for path in package.glob("[!_]*.py")
    }
    words = set(re.findall(r"\w+", picture))
    assert rooms <= words, rooms - words
    assert rooms <= set(re.findall(r"`(\w+)`", page)), rooms
    assert {
        path.name
        for path in (ROOT / "common").glob("regzoo*")
        if path.is_dir() and not path.is_symlink() and "egg" not in path.name
    } <= words


PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "CHANGELOG.md"], ids=lambda page: page.name)
def test_pages_name_files_and_objects_that_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for path in re.findall(r"\b((?:common|benchmarks|tests|docs|bundles|\.github)/[\w./-]*\w)", text):
        if "/output/" not in path:
            assert (ROOT / path).exists() or list(ROOT.glob(f"bundles/*/{path}")), path
    for path in re.findall(r"`(configs/[\w/]+\.json)", text):
        assert list(ROOT.glob(f"bundles/*/{path}")), path
    for path in re.findall(r"`(\w+/\w+\.py)", text):
        assert list(ROOT.glob(f"common/**/{path}")), path
    for name in set(re.findall(r"\bregzoo(?:_tools|_phantoms)?(?:\.[A-Za-z]\w*)+", text)):
        found, *parts = name.split(".")
        thing: Any = importlib.import_module(found)
        for part in parts:
            if not hasattr(thing, part):
                if "monai_label" in name:
                    pytest.importorskip("monailabel")
                importlib.import_module(f"{thing.__name__}.{part}")
            thing = getattr(thing, part)
