"""SyN and SyNCC of ANTs through ANTsPy, on the pairs, from the starting point and with the metrics of our networks."""

from __future__ import annotations

import importlib.util
import json
import os
import tempfile
import time
from collections.abc import Hashable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from comparison import Values
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from monai.transforms import Compose
from regzoo.case import SIDES
from regzoo.datasets import Record
from regzoo.errors import RegZooError
from regzoo.files import make_folder, write_json
from regzoo.metrics.base import CaseMetric
from regzoo.metrics.handlers import BEFORE
from regzoo.spatial import DisplacementField, Grid, as_tensor
from regzoo.spatial.grid import RAS_LPS
from regzoo.transforms import ResamplePaird
from regzoo.transforms.apply import with_references
from regzoo.transforms.load import aligned

#: ANTsPy's ``type_of_transform``; both begin with an affine registration of their own.
METHODS = ("SyN", "SyNCC")
MISSING = 'ANTsPy is not installed, so SyN and SyNCC are left out: pip install -c constraints.txt -e ".[ants]"'


def is_installed() -> bool:
    """Whether ANTsPy can be imported."""
    return importlib.util.find_spec("ants") is not None


def load_ants() -> Any:
    """ANTsPy, with as many threads as PyTorch has."""
    if not is_installed():
        raise RegZooError(MISSING)
    # Read when ITK makes its first threads.
    os.environ["ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"] = str(torch.get_num_threads())
    import ants

    return ants


class Peers:
    """Runs ANTs as a bundle's evaluation runs its network.

    Both see the images as the bundle's preprocessing leaves them before and after resampling: pre-aligned by an edit of
    the moving affine, intensities in the network's window; but ANTs sees them on their own grids, at full resolution.
    Its own start, the centres of mass, is replaced by that pre-alignment. What it finds is measured on the fixed
    image's own grid by the metric objects of ``evaluate.json``.

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
            method: ANTsPy's ``type_of_transform``.
        """
        native, result, seconds = self.warp(pair, method)
        return self.measure(native, result) | {"runtime_s": seconds}

    def warp(self, pair: Record, method: str) -> tuple[dict[Hashable, Any], dict[str, MetaTensor], float]:
        """What a pair is, what ANTs makes of it, and the seconds from the files to the warped image and labels.

        Returns:
            The pair after its pre-alignment; ``warped_image``, ``warped_label`` and ``ddf`` (voxels, affine and warp)
            on the fixed image's grid; seconds.
        """
        ants = load_ants()
        start = time.perf_counter()
        native: Any = self.load(dict(pair))
        native |= {key: aligned(native, native[key]) for key in ("moving_image", "moving_label")}
        del native["prealignment"]
        scaled = self.scale(dict(native))
        fixed, moving = (to_ants(ants, scaled[side.image]) for side in SIDES)
        # One map, each voxel one label, as it comes in the file.
        numbers = torch.arange(1, len(native["moving_label"]) + 1).view(-1, 1, 1, 1)
        one = (as_tensor(native["moving_label"]) * numbers).amax(0, keepdim=True)
        label = to_ants(ants, MetaTensor(one, affine=native["moving_label"].affine))
        with tempfile.TemporaryDirectory() as folder:
            found = ants.registration(
                fixed, moving, method, initial_transform="Identity", outprefix=f"{folder}/", random_seed=1
            )["fwdtransforms"]
            image = to_ants(ants, native["moving_image"])
            warped = ants.apply_transforms(fixed, image, found, "linear", defaultvalue=self.background)
            ants.apply_transforms(fixed, label, found, "nearestNeighbor")  # for its time
            seconds = time.perf_counter() - start
            field = whole_field(ants, fixed, moving, found, Path(folder))
        affine = torch.as_tensor(Grid.of(native["fixed_image"]).affine)
        result = {
            "warped_image": MetaTensor(torch.from_numpy(warped.numpy())[None].float(), affine=affine),
            # As the labels of our networks, linearly each by itself: by nearest neighbour they would keep more volume.
            "warped_label": field.warp(native["moving_label"]),
            "ddf": field.ddf(),
        }
        return native, result, seconds

    def measure(self, native: Mapping[Hashable, Any], result: Mapping[str, MetaTensor]) -> dict[str, float]:
        """The metrics of the evaluation for a pair, and for the unregistered pair under names with ``before_``."""
        case: Any = dict(native)
        for side in SIDES:
            case |= {side.native_image: native[side.image], side.native_label: native[side.label]}
        item: Any = {**with_references(case, torch.device("cpu"), self.background), **result}
        values = {}
        for name, metric in self.metrics.items():
            for prefix, compared in (("", metric.after), (BEFORE, metric.before)):
                if compared is not None:
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


def recipe() -> bytes:
    """What a result of ANTs depends on beside the data."""
    return Path(__file__).read_bytes() + f"antspyx {version('antspyx')}, threads {torch.get_num_threads()}".encode()


def to_ants(ants: Any, image: MetaTensor) -> Any:
    """An image (1, X, Y, Z), affine voxel → RAS mm, as an ANTsImage, whose world is LPS mm."""
    affine = RAS_LPS @ Grid.of(image).affine
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    array = np.ascontiguousarray(as_tensor(image)[0].cpu().numpy(), dtype=np.float32)
    return ants.from_numpy(
        array, origin=affine[:3, 3].tolist(), spacing=spacing.tolist(), direction=affine[:3, :3] / spacing
    )


def whole_field(ants: Any, fixed: Any, moving: Any, transforms: list[str], folder: Path) -> DisplacementField:
    """Affine and warp of ANTs as one field on the fixed image's grid; ANTs writes it in LPS mm, as ITK does."""
    return DisplacementField.load(ants.apply_transforms(fixed, moving, transforms, compose=f"{folder}/whole_"))
