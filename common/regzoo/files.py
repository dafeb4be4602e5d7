"""Writing files so that nothing half-written is ever left behind."""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from regzoo.errors import bad_file


def make_folder(path: str | os.PathLike[str]) -> Path:
    """Create an output folder and make sure it can be written to.

    Raises:
        RegZooError: the folder cannot be created or written to.
    """
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise bad_file(folder, f"cannot write here ({reason})", "name a folder you may write to") from error
    return folder


def file_name(case: str) -> str:
    """A case's name made fit for a file name."""
    return re.sub(r"[^\w.+-]+", "_", case).strip("._") or "case"


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary name beside `path` that is renamed to it when the block ends well, and removed when it does not.

    The temporary name keeps all suffixes, so libraries that choose a format by suffix still do.
    """
    target = Path(path)
    make_folder(target.parent)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".partial-") as folder:
        temporary = Path(folder) / target.name
        yield temporary
        temporary.replace(target)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a text file atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write a JSON file atomically, indent 4."""
    write_text(path, json.dumps(value, indent=4) + "\n")


def write_nifti(
    path: str | os.PathLike[str], array: np.ndarray, affine: np.ndarray, intent: int | str | None = None
) -> None:
    """Write a NIfTI file atomically.

    Args:
        path: ends in ``.nii`` or ``.nii.gz``.
        array: voxels, written in their own dtype without scaling.
        affine: 4×4, voxel → RAS mm; written as both sform and qform (code 1) so that every reader agrees.
        intent: NIfTI intent code, e.g. 1007 for a vector field.
    """
    image = nib.Nifti1Image(array, np.asarray(affine, dtype=np.float64))
    image.header.set_xyzt_units("mm")
    image.set_sform(affine, code=1)
    image.set_qform(affine, code=1)
    if intent is not None:
        image.header.set_intent(intent)
    with atomic_path(path) as temporary:
        nib.save(image, temporary)
