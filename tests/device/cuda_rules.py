"""What the tracked device knows of CUDA: which operators wait or launch nothing, how autocast casts, and the log."""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils._pytree import tree_flatten, tree_map

#: Operators whose CUDA kernels wait: the size of the result, or an error, depends on values.
WAITING = {
    f"aten::{name}"
    for name in (
        "nonzero", "masked_select", "unique_dim", "_unique", "_unique2", "unique_consecutive", "unique_dim_consecutive",
        "bincount", "histc", "equal", "is_nonzero", "repeat_interleave", "linalg_solve_ex", "linalg_inv_ex",
        "_linalg_check_errors", "linalg_lstsq", "linalg_matrix_exp",
    )
}  # fmt: skip
#: Operators that only allocate or rename, and launch nothing.
FREE = {"aten::detach", "aten::alias", "aten::empty", "aten::empty_like", "aten::empty_strided", "aten::new_empty"}
#: What autocast runs in its own type, what in float32, and what in the widest type of its arguments, as far as the
#: package uses it: aten/src/ATen/autocast_mode.h.
LOWER = {
    torch.conv3d, torch.conv2d, torch.conv_transpose3d, torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__,
    torch.Tensor.__rmatmul__, torch.mm, torch.bmm, torch.addmm, torch.baddbmm, torch.nn.functional.linear,
    torch._C._nn.linear, torch.Tensor.mm, torch.Tensor.bmm, torch.einsum, torch.functional.einsum,
}  # fmt: skip
FLOAT32 = {
    torch.sum, torch.Tensor.sum, torch.exp, torch.Tensor.exp, torch.log, torch.Tensor.log, torch.log1p,
    torch.Tensor.log1p, torch.pow, torch.Tensor.pow, torch.norm, torch.Tensor.norm, torch.cumsum, torch.Tensor.cumsum,
    torch.prod, torch.Tensor.prod, torch.softmax, torch.Tensor.softmax, torch.reciprocal, torch.rsqrt,
    torch.nn.functional.mse_loss, torch.nn.functional.binary_cross_entropy_with_logits,
}  # fmt: skip
WIDEST = {torch.grid_sampler, torch.linalg.cross, torch.addcmul, torch.Tensor.addcmul, torch.cat, torch.stack}
NARROW = {torch.float16, torch.bfloat16}
#: Files whose lines are named.
PLACES = ("/regzoo/", "/monai/", "/ignite/", "/torch/amp/", "/torch/optim/", "/torch/utils/data/", "/tests/")
#: The files of the tracked device itself, whose lines are not.
OWN = ("/cuda_rules.py", "/tracked_device.py")


@dataclass
class Log:
    """What happened on the device.

    Attributes:
        waits: (kind, place) → how often the host waited for the device.
        kernels: name of the operation → how often it was launched.
        uploads: the number of copies from the host that do not wait, and their bytes.
    """

    waits: Counter[tuple[str, str]] = field(default_factory=Counter)
    kernels: Counter[str] = field(default_factory=Counter)
    uploads: list[int] = field(default_factory=list)

    def clear(self) -> None:
        """Forget everything so far."""
        self.waits.clear()
        self.kernels.clear()
        self.uploads.clear()

    def wait(self, kind: str) -> None:
        """Note a wait, with the innermost line of the package and that of the library that it called."""
        frame, found = sys._getframe(1), dict[str, str]()
        while frame := frame.f_back:  # type: ignore[assignment]
            path = frame.f_code.co_filename
            part = next((part for part in PLACES if part in path and not path.endswith(OWN)), None)
            if part and part not in found:
                found[part] = f"{path[path.rindex(part) + 1 :]}:{frame.f_lineno} {frame.f_code.co_name}"
        self.waits[kind, " < ".join(list(found.values())[:2])] += 1


def _is_there(x: Any) -> bool:
    return isinstance(x, torch.Tensor) and x.is_cuda


def autocast(func: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
    """The arguments as CUDA's autocast would cast them."""
    floats = [x for x in tree_flatten((args, kwargs))[0] if _is_there(x) and x.is_floating_point()]
    if func is torch.nn.functional.binary_cross_entropy:
        raise RuntimeError("binary_cross_entropy is unsafe to autocast")
    if func in LOWER:
        wanted, cast = torch.get_autocast_dtype("cuda"), {torch.float32, *NARROW}
    elif func in FLOAT32 or (func in WIDEST and len({x.dtype for x in floats}) > 1):
        wanted, cast = torch.float32, NARROW
    else:
        return args, kwargs
    return tree_map(lambda x: x.to(wanted) if _is_there(x) and x.dtype in cast else x, (args, kwargs))
