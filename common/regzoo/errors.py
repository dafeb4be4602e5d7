"""One kind of error for everything a user can mend: a line that names the file, what is wrong and what to do."""

from __future__ import annotations

import sys
from os import PathLike
from types import TracebackType


class RegZooError(ValueError):
    """A mistake in the input that the user can mend. The message is one line: file, what is wrong, what to do."""


def bad_file(path: str | PathLike[str], problem: str, mend: str) -> RegZooError:
    """The error for a file: ``<path>: <problem>; <mend>``."""
    return RegZooError(f"{path}: {problem}; {mend}")


def user_error(error: BaseException | None) -> RegZooError | None:
    """The `RegZooError` behind an exception, however many layers of MONAI or Ignite wrapped it, or None."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        if isinstance(error, RegZooError):
            return error
        seen.add(id(error))
        error = error.__cause__ or error.__context__
    return None


def print_error(error: object) -> None:
    """Print ``error: …`` on standard error, on a line of its own even while a progress bar is shown."""
    if "tqdm" in sys.modules:
        sys.modules["tqdm"].tqdm.write(f"error: {error}", file=sys.stderr)
    else:
        print(f"error: {error}", file=sys.stderr)


def one_line_errors() -> None:
    """Print uncaught `RegZooError`s as one line instead of a traceback; other exceptions are shown as before.

    Called by the bundles' ``initialize``, so that ``python -m monai.bundle run`` answers bad input in one line.
    """

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        mine = user_error(error)
        if mine is None:
            sys.__excepthook__(kind, error, trace)
        else:
            print_error(mine)

    sys.excepthook = hook
