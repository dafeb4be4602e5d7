"""What TF32 and bfloat16 cost in voxels: ``python benchmarks/precision.py [--cases 8] [--save]``.

The released weights register phantoms that no training has seen three times: in float32, with the inputs and weights of
each convolution rounded to the 10 bits of TF32's mantissa, and under autocast in bfloat16. Sums are in float32 each
time, as on a GPU. The differences to float32 are those of the predicted displacement, in voxels of the network's grid,
or of the predicted logit; and those of the mean TRE and DSC over the cases.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from collections.abc import Sequence
from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from comparison import markdown
from regzoo.datasets import load_records, load_single_records
from regzoo.inference import Registrar
from regzoo.inference.accuracy import accuracy
from regzoo_phantoms import AbdomenPhantoms, ProstatePhantoms
from torch import nn
from torch.overrides import TorchFunctionMode
from training_step import BUNDLES, ROOT, on_ct
from trainings import RESULTS, heading, save_result

PRECISIONS = ("float32", "TF32", "bfloat16")
HEADER = (
    *("bundle", "precision", "cases", "of", "mean difference", "99.9th percentile", "largest"),
    *("TRE, mm", "largest change, mm", "DSC", "largest change"),
)
#: Of the training and validation sets, whatever their size.
UNSEEN = 90210


def to_tf32(values: torch.Tensor) -> torch.Tensor:
    """Numbers in float32 rounded to the nearest with a mantissa of 10 bits, ties to even."""
    bits = values.float().contiguous().view(torch.int32)
    return (bits + 0xFFF + ((bits >> 13) & 1)).bitwise_and(-0x2000).view(torch.float32)


class Tf32Convolutions(TorchFunctionMode):
    """Rounds the inputs and the weights of convolutions."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.conv3d, torch.conv_transpose3d):
            args = (to_tf32(args[0]), to_tf32(args[1]), *args[2:])
        return func(*args, **(kwargs or {}))


class InPrecision(nn.Module):
    """A network in one of `PRECISIONS`, which keeps its last output."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.precision, self.output = network, PRECISIONS[0], torch.empty(0)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        narrow = torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.precision == "bfloat16")
        with Tf32Convolutions() if self.precision == "TF32" else nullcontext(), narrow:
            self.output = self.network(image).float()
        return self.output


def unseen(bundle: str, folder: Path, cases: int, coarser: float) -> list[dict[str, Any]]:
    """Pairs of phantoms that the bundle was not trained on."""
    data = folder / ("ct" if on_ct(bundle) else "prostate")
    if on_ct(bundle):
        if not data.exists():
            sizes = {"cases": 1, "held_out": cases + 1}
            AbdomenPhantoms(**sizes, seed=UNSEEN, spacing=3.0 * coarser, breathing=True).write(data)
        return [
            dict(first)
            | {key.replace("fixed", "moving"): path for key, path in second.items() if key.startswith("fixed")}
            for first, second in pairwise(load_single_records(data, "val"))
        ]
    if not data.exists():
        ProstatePhantoms(pairs=1, held_out=cases, seed=UNSEEN, spacing=1.6 * coarser).write(data)
    return [dict(record) for record in load_records(data, "val")]


def compare(bundle: str, records: Sequence[dict[str, Any]]) -> list[tuple[str, ...]]:
    """The rows of a bundle."""
    registrar = Registrar(ROOT / "bundles" / bundle, device="cpu")
    registrar.network = network = InPrecision(registrar.network)
    predictions: dict[str, list[torch.Tensor]] = {name: [] for name in PRECISIONS}
    measures: dict[str, list[dict[str, Any]]] = {name: [] for name in PRECISIONS}
    for record in records:
        for network.precision in PRECISIONS:
            measures[network.precision].append(accuracy(registrar.run(dict(record))))  # type: ignore[arg-type]
            predictions[network.precision].append(network.output[:, :3])
    what = "logit" if network.output.shape[1] == 1 else "displacement, voxels"
    rows = []
    for name in PRECISIONS:
        away = torch.cat(
            [
                (one - other).norm(dim=1).flatten()
                for one, other in zip(predictions[name], predictions["float32"], strict=True)
            ]
        )
        shown = (away.mean(), away.kthvalue(math.ceil(0.999 * len(away))).values, away.max())
        cells = ["—" if name == "float32" else f"{float(value):.1e}" for value in shown]
        for measure, digits in (("tre_mm_after", 3), ("dsc_after", 4)):
            values, exact = (np.array([one.get(measure) for one in measures[n]], float) for n in (name, "float32"))
            cells += [f"{np.nanmean(values):.{digits}f}", f"{np.nanmax(np.abs(values - exact)):.{digits}f}"]
        rows.append((bundle, name, f"{len(records)}", what, *cells))
    return rows


def main(arguments: list[str] | None = None) -> None:
    """Compare the bundles that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="coarse phantoms: does everything run?")
    parser.add_argument("--cases", type=int, default=8, help="of each bundle")
    parser.add_argument("--bundles", nargs="+", choices=BUNDLES, default=BUNDLES)
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/precision.md")
    options = parser.parse_args(arguments)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for bundle in options.bundles:
            records = unseen(bundle, Path(folder), options.cases, 3 if options.quick else 1)
            rows += compare(bundle, records[: options.cases])
            print("\n".join(", ".join(row) for row in rows[-len(PRECISIONS) :]), flush=True)
    text = f"{heading('Released weights', torch.device('cpu'))}\n\n{markdown([HEADER, *rows])}"
    print(f"\n{text}")
    if options.save:
        note = "The script says what is compared."
        save_result(RESULTS / "precision.md", "What TF32 and bfloat16 cost", text, "precision.py", arguments, note)


if __name__ == "__main__":
    main()
