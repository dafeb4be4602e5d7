"""The pairs of ``peers.py``: real images with label maps, and phantoms; as files that every tool reads."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from regzoo.files import make_folder, write_json
from regzoo.refinement.options import SOFT_TISSUE
from regzoo_phantoms import embedded_phantoms
from same_world import world_of_copy
from trainings import DATA

#: FreeSurfer's labels that brain registrations are usually measured on, and organs, as in ``shared/data/README.md``.
BRAIN = [2, 3, 4, 7, 8, *range(10, 19), 24, 28, 31, 41, 42, 43, 46, 47, *range(49, 55), 60, 63]
ORGANS = [1, 2, 3, 6, 7, 8, 9]
SEED = 2029  # of phantoms that no training saw
KINDS, SIDES = ("images", "labels"), ("fixed", "moving")


@dataclass(frozen=True)
class Facts:
    """What is known of a pair; ``pair.json`` in its folder.

    Attributes:
        case: its name within the group.
        kind: of the images, as RegZoo's ``--refine`` takes it: ``mr``, ``ct`` or ``other``.
        aligned: whether the headers align the images, see `peer_tools.Pair`.
        labels: values of the label maps, or channels of 4-D files; Dice and HD95 are means over them.
        landmarks: labels that the TRE is the mean of, or the root mean square.
        reduction: ``mean`` or ``rms``.
    """

    case: str
    kind: str
    aligned: bool
    labels: list[int]
    landmarks: list[int]
    reduction: str = "mean"

    @classmethod
    def of(cls, pair: Path) -> Facts:
        """Those of a pair."""
        return cls(**json.loads((pair / "pair.json").read_text(encoding="utf-8")))


@dataclass(frozen=True)
class Group:
    """Pairs that make one table.

    Attributes:
        title: its heading.
        write: writes the pairs that are not there yet and returns their folders; none where the data are absent.
    """

    title: str
    write: Callable[[Path, Path], list[Path]]

    def pairs(self, name: str, data: Path) -> list[Path]:
        """Folders of the pairs.

        Args:
            name: of the group.
            data: folder of the real images.
        """
        return self.write(DATA / "peers" / "pairs" / name, data)


def copy(
    source: Path,
    target: Path,
    matrix: np.ndarray | None = None,
    window: Sequence[float] | None = None,
    channel: int | None = None,
) -> None:
    """Copy an image, its world through a matrix (4×4, RAS mm), its intensities within a window, one of its channels."""
    image = nib.nifti1.load(source)
    values = np.asanyarray(image.dataobj)
    if channel is not None:
        values = values[..., channel]
    if window:
        values = values.clip(*window).astype(np.float32)
    affine = np.eye(4) if matrix is None else matrix
    nib.save(nib.Nifti1Image(values, affine @ image.affine, None if matrix is not None else image.header), target)


def write_pair(
    folder: Path,
    facts: Facts,
    images: Sequence[Path],
    labels: Sequence[Path],
    worlds: Sequence[np.ndarray | None] = (None, None),
    truth: Path | None = None,
) -> Path:
    """Write a pair: MRs and ultrasound as they are, CTs within a window and, as ``…_hu.nii.gz``, as they are.

    Args:
        folder: of the pair.
        facts: what ``pair.json`` says.
        images: fixed and moving.
        labels: fixed and moving, on any grids.
        worlds: from the worlds of the label maps to those of the images, 4×4, RAS mm.
        truth: the true displacement, as `regzoo.DisplacementField` saves it.
    """
    make_folder(folder)
    ct = facts.kind == "ct"
    for side, image, label, world in zip(SIDES, images, labels, worlds, strict=True):
        copy(image, folder / f"{side}.nii.gz", window=SOFT_TISSUE if ct else None)
        copy(label, folder / f"{side}_label.nii.gz", world)
        if ct:
            copy(image, folder / f"{side}_hu.nii.gz")
    if truth:
        copy(truth, folder / "truth.nii.gz")
    write_json(folder / "pair.json", asdict(facts))  # last: says that all are there
    return folder


def both(folder: Path, name: str) -> list[Path]:
    """The files of both sides."""
    return [folder / name.format(side) for side in SIDES]


def brain(spacing: str) -> Callable[[Path, Path], list[Path]]:
    """The real brains at 1mm or 2mm."""

    def write(folder: Path, data: Path) -> list[Path]:
        source, pair = data / "brain_mr", folder / "pair"
        if source.is_dir() and not (pair / "pair.json").is_file():
            images, labels = both(source, f"{{}}_{spacing}.nii.gz"), both(source, f"{{}}_{spacing}_label.nii.gz")
            write_pair(pair, Facts("pair", "mr", True, BRAIN, BRAIN), images, labels)
        return [pair] if source.is_dir() else []

    return write


def abdomen(folder: Path, data: Path) -> list[Path]:
    """The real CTs on one grid."""
    source, pair = data / "abdomen_ct", folder / "pair"
    if source.is_dir() and not (pair / "pair.json").is_file():
        images, labels = both(source, "{}_2mm.nii.gz"), both(source, "{}_2mm_pseudolabel.nii.gz")
        write_pair(pair, Facts("pair", "ct", True, ORGANS, ORGANS), images, labels)
    return [pair] if source.is_dir() else []


def native_abdomen(folder: Path, data: Path) -> list[Path]:
    """The real CTs as they came; their label maps are those of the copies of 2 mm, put where the copies belong."""
    source, pair = data / "abdomen_ct", folder / "pair"
    if source.is_dir() and not (pair / "pair.json").is_file():
        images, copies = both(source, "{}_native.nii.gz"), both(source, "{}_2mm.nii.gz")
        worlds = [world_of_copy(drawn, image)[0] for drawn, image in zip(copies, images, strict=True)]
        labels = both(source, "{}_2mm_pseudolabel.nii.gz")
        write_pair(pair, Facts("pair", "ct", False, ORGANS, ORGANS), images, labels, worlds)
    return [pair] if source.is_dir() else []


def phantom_cases(source: Path) -> Iterator[tuple[str, dict[str, object]]]:
    """The held-out cases of a set of phantoms and what its manifest says of them."""
    for case, facts in json.loads((source / "manifest.json").read_text(encoding="utf-8"))["cases"].items():
        if facts["split"] == "val":
            yield case, facts


def prostates(folder: Path, data: Path, count: int = 10) -> list[Path]:
    """MR (moving) and ultrasound (fixed) of one patient; Dice of the gland, TRE of the other structures.

    ``…_gland.nii.gz`` are the masks of the gland, for a registration that is driven by it.
    """
    source = embedded_phantoms(folder / "set", "prostate", pairs=1, held_out=count, seed=SEED, spacing=0.8)
    for case, known in phantom_cases(source):
        drawn = [known[key] for key in ("label_names", "labelled_us", "labelled_mr")]
        names, us, mr = (list(map(str, names)) for names in drawn if isinstance(names, list))
        landmarks = [i for i, name in enumerate(names) if i and name in us and name in mr]
        if not (folder / case / "pair.json").is_file():
            images, labels = ([source / f"val/{side}_{kind}/{case}.nii.gz" for side in ("us", "mr")] for kind in KINDS)
            facts = Facts(case, "other", True, [0], landmarks, "rms")
            for side, label in zip(SIDES, labels, strict=True):
                copy(label, make_folder(folder / case) / f"{side}_gland.nii.gz", channel=0)
            write_pair(folder / case, facts, images, labels, truth=source / f"val/ddf/{case}.nii.gz")
    return sorted(path.parent for path in folder.glob("*/pair.json"))


def breathing(folder: Path, data: Path, count: int = 10) -> list[Path]:
    """CTs of one patient, breathed out (fixed) and in (moving)."""
    source = embedded_phantoms(
        folder / "set", "abdomen", cases=1, held_out=count, seed=SEED, spacing=3.0, breathing=True
    )
    values = sorted(map(int, json.loads((source / "manifest.json").read_text(encoding="utf-8"))["labels"]))
    for case, _ in phantom_cases(source):
        if not (folder / case / "pair.json").is_file():
            other = case.removesuffix("0") + "1"
            images, labels = ([source / f"{kind}Ts/{name}.nii.gz" for name in (case, other)] for kind in KINDS)
            facts, truth = Facts(case, "ct", True, values, values), source / f"ddfTs/{case}.nii.gz"
            write_pair(folder / case, facts, images, labels, truth=truth)
    return sorted(path.parent for path in folder.glob("*/pair.json"))


def brains(folder: Path, data: Path, count: int = 10) -> list[Path]:
    """Brains of different patients, each with the next one; the truth is not known."""
    source = embedded_phantoms(folder / "set", "brain", cases=1, held_out=count, seed=SEED, spacing=2.0)
    values = sorted(map(int, json.loads((source / "manifest.json").read_text(encoding="utf-8"))["labels"]))
    cases = [case for case, _ in phantom_cases(source)]
    for case, other in zip(cases, [*cases[1:], cases[0]], strict=True):
        if not (folder / case / "pair.json").is_file():
            images, labels = ([source / kind / f"{name}.nii.gz" for name in (case, other)] for kind in (".", "labels"))
            write_pair(folder / case, Facts(case, "mr", False, values, values), images, labels)
    return sorted(path.parent for path in folder.glob("*/pair.json"))


GROUPS = {
    "brain_2mm": Group("Two real brains, T1, 2 mm", brain("2mm")),
    "brain_1mm": Group("The same at 1 mm", brain("1mm")),
    "abdomen_2mm": Group("Two real CTs, 2 mm, on one grid", abdomen),
    "abdomen_native": Group("The same CTs as they came: grids and worlds of their own", native_abdomen),
    "phantom_prostate": Group("Phantoms: prostate, MR to ultrasound", prostates),
    "phantom_abdomen": Group("Phantoms: CT of one patient, breathed out and in", breathing),
    "phantom_brain": Group("Phantoms: brains of different patients", brains),
}
