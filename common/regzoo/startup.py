"""How a process starts: what it imports, and what it does with freed memory.

The `regzoo` command imports MONAI without the optional packages that a registration does not use.
`importlib.util.LazyLoader` cannot do this: MONAI asks for the file of each optional package as soon as it has imported
it, and for classes of most of them, which loads a lazy module at once. MONAI runs without these packages, so they are
hidden while it is imported, in the way that Python documents: None in `sys.modules`.
"""

from __future__ import annotations

import ctypes
import gc
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from regzoo.errors import causes, user_error

#: What MONAI uses for trainings, downloads, notebooks and a few transforms. They take three times as long as PyTorch.
#: MONAI raises an `ImportError` where it needs one of them. ITK is not here: its reader would be passed over silently.
UNUSED = (
    *("huggingface_hub", "ignite", "jsonschema", "matplotlib.pyplot", "mlflow", "onnx", "pandas", "requests"),
    *("scipy.signal", "sklearn", "tensorboard"),
)
#: With this environment variable set, nothing is hidden.
IMPORT_ALL = "REGZOO_IMPORT_ALL"
#: From glibc's malloc.h: the free memory that it gives back, and the number of blocks that are mappings of their own.
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
_hidden: list[str] = []


@contextmanager
def quick_imports() -> Iterator[None]:
    """Within the block, MONAI is imported without `UNUSED`, and the garbage collector does not search for cycles."""
    everything = os.environ.get(IMPORT_ALL) or "monai" in sys.modules
    hidden = [] if everything else [name for name in UNUSED if name not in sys.modules]
    _hidden.extend(hidden)
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]
    gc.disable()  # imports make a million objects that stay; searching them takes a quarter of the time
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
        for name in hidden:
            if sys.modules.get(name, "") is None:
                del sys.modules[name]


def keep_freed_memory() -> None:
    """Let the C library keep the memory of freed tensors for the next ones, until the process ends.

    By default glibc gives large blocks back to the kernel, which clears every page again for the next tensor. That is
    about a sixth of the CPU time of a training, or of a refinement of large images, which needs about a tenth more
    memory instead. Other C libraries are left as they are.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    mallopt(M_TRIM_THRESHOLD, -1)
    mallopt(M_MMAP_MAX, 0)


def run_again(error: Exception) -> int | None:
    """Run the same command again, with nothing hidden, if it may have failed because of a hidden package.

    A user's own bundle may need any part of MONAI. What is imported stays imported, so this takes a new process, whose
    exit status is returned; None if the command is not run again.
    """
    if not _hidden or user_error(error) or not any(isinstance(cause, ImportError) for cause in causes(error)):
        return None
    command = [sys.executable, "-m", "regzoo", *sys.argv[1:]]
    return subprocess.call(command, env={**os.environ, IMPORT_ALL: "1"})
