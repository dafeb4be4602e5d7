"""One kind of error for everything a user can mend: a line that names the file, what is wrong and what to do."""

from __future__ import annotations

import signal
import sys
import threading
from os import PathLike
from types import FrameType, TracebackType


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

    Called by the bundles' ``initialize``, so that ``python -m monai.bundle run`` answers bad input in one line. It also
    calls `end_on_signals`.
    """
    end_on_signals()

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        mine = user_error(error)
        if mine is None:
            sys.__excepthook__(kind, error, trace)
        else:
            print_error(mine)

    sys.excepthook = hook


def end_on_signals() -> None:
    """Let SIGTERM and SIGHUP end the program as an error does, so that what is half-written is cleared away.

    The exit status is 128 and the number of the signal, as in a shell. Only in the main thread, and only where nobody
    else has a handler, as a server has, or ignores the signal, as ``nohup`` does.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, _end)


def _end(number: int, frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_IGN)  # a second one does not disturb the clearing away
    raise SystemExit(128 + number)
