"""What a case holds: a `Record` of paths and facts as it is listed, and a `Case` of tensors as it is worked on.

Every key is a constant of `Key`, or of the table of a `Side` or a `View`. A missing entry is unknown or not made yet;
nothing else follows from its absence.
"""

from __future__ import annotations

from typing import Final, Literal, NamedTuple, TypedDict

import numpy as np
import torch
from monai.data import MetaTensor
from regzoo.spatial import DisplacementField


class Key:
    """The keys that are not one side's or one view's."""

    PATIENT: Final = "patient"
    CASE: Final = "case"
    LABEL_NAMES: Final = "label_names"
    LABEL_VALUES: Final = "label_values"
    ALIGN: Final = "align"
    SPLIT: Final = "split"
    FOLD: Final = "fold"
    REQUESTED: Final = "requested"
    SERVED: Final = "served"
    MOVING_LABEL_IS_MAP: Final = "moving_label_is_map"
    MOVING_LABEL_AXES: Final = "moving_label_axes"
    MOVING_LABEL_VALUES: Final = "moving_label_values"
    MOVING_MASK_VALUES: Final = "moving_mask_values"
    PREALIGNMENT: Final = "prealignment"
    VIEW_CENTER: Final = "view_center"
    VIEW_EXTENT: Final = "view_extent"
    FULL_RESOLUTION: Final = "full_resolution"
    IMAGE: Final = "image"
    PRED: Final = "pred"
    FIELD: Final = "field"
    DDF: Final = "ddf"
    LABELS_PREDICTED: Final = "labels_predicted"
    PROBABILITY: Final = "probability"
    UNSEEN: Final = "unseen"
    CUT_OFF: Final = "cut_off"


class Record(TypedDict, total=False):
    """A pair, or a single image (no ``moving_image``), as it is listed; paths are strings."""

    fixed_image: str
    moving_image: str
    fixed_label: str | list[str]
    moving_label: str | list[str]
    #: Of both images; a pair of two patients has the next two instead.
    patient: str
    fixed_patient: str
    moving_patient: str
    case: str
    #: Of each label, and of each value of a label map.
    label_names: list[str]
    label_values: list[int]
    #: How this pair is pre-aligned, whatever the configuration says.
    align: str
    split: str
    fold: int
    #: See `Case`.
    requested: bool
    served: bool


class Case(TypedDict, total=False):
    """A pair, or a single image, on its way from files to a result. Affines are those of the files, voxel → RAS mm."""

    #: Images (1, X, Y, Z) float32 and labels (C, X, Y, Z), as loaded and then on the network grid.
    fixed_image: MetaTensor
    moving_image: MetaTensor
    fixed_label: MetaTensor
    moving_label: MetaTensor
    case: str
    label_names: list[str]
    label_values: list[int]
    align: str
    #: To be registered, not measured: labels are held small, and what only metrics need is not made.
    requested: bool
    #: Asked for by a server: nobody waits for a comparison.
    served: bool
    #: The moving label's file: whether it is a map, whose labels exclude each other; its number of axes; and the value
    #: of each label in it, under the first key for a map and under the second for masks.
    moving_label_is_map: bool
    moving_label_axes: int
    moving_label_values: list[int]
    moving_mask_values: list[int]
    #: (4, 4) float64, moving world → aligned moving world, RAS mm.
    prealignment: torch.Tensor
    #: Where the field of view is to be centred and what it should show, RAS mm and mm, (3,).
    view_center: np.ndarray
    view_extent: np.ndarray
    #: The same place in both images, each in its file's world, RAS mm, (3,).
    fixed_anchor: np.ndarray
    moving_anchor: np.ndarray
    #: Whether the images and labels as loaded are kept, under the next four keys.
    full_resolution: bool
    fixed_native: MetaTensor
    moving_native: MetaTensor
    fixed_label_native: MetaTensor
    moving_label_native: MetaTensor
    #: The share of each label that lies on the network grid, (C,).
    fixed_label_in_view: torch.Tensor
    moving_label_in_view: torch.Tensor
    #: Signed distance maps on the network grid, (1, X, Y, Z), mm.
    fixed_distance: MetaTensor
    moving_distance: MetaTensor
    #: What the network is shown, and its prediction.
    image: torch.Tensor
    pred: torch.Tensor
    #: The whole fixed-to-moving transformation, pre-alignment included, and the same in voxels.
    field: DisplacementField
    ddf: torch.Tensor
    #: On one grid: the fixed side; the moving side seen through the pre-alignment alone; the moving side warped.
    reference_image: MetaTensor
    reference_label: MetaTensor
    unregistered_image: MetaTensor
    unregistered_label: MetaTensor
    warped_image: MetaTensor
    warped_label: MetaTensor
    adhoc_reference_label: MetaTensor
    adhoc_unregistered_label: MetaTensor
    adhoc_warped_label: MetaTensor
    #: Whether ``warped_label`` was predicted, label by label, and not warped with a field; how likely each label is.
    labels_predicted: bool
    probability: MetaTensor
    #: Labels, by number, that the network was shown nothing of; that it finds at the border of its field of view.
    unseen: list[int]
    cut_off: list[int]


class Side(NamedTuple):
    """The keys of one side of a pair."""

    name: Literal["fixed", "moving"]
    image: Literal["fixed_image", "moving_image"]
    label: Literal["fixed_label", "moving_label"]
    patient: Literal["fixed_patient", "moving_patient"]
    anchor: Literal["fixed_anchor", "moving_anchor"]
    native_image: Literal["fixed_native", "moving_native"]
    native_label: Literal["fixed_label_native", "moving_label_native"]
    label_in_view: Literal["fixed_label_in_view", "moving_label_in_view"]
    distance: Literal["fixed_distance", "moving_distance"]


class View(NamedTuple):
    """The keys of one of the things that are compared on one grid."""

    name: Literal["reference", "unregistered", "warped"]
    image: Literal["reference_image", "unregistered_image", "warped_image"]
    label: Literal["reference_label", "unregistered_label", "warped_label"]
    adhoc_label: Literal["adhoc_reference_label", "adhoc_unregistered_label", "adhoc_warped_label"]


FIXED = Side(
    "fixed",
    "fixed_image",
    "fixed_label",
    "fixed_patient",
    "fixed_anchor",
    "fixed_native",
    "fixed_label_native",
    "fixed_label_in_view",
    "fixed_distance",
)
MOVING = Side(
    "moving",
    "moving_image",
    "moving_label",
    "moving_patient",
    "moving_anchor",
    "moving_native",
    "moving_label_native",
    "moving_label_in_view",
    "moving_distance",
)
SIDES = (FIXED, MOVING)
#: The moving key that belongs to each fixed one.
COUNTERPART: dict[str, str] = dict(zip(FIXED, MOVING, strict=True))

REFERENCE = View("reference", "reference_image", "reference_label", "adhoc_reference_label")
UNREGISTERED = View("unregistered", "unregistered_image", "unregistered_label", "adhoc_unregistered_label")
WARPED = View("warped", "warped_image", "warped_label", "adhoc_warped_label")
VIEWS = (REFERENCE, UNREGISTERED, WARPED)

IMAGE_KEYS: tuple[str, ...] = (FIXED.image, MOVING.image)
LABEL_KEYS: tuple[str, ...] = (FIXED.label, MOVING.label)
PATH_KEYS = IMAGE_KEYS + LABEL_KEYS
