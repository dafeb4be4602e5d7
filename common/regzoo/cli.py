"""The `regzoo` command."""

from __future__ import annotations

import difflib
import inspect
import keyword
import re
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import fire
from fire.parser import DefaultParseValue
from regzoo.bundles import as_value, find_bundle
from regzoo.errors import (
    READER_GONE,
    RegZooError,
    end_on_signals,
    one_line,
    print_any_name,
    print_error,
    reader_is_gone,
)
from regzoo.startup import keep_freed_memory, quick_imports, run_again

_OPTION = re.compile(r"(?:--|-(?=[A-Za-z](?:=|$)))([A-Za-z][\w#-]*)(=.*)?", re.DOTALL)
_VAR_POSITIONAL, _VAR_KEYWORD = inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD


def register(
    bundle: str,
    fixed: str | None = None,
    moving: str | None = None,
    out: str | None = None,
    label: str | None = None,
    align: str | None = None,
    outputs: str | None = None,
    fixed_label: str | None = None,
    fixed_mask: str | None = None,
    moving_mask: str | None = None,
    refine: str | bool | None = None,
    points: str | None = None,
    frame: str | None = None,
    inverse: bool = False,
    pairs: str | None = None,
    overlays: str | Sequence[str] = (),
    **overrides: Any,
) -> None:
    """Register a moving image to a fixed image with a bundle, and propagate the moving labels.

    With --refine, the bundle's answer is improved on the pair itself, in seconds. regzoo register none does without a
    network: it registers any two images by an affine pre-alignment and refinement alone.

    With --pairs TABLE instead of --fixed and --moving, many pairs are registered, each into its own folder in --out.
    The same command resumes a run that was interrupted. summary.csv lists all pairs, contact_sheet.png shows them.

    Writes warped_image.nii.gz, warped_label.nii.gz (if there is a label), field.nii.gz (fixed to moving, LPS mm, for
    ITK, ANTs and 3D Slicer), statistics.json and quality.png; .nrrd or .mha instead of .nii.gz for warped images and
    labels if the moving files are such files. Some bundles write only some of these files.

    Args:
        bundle: a bundle's name or folder, or none.
        fixed: fixed image file, or a folder of DICOM files. FOLDER#NUMBER chooses one of several series.
        moving: the same for the moving image.
        out: folder for the results.
        label: file of the moving labels to propagate.
        align: how to pre-align the images: header (keep the positions in the files), center (match the image centres),
            label (move the moving label to the centre of the fixed image), region (match the organ of two CTs, or the
            bodies if the organ is not labelled), or rigid, similarity or affine (register the images, about 2 s).
        points: file of points of the moving image to carry to the fixed image: .fcsv or .mrk.json of 3D Slicer, .csv,
            or a surface (.vtk, .ply). Writes warped_points in the same form.
        frame: RAS or LPS, for points in a file that does not say so itself.
        inverse: also write field_inverse.nii.gz, from moving to fixed, on the grid of the moving image.
        pairs: list of pairs to register: .csv, .tsv or .json with the columns or keys fixed_image, moving_image and
            others (moving_label, fixed_label, case, align, refine, ...), or a folder in a known layout; with --split
            train, val or test, only these pairs.
        outputs: any of image,label,probability,field,inverse,statistics,picture,viewer; by default all except
            probability, inverse and viewer. viewer is a page for a browser (viewer.html).
        fixed_label: file of the fixed labels, for a refinement that compares labels and for bundles that pre-align by
            an organ.
        fixed_mask: mask of the fixed voxels that count in a refinement and with --align rigid, similarity or affine;
            with --exclude, of those that do not.
        moving_mask: the same for the moving image.
        refine: refine the result on this pair. --refine alone takes the pair for what the bundle is made for. A word
            after it says what the pair is, mr or ct (two images of that modality), other (two modalities), labels
            (structures outlined on both images) or outlines (the same for small ones). --refine_seconds N limits the
            time. --refine_options changes how it works, see docs/refinement.md.
        overlays: further configurations of the bundle, such as configs/variants/onnx.json, separated by commas; write
            a list, "['a.json']", if a name contains a comma.
        overrides: any setting in the bundle's configs/inference.json, such as --checkpoint FILE.
    """
    find_bundle(bundle)  # before MONAI is imported
    alone = {"fixed": fixed, "moving": moving, "label": label, "fixed_label": fixed_label, "fixed_mask": fixed_mask}
    alone |= {"moving_mask": moving_mask, "points": points, "frame": frame}
    _check_files(pairs, alone, out)
    if align is not None:
        overrides["align"] = align
    if refine is not None:
        overrides["refine"] = refine
    settings = {name: as_value(name, value) for name, value in overrides.items()}
    if pairs:
        # Every import, not the quick ones: `run_again` starts a command again only if it fails as a whole.
        from regzoo.inference import register_pairs

        rows = register_pairs(bundle, pairs, str(out), outputs, inverse, overlays=overlays, **settings)
        failed = sum(row["status"] == "failed" for row in rows)
        if failed:
            raise RegZooError(f"{failed} of {len(rows)} pairs failed; see {out}/summary.csv")
        print(f"{len(rows)} pairs: {out}/summary.csv")
        return
    with quick_imports():
        from regzoo.inference import register as run

    labels = [as_value("moving_label", name) for name in (label, fixed_label)]
    files: Any = (fixed, moving, labels[0], out, outputs, labels[1], fixed_mask, moving_mask, points, frame, inverse)
    result = run(bundle, *files, overlays=overlays, **settings)
    deformation = result.statistics.get("deformation")
    folds = f" (folded voxels: {deformation['folded_voxels_percent']:.3g} %)" if deformation else ""
    print(f"{result.case} → {out}{folds}")
    for line in result.statistics["warnings"]:
        print(f"warning: {line}", file=sys.stderr)


def _check_files(pairs: str | None, alone: Mapping[str, str | None], out: str | None) -> None:
    """Refuse a registration that names too few files, or files of one pair beside a list of pairs."""
    missing = [] if pairs else [name for name in ("fixed", "moving") if alone[name] is None]
    missing += ["out"] if out is None else []
    if missing:
        fix = "name it" + ("" if pairs or missing == ["out"] else ", or a list of pairs with --pairs")
        raise RegZooError(f"register: --{missing[0]} is missing; {fix}")
    keys = {"fixed": "fixed_image", "moving": "moving_image", "label": "moving_label", "frame": "points_frame"}
    for name, value in alone.items() if pairs else ():
        if value is not None:
            fix = f"say it for each pair in {pairs}, as {keys.get(name, name)}"
            if name == "points":
                fix = "carry points through the field of each pair with regzoo apply"
            raise RegZooError(f"--{name} {value}: has no effect with --pairs; {fix}")


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
    fire.decorators.FIRE_METADATA = "_fire"  # help lists attributes as commands unless their names begin so
    fire.decorators.SetParseFns(**named)(command)
    fire.decorators.SetParseFn(str)(command)


def _members(group: Any) -> Mapping[str, Any]:
    """The commands of a group by name: of all of `regzoo`, or of an object such as that of ``regzoo study``."""
    return group if isinstance(group, Mapping) else dict(inspect.getmembers(group, inspect.ismethod))


def _suggestion(near: Sequence[str], names: Sequence[str], dashes: str = "") -> str:
    if near:
        return f"did you mean {dashes}{f' or {dashes}'.join(near)}?"
    return f"use one of {dashes}{f', {dashes}'.join(names)}"


def _find(commands: Mapping[str, Any], arguments: Sequence[str]) -> tuple[Any, list[str], list[str]]:
    """The command, or the group of commands, that the first words name; these words, and those after them.

    Raises:
        RegZooError: one line that names the word and the nearest command, or an option before the command.
    """
    command, words, rest = commands, list[str](), list(arguments)
    while rest and not inspect.isroutine(command) and not rest[0].startswith("-"):
        names = _members(command)
        words.append(rest.pop(0))
        if words[-1] not in names:
            fix = _suggestion(difflib.get_close_matches(words[-1], names, 1), list(names))
            raise RegZooError(f"regzoo {' '.join(words)}: no such command; {fix}")
        command = names[words[-1]]
    if rest and not inspect.isroutine(command) and rest[0] != "--" and not {"--help", "-h"} & set(rest):
        named = " ".join(["regzoo", *words])
        raise RegZooError(f"{rest[0]}: stands before the command; write {named} COMMAND, then the options")
    return command, words, rest


def _read(command: Callable[..., None], words: Sequence[str], named: str) -> list[str]:
    """A command line in the form that fire cannot misread, every option with its value as ``--option=value``.

    So a value may begin with a dash, and a switch may stand before a file.

    Raises:
        RegZooError: one line that names an option or word that is unknown or missing, and the nearest valid one.
    """
    parameters = inspect.signature(command).parameters
    several, anything = (kind in {p.kind for p in parameters.values()} for kind in (_VAR_POSITIONAL, _VAR_KEYWORD))
    kinds = {name: p for name, p in parameters.items() if p.kind not in (_VAR_POSITIONAL, _VAR_KEYWORD)}
    read, free, alone, rest = list[str](), list(kinds), 0, list(words)
    while rest:
        word = rest.pop(0)
        option = _OPTION.fullmatch(word)
        if option is None:
            if word.startswith("-"):
                raise RegZooError(f"{word}: begins like an option; if it is a file, write ./{word}")
            alone += 1
            if alone > len(free) and not several:
                raise RegZooError(f"{word}: one argument too many; see {named} --help")
            read.append(word)
            continue
        name, value = _full_name(option[1], list(kinds), anything, named), option[2]
        if name not in kinds and (switch := name.removeprefix("no")) in kinds and value is None:
            name, value = switch, "=False"
        annotation = str(kinds[name].annotation) if name in kinds else "Any"
        free = [other for other in free if other != name]
        following = rest[0] if rest and not _OPTION.fullmatch(rest[0]) else None
        if value is None and following is not None and (annotation != "bool" or following.lower() in {"true", "false"}):
            value = f"={rest.pop(0)}"
        if value in (None, "=") and annotation != "Any" and "bool" not in annotation:
            raise RegZooError(f"--{name.rstrip('_')}: has no value; write one after it")
        read.append(f"--{name}{value or '=True'}")
    options = [name for name in free if kinds[name].kind is inspect.Parameter.KEYWORD_ONLY]
    for name in (*[name for name in free if name not in options][alone:], *options):
        if kinds[name].default is inspect.Parameter.empty:
            shown = f"--{name}" if name in options else name.upper()
            raise RegZooError(f"{named}: {shown} is missing; see {named} --help")
    return read


def _full_name(option: str, names: Sequence[str], anything: bool, named: str) -> str:
    """The parameter that an option means: ``from`` is ``from_``, and ``o`` the only one that begins with o."""
    name = option.replace("-", "_") + "_" * keyword.iskeyword(option)  # no parameter can have the name of a keyword
    if name in names or name.removeprefix("no") in names or (anything and len(name) > 1):
        return name
    near = [other for other in names if other.startswith(name)] if len(name) == 1 else []
    if len(near) == 1 and not anything:
        return near[0]
    near = near or difflib.get_close_matches(name, names, 1)
    shown = f"{'-' if len(name) == 1 else '--'}{option}"
    raise RegZooError(f"{shown}: no such option of {named}; {_suggestion(near, names, '--')}")


def _commands() -> dict[str, Any]:
    """All commands by name; a packaged bundle has only ``register``."""
    try:
        from regzoo_tools.commands import COMMANDS
    except ModuleNotFoundError as error:
        if error.name != "regzoo_tools":
            raise
        return {"register": register}
    return {"register": register, **COMMANDS}


def main() -> None:
    """Run a command. An error prints one line on standard error; the exit status is 1."""
    end_on_signals()
    print_any_name()
    keep_freed_memory()
    commands = _commands()
    for command in commands.values():
        for function in [command] if inspect.isfunction(command) else _members(command).values():
            _keep_names(getattr(function, "__func__", function))
    try:
        arguments = sys.argv[1:]
        if len(commands) == 1 and arguments and re.match(r"\w", arguments[0]) and arguments[0] not in commands:
            problem = f"regzoo {arguments[0]}: is not part of a packaged bundle"
            raise RegZooError(f'{problem}; install regzoo: pip install "regzoo[zoo]"')
        command, words, rest = _find(commands, arguments)
        if {"--help", "-h"} & set(rest):  # fire would take --help for one of register's overrides
            arguments = [*words, "--", "--help"]
        elif inspect.isroutine(command) and "--" not in rest:
            arguments = [*words, *_read(command, rest, " ".join(["regzoo", *words]))]
        fire.Fire(commands, command=arguments, name="regzoo")
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    except Exception as error:
        if reader_is_gone(error):
            sys.exit(READER_GONE)
        if (status := run_again(error)) is not None:
            sys.exit(status)
        print_error(one_line(error))
        sys.exit(1)
