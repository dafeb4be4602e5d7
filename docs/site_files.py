"""Hooks of MkDocs: add the pages that lie outside ``docs/``, and one reference page for each package or module.

A page has the path on the site that it has in the repository, without ``docs/`` in front. Links to files that are not
on the site become plain text.
"""

from __future__ import annotations

import os
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from regzoo_tools.linked_pages import Link, rewrite

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
#: Pages, pictures and texts of the repository that belong on the site.
OUTSIDE = (
    *("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "benchmarks/results/*.md"),
    *("bundles/*/docs/*.md", "bundles/*/docs/*.txt", "bundles/*/docs/images/*"),
)


def outside_pages() -> list[str]:
    """The paths of the files outside ``docs/``, in the repository and on the site alike."""
    return sorted(path.relative_to(ROOT).as_posix() for pattern in OUTSIDE for path in ROOT.glob(pattern))


def reference_pages() -> dict[str, str]:
    """The text of each reference page, by its path on the site; every room and every other package has one."""
    common = ROOT / "common"
    paths = [*(common / "regzoo").glob("*/__init__.py"), *(common / "regzoo").glob("[!_]*.py")]
    paths += [common / package / "__init__.py" for package in ("regzoo_phantoms", "regzoo_tools")]
    names = [path.relative_to(common).with_suffix("").as_posix().removesuffix("/__init__") for path in paths]
    pages = {}
    for name in (path.replace("/", ".") for path in sorted(names)):
        pages[f"reference/{name}.md"] = f"# {name}\n\n::: {name}\n    options:\n      show_root_heading: false\n"
    return pages


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Replace each entry of the navigation that holds ``*`` by the pages it stands for, in alphabetical order."""
    found = [*outside_pages(), *reference_pages()]

    def expand(entry: Any) -> Any:
        if isinstance(entry, dict):
            return {title: expand(content) for title, content in entry.items()}
        if isinstance(entry, list):
            return [expand(item) for item in entry]
        if "*" not in entry:
            return entry
        pages = [PurePosixPath(page) for page in found if fnmatch(page, entry) and page.endswith(".md")]
        titles = [page.parts[1] if page.stem == "README" else page.stem for page in pages]
        return [{title: str(page)} for title, page in zip(titles, pages, strict=True)]

    config.nav = expand(config.nav)
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the files outside ``docs/`` and the reference pages."""
    from mkdocs.structure.files import File

    for path in outside_pages():
        files.append(File.generated(config, path, abs_src_path=str(ROOT / path)))
    for path, text in reference_pages().items():
        files.append(File.generated(config, path, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn the links of a page from paths in the repository into paths on the site."""
    here = page.file.src_uri
    inside = (ROOT / "docs" / here).exists()
    source = ROOT / "docs" / here if inside else ROOT / here

    def change(link: Link) -> str:
        goal = Path(os.path.normpath(source.parent / link.path))
        if not goal.exists():
            return str(link)  # MkDocs reports it
        place = goal.relative_to(ROOT).as_posix().removeprefix("docs/")
        if files.get_file_from_path(place) is None:
            return link.text
        return str(replace(link, path=os.path.relpath(place, Path(here).parent)))

    return rewrite(markdown, change)
