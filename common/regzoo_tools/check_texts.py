"""Checks of what a bundle says about itself."""

from __future__ import annotations

import re

from regzoo_tools.bundle import Bundle, CheckError
from regzoo_tools.documents import links as links_of

#: The sections of a README in the zoo.
SECTIONS = (
    *("Model Overview", "Data", "Training configuration", "Input", "Output", "Performance"),
    *("MONAI Bundle Commands", "References", "License"),
)


def headings(text: str) -> list[str]:
    """The headings of a Markdown page, without code and emphasis."""
    text = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    return [heading.strip("* ") for heading in re.findall(r"^#{1,6}\s+(.+?)\s*$", text, flags=re.MULTILINE)]


def readme_sections(bundle: Bundle) -> str:
    """``docs/README.md`` has the sections of the zoo's READMEs."""
    found = headings(bundle.path("docs/README.md").read_text(encoding="utf-8"))
    missing = [name for name in SECTIONS if name.lower() not in {heading.lower() for heading in found}]
    if missing:
        raise CheckError(f"docs/README.md has no heading {', '.join(missing)}")
    return ", ".join(SECTIONS)


def links(bundle: Bundle) -> str:
    """Links of the bundle's pages to files lead somewhere."""
    count, dangling = 0, []
    for page in bundle.files(".md"):
        for link in links_of(page.read_text(encoding="utf-8")):
            if link.local:
                count += 1
                if not (page.parent / link.path).exists():
                    dangling.append(f"{page.relative_to(bundle.root).as_posix()} → {link.path}")
    if dangling:
        raise CheckError(f"no such file: {', '.join(dangling)}")
    return f"{count} links to files"
