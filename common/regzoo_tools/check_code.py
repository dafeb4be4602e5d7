"""Checks of a bundle's Python files, and of the names in its configurations."""

from __future__ import annotations

import importlib.util
import json
import pydoc
import subprocess
import sys
from collections.abc import Iterator
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
#: The flake8 plugins that the zoo installs: module and name of the package.
PLUGINS = {
    "bugbear": "flake8-bugbear",
    "flake8_comprehensions": "flake8-comprehensions",
    "flake8_executable": "flake8-executable",
    "pep8ext_naming": "pep8-naming",
}


def python_style(bundle: Bundle) -> str:
    """isort, black and flake8 with the zoo's settings and plugins, if they are installed."""
    paths = list(bundle.files(".py"))
    if not paths:
        return "no Python files"
    modules = {**{tool: tool for tool in TOOLS}, **PLUGINS}
    missing = [package for module, package in modules.items() if importlib.util.find_spec(module) is None]
    names = [str(path.relative_to(bundle.root.parent)) for path in paths]
    complaints = [found for tool in TOOLS if tool not in missing and (found := run_tool(tool, bundle, names))]
    if complaints:
        raise CheckError("; ".join(complaints))
    if missing:
        raise NotCheckedError(f"{', '.join(missing)} not installed: pip install {' '.join(missing)}")
    return f"{len(paths)} files, {', '.join(TOOLS)} with {len(PLUGINS)} plugins"


def run_tool(tool: str, bundle: Bundle, names: list[str]) -> str:
    """The complaints of a tool; empty if there are none.

    The tool runs in the parent folder, as in the zoo. There, isort treats a package in the bundle as third-party.
    """
    command = [sys.executable, "-m", tool, *TOOLS[tool], *names]
    done = subprocess.run(command, cwd=bundle.root.parent, capture_output=True, text=True, timeout=300)
    if done.returncode == 0:
        return ""
    lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()] or ["failed without a message"]
    return f"{tool}: {lines[0]}" + (f" and {len(lines) - 1} more lines" if lines[1:] else "")


def targets(bundle: Bundle) -> str:
    """Every ``_target_`` exists, also in the variants; looked up as MONAI does."""
    locator, wanted = ComponentLocator(), {}
    for path in bundle.files(".json"):
        if path.is_relative_to(bundle.root / "configs"):
            wanted.update(dict.fromkeys(named_targets(json.loads(path.read_text(encoding="utf-8"))), path))
    sys.path.insert(0, str(bundle.root))  # `isolated` restores it
    for target, path in wanted.items():
        module = locator.get_component_module_name(target)
        module = module[0] if isinstance(module, list) else module
        if pydoc.locate(f"{module}.{target}" if module else target) is None:
            raise CheckError(f"{path.name}: _target_ {target} is not found; correct the name, or import it")
    return f"{len(wanted)} names"


def named_targets(value: Any) -> Iterator[str]:
    """The classes and functions that a configuration names, without references and expressions."""
    if isinstance(value, dict):
        target = value.get("_target_")
        if isinstance(target, str) and not target.startswith(("$", "@", "%")):
            yield target
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from named_targets(inner)
