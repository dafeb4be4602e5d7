"""Errors name settings in words that suit all callers: a command line, a configuration and a request to a server."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

REGZOO = Path(__file__).resolve().parents[1] / "common" / "regzoo"
#: Files with options of programs that only a command line starts: torchrun, git, MONAI Label's server, regzoo itself.
FOREIGN = {"cli.py", "engines/distributed.py", "engines/record.py", "monai_label/files.py", "export.py"}
#: The same, but these texts alone.
KNOWN = re.compile(r"\(regzoo register: --\w+\)|gdcmconv --raw")
FILES = [path for path in sorted(REGZOO.rglob("*.py")) if str(path.relative_to(REGZOO)) not in FOREIGN]


def texts(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """The strings of a module, without docstrings, and their lines."""
    said = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in said:
            yield node.lineno, node.value


@pytest.mark.parametrize("file", FILES, ids=lambda path: str(path.relative_to(REGZOO)))
def test_no_text_names_an_option_of_the_command_line(file: Path) -> None:
    found = [
        (line, text)
        for line, text in texts(ast.parse(file.read_text(encoding="utf-8")))
        if re.search(r"--([a-z]|$)", KNOWN.sub("", text))
    ]
    assert not found
