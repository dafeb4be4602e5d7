"""The rule of the layout: a room imports only from the rooms before it. The graph is drawn from the source itself."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

COMMON = Path(__file__).resolve().parents[1] / "common"
#: The rooms in order; rooms on one line do not import each other, except for `WITHIN_A_LEVEL`.
LEVELS = [
    ["errors", "files", "filters", "spatial", "ownership", "bundles", "case", "startup"],
    ["losses", "samplers", "networks", "augmentation"],
    ["refinement"],
    ["datasets"],
    ["transforms"],
    ["metrics"],
    ["report"],
    ["engines"],
    ["inference"],
    ["export"],
    ["monai_label"],
    ["cli", "__main__"],
]
#: Imports within a level.
WITHIN_A_LEVEL = {
    ("files", "errors"),
    ("spatial", "errors"),
    ("spatial", "files"),
    ("spatial", "filters"),
    ("case", "spatial"),
    ("ownership", "errors"),
    ("ownership", "files"),
    ("bundles", "errors"),
    ("startup", "errors"),
}
#: Imports against the rule that are still there. An entry that is no longer needed fails the test: remove it.
UPWARD: set[tuple[str, str]] = set()
#: The only places that may import another package of the distribution, and only inside a function.
OTHER_PACKAGES = {("cli", "regzoo_tools"), ("engines/data", "regzoo_phantoms")}
PACKAGES = ("regzoo", "regzoo_phantoms", "regzoo_tools")


def imports(file: Path) -> Iterator[tuple[str, bool]]:
    """The modules of ours that a file imports, and whether it does so as soon as it is imported itself."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    inside = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        for node in ast.walk(function)
    }
    # For the eyes of a type checker alone.
    unseen = {
        id(node)
        for test in ast.walk(tree)
        if isinstance(test, ast.If) and ast.unparse(test.test).endswith("TYPE_CHECKING")
        for node in ast.walk(test)
    }
    for node in ast.walk(tree):
        if id(node) in unseen:
            continue
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: a relative import"
            # `from regzoo import spatial` imports a room as well.
            names = [
                f"{node.module}.{name.name}" if node.module in PACKAGES else str(node.module) for name in node.names
            ]
        elif isinstance(node, ast.Import):
            names = [name.name for name in node.names]
        else:
            continue
        for name in names:
            if name.split(".")[0] in PACKAGES:
                yield name, id(node) not in inside


@cache
def graph(package: str) -> set[tuple[str, str, bool]]:
    """Edges (module, imported, at once) of a package, such as ``("engines/data", "regzoo.datasets", True)``."""
    home = COMMON / package
    return {
        (file.relative_to(home).with_suffix("").as_posix(), name, at_once)
        for file in home.rglob("*.py")
        for name, at_once in imports(file)
    }


def room_edges() -> set[tuple[str, str]]:
    """Which room of `regzoo` imports which other, lazily or not."""
    rooms = {
        path.stem for path in (COMMON / "regzoo").iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()
    }
    edges = set()
    for module, name, _ in graph("regzoo"):
        room, parts = module.split("/")[0], name.split(".")
        if parts[0] == "regzoo" and len(parts) > 1 and parts[1] in rooms and room not in ("__init__", parts[1]):
            edges.add((room, parts[1]))
    return edges


def test_every_room_has_a_place() -> None:
    rooms = {path.stem for path in (COMMON / "regzoo").glob("*.py")} - {"__init__"}
    rooms |= {path.parent.name for path in (COMMON / "regzoo").glob("*/__init__.py")}
    assert rooms == {room for level in LEVELS for room in level}


def test_a_room_imports_only_from_those_before_it() -> None:
    level = {room: number for number, rooms in enumerate(LEVELS) for room in rooms}
    against = {
        (room, other)
        for room, other in room_edges()
        if level[other] >= level[room] and (room, other) not in WITHIN_A_LEVEL and room != "__main__"
    }
    assert against == UPWARD


def test_no_exception_is_left_over() -> None:
    assert room_edges() >= WITHIN_A_LEVEL


def test_no_circle_within_a_level() -> None:
    edges = {(room, other) for room, other in room_edges() if (room, other) not in UPWARD}
    while edges:
        ends = {other for _, other in edges} - {room for room, _ in edges}
        assert ends, f"a circle among {sorted(edges)}"
        edges = {(room, other) for room, other in edges if other not in ends}


def test_the_package_does_not_need_the_others() -> None:
    found = {(module, name.split(".")[0], at_once) for module, name, at_once in graph("regzoo")}
    others = {(module, name, at_once) for module, name, at_once in found if name != "regzoo"}
    assert others == {(module, name, False) for module, name in OTHER_PACKAGES}


def test_phantoms_know_neither_tools_nor_training() -> None:
    rooms = {name.split(".")[1] for _, name, _ in graph("regzoo_phantoms") if name.startswith("regzoo.")}
    assert rooms <= {*LEVELS[0], *LEVELS[1], *LEVELS[2]}
    assert not any(name.startswith("regzoo_tools") for _, name, _ in graph("regzoo_phantoms"))
