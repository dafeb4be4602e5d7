"""Studies of which every answer can be checked, and what is in a folder."""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
from helpers import ball, make_affine, smooth_noise, write
from regzoo.datasets import Record, load_records

#: The suite measures one machine's work against another's files: no GPU, so that both sides compute alike.
ENVIRONMENT = {"CUDA_VISIBLE_DEVICES": ""}

WEAK_DDF, SDM = "prostate_mr_trus_weak_ddf", "prostate_mr_trus_sdm"
CONDITIONAL, DDMR = "prostate_mr_trus_conditional_seg", "abdominal_ct_ddmr"
NAMES = (DDMR, CONDITIONAL, SDM, WEAK_DDF)
#: Those that take the moving label as an input.
WITH_LABEL_ONLY = (CONDITIONAL, SDM)


@dataclasses.dataclass(frozen=True)
class Pair:
    """Two images of the studies, by id, and the files behind them."""

    fixed: str
    moving: str
    fixed_file: Path
    moving_file: Path
    label_file: Path


class Studies:
    """The studies folder and what is in it.

    Attributes:
        folder: the studies folder.
        outside: a folder beside it, which no request may reach.
        truth: labels of the fixed prostate images, which the server does not know.
        prostate, abdomen: phantom pairs, with finished labels of the moving image, and for CT of the fixed one too.
        oblique: per bundle's anatomy, a pair on grids that have nothing in common but the place, with no meaning.
    """

    def __init__(self, folder: Path, prostate: Path, abdomen: Path) -> None:
        self.folder, self.outside, self.truth = (folder / name for name in ("studies", "outside", "truth"))
        for place in (self.folder / "labels" / "final", self.folder / "more", self.outside, self.truth):
            place.mkdir(parents=True)
        records = load_records(prostate, "val")
        self.prostate = [self._prostate_pair(f"{n:02d}", record) for n, record in enumerate(records[:3], start=1)]
        self.abdomen = [self._abdomen_pair(f"{n:02d}", record) for n, record in enumerate(_disjoint(abdomen), start=1)]
        self.oblique = {kind: self._oblique_pair(kind) for kind in ("prostate", "abdomen")}
        self.gland = self._gland(self.prostate[0])
        self._bad_files()

    def pairs(self, bundle: str) -> list[Pair]:
        """Those that a bundle is for, the oblique one last."""
        kind = "abdomen" if bundle == DDMR else "prostate"
        return [*getattr(self, kind), self.oblique[kind]]

    def fixed_label_file(self, pair: Pair) -> Path:
        """Of a phantom."""
        return self._label_file(pair.fixed) if pair in self.abdomen else self.truth / pair.fixed_file.name

    def _label_file(self, identity: str) -> Path:
        return self.folder / "labels" / "final" / f"{identity}.nii.gz"

    def _place(self, source: str | Path, identity: str, label: bool = False) -> Path:
        target = self._label_file(identity) if label else self.folder / f"{identity}.nii.gz"
        return Path(shutil.copy(source, target))

    def _prostate_pair(self, number: str, record: Record) -> Pair:
        fixed, moving = f"us{number}", f"mr{number}"
        files = [self._place(record["fixed_image"], fixed), self._place(record["moving_image"], moving)]
        shutil.copy(record["fixed_label"], self.truth / files[0].name)
        return Pair(fixed, moving, *files, self._place(record["moving_label"], moving, label=True))

    def _abdomen_pair(self, number: str, record: Record) -> Pair:
        fixed, moving = f"ct{number}a", f"ct{number}b"
        files = [self._place(record["fixed_image"], fixed), self._place(record["moving_image"], moving)]
        self._place(record["fixed_label"], fixed, label=True)
        return Pair(fixed, moving, *files, self._place(record["moving_label"], moving, label=True))

    def _oblique_pair(self, kind: str) -> Pair:
        """Odd sizes, other axes, turned, voxels up to four times as long as wide; smooth noise with balls as labels."""
        scale = 1.0 if kind == "prostate" else 4.0
        shapes = {"fixed": (37, 29, 11), "moving": (23, 41, 33)}
        affines = {
            "fixed": make_affine(
                shapes["fixed"], np.multiply((1.7, 2.1, 6.8), scale), (24, -17, 9), (2, 0, 1), (1, -1, 1)
            ),
            "moving": make_affine(
                shapes["moving"], np.multiply((2.9, 1.9, 2.3), scale), (-8, 5, 31), flips=(-1, -1, 1)
            ),
        }
        files = []
        for seed, (side, shape) in enumerate(shapes.items()):
            image = smooth_noise(shape, 2.5, seed)
            if kind == "abdomen":  # a body in air, Hounsfield units
                image = np.where(ball(shape, np.divide(shape, 2), max(shape) * 0.8) > 0, image * 3 - 150, -1000)
            name = f"{kind}_oblique_{side}"
            write(self.folder / f"{name}.nii.gz", image.astype(np.float32), affines[side])
            files.append(self.folder / f"{name}.nii.gz")
        masks = [ball(shapes["moving"], centre, radius) for centre, radius in (((11, 20, 16), 9), ((8, 26, 20), 5))]
        if kind == "abdomen":
            labels = np.where(masks[1] > 0, 300, np.where(masks[0] > 0, 6, 0)).astype(np.int16)
        else:
            labels = np.stack(masks, axis=-1).astype(np.uint8)
        label = self._label_file(f"{kind}_oblique_moving")
        write(label, labels, affines["moving"])
        return Pair(f"{kind}_oblique_fixed", f"{kind}_oblique_moving", *files, label)

    def _gland(self, pair: Pair) -> Path:
        """The first mask of a label by itself, as an image of the store."""
        label = nib.load(pair.label_file)
        gland = self.folder / f"{pair.moving}_gland.nii.gz"
        write(gland, np.asarray(label.dataobj)[..., 0].astype(np.uint8), label.affine)
        return gland

    def _bad_files(self) -> None:
        """What nobody can use, and what nobody may reach."""
        moving = self.prostate[0].moving_file
        (self.folder / "truncated.nii.gz").write_bytes(moving.read_bytes()[:3000])
        (self.folder / "nonsense.nii.gz").write_bytes(b"this is no image")
        write(self.folder / "flat.nii.gz", smooth_noise((20, 20), 2.0, 0))
        label = nib.load(self.prostate[0].label_file)
        far = label.affine.copy()
        far[:3, 3] += 400
        write(self.folder / "far_label.nii.gz", np.asarray(label.dataobj).astype(np.uint8), far)
        shutil.copy(moving, self.outside / "mr.nii.gz")
        (self.folder / "link.nii.gz").symlink_to(self.outside / "mr.nii.gz")
        (self.folder / "linked").symlink_to(self.outside)


def _disjoint(abdomen: Path) -> list[Record]:
    """Two pairs of four patients."""
    pairs: list[Record] = []
    for record in load_records(abdomen, "val"):
        patients = {record["fixed_patient"], record["moving_patient"]}
        if not any(patients & {pair["fixed_patient"], pair["moving_patient"]} for pair in pairs):
            pairs.append(record)
    return pairs[:2]


def fingerprints(*folders: Path) -> dict[str, str]:
    """What is in some folders: of every file the hash of its content, of every link where it leads; and folders."""
    found = {}
    for folder in folders:
        for path in sorted(folder.rglob("*")):
            if path.is_symlink():
                found[str(path)] = f"-> {path.readlink()}"
            elif path.is_dir() and path.name != "__pycache__":
                found[str(path)] = "folder"
            elif path.is_file() and path.suffix != ".pyc":
                found[str(path)] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found
