"""One registration by one tool, in a process of its own: ``python peer_methods.py METHOD PAIR OUT``; see ``peers.py``.

PAIR is a folder with ``fixed.nii.gz``, ``moving.nii.gz`` and ``pair.json``. OUT receives ``field.nii.gz``, the
displacement of every fixed voxel, mm, LPS, on the fixed grid; ``own.nii.gz``, the moving image as the tool itself warps
it; ``run.json``, time, memory and version. The tools run in an environment of their own, without RegZoo.
"""

from __future__ import annotations

import importlib.metadata
import io
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from peer_tools import THREADS, Found, Meter, Method, Pair, index_matrix, xyz
from peer_torch import convex_adam, fire_ants


def ants(transform: str, **options: Any) -> Method:
    """ANTsPy; ``SyNOnly`` begins with its ``Affine`` where the headers do not align the images."""

    def run(pair: Pair, meter: Meter) -> Found:
        import ants

        fixed, moving = (ants.image_read(str(pair.folder / f"{side}.nii.gz")) for side in ("fixed", "moving"))
        with tempfile.TemporaryDirectory() as folder:
            with meter:
                first: Any = "Identity" if pair.aligned else None
                if transform == "SyNOnly" and not pair.aligned:
                    first = ants.registration(fixed, moving, "Affine", outprefix=f"{folder}/a", random_seed=1)
                    first = first["fwdtransforms"]
                found = ants.registration(
                    fixed, moving, transform, initial_transform=first, outprefix=f"{folder}/b", random_seed=1, **options
                )
            whole = ants.apply_transforms(fixed, moving, found["fwdtransforms"], compose=f"{folder}/c")
            ants.image_write(found["warpedmovout"], f"{folder}/own.nii.gz")
            return sitk.ReadImage(whole), sitk.ReadImage(f"{folder}/own.nii.gz")

    return run


def greedy(iterations: str, metric: str = "NCC 2x2x2") -> Method:
    """picsl-greedy, after its own affine registration where the headers do not align the images."""

    def run(pair: Pair, meter: Meter) -> Found:
        from picsl_greedy import Greedy3D

        tool, log = Greedy3D(), io.StringIO()

        def execute(command: str, **images: Any) -> None:
            tool.execute(f"{command} -threads {THREADS}", out=log, **images)

        with meter:
            start = ""
            images: dict[str, Any] = {"f": pair.fixed, "m": pair.moving}
            if not pair.aligned:
                start = "a"
                execute("-i f m -a -dof 12 -ia-image-centers -m NMI -n 100x50x10 -o a", **images, a=None)
                images = {}
            execute(f"-i f m -m {metric} -n {iterations} -o w" + (f" -it {start}" if start else ""), **images, w=None)
        execute(f"-rf f -rb {pair.background} -rm m own -rc whole -r w {start}", own=None, whole=None)
        return sitk.Cast(tool["whole"], sitk.sitkVectorFloat64), tool["own"]

    return run


def dipy(iterations: list[int]) -> Method:
    """DIPY's SyN with cross-correlation, radius 4."""

    def run(pair: Pair, meter: Meter) -> Found:
        from dipy.align.imwarp import SymmetricDiffeomorphicRegistration
        from dipy.align.metrics import CCMetric

        world = index_matrix(pair.fixed)
        with meter:
            moved = xyz(pair.moved())
            method = SymmetricDiffeomorphicRegistration(CCMetric(3), level_iters=iterations)
            mapping = method.optimize(xyz(pair.fixed), moved, static_grid2world=world, moving_grid2world=world)
        own = sitk.GetImageFromArray(mapping.transform(moved).transpose(2, 1, 0))
        own.CopyInformation(pair.fixed)
        return pair.after(np.asarray(mapping.get_forward_field()).transpose(2, 1, 0, 3)), own

    return run


def demons(pair: Pair, meter: Meter) -> Found:
    """SimpleITK's diffeomorphic demons at three resolutions, after matching the histograms."""
    with meter:
        image = pair.moved()
        moved = sitk.HistogramMatching(image, pair.fixed, 1024, 7, True)
        method = sitk.DiffeomorphicDemonsRegistrationFilter()
        method.SetNumberOfIterations(50)
        method.SetSmoothDisplacementField(True)
        method.SetStandardDeviations(1.5)
        field = sitk.Image(pair.fixed.GetSize(), sitk.sitkVectorFloat64)
        field.CopyInformation(pair.fixed)
        for shrink in (4, 2, 1):
            images = [
                sitk.Shrink(sitk.SmoothingRecursiveGaussian(i, [s * shrink / 2 for s in i.GetSpacing()]), [shrink] * 3)
                if shrink > 1
                else i
                for i in (pair.fixed, moved)
            ]
            nothing = sitk.Transform(3, sitk.sitkIdentity)
            begin = sitk.Resample(field, images[0], nothing, sitk.sitkLinear, 0.0, sitk.sitkVectorFloat64, True)
            field = method.Execute(*images, begin)
    warper = sitk.WarpImageFilter()
    warper.SetOutputParameteresFromImage(image)
    own = warper.Execute(image, field)
    whole = pair.after(sitk.GetArrayFromImage(field))
    return whole, own


def nifty_reg(*options: str) -> Method:
    """NiftyReg's programs: ``reg_f3d`` by NMI, after ``reg_aladin`` where the headers do not align the images.

    Its default of control points every five voxels reaches Dice 0.67 on the real brains, every three voxels 0.73.
    """

    def run(pair: Pair, meter: Meter) -> Found:
        import nibabel as nib
        from niftyreg import bin_path

        with tempfile.TemporaryDirectory() as folder:

            def execute(program: str, *words: str) -> None:
                subprocess.run([bin_path / program, *words], check=True, cwd=folder, stdout=sys.stderr)

            files = ["-ref", str(pair.folder / "fixed.nii.gz"), "-flo", str(pair.folder / "moving.nii.gz")]
            threads = ["-omp", str(THREADS)]
            with meter:
                start = []
                if not pair.aligned:
                    execute("reg_aladin", *files, "-aff", "affine.txt", "-res", "affine.nii", *threads)
                    start = ["-aff", "affine.txt"]
                execute("reg_f3d", *files, *start, "-cpp", "cpp.nii", "-res", "own.nii", *threads, *options)
            execute("reg_transform", *files[:2], "-def", "cpp.nii", "points.nii")
            points = np.asarray(nib.nifti1.load(f"{folder}/points.nii").dataobj)[:, :, :, 0] * (-1, -1, 1)
            return pair.field(points.transpose(2, 1, 0, 3)), sitk.ReadImage(f"{folder}/own.nii")

    return run


def regzoo(bundle: str, suffix: str = "", gland: bool = False, **settings: str) -> Method:
    """RegZoo from files to the warped image, without writing: ``regzoo register BUNDLE … --KEY VALUE``.

    Args:
        bundle: its name, or ``none``.
        suffix: of the images, ``_hu`` for CTs that are not windowed.
        gland: whether it is given the masks of the gland.
        settings: of the command; ``{kind}`` is that of the pair.
    """

    def run(pair: Pair, meter: Meter) -> Found:
        import torch
        from regzoo import Registrar

        torch.set_num_threads(THREADS)
        words = {key: value.format(kind=pair.kind) for key, value in settings.items()}
        if bundle == "none":
            words["align"] = "header" if pair.aligned else "affine"
        registrar = Registrar(bundle, **words)
        files = [pair.folder / f"{side}{suffix}.nii.gz" for side in ("fixed", "moving")]
        labels = [pair.folder / f"{side}_gland.nii.gz" for side in ("moving", "fixed")] if gland else []
        with meter:
            result = registrar.register(*files, *labels)
        with tempfile.TemporaryDirectory() as folder:
            result.save(folder)
            field = sitk.ReadImage(f"{folder}/field.nii.gz", sitk.sitkVectorFloat32)
            return field, sitk.ReadImage(f"{folder}/warped_image.nii.gz")

    return run


@dataclass(frozen=True)
class Entry:
    """A row of the tables.

    Attributes:
        run: registers a pair.
        package: that it comes from, as pip calls it.
        ours: runs in RegZoo's environment.
        kinds: of pair that it is for; empty: all.
        moving: the image that it warps.
        phantoms: whether it runs on phantoms too; not where that would take hours.
        listed: has a row in the tables; otherwise only a study runs it.
    """

    run: Method
    package: str
    ours: bool = False
    kinds: Sequence[str] = ()
    moving: str = "moving.nii.gz"
    phantoms: bool = True
    listed: bool = True

    def suits(self, kind: str, phantom: bool) -> bool:
        """Whether it has a row for pairs of a kind."""
        return self.listed and (self.phantoms or not phantom) and (not self.kinds or kind in self.kinds)


PROSTATE = "prostate_mr_trus_weak_ddf"
#: In the order of the tables; the names of ours begin with RegZoo.
METHODS = {
    "ANTs SyN (MI)": Entry(ants("SyN"), "antspyx"),
    "ANTs SyN CC": Entry(
        ants("SyNOnly", syn_metric="CC", syn_sampling=4, reg_iterations=(40, 20, 0)), "antspyx", phantoms=False
    ),
    "ANTs SyNCC": Entry(ants("SyNCC"), "antspyx", listed=False),
    "greedy NCC 100×50×10": Entry(greedy("100x50x10"), "picsl-greedy"),
    "greedy NCC 100×100×50": Entry(greedy("100x100x50"), "picsl-greedy"),
    "DIPY SyN CC": Entry(dipy([100, 100, 25]), "dipy"),
    "SimpleITK demons": Entry(demons, "SimpleITK"),
    "NiftyReg NMI": Entry(nifty_reg("-sx", "-3"), "niftyreg"),
    "NiftyReg NMI, velocity": Entry(nifty_reg("-sx", "-3", "-vel"), "niftyreg", phantoms=False),
    "convexAdam": Entry(convex_adam, "convexadam"),
    "FireANTs greedy": Entry(fire_ants("greedy"), "fireants"),
    "FireANTs SyN": Entry(fire_ants("SyN"), "fireants", phantoms=False),
    "RegZoo": Entry(regzoo("none", refine="{kind}"), "regzoo", ours=True),
    "RegZoo, bundle": Entry(
        regzoo("abdominal_ct_ddmr", "_hu", refine="ct"), "regzoo", True, ("ct",), "moving_hu.nii.gz"
    ),
    "RegZoo, network": Entry(regzoo(PROSTATE), "regzoo", True, ("other",)),
    "RegZoo, network and MIND": Entry(regzoo(PROSTATE, refine="other"), "regzoo", True, ("other",)),
    "RegZoo, network and gland": Entry(regzoo(PROSTATE, gland=True, refine="labels"), "regzoo", True, ("other",)),
}


def main(method: str, folder: str, out: str) -> None:
    """Register a pair, and write the result."""
    meter, entry = Meter(), METHODS[method]
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(THREADS)
    pair = Pair(Path(folder))
    field, own = entry.run(pair, meter)
    sitk.WriteImage(sitk.Cast(field, sitk.sitkVectorFloat32), f"{out}/field.nii.gz")
    sitk.WriteImage(sitk.Cast(own, sitk.sitkFloat32), f"{out}/own.nii.gz")
    found = meter.as_dict() | {"affine": pair.affine.tolist(), "version": importlib.metadata.version(entry.package)}
    Path(out, "run.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
