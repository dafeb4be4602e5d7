"""Write DICOM files byte by byte, as the standard (part 10, explicit VR little endian) describes them."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

CT, MR, ENHANCED_MR = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.4", "1.2.840.10008.5.1.4.1.1.4.1"
SEG, RTSTRUCT = "1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.481.3"
EXPLICIT, JPEG_2000 = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.4.90"
_RAS_LPS = np.diag([-1.0, -1, 1, 1])

#: Tag → (VR, value); the value of a sequence is a list of such data sets, that of compressed pixels a list of bytes.
Elements = dict[int, tuple[str, Any]]


def encoded(elements: Mapping[int, tuple[str, Any]]) -> bytes:
    """A data set in explicit VR little endian."""
    return b"".join(_element(tag, *elements[tag]) for tag in sorted(elements))


def _element(tag: int, vr: str, value: Any) -> bytes:
    if vr == "OB" and isinstance(value, list):
        items = b"".join(struct.pack("<HHI", 0xFFFE, 0xE000, len(item)) + item for item in (b"", *value))
        head = struct.pack("<HH2sHI", tag >> 16, tag & 0xFFFF, b"OB", 0, 0xFFFFFFFF)
        return head + items + struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
    if vr == "SQ":
        sets = [encoded(item) for item in value]
        data = b"".join(struct.pack("<HHI", 0xFFFE, 0xE000, len(item)) + item for item in sets)
    elif vr in ("US", "UL"):
        data = struct.pack("<H" if vr == "US" else "<I", value)
    elif isinstance(value, bytes):
        data = value + b"\0" * (len(value) % 2)
    else:
        numbers = isinstance(value, (list, tuple, np.ndarray))
        text = "\\".join(f"{float(x):.10g}" for x in value) if numbers else str(value)
        data = text.encode() + (b"\0" if vr == "UI" else b" ") * (len(text) % 2)
    head = struct.pack("<HH2s", tag >> 16, tag & 0xFFFF, vr.encode())
    if vr in ("OB", "OW", "SQ", "UN"):
        return head + struct.pack("<HI", 0, len(data)) + data
    return head + struct.pack("<H", len(data)) + data


def write_dicom(path: Path, elements: Elements, syntax: str = EXPLICIT) -> Path:
    """Write one file; the SOP class and instance must be among the elements."""
    meta: Elements = {
        0x00020001: ("OB", b"\0\1"),
        0x00020002: ("UI", elements[0x00080016][1]),
        0x00020003: ("UI", elements[0x00080018][1]),
        0x00020010: ("UI", syntax),
        0x00020012: ("UI", "1.2.3"),
    }
    group = encoded(meta)
    length = encoded({0x00020000: ("UL", len(group))})
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes(128) + b"DICM" + length + group + encoded(elements))
    return path


def plane(affine: np.ndarray, index: float = 0) -> tuple[list[float], list[float], np.ndarray, np.ndarray]:
    """Spacing (rows, columns), thickness, orientation and position of a slice of a grid, voxel → RAS mm."""
    lps = _RAS_LPS @ affine
    size = np.linalg.norm(lps[:3, :3], axis=0)
    axes = lps[:3, :3] / size
    return [size[1], size[0]], [size[2]], axes[:, :2].T.ravel(), (lps @ [0, 0, index, 1])[:3]


def slice_elements(voxels: np.ndarray, affine: np.ndarray, index: int, series: str = "1.2.3.4") -> Elements:
    """The elements of the image of one slice of int16 voxels (X, Y, Z), voxel → RAS mm."""
    spacing, thickness, orientation, position = plane(affine, index)
    return {
        0x00080016: ("UI", MR),
        0x00080018: ("UI", f"{series}.{index + 1}"),
        0x00080060: ("CS", "MR"),
        0x0008103E: ("LO", "t2 axial"),
        0x00180050: ("DS", thickness),
        0x0020000D: ("UI", "1.2.3"),
        0x0020000E: ("UI", series),
        0x00200011: ("IS", int(series.rpartition(".")[2])),
        0x00200013: ("IS", index + 1),
        0x00200032: ("DS", position),
        0x00200037: ("DS", orientation),
        0x00280002: ("US", 1),
        0x00280004: ("CS", "MONOCHROME2"),
        0x00280010: ("US", voxels.shape[1]),
        0x00280011: ("US", voxels.shape[0]),
        0x00280030: ("DS", spacing),
        0x00280100: ("US", 16),
        0x00280101: ("US", 16),
        0x00280102: ("US", 15),
        0x00280103: ("US", 1),
        0x7FE00010: ("OW", np.ascontiguousarray(voxels[:, :, index].T).astype("<i2").tobytes()),
    }


def write_series(folder: Path, voxels: np.ndarray, affine: np.ndarray, series: str = "1.2.3.4") -> list[Path]:
    """Write int16 voxels (X, Y, Z) as one file for each slice, under names in another order than the slices."""
    names = np.random.default_rng(0).permutation(voxels.shape[2])
    return [
        write_dicom(folder / f"IM{names[index]:03d}", slice_elements(voxels, affine, index, series))
        for index in range(voxels.shape[2])
    ]


def enhanced_elements(voxels: np.ndarray, affine: np.ndarray, series: str = "1.2.3.4") -> Elements:
    """The elements of one enhanced file that holds all slices as frames."""
    elements = slice_elements(voxels, affine, 0, series)
    spacing, thickness, orientation, _ = plane(affine)
    for tag in (0x00180050, 0x00200032, 0x00200037, 0x00280030):
        del elements[tag]
    measures: Elements = {0x00180050: ("DS", thickness), 0x00280030: ("DS", spacing)}
    shared: Elements = {0x00209116: ("SQ", [{0x00200037: ("DS", orientation)}]), 0x00289110: ("SQ", [measures])}
    frames: list[Elements] = [
        {
            0x00209111: ("SQ", [{0x00209057: ("UL", index + 1)}]),
            0x00209113: ("SQ", [{0x00200032: ("DS", plane(affine, index)[3])}]),
        }
        for index in range(voxels.shape[2])
    ]
    return elements | {
        0x00080016: ("UI", ENHANCED_MR),
        0x00280008: ("IS", voxels.shape[2]),
        0x52009229: ("SQ", [shared]),
        0x52009230: ("SQ", frames),
        0x7FE00010: ("OW", np.ascontiguousarray(voxels.T).astype("<i2").tobytes()),
    }
