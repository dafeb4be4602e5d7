"""SyN and SyNCC of ANTs on the pairs, from the starting point and with the metrics of our networks."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from comparison import Values
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from monai.transforms import Compose
from peer_runs import TOOLS, execute
from regzoo.case import SIDES
from regzoo.datasets import Record
from regzoo.files import make_folder, write_json
from regzoo.metrics.base import CaseMetric
from regzoo.metrics.handlers import BEFORE
from regzoo.spatial import DisplacementField, Grid, as_tensor, write_nifti
from regzoo.transforms import ResamplePaird
from regzoo.transforms.apply import with_references
from regzoo.transforms.load import aligned

#: In the tables → in `peer_methods.METHODS`; both begin with an affine registration of their own.
ANTS = {"SyN": "ANTs SyN (MI)", "SyNCC": "ANTs SyNCC"}
MISSING = f"{TOOLS} is missing, so SyN and SyNCC are left out: make peers"


class Peers:
    """Runs ANTs as a bundle's evaluation runs its network.

    Both see the images as the bundle's preprocessing leaves them before and after resampling: pre-aligned by an edit of
    the moving affine, intensities in the network's window; but ANTs sees them on their own grids, at full resolution.
    Its own start, the centres of mass, is replaced by that pre-alignment. The field is measured on the fixed image's
    own grid by the metric objects of ``evaluate.json``.

    Args:
        bundle: its folder.
        configs: configurations of the bundle, relative to it, ``evaluate.json`` last.
        settings: any id of them, such as ``align``.
    """

    def __init__(self, bundle: Path, configs: Sequence[str], settings: Mapping[str, Any] | None = None) -> None:
        parser = ConfigParser()
        parser.read_config([str(bundle / config) for config in configs])
        for key, value in (settings or {}).items():
            parser[key] = value
        transforms = parser.get_parsed_content("validate#preprocessing").transforms
        (resampling,) = (i for i, step in enumerate(transforms) if isinstance(step, ResamplePaird))
        self.load = Compose(transforms[:resampling])
        self.scale = Compose(transforms[resampling + 1 :])
        self.background = float(parser.get_parsed_content("background"))
        self.metrics: dict[str, CaseMetric] = parser.get_parsed_content("validate#metrics#measures")

    def register(self, pair: Record, method: str) -> dict[str, float]:
        """Register a pair; its measures, those of the unregistered pair, and the seconds it took.

        Args:
            pair: a record with labels.
            method: of `ANTS`.
        """
        native, result, seconds = self.warp(pair, method)
        return self.measure(native, result) | {"runtime_s": seconds}

    def warp(self, pair: Record, method: str) -> tuple[dict[Hashable, Any], dict[str, MetaTensor], float]:
        """A pair, the same registered by ANTs, and the seconds of the registration, without reading and writing.

        Returns:
            The pair after its pre-alignment; ``warped_image``, ``warped_label`` and ``ddf`` (voxels, affine and warp)
            on the fixed image's grid; seconds.
        """
        native = self.prepare(pair)
        scaled = self.scale(dict(native))
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            for side in SIDES:
                image = scaled[side.image]
                write_nifti(folder / f"{side.name}.nii.gz", as_tensor(image)[0].float().numpy(), Grid.of(image).affine)
            write_json(folder / "pair.json", {"aligned": True, "kind": "ct"})
            found = execute(ANTS[method], folder, make_folder(folder / "out"))
            field = DisplacementField.load(folder / "out" / "field.nii.gz")
        result = {
            "warped_image": field.warp(native["moving_image"], background=self.background),
            # As the labels of our networks, linearly each by itself: by nearest neighbour they would keep more volume.
            "warped_label": field.warp(native["moving_label"]),
            "ddf": field.ddf(),
        }
        return native, result, float(found["seconds"])

    def prepare(self, pair: Record) -> dict[Hashable, Any]:
        """The pair on its own grids, the moving affine after the pre-alignment."""
        native: Any = self.load(dict(pair))
        native |= {key: aligned(native, native[key]) for key in ("moving_image", "moving_label")}
        del native["prealignment"]
        return native

    def measure(self, native: Mapping[Hashable, Any], result: Mapping[str, MetaTensor]) -> dict[str, float]:
        """The metrics of the evaluation for a pair, and for the unregistered pair under names with ``before_``."""
        case: Any = dict(native)
        for side in SIDES:
            case |= {side.native_image: native[side.image], side.native_label: native[side.label]}
        item: Any = {**with_references(case, torch.device("cpu"), self.background), **result}
        values = {}
        for name, metric in self.metrics.items():
            for prefix, compared in (("", metric.after), (BEFORE, metric.before)):
                # No pair of the table has points.
                if compared is not None and all(key in item for key in compared):
                    values[prefix + name] = metric.measure(*(item[key] for key in compared))
        return {name: float(value) for name, value in values.items()}

    def values(self, pairs: list[Record], method: str, folder: Path) -> Values:
        """What `register` measures on all pairs; each is kept in a file, so that it is registered once."""
        found: Values = {}
        make_folder(folder)
        for number, pair in enumerate(pairs, start=1):
            file = folder / f"{pair['case']}.json"
            if not file.is_file():
                print(f"{method}, pair {number} of {len(pairs)} … ", end="", flush=True)
                write_json(file, self.register(pair, method))
                print("done", flush=True)
            for name, value in json.loads(file.read_text(encoding="utf-8")).items():
                found.setdefault(name, {})[str(pair["case"])] = float(value)
        return found
