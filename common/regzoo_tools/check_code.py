"""Checks of the code in a bundle: Python files, and what its configurations evaluate."""

from __future__ import annotations

import ast
import importlib.util
import json
import pydoc
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from monai.bundle import ComponentLocator
from regzoo_tools.bundle import Bundle, CheckError, NotCheckedError

#: The zoo's settings of its formatters and linters (``setup.cfg``, ``pyproject.toml`` and ``runtests.sh``).
TOOLS = {
    "isort": ["--check-only", "--profile", "black", "--line-length", "120", "--project", "models"],
    "black": ["--check", "--quiet", "--line-length", "120", "--skip-magic-trailing-comma"],
    "flake8": [
        *("--isolated", "--select", "B,C,E,F,N,P,T4,W,B9", "--max-line-length", "120"),
        *("--ignore", "E203,E501,E741,W503,W504,C408,N812,B023", "--per-file-ignores", "__init__.py:F401"),
    ],
}
#: The plugins of flake8 that the zoo installs, which have most of those rules: module and name of the package.
PLUGINS = {
    "bugbear": "flake8-bugbear",
    "flake8_comprehensions": "flake8-comprehensions",
    "flake8_executable": "flake8-executable",
    "pep8ext_naming": "pep8-naming",
}
#: What an expression of a configuration has no business with, wherever in a dotted name: shells, the network, code out
#: of strings.
FORBIDDEN_ANYWHERE = {
    *("subprocess", "pty", "socket", "urllib", "http", "httpx", "requests", "ftplib", "smtplib", "telnetlib", "ctypes"),
    *("pickle", "marshal", "runpy", "importlib", "builtins", "__builtins__", "__import__", "__globals__"),
    *("__subclasses__", "exec", "globals", "getattr", "setattr"),
}
#: The same as the first of a name only: what comes later may be a method, as in ``network.eval()``.
FORBIDDEN_FIRST = {"eval", "compile", "open", "input", "code"}
FORBIDDEN_OF_OS = re.compile(
    r"(.*\.)?(os|posix|nt)\.(system|popen|exec\w*|spawn\w*|posix_spawn\w*|remove|unlink|rmdir|kill\w*)(\..+)?"
)
_REFERENCE = re.compile(r"[@%][\w:#]+")


def python_style(bundle: Bundle) -> str:
    """isort, black and flake8 with the zoo's settings and plugins, where they are installed."""
    paths = list(bundle.files(".py"))
    if not paths:
        return "no Python files"
    modules = {**{tool: tool for tool in TOOLS}, **PLUGINS}
    missing = [package for module, package in modules.items() if importlib.util.find_spec(module) is None]
    names = [str(path.relative_to(bundle.root.parent)) for path in paths]
    complaints = [run_tool(tool, bundle, names) for tool in TOOLS if tool not in missing]
    if any(complaints):
        raise CheckError("; ".join(complaint for complaint in complaints if complaint))
    if missing:
        raise NotCheckedError(f"{', '.join(missing)} not installed: pip install {' '.join(missing)}")
    return f"{len(paths)} files, {', '.join(TOOLS)} with {len(PLUGINS)} plugins"


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
    """No configuration plainly runs a shell, talks to a network or evaluates strings: MONAI runs what stands in them.

    It compares names with a list. That catches the obvious and is no sandbox: an expression that wants to hide what it
    does can, and what the functions do that it calls is not looked at.
    """
    codes = {path: list(expressions(load_json(path))) for path in bundle.files(".json")}
    # What one configuration imports, those that are read with it can use.
    names = aliases(code for found in codes.values() for code in found)
    for path, found in codes.items():
        for code in found:
            for name in names_in(code, names):
                if is_forbidden(name):
                    raise CheckError(f"{path.name} uses {name} in {code!r}; put what it does into the package")
    return f"{sum(map(len, codes.values()))} expressions and targets have no name that is forbidden"


def load_json(path: Path) -> Any:
    """The content of a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def is_forbidden(name: str) -> bool:
    """Whether a configuration must not use a dotted name."""
    parts = name.split(".")
    return bool(
        FORBIDDEN_ANYWHERE.intersection(parts) or parts[0] in FORBIDDEN_FIRST or FORBIDDEN_OF_OS.fullmatch(name)
    )


def targets(bundle: Bundle) -> str:
    """Everything that a ``_target_`` names is there, in the variants, too; looked for as MONAI does."""
    locator, wanted = ComponentLocator(), {}
    for path in bundle.files(".json"):
        if path.is_relative_to(bundle.root / "configs"):
            wanted.update(dict.fromkeys(named_targets(load_json(path)), path))
    sys.path.insert(0, str(bundle.root))  # put back by whoever runs the checks
    for target, path in wanted.items():
        module = locator.get_component_module_name(target)
        module = module[0] if isinstance(module, list) else module
        if pydoc.locate(f"{module}.{target}" if module else target) is None:
            raise CheckError(f"{path.name}: _target_ {target} is nowhere to be found; mend the name, or import it")
    return f"{len(wanted)} names"


def named_targets(value: Any) -> Iterator[str]:
    """What a configuration makes by name; not what an expression or another part of it says."""
    if isinstance(value, dict):
        target = value.get("_target_")
        if isinstance(target, str) and not target.startswith(("$", "@", "%")):
            yield target
    for inner in inner_values(value):
        yield from named_targets(inner)


def expressions(value: Any) -> Iterator[str]:
    """The code of a configuration: what follows a ``$``, and what a ``_target_`` names."""
    yield from named_targets(value)
    yield from evaluated(value)


def evaluated(value: Any) -> Iterator[str]:
    """What follows a ``$``."""
    if isinstance(value, str) and value.startswith("$"):
        yield value[1:]
    for inner in inner_values(value):
        yield from evaluated(inner)


def inner_values(value: Any) -> Iterable[Any]:
    """The values in a dictionary or list."""
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


def parsed(code: str) -> Iterator[ast.AST]:
    """The parts of an expression."""
    return ast.walk(ast.parse(_REFERENCE.sub("reference", code)))


def imported(node: ast.AST) -> Iterator[tuple[str, str]]:
    """What an import statement imports, and by which name it is known then."""
    if isinstance(node, ast.Import):
        yield from ((alias.name, alias.asname or alias.name) for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        yield from ((f"{node.module}.{alias.name}", alias.asname or alias.name) for alias in node.names)


def aliases(codes: Iterable[str]) -> dict[str, str]:
    """By which other names modules and what is in them are known."""
    pairs = (pair for code in codes for node in parsed(code) for pair in imported(node))
    return {known: name for name, known in pairs if known != name}


def names_in(code: str, other: Mapping[str, str]) -> Iterator[str]:
    """The dotted names that an expression uses, those of imported modules too.

    Args:
        code: the expression.
        other: by which other names something was imported.
    """
    for node in parsed(code):
        yield from (name for name, _ in imported(node))
        parts = []
        while isinstance(node, ast.Attribute):
            parts.append(node.attr)
            node = node.value
        if isinstance(node, ast.Name):
            parts.append(other.get(node.id, node.id))
        elif parts:
            parts.append("")  # of what an expression gives, as in ``Path(name).open()``
        if parts:
            yield ".".join(reversed(parts))
