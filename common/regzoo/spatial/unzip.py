"""Open files by content: a gzip file is decompressed, whatever its name."""

from __future__ import annotations

import gzip
import zlib
from io import BufferedReader
from pathlib import Path
from typing import Any

MAGIC = b"\x1f\x8b"
#: Deflate never compresses more than this many bytes into one.
MOST_DEFLATED = 1032
_BLOCK = 1 << 17


class Unzipped(gzip.GzipFile):
    """A gzip file opened for reading; unlike Python's class, this one ignores bytes after the compressed data.

    Reads raise EOFError if the file ends too early and `zlib.error` if it is damaged.
    """

    def read(self, size: int) -> bytes:  # type: ignore[override]
        """The next `size` bytes; fewer only at the end."""
        buffer = bytearray(size)
        return bytes(buffer[: self.readinto(buffer)])

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer and return the number of bytes; fewer only at the end."""
        view, filled = memoryview(buffer), 0
        while filled < len(view) and (chunk := self._next(min(len(view) - filled, _BLOCK))):
            view[filled : filled + len(chunk)] = chunk
            filled += len(chunk)
        return filled

    def finish(self) -> bool:
        """Read to the end, where gzip keeps a checksum; False if more than 1 MiB is left."""
        return len(self.read((1 << 20) + 1)) <= 1 << 20

    def _next(self, size: int) -> bytes:
        try:
            return self.read1(size)
        except gzip.BadGzipFile as error:
            if "Not a gzipped file" in str(error):
                return b""
            raise zlib.error(str(error)) from error


def is_zipped(path: Path) -> bool:
    """Whether a file is compressed with gzip."""
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def open_unzipped(path: Path) -> BufferedReader | Unzipped:
    """Open a file for reading; a gzip file is decompressed."""
    return Unzipped(path) if is_zipped(path) else path.open("rb")
