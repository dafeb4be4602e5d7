"""Registering many pairs: a folder of results for each, a table of all and a contact sheet."""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import regzoo
from regzoo.bundles import find_bundle
from regzoo.case import PATH_KEYS, Key, Record
from regzoo.datasets import load_records
from regzoo.datasets.records import PATIENT_KEYS, record_files
from regzoo.engines.identity import whole_hash
from regzoo.engines.streams import name_of
from regzoo.errors import one_line, print_error
from regzoo.files import file_name, make_folder
from regzoo.inference.accuracy import accuracy
from regzoo.inference.outputs import OUTPUTS, RegistrationResult, check_target, requested_outputs
from regzoo.inference.registrar import Registrar
from regzoo.ownership import check_folder, claim, discard, origin_of, settle
from regzoo.report.sheet import contact_sheet
from regzoo.report.tables import write_csv
from tqdm import tqdm

SUMMARY, SHEET = "summary.csv", "contact_sheet.png"
#: Entries of a record that its result does not depend on.
IRRELEVANT = {*PATH_KEYS, *PATIENT_KEYS, Key.CASE, Key.SPLIT, Key.FOLD}
Row = dict[str, Any]


def register_pairs(
    bundle: str | PathLike[str],
    pairs: str | PathLike[str],
    out: str | PathLike[str],
    outputs: Sequence[str] | str | None = None,
    inverse: bool = False,
    split: str | None = None,
    **overrides: Any,
) -> list[Row]:
    """Register the pairs of a data set one after another, each into ``<out>/<case>/``.

    A pair that fails is reported in one line and passed over. An earlier result of it is removed, unless a file of that
    result is not ours or has been edited; then the pair fails, and its folder is left alone. A pair whose result is
    complete, and was made from the same files with the same settings, is not registered again. At the end, also of a
    run that is interrupted, ``<out>/summary.csv`` gets a row for each pair so far, and ``<out>/contact_sheet.png`` the
    picture of each.

    Args:
        bundle: a bundle's folder or name.
        pairs: a datalist, or a folder in a known layout.
        out: folder for the results.
        outputs, inverse: see `RegistrationResult.save`.
        split: see `regzoo.datasets.load_records`. The direction is that of the bundle's weights.
        overrides: see `Registrar`.

    Returns:
        The rows of the table: ``case``, ``status`` (``registered`` or ``failed``), ``seconds``, ``folded_percent``, the
        measures of `regzoo.inference.accuracy.accuracy`, what a refinement reports, ``warnings`` and ``problem``.

    Raises:
        RegZooError: the list of pairs cannot be used, two pairs have one name, the bundle cannot be loaded, or
            somebody else's file has the name of the table or of the contact sheet.
    """
    wanted = requested_outputs(outputs)
    check_folder(Path(out), (SUMMARY, SHEET), find_bundle(bundle).resolve().name)
    registrar = Registrar(bundle, **overrides)
    records = load_records(pairs, split, registrar.settings.get("direction", "mr_to_us"), must_exist=False)
    registrar.check_refinement(records)
    registrar.check_exclude(records)
    runner = _Runner(registrar, make_folder(out), wanted, inverse)
    claim(runner.folder, (SUMMARY, SHEET), runner.registrar.bundle)
    rows: list[Row] = []
    try:
        for record in tqdm(records, desc="pairs", unit="pair", disable=None):
            rows.append(runner.row(record))
    finally:
        _write_table(runner.folder / SUMMARY, rows)
        _write_sheet(runner.folder, rows)
        settle(runner.folder)
    if runner.kept:
        tqdm.write(f"kept from an earlier run, because nothing has changed: {runner.kept} of {len(rows)}")
    return rows


class _Runner:
    """Registers pairs with one bundle and the same options."""

    def __init__(self, registrar: Registrar, folder: Path, outputs: Sequence[str] | None, inverse: bool) -> None:
        self.registrar, self.folder, self.outputs, self.inverse = registrar, folder, outputs, inverse
        weights = [whole_hash(file) for file in registrar.weights]
        self.request = {"settings": registrar.settings, "weights": weights, "outputs": outputs, "inverse": inverse}
        self.request["regzoo"] = regzoo.__version__
        self.kept = 0

    def row(self, record: Record) -> Row:
        """Register a pair, unless its result is there, and return its row of the table."""
        case = name_of(record)
        folder = self.folder / file_name(case)
        may_write = False
        try:
            check_target(folder, self.outputs, self.registrar.bundle, record, inverse=self.inverse)
            may_write = True
            request, origin = self._request(record), origin_of(folder)
            if origin is not None and origin.get("request") == request:
                self.kept += 1
                return origin["row"] | {"case": case}
            row = self._registered(record, case, folder, request)
        except Exception as error:
            line = one_line(error)
            print_error(f"{case}: {line}")
            if may_write:
                discard(folder, self.registrar.bundle)
            return {"case": case, "status": "failed", "problem": line}
        again = "" if origin is None else ", again, because its files or the settings have changed"
        folds = f" (folded voxels: {row['folded_percent']:.3g} %)" if "folded_percent" in row else ""
        tqdm.write(f"{case} → {folder}{again}{folds}")
        if row["warnings"]:
            tqdm.write(f"warning: {case}: {row['warnings']}", file=sys.stderr)
        return row

    def _registered(self, record: Record, case: str, folder: Path, request: str) -> Row:
        start = time.monotonic()
        item = self.registrar.run(record)
        seconds = time.monotonic() - start
        result = RegistrationResult.of(item, self.registrar.bundle)
        if measured := accuracy(item):
            result.statistics["accuracy"] = measured
        row = {"case": case, "status": "registered", "seconds": round(seconds, 2)} | _facts(result.statistics)
        result.save(folder, self.outputs, self.inverse, {"request": request, "row": row})
        return row

    def _request(self, record: Record) -> str:
        """The hash of all that a result depends on: the settings, the weights, and the record and its files."""
        facts = {key: value for key, value in record.items() if key not in IRRELEVANT}
        files = {key: list(map(whole_hash, record_files(record, [key]))) for key in PATH_KEYS if record.get(key)}
        content = json.dumps(self.request | {"facts": facts, "files": files}, sort_keys=True, default=str)
        return hashlib.sha256(content.encode()).hexdigest()


def _facts(statistics: Mapping[str, Any]) -> Row:
    """The entries of a result's statistics that fit into a row."""
    facts: Row = {}
    if "deformation" in statistics:
        facts["folded_percent"] = statistics["deformation"]["folded_voxels_percent"]
    facts |= {name: value for name, value in statistics.get("accuracy", {}).items() if name != "points"}
    refinement = statistics.get("refinement", {})
    facts |= {f"refinement_{name}": value for name, value in refinement.items() if not isinstance(value, list | dict)}
    return facts | {"warnings": " | ".join(statistics["warnings"])}


def _write_table(path: Path, rows: Sequence[Row]) -> None:
    last = ("warnings", "problem")
    names = [*dict.fromkeys(name for row in rows for name in row if name not in last), *last]
    write_csv(path, names, [["" if (value := row.get(name)) is None else value for name in names] for row in rows])


def _write_sheet(folder: Path, rows: Sequence[Row]) -> None:
    """Write the contact sheet, or remove an earlier one if no case has a picture."""
    files = (folder / file_name(row["case"]) / OUTPUTS["picture"] for row in rows if row["status"] == "registered")
    pictures = [file for file in files if file.is_file()]
    if pictures:
        contact_sheet(folder / SHEET, pictures)
    else:
        (folder / SHEET).unlink(missing_ok=True)
