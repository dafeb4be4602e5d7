"""Opening files by their content: what gzip wrote is unzipped, whatever its name."""

from __future__ import annotations

import zlib
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO

MAGIC = b"\x1f\x8b"
#: A deflated byte never stands for more.
MOST_DEFLATED = 1032
_BLOCK = 1 << 20


class Unzipped:
    """The content of a gzip file from its start; unlike Python's reader it does not mind what follows its end.

    Errors: EOFError if the file ends too early, zlib.error if it is damaged.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.engine, self.rest, self.position = file, zlib.decompressobj(31), b"", 0

    def __enter__(self) -> Unzipped:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def readinto(self, buffer: bytearray | memoryview) -> int:
        """Fill a buffer; fewer bytes only at the end."""
        view, filled = memoryview(buffer), 0
        while filled < len(view) and (chunk := self._next(len(view) - filled)):
            view[filled : filled + len(chunk)] = chunk
            filled += len(chunk)
        self.position += filled
        return filled

    def read(self, count: int) -> bytes:
        """The next bytes; fewer only at the end."""
        buffer = bytearray(count)
        return bytes(buffer[: self.readinto(buffer)])

    def seek(self, position: int) -> int:
        """Go forward."""
        while self.position < position and self.read(min(position - self.position, _BLOCK)):
            pass
        return self.position

    def finish(self) -> None:
        """Read to the end, where gzip keeps a check sum of what came before."""
        while self.read(_BLOCK):
            pass

    def _next(self, most: int) -> bytes:
        while True:
            if self.engine.eof:
                self.rest = self.engine.unused_data.lstrip(b"\0") or self.file.read(_BLOCK)
                if not self.rest.startswith(MAGIC):
                    return b""
                self.engine = zlib.decompressobj(31)
            self.rest = self.rest or self.file.read(_BLOCK)
            if not self.rest:
                raise EOFError
            chunk = self.engine.decompress(self.rest, most)
            self.rest = self.engine.unconsumed_tail
            if chunk:
                return chunk


def is_zipped(path: Path) -> bool:
    """Whether gzip wrote a file."""
    with path.open("rb") as file:
        return file.read(2) == MAGIC


def open_plain(path: Path) -> BufferedReader | Unzipped:
    """A file opened for reading and, if gzip wrote it, unzipped."""
    return Unzipped(path.open("rb")) if is_zipped(path) else path.open("rb")
