"""What the commands of `regzoo_tools.transform_commands` do; their arguments are explained there."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from regzoo.errors import RegZooError, bad_file
from regzoo.ownership import own_path
from regzoo.spatial import DisplacementField, Grid, LabelFile, label_values, read_label_file
from regzoo.spatial.carry import carry_held
from regzoo.spatial.held import boxes, hold, in_form_of_file, write_labels
from regzoo.spatial.point_files import point_suffix, read_points
from regzoo.spatial.transform_files import APART, WRITTEN, read_transformation, write_transformation
from regzoo.spatial.transformation import Affine, Transformation, probes, round_trip, within_grid
from regzoo.spatial.volumes import check_spatial, read_image_values, read_values
from regzoo.spatial.writing import IMAGE_FORMS, write_image

if TYPE_CHECKING:
    from monai.data import MetaTensor

File = str | Path
#: The suffix of segmentations of 3D Slicer, which hold labels alone.
SEGMENTS = ".seg.nrrd"


def carry(
    field: File,
    out: File,
    image: File | None = None,
    label: File | Sequence[str] | None = None,
    reference: File | None = None,
    to_moving: bool = False,
    background: float | None = None,
) -> list[str]:
    """Carry an image or labels from the moving to the fixed image or, through the inverse, `to_moving`.

    Args:
        image, label: exactly one of the two; `label` may be a list of masks.

    Returns:
        A warning if nothing of the image lies on the grid of the result, or one for each label that is lost there.

    Raises:
        RegZooError: a file cannot be used, or the grid of the result is not known.
    """
    check_out(out, IMAGE_FORMS if label is None else (*IMAGE_FORMS, SEGMENTS), field, image, label, reference)
    if background is not None and not abs(background) <= float(np.finfo(np.float32).max):
        raise RegZooError(f"background: {background:g} is not a value of a voxel; use a smaller number")
    on = sampled(field, reference, to_moving)
    with own_path(out) as temporary:
        if image is not None:
            values, moving = read_image_values(image)
            low = float(values.min()) if background is None else background
            carried = on.warp_values(values, moving, background=low)[0]
            write_image(temporary, carried.numpy(), on.grid.affine)
            return [] if bool((carried != low).any()) else [_shows_nothing(image, to_moving)]
        assert label is not None
        file = read_label_file(label if isinstance(label, str | Path) else list(label))
        labels, lost = carried_labels(on, file)
        write_labels(temporary, labels, file.names)
        if not bool(labels.any()):
            return [_shows_nothing(label, to_moving)]
        return [f"{name}: no part of it lies on the grid of this file" for name in lost]


def _shows_nothing(source: File | Sequence[str], to_moving: bool) -> str:
    world = "fixed" if to_moving else "moving"
    return f"shows nothing of {source}; check that it lies in the world of the {world} image"


def carried_labels(field: DisplacementField, file: LabelFile) -> tuple[MetaTensor, list[str]]:
    """The labels of a file on the grid of a field, in the form of the file, and the names of those that are lost."""
    values = label_values(file.volume) if file.is_map else None
    count = len(values) if values is not None else len(file.volume)
    held = hold(file.volume, values)
    carried = carry_held(field, held, count)
    found = zip(values or range(1, count + 1), boxes(held, count), boxes(carried, count), strict=True)
    lost = [
        f"{'mask' if values is None else 'label'} {number}"
        + (f" ({file.names[number]})" if number in file.names else "")
        for number, before, after in found
        if before is not None and after is None
    ]
    return in_form_of_file(carried, values, file.mask_values or None, file.axes), lost


def sampled(field: File, reference: File | None, to_moving: bool) -> DisplacementField:
    """The transformation of a file from the target of the voxels to their source, sampled on the target's grid."""
    grid = grid_of(reference)
    if to_moving and grid is None:
        raise bad_file(field, "does not say where the moving image's voxels lie", "name that image with --reference")
    transformation = read_transformation(field, grid)
    grid = grid or transformation.grid
    if grid is None:
        raise bad_file(field, "does not say where the fixed image's voxels lie", "name that image with --reference")
    return (transformation.inverse() if to_moving else transformation).on(grid)


def carry_points(
    field: File, out: File, points: File, to_fixed: bool, reference: File | None = None, frame: str | None = None
) -> list[str]:
    """Carry points or a surface from the fixed to the moving image or, through the inverse, `to_fixed`.

    Returns:
        A warning if some of the points lie outside the field of view.
    """
    check_out(out, [point_suffix(points)], field, points, reference)
    file, grid = read_points(points, frame), grid_of(reference)
    transformation = read_transformation(field, grid)
    fixed, moving = (grid or transformation.grid, None) if to_fixed else (transformation.grid, grid)
    moved, known = transformation.carry(file.points, to_fixed, fixed, moving)
    with own_path(out) as temporary:
        file.write(temporary, moved, known)
    outside = int((~known).sum())
    return [f"{outside} of {len(known)} points lie outside the field of view"] if outside else []


def grid_of(path: File | None) -> Grid | None:
    """The grid of a file of an image, of labels or of a field; None without a file."""
    if path is None:
        return None
    values, affine, _ = read_values(path)
    check_spatial(path, values)
    x, y, z = values.shape[:3]
    return Grid((x, y, z), affine)


def invert_file(field: File, out: File, reference: File | None = None) -> float | None:
    """Write the transformation from moving to fixed.

    Returns:
        The `round_trip` in mm; None for an affine map, whose inverse is exact.
    """
    check_out(out, WRITTEN, field, reference)
    moving = grid_of(reference)
    forward = read_transformation(field, moving)
    grid = moving or forward.grid
    if grid is None and not (_is_affine(forward) and str(out).lower().endswith(APART)):
        raise bad_file(field, "does not say where to sample its inverse", "name the moving image with --reference")
    if grid is not None and reference is None:
        outside = 1 - float(within_grid(forward.points(probes(grid)), grid).mean())
        if outside > 0.5:
            problem = f"takes {outside:.0%} of the fixed image out of the grid on which its inverse would be sampled"
            raise bad_file(field, problem, "name the moving image with --reference")
    with own_path(out) as temporary:
        write_transformation(temporary, forward.inverse(), grid)
        return None if grid is None else round_trip(forward, read_transformation(temporary, grid), grid)


def join_files(fields: Sequence[File], out: File, reference: File | None = None, affine: File | None = None) -> None:
    """Write one transformation that applies several, in the order in which a point of the fixed image travels.

    If `affine` is the last step that `fields` contain, a file of ITK holds the deformation and this step apart.
    """
    check_out(out, WRITTEN, *fields, reference, affine)
    if affine is not None and not str(out).lower().endswith(APART):
        fix = f"leave it out, or write {' or '.join(APART)}"
        raise RegZooError(f"--affine: has no effect on {out}, which holds one field; {fix}")
    grid = grid_of(reference)
    whole = Transformation(*(step for file in fields for step in read_transformation(file, grid).steps))
    if affine is not None:
        last = read_transformation(affine)
        if not _is_affine(last):
            raise bad_file(affine, "is not affine", "name the affine pre-alignment")
        if (home := grid or whole.grid) is None:
            raise bad_file(fields[0], "does not say where its voxels lie", "name the fixed image with --reference")
        whole = last @ Transformation((last.inverse() @ whole).on(home))
    with own_path(out) as temporary:
        write_transformation(temporary, whole, grid)


def _is_affine(transformation: Transformation) -> bool:
    return all(isinstance(step, Affine) for step, _ in transformation.steps)


def check_out(out: File, suffixes: Sequence[str], *inputs: File | Sequence[str] | None) -> None:
    """Refuse an output that has another suffix or is one of the inputs, before any work is done."""
    if not str(out).lower().endswith(tuple(suffixes)):
        raise bad_file(out, "has a suffix that cannot be written here", f"let it end in {', '.join(suffixes)}")
    if str(out).lower().endswith(SEGMENTS) and SEGMENTS not in suffixes:
        raise bad_file(out, "has the suffix of a segmentation, but would hold none", "let it end in .nrrd alone")
    flat = [one for given in inputs if given for one in ([given] if isinstance(given, str | Path) else given)]
    if any(Path(str(one)).exists() and Path(out).exists() and Path(str(one)).samefile(out) for one in flat):
        raise bad_file(out, "is also an input", "name another file")
