"""Links in Markdown pages, and copies of a bundle's pages together with the project's pages that they link to."""

from __future__ import annotations

import logging
import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from urllib.parse import quote, unquote

from regzoo.datasets.text import read_text
from regzoo.errors import bad_file

logger = logging.getLogger(__name__)

#: Folders of the project whose pages and pictures may be copied.
SOURCES = ("docs", "benchmarks/results")
PICTURES = {".png", ".jpg", ".jpeg", ".gif", ".svg"}
#: Code comes first, so that links inside it are left alone.
_CODE_OR_LINK = re.compile(
    r"```.*?```|~~~.*?~~~|`[^`\n]*`"
    r"|(!?)\[([^\[\]]*)\]\(\s*(?:<([^<>\n]+)>|([^()<>\s]+))(\s+(?:\"[^\"]*\"|'[^']*'))?\s*\)",
    flags=re.DOTALL,
)

#: Characters that need no encoding in the path of a link.
SAFE = "/:@!$&*+,;=~-._"


@dataclass(frozen=True)
class Link:
    """A link ``[text](path#anchor "title")``, or an image if it begins with an exclamation mark.

    The path is decoded: ``%20`` is a blank. The title includes the blank before it and its quotation marks.
    """

    image: bool
    text: str
    path: str
    anchor: str = ""
    title: str = ""

    def __str__(self) -> str:
        return f"{'!' if self.image else ''}[{self.text}]({quote(self.path, safe=SAFE)}{self.anchor}{self.title})"

    @property
    def local(self) -> bool:
        """Whether it leads to a file, and not to the web or to a place on the same page."""
        return bool(self.path) and not re.match(r"[a-z][a-z0-9+.-]*:|/", self.path, flags=re.IGNORECASE)


def _link(match: re.Match[str]) -> Link:
    path, hash_, anchor = (match[3] or match[4]).partition("#")
    return Link(bool(match[1]), match[2], unquote(path), hash_ + anchor, match[5] or "")


def links(text: str) -> Iterator[Link]:
    """The links of a page, in order."""
    return (_link(match) for match in _CODE_OR_LINK.finditer(text) if match[3] or match[4])


def rewrite(text: str, change: Callable[[Link], str]) -> str:
    """A page in which `change` has replaced every link to a file."""

    def replaced(match: re.Match[str]) -> str:
        return change(_link(match)) if (match[3] or match[4]) and _link(match).local else match[0]

    return _CODE_OR_LINK.sub(replaced, text)


class Pages:
    """Copies pages together with the pages and pictures that they link to.

    Args:
        root: the bundle in the project; absolute.
        target: the bundle's copy, in which ``docs/`` exists already.

    Raises:
        RegZooError: while it copies, if a page links to a file of the bundle that does not exist.
    """

    def __init__(self, root: Path, target: Path) -> None:
        self.root, self.target = root, target
        self.project = self.root.parent.parent
        self.places = {path: target / path.relative_to(root) for path in root.glob("docs/**/*.md")}
        self.todo = list(self.places)
        self.missing: list[str] = []

    def copy(self) -> None:
        """Rewrite the bundle's own pages, then the pages that they link to; warns of those that are not there."""
        for page in self.todo:  # which grows meanwhile
            place = self.places[page]
            place.parent.mkdir(parents=True, exist_ok=True)
            text = rewrite(read_text(page).replace("\r\n", "\n"), partial(self.link, page))
            place.write_text(text, encoding="utf-8", newline="\n")
        if self.missing:  # a bundle that was copied or installed has no project around it
            some = f"{len(self.missing)}, such as {self.missing[0]}"
            problem = f"its links to missing files outside it ({some}) become plain text"
            fix = "to include the files, package it in the folder bundles of a checkout"
            logger.warning("%s", bad_file(self.root, problem, fix))

    def link(self, page: Path, link: Link) -> str:
        """A link as the copied page writes it; only its text if the file is not copied."""
        goal = Path(os.path.normpath(page.parent / link.path))
        if not goal.exists():
            places = [self.root, *filter(Path.is_dir, (self.project / source for source in SOURCES))]
            if any(goal.is_relative_to(place) for place in places):
                raise bad_file(page, f"links to {link.path}, which does not exist", "correct the link")
            self.missing.append(link.path)
            return link.text
        place = self.place(goal)
        if place is None:
            return link.text
        path = Path(os.path.relpath(place, self.places[page].parent)).as_posix()
        return str(replace(link, path=path))

    def place(self, goal: Path) -> Path | None:
        """The place of a linked file in the copy; None if it is not copied."""
        if goal in self.places:
            return self.places[goal]
        if goal.is_relative_to(self.root):
            inside = self.target / goal.relative_to(self.root)
            return inside if inside.exists() else None
        picture = goal.suffix.lower() in PICTURES
        of_project = any(goal.is_relative_to(self.project / source) for source in SOURCES)
        if not of_project or not (picture or goal.suffix == ".md"):
            return None
        place = self.target / "docs" / ("images" if picture else "") / goal.name
        if place.exists() or place in self.places.values():
            place = place.with_name(f"{goal.parent.name}_{goal.name}")
        self.places[goal] = place
        if picture:
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(goal, place)
        else:
            self.todo.append(goal)
        return place
