"""The contents of a case: a `Record` of paths and facts while it is listed, a `Case` of tensors while it is processed.

Every key is a constant of `Key`, or a field of a `Side` or a `View`. A missing entry is unknown or not computed yet;
its absence means nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, Literal, NamedTuple, TypedDict, get_args, get_type_hints

import numpy as np
import torch
from monai.data import MetaTensor
from regzoo.spatial import DisplacementField, Grid


class Key:
    """The keys that do not belong to one side or one view."""

    PATIENT: Final = "patient"
    CASE: Final = "case"
    LABEL_NAMES: Final = "label_names"
    LABEL_VALUES: Final = "label_values"
    ALIGN: Final = "align"
    POINTS_FRAME: Final = "points_frame"
    POINT_NAMES: Final = "point_names"
    SPLIT: Final = "split"
    FOLD: Final = "fold"
    REQUESTED: Final = "requested"
    SERVED: Final = "served"
    MOVING_LABEL_IS_MAP: Final = "moving_label_is_map"
    MOVING_LABEL_AXES: Final = "moving_label_axes"
    MOVING_IMAGE_FORM: Final = "moving_image_form"
    MOVING_LABEL_FORM: Final = "moving_label_form"
    MOVING_LABEL_VALUES: Final = "moving_label_values"
    MOVING_MASK_VALUES: Final = "moving_mask_values"
    LABEL_NUMBERS: Final = "label_numbers"
    PREALIGNMENT: Final = "prealignment"
    VIEW_CENTER: Final = "view_center"
    VIEW_EXTENT: Final = "view_extent"
    FULL_RESOLUTION: Final = "full_resolution"
    IMAGE: Final = "image"
    PRED: Final = "pred"
    PRED_GRID: Final = "pred_grid"
    REFINE: Final = "refine"
    REFINE_SECONDS: Final = "refine_seconds"
    REFINEMENT: Final = "refinement"
    FIELD: Final = "field"
    DDF: Final = "ddf"
    LABELS_PREDICTED: Final = "labels_predicted"
    PROBABILITY: Final = "probability"
    UNSEEN: Final = "unseen"
    CUT_OFF: Final = "cut_off"


class Record(TypedDict, total=False):
    """A listed pair, or a listed single image (no ``moving_image``); paths are strings."""

    fixed_image: str
    moving_image: str
    fixed_label: str | list[str]
    moving_label: str | list[str]
    #: Where the voxels count, or do not count, in a refinement.
    fixed_mask: str
    moving_mask: str
    #: Files of corresponding points, for an evaluation; and RAS or LPS, for files that do not say so themselves.
    fixed_points: str
    moving_points: str
    points_frame: str
    #: The patient of both images; a pair from two patients has the next two entries instead.
    patient: str
    fixed_patient: str
    moving_patient: str
    case: str
    #: The name of each label, and its value in a label map.
    label_names: list[str]
    label_values: list[int]
    #: How to pre-align this pair; overrides the configuration.
    align: str
    split: str
    fold: int
    #: See `Case`.
    refine: bool | str
    refine_seconds: float
    requested: bool
    served: bool


class Case(TypedDict, total=False):
    """A pair, or a single image, during processing. Affines are those of the files, voxel → RAS mm."""

    #: Images (1, X, Y, Z) float32 and labels (C, X, Y, Z), as loaded and then on the network grid.
    fixed_image: MetaTensor
    moving_image: MetaTensor
    fixed_label: MetaTensor
    moving_label: MetaTensor
    #: Masks (1, X, Y, Z) bool, as loaded.
    fixed_mask: MetaTensor
    moving_mask: MetaTensor
    #: See `Record`.
    fixed_points: str
    moving_points: str
    points_frame: str
    case: str
    label_names: list[str]
    label_values: list[int]
    align: str
    #: Whether the case is registered but not evaluated: labels stay compact, and data only for metrics are not made.
    requested: bool
    #: Whether a server asked for the case; then the unregistered view, only for comparison, is not made.
    served: bool
    #: The suffixes for results in the form of the moving image and of the moving label.
    moving_image_form: str
    moving_label_form: str
    #: The moving label's file: whether it is a map, whose labels exclude each other; its number of axes; the value of
    #: each label in a map; and the value of each label in masks.
    moving_label_is_map: bool
    moving_label_axes: int
    moving_label_values: list[int]
    moving_mask_values: list[int]
    #: In a training, where the labels of both sides are held as maps: the number of each label in them, (C,).
    label_numbers: torch.Tensor
    #: (4, 4) float64, moving world → aligned moving world, RAS mm.
    prealignment: torch.Tensor
    #: The centre of the field of view, RAS mm, and the extent that it should cover, mm, (3,) each.
    view_center: np.ndarray
    view_extent: np.ndarray
    #: Corresponding points of both images, each in the world of its own file, RAS mm, (3,).
    fixed_anchor: np.ndarray
    moving_anchor: np.ndarray
    #: Whether to keep the images and labels as loaded, under the next four keys.
    full_resolution: bool
    fixed_native: MetaTensor
    moving_native: MetaTensor
    fixed_label_native: MetaTensor
    moving_label_native: MetaTensor
    #: The share of each label inside the network grid, (C,).
    fixed_label_in_view: torch.Tensor
    moving_label_in_view: torch.Tensor
    #: Signed distance maps on the network grid, (1, X, Y, Z), mm.
    fixed_distance: MetaTensor
    moving_distance: MetaTensor
    #: The probabilities (C, X, Y, Z) of the labels that the network finds in each image, on the network grid.
    fixed_outline: torch.Tensor
    moving_outline: torch.Tensor
    #: The network's input, and its prediction.
    image: torch.Tensor
    pred: torch.Tensor
    #: The grid of ``pred``, where it is not the network grid, because it was refined.
    pred_grid: Grid
    #: Whether, or as which kind of pair, to refine this case; takes precedence over the configuration.
    refine: bool | str
    #: Time limit of the refinement of this case, s; takes precedence over the configuration.
    refine_seconds: float
    #: What the refinement did, for the statistics.
    refinement: dict[str, Any]
    #: The whole fixed-to-moving transformation, pre-alignment included, and the same in voxels.
    field: DisplacementField
    ddf: torch.Tensor
    #: All on one grid: the fixed side, the moving side after pre-alignment alone, and the warped moving side.
    reference_image: MetaTensor
    reference_label: MetaTensor
    unregistered_image: MetaTensor
    unregistered_label: MetaTensor
    warped_image: MetaTensor
    warped_label: MetaTensor
    adhoc_reference_label: MetaTensor
    adhoc_unregistered_label: MetaTensor
    adhoc_warped_label: MetaTensor
    #: Corresponding points in the moving image, (N, 3), RAS mm: those of its file; and those of the fixed image, taken
    #: there by the pre-alignment alone and by the registration. And the name of each.
    reference_points: torch.Tensor
    unregistered_points: torch.Tensor
    warped_points: torch.Tensor
    point_names: list[str]
    #: Whether the network predicted ``warped_label`` itself, without a field; the probability of each label.
    labels_predicted: bool
    probability: MetaTensor
    #: Numbers of the labels that are absent from the network's input, and of those found at the border of its field of
    #: view.
    unseen: list[int]
    cut_off: list[int]


class Side(NamedTuple):
    """The keys of one side of a pair."""

    name: Literal["fixed", "moving"]
    image: Literal["fixed_image", "moving_image"]
    label: Literal["fixed_label", "moving_label"]
    mask: Literal["fixed_mask", "moving_mask"]
    points: Literal["fixed_points", "moving_points"]
    patient: Literal["fixed_patient", "moving_patient"]
    anchor: Literal["fixed_anchor", "moving_anchor"]
    native_image: Literal["fixed_native", "moving_native"]
    native_label: Literal["fixed_label_native", "moving_label_native"]
    label_in_view: Literal["fixed_label_in_view", "moving_label_in_view"]
    distance: Literal["fixed_distance", "moving_distance"]
    outline: Literal["fixed_outline", "moving_outline"]


class View(NamedTuple):
    """The keys of one of the three views that are compared on one grid."""

    name: Literal["reference", "unregistered", "warped"]
    image: Literal["reference_image", "unregistered_image", "warped_image"]
    label: Literal["reference_label", "unregistered_label", "warped_label"]
    adhoc_label: Literal["adhoc_reference_label", "adhoc_unregistered_label", "adhoc_warped_label"]
    points: Literal["reference_points", "unregistered_points", "warped_points"]


def _literals(keys: type) -> Iterator[tuple[Any, ...]]:
    """The first literal of each field of `Side` or `View`, the second of each, and so on."""
    return zip(*(get_args(hint) for hint in get_type_hints(keys).values()), strict=True)


FIXED, MOVING = (Side(*names) for names in _literals(Side))
SIDES = (FIXED, MOVING)
#: The moving key for each fixed key.
COUNTERPART: dict[str, str] = dict(zip(FIXED, MOVING, strict=True))

REFERENCE, UNREGISTERED, WARPED = (View(*names) for names in _literals(View))
VIEWS = (REFERENCE, UNREGISTERED, WARPED)

IMAGE_KEYS: tuple[str, ...] = (FIXED.image, MOVING.image)
LABEL_KEYS: tuple[str, ...] = (FIXED.label, MOVING.label)
MASK_KEYS: tuple[str, ...] = (FIXED.mask, MOVING.mask)
POINT_KEYS: tuple[str, ...] = (FIXED.points, MOVING.points)
PATH_KEYS = IMAGE_KEYS + LABEL_KEYS + MASK_KEYS + POINT_KEYS
