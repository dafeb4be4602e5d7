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
from regzoo.spatial.held import hold, one_mask
from regzoo.spatial.volumes import FILE

logger = logging.getLogger(__name__)

Alignment = Literal["header", "center", "label", "region"]
SIDES = ("fixed", "moving")
#: Marks a pair that is to be registered, not measured: labels are held small, what only metrics need is not made.
REQUESTED = "requested"
#: Marks a pair that a client of a server asked for: no comparison with the unregistered images is made.
SERVED = "served"


class LoadPaird(MapTransform):
    """Load the images of a pair, or a single image, and those of its labels that are named.

    Reads ``fixed_image`` and, but for the record of a single image, ``moving_image`` and, where the record has them and
    they are not None or empty, ``fixed_label`` and ``moving_label``. Integer label maps of a pair are split into the
    same channels: one for each value of `label_values`, or else of the record's own ``label_values``, or else for each
    value that either map holds.

    Args:
        label_values: labels of integer maps, one channel each, in this order; others that the record names are left
            out.
        need: keys of labels that must be there, as far as the record has the image.
        allow_nan: leave NaN in an image to a later step, `HounsfieldUnitsd`.
        strict_headers: refuse files that other programs may place elsewhere, instead of a warning.

    Adds ``case``, a name for the pair, and of label maps ``label_values``, the value of each channel, with
    ``label_names`` to match. Adds the form of the moving label: ``moving_label_axes``, how many axes its file has, and
    ``moving_label_values``, the same as ``label_values``, if it is a map, or else ``moving_mask_values``, the value of
    each mask in its file.

    Results: images (1, X, Y, Z) float32, labels (C, X, Y, Z) of 0 and 1, each with its own affine (voxel → RAS mm). In
    an inference labels are held small, see `regzoo.spatial.held`.

    Raises:
        RegZooError: one line that names the file, what is wrong with it and what to do.
    """

    def __init__(
        self,
        label_values: Sequence[int] | None = None,
        need: Sequence[str] = (),
        allow_nan: bool = False,
        strict_headers: bool = False,
    ) -> None:
        super().__init__(["fixed_image", "moving_image"])
        self.label_values = label_values
        self.allow_nan = allow_nan
        self.need = tuple(need)
        self.strict_headers = strict_headers

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        files: dict[str, LabelFile] = {}
        for side in SIDES:
            if side == "moving" and data.get("moving_image") is None:
                continue
            path = data[f"{side}_image"]
            item[f"{side}_image"] = read_image(path, self.strict_headers, allow_nan=self.allow_nan)
            label = item.pop(key := f"{side}_label", None)
            if label:
                files[side] = read_label_file(label, Grid.of(item[f"{side}_image"]), strict_headers=self.strict_headers)
            elif key in self.need:
                mend = f"name it as {key} (regzoo register: --label), or use a configuration that does without"
                raise bad_file(path, "comes without its label, which is needed", mend)
        maps = {str(data[f"{side}_label"]): file for side, file in files.items() if file.is_map}
        values = self._values(data, maps)
        for side, file in files.items():
            if item.get(REQUESTED):
                label = hold(file.volume, values if file.is_map else None)
            else:
                label = to_channels(file.volume, values) if file.is_map else file.volume
            key = f"{side}_label"
            label.meta[FILE] = record_files({key: data[key]})[0]
            item[key] = label
        if maps:
            item["label_values"] = values
            item |= _names_of(data, values)
        if "moving" in files:
            item["moving_label_axes"] = files["moving"].axes
            is_map = files["moving"].is_map
            item["moving_label_values" if is_map else "moving_mask_values"] = (
                list(values) if is_map else files["moving"].mask_values
            )
        counts = [len(values) if file.is_map else len(file.volume) for file in files.values()]
        if len(set(counts)) > 1:
            raise bad_file(
                data["fixed_label"],
                f"holds {counts[0]} labels, {data['moving_label']} holds {counts[1]}",
                "give both the same labels in the same order, empty where one is not labelled",
            )
        item["case"] = data.get("case") or case_name(data["fixed_image"])
        return item

    def _values(self, record: Mapping[Hashable, Any], maps: Mapping[str, LabelFile]) -> list[int]:
        """The values of the channels that the label maps of a record, by file, are split into."""
        named = record.get("label_values")
        wanted = named if self.label_values is None else self.label_values
        found = {path: label_values(file.volume) for path, file in maps.items()}
        if wanted is None:
            if len(found) == 2 and not set.intersection(*(set(values) for values in found.values())):
                shown = " and ".join(f"{', '.join(map(str, values))} in {path}" for path, values in found.items())
                logger.warning(
                    "the label maps have no value in common: %s; give the same structure the same value", shown
                )
            return sorted({value for values in found.values() for value in values})
        known = {int(value) for value in (*wanted, *(named or ()))}
        for path, values in found.items():
            if unknown := [str(value) for value in values if value not in known]:
                problem = (
                    f"holds the label values {', '.join(unknown)}, which are not among those known, {sorted(known)}"
                )
                raise bad_file(path, problem, "mend the file, or name all its values as label_values")
        return [int(value) for value in wanted]


def _names_of(record: Mapping[Hashable, Any], values: Sequence[int]) -> dict[Hashable, Any]:
    """``label_names`` for the channels of a label map, where the record names its values."""
    names, named = record.get("label_names") or (), record.get("label_values") or ()
    if not names or len(names) != len(named):
        return {}
    table = {int(value): str(name) for value, name in zip(named, names, strict=True)}
    return {"label_names": [table.get(value, f"label_{value}") for value in values]}


class AlignPaird(MapTransform):
    """Pre-align the pair by editing the affine of the moving image and its label; nothing is resampled.

    Args:
        method: ``header`` trusts the files: both images lie in one world. ``center`` puts the centre of the moving
            field of view on that of the fixed one, for images whose worlds are unrelated. ``label`` puts the centre of
            mass of the first moving label there, or, of a pair without a moving label, that of its field of view.
            ``region`` puts what `regzoo.transforms.FieldOfViewd` found in the moving image, the centre of mass of an
            organ or of the body, on that of the fixed image. A record with an ``align`` of its own is aligned by that.

    Adds ``prealignment``: the 4×4 float64 matrix of the edit, old moving world → new moving world, RAS mm. A single
    image is left as it is.

    Raises:
        RegZooError: an unknown method, the fields of view do not overlap, or for ``region``, nothing was looked for in
            the images.

    Source: ``label``, Bashkanov et al. 2021, section 2.1.
    """

    def __init__(self, method: Alignment = "header") -> None:
        super().__init__(["moving_image"])
        self.method = _known_method(method)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        if "moving_image" not in item:
            return item
        method = _known_method(item.get("align", self.method))
        fixed, moving = Grid.of(item["fixed_image"]), Grid.of(item["moving_image"])
        edit = np.eye(4)
        if method == "region":
            if "fixed_anchor" not in item:
                raise RegZooError("align: region needs images in which an organ or the body was found; use center")
            edit[:3, 3] = np.asarray(item["fixed_anchor"]) - np.asarray(item["moving_anchor"])
        elif method != "header":
            edit[:3, 3] = fixed.center - _middle(item, by_label=method == "label")
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


def _known_method(method: Any) -> Alignment:
    if method not in get_args(Alignment):
        raise RegZooError(f"align: unknown method {method!r:.80}; use one of {', '.join(get_args(Alignment))}")
    return method


def _middle(item: Mapping[Hashable, Any], by_label: bool) -> np.ndarray:
    """What is put on the fixed image's centre, RAS mm."""
    label = item.get("moving_label") if by_label else None
    if label is None:
        if by_label:
            logger.warning("%s: no moving label; its image's centre is aligned instead", item.get("case"))
        return Grid.of(item["moving_image"]).center
    (centre,) = centroids(one_mask(label, 0)[None], label.affine).cpu().numpy()
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
