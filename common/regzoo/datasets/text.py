"""Reading JSON and tables in any encoding that spreadsheets write; the names of the splits."""

from __future__ import annotations

import functools
import json
import logging
from pathlib import Path
from typing import Any

from regzoo.errors import bad_file
from regzoo.files import decoded

logger = logging.getLogger(__name__)

#: The names of each split, in any case: in the column ``split``, as a list of a JSON file and as a folder. The first is
#: MONAI's name for a list.
SPLIT_WORDS = {
    "train": ("training", "train", "tr"),
    "val": ("validation", "val", "valid", "dev"),
    "test": ("testing", "test"),
}
SPLIT_MEND = "use " + "; ".join(", ".join(words) for words in SPLIT_WORDS.values()) + ", in any case"


def split_of(word: Any) -> str | None:
    """``train``, ``val`` or ``test``, from one of `SPLIT_WORDS`; None for any other word."""
    name = str(word).strip().lower()
    return next((split for split, words in SPLIT_WORDS.items() if name in words), None)


def read_text(path: Path) -> str:
    """A text file; raises `RegZooError` if it cannot be read or decoded."""
    try:
        return decoded(path, path.read_bytes())
    except OSError as error:
        raise bad_file(path, "cannot be read", "check the path and its permissions") from error


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        RegZooError: it cannot be read, is not valid JSON, or an object has two values of one name.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = [name for name, _ in pairs]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise bad_file(path, f"has {twice!r} twice in one object, and only the last would count", "keep one")
        return dict(pairs)

    try:
        return json.loads(read_text(path), object_pairs_hook=unique)
    except (json.JSONDecodeError, RecursionError) as error:
        fix = "correct it there; JSON has no comments, and no comma after the last value"
        raise bad_file(path, f"is not valid JSON ({error})", fix) from error


@functools.cache
def warn_once(message: str) -> None:
    """Log a warning once: a training reads its data set several times."""
    logger.warning("%s", message)
