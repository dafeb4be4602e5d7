"""The commands of `regzoo` other than ``register``; a packaged bundle does not contain them.

Each imports what it needs when it runs, so that a wrong name fails fast.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from regzoo.bundles import all_bundles, as_value, find_bundle, read_metadata
from regzoo_tools.study_commands import Study
from regzoo_tools.transform_commands import TRANSFORM_COMMANDS


class Phantom:
    """Write a data set of phantoms in the layout of a public data set."""

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
            held_out: number of pairs in val/, from other patients.
            seed: the same seed gives the same files.
            spacing: voxel size, mm.
            slice_thickness: MR slice thickness, mm; by default the same as the spacing.
        """
        parameters = {"pairs": pairs, "held_out": held_out, "seed": seed, "spacing": spacing}
        _write_phantoms("prostate", folder, **parameters, slice_thickness=slice_thickness)

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
            held_out: number of other patients in imagesTs/; all pairs of these are for validation.
            seed: the same seed gives the same files.
            spacing: voxel size, mm.
            breathing: also write an image of every patient after breathing in, and the true displacement fields.
        """
        parameters = {"cases": cases, "held_out": held_out, "seed": seed, "spacing": spacing}
        _write_phantoms("abdomen", folder, **parameters, breathing=breathing)

    def brain(
        self, folder: str, cases: int = 24, held_out: int = 6, seed: int = 0, spacing: float = 2.0, scalp: bool = False
    ) -> None:
        """Write T1-weighted brain MRs in the layout of IXI, each with a map of 17 labels.

        Args:
            folder: new or empty folder.
            cases: number of patients for training.
            held_out: number of other patients, listed as the split val in manifest.json.
            seed: the same seed gives the same files.
            spacing: voxel size, mm.
            scalp: draw the head around the brain, as in IXI; without it, images look skull-stripped.
        """
        _write_phantoms("brain", folder, cases=cases, held_out=held_out, seed=seed, spacing=spacing, scalp=scalp)

    def hippocampus(self, folder: str, cases: int = 24, held_out: int = 6, seed: int = 0, spacing: float = 1.0) -> None:
        """Write MRs of the right hippocampus with label maps in the layout of Learn2Reg's HippocampusMR.

        Args:
            folder: new or empty folder.
            cases: number of patients in imagesTr/.
            held_out: number of other patients in imagesTs/; all pairs of these are for validation.
            seed: the same seed gives the same files.
            spacing: voxel size, mm.
        """
        _write_phantoms("hippocampus", folder, cases=cases, held_out=held_out, seed=seed, spacing=spacing)


def _write_phantoms(kind: str, folder: str, **parameters: Any) -> None:
    from regzoo_phantoms.embedded import KINDS

    phantoms = KINDS[kind](**parameters)
    print(f"{phantoms.count} + {phantoms.held_out} {phantoms.unit}s in {phantoms.write(folder)}")


def bundles() -> None:
    """List the bundles that can be given by name: what each is for, and its folder."""
    for name, folder in all_bundles().items():
        metadata = read_metadata(folder, "name", "task")
        print(f"{name}: {metadata['name']}\n    {metadata['task']}\n    {folder}")


def export(
    bundle: str, format: str, out: str | None = None, overlays: str | Sequence[str] = (), **overrides: Any
) -> None:
    """Export a bundle's network to a file that other programs can run, and compare it with PyTorch.

    Args:
        bundle: a bundle's name or folder.
        format: torchscript, onnx or tensorrt (needs an NVIDIA GPU).
        out: output file; by default models/model.ts, models/model.onnx or models/model_trt.ts in the bundle.
        overlays: further configurations of the bundle, such as configs/variants/mix.json, separated by commas.
        overrides: any setting in the bundle's configs/inference.json, such as --checkpoint FILE or --size "[48,32,32]".
    """
    find_bundle(bundle)
    from regzoo_tools.export import export_network

    settings = {name: as_value(name, value) for name, value in overrides.items()}
    print(export_network(bundle, format, out, overlays, **settings))


def check(data: str, bundle: str | None = None, strict: bool = False, out: str | None = None, **overrides: Any) -> None:
    """Check your data before training: every file, label and pair, and the region that the network will see.

    Lists all problems, proposes spacing, size and folds, and estimates time and memory. The exit status is 1 if there
    is an error. Nothing is written without --out.

    Args:
        data: a folder in a known layout, or a datalist.
        bundle: the bundle to train, by name or folder; without it, only checks that need no bundle are run.
        strict: exit with status 1 for warnings too.
        out: folder for check.json and contact_sheet.png (slices of up to 40 cases with outlines of their labels).
        overrides: any setting in the bundle's configs/train.json, such as --size "[40,32,32]" or --align center.
    """
    if bundle is not None:
        find_bundle(bundle, "train.json")
    from regzoo_tools.checking import as_text, check_data

    report = check_data(data, bundle, out, **{name: as_value(name, value) for name, value in overrides.items()})
    print(as_text(report))
    if report.failed(strict):
        sys.exit(1)


def datalist(
    *folders: str,
    fixed: str,
    moving: str | None = None,
    fixed_label: str | None = None,
    moving_label: str | None = None,
    patient: str | None = None,
    out: str = "datalist.csv",
) -> None:
    """Write a datalist for plain folders: files are paired by patterns of their names.

    A pattern is a path relative to a folder, in which {case}, {patient} and * stand for any part of a name: --fixed
    "us/*.nii.gz" --moving "mr/*.nii.gz", or --fixed "{case}/us.nii.gz" --moving "{case}/mr.nii.gz". Quote patterns.

    Args:
        folders: one or more folders to search.
        fixed: pattern of the fixed images, or of all images for a bundle that trains on single images.
        moving: pattern of the moving images.
        fixed_label: pattern of the labels of the fixed images.
        moving_label: pattern of the labels of the moving images.
        patient: regular expression that finds the patient in the name of a case, such as "^p[0-9]+".
        out: table to write, .csv or .tsv; must not exist.
    """
    from regzoo_tools.patterns import write_datalist

    patterns = {"fixed_image": fixed, "moving_image": moving, "fixed_label": fixed_label, "moving_label": moving_label}
    count, left = write_datalist(folders, out, {key: text for key, text in patterns.items() if text}, patient)
    for line in left:
        print(f"warning: {line}; it is left out", file=sys.stderr)
    print(f"{out}: {count} {'pairs' if moving else 'images'}")


def curves(folder: str, out: str = "training.png") -> None:
    """Plot a training's loss and validation metrics over its epochs, from its TensorBoard files.

    Args:
        folder: the training's output folder.
        out: PNG file to write.
    """
    from regzoo_tools.curves import training_figure

    print(f"{out}: {training_figure(out, folder)} epochs")


def verify(bundle: str) -> None:
    """Run the checks of the MONAI Model Zoo, and those that MONAI Label needs, offline. Prints a table.

    The exit status is 1 if a check failed. Checks that cannot run here are skipped; the table says why.

    Args:
        bundle: a bundle's name or folder.
    """
    _has_configs(bundle)
    from regzoo_tools.verification import as_table, failed, verify

    rows = verify(bundle)
    print(as_table(rows))
    if failed(rows):
        sys.exit(1)


def package(bundle: str, out: str | None = None, large_files: str | None = None) -> None:
    """Write a bundle as a zip that contains the package regzoo, so that regzoo need not be installed to run it.

    Args:
        bundle: a bundle's name or folder.
        out: the zip; by default NAME_vVERSION.zip in the working folder.
        large_files: address of models/model.pt on the web; the zip then contains large_files.yml instead of the file.
    """
    _has_configs(bundle)
    from regzoo.files import file_hash
    from regzoo_tools.packing import package

    file = package(bundle, out, large_files)
    print(f"{file}: {file.stat().st_size / 1e6:.1f} MB, SHA-256 {file_hash(file)}")


def publish(bundle: str, repo: str, token: str | None = None, version: str | None = None, private: bool = True) -> None:
    """Package a bundle and push it to the Hugging Face Hub, if it passes every check of `verify`.

    Args:
        bundle: a bundle's name or folder.
        repo: organisation/name; created if it does not exist.
        token: access token; `hf auth login` or the variable HF_TOKEN is safer, because others cannot see it.
        version: tag; by default the version in the bundle's metadata.
        private: create a private repository; --noprivate for a public one.
    """
    _has_configs(bundle)
    from regzoo_tools.publishing import publish

    print(publish(bundle, repo, token, version, private))


def _has_configs(bundle: str) -> None:
    """Refuse a wrong name at once, before MONAI is imported."""
    if not (Path(bundle) / "configs").is_dir():
        find_bundle(bundle)


COMMANDS = {
    **TRANSFORM_COMMANDS,
    "bundles": bundles,
    "export": export,
    "check": check,
    "datalist": datalist,
    "phantom": Phantom(),
    "study": Study(),
    "curves": curves,
    "verify": verify,
    "package": package,
    "publish": publish,
}
