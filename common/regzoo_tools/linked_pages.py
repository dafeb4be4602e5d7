"""Copies a bundle's pages with the project's pages that they link to; other links become plain text."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

from regzoo.errors import bad_file
from regzoo_tools.documents import Link, rewrite

#: Folders of the project whose pages and pictures may come along.
SOURCES = ("docs", "benchmarks/results")
PICTURES = {".png", ".jpg", ".jpeg", ".gif", ".svg"}


class Pages:
    """Copies pages from one place to another together with what they link to.

    Args:
        root: the bundle, as it lies in the project; absolute.
        target: the bundle's copy; its ``docs/`` is there already.
    """

    def __init__(self, root: Path, target: Path) -> None:
        self.root, self.target = root, target
        self.project = self.root.parent.parent
        self.places = {path: target / path.relative_to(root) for path in root.glob("docs/**/*.md")}
        self.todo = list(self.places)

    def copy(self) -> None:
        """Rewrite the bundle's own pages and bring along the others, one after another."""
        while self.todo:
            page = self.todo.pop(0)
            place = self.places[page]
            place.parent.mkdir(parents=True, exist_ok=True)
            text = rewrite(page.read_text(encoding="utf-8"), partial(self.link, page))
            place.write_text(text, encoding="utf-8", newline="\n")

    def link(self, page: Path, link: Link) -> str:
        """What becomes of a link in a page."""
        goal = Path(os.path.normpath(page.parent / link.path))
        if not goal.exists():
            raise bad_file(page, f"links to {link.path}, which is not there", "correct the link")
        place = self.place(goal)
        if place is None:
            return link.text
        path = Path(os.path.relpath(place, self.places[page].parent)).as_posix()
        return str(replace(link, path=path))

    def place(self, goal: Path) -> Path | None:
        """Where a file that is linked to lies in the copy; None if it stays behind."""
        if goal in self.places:
            return self.places[goal]
        if goal.is_relative_to(self.root):
            inside = self.target / goal.relative_to(self.root)
            return inside if inside.exists() else None
        picture = goal.suffix.lower() in PICTURES
        if not (picture or goal.suffix == ".md") or not self.travels(goal):
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

    def travels(self, goal: Path) -> bool:
        """Whether a file outside the bundle may come along."""
        return any(goal.is_relative_to(self.project / source) for source in SOURCES)


def copy_pages(root: Path, target: Path) -> None:
    """Give the copy of a bundle pages whose links stay inside it.

    Args:
        root: the bundle, as it lies in the project.
        target: the bundle's copy; its ``docs/`` is there already.

    Raises:
        RegZooError: a page links to nothing.
    """
    Pages(root, target).copy()
