"""What a registration takes of memory does not depend on the number of labels, and stays within its budget."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from helpers import write

ROOT = Path(__file__).resolve().parents[2]
SHAPE = (150, 140, 100)
#: Of the libraries, and of each voxel of the fixed image beside; bytes.
FIXED_COST, VOXEL_COST = 1.0e9, 60
#: Makes glibc return large blocks at once. Otherwise it keeps freed blocks, and the peak varies by 14 bytes of a voxel.
EXACT = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1", "OMP_NUM_THREADS": "1"}
COMMAND = """
import re, sys
from pathlib import Path
from regzoo.inference import register
register(*sys.argv[1:5], out=sys.argv[5], device="cpu")
# Not ru_maxrss, in which Linux counts the process that started this one.
print(int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024)
"""


def pair(folder: Path, labels: int) -> list[str]:
    """A body with organs in it: fixed, moving and labels, one map."""
    affine = np.diag([2.4, 2.4, 3.0, 1.0])
    affine[:3, 3] = -affine[:3, :3] @ (np.array(SHAPE) / 2)
    x, y, z = np.meshgrid(*[np.linspace(-1, 1, n, dtype=np.float32) for n in SHAPE], indexing="ij")
    body = np.where(x**2 + y**2 < 0.6, 40 + 20 * np.sin(9 * x) * np.cos(7 * y + z), -1000).astype(np.int16)
    organs = np.zeros(SHAPE, np.uint8)
    for number in range(labels):
        angle = 2 * np.pi * number / labels
        organs[(x - 0.5 * np.cos(angle)) ** 2 + (y - 0.5 * np.sin(angle)) ** 2 + z**2 < 0.02] = number + 1
    images = {"fixed": body, "moving": np.roll(body, 3, 0), "label": organs}
    return [str(write(folder / f"{name}_{labels}.nii.gz", image, affine)) for name, image in images.items()]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
def test_memory_does_not_grow_with_the_number_of_labels(tmp_path: Path) -> None:
    peaks = []
    for labels in (1, 40):
        bundle = str(ROOT / "bundles" / "abdominal_ct_ddmr")
        command = [sys.executable, "-c", COMMAND, bundle, *pair(tmp_path, labels), str(tmp_path / f"{labels}")]
        environment = os.environ | EXACT
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
        peaks.append(float(done.stdout.split()[-1]))
        written = np.asarray(nib.load(tmp_path / f"{labels}" / "warped_label.nii.gz").dataobj)
        assert set(np.unique(written)) == set(range(labels + 1))
    voxels = np.prod(SHAPE)
    assert max(peaks) < FIXED_COST + VOXEL_COST * voxels
    # As masks of floats each label took 21 bytes of a voxel: all 39 more of them may not take as much now.
    assert (peaks[1] - peaks[0]) / voxels < 21
