"""What the tracked device knows of CUDA: which operators wait or launch nothing, and how autocast casts; the log."""

from __future__ import annotations

import sys
import weakref
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch.utils._pytree import tree_flatten, tree_map
from torch.utils.flop_counter import flop_registry

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
FREE = {
    f"aten::{name}"
    for name in ("detach", "alias", "empty", "empty_like", "empty_strided", "new_empty", "_unsafe_view")
}  # fmt: skip
#: What autocast runs in its own type, what in float32, and what in the widest type of its arguments, as far as the
#: package uses it: aten/src/ATen/autocast_mode.h.
LOWER = {
    torch.conv3d, torch.conv2d, torch.conv_transpose3d, torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__,
    torch.Tensor.__rmatmul__, torch.mm, torch.bmm, torch.addmm, torch.baddbmm, torch.prelu, torch.nn.functional.linear,
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


class Launch(NamedTuple):
    """One operation that the device runs.

    Attributes:
        name: of the operation.
        moved: bytes of the tensors that it reads and writes.
        flops: floating-point operations of a convolution or a matrix product, otherwise 0; a multiplication and an
            addition are two.
        narrow: whether these are in bfloat16 or float16.
    """

    name: str
    moved: int
    flops: int
    narrow: bool


@dataclass
class Log:
    """What happened on the device.

    Attributes:
        waits: (kind, place) → how often the host waited for the device.
        launches: the operations, in order.
        uploads: the bytes of each copy from the host that does not wait.
        in_use: bytes of the tensors that are on the device now.
        peak: the largest `in_use` since the last `clear`.
    """

    waits: Counter[tuple[str, str]] = field(default_factory=Counter)
    launches: list[Launch] = field(default_factory=list)
    uploads: list[int] = field(default_factory=list)
    in_use: int = 0
    peak: int = 0
    _users: Counter[int] = field(default_factory=Counter)

    def clear(self) -> None:
        """Forget everything so far, except what is on the device."""
        self.waits.clear()
        self.launches.clear()
        self.uploads.clear()
        self.peak = self.in_use

    @property
    def kernels(self) -> Counter[str]:
        """The name of an operation → how often it was launched."""
        return Counter(launch.name for launch in self.launches)

    def launch(self, func: Any, args: Any, kwargs: Any, made: Any) -> None:
        """Note an operation with its arguments and results."""
        tensors = [x for x in tree_flatten((args, kwargs, made))[0] if isinstance(x, torch.Tensor)]
        # What an expanded tensor repeats is read once.
        moved = sum(min(x.numel() * x.element_size(), x.untyped_storage().nbytes()) for x in tensors)
        formula = flop_registry.get(func.overloadpacket)
        flops = formula(*args, **kwargs, out_val=made) if formula else 0
        narrow = any(x.dtype in NARROW for x in tensors)
        self.launches.append(Launch(func._schema.name, moved, flops, narrow))

    def hold(self, values: torch.Tensor) -> None:
        """Count the memory of a tensor until no tensor shares it."""
        storage = values.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if not self._users[key]:
            self.in_use += size
            self.peak = max(self.peak, self.in_use)
        self._users[key] += 1
        weakref.finalize(values, self._release, key, size).atexit = False

    def _release(self, key: int, size: int) -> None:
        self._users[key] -= 1
        if not self._users[key]:
            del self._users[key]
            self.in_use -= size

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
