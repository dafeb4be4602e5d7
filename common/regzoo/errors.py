"""One error class for everything a user can fix. Its message is one line: the file, what is wrong and what to do."""

from __future__ import annotations

import atexit
import contextlib
import io
import logging
import os
import re
import select
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from os import PathLike
from types import FrameType, TracebackType

#: The exit status if the reader of standard output has gone: that of a program that SIGPIPE ends, as in a shell.
READER_GONE = 128 + 13

_collected: ContextVar[list[RegZooError] | None] = ContextVar("collected", default=None)


class RegZooError(ValueError):
    """A mistake in the input that the user can fix."""


def bad_file(path: str | PathLike[str], problem: str, fix: str) -> RegZooError:
    """The error for a file: ``<path>: <problem>; <fix>``, in one line even if the name has two."""
    name = str(path).replace("\n", "\\n")
    return RegZooError(f"{name}: {problem}; {fix}")


@contextmanager
def collected_problems() -> Iterator[list[RegZooError]]:
    """Within the block, `refuse` appends errors to the yielded list instead of raising them."""
    problems: list[RegZooError] = []
    token = _collected.set(problems)
    try:
        yield problems
    finally:
        _collected.reset(token)


def refuse(error: RegZooError) -> None:
    """Raise an error, or collect it inside a `collected_problems` block."""
    problems = _collected.get()
    if problems is None:
        raise error
    problems.append(error)


def user_error(error: BaseException | None) -> RegZooError | None:
    """The `RegZooError` behind an exception that MONAI or Ignite may have wrapped, or None."""
    return next((cause for cause in causes(error) if isinstance(cause, RegZooError)), None)


def one_line(error: BaseException) -> str:
    """Any exception as one line: a `RegZooError` unchanged; otherwise the cause and where to find the traceback.

    With the environment variable ``REGZOO_TRACEBACK`` set, the traceback is printed above the line instead.
    """
    known = user_error(error)
    if known is not None:
        return str(known)
    chain = list(causes(error))
    cause, where = chain[-1], ""
    for outer in chain[:-1]:  # MONAI names the component that it could not build
        if found := re.search(r"component '([^']+)'|\$(@?[a-z][\w.]+)", str(outer)):
            where = f"{found[1] or found[2]}: "
    message = " ".join(str(cause).split()) or "no message"
    if isinstance(cause, OSError) and cause.strerror:
        message = f"{cause.filename or 'a file'}: {cause.strerror.lower()}"
    if os.environ.get("REGZOO_TRACEBACK"):
        traceback.print_exception(error)
        hint = "the traceback is above"
    else:
        hint = "set REGZOO_TRACEBACK=1 to see the traceback"
        with contextlib.suppress(OSError):
            with tempfile.NamedTemporaryFile("w", prefix="regzoo-", suffix=".log", delete=False) as file:
                traceback.print_exception(error, file=file)
            hint = f"the traceback is in {file.name}"
    return f"{where}{type(cause).__name__}: {message:.300}; {hint}"


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """An exception, then the exceptions that caused it; the root cause is last."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        yield error
        seen.add(id(error))
        error = error.__cause__ or error.__context__


def print_error(error: object) -> None:
    """Print ``error: …`` on standard error, on a line of its own even while a progress bar is shown."""
    if "tqdm" in sys.modules:
        sys.modules["tqdm"].tqdm.write(f"error: {error}", file=sys.stderr)
    else:
        print(f"error: {error}", file=sys.stderr)


def one_line_errors() -> None:
    """Print uncaught exceptions as one line instead of a traceback, see `one_line`, and call `end_on_signals`.

    The bundles' ``initialize`` calls this function, so ``python -m monai.bundle run`` reports bad input in one line.
    """
    end_on_signals()
    print_any_name()
    logging.raiseExceptions = False  # or each line that cannot be written to a closed pipe would print a traceback

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if reader_is_gone(error):
            sys.exit(READER_GONE)
        if isinstance(error, Exception):
            print_error(one_line(error))
        else:
            sys.__excepthook__(kind, error, trace)

    sys.excepthook = hook


def print_any_name() -> None:
    """Let standard output escape what it cannot encode: the names of files can be any bytes."""
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")


def reader_is_gone(error: BaseException) -> bool:
    """Whether an exception means that the reader of standard output, such as ``head``, has closed it."""
    if not any(isinstance(cause, BrokenPipeError) for cause in causes(error)) or not hasattr(select, "poll"):
        return False
    poll = select.poll()
    poll.register(sys.stdout, 0)  # reports only errors
    return bool(poll.poll(0))


def _flush() -> None:
    """Write out standard output; if its reader has gone, drop the rest, which Python would complain about at its end.

    Source: "Note on SIGPIPE" in Python's documentation of ``signal``.
    """
    try:
        print(end="", flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def end_on_signals() -> None:
    """Make SIGTERM and SIGHUP raise `SystemExit`, so that half-written files are removed.

    A closed standard output, as by ``| head``, causes no message at the end of the program.

    The exit status is 128 plus the number of the signal, as in a shell. Does nothing outside the main thread, if the
    signal already has a handler (as in a server) or if it is ignored (as under ``nohup``).
    """
    atexit.unregister(_flush)
    atexit.register(_flush)
    if threading.current_thread() is not threading.main_thread():
        return
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, _end)


def _end(number: int, frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_IGN)  # a second signal must not interrupt the clean-up
    raise SystemExit(128 + number)
