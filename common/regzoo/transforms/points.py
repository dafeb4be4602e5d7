"""Corresponding points of a case, for its target registration error."""

from __future__ import annotations

import numpy as np
import torch
from monai.transforms import MapTransform
from regzoo.case import FIXED, MOVING, REFERENCE, UNREGISTERED, WARPED, Case, Key
from regzoo.spatial import Grid
from regzoo.spatial.landmarks import Landmarks, read_landmarks
from regzoo.transforms.load import prealignment


class CarryPointsd(MapTransform):
    """Read the corresponding points that the record names, and take the fixed ones to the moving image.

    Must come after `regzoo.transforms.ApplyFieldd`. Adds ``reference_points``, ``unregistered_points``,
    ``warped_points`` and ``point_names``, see `regzoo.case.Case`. They are empty for a case without points; a case
    whose labels were predicted without a field has NaN for ``warped_points``. Errors as in `read_landmarks`.
    """

    def __init__(self) -> None:
        super().__init__([FIXED.image])

    def __call__(self, data: Case) -> Case:
        item, field = data.copy(), data.get(Key.FIELD)
        fixed, moving, item[Key.POINT_NAMES] = landmarks_of(data)
        back = np.linalg.inv(prealignment(data))
        item[REFERENCE.points] = torch.from_numpy(moving)
        item[UNREGISTERED.points] = torch.from_numpy(fixed @ back[:3, :3].T + back[:3, 3])
        warped = np.full_like(fixed, np.nan) if field is None else field.transform_points(fixed)
        item[WARPED.points] = torch.from_numpy(warped)
        return item


def landmarks_of(data: Case, images: tuple[str, str] = (FIXED.native_image, MOVING.native_image)) -> Landmarks:
    """The corresponding points that a record names, see `read_landmarks`; none if it names none.

    `images` are the keys of the images as loaded, for their grids.
    """
    fixed, moving = data.get(FIXED.points), data.get(MOVING.points)
    if fixed is None or moving is None:
        return Landmarks(np.zeros((0, 3)), np.zeros((0, 3)), [])
    fixed_grid, moving_grid = (Grid.of(data[key]) for key in images)  # type: ignore[literal-required]
    return read_landmarks(fixed, moving, fixed_grid, moving_grid, data.get(Key.POINTS_FRAME))
