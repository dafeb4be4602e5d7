"""Grids and frames, warping, composition, Jacobians, and fields that ITK, ANTs and 3D Slicer read."""

from regzoo.spatial.carry import carry_labels
from regzoo.spatial.field import DisplacementField
from regzoo.spatial.grid import RAS_LPS, Grid, decimals
from regzoo.spatial.labels import LabelFile, check_on_grid, label_values, read_label_file, to_channels
from regzoo.spatial.volumes import as_tensor, centroids, read_image
from regzoo.spatial.warp import compose, jacobian_determinant, resample, sample, warp
from regzoo.spatial.writing import write_nifti

__all__ = [
    "RAS_LPS",
    "DisplacementField",
    "Grid",
    "LabelFile",
    "as_tensor",
    "carry_labels",
    "centroids",
    "check_on_grid",
    "compose",
    "decimals",
    "jacobian_determinant",
    "label_values",
    "read_image",
    "read_label_file",
    "resample",
    "sample",
    "to_channels",
    "warp",
    "write_nifti",
]
