"""The result of a registration, and its files."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from monai.data import MetaTensor
from regzoo.case import MOVING, PATH_KEYS, REFERENCE, VIEWS, WARPED, Key
from regzoo.errors import RegZooError, bad_file
from regzoo.files import make_folder, missing_folders, partial_folder, remove_empty, write_json
from regzoo.inference.statistics import label_count, propagated_labels, registration_statistics
from regzoo.ownership import RECORD, STATISTICS, check_folder, own_files, sign
from regzoo.report.figures import case_figure
from regzoo.report.viewer import case_page, check_viewer
from regzoo.spatial import DisplacementField, Grid, as_tensor, write_nifti
from regzoo.spatial.held import as_masks, in_form_of_file, write_labels
from regzoo.spatial.point_files import PointFile, point_suffix
from regzoo.spatial.transformation import Transformation, round_trip
from regzoo.spatial.writing import form_of, write_image

#: The files of a result, by the name that a user asks for.
OUTPUTS = {
    "image": "warped_image",  # with the suffix for the form of the moving image
    "label": "warped_label",  # with the suffix for the form of the moving label
    "probability": "probability.nii.gz",
    "field": "field.nii.gz",
    "inverse": "field_inverse.nii.gz",
    "points": "warped_points",  # with the suffix of the points that were given
    "statistics": "statistics.json",
    "picture": "quality.png",
    "viewer": "viewer.html",
}
#: Outputs that are written only on request.
ON_REQUEST = {"probability", "inverse", "viewer"}
_REGISTER = "use a bundle that registers, such as prostate_mr_trus_weak_ddf"
#: Why a result may lack an output, and what to do.
MISSING = {
    "image": ("the labels were predicted without a transformation, so there is no warped image", _REGISTER),
    "field": ("the labels were predicted without a transformation, so there is no field", _REGISTER),
    "inverse": ("the labels were predicted without a transformation, so it has no inverse", _REGISTER),
    "points": ("without points of the moving image there are no warped points", "name them as points"),
    "label": ("without a moving label there is no warped label", "name one as moving_label (regzoo register: --label)"),
    "probability": (
        "labels that were warped with a field have no probabilities",
        "use prostate_mr_trus_conditional_seg, or ask for label",
    ),
}
#: The entries of a case that a result needs; all others can be freed.
KEPT = (
    *(Key.CASE, Key.FIELD, Key.PROBABILITY, Key.LABELS_PREDICTED, Key.LABEL_VALUES, Key.MOVING_LABEL_VALUES),
    *(Key.MOVING_MASK_VALUES, Key.MOVING_LABEL_IS_MAP, Key.MOVING_LABEL_AXES, Key.LABEL_NAMES),
    *(Key.MOVING_IMAGE_FORM, Key.MOVING_LABEL_FORM),
    *(key for view in VIEWS for key in (view.image, view.label)),
)


@dataclasses.dataclass
class RegistrationResult:
    """One registered pair; everything is on the fixed image's own grid.

    Attributes:
        case: the name of the pair.
        labels: the warped labels as held labels (see `regzoo.spatial.held`), or None without a moving label.
        label_count: the number of labels.
        statistics: ``deformation`` (with a field), the volume and centroid of each label, and ``warnings``.
        kept: the entries of the registered case that are in `KEPT`.
        bundle: the name of the bundle that registered the pair, for the record of the files.
        moving: the grid of the moving image, on which the inverse is sampled.
        points: a file of points, the points in the fixed image and which of them are known there; see `carry_points`.
    """

    case: str
    labels: MetaTensor | None
    label_count: int
    statistics: dict[str, Any]
    kept: Mapping[str, Any] = dataclasses.field(repr=False)
    bundle: str = ""
    moving: Grid | None = None
    points: tuple[PointFile, np.ndarray, np.ndarray] | None = None

    @classmethod
    def of(cls, item: Mapping[str, Any], bundle: str = "") -> RegistrationResult:
        """From a case after `regzoo.transforms.ApplyFieldd` or `regzoo.transforms.PropagatedLabelsd`."""
        labels = propagated_labels(item)
        statistics = registration_statistics(item, labels)
        kept = {key: item[key] for key in KEPT if key in item}
        moving = Grid.of(item[MOVING.native_image]) if MOVING.native_image in item else None
        return cls(str(item.get(Key.CASE, "case")), labels, label_count(item, labels), statistics, kept, bundle, moving)

    @property
    def fixed_image(self) -> MetaTensor:
        """(1, X, Y, Z), as loaded."""
        return self.kept[REFERENCE.image]

    @property
    def probability(self) -> MetaTensor | None:
        """(C, X, Y, Z) in [0, 1] for labels that were predicted without a transformation, else None."""
        return self.kept.get(Key.PROBABILITY)

    @property
    def transformation(self) -> DisplacementField | None:
        """The same as `field`, but None if the bundle predicts labels without a transformation."""
        return self.kept.get(Key.FIELD)

    @property
    def label_values(self) -> list[int] | None:
        """The value of each label if the moving label was an integer map, else None."""
        return self.kept.get(Key.MOVING_LABEL_VALUES)

    @property
    def field(self) -> DisplacementField:
        """The whole fixed-to-moving transformation; raises `RegZooError` if labels were predicted without one."""
        return self._required("field", "field")

    @property
    def warped_image(self) -> MetaTensor:
        """(1, X, Y, Z), the moving image in the fixed image's frame; raises what `field` raises."""
        return self._required(WARPED.image, "image")

    def _required(self, key: str, output: str) -> Any:
        if self.kept.get(key) is None:
            raise bad_file(self.case, *MISSING[output])
        return self.kept[key]

    @property
    def warped_label(self) -> MetaTensor | None:
        """(C, X, Y, Z) uint8 masks, computed at each access, or None without a moving label."""
        return None if self.labels is None else as_masks(self.labels, self.label_count)

    def label_map(self) -> MetaTensor | None:
        """The warped labels in the form of the moving label: an integer map (X, Y, Z), or masks along the last axis.

        A map that was the only volume of a 4-D file has shape (X, Y, Z, 1). Masks keep the values of their file.
        """
        if self.labels is None:
            return None
        form = self.kept.get(Key.MOVING_MASK_VALUES), self.kept.get(Key.MOVING_LABEL_AXES, 3)
        return in_form_of_file(self.labels, self.label_values, *form)

    def carry_points(self, file: PointFile) -> None:
        """Take the points of the moving image to the fixed image, for `save`; a warning counts those it cannot place.

        Raises:
            RegZooError: the bundle predicts labels without a transformation.
        """
        way = Transformation(self.field)
        moved, known = way.carry(file.points, True, Grid.of(self.fixed_image), self.moving)
        self.points = (file, moved, known)
        if lost := int((~known).sum()):
            self.statistics["warnings"].append(f"{lost} of {len(known)} points lie outside the field of view")

    def save(
        self,
        folder: str | PathLike[str],
        outputs: Sequence[str] | str | None = None,
        inverse: bool = False,
        origin: Mapping[str, Any] | None = None,
    ) -> Path:
        """Write the result into a folder: all of its files or, if one cannot be written, none.

        The files of an earlier result are replaced or removed if nobody has changed them; other files are left alone.

        Args:
            folder: the result's folder.
            outputs: some of ``image`` (``warped_image.nii.gz``, float32; ``.nrrd`` or ``.mha`` if the moving image is
                such a file), ``label`` (``warped_label.nii.gz``, in the form of the moving label; ``.nrrd``,
                ``.seg.nrrd`` or ``.mha`` if that is a map in such a file), ``probability`` (``probability.nii.gz``,
                last axis = label), ``field`` (``field.nii.gz``, the transformation for ITK, ANTs and 3D Slicer, LPS
                mm), ``inverse`` (``field_inverse.nii.gz``, from moving to fixed, on the moving image's grid),
                ``points`` (``warped_points``, in the form of the input), ``statistics`` (``statistics.json``),
                ``picture`` (``quality.png``) and ``viewer`` (``viewer.html``, see `regzoo.report.viewer`); None: all
                that exist except the probability, the inverse and the viewer.
            inverse: write ``inverse`` with the others.
            origin: see `regzoo.ownership.sign`.

        Raises:
            RegZooError: the result lacks one of `outputs`, or somebody else's file has the name of an output.
        """
        target = Path(folder)
        wanted = self._wanted(outputs, inverse)
        check_folder(target, [self._file(name) for name in wanted], self.bundle)
        new = missing_folders(target.absolute())
        try:
            with partial_folder(make_folder(target)) as part:
                self._write(part, wanted)
                sign(part, self.bundle, origin)
                for name in own_files(target):
                    (target / name).unlink(missing_ok=True)
                # The record comes first, so that files are known as ours even if the process is killed meanwhile.
                for file in sorted(part.iterdir(), key=lambda file: file.name not in (STATISTICS, RECORD)):
                    file.replace(target / file.name)
        except BaseException:
            remove_empty(new)
            raise
        return target

    def _file(self, name: str) -> str:
        suffixes = {"points": self.points[0].suffix} if self.points else {}
        suffixes["image"] = self.kept.get(Key.MOVING_IMAGE_FORM, ".nii.gz")
        suffixes["label"] = self.kept.get(Key.MOVING_LABEL_FORM, ".nii.gz")
        return OUTPUTS[name] + suffixes.get(name, "")

    def _wanted(self, outputs: Sequence[str] | str | None, inverse: bool) -> list[str]:
        values = {"image": WARPED.image, "label": WARPED.label, "probability": Key.PROBABILITY, "field": Key.FIELD}
        values["inverse"] = Key.FIELD
        missing = {name for name, key in values.items() if self.kept.get(key) is None}
        if self.points is None:
            missing.add("points")
        wanted = requested_outputs(outputs)
        if wanted is None:
            wanted = [name for name in OUTPUTS if name not in missing | ON_REQUEST]
        asked = (("inverse", inverse), ("points", self.points is not None))
        wanted += [name for name, is_asked in asked if is_asked and name not in wanted]
        for name in wanted:
            if name in missing:
                raise bad_file(self.case, *MISSING[name])
        return wanted

    def _write(self, folder: Path, wanted: Sequence[str]) -> None:
        affine = Grid.of(self.fixed_image).affine
        if "inverse" in wanted:  # before the statistics, which report its error
            inverse, forward = self.field.inverse(self.moving), Transformation(self.field)
            error = round_trip(forward, Transformation(inverse), inverse.grid)
            self.statistics["inverse"] = {"round_trip_mm": round(error, 4)}
            inverse.save(folder / OUTPUTS["inverse"])
        for name in wanted:
            path = folder / self._file(name)
            if name == "image":
                write_image(path, as_tensor(self.warped_image)[0].cpu().numpy(), affine)
            elif name == "label" and (labels := self.label_map()) is not None:
                names = self.kept.get(Key.LABEL_NAMES) or []
                write_labels(path, labels, dict(zip(self.label_values or [], names, strict=False)))
            elif name == "probability" and self.probability is not None:
                write_nifti(path, as_tensor(self.probability).movedim(0, -1).cpu().numpy(), affine)
            elif name == "field":
                self.field.save(path)
            elif name == "points" and self.points is not None:
                file, moved, known = self.points
                file.write(path, moved, known)
            elif name == "statistics":
                write_json(path, self.statistics)
            elif name == "picture":
                self.draw(path)
            elif name == "viewer":
                case_page(path, self.kept)

    def draw(self, path: str | Path) -> None:
        """Write the quality-control picture, see `regzoo.report.case_figure`."""
        case_figure(path, self.kept)


def check_target(
    folder: str | PathLike[str],
    outputs: Sequence[str] | str | None,
    bundle: str,
    record: Mapping[str, Any],
    points: str | PathLike[str] | None = None,
    inverse: bool = False,
) -> None:
    """Refuse a folder to which a result cannot be written, before the work is done.

    Arguments as for `RegistrationResult.save`; the files of `record` and `points`, which is carried over, will be read.

    Raises:
        RegZooError: an output would overwrite an input, somebody else's file or a result of another bundle.
    """
    names = requested_outputs(outputs) or [name for name in OUTPUTS if name not in ON_REQUEST]
    inputs = [value for key, value in record.items() if key in PATH_KEYS]
    forms = {"image": {form_of(record.get(MOVING.image))}, "label": {form_of(record.get(MOVING.label)), ".nii.gz"}}
    files = {OUTPUTS[name] + suffix for name in names if name != "points" for suffix in forms.get(name, {""})}
    if inverse:
        files.add(OUTPUTS["inverse"])
    if points is not None:
        files.add(OUTPUTS["points"] + point_suffix(str(points)))
    check_folder(Path(folder), files, bundle, [*inputs, points])


def requested_outputs(outputs: Sequence[str] | str | None) -> list[str] | None:
    """The outputs that a user requested, as a list; None for the usual outputs.

    Raises:
        RegZooError: an output is not known, or cannot be written by a packaged bundle.
    """
    if outputs is None or outputs == "":
        return None
    known = f"use some of {', '.join(OUTPUTS)}"
    names = outputs.replace(",", " ").split() if isinstance(outputs, str) else outputs
    if not isinstance(names, Sequence) or not names:
        raise RegZooError(f"outputs: {outputs!r} names no file to write; {known}")
    for name in names:
        if name not in OUTPUTS:
            raise RegZooError(f"outputs: {name!r} is not known; {known}")
    if "viewer" in names:
        check_viewer()
    return list(names)
