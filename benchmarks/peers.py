"""Registration tools side by side on the same pairs: ``make peers``, or ``python benchmarks/peers.py --help``.

Every tool registers every pair in a process of its own with two threads; all of them get the same files. The fields
they find are brought onto the fixed image's grid and measured by one piece of code, see ``peer_measures.py``. A
registration that is done is kept in ``benchmarks/data/peers`` and not repeated, unless ``--again`` names its method or
the method, the pair or (for RegZoo) the package has changed.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from measure import machine
from peer_methods import METHODS
from peer_pairs import GROUPS, Facts
from peer_pictures import picture
from peer_report import report
from peer_runs import Run, installed
from peer_tools import THREADS
from regzoo.errors import RegZooError, one_line_errors
from trainings import HERE, RESULTS, save_result

#: Names of groups of phantoms begin so.
PHANTOM = "phantom"
#: What ``--again`` takes for the methods that shared the machine with other work.
BUSY = "busy"
PAIRS = HERE.parents[1] / "shared" / "data"
NOTE = (
    "All tools read the same files; CTs are windowed to −160…240 HU. Their fields are applied to the moving labels by "
    "SimpleITK, nearest neighbour. Dice and HD95 are means over the labels of a pair, TRE is the distance of their "
    "centroids; *error* is the mean distance from the true field within the labels; *folds* are voxels with det J ≤ 0. "
    "Seconds and CPU-seconds are of the registration, without reading and writing files and without importing "
    "libraries; where the headers do not align the images, they contain an affine registration. RegZoo's contain "
    "reading the files and warping the image, NiftyReg's also writing. Memory is the peak of the process, libraries "
    "included."
)
ONLY = "run only these; the tables show all that is known"
AGAIN = f"repeat these; {BUSY}: those that shared the machine with other work"


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--data", type=Path, default=PAIRS, help="real images; their tables are left out where it is absent")
    add("--groups", nargs="+", choices=list(GROUPS), default=list(GROUPS), help="saved only with all")
    add("--only", nargs="+", choices=list(METHODS), metavar="METHOD", help=ONLY)
    add("--again", nargs="+", choices=[*METHODS, BUSY], default=[], metavar="METHOD", help=AGAIN)
    add("--save", action=argparse.BooleanOptionalAction, default=True, help="write benchmarks/results/peers.md")
    return parser.parse_args(arguments)


def methods_for(group: str, kind: str, packages: Mapping[str, str]) -> list[str]:
    """The methods that have a row in a table, the unregistered pairs first."""
    phantom = group.startswith(PHANTOM)
    return ["", *(m for m, entry in METHODS.items() if entry.package in packages and entry.suits(kind, phantom))]


def register(run: Run, options: argparse.Namespace) -> None:
    """Run what has to be run; a tool that fails is named, and the others go on."""
    wanted = not (run.method and options.only) or run.method in options.only
    again = run.method in options.again or (BUSY in options.again and run.is_busy())
    if not wanted or (run.is_done() and not again):
        return
    print(f"{run.group}/{run.pair.name}: {run.method or 'unregistered'} … ", end="", flush=True)
    try:
        run.run()
        row = run.row()
        print(f"Dice {row['dice']:.3f}, TRE {row['tre_mm']:.2f} mm, {row['seconds']:.1f} s", flush=True)
    except RegZooError as error:
        print(error, flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Register, measure, print and save."""
    options = parse(arguments)
    versions = installed()
    found: dict[str, dict[str, list[dict[str, float]]]] = {}
    missing = []
    for name in options.groups:
        if not (pairs := GROUPS[name].pairs(name, options.data)):
            print(f"{name}: left out, because {options.data} is absent")
            continue
        methods = methods_for(name, Facts.of(pairs[0]).kind, versions)
        runs = {method: [Run(name, pair, method) for pair in pairs] for method in methods}
        for method in methods:
            for run in runs[method]:
                register(run, options)
        done = {method: every for method, every in runs.items() if all(run.is_done() for run in every)}
        found[name] = {method: [run.row() for run in every] for method, every in done.items()}
        missing += [f"{method} ({name})" for method in methods if method not in done]
        if options.save:
            picture({method: every[0] for method, every in done.items()}, RESULTS / f"peers_{name}.png")
    used = {METHODS[method].package for rows in found.values() for method in rows if method}
    software = ", ".join(f"{package} {versions[package]}" for package in sorted(used))
    text = f"{machine(torch.device('cpu'), THREADS)}; {software}\n\n{report(found)}"
    if missing:
        text += f"\n\nWithout a row, because a pair is missing or has failed: {', '.join(missing)}."
    print(f"\n{text}")
    if options.save and len(found) == len(GROUPS):
        save_result(RESULTS / "peers.md", "Registration tools side by side", text, "peers.py", arguments, NOTE)


if __name__ == "__main__":
    one_line_errors()
    main()
