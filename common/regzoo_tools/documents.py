"""Links in Markdown pages: finding and rewriting them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from urllib.parse import quote, unquote

#: Code first, so that what looks like a link in it is left alone.
_CODE_OR_LINK = re.compile(
    r"```.*?```|~~~.*?~~~|`[^`\n]*`"
    r"|(!?)\[([^\[\]]*)\]\(\s*(?:<([^<>\n]+)>|([^()<>\s]+))(\s+(?:\"[^\"]*\"|'[^']*'))?\s*\)",
    flags=re.DOTALL,
)


#: What need not be encoded in the path of a link.
SAFE = "/:@!$&*+,;=~-._"


@dataclass(frozen=True)
class Link:
    """A link ``[text](path#anchor "title")``, or an image if it begins with an exclamation mark.

    The path is that of the file: what a page writes as ``%20`` is a blank. The title holds the blank before it and its
    quotation marks.
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
        """It leads to a file, not to a place on the web or on the same page."""
        return bool(self.path) and not re.match(r"[a-z][a-z0-9+.-]*:|/", self.path, flags=re.IGNORECASE)


def _link(match: re.Match[str]) -> Link:
    path, hash_, anchor = (match[3] or match[4]).partition("#")
    return Link(bool(match[1]), match[2], unquote(path), hash_ + anchor, match[5] or "")


def links(text: str) -> Iterator[Link]:
    """The links of a page, in order."""
    return (_link(match) for match in _CODE_OR_LINK.finditer(text) if match[3] or match[4])


def rewrite(text: str, change: Callable[[Link], str]) -> str:
    """A page with every link to a file replaced by what `change` makes of it."""

    def replaced(match: re.Match[str]) -> str:
        return change(_link(match)) if (match[3] or match[4]) and _link(match).local else match[0]

    return _CODE_OR_LINK.sub(replaced, text)
