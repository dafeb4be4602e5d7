"""The options of a refinement, and one set of defaults for each kind of pair."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Hashable, Mapping
from typing import Any, Literal, get_args

import numpy as np
from regzoo.case import Key
from regzoo.errors import RegZooError
from regzoo.spatial import Grid

Linear = Literal["rigid", "similarity", "affine"]
Transformation = Literal["velocity", "displacement", Linear]
#: The similarities, all of which may be combined.
SIMILARITIES = ("lncc", "ncc", "mind", "labels", "distance")
#: The window of soft tissue in a CT, HU.
SOFT_TISSUE = (-160.0, 240.0)
#: The longest side of the smallest images for which the defaults are meant, mm: crops round the hippocampus.
SMALL = 36.0


@dataclasses.dataclass(frozen=True)
class RefinementOptions:
    """How a pair is refined.

    Attributes:
        similarity: the weight of each term: ``lncc`` (local normalised cross-correlation), ``ncc`` (global), ``mind``
            (MIND-SSC, for images of different modalities), ``labels`` (multiscale Dice of the labels that both images
            have) and ``distance`` (signed distances of the first label).
        transformation: ``velocity``, the exponential of a stationary velocity field, which does not fold; or
            ``displacement``, which is faster and may fold; or ``rigid``, ``similarity`` (with one scale) or ``affine``.
        spacing: voxel size of the finest level, mm; axes along which the fixed image is coarser keep its voxel size.
        max_voxels: limit for the finest level; a coarser spacing keeps it.
        steps: optimiser steps at each level, coarse to fine; each level halves the voxel size.
        lattice: distance of the values of the velocity field at the finest level, mm; it has a value at every n-th
            voxel of each level. A linear transformation has none.
        smoothness: weight, at the finest level, of the mean squared difference of neighbouring velocities, in voxels of
            the lattice.
        stiffening: factor of `smoothness` from each level to the next coarser one.
        symmetric: whether the coarse levels of ``velocity`` compare the images in both directions: the warped moving
            image with the fixed one, and the fixed image, warped by the inverse, with the moving one.
        trust: factor of `smoothness` if the refinement starts from a field, such as a network's. Only what the
            refinement adds is penalised, so a larger factor keeps the result nearer to the field.
        rate: step size of the optimiser, voxels of the lattice; of a linear transformation, voxels of the level at the
            edge of the image.
        window: width of the window of ``lncc``, voxels of each level, odd.
        sigmas: scales of ``labels``, mm.
        intensities: the two intensities that are mapped to 0 and 1; others are clipped. None takes the quantiles 0.5 %
            and 99.5 % of each image.
        seconds: time limit for the optimisation; None for none.
    """

    similarity: Mapping[str, float] = dataclasses.field(default_factory=lambda: {"lncc": 1.0})
    transformation: Transformation = "velocity"
    spacing: float = 2.0
    max_voxels: int = 8_000_000
    steps: tuple[int, ...] = (40, 20, 20)
    lattice: float = 2.0
    smoothness: float = 0.1
    stiffening: float = 1.0
    symmetric: bool = False
    trust: float = 1.0
    rate: float = 0.3
    window: int = 9
    sigmas: tuple[float, ...] = (0.0, 2.0, 4.0, 8.0)
    intensities: tuple[float, float] | None = None
    seconds: float | None = None

    @property
    def compares_images(self) -> bool:
        """Whether intensities count, and not labels alone."""
        return not self.similarity.keys() <= {"labels", "distance"}

    @property
    def linear(self) -> Linear | None:
        """The transformation if it is linear."""
        kind = self.transformation
        return None if kind == "velocity" or kind == "displacement" else kind

    def __post_init__(self) -> None:
        """Raise `RegZooError`, one line that names the option, for a value that cannot be used."""
        if not isinstance(self.similarity, Mapping):
            raise RegZooError(f"similarity: {self.similarity!r:.60} is not a dictionary; write {{'lncc': 1.0}}")
        for name in ("steps", "sigmas", "intensities"):
            values = getattr(self, name)
            numbers = isinstance(values, (list, tuple)) and all(_is_number(value) for value in values)
            if not (numbers or (name == "intensities" and values is None)):
                raise RegZooError(f"{name}: {values!r:.60} is not a list of numbers")
        if self.intensities is not None and (len(self.intensities) != 2 or self.intensities[0] >= self.intensities[1]):
            raise RegZooError(f"intensities: {list(self.intensities)} are not two numbers that increase")
        if not self.sigmas or min(self.sigmas) < 0:
            raise RegZooError(f"sigmas: {list(self.sigmas)} is not a list of numbers ≥ 0")
        unknown = [name for name in self.similarity if name not in SIMILARITIES]
        if unknown or not self.similarity:
            raise RegZooError(f"similarity: {unknown or 'nothing'} is not known; use {', '.join(SIMILARITIES)}")
        if self.transformation not in get_args(Transformation):
            known = ", ".join(get_args(Transformation))
            raise RegZooError(f"transformation: {self.transformation!r} is not known; use one of {known}")
        positive = {
            name: getattr(self, name)
            for name in ("spacing", "max_voxels", "lattice", "stiffening", "trust", "rate", "window")
        }
        positive |= {f"similarity {name}": weight for name, weight in self.similarity.items()}
        if self.seconds is not None:
            positive["seconds"] = self.seconds
        for name, value in positive.items():
            if not _is_number(value) or not value > 0:
                raise RegZooError(f"{name}: {value!r} is not a positive number")
        if self.window % 2 != 1:
            raise RegZooError(f"window: {self.window} is not an odd number of voxels; use one such as 9")
        if not _is_number(self.smoothness) or self.smoothness < 0:
            raise RegZooError(f"smoothness: {self.smoothness!r:.60} is not a number ≥ 0")
        if not isinstance(self.symmetric, bool):
            raise RegZooError(f"symmetric: {self.symmetric!r:.60} is not True or False")
        if not self.steps or any(not isinstance(steps, int) or steps < 0 for steps in self.steps):
            raise RegZooError(f"steps: {list(self.steps)} is not a list of whole numbers ≥ 0, one for each level")
        if (len(self.steps) - 1) * abs(math.log10(self.stiffening)) > 6:
            problem = f"over {len(self.steps)} levels is more than a factor of a million; use a number closer to 1"
            raise RegZooError(f"stiffening: {self.stiffening:g} {problem}")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


#: The defaults for each kind of pair.
KINDS: dict[str, RefinementOptions] = {
    "mr": RefinementOptions(spacing=1.0, steps=(40, 24, 16), smoothness=0.14, stiffening=1.8, symmetric=True, rate=0.5),
    "ct": RefinementOptions(
        spacing=3.0, steps=(100, 60, 20), lattice=6.0, smoothness=0.4, window=7, intensities=SOFT_TISSUE
    ),
    "other": RefinementOptions(
        similarity={"mind": 1.0}, spacing=3.0, steps=(100, 60, 20), lattice=6.0, smoothness=0.3, trust=4.0
    ),
    "labels": RefinementOptions(
        similarity={"labels": 1.0}, spacing=2.0, steps=(60, 40, 20), lattice=4.0, smoothness=1.0
    ),
    "outlines": RefinementOptions(
        similarity={"labels": 1.0}, spacing=1.0, steps=(40, 40, 20), smoothness=0.03, sigmas=(0.0, 1.0)
    ),
}


def options_for(kind: str, fixed: Grid | None = None, **changes: Any) -> RefinementOptions:
    """The options for a kind of pair: ``mr`` or ``ct`` (both images), ``other`` (two modalities), or labels of both.

    For those, ``labels`` suits organs, and ``outlines`` structures of a few centimetres.

    Args:
        kind: of the pair.
        fixed: the grid of the fixed image. If its longest side is below `SMALL`, as of a mouse, the defaults of all
            lengths shrink with it, but the spacing not below the voxel size.
        changes: other values for some of the options; None keeps the default.

    Raises:
        RegZooError: an unknown kind or option, or a value that cannot be used.
    """
    if kind not in KINDS:
        raise RegZooError(f"refine: {kind!r:.80} is not a kind of pair; use one of {', '.join(KINDS)}")
    known = {field.name for field in dataclasses.fields(RefinementOptions)}
    for name in changes:
        if name not in known:
            raise RegZooError(f"refine: there is no option {name!r:.80}; use one of {', '.join(sorted(known))}")
    options = KINDS[kind]
    if fixed is not None:
        longest = float(((np.asarray(fixed.shape) - 1) * fixed.spacing).max())
        factor = max(longest / SMALL, float(fixed.spacing.min()) / options.spacing)
        if factor < 1:
            lengths = {name: factor * getattr(options, name) for name in ("spacing", "lattice")}
            options = dataclasses.replace(options, **lengths, sigmas=tuple(factor * mm for mm in options.sigmas))
    return dataclasses.replace(options, **{name: value for name, value in changes.items() if value is not None})


def refinement_asked(values: Mapping[Any, Any], most_seconds: float | None = None) -> dict[Hashable, Any]:
    """The entries ``refine`` and ``refine_seconds`` of a record.

    Args:
        values: the parameters of a request, or the entry of a datalist; numbers and truth values may be strings.
        most_seconds: limit for the time of the refinement, and the time if none is given; None for no limit.

    Raises:
        RegZooError: one line that names the entry.
    """
    words: dict[str, bool | str] = {"false": False, "true": True} | {kind: kind for kind in KINDS}
    refine, seconds = values.get(Key.REFINE), values.get(Key.REFINE_SECONDS, most_seconds)
    word = str(refine).lower() if isinstance(refine, (bool, str)) else None
    if refine is not None and word not in words:
        raise RegZooError(f"{Key.REFINE}: {refine!r:.80} is not a valid value; use one of {', '.join(words)}")
    asked: dict[Hashable, Any] = {} if word is None else {Key.REFINE: words[word]}
    if seconds is None:
        return asked
    try:
        number = math.nan if isinstance(seconds, bool) else float(seconds)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not (math.isfinite(number) and 0 < number <= (most_seconds or number)):
        fix = "give a number above 0" + ("" if most_seconds is None else f", at most {most_seconds:g}")
        raise RegZooError(f"{Key.REFINE_SECONDS}: {seconds!r:.80} is not a valid time; {fix}")
    return asked | ({Key.REFINE_SECONDS: number} if asked.get(Key.REFINE) or Key.REFINE_SECONDS in values else {})
