"""The Model Zoo's checks of a bundle, and those that MONAI Label needs, offline and in one table.

A check is a function of a `Bundle` that returns a few words about the result, or raises `CheckError` or
`NotCheckedError`. The zoo's are those of its ``ci/verify_bundle.py``, ``runtests.sh`` and ``.pre-commit-config.yaml``;
docs/model_zoo.md lists what is left out.
"""

from __future__ import annotations

import contextlib
import io
import logging
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from os import PathLike
from textwrap import shorten

import torch
from regzoo.errors import user_error
from regzoo_tools import check_code, check_files, check_metadata, check_network, check_workflow
from regzoo_tools.bundle import Bundle, CheckError, NotCheckedError, package_inside

Check = Callable[[Bundle], str]

#: In the order of the table.
CHECKS: dict[str, Check] = {
    "required files": check_files.required_files,
    "name": check_files.name,
    "licences": check_files.licences,
    "file sizes": check_files.sizes,
    "JSON format": check_files.json_format,
    "logging.conf": check_files.logging_conf,
    "README sections": check_files.readme_sections,
    "links": check_files.links,
    "package inside": package_inside,
    "Python style": check_code.python_style,
    "targets": check_code.targets,
    "metadata schema": check_metadata.schema,
    "version and changelog": check_metadata.version,
    "required packages": check_metadata.packages,
    "network tensors": check_metadata.tensors,
    "network in and out": check_network.in_and_out,
    "batch of two": check_network.batch_of_two,
    "weights": check_network.weights,
    "TorchScript (script)": partial(check_network.torchscript, trace=False),
    "TorchScript (trace)": partial(check_network.torchscript, trace=True),
    "train and inference agree": check_workflow.same_settings,
    "ids of the zoo": check_workflow.zoo_ids,
    "ids of MONAI Label": check_workflow.label_ids,
    "requests to train": check_workflow.served_training,
    "properties: train": lambda bundle: check_workflow.properties(bundle, "train"),
    "properties: evaluate": lambda bundle: check_workflow.properties(bundle, "train", "evaluate"),
    "properties: inference": lambda bundle: check_workflow.properties(bundle, "inference"),
}

OK, FAILED, SKIPPED = "ok", "FAILED", "skipped"
#: Most characters of a message.
LENGTH = 400


@dataclass(frozen=True)
class Row:
    """A line of the table: what was checked, ``ok``, ``FAILED`` or ``skipped``, and what was found."""

    check: str
    result: str
    detail: str


def verify(bundle: str | PathLike[str], checks: Sequence[str] | None = None) -> list[Row]:
    """Check a bundle. Nothing is written into it, and no network is used.

    Args:
        checks: names out of `CHECKS`; all if not given.

    Raises:
        RegZooError: no such bundle.
    """
    subject = Bundle(bundle)
    return [run_check(name, CHECKS[name], subject) for name in checks or CHECKS]


def run_check(name: str, check: Check, bundle: Bundle) -> Row:
    """One line of the table; any exception of a check is a failure."""
    try:
        with isolated():
            return Row(name, OK, check(bundle))
    except NotCheckedError as reason:
        return Row(name, SKIPPED, shorten(str(reason), LENGTH))
    except CheckError as problem:
        return Row(name, FAILED, shorten(str(problem), LENGTH))
    except Exception as error:
        known = user_error(error)
        return Row(name, FAILED, shorten(str(known or f"{type(error).__name__}: {error}"), LENGTH))


@contextlib.contextmanager
def isolated() -> Iterator[None]:
    """Silence the block, and restore the state of the process after it."""
    path, hook = list(sys.path), sys.excepthook
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    silence = io.StringIO()
    try:
        with (
            contextlib.redirect_stdout(silence),
            contextlib.redirect_stderr(silence),
            warnings.catch_warnings(),
            torch.random.fork_rng(devices=[]),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
        sys.path[:], sys.excepthook = path, hook


def as_table(rows: Sequence[Row]) -> str:
    """Rows as a text table with a header, and a line such as ``26 checks: 25 ok, 1 skipped``."""
    table = [Row("check", "result", "detail"), *rows]
    width = max(len(row.check) for row in table)
    lines = [f"{row.check:{width}} | {row.result:7} | {row.detail}" for row in table]
    lines.insert(1, f"{'-' * width}-|---------|-------")
    counts = Counter(row.result for row in rows)
    listed = ", ".join(f"{counts[result]} {result}" for result in (OK, FAILED, SKIPPED) if counts[result])
    return "\n".join([*lines, f"{len(rows)} checks: {listed}"])


def failed(rows: Sequence[Row]) -> list[str]:
    """The names of the checks that failed."""
    return [row.check for row in rows if row.result == FAILED]
