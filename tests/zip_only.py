"""An environment in which Python finds `regzoo` only beside the configurations of a bundle, as from its zip."""

from __future__ import annotations

import os
from pathlib import Path

#: Python runs it at its start. Every import of `regzoo` is written down.
SITE = """
import os
import sys
from importlib.machinery import PathFinder


class OnlyInBundles:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name not in ("regzoo", "regzoo_phantoms", "regzoo_tools"):
            return None
        bundles = [place for place in sys.path if os.path.isfile(os.path.join(place, "configs", "metadata.json"))]
        if "" in sys.path and os.path.isfile(os.path.join("configs", "metadata.json")):
            bundles.append(os.getcwd())
        spec = PathFinder.find_spec(name, bundles)
        if spec is None:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        with open(os.path.join(os.path.dirname(__file__), "imports.txt"), "a") as notes:
            notes.write(spec.origin + os.linesep)
        return spec


sys.meta_path.insert(0, OnlyInBundles)
"""


def environment(site: Path, **more: str) -> dict[str, str]:
    """The variables of a process that does not find the installed packages; `site` takes the list of imports."""
    site.mkdir(exist_ok=True)
    (site / "sitecustomize.py").write_text(SITE, encoding="utf-8")
    return {**os.environ, **more, "PYTHONPATH": str(site)}
