"""Studies of which every answer can be checked, and what is in a folder."""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
from bundle_list import NAMES, kind, pairs
from helpers import ball, make_affine, smooth_noise, write

#: The suite measures one machine's work against another's files: no GPU, so that both sides compute alike.
ENVIRONMENT = {"CUDA_VISIBLE_DEVICES": ""}

#: One of each, for tests that need any.
WEAK_DDF, CONDITIONAL, DDMR = "prostate_mr_trus_weak_ddf", "prostate_mr_trus_conditional_seg", "abdominal_ct_ddmr"
#: All others are of single images with label maps.
PROSTATE = [name for name in NAMES if kind(name) == "prostate"]


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
        phantoms: by anatomy, pairs with finished labels of the moving image, and of single images of the fixed one too.
        oblique: by anatomy, a pair on grids that have nothing in common but the place, with no meaning.
    """

    def __init__(self, folder: Path, phantoms: dict[str, Path]) -> None:
        self.folder, self.outside, self.truth = (folder / name for name in ("studies", "outside", "truth"))
        for place in (self.folder / "labels" / "final", self.folder / "more", self.outside, self.truth):
            place.mkdir(parents=True)
        self.phantoms = {
            anatomy: self._prostate_pairs(root) if anatomy == "prostate" else self._single_pairs(anatomy, root)
            for anatomy, root in phantoms.items()
        }
        self.prostate, self.abdomen = self.phantoms["prostate"], self.phantoms["abdomen"]
        self.oblique = {anatomy: self._oblique_pair(anatomy) for anatomy in phantoms}
        self.gland = self._gland(self.prostate[0])
        self._masks(self.abdomen[0].fixed_file)
        self._bad_files()

    def pairs(self, bundle: str) -> list[Pair]:
        """Those that a bundle is for, the oblique one last."""
        return [*self.phantoms[kind(bundle)], self.oblique[kind(bundle)]]

    def fixed_label_file(self, pair: Pair) -> Path:
        """Of a phantom."""
        return self.truth / pair.fixed_file.name if pair in self.prostate else self._label_file(pair.fixed)

    def _label_file(self, identity: str) -> Path:
        return self.folder / "labels" / "final" / f"{identity}.nii.gz"

    def _place(self, source: str | Path, identity: str, label: bool = False) -> Path:
        target = self._label_file(identity) if label else self.folder / f"{identity}.nii.gz"
        return Path(shutil.copy(source, target))

    def _prostate_pairs(self, root: Path) -> list[Pair]:
        found = []
        for number, record in enumerate(pairs(root)[:3], start=1):
            found.append(self._pair(f"us{number:02d}", f"mr{number:02d}", record))
            shutil.copy(record["fixed_label"], self.truth / found[-1].fixed_file.name)
        return found

    def _single_pairs(self, anatomy: str, root: Path) -> list[Pair]:
        prefix = {"abdomen": "ct"}.get(anatomy, anatomy)
        found = []
        for number, record in enumerate(_disjoint(pairs(root)), start=1):
            found.append(self._pair(f"{prefix}{number:02d}a", f"{prefix}{number:02d}b", record))
            self._place(record["fixed_label"], found[-1].fixed, label=True)
        return found

    def _pair(self, fixed: str, moving: str, record: dict[str, str]) -> Pair:
        files = [self._place(record["fixed_image"], fixed), self._place(record["moving_image"], moving)]
        return Pair(fixed, moving, *files, self._place(record["moving_label"], moving, label=True))

    def _oblique_pair(self, anatomy: str) -> Pair:
        """Odd sizes, other axes, turned, voxels up to four times as long as wide; smooth noise with balls as labels."""
        scale = 4.0 if anatomy == "abdomen" else 1.0
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
            if anatomy == "abdomen":  # a body in air, Hounsfield units
                image = np.where(ball(shape, np.divide(shape, 2), max(shape) * 0.8) > 0, image * 3 - 150, -1000)
            name = f"{anatomy}_oblique_{side}"
            write(self.folder / f"{name}.nii.gz", image.astype(np.float32), affines[side])
            files.append(self.folder / f"{name}.nii.gz")
        masks = [ball(shapes["moving"], centre, radius) for centre, radius in (((11, 20, 16), 9), ((8, 26, 20), 5))]
        if anatomy != "prostate":
            labels = np.where(masks[1] > 0, 300, np.where(masks[0] > 0, 6, 0)).astype(np.int16)
        else:
            labels = np.stack(masks, axis=-1).astype(np.uint8)
        label = self._label_file(f"{anatomy}_oblique_moving")
        write(label, labels, affines["moving"])
        return Pair(f"{anatomy}_oblique_fixed", f"{anatomy}_oblique_moving", *files, label)

    def _gland(self, pair: Pair) -> Path:
        """The first mask of a label by itself, as an image of the store."""
        label = nib.load(pair.label_file)
        gland = self.folder / f"{pair.moving}_gland.nii.gz"
        write(gland, np.asarray(label.dataobj)[..., 0].astype(np.uint8), label.affine)
        return gland

    def _masks(self, file: Path) -> None:
        """Masks of an image: one half of it, and nothing."""
        image = nib.load(file)
        mask = np.zeros(image.shape, np.uint8)
        write(self.folder / "empty_mask.nii.gz", mask, image.affine)
        mask[: len(mask) // 2] = 1
        write(self.folder / "half_mask.nii.gz", mask, image.affine)

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


def _disjoint(records: list[dict[str, str]]) -> list[dict[str, str]]:
    """Two pairs of four patients."""
    found: list[dict[str, str]] = []
    for record in records:
        images = {record["fixed_image"], record["moving_image"]}
        if not any(images & {pair["fixed_image"], pair["moving_image"]} for pair in found):
            found.append(record)
    return found[:2]


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
