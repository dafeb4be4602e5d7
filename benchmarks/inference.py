"""Time of a registration with each bundle: ``python benchmarks/inference.py [--device cuda] [--save]``.

A pair of phantoms is registered with the released weights: the pass of the network alone, from the files to the warped
image and labels, and, for a bundle that predicts a displacement, the same with `refine`. Medians after a warm-up.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from comparison import markdown
from measure import checked_device, synchronise
from precision import unseen
from regzoo.inference import Registrar
from training_step import BUNDLES, ROOT, on_ct
from trainings import RESULTS, heading, save_result

HEADER = ("bundle", "network, ms", "from files, s", "refined, s", "steps of the refinement")


def seconds(run: Callable[[], Any], device: torch.device, rounds: int) -> tuple[float, Any]:
    """The median time of a run, s, and its last result."""
    times = list[float]()
    for _ in range(rounds + 1):
        synchronise(device)
        start = time.perf_counter()
        made = run()
        synchronise(device)
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:]), made


def row(bundle: str, record: dict[str, Any], device: torch.device, rounds: int) -> tuple[str, ...]:
    """The cells of `HEADER`."""
    root, inputs = ROOT / "bundles" / bundle, list[torch.Tensor]()
    registrar = Registrar(root, device=str(device))
    hook = registrar.network.register_forward_pre_hook(lambda _, given: inputs.append(given[0]))
    whole, item = seconds(lambda: registrar.run(dict(record)), device, rounds)  # type: ignore[arg-type]
    hook.remove()
    with torch.inference_mode():
        alone, _ = seconds(lambda: registrar.network(inputs[-1]), device, rounds)
    cells = bundle, f"{1000 * alone:.1f}", f"{whole:.2f}"
    if "field" not in item:
        return *cells, "—", "—"
    refined = Registrar(root, device=str(device), refine="ct" if on_ct(bundle) else "mr")
    took, item = seconds(lambda: refined.run(dict(record)), device, rounds)  # type: ignore[arg-type]
    return *cells, f"{took:.2f}", str(item["refinement"]["steps"])


def main(arguments: list[str] | None = None) -> None:
    """Measure the bundles that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="coarse phantoms, one round: does everything run?")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--rounds", type=int, default=3, help="after the warm-up")
    parser.add_argument("--bundles", nargs="+", choices=BUNDLES, default=BUNDLES)
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/inference_<device>.md")
    options = parser.parse_args(arguments)
    device = checked_device(parser, options)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for bundle in options.bundles:
            record, *_ = unseen(bundle, Path(folder), 1, 3 if options.quick else 1)
            rows.append(row(bundle, record, device, 1 if options.quick else options.rounds))
            print(", ".join(rows[-1]), flush=True)
    text = f"{heading('Registrations', device)}\n\n{markdown([HEADER, *rows])}"
    print(f"\n{text}")
    if options.save:
        path, note = RESULTS / f"inference_{device.type}.md", "The script says what is measured."
        save_result(path, "A registration with each bundle", text, "inference.py", arguments, note)


if __name__ == "__main__":
    main()
