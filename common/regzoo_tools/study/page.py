"""The HTML of a study's report: one file that needs no network, and that prints."""

from __future__ import annotations

import base64
from collections.abc import Collection, Mapping, Sequence
from html import escape

_STYLE = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { font: 15px/1.5 system-ui, "Segoe UI", "Helvetica Neue", Arial, sans-serif; color: #1f2933; background: #fff;
  max-width: 1100px; margin: 2rem auto; padding: 0 1.2rem; }
h1 { font-size: 1.7rem; margin: 0 0 .3rem; }
h2 { font-size: 1.25rem; margin: 2.2rem 0 .5rem; padding-top: .6rem; border-top: 2px solid #1f2933; }
h3 { font-size: 1.02rem; margin: 1.5rem 0 .3rem; }
p { margin: .3rem 0 .6rem; max-width: 75ch; }
p.quiet, figcaption, small { color: #52606d; }
p.notice { border-left: 4px solid #d97706; padding: .3rem .8rem; background: #fff8eb; }
nav a { color: #0b5cad; margin-right: 1rem; white-space: nowrap; }
div.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .86rem; font-variant-numeric: tabular-nums; margin: .4rem 0 1rem; }
th, td { padding: .28rem .6rem; text-align: right; border-bottom: 1px solid #e4e7eb; vertical-align: top;
  white-space: nowrap; }
th { border-bottom: 1.5px solid #7b8794; font-weight: 600; vertical-align: bottom; }
td.text, th.text { text-align: left; white-space: normal; min-width: 8rem; max-width: 26rem; }
td small { display: block; font-size: .9em; }
td.marked { background: #e3f2e6; font-weight: 600; }
figure { margin: .5rem 0 1rem; display: inline-block; vertical-align: top; }
figure img { max-width: 100%; height: auto; }
figcaption { font-size: .86rem; max-width: 75ch; }
@page { size: A4; margin: 14mm 12mm; }
@media print {
  body { font-size: 9.5pt; margin: 0; max-width: none; padding: 0; }
  nav { display: none; }
  div.wide { overflow: visible; }
  table { font-size: 7.4pt; }
  th, td { padding: .15rem .32rem; }
  thead { display: table-header-group; }
  tr, figure { break-inside: avoid; }
  h2, h3 { break-after: avoid; }
  td.marked, p.notice { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
}
"""

#: A cell of a table; the second of two texts is set smaller below the first.
Cell = str | int | tuple[str, str]


def page(title: str, top: str, sections: Mapping[str, str]) -> str:
    """A page with a heading, and a section for each heading → HTML; empty sections are left out."""
    shown = {heading: html for heading, html in sections.items() if html}
    links = "".join(f'<a href="#s{i}">{escape(heading)}</a> ' for i, heading in enumerate(shown))
    body = "".join(f'<h2 id="s{i}">{escape(heading)}</h2>\n{html}\n' for i, (heading, html) in enumerate(shown.items()))
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>{escape(title)}</title>\n'
        f"<style>{_STYLE}</style>\n</head>\n<body>\n<h1>{escape(title)}</h1>\n{top}\n<nav>{links}</nav>\n{body}"
        "</body>\n</html>\n"
    )


def paragraph(text: str, kind: str = "") -> str:
    """A paragraph; `kind` is empty, ``quiet`` or ``notice``."""
    return f"<p{_class(kind)}>{escape(text)}</p>\n"


def subheading(text: str) -> str:
    """A heading within a section."""
    return f"<h3>{escape(text)}</h3>\n"


def table(rows: Sequence[Mapping[str, Cell]], texts: int = 1, marked: Collection[tuple[int, str]] = ()) -> str:
    """A table; empty without rows.

    Args:
        rows: column → cell, the same columns for all.
        texts: the number of columns of words, at the left.
        marked: the cells that are marked, by row and column.
    """
    if not rows:
        return ""
    kinds = {name: "text" if i < texts else "" for i, name in enumerate(rows[0])}
    head = "".join(f"<th{_class(kind)}>{escape(name)}</th>" for name, kind in kinds.items())
    body = ""
    for number, row in enumerate(rows):
        body += "<tr>"
        for name, kind in kinds.items():
            cell = row[name]
            main, below = cell if isinstance(cell, tuple) else (str(cell), "")
            if not kind:
                main, below = main.replace("-", "−"), below.replace("-", "−")
            small = f"<small>{escape(below)}</small>" if below else ""
            body += f"<td{_class(kind, 'marked' if (number, name) in marked else '')}>{escape(main)}{small}</td>"
        body += "</tr>\n"
    return f'<div class="wide"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody>\n</table></div>\n'


def image(content: bytes, kind: str, description: str, caption: str = "") -> str:
    """A figure held by the page itself; `kind` is ``svg+xml`` or ``png``."""
    data = base64.b64encode(content).decode()
    below = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return f'<figure><img alt="{escape(description)}" src="data:image/{kind};base64,{data}">{below}</figure>\n'


def _class(*kinds: str) -> str:
    given = " ".join(kind for kind in kinds if kind)
    return f' class="{given}"' if given else ""
