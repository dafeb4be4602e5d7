"""The released networks, exported: sizes, differences, and the time of a pass beside PyTorch's.

``python benchmarks/exported.py`` exports the network of each bundle to TorchScript and ONNX in a temporary folder, and
lets PyTorch, TorchScript and ONNX Runtime run in turn on a batch of one, with the same number of threads.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import torch
from measure import machine
from regzoo.files import write_text
from regzoo.inference import Registrar
from regzoo_tools.export import export_network
from torch import nn

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "exported.md"
BUNDLES = sorted(path.parents[1].name for path in ROOT.glob("bundles/*/models/model.pt"))
FORMATS = ("torchscript", "onnx")
HEAD = """\
| bundle | format | input, output, after the batch | grid | MB | difference | of the largest | a pass | in PyTorch |
|---|---|---|---|---:|---:|---:|---:|---:|"""


def table(bundles: list[str], seconds: float) -> str:
    """Markdown: two lines for each bundle."""
    with tempfile.TemporaryDirectory() as folder:
        return "\n".join([HEAD, *(line for bundle in bundles for line in rows(bundle, Path(folder), seconds))])


def rows(bundle: str, folder: Path, seconds: float) -> list[str]:
    """The lines of a bundle, one for each format."""
    root = ROOT / "bundles" / bundle
    networks = {"pytorch": Registrar(root, device="cpu").network}
    exports = {}
    for name in FORMATS:
        exports[name] = export_network(root, name, folder / f"{bundle}.{name}")
        overlay, file = f"configs/variants/{name}.json", str(exports[name].path)
        networks[name] = Registrar(root, [overlay], exported=file, device="cpu").network
    image = torch.randn(1, *exports[FORMATS[0]].inputs, generator=torch.Generator().manual_seed(0))
    times = in_turn(networks, image, seconds)
    lines = []
    for name, export in exports.items():
        shapes = ", ".join("×".join(map(str, shape)) for shape in (export.inputs, export.outputs))
        cells = [
            f"`{bundle}`",
            name,
            shapes,
            "this" if export.fixed_size else "any",
            f"{export.path.stat().st_size / 1e6:.1f}",
            f"{export.largest:.0e}",
            f"{export.difference:.0e}",
            f"{1000 * times[name]:.0f} ms",
            f"{1000 * times['pytorch']:.0f} ms",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


@torch.inference_mode()
def in_turn(networks: dict[str, nn.Module], image: torch.Tensor, seconds: float) -> dict[str, float]:
    """Seconds of the fastest pass of each: whatever else the machine does meanwhile makes some of them slower."""

    def once(network: nn.Module) -> float:
        begun = time.perf_counter()
        network(image)
        return time.perf_counter() - begun

    for _ in range(3):  # TorchScript looks at two passes before it optimises
        whole = sum(once(network) for network in networks.values())
    rounds = max(3, min(200, int(seconds / whole)))
    times = [{name: once(network) for name, network in networks.items()} for _ in range(rounds)]
    return {name: min(each[name] for each in times) for name in networks}


def main(arguments: list[str] | None = None) -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundles", nargs="+", default=BUNDLES, choices=BUNDLES)
    parser.add_argument("--threads", type=int, default=2, help="of each on the CPU")
    parser.add_argument("--seconds", type=float, default=15, help="for the rounds of a bundle")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/exported.md")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    heading = (
        f"Batch of one, float32; {machine(torch.device('cpu'), options.threads)}; PyTorch {torch.__version__}, "
        f"ONNX Runtime {version('onnxruntime')}. The fastest of up to 200 rounds, all three in turn."
    )
    text = table(options.bundles, options.seconds)
    print(f"{text}\n\n{heading}")
    if options.save:
        write_text(RESULTS, f"# The released networks, exported\n\n{text}\n\n{heading}\n")
        print(f"written: {RESULTS}")


if __name__ == "__main__":
    main()
