"""What the registration tools in ``peer_methods.py`` share: the images, where they begin, time and memory."""

from __future__ import annotations

import json
import os
import resource
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import SimpleITK as sitk

THREADS = 2
STATUS, CLEAR_REFS, STAT = Path("/proc/self/status"), Path("/proc/self/clear_refs"), Path("/proc/stat")


class Meter:
    """Wall seconds, CPU-seconds (of the process and its children) and peak resident memory, MiB, of a ``with`` block.

    ``others`` is the share of the machine that other processes took meanwhile.
    """

    def __enter__(self) -> Meter:
        if CLEAR_REFS.exists():
            CLEAR_REFS.write_text("5")  # the high-water mark falls to what is in use now
        self.machine, self.cpu, self.wall = machine_seconds(), own_seconds(), time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self.wall = time.perf_counter() - self.wall
        self.cpu = own_seconds() - self.cpu
        busy = machine_seconds() - self.machine
        self.others = max(0.0, busy - self.cpu) / (self.wall * (os.cpu_count() or 1))
        line = next((line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM:")), "VmHWM: nan")
        children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
        self.peak = max(float(line.split()[1]), float(children)) / 1024

    def as_dict(self) -> dict[str, float]:
        """What was measured."""
        return {"seconds": self.wall, "cpu_seconds": self.cpu, "peak_mib": self.peak, "others": self.others}


def own_seconds() -> float:
    """CPU time of this process and of its children that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in used)


def machine_seconds() -> float:
    """CPU time of all processes of the machine since it was started."""
    user, nice, system = (int(word) for word in STAT.read_text().split()[1:4])
    return (user + nice + system) / os.sysconf("SC_CLK_TCK")


class Pair:
    """The images of a pair, and where a registration begins.

    Attributes:
        aligned: whether the headers align the images. Otherwise every tool begins with an affine registration: its own
            where it has one, SimpleITK's where it has none.
        kind: of the images, as RegZoo's ``--refine`` takes it.
        affine: that of SimpleITK, once it was found: fixed to moving, mm, LPS, 4×4.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.fixed, self.moving = (self.read(f"{side}.nii.gz") for side in ("fixed", "moving"))
        facts = json.loads((folder / "pair.json").read_text())
        self.aligned, self.kind = bool(facts["aligned"]), str(facts["kind"])
        self.affine = np.eye(4)

    def read(self, name: str) -> sitk.Image:
        """An image in float32."""
        return sitk.ReadImage(str(self.folder / name), sitk.sitkFloat32)

    @property
    def background(self) -> float:
        """What lies outside the moving image."""
        return float(sitk.GetArrayViewFromImage(self.moving).min())

    def moved(self) -> sitk.Image:
        """The moving image on the fixed grid, after an affine registration where one is needed."""
        if not self.aligned:
            self.affine = affine(self.fixed, self.moving)
        return sitk.Resample(self.moving, self.fixed, as_transform(self.affine), sitk.sitkLinear, self.background)

    def field(self, points: np.ndarray) -> sitk.Image:
        """The displacement to points (Z, Y, X, 3), mm, LPS, of every fixed voxel."""
        field = sitk.GetImageFromArray(points - grid_points(self.fixed), isVector=True)
        field.CopyInformation(self.fixed)
        return field

    def after(self, displacement: np.ndarray) -> sitk.Image:
        """The whole displacement, of one (Z, Y, X, 3) between the fixed and the `moved` image."""
        points = grid_points(self.fixed) + displacement
        return self.field(points @ self.affine[:3, :3].T + self.affine[:3, 3])


def as_transform(matrix: np.ndarray) -> sitk.AffineTransform:
    """A 4×4 matrix for SimpleITK."""
    transform = sitk.AffineTransform(3)
    transform.SetMatrix(matrix[:3, :3].ravel().tolist())
    transform.SetTranslation(matrix[:3, 3].tolist())
    return transform


def grid_points(image: sitk.Image) -> np.ndarray:
    """Where the voxels of an image lie, mm, LPS: (Z, Y, X, 3)."""
    grid = (image.GetSize(), image.GetOrigin(), image.GetSpacing(), image.GetDirection())
    return np.asarray(sitk.GetArrayFromImage(sitk.PhysicalPointSource(sitk.sitkVectorFloat64, *grid)))


def index_matrix(image: sitk.Image) -> np.ndarray:
    """Voxel (x, y, z) → mm, LPS: 4×4."""
    matrix = np.eye(4)
    matrix[:3, :3] = np.asarray(image.GetDirection()).reshape(3, 3) * np.asarray(image.GetSpacing())
    matrix[:3, 3] = image.GetOrigin()
    return matrix


def xyz(image: sitk.Image) -> np.ndarray:
    """The voxels as (X, Y, Z)."""
    return np.ascontiguousarray(sitk.GetArrayFromImage(image).transpose(2, 1, 0))


def affine(fixed: sitk.Image, moving: sitk.Image, mask: sitk.Image | None = None) -> np.ndarray:
    """SimpleITK's affine registration by mutual information, from the centres of the images, within a mask of the
    fixed one: 4×4, fixed to moving."""
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(32)
    method.SetMetricSamplingStrategy(method.REGULAR)
    method.SetMetricSamplingPercentage(0.25)
    method.SetInterpolator(sitk.sitkLinear)
    method.SetOptimizerAsRegularStepGradientDescent(1.0, 1e-3, 100)
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetShrinkFactorsPerLevel([4, 2])
    method.SetSmoothingSigmasPerLevel([2.0, 1.0])
    method.SmoothingSigmasAreSpecifiedInPhysicalUnitsOff()
    initial = sitk.CenteredTransformInitializer(
        fixed, moving, sitk.AffineTransform(3), sitk.CenteredTransformInitializerFilter.GEOMETRY
    )
    method.SetInitialTransform(initial, True)
    if mask is not None:
        method.SetMetricFixedMask(mask)
    method.Execute(fixed, moving)
    matrix = np.eye(4)
    matrix[:3, 3] = initial.TransformPoint((0.0, 0.0, 0.0))
    columns = [np.asarray(initial.TransformPoint(axis)) - matrix[:3, 3] for axis in np.eye(3).tolist()]
    matrix[:3, :3] = np.stack(columns, axis=1)
    return matrix


#: A field on the fixed grid, and the moving image as the tool itself warps it.
Found = tuple[sitk.Image, sitk.Image]
Method = Callable[[Pair, Meter], Found]
