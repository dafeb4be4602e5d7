"""How long MONAI Label takes to answer a request, and how much of that is the network: one pair, every bundle, warm.

Run in the environment of ``make test-label``: ``.venv-label/bin/python benchmarks/monai_label_request.py``. It starts a
server on copies of the bundles and stops it again. The images and labels are phantoms, resampled to ``--shape``; the
answer is the label map and the JSON. The goal is a difference of at most 1.5 s on two cores.

With ``--load`` it measures instead how one bundle bears its clients, see `label_load.py`.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from comparison import markdown, verdict
from label_load import HEADER as LOAD_HEADER
from label_load import load_rows
from label_server import BUNDLES, LabelServer
from measure import machine
from monai.data import MetaTensor
from regzoo.case import MOVING, SIDES
from regzoo.datasets import Record, load_records
from regzoo.files import write_text
from regzoo.spatial import (
    Grid,
    as_tensor,
    label_values,
    read_image,
    read_label_file,
    resample,
    to_channels,
    write_nifti,
)
from regzoo_phantoms import embedded_phantoms
from trainings import phantom_kind

RESULTS = Path(__file__).resolve().parent / "results"
GOAL = 1.5
#: Kind → how few phantoms make a pair, and their voxel size.
PHANTOMS: dict[str, dict[str, Any]] = {
    "prostate": {"pairs": 1, "spacing": 1.6},
    "abdomen": {"cases": 2, "spacing": 4.0},
    "hippocampus": {"cases": 2, "spacing": 1.0},
}
HEADER = ("bundle", "labels", "request, s", "network, s", "difference, s", f"goal ≤ {GOAL} s")


def same_extent(grid: Grid, shape: tuple[int, int, int]) -> Grid:
    """A grid of another matrix size with the outer edges of the first."""
    factors = np.divide(grid.shape, shape)
    affine = grid.affine.copy()
    affine[:3, :3] *= factors
    affine[:3, 3] += grid.affine[:3, :3] @ ((factors - 1) / 2)
    return Grid(shape, affine)


def place(record: Record, studies: Path, kind: str, shape: tuple[int, int, int]) -> None:
    """Put a pair of a size into the studies: ``KIND_fixed``, ``KIND_moving`` with its labels, ``KIND_one``: a label."""
    for side in SIDES:
        image = read_image(record[side.image])
        target = same_extent(Grid.of(image), shape)
        write_nifti(studies / f"{kind}_{side.name}.nii.gz", _on(image, target)[0], target.affine)
        if side is MOVING:
            label = read_label_file(record[MOVING.label])
            volume = to_channels(label.volume, label_values(label.volume)) if label.is_map else label.volume
            masks = _on(volume, target) >= 0.5
            first = np.argmax(masks.reshape(len(masks), -1).sum(axis=1))
            write_nifti(studies / f"{kind}_one.nii.gz", masks[first].astype(np.uint8), target.affine)
            final = studies / "labels" / "final" / f"{kind}_moving.nii.gz"
            write_nifti(final, np.moveaxis(masks, 0, -1).astype(np.uint8), target.affine)


def _on(volume: MetaTensor, target: Grid) -> np.ndarray:
    return resample(as_tensor(volume).float(), Grid.of(volume), target).numpy()


def measure(server: LabelServer, bundle: str, label: str, rounds: int) -> list[str]:
    """One row: medians over `rounds`, after two that warm it up."""
    kind = phantom_kind(bundle)
    requests, networks, count = [], [], 0
    for _ in range(rounds + 2):
        start = time.perf_counter()
        answer = server.infer(bundle, f"{kind}_fixed", moving_image=f"{kind}_moving", moving_label=f"{kind}_{label}")
        requests.append(time.perf_counter() - start)
        if answer.status != 200:
            raise RuntimeError(f"{bundle}: {answer.detail}")
        networks.append(answer.params["latencies"]["infer"])
        count = len(answer.params["labels"])
    request, network = statistics.median(requests[2:]), statistics.median(networks[2:])
    difference = request - network
    seconds = [f"{value:.2f}" for value in (request, network, difference)]
    return [f"`{bundle}`", str(count), *seconds, verdict(difference <= GOAL)]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print the table, and with ``--save`` write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", type=int, nargs=3, default=[96, 96, 80], help="matrix size of all images")
    parser.add_argument("--rounds", type=int, default=9, help="requests to take the median of")
    parser.add_argument("--load", action="store_true", help="measure many clients of one bundle instead")
    parser.add_argument("--requests", type=int, default=200, help="requests in a row with --load")
    parser.add_argument("--at_once", type=int, nargs="*", default=[20, 30], help="clients at once with --load")
    parser.add_argument("--hung_up", type=int, default=100, help="clients that hang up with --load")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/monai_label_{request,load}.md")
    options = parser.parse_args(arguments)
    shape = (options.shape[0], options.shape[1], options.shape[2])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "studies" / "labels" / "final").mkdir(parents=True)
        for kind, parameters in PHANTOMS.items():
            embedded_phantoms(folder / kind, kind, held_out=0, seed=4, workers=1, **parameters)
            place(load_records(folder / kind, "train")[0], folder / "studies", kind, shape)
        # As the page on MONAI Label starts it.
        environment = {"OMP_WAIT_POLICY": "passive"}
        bundles = BUNDLES[-1:] if options.load else BUNDLES
        with LabelServer(folder / "server", folder / "studies", bundles, environment) as server:
            if options.load:
                pair = ("prostate_fixed", "prostate_moving")
                rows = load_rows(server, bundles[0].name, pair, options.at_once, options.requests, options.hung_up)
            else:
                rows = [
                    measure(server, name, label, options.rounds) for name in server.names for label in ("one", "moving")
                ]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    size = "×".join(map(str, shape))
    where = f"{machine(device, torch.get_num_threads())}; PyTorch {torch.__version__}"
    table = markdown([LOAD_HEADER if options.load else HEADER, *rows])
    if options.load:
        name, what = "load", f"{size} voxels, `{bundles[0].name}`"
        title = "Many requests to MONAI Label"
        about = (
            "All requests are for the same pair, with all its labels, and every answer is compared with the first.\n"
            f"*One client* sends {options.requests} requests in a row. A client that hangs up closes the connection as "
            "soon as it has sent\nits request.\n"
        )
    else:
        name, what = "request", f"{size} voxels, medians of {options.rounds}"
        title = "A request to MONAI Label"
        about = (
            "The server is warm. *request* is how long the client waits for the label map and the JSON, *network* the\n"
            "time that the server itself gives for it, *difference* all else: reading and resampling the files,\n"
            "warping, measuring, writing, sending.\n"
        )
    print(f"{what}; {where}\n\n{table}")
    if options.save:
        script = " ".join([".venv-label/bin/python benchmarks/monai_label_request.py", *sys.argv[1:]])
        text = f"# {title}\n\n{what}; {where}\n\n{table}\n\nWritten by `{script}`.\n{about}"
        write_text(RESULTS / f"monai_label_{name}.md", text)


if __name__ == "__main__":
    main()
