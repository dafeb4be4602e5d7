"""Signed distance maps of the gland, computed once per case."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from monai.data import MetaTensor
from monai.transforms import MapTransform
from regzoo.case import LABEL_KEYS, SIDES, Case, Key
from regzoo.errors import RegZooError, bad_file
from regzoo.spatial import Grid, as_tensor
from regzoo.spatial.distance import signed_distance
from regzoo.spatial.volumes import FILE
from regzoo.transforms.load import file_of
from regzoo.transforms.resample import MIN_VOXELS


class SignedDistanced(MapTransform):
    """Add the signed distance maps of the gland (channel 0 of the labels) on the network grid.

    Soft labels are cut at one half, or at half of their maximum if a gland is so small that it never reaches that.

    Args:
        supersampling: odd number k. Labels are interpolated k times finer before they are cut, to keep a surface that
            lies between the voxels of a coarse grid; distances are taken at the centres of the original voxels. Memory
            and time grow with k³.

    Adds ``fixed_distance`` and ``moving_distance``: (1, X, Y, Z) float32, mm, positive outside, affine of the label.

    Raises:
        RegZooError: a label has no gland on the network grid.

    Source: Bashkanov et al. 2021, section 2.2, which computes the maps beforehand, too.
    """

    def __init__(self, supersampling: int = 1) -> None:
        super().__init__(LABEL_KEYS)
        if supersampling < 1 or supersampling % 2 == 0:
            raise RegZooError(f"supersampling: {supersampling} is not possible; use an odd number: 1, 3, 5, …")
        self.supersampling = int(supersampling)

    def __call__(self, data: Case) -> Case:
        item = data.copy()
        for side in SIDES:
            label = data[side.label]
            gland = as_tensor(label)[0].float()
            if float(gland.sum()) <= MIN_VOXELS:
                name = file_of(label, f"{side.label} of case {data.get(Key.CASE, '')}")
                problem = "holds no gland (channel 0) within the network's field of view"
                raise bad_file(name, problem, "leave the case out, or enlarge size and spacing")
            distance = torch.from_numpy(self._distance(gland, Grid.of(label).spacing))[None]
            item[side.distance] = MetaTensor(distance, affine=label.affine, meta={FILE: file_of(label)})
        return item

    def _distance(self, gland: torch.Tensor, spacing: np.ndarray) -> np.ndarray:
        """Distances on the grid of a soft label (X, Y, Z)."""
        k, top = self.supersampling, float(gland.max())
        if k > 1:
            size = [k * n for n in gland.shape]
            gland = F.interpolate(gland[None, None], size=size, mode="trilinear", align_corners=False)[0, 0]
        distance = signed_distance(gland >= (0.5 if top >= 0.5 else top / 2), spacing / k)
        # With k odd, the middle one of every k fine voxels lies at the centre of the original voxel.
        return np.ascontiguousarray(distance[k // 2 :: k, k // 2 :: k, k // 2 :: k])
