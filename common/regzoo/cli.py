"""The `regzoo` command."""

from __future__ import annotations

import sys
from typing import Any

import fire

from regzoo.errors import RegZooError


class Phantom:
    """Write data sets of phantoms, in the layout of the public set they stand in for."""

    def prostate(
        self,
        folder: str,
        pairs: int = 40,
        held_out: int = 10,
        seed: int = 0,
        spacing: float = 0.8,
        slice_thickness: float | None = None,
    ) -> None:
        """Write MR–TRUS prostate pairs in the µ-RegPro layout, with labels and the true displacement fields.

        Args:
            folder: new or empty folder.
            pairs: number of pairs in train/.
            held_out: number of pairs of other patients in val/.
            seed: the same seed gives the same files.
            spacing: voxel size, mm.
            slice_thickness: MR slice thickness, mm; that of the other axes if not given.
        """
        from regzoo.datasets import write_prostate_phantoms

        written = write_prostate_phantoms(
            folder, pairs=pairs, held_out=held_out, seed=seed, spacing=spacing, slice_thickness=slice_thickness
        )
        print(f"{pairs} + {held_out} pairs in {written}")

    def abdomen(
        self,
        folder: str,
        cases: int = 24,
        held_out: int = 6,
        seed: int = 0,
        spacing: float = 2.0,
        breathing: bool = False,
    ) -> None:
        """Write abdominal CTs with label maps in the layout of Learn2Reg's AbdomenCTCT.

        Args:
            folder: new or empty folder.
            cases: number of patients in imagesTr/.
            held_out: number of other patients in imagesTs/; all their pairs are those to validate on.
            seed: the same seed gives the same files.
            spacing: voxel size, mm.
            breathing: write a second, breathed-in image of every patient, and the true displacement fields.
        """
        from regzoo.datasets import write_abdomen_phantoms

        written = write_abdomen_phantoms(
            folder, cases=cases, held_out=held_out, seed=seed, spacing=spacing, breathing=breathing
        )
        print(f"{cases} + {held_out} cases in {written}")

    def brain(
        self, folder: str, cases: int = 24, held_out: int = 6, seed: int = 0, spacing: float = 2.0, scalp: bool = False
    ) -> None:
        """Write T1-weighted brain MRs in the layout of IXI, with maps of 17 labels beside them.

        Args:
            folder: new or empty folder.
            cases: number of patients to train on.
            held_out: number of other patients, of the split val in manifest.json.
            seed: the same seed gives the same files.
            spacing: voxel size, mm.
            scalp: draw the head around the brain, as in IXI, instead of nothing, as after skull stripping.
        """
        from regzoo.datasets import write_brain_phantoms

        written = write_brain_phantoms(folder, cases=cases, held_out=held_out, seed=seed, spacing=spacing, scalp=scalp)
        print(f"{cases} + {held_out} cases in {written}")


def register(
    bundle: str,
    fixed: str,
    moving: str,
    out: str,
    label: str | None = None,
    align: str | None = None,
    outputs: str | None = None,
    fixed_label: str | None = None,
    **overrides: Any,
) -> None:
    """Register a moving image to a fixed one with a bundle, or carry its labels over.

    Writes warped_image.nii.gz, warped_label.nii.gz (with a label), field.nii.gz (fixed to moving, LPS mm, for ITK, ANTs
    and 3D Slicer), statistics.json and quality.png, as far as the bundle gives them.

    Args:
        bundle: a bundle's name or folder.
        fixed: fixed image file.
        moving: moving image file.
        out: folder for the results.
        label: labels on the moving image to propagate.
        align: header (the files share a world), center (put the centres of the two images together first), label (put
            the moving label on the centre of the fixed image first) or region (put the organ, or else the bodies, of
            two CTs together first).
        outputs: some of image,label,probability,field,statistics,picture instead of all but the probability.
        fixed_label: labels on the fixed image, for a bundle that aligns the two by an organ beforehand.
        overrides: any setting of the bundle's configs/inference.json, such as --checkpoint FILE.
    """
    from regzoo.workflow import register as run

    if align is not None:
        overrides["align"] = align
    result = run(bundle, fixed, moving, label, out, outputs, fixed_label, **overrides)
    deformation = result.statistics.get("deformation")
    folds = f" (folded voxels: {deformation['folded_voxels_percent']:.3g} %)" if deformation else ""
    print(f"{result.case} → {out}{folds}")
    for line in result.statistics["warnings"]:
        print(f"warning: {line}", file=sys.stderr)


COMMANDS = {"register": register, "phantom": Phantom}


def main() -> None:
    """Run a command; a `RegZooError` is one line on standard error and exit status 1."""
    try:
        fire.Fire(COMMANDS, name="regzoo")
    except RegZooError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
