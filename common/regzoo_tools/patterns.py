"""Writes a datalist for plain folders: files are paired by patterns of their names."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from regzoo.case import FIXED, MOVING, PATH_KEYS
from regzoo.datasets.folders import case_name, is_junk
from regzoo.datasets.loading import load_records, load_single_records
from regzoo.errors import RegZooError, bad_file
from regzoo.files import atomic_path

PLACES = ("case", "patient")


class Match(NamedTuple):
    """A file that a pattern matches: the words in its places, and the patient if the pattern names one."""

    words: tuple[str, ...]
    patient: str | None
    file: Path


def write_datalist(
    folders: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    patterns: Mapping[str, str],
    patient: str | None = None,
) -> tuple[int, list[str]]:
    """Write a datalist of the files in some folders, see the command `regzoo_tools.commands.datalist`.

    Files with the same words in the places of a pattern belong to one case, in any folder. In a pattern with ``{case}``
    or ``{patient}``, the text of ``*`` does not matter. Paths in the datalist are relative to its folder.

    Args:
        patterns: by ``fixed_image`` and, optionally, ``moving_image``, ``fixed_label`` and ``moving_label``.
        patient: regular expression that finds the patient in the name of a case, as its first group or its whole.

    Returns:
        How many cases were written, and one line for each file that belongs to none.

    Raises:
        RegZooError: the datalist exists, a pattern is wrong or matches nothing, two files have the same case and role,
            or the datalist cannot be read back; it is then removed.
    """
    target = Path(out)
    if target.suffix.lower() not in (".csv", ".tsv"):
        raise bad_file(target, "is not the name of a table", "let it end in .csv or .tsv")
    if target.exists():
        raise bad_file(target, "exists already", "remove it, or name another file")
    roots = [Path(folder) for folder in folders]
    for root in roots:
        if not root.is_dir():
            raise bad_file(root, "is not a folder", "name the folders where the patterns start")
    if not roots:
        raise RegZooError("no folder was named; name those where the patterns start")
    try:
        expression = None if patient is None else re.compile(patient)
    except re.error as error:
        raise RegZooError(f"--patient {patient}: is not a regular expression ({error}); correct it") from error
    found = {key: _matches(roots, key, patterns[key]) for key in PATH_KEYS if patterns.get(key)}
    images = [key for key in (FIXED.image, MOVING.image) if key in found]
    whole = [words for words in found[FIXED.image] if all(words in found[key] for key in images)]
    left = []
    for key, matches in found.items():
        for words, match in matches.items():
            lacking = " and no ".join(other for other in images if words not in found[other])
            problem = f"has no {lacking} of its name" if key in images else f"is the {key} of no image"
            left += [] if words in whole else [f"{match.file}: {problem}"]
    if not whole:
        raise bad_file(roots[0], "no two files belong together", "give both patterns {case} at the same part of a name")
    rows = [_row({key: found[key][words] for key in found if words in found[key]}, expression) for words in whole]
    _write(target, rows, single=MOVING.image not in found)
    return len(rows), left


def _matches(roots: Sequence[Path], key: str, pattern: str) -> dict[tuple[str, ...], Match]:
    """The files that a pattern matches, by the words in its places."""
    pieces = re.split(r"(\{\w*\}|\*\*/?|\*)", pattern)
    unknown = [piece for piece in pieces if piece.startswith("{") and piece[1:-1] not in PLACES]
    if unknown or "**" in pattern or Path(pattern).is_absolute():
        problem = f"has {unknown[0]}" if unknown else "has **" if "**" in pattern else "is an absolute path"
        raise RegZooError(f"--{_option(key)} {pattern}: {problem}; use {{case}}, {{patient}} and * in a relative path")
    named = any(piece.startswith("{") for piece in pieces)
    if not named and "*" not in pattern:
        raise RegZooError(f"--{_option(key)} {pattern}: has neither {{case}} nor *, so it is one file; add one of them")
    expression, seen = "", set[str]()
    for piece in pieces:
        if piece == "*":
            expression += r"[^/]*" if named else r"([^/]*)"
        elif piece.startswith("{"):
            expression += f"(?P={piece[1:-1]})" if piece in seen else f"(?P<{piece[1:-1]}>[^/]+?)"
            seen.add(piece)
        else:
            expression += re.escape(piece)
    found: dict[tuple[str, ...], Match] = {}
    for root in roots:
        for file in sorted(root.glob(re.sub(r"(\{\w+\}|\*)+", "*", pattern).replace("[", "[[]"))):
            match = re.fullmatch(expression, file.relative_to(root).as_posix())
            if match is None or is_junk(file) or not file.is_file():
                continue
            groups = match.groupdict()
            words = tuple(groups[name] for name in sorted(groups)) if named else match.groups()
            other = found.setdefault(words, Match(words, groups.get("patient"), file))
            if other.file != file:
                problem = f"and {other.file} both match --{_option(key)} {pattern} as {'/'.join(words)!r}"
                raise bad_file(file, problem, "use {case} or {patient} for the part of the name that differs")
    if not found:
        names = ", ".join(str(root) for root in roots)
        raise RegZooError(f"--{_option(key)} {pattern}: matches no file in {names}; correct the pattern")
    return found


def _option(key: str) -> str:
    return key.removesuffix("_image")


def _row(files: Mapping[str, Match], patient: re.Pattern[str] | None) -> dict[str, str]:
    """One case as a row: its files, its patient where known, its name."""
    fixed = files[FIXED.image]
    named = "_".join(word for word in fixed.words if word)
    row = {key: str(match.file) for key, match in files.items()} | {"case": named or case_name(fixed.file)}
    owner = fixed.patient
    if patient is not None:
        match = patient.search(row["case"])
        owner = match and match.group(1 if patient.groups else 0)
        if not owner:
            raise bad_file(fixed.file, f"--patient {patient.pattern} finds nothing in {row['case']!r}", "correct it")
    return row | ({"patient": owner} if owner else {})


def _write(target: Path, rows: Sequence[Mapping[str, str]], single: bool) -> None:
    """Write rows with paths relative to the datalist, and make sure that they can be read."""
    columns = [key for key in (*PATH_KEYS, "case", "patient") if any(key in row for row in rows)]
    folder = target.resolve().parent
    with atomic_path(target) as temporary, temporary.open("w", encoding="utf-8", newline="") as stream:
        table = csv.writer(stream, delimiter="\t" if target.suffix.lower() == ".tsv" else ",", lineterminator="\n")
        table.writerow(columns)
        for row in rows:
            cells = {key: os.path.relpath(Path(row[key]).absolute(), folder) for key in PATH_KEYS if key in row}
            table.writerow([{**row, **cells}.get(key, "") for key in columns])
    try:
        (load_single_records if single else load_records)(target)
    except RegZooError:
        target.unlink()
        raise
