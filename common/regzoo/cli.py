"""The `regzoo` command."""

from __future__ import annotations

import difflib
import inspect
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import fire
from fire.parser import DefaultParseValue
from regzoo.bundles import as_value, find_bundle
from regzoo.errors import RegZooError, end_on_signals, one_line, print_error


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
        from regzoo_phantoms import write_prostate_phantoms

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
            held_out: number of other patients in imagesTs/; all pairs of these are for validation.
            seed: the same seed gives the same files.
            spacing: voxel size, mm.
            breathing: also write an image of every patient after breathing in, and the true displacement fields.
        """
        from regzoo_phantoms import write_abdomen_phantoms

        written = write_abdomen_phantoms(
            folder, cases=cases, held_out=held_out, seed=seed, spacing=spacing, breathing=breathing
        )
        print(f"{cases} + {held_out} cases in {written}")

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
        from regzoo_phantoms import write_brain_phantoms

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
    overlays: str | Sequence[str] = (),
    **overrides: Any,
) -> None:
    """Register a moving image to a fixed image with a bundle, and propagate the moving labels.

    Writes warped_image.nii.gz, warped_label.nii.gz (if there is a label), field.nii.gz (fixed to moving, LPS mm, for
    ITK, ANTs and 3D Slicer), statistics.json and quality.png. Some bundles write only some of these files.

    Args:
        bundle: a bundle's name or folder.
        fixed: fixed image file.
        moving: moving image file.
        out: folder for the results.
        label: file of the moving labels to propagate.
        align: how to pre-align the images: header (keep the positions in the files), center (match the image centres),
            label (move the moving label to the centre of the fixed image) or region (match the organ of two CTs, or
            the bodies if the organ is not labelled).
        outputs: any of image,label,probability,field,statistics,picture; by default all except probability.
        fixed_label: file of the fixed labels, for bundles that pre-align by an organ.
        overlays: further configurations of the bundle, such as configs/variants/onnx.json, separated by commas; write
            a list, "['a.json']", if a name contains a comma.
        overrides: any setting in the bundle's configs/inference.json, such as --checkpoint FILE.
    """
    find_bundle(bundle)  # before MONAI is imported
    from regzoo.inference import register as run

    if align is not None:
        overrides["align"] = align
    settings = {name: as_value(name, value) for name, value in overrides.items()}
    labels = [as_value("moving_label", name) for name in (label, fixed_label)]
    result = run(bundle, fixed, moving, labels[0], out, outputs, labels[1], overlays=_listed(overlays), **settings)
    deformation = result.statistics.get("deformation")
    folds = f" (folded voxels: {deformation['folded_voxels_percent']:.3g} %)" if deformation else ""
    print(f"{result.case} → {out}{folds}")
    for line in result.statistics["warnings"]:
        print(f"warning: {line}", file=sys.stderr)


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
    from regzoo.export import export_network

    settings = {name: as_value(name, value) for name, value in overrides.items()}
    print(export_network(bundle, format, out, _listed(overlays), **settings))


def _listed(files: str | Sequence[str]) -> list[str]:
    """File names given as one text, separated by commas, or as a list."""
    if isinstance(files, str):
        files = DefaultParseValue(files) if files.startswith("[") else files.split(",")
    return [str(file) for file in files]


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
        find_bundle(bundle)
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
    from regzoo_tools import as_table, failed, summary, verify

    rows = verify(bundle)
    print(f"{as_table(rows)}\n{summary(rows)}")
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
    from regzoo_tools import package

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
    from regzoo_tools import as_table, publish, summary

    address = publish(bundle, repo, token, version, private, report=lambda r: print(f"{as_table(r)}\n{summary(r)}"))
    print(address)


#: Packages of the same distribution that a packaged bundle does not contain.
OTHER_PACKAGES = ("regzoo_phantoms", "regzoo_tools")
INSTALL = 'pip install "regzoo[zoo]"'
COMMANDS = {
    "register": register,
    "export": export,
    "check": check,
    "datalist": datalist,
    "phantom": Phantom,
    "curves": curves,
    "verify": verify,
    "package": package,
    "publish": publish,
}


def _has_configs(bundle: str) -> None:
    """Refuse a wrong name at once, before MONAI is imported."""
    if not (Path(bundle) / "configs").is_dir():
        find_bundle(bundle)


def _reader(name: str, kind: str) -> Callable[[str], Any]:
    """The function that parses a typed argument, by the argument's annotation."""

    def number(text: str) -> Any:
        value = DefaultParseValue(text)
        if value is None and "None" in kind:
            return None
        if isinstance(value, bool) or not isinstance(value, int if kind.startswith("int") else (int, float)):
            raise RegZooError(f"--{name} {text}: is not a {'whole ' * kind.startswith('int')}number; write one")
        return value

    def switch(text: str) -> bool:
        if text.lower() not in {"true", "false"}:
            raise RegZooError(f"--{name} {text}: is neither True nor False; write one of them")
        return text.lower() == "true"

    return number if kind.startswith(("int", "float")) else switch if kind == "bool" else str


def _keep_names(command: Callable[..., None]) -> None:
    """Stop fire from parsing names: 2024, 007 and a,b can be names of files."""
    parameters = inspect.signature(command).parameters.values()
    named = {p.name: _reader(p.name, str(p.annotation)) for p in parameters if p.kind is not p.VAR_KEYWORD}
    fire.decorators.SetParseFns(**named)(command)
    fire.decorators.SetParseFn(str)(command)


def _joined(arguments: Sequence[str]) -> list[str]:
    """Join values that begin with a dash to their option: ``--moving -m.nii.gz``."""
    joined: list[str] = []
    for argument in arguments:
        if joined and re.fullmatch(r"--[\w#-]+", joined[-1]) and re.match(r"-[^-]", argument):
            joined[-1] += f"={argument}"
        else:
            joined.append(argument)
    return joined


def _check_arguments(arguments: Sequence[str]) -> None:
    """Refuse unknown options before the command runs; fire would refuse them only afterwards.

    Raises:
        RegZooError: one line that names the option and the nearest valid one.
    """
    command, rest = COMMANDS.get(arguments[0] if arguments else ""), list(arguments[1:])
    if inspect.isclass(command) and rest:
        command = getattr(command, rest.pop(0), None)
    if not inspect.isfunction(command) or {"--help", "-h", "--"} & set(rest):
        return
    parameters = dict(inspect.signature(command).parameters)
    parameters.pop("self", None)
    anything = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    several = any(p.kind is p.VAR_POSITIONAL for p in parameters.values())
    names = [name for name, p in parameters.items() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
    free, positional, takes = list(names), 0, False
    for argument in rest:
        option = re.fullmatch(r"--?([A-Za-z][\w#-]*)(=.*)?", argument, re.DOTALL)
        if option is None:
            positional, takes = positional + (not takes), False
            if positional > len(free) and not several:
                raise RegZooError(f"{argument}: one argument too many; see regzoo {arguments[0]} --help")
            continue
        name, takes = option[1].replace("-", "_"), option[2] is None
        if name in free:
            free.remove(name)
        elif name not in names and name.removeprefix("no") not in names and len(name) > 1 and not anything:
            near = difflib.get_close_matches(name, names, 1)
            fix = f"did you mean --{near[0]}?" if near else f"use one of --{', --'.join(names)}"
            raise RegZooError(f"--{name}: no such option of {command.__name__}; {fix}")


def main() -> None:
    """Run a command. An error prints one line on standard error; the exit status is 1."""
    end_on_signals()
    for command in (*COMMANDS.values(), *vars(Phantom).values()):
        if inspect.isfunction(command):
            _keep_names(command)
    try:
        arguments = _joined(sys.argv[1:])
        _check_arguments(arguments)
        fire.Fire(COMMANDS, command=arguments, name="regzoo")
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and error.name in OTHER_PACKAGES:
            print_error(f"regzoo {arguments[0]}: is not part of a packaged bundle; install regzoo: {INSTALL}")
        else:
            print_error(one_line(error))
        sys.exit(1)
