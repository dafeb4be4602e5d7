"""What a client may read: messages without the server's folders."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from regzoo.datasets.records import case_name
from regzoo.monai_label.files import is_upload
from regzoo.monai_label.studies import STUDIES_VARIABLE

UPLOADED = "the file sent with the request"


def without_folders(message: str, image_path: Any = None) -> str:
    """A message with the paths of the server taken out.

    Files of the studies keep their path within the studies, and all others only their name. An uploaded image is called
    "the file sent with the request", because its temporary name means nothing to the client.

    Args:
        message: the text.
        image_path: where MONAI Label put the fixed image.
    """
    if isinstance(image_path, str) and is_upload(Path(os.path.realpath(image_path))):
        for name in (os.path.realpath(image_path), image_path, Path(image_path).name, case_name(image_path)):
            message = message.replace(name, UPLOADED)
    studies = os.environ.get(STUDIES_VARIABLE)
    for folder in (os.path.realpath(studies), studies) if studies else ():
        message = message.replace(f"{folder}{os.sep}", "")
    return re.sub(r"(?<![\w.~-])/(?:[^\s/:;,'\"]+/)+(?=[^\s/])", "", message)
