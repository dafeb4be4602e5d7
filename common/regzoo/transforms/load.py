"""Loading a pair and putting it into one frame: the first steps of every bundle's preprocessing."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import MapTransform

from regzoo.datasets.records import case_name, record_files
from regzoo.errors import RegZooError, bad_file
from regzoo.spatial import Grid, LabelFile, centroids, label_values, read_image, read_label_file, to_channels
from regzoo.spatial.volumes import FILE

logger = logging.getLogger(__name__)

Alignment = Literal["header", "center", "label"]
SIDES = ("fixed", "moving")


class LoadPaird(MapTransform):
    """Load the images of a pair, and those of its labels that are named.

    Reads ``fixed_image`` and ``moving_image`` and, where the record has them and they are not None or empty,
    ``fixed_label`` and ``moving_label``. Integer label maps of a pair are split into the same channels: one for each
    value of `label_values`, or for each value that either map holds.

    Args:
        label_values: labels of integer maps, one channel each, in this order.
        need: keys of labels that must be there.

    Adds ``case``, a name for the pair, and ``moving_label_values``, the value of each channel of a moving label map.

    Results: images (1, X, Y, Z) float32, labels (C, X, Y, Z) of 0 and 1, each with its own affine (voxel → RAS mm).

    Raises:
        RegZooError: one line that names the file, what is wrong with it and what to do.
    """

    def __init__(self, label_values: Sequence[int] | None = None, need: Sequence[str] = ()) -> None:
        super().__init__(["fixed_image", "moving_image"])
        self.label_values = label_values
        self.need = tuple(need)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        files: dict[str, LabelFile] = {}
        for side in SIDES:
            path = data[f"{side}_image"]
            item[f"{side}_image"] = read_image(path)
            label = item.pop(key := f"{side}_label", None)
            if label:
                files[side] = read_label_file(label, Grid.of(item[f"{side}_image"]))
            elif key in self.need:
                mend = f"name it as {key} (regzoo register: --label), or use a configuration that does without"
                raise bad_file(path, "comes without its label, which is needed", mend)
        values = self.label_values
        if values is None:
            values = sorted({value for file in files.values() if file.is_map for value in label_values(file.volume)})
        for side, file in files.items():
            label = to_channels(file.volume, values) if file.is_map else file.volume
            key = f"{side}_label"
            label.meta[FILE] = record_files({key: data[key]})[0]
            item[key] = label
        if "moving" in files and files["moving"].is_map:
            item["moving_label_values"] = list(values)
        if len(files) == 2 and len(item["fixed_label"]) != len(item["moving_label"]):
            raise bad_file(
                data["fixed_label"],
                f"holds {len(item['fixed_label'])} labels, {data['moving_label']} holds {len(item['moving_label'])}",
                "give both the same labels in the same order, empty where one is not labelled",
            )
        item["case"] = data.get("case") or case_name(data["fixed_image"])
        return item


class AlignPaird(MapTransform):
    """Pre-align the pair by editing the affine of the moving image and its label; nothing is resampled.

    Args:
        method: ``header`` trusts the files: both images lie in one world. ``center`` puts the centre of the moving
            field of view on that of the fixed one, for images whose worlds are unrelated. ``label`` puts the centre of
            mass of the first moving label there, or, of a pair without a moving label, that of its field of view.

    Adds ``prealignment``: the 4×4 float64 matrix of the edit, old moving world → new moving world, RAS mm.

    Raises:
        RegZooError: the fields of view do not overlap.

    Source: ``label``, Bashkanov et al. 2021, section 2.1.
    """

    def __init__(self, method: Alignment = "header") -> None:
        super().__init__(["moving_image"])
        if method not in get_args(Alignment):
            raise RegZooError(f"align: unknown method {method!r}; use one of {', '.join(get_args(Alignment))}")
        self.method = method

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        fixed, moving = Grid.of(item["fixed_image"]), Grid.of(item["moving_image"])
        edit = np.eye(4)
        if self.method != "header":
            edit[:3, 3] = fixed.center - self._middle(item)
        elif not overlap(fixed, moving):
            files = [file_of(item[f"{side}_image"], f"the {side} image") for side in SIDES]
            apart = np.linalg.norm(fixed.center - moving.center)
            problem = f"does not overlap in space with {files[0]} (centres {apart:.0f} mm apart)"
            raise bad_file(files[1], problem, "align their centres with --align center")
        for key in ("moving_image", "moving_label"):
            if key in item:
                affine = torch.as_tensor(edit @ np.asarray(item[key].affine, dtype=np.float64))
                item[key] = MetaTensor(item[key].as_tensor(), affine=affine, meta={FILE: file_of(item[key])})
        item["prealignment"] = torch.as_tensor(edit)
        return item

    def _middle(self, item: Mapping[Hashable, Any]) -> np.ndarray:
        """What is put on the fixed image's centre, RAS mm."""
        label = item.get("moving_label") if self.method == "label" else None
        if label is None:
            if self.method == "label":
                logger.warning("%s: no moving label; its image's centre is aligned instead", item.get("case"))
            return Grid.of(item["moving_image"]).center
        (centre,) = centroids(label[:1], label.affine).cpu().numpy()
        if not np.isfinite(centre).all():
            raise bad_file(file_of(label, "the moving label"), "its first label is empty", "draw it, or --align center")
        return centre


def file_of(image: torch.Tensor, otherwise: str = "") -> str:
    """The file that a `MetaTensor` was read from, for error lines and output names."""
    return str(getattr(image, "meta", {}).get(FILE) or otherwise)


def overlap(fixed: Grid, moving: Grid) -> bool:
    """Whether any voxel of a coarse sampling of one grid lies inside the other."""
    return _reaches(fixed, moving) or _reaches(moving, fixed)


def _reaches(source: Grid, target: Grid) -> bool:
    ticks = [np.linspace(0, n - 1, 17) for n in source.shape]
    voxels = target.to_voxels(source.to_world(np.stack(np.meshgrid(*ticks, indexing="ij"), -1).reshape(-1, 3)))
    return bool(((voxels >= 0) & (voxels <= np.asarray(target.shape) - 1)).all(axis=1).any())
