"""Examines one case as a training sees it: its files, its labels, and how much of them is in view."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import torch
from regzoo.case import FIXED, MOVING, SIDES, Case, Key, Record
from regzoo.datasets.records import record_files
from regzoo.errors import RegZooError, user_error
from regzoo.spatial import Grid, as_tensor, decimals, read_image, read_label_file
from regzoo.spatial.volumes import even_step
from regzoo.transforms.load import LoadPaird, aligned, label_number
from regzoo.transforms.points import landmarks_of
from regzoo.transforms.resample import IN_VIEW, MIN_VOXELS, ResamplePaird, share_in_view
from regzoo_tools.checking.findings import Finding, Severity, collected_warnings, finding_of
from regzoo_tools.checking.sheet import Thumbnail, thumbnail

#: About this many voxels of a label are enough to measure its reach.
SAMPLE = 20_000
#: The percentage of a label's voxels that must fit along each axis.
REACH = 99.0


@dataclass
class ImageFacts:
    """An image: its file, shape, voxel size (mm) and a digest of its values and shape."""

    file: str
    shape: tuple[int, ...]
    spacing: tuple[float, ...]
    digest: str


@dataclass
class CaseFacts:
    """The results of examining a case.

    Attributes:
        record: the case as it is listed.
        images: by side, as far as they can be read.
        names, values: of the labels, as far as they are known; maps have values.
        volumes: of each label by side, mm³.
        shares: of each label by side, how much lies in the network's field of view, NaN for an empty label.
        reach: how far the labels (or, without labels, the fixed image) extend from the middle of the view along the
            network's axes, mm (3,).
    """

    record: Record
    images: dict[str, ImageFacts] = field(default_factory=dict)
    names: list[str] = field(default_factory=list)
    values: list[int] = field(default_factory=list)
    volumes: dict[str, list[float]] = field(default_factory=dict)
    shares: dict[str, list[float]] = field(default_factory=dict)
    reach: list[float] | None = None
    findings: list[Finding] = field(default_factory=list)
    thumbnail: Thumbnail | None = None

    @property
    def case(self) -> str:
        """Its name."""
        return str(self.record[Key.CASE])

    def label_file(self, side: str, channel: int) -> str:
        """The file of a label."""
        files = record_files(self.record, [FIXED.label if side == FIXED.name else MOVING.label])
        return files[channel] if channel < len(files) else files[0]

    def add(self, severity: Severity, file: str, problem: str, fix: str, channel: int | None = None) -> None:
        """Add a finding about one of its files, or about a label in it."""
        if channel is not None:
            problem = f"{label_number(self.values, channel)} {problem}"
        self.findings.append(Finding(severity, file, problem, fix, self.case, channel))

    def add_lines(self, severity: Severity, lines: Sequence[str]) -> None:
        """Add the findings of errors or warnings, each once."""
        files, image = record_files(self.record), self.record[FIXED.image]
        self.findings += [finding_of(line, severity, files, self.case, image) for line in dict.fromkeys(lines)]


class Examiner:
    """Examines cases, one after another.

    Args:
        load: the training's loader; its ``need`` names the labels that training needs.
        steps: the steps after loading and before the network grid: units, field of view, alignment.
        view: resamples the case onto the network grid; None if unknown.
    """

    def __init__(
        self, load: LoadPaird, steps: Sequence[Callable[[Any], Any]], view: ResamplePaird | None = None
    ) -> None:
        self.need, load.need = load.need, ()
        self.load, self.steps, self.view = load, steps, view

    def __call__(self, record: Record, draw: bool) -> CaseFacts:
        """Examine a case, and make a thumbnail of it if `draw`."""
        facts = CaseFacts(record)
        needed = self.need if record.get(Key.SPLIT, "train") != "test" else ()
        with collected_warnings() as warnings:
            item = self._loaded(facts, needed)
            grid = None if item is None else self._prepared(item, facts)
            if item is not None and grid is not None:
                self._look_at_labels(item, grid, facts, needed)
                if draw:
                    facts.thumbnail = thumbnail(item, grid, facts.case)
        facts.add_lines("warning", warnings)
        return facts

    def _loaded(self, facts: CaseFacts, needed: Sequence[str]) -> Case | None:
        """The loaded case; None if a file is bad, and then each file is examined by itself."""
        record = facts.record
        for side in SIDES:
            if side.label in needed and side.image in record and not record.get(side.label):
                problem = "comes without its label, which training needs"
                facts.add("error", record[side.image], problem, f"name it as {side.label}, or leave it out")
        self.load.first = None  # the values of all cases are compared later, see `compare_cases`
        try:
            item = self.load(cast(Any, record))
        except Exception as error:
            facts.add_lines("error", self._bad_files(facts) or [_known(error)])
            return None
        for side in SIDES:
            if (image := item.get(side.image)) is not None:
                facts.images[side.name] = _image_facts(record[side.image], image)
        facts.names = [str(name) for name in item.get(Key.LABEL_NAMES) or ()]
        facts.values = list(item.get(Key.LABEL_VALUES) or ())
        try:
            landmarks_of(item, (FIXED.image, MOVING.image))
        except RegZooError as error:
            facts.add_lines("error", [str(error)])
        return item

    def _bad_files(self, facts: CaseFacts) -> list[str]:
        """The errors of each file of a case."""
        problems: list[str] = []
        for side in SIDES:
            grid = None
            try:
                if path := facts.record.get(side.image):
                    image = read_image(path, allow_nan=self.load.allow_nan)
                    grid = Grid.of(image)
                    facts.images[side.name] = _image_facts(path, image)
            except Exception as error:
                problems.append(_known(error))
            try:
                if label := facts.record.get(side.label):
                    read_label_file(label, grid)
            except Exception as error:
                problems.append(_known(error))
        return problems

    def _prepared(self, item: Case, facts: CaseFacts) -> Grid | None:
        """Take a case through the steps before the network grid, which is returned; None if a step refuses it."""
        try:
            for step in self.steps:
                item.update(step(item))
            for key in (MOVING.image, MOVING.label):
                if key in item:
                    item[key] = aligned(item, item[key])
            item.pop(Key.PREALIGNMENT, None)  # from here on both images lie in one world
            if self.view is not None:
                return self.view.target(item)
            fixed = Grid.of(item[FIXED.image])
            box = np.abs(_corners(fixed, fixed.network_grid((1, 1, 1), (8, 8, 8)))).max(axis=0)
            return fixed.network_grid((2 * box / 64).tolist(), (64, 64, 64))
        except Exception as error:
            facts.add_lines("error", [_known(error)])
            return None

    def _look_at_labels(self, item: Case, grid: Grid, facts: CaseFacts, needed: Sequence[str]) -> None:
        """Record the labels' volumes, shares in view and reach, and findings about them."""
        labels = {side.name: item[side.label] for side in SIDES if side.label in item}
        reaches, seen = [], []
        for side, label in labels.items():
            voxel = float(abs(np.linalg.det(Grid.of(label).affine[:3, :3])))
            voxels = as_tensor(label).flatten(1).sum(1)
            shares = share_in_view(label, grid)
            facts.volumes[side] = (voxels * voxel).tolist()
            facts.shares[side] = shares.tolist()
            reaches.append(_reach(label, grid))
            seen.append(torch.nan_to_num(shares) * voxels * voxel / float(np.prod(grid.spacing)) > MIN_VOXELS)
        reach = np.nanmax(np.concatenate(reaches), axis=0) if reaches else np.full(3, np.nan)
        if not np.isfinite(reach).all():
            reach = np.abs(_corners(Grid.of(item[FIXED.image]), grid)).max(axis=0)
        facts.reach = reach.tolist()
        self._judge_labels(facts)
        if self.view is not None and seen and needed and not bool(torch.stack(seen).all(dim=0).any()):
            shared = "in common with its moving image " if len(seen) > 1 else ""
            problem = f"has no label {shared}within the network's field of view"
            fix = "leave the case out, enlarge size and spacing, or choose another --align"
            facts.add("error", facts.record[FIXED.image], problem, fix)

    def _judge_labels(self, facts: CaseFacts) -> None:
        for side, volumes in facts.volumes.items():
            if facts.names and len(facts.names) != len(volumes):
                problem = f"holds {len(volumes)} labels, and label_names lists {len(facts.names)} names"
                facts.add("warning", facts.label_file(side, 0), problem, "name each label once")
            other = MOVING.name if side == FIXED.name else FIXED.name
            for channel, volume in enumerate(volumes):
                file = facts.label_file(side, channel)
                if volume == 0 and facts.volumes.get(other, volumes)[channel] > 0:
                    problem = f"is empty here but drawn in {facts.label_file(other, channel)}"
                    facts.add("warning", file, problem, "draw it, or leave it empty if it cannot be seen", channel)
                share = facts.shares[side][channel]
                if self.view is not None and share < IN_VIEW:
                    problem = f"has only {100 * share:.0f} % of its volume in the network's field of view"
                    facts.add("warning", file, problem, "enlarge size or spacing, or choose another --align", channel)


def _known(error: Exception) -> str:
    """The message of an error that the user can fix; other errors are raised again."""
    known = user_error(error)
    if known is None:
        raise error
    return str(known)


def _image_facts(file: str, image: Any) -> ImageFacts:
    values = as_tensor(image)[0]
    digest = hashlib.blake2b(values.numpy().tobytes(), digest_size=16)
    digest.update(repr(tuple(values.shape)).encode())
    spacing = tuple(round(float(mm), decimals(mm, 4)) for mm in Grid.of(image).spacing)
    return ImageFacts(str(file), tuple(values.shape), spacing, digest.hexdigest())


def _from_middle(points: np.ndarray, source: Grid, view: Grid) -> np.ndarray:
    """Voxels (N, 3) of a grid, in mm from the middle of a view along its axes."""
    return (view.to_voxels(source.to_world(points)) - (np.asarray(view.shape) - 1) / 2) * view.spacing


def _corners(grid: Grid, view: Grid) -> np.ndarray:
    ends = [(-0.5, n - 0.5) for n in grid.shape]
    return _from_middle(np.stack(np.meshgrid(*ends, indexing="ij"), -1).reshape(-1, 3), grid, view)


def _reach(label: Any, view: Grid) -> np.ndarray:
    """How far labels (C, X, Y, Z) extend from the middle of a view along its axes, mm (C, 3); NaN if empty."""
    source, found = Grid.of(label), []
    for mask in as_tensor(label):
        voxels = np.argwhere(mask.numpy() > 0)
        voxels = voxels[:: even_step(len(voxels), SAMPLE)]
        far = np.abs(_from_middle(voxels, source, view)) if len(voxels) else np.full((1, 3), np.nan)
        found.append(np.percentile(far, REACH, axis=0))
    return np.stack(found)
