"""The commands that use a saved transformation. Each imports what it needs when it runs."""

from __future__ import annotations

import sys
from importlib import import_module

from regzoo.bundles import as_value
from regzoo.errors import RegZooError
from regzoo.startup import quick_imports


def apply(
    field: str,
    out: str,
    image: str | None = None,
    label: str | None = None,
    points: str | None = None,
    reference: str | None = None,
    from_: str | None = None,
    to: str | None = None,
    frame: str | None = None,
    background: float | None = None,
) -> None:
    """Carry an image, labels or points through a saved transformation, such as field.nii.gz of regzoo register.

    Images and labels go from moving to fixed unless --from fixed --to moving says otherwise; points go where --from and
    --to say. An image is interpolated once, from its own voxels. Labels keep their values. Points outside the field of
    view are marked and get no position.

    Args:
        field: the transformation from fixed to moving: a displacement field (.nii.gz, .nrrd, .mha), or a file of ITK,
            ANTs, elastix, greedy or Learn2Reg.
        out: file to write: NIfTI, .nrrd or .mha for images and labels; for points, the form of the input.
        image: image to carry.
        label: labels to carry: a label map, a mask, a 4-D file, or a list "['a.nii.gz','b.nii.gz']".
        points: points to carry: .fcsv or .mrk.json of 3D Slicer, .csv, or a surface (.vtk, .ply).
        reference: image on whose grid the result lies; by default the grid of the field.
        from_: moving or fixed (written --from): the image to which the input belongs.
        to: fixed or moving: the image to which the result belongs.
        frame: RAS or LPS, for points in a file that does not say so itself, such as .csv.
        background: value of voxels beyond the image; by default its lowest value.
    """
    given = {"--image": image, "--label": label, "--points": points}
    if sum(value is not None for value in given.values()) != 1:
        raise RegZooError(f"apply: carries one thing at a time; give one of {', '.join(given)}")
    useless = {"background": background is not None and image is None, "frame": frame is not None and points is None}
    for option in (name for name, is_useless in useless.items() if is_useless):
        raise RegZooError(f"--{option}: has no effect here; leave it out")
    backwards = _direction(from_, to, points is not None)
    if points is not None:
        with quick_imports():
            from regzoo_tools.transforming import carry_points

        warnings = carry_points(field, out, points, not backwards, reference, frame)
    else:
        with quick_imports():
            from regzoo_tools.transforming import carry

            if label is not None:
                import_module("monai.data")  # only labels need it
        warnings = carry(field, out, image, as_value("moving_label", label), reference, backwards, background)
    for warning in warnings:
        print(f"warning: {out}: {warning}", file=sys.stderr)
    print(out)


def _direction(from_: str | None, to: str | None, must_be_said: bool) -> bool:
    """Whether to carry from fixed to moving."""
    if from_ is None and to is None and not must_be_said:
        return False
    if {from_, to} != {"moving", "fixed"}:
        said = f"--from {from_} --to {to}" if from_ or to else "apply"
        fix = "write --from moving --to fixed, or --from fixed --to moving"
        raise RegZooError(f"{said}: does not say the direction; {fix}")
    return from_ == "fixed"


def invert(field: str, out: str, reference: str | None = None) -> None:
    """Write the inverse of a transformation, from moving to fixed, and print the error of the round trip.

    Args:
        field: the transformation from fixed to moving, in any form that regzoo apply reads.
        out: file to write; see regzoo convert for the forms.
        reference: the moving image, on whose grid the inverse is sampled; by default the grid of the field.
    """
    with quick_imports():
        from regzoo_tools.transforming import invert_file

    error = invert_file(field, out, reference)
    print(out if error is None else f"{out}: the way there and back ends within {error:.3g} mm")


def compose(*fields: str, out: str, reference: str | None = None) -> None:
    """Write one transformation that applies several, in the order in which a point of the fixed image travels.

    The first transformation takes the point out of the fixed image, the last one takes it into the moving image. For
    ANTs that is regzoo compose 1Warp.nii.gz 0GenericAffine.mat: the order of antsApplyTransforms -t.

    Args:
        fields: two or more transformations, in any form that regzoo apply reads.
        out: file to write; see regzoo convert for the forms.
        reference: the fixed image, on whose grid a field is written; by default the grid of the first transformation.
    """
    if not fields:
        raise RegZooError("compose: names no transformation; name two or more")
    with quick_imports():
        from regzoo_tools.transforming import join_files

    join_files(fields, out, reference)
    print(out)


def convert(field: str, out: str, reference: str | None = None, affine: str | None = None) -> None:
    """Write a transformation in another form, which the name of the output says.

    .nii.gz, .nrrd or .mha: a displacement field for ITK, ANTs and 3D Slicer; .h5 or .tfm: a transform file of ITK,
    which keeps the steps of a transformation apart; .npz (half the size) or disp_*.nii.gz: displacements in voxels, for
    Learn2Reg.

    Args:
        field: the transformation from fixed to moving, in any form that regzoo apply reads.
        out: file to write.
        reference: the fixed image, on whose grid a field is written, and which files of Learn2Reg need to be read.
        affine: the affine pre-alignment that the transformation contains; .h5 and .tfm then hold the deformation and
            this pre-alignment as two transforms. A field alone does not show what its affine part was.
    """
    with quick_imports():
        from regzoo_tools.transforming import join_files

    join_files([field], out, reference, affine)
    print(out)


TRANSFORM_COMMANDS = {"apply": apply, "invert": invert, "compose": compose, "convert": convert}
