"""Findings of a check, and their creation from errors and warnings of the package."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

Severity = Literal["error", "warning"]


@dataclass(frozen=True)
class Finding:
    """One problem of a data set, and how to fix it.

    Attributes:
        severity: an ``error`` stops or spoils a training; a ``warning`` should be reviewed.
        file: the file, or the data set if no file is concerned.
        case: name of the case; empty if no case is concerned.
        channel: number of the label, from 0; None if no label is concerned.
    """

    severity: Severity
    file: str
    problem: str
    fix: str
    case: str = ""
    channel: int | None = None

    def line(self) -> str:
        """The finding as one line."""
        return f"{self.severity}: {self.file}: {self.problem}" + (f"; {self.fix}" if self.fix else "")


def finding_of(
    text: object, severity: Severity, files: Iterable[str], case: str = "", otherwise: object = ""
) -> Finding:
    """The finding that an error or a warning, ``<file>: <problem>; <fix>``, is about.

    If it is about none of the `files`, the finding names the file or data set `otherwise`.
    """
    message = str(text)
    file = next((file for file in sorted(files, key=len, reverse=True) if message.startswith(f"{file}: ")), None)
    if file is None:
        file = str(otherwise)
        message = message.removeprefix(f"{case}: ").removeprefix(f"{file}: ")
    problem, _, fix = message.removeprefix(f"{file}: ").rpartition("; ")
    return Finding(severity, file, problem or fix, fix if problem else "", case)


class _Collector(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


@contextmanager
def collected_warnings() -> Iterator[list[str]]:
    """Within the block, collect warnings of this package in a list instead of printing them."""
    logger, collector = logging.getLogger("regzoo"), _Collector()
    propagated, logger.propagate = logger.propagate, False
    logger.addHandler(collector)
    try:
        yield collector.lines
    finally:
        logger.removeHandler(collector)
        logger.propagate = propagated
