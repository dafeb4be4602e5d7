"""What a registration leaves on disk."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.data import MetaTensor
from regzoo.case import Case
from regzoo.datasets.records import IMAGE_KEYS, LABEL_KEYS
from regzoo.engines.data import CaseStream, name_of
from regzoo.engines.running import bundle_name, running_workflow
from regzoo.errors import RegZooError, bad_file
from regzoo.files import file_name, make_folder, partial_folder, write_json
from regzoo.metrics import deformation_statistics
from regzoo.ownership import check_folder, discard, own_files, sign
from regzoo.report.engine import cases_of
from regzoo.report.figures import case_figure
from regzoo.spatial import DisplacementField, Grid, as_tensor, write_nifti
from regzoo.spatial.held import Box, as_masks, boxes, is_map, sizes_and_centres
from regzoo.transforms import label_map, warped_masks

logger = logging.getLogger(__name__)

WHO = ("reference", "unregistered", "warped")
#: What a result can write, by the name a user asks for it.
OUTPUTS = {
    "image": "warped_image.nii.gz",
    "label": "warped_label.nii.gz",
    "probability": "probability.nii.gz",
    "field": "field.nii.gz",
    "statistics": "statistics.json",
    "picture": "quality.png",
}
#: Written on request only.
ON_REQUEST = {"probability"}
_REGISTER = "use a bundle that registers, such as prostate_mr_trus_weak_ddf"
#: Why a result may not have an output, and what to do.
MISSING = {
    "image": ("the labels were predicted without a transformation, so there is no warped image", _REGISTER),
    "field": ("the labels were predicted without a transformation, so there is no field", _REGISTER),
    "label": ("there is no label without a moving label", "name one as moving_label (regzoo register: --label)"),
    "probability": (
        "labels that a field has carried over have no probabilities",
        "use prostate_mr_trus_conditional_seg, or ask for label",
    ),
}


@dataclasses.dataclass
class RegistrationResult:
    """One registered pair, everything on the fixed image's own grid.

    Attributes:
        case: name of the pair.
        fixed_image: (1, X, Y, Z), as loaded.
        labels: the warped labels, held small (see `regzoo.spatial.held`), or None without a moving label.
        label_count: how many labels they are.
        probability: (C, X, Y, Z) in [0, 1], of labels that were predicted without a transformation, else None.
        label_values: for labels that came as an integer map, the value of each channel.
        mask_values: for labels that came as masks, the value of each in its file; None stands for 1.
        label_axes: how many axes the file of the labels has, 3 or 4.
        statistics: ``deformation`` (with a field), per label its volume and centroid, and ``warnings``.
        pictured: what the quality-control picture shows.
        transformation, moved_image: behind `field` and `warped_image`; None where there are none.
        bundle: the name of the bundle that registered the pair, for the record of the files.
    """

    case: str
    fixed_image: MetaTensor
    labels: MetaTensor | None
    label_count: int
    probability: MetaTensor | None
    label_values: list[int] | None
    statistics: dict[str, Any]
    transformation: DisplacementField | None
    moved_image: MetaTensor | None
    pictured: Mapping[str, Any] = dataclasses.field(repr=False, default_factory=dict)
    mask_values: list[int] | None = None
    label_axes: int = 3
    bundle: str = ""

    @classmethod
    def of(cls, item: Mapping[str, Any]) -> RegistrationResult:
        """From what `regzoo.transforms.ApplyFieldd` or `regzoo.transforms.PropagatedLabelsd` leaves in a dict."""
        labels = propagated_labels(item)
        keys = ["case", "field", "probability", "moving_label_values", "label_values"]
        keys += [f"{who}_{kind}" for who in WHO for kind in ("image", "label")]
        return cls(
            case=str(item.get("case", "case")),
            fixed_image=item["reference_image"],
            labels=labels,
            label_count=label_count(item, labels),
            probability=item.get("probability"),
            label_values=item.get("moving_label_values"),
            statistics=registration_statistics(item, labels),
            transformation=item.get("field"),
            moved_image=item.get("warped_image"),
            pictured={key: item[key] for key in keys if key in item},
            mask_values=item.get("moving_mask_values"),
            label_axes=int(item.get("moving_label_axes", 3)),
        )

    @property
    def field(self) -> DisplacementField:
        """The whole fixed-to-moving transformation.

        Raises:
            RegZooError: the bundle predicts labels without one.
        """
        if self.transformation is None:
            raise _missing(self.case, "field")
        return self.transformation

    @property
    def warped_image(self) -> MetaTensor:
        """(1, X, Y, Z), the moving image seen in the fixed image's frame.

        Raises:
            RegZooError: the bundle predicts labels without a transformation.
        """
        if self.moved_image is None:
            raise _missing(self.case, "image")
        return self.moved_image

    @property
    def warped_label(self) -> MetaTensor | None:
        """(C, X, Y, Z) uint8 masks, made anew at each call, or None without a moving label."""
        return None if self.labels is None else as_masks(self.labels, self.label_count)

    def label_map(self) -> MetaTensor | None:
        """The warped labels in the form they came in: an integer map (X, Y, Z), or masks along the last axis.

        A map that was the only volume of a 4-D file is one again: (X, Y, Z, 1). Masks have the values they came with.
        """
        if self.labels is None:
            return None
        labels, affine = self.labels.as_tensor().cpu(), self.labels.affine
        if self.label_values is None:
            values = torch.tensor([int(value) for value in self.mask_values or [1] * len(labels)])
            ones = bool((values == 1).all())
            shown = labels.to(torch.uint8) if ones else labels * values.int().view(-1, 1, 1, 1)
            return MetaTensor(shown.movedim(0, -1), affine=affine)
        shown = label_map(labels, self.label_values)
        return MetaTensor(shown[..., None] if self.label_axes > 3 else shown, affine=affine)

    def save(self, folder: str | PathLike[str], outputs: Sequence[str] | str | None = None) -> Path:
        """Write the result into a folder; nothing of it if something fails, and nothing of an earlier result remains.

        Only files that an earlier result left there, and that nobody has changed since, are replaced or removed.

        Args:
            folder: where to.
            outputs: some of ``image`` (``warped_image.nii.gz``, float32), ``label`` (``warped_label.nii.gz``, in the
                form of the moving label), ``probability`` (``probability.nii.gz``, last axis = label), ``field``
                (``field.nii.gz``, the transformation for ITK, ANTs and 3D Slicer, LPS mm), ``statistics``
                (``statistics.json``) and ``picture`` (``quality.png``); None: all there are but the probability.

        Raises:
            RegZooError: one is asked for that there is not, or there is another file in its place.
        """
        target = Path(folder)
        wanted = self._wanted(outputs)
        check_folder(target, [OUTPUTS[name] for name in wanted], self.bundle)
        new = not target.exists()
        try:
            with partial_folder(make_folder(target)) as part:
                self._write(part, wanted)
                sign(part, self.bundle)
                stale = own_files(target)
                written = {file.replace(target / file.name).name for file in part.iterdir()}
            for name in stale - written:
                (target / name).unlink(missing_ok=True)
        except BaseException:
            if new and target.exists() and not any(target.iterdir()):
                target.rmdir()
            raise
        return target

    def _wanted(self, outputs: Sequence[str] | str | None) -> list[str]:
        has = {"image": self.moved_image, "label": self.labels, "probability": self.probability}
        missing = {name for name, value in (has | {"field": self.transformation}).items() if value is None}
        wanted = asked_outputs(outputs)
        if wanted is None:
            return [name for name in OUTPUTS if name not in missing | ON_REQUEST]
        for name in wanted:
            if name in missing:
                raise _missing(self.case, name)
        return wanted

    def _write(self, folder: Path, wanted: Sequence[str]) -> None:
        affine = Grid.of(self.fixed_image).affine
        for name in wanted:
            path = folder / OUTPUTS[name]
            if name == "image":
                write_nifti(path, as_tensor(self.warped_image)[0].cpu().numpy(), affine)
            elif name == "label" and (labels := self.label_map()) is not None:
                array = as_tensor(labels).numpy()
                small = array.max(initial=0) < 256
                write_nifti(path, array.astype(np.uint8 if small else np.int32), affine)
            elif name == "probability" and self.probability is not None:
                write_nifti(path, as_tensor(self.probability).movedim(0, -1).cpu().numpy(), affine)
            elif name == "field":
                self.field.save(path)
            elif name == "statistics":
                write_json(path, self.statistics)
            elif name == "picture":
                self.draw(path)

    def draw(self, path: str | Path) -> None:
        """Write the quality-control picture, see `regzoo.report.registration_figure`."""
        case_figure(path, self.pictured)


def check_target(
    folder: str | PathLike[str], outputs: Sequence[str] | str | None, bundle: str, record: Mapping[str, Any]
) -> None:
    """Refuse a folder for a result before the work is done.

    Args:
        folder: where the result is to go.
        outputs: as for `RegistrationResult.save`.
        bundle: the name of the bundle.
        record: whose images and labels are going to be read.

    Raises:
        RegZooError: an input or somebody else's file lies where an output goes, or a result of another bundle.
    """
    names = asked_outputs(outputs) or [name for name in OUTPUTS if name not in ON_REQUEST]
    inputs = [value for key, value in record.items() if key in {"image", *IMAGE_KEYS, *LABEL_KEYS}]
    check_folder(Path(folder), {OUTPUTS[name] for name in names}, bundle, inputs)


def asked_outputs(outputs: Sequence[str] | str | None) -> list[str] | None:
    """The outputs a user asked for, as a list; None for the usual ones.

    Raises:
        RegZooError: there is no such output.
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
    return list(names)


def _missing(case: str, output: str) -> RegZooError:
    return bad_file(case, *MISSING[output])


def registration_statistics(
    item: Mapping[Any, Any], labels: MetaTensor | None, values: Sequence[int] | None = None
) -> dict[str, Any]:
    """What a registration is judged by, as plain values for JSON.

    Args:
        item: what `regzoo.transforms.ApplyFieldd` or `regzoo.transforms.PropagatedLabelsd` leaves.
        labels: its `propagated_labels`.
        values: what each of them is called; by default its value in a label map, or its number from 0.

    Returns:
        ``deformation`` (with a field), ``labels`` (with a moving label): of each its value or index, name, volume in
        mm³ and centroid in RAS mm; and ``warnings``, a line each.
    """
    found: dict[str, Any] = {}
    if "field" in item:
        deformation = deformation_statistics(item["field"])
        # JSON has no NaN, which the logarithm gives where every voxel folds.
        found["deformation"] = {k: v if math.isfinite(v) else None for k, v in deformation.items()}
    found["warnings"] = []
    if labels is not None:
        places = boxes(labels, label_count(item, labels))
        found["labels"] = _label_statistics(item, labels, values, places)
        found["warnings"] = _warnings(item, labels.shape[1:], places, found["labels"])
    return found


def propagated_labels(item: Mapping[Any, Any]) -> MetaTensor | None:
    """The propagated labels of a case, held small, if there are any; see `regzoo.spatial.held`."""
    label = item.get("warped_label")
    if label is None or not label.is_floating_point():
        return label
    return MetaTensor(warped_masks(cast(Case, item)) > 0, affine=label.affine)


def label_count(item: Mapping[Any, Any], labels: MetaTensor | None) -> int:
    """How many labels the `propagated_labels` of a case are."""
    return 0 if labels is None else len(item["moving_label_values"]) if is_map(labels) else len(labels)


def _label_statistics(
    item: Mapping[str, Any], labels: MetaTensor, values: Sequence[int] | None, found: Sequence[Box | None]
) -> list[dict[str, Any]]:
    voxel = float(abs(np.linalg.det(Grid.of(labels).affine[:3, :3])))
    values, names = values or item.get("moving_label_values"), item.get("label_names")
    return [
        {
            "label": values[index] if values else index,
            **({"name": str(names[index])} if names and index < len(names) else {}),
            "volume_mm3": round(size * voxel, 3),
            "centroid_ras_mm": None if size == 0 else [round(float(x), 3) for x in centre],
        }
        for index, (size, centre) in enumerate(zip(*sizes_and_centres(labels, found), strict=True))
    ]


def _warnings(
    item: Mapping[str, Any], shape: Sequence[int], found: Sequence[Box | None], entries: Sequence[Mapping[str, Any]]
) -> list[str]:
    """A line for each label that was there and is now empty, or that reaches the end of what could be seen."""
    lines = list[str]()
    before = boxes(item["moving_label_native"], len(found))
    for index, (entry, box) in enumerate(zip(entries, found, strict=True)):
        name = f"label {entry['label']}" + (f" ({entry['name']})" if "name" in entry else "")
        was_there = before[index] is not None
        if was_there and index in item.get("unseen", ()):
            lines.append(f"{name}: lies outside the network's field of view, so it is not looked for")
        elif was_there and box is None:
            lines.append(f"{name}: nothing of it is found in the fixed image")
        elif box is not None and any(side.start == 0 or side.stop == n for side, n in zip(box, shape, strict=True)):
            lines.append(f"{name}: touches the border of the fixed image, part of it may lie beyond")
        elif index in item.get("cut_off", ()):
            lines.append(f"{name}: touches the border of the network's field of view, part of it may lie beyond")
    return lines


class SaveRegistration:
    """Ignite handler of an evaluator: writes every registered case to ``<output_dir>/<case>/``.

    Args:
        output_dir: folder to write to.
        outputs: which files, see `RegistrationResult.save`.
        dataset: where the cases come from; one that cannot be written is added to its failures and the next one
            follows. Without it, the run ends there. An earlier result of a case that fails is removed.

    Raises:
        RegZooError: see `check_target`.
    """

    def __init__(
        self,
        output_dir: str | PathLike[str],
        outputs: Sequence[str] | str | None = None,
        dataset: CaseStream | None = None,
    ) -> None:
        self.outputs = asked_outputs(outputs)
        self.output_dir = make_folder(output_dir)
        self.dataset = dataset
        self.bundle = bundle_name(running_workflow())
        if dataset is not None:
            dataset.on_failure = lambda record: discard(self._folder(name_of(record)), self.bundle)
            for record in dataset.data:
                check_target(self._folder(name_of(record)), self.outputs, self.bundle, record)

    def _folder(self, case: str) -> Path:
        return self.output_dir / file_name(case)

    def attach(self, engine: Engine) -> None:
        """Register with an evaluator."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Write the cases of the current iteration."""
        for item in cases_of(engine):
            result = RegistrationResult.of(item)
            result.bundle = self.bundle
            try:
                folder = result.save(self._folder(result.case), self.outputs)
            except RegZooError as error:
                if self.dataset is None:
                    raise
                self.dataset.fail(item, error)
                continue
            print(f"{result.case}: {folder}", flush=True)
            for line in result.statistics["warnings"]:
                logger.warning("%s: %s", result.case, line)
