"""Decode text, and write files so that a half-written one is never left behind."""

from __future__ import annotations

import atexit
import codecs
import errno
import hashlib
import json
import os
import platform
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from regzoo.errors import RegZooError, bad_file


def make_folder(path: str | os.PathLike[str]) -> Path:
    """Create an output folder; raises `RegZooError` if it cannot be created or written to."""
    folder = Path(path)
    for tries_left in (2, 1, 0):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                return folder
        except OSError as error:
            if isinstance(error, FileNotFoundError) and tries_left:
                continue  # another run may have checked the same new folder, and removed it meanwhile
            reason = (error.strerror or str(error)).lower()
            raise bad_file(folder, f"cannot write here ({reason})", "name a folder you may write to") from error
    raise AssertionError


def check_writable(path: str | os.PathLike[str]) -> None:
    """Check that `make_folder` can make an output folder, without leaving it behind."""
    folder = Path(path).absolute()
    new = missing_folders(folder)
    try:
        make_folder(folder)
    finally:
        remove_empty(new)


def missing_folders(folder: Path) -> list[Path]:
    """A folder and those around it that do not exist, the innermost first."""
    return [parent for parent in (folder, *folder.parents) if not os.path.lexists(parent)]


def remove_empty(folders: Sequence[Path]) -> None:
    """Remove folders that are empty, the innermost first."""
    for folder in folders:
        with suppress(OSError):
            folder.rmdir()


def file_name(case: str) -> str:
    """A case's name, turned into a valid file name."""
    return re.sub(r"[^\w.+-]+", "_", case).strip("._") or "case"


def file_hash(path: Path, kind: str = "sha256") -> str:
    """The hexadecimal hash of a file's content."""
    digest = hashlib.new(kind)
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


#: The first bytes of a text in UTF-16.
MARKS_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def decoded(path: str | os.PathLike[str], content: bytes) -> str:
    """The content of a text file in UTF-8 or, with a byte order mark, UTF-16, as spreadsheets write it.

    Raises:
        RegZooError: it is in another encoding.
    """
    try:
        text = content.decode("utf-16" if content.startswith(MARKS_UTF16) else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise bad_file(path, f"is not UTF-8 text ({error.reason} at byte {error.start})", "save it in UTF-8") from error
    if "\0" in text:
        raise bad_file(path, "is not UTF-8 text (it holds zero bytes)", "save it in UTF-8")
    return text


@contextmanager
def alone_in(folder: str | os.PathLike[str]) -> Iterator[None]:
    """Let only one process or thread at a time run such a block for a folder, to read and rewrite a file safely.

    Where folders cannot be locked, as on Windows and on some network drives, nobody waits.
    """
    descriptor = None
    with suppress(ImportError, OSError):
        import fcntl

        descriptor = os.open(folder, os.O_RDONLY)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)  # which unlocks it


#: Folders that this process has yet to remove.
_partial: set[str] = set()


@contextmanager
def partial_folder(folder: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary folder inside `folder`, removed at the end of the block, also after an error.

    A process that is killed outright leaves the temporary folder behind. Its name holds the machine and the process, so
    the next call for the same `folder` removes it.
    """
    for leftover in Path(folder).glob(".partial-*"):
        if _is_orphan(leftover.name):
            shutil.rmtree(leftover, ignore_errors=True)
    name = tempfile.mkdtemp(dir=folder, prefix=f".partial-{platform.node()}-{os.getpid()}-")
    _partial.add(name)
    try:
        yield Path(name)
    finally:
        shutil.rmtree(name, ignore_errors=True)
        _partial.discard(name)


@atexit.register
def _remove_partial() -> None:
    """Remove folders whose removal was interrupted by a signal."""
    for name in _partial:
        shutil.rmtree(name, ignore_errors=True)


def _is_orphan(name: str) -> bool:
    """Whether the process that made a partial folder ran on this machine and has ended."""
    found = re.fullmatch(rf"\.partial-{re.escape(platform.node())}-(\d+)-\w+", name)
    if found is None or os.name != "posix":
        return False
    try:
        os.kill(int(found[1]), 0)
    except ProcessLookupError:
        return True
    except OSError:
        pass  # another user's process
    return False


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary path beside `path`, renamed to it when the block succeeds and removed when it fails.

    It keeps all suffixes, for libraries that choose a format by suffix; the last one is in lower case, which ITK needs.

    Raises:
        RegZooError: the folder cannot be written to, or the disk is full.
    """
    target = Path(path)
    new = missing_folders(target.parent.absolute())
    try:
        make_folder(target.parent)
        with partial_folder(target.parent) as folder:
            temporary = folder / target.with_suffix(target.suffix.lower()).name
            try:
                yield temporary
            except RegZooError as error:  # it may name the file that is being written
                raise RegZooError(str(error).replace(str(temporary), str(target))) from error
            except (OSError, RuntimeError) as error:
                # PyTorch raises a plain RuntimeError if the disk is full.
                full = shutil.disk_usage(folder).free < 1 << 20
                if not (error.errno == errno.ENOSPC if isinstance(error, OSError) else full):
                    raise
                fix = "free some space, or name another folder"
                raise bad_file(target, "cannot be written because the disk is full", fix) from error
            temporary.replace(target)
    finally:
        remove_empty(new)  # they are empty only after an error


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a text file atomically; a file name in it that is not UTF-8 gets escapes."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write a JSON file atomically, indented by 4 spaces."""
    write_text(path, json.dumps(value, indent=4) + "\n")
