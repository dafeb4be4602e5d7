"""The ablation of DDMR (Pérez de Frutos et al. 2023) in small, on phantoms: ``python benchmarks/ablation.py``.

Trains the six designs on brain MR (Table 2) and on abdominal CT, from scratch (Table 3), fine-tuned from the brain's
weights of the same design at once (Table 4) and in two steps (Table 5), all in equally many steps, and measures them on
stored pairs of patients that no training saw; SyN and SyNCC of ANTs on the very same pairs, if ``make peers`` has made
their environment. Started again, it goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence

from ablation_peers import ANTS, MISSING, Peers
from ablation_runs import BUNDLE, DESIGNS, STAGES, Data, Trained, configurations, contents, phantoms
from ablation_tables import claim_tests, result_table, transfer_tests
from comparison import Values, pooled
from peer_methods import METHODS
from peer_runs import TOOLS, recipe
from regzoo.errors import one_line_errors
from trainings import BUNDLES, DATA, RESULTS, fingerprint, heading, save_result

TABLES = {2: "brain", 3: "scratch", 4: "one_step", 5: "two_steps"}
NOTE = (
    "Values are medians (10th–90th percentile) over the pairs, mm and labels on the fixed image's own grid; TRE is the "
    "mean over the centroids of a pair's labels. Runtime goes from the files to the warped image and labels, network "
    "loaded before; that of ANTs is of its affine and deformable registration, without reading and writing. Training "
    "of a fine-tuned design is that on CT alone."
)


def ants_values(data: Data, methods: Sequence[str]) -> dict[str, Values]:
    """What SyN, SyNCC or both come to on the pairs that the networks are measured on."""
    configs = [*configurations(data.overlays), "configs/evaluate.json"]
    settings = {"align": data.align} if data.align else {}
    peers = Peers(BUNDLES / BUNDLE, configs, settings)
    pairs = data.test_pairs()
    code = b"".join(recipe(METHODS[ANTS[method]]) for method in methods)
    name = fingerprint(*contents(configs), json.dumps(settings).encode(), code, json.dumps(pairs).encode())
    folder = DATA / "ablation"
    return {method: peers.values(pairs, method, folder / f"{method}_{data.kind}_{name}") for method in methods}


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--tables", nargs="+", type=int, choices=list(TABLES), default=list(TABLES), help="saved only with all")
    add("--designs", nargs="+", choices=list(DESIGNS), default=list(DESIGNS), help="saved only with all")
    add("--ants", nargs="*", choices=list(ANTS), default=list(ANTS), help="on CT; SyNCC takes minutes a pair")
    add("--ants-brain", nargs="*", choices=list(ANTS), default=["SyN"], help="on brains, where the paper has neither")
    add("--skip-ants", action="store_true", help="leave SyN and SyNCC out")
    add("--epochs", type=int, default=4, help="of each training; two steps share them")
    add("--samples", type=int, default=320, help="per epoch")
    add("--channels", nargs="+", type=int, default=[16, 32, 64], help="of the network, per level")
    add("--spacing", type=float, default=8.0, help="of the network's grid on CT, mm")
    add("--size", nargs=3, type=int, default=[48, 32, 32], help="of the network's grid on CT, voxels")
    add("--brain-spacing", type=float, default=6.0, help="of the network's grid on brains, mm")
    add("--brain-size", nargs=3, type=int, default=[32, 48, 32], help="of the network's grid on brains, voxels")
    breathing = "CT pairs: the same patient breathed out and in, or different patients (then --align region is advised)"
    add("--breathing", action=argparse.BooleanOptionalAction, default=True, help=breathing)
    add("--align", help="CTs beforehand, for all methods; by default as the bundle does")
    add("--cases", type=int, default=24, help="CT phantoms to train on")
    add("--brain-cases", type=int, default=40, help="brain phantoms to train on")
    add("--held-out", type=int, default=8, help="further phantoms of each kind, to measure on")
    add("--pairs", type=int, default=0, help="of them; 0 for as many as there are held out")
    add("--voxel", type=float, default=4.0, help="of CT phantoms, mm")
    add("--brain-voxel", type=float, default=3.0, help="of brain phantoms, mm")
    add("--seed", type=int, default=4, help="of phantoms")
    add("--save", action=argparse.BooleanOptionalAction, default=True, help="write benchmarks/results/")
    options = parser.parse_args(arguments)
    options.tables = sorted(set(options.tables))
    options.designs = [design for design in DESIGNS if design in options.designs]
    if min(options.epochs, options.samples, options.held_out - 1) < 1:
        parser.error("at least one epoch, one sample, and two phantoms held out are needed")
    return options


def settings(options: argparse.Namespace) -> str:
    """What was done, in words."""

    def grid(spacing: float, size: Sequence[int]) -> str:
        return f"{'×'.join(map(str, size))} voxels of {spacing:g} mm"

    pairs = "the same patient, breathed out and in" if options.breathing else "different patients"
    images = f"{options.cases} CT phantoms of {options.voxel:g} mm, {options.brain_cases} of brain MR of"
    return "; ".join(
        [
            f"{images} {options.brain_voxel:g} mm, and {options.held_out} of each held out, seed {options.seed}",
            f"network of {', '.join(map(str, options.channels))} channels on {grid(options.spacing, options.size)} "
            f"(CT) and {grid(options.brain_spacing, options.brain_size)} (brain)",
            f"CT pairs: {pairs}; brain pairs: different patients",
            f"each training {options.epochs} epochs of {options.samples} samples",
        ]
    )


def report(found: dict[int, dict[str, Values]], minutes: dict[int, dict[str, float]], designs: Sequence[str]) -> str:
    """All tables and tests as text."""
    parts = []
    for number, values in found.items():
        title = STAGES[TABLES[number]].title
        parts.append(f"## Table {number}: {title}\n\n{result_table(values, minutes[number], designs)}")
    if tests := transfer_tests(found, designs):
        parts.append(f"## What transfer adds\n\n{tests}")
    if tests := claim_tests(found.get(5, {})):
        parts.append(f"## Labels, learned weights, and ANTs (Table 5)\n\n{tests}")
    return "\n\n".join(parts)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the ablation that the command line asks for."""
    options = parse(arguments)
    stages = {number: TABLES[number] for number in options.tables}
    measured = {STAGES[stage].kind for stage in stages.values()}
    trained = measured | ({"brain"} if {4, 5} & stages.keys() else set())
    data = {kind: phantoms(kind, options) for kind in sorted(trained)}
    found: dict[int, dict[str, Values]] = {number: {} for number in stages}
    minutes: dict[int, dict[str, float]] = {number: {} for number in stages}
    for number, stage in stages.items():
        for design in options.designs:
            run = Trained(stage, design, data, options)
            run.train()
            found[number][design] = pooled(run.evaluate())
            minutes[number][design] = run.minutes()
    methods = {"abdomen": options.ants, "brain": options.ants_brain}
    run_ants = TOOLS.is_file() and not options.skip_ants
    peers = {kind: ants_values(data[kind], methods[kind]) for kind in sorted(measured)} if run_ants else {}
    for number, stage in stages.items():
        found[number] |= peers.get(STAGES[stage].kind, {})
    missing = "SyN and SyNCC were left out." if options.skip_ants else "" if peers else f"{MISSING}."
    text = "\n\n".join(filter(None, [heading(settings(options)), report(found, minutes, options.designs), missing]))
    print(f"\n{text}")
    if options.save and len(options.designs) == len(DESIGNS) and len(stages) == len(TABLES):
        save_result(RESULTS / "ablation.md", "DDMR: the ablation in small", text, "ablation.py", arguments, NOTE)


if __name__ == "__main__":
    one_line_errors()
    main()
