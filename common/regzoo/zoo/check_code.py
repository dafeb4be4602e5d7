"""Checks of the code in a bundle: Python files, and what its configurations evaluate."""

from __future__ import annotations

import ast
import importlib.util
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

from regzoo.zoo.bundle import Bundle, Problem, Skip

#: The zoo's settings of its formatters and linters (``setup.cfg``, ``pyproject.toml`` and ``runtests.sh``).
TOOLS = {
    "isort": ["--check-only", "--profile", "black", "--line-length", "120", "--project", "models"],
    "black": ["--check", "--quiet", "--line-length", "120", "--skip-magic-trailing-comma"],
    "flake8": [
        *("--isolated", "--select", "B,C,E,F,N,P,T4,W,B9", "--max-line-length", "120"),
        *("--ignore", "E203,E501,E741,W503,W504,C408,N812,B023", "--per-file-ignores", "__init__.py:F401"),
    ],
}
#: What an expression of a configuration has no business with: shells, the network, code out of strings.
FORBIDDEN_MODULES = {
    *("subprocess", "pty", "socket", "urllib", "http", "httpx", "requests", "ftplib", "smtplib", "telnetlib", "ctypes"),
    *("pickle", "marshal", "runpy", "code", "importlib", "builtins"),
}
FORBIDDEN_NAMES = {"eval", "exec", "compile", "__import__", "open", "input", "globals", "getattr", "setattr"}
FORBIDDEN_OF_OS = re.compile(r"os\.(system|popen|exec\w*|spawn\w*|posix_spawn\w*|remove|unlink|rmdir|kill\w*)")
_REFERENCE = re.compile(r"[@%][\w:#]+")


def python_style(bundle: Bundle) -> str:
    """isort, black and flake8 with the zoo's settings, where they are installed."""
    paths = list(bundle.files(".py"))
    if not paths:
        return "no Python files"
    missing = [tool for tool in TOOLS if importlib.util.find_spec(tool) is None]
    names = [str(path.relative_to(bundle.root.parent)) for path in paths]
    complaints = [run_tool(tool, bundle, names) for tool in TOOLS if tool not in missing]
    if any(complaints):
        raise Problem("; ".join(complaint for complaint in complaints if complaint))
    if missing:
        raise Skip(f"{', '.join(missing)} not installed: pip install {' '.join(missing)}")
    return f"{len(paths)} files, {', '.join(TOOLS)}"


def run_tool(tool: str, bundle: Bundle, names: list[str]) -> str:
    """What a tool complains about, nothing if it is content.

    It is run from above the bundle, as in the zoo: from there isort takes a package in the bundle for a third party.
    """
    command = [sys.executable, "-m", tool, *TOOLS[tool], *names]
    done = subprocess.run(command, cwd=bundle.root.parent, capture_output=True, text=True, timeout=300)
    if done.returncode == 0:
        return ""
    lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()] or ["not content"]
    return f"{tool}: {lines[0]}" + (f" and {len(lines) - 1} more lines" if lines[1:] else "")


def config_code(bundle: Bundle) -> str:
    """No configuration runs a shell, talks to a network or evaluates strings: MONAI runs whatever stands in them."""
    count = 0
    for path in bundle.files(".json"):
        for code in expressions(json.loads(path.read_text(encoding="utf-8"))):
            count += 1
            for name in names_in(code):
                if name.split(".")[0] in FORBIDDEN_MODULES | FORBIDDEN_NAMES or FORBIDDEN_OF_OS.fullmatch(name):
                    raise Problem(f"{path.name} uses {name} in {code!r}; put what it does into the package")
    return f"{count} expressions and targets"


def expressions(value: Any) -> Iterator[str]:
    """The code of a configuration: what follows a ``$``, and what a ``_target_`` names."""
    if isinstance(value, dict):
        target = value.get("_target_")
        if isinstance(target, str) and not target.startswith(("$", "@", "%")):
            yield target
        for inner in value.values():
            yield from expressions(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from expressions(inner)
    elif isinstance(value, str) and value.startswith("$"):
        yield value[1:]


def names_in(code: str) -> Iterator[str]:
    """The dotted names that an expression uses, those of imported modules too."""
    for node in ast.walk(ast.parse(_REFERENCE.sub("reference", code))):
        if isinstance(node, (ast.Name, ast.Attribute)):
            yield ast.unparse(node)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
