"""A GPU that is not there: tensors that report ``cuda:0`` and compute on the CPU, to find device mistakes.

Inside `tracked_device()`, everything moved to or made on ``cuda`` is a `DeviceTensor`. Values, control flow and files
are real, because the CPU computes them. Each operation is checked before it runs:

* An operation on a tensor of the device and a tensor of the CPU raises ``RuntimeError``, as on a GPU. So does
  ``.numpy()``, with ``TypeError``. A number (a tensor without axes) may come from the CPU.
* Everything that makes the host wait for the device is noted with file and line: values that are read, copies to the
  host, blocking copies from the host, and operations whose result has a size that depends on values.
* Operations that launch work are noted with the bytes that they read and write and their floating-point operations;
  their number is about that of the kernels. The memory in use is that of all tensors on the device.
* Autocast casts the operators that `cuda_rules` lists as CUDA's does.

With `tracked_device(values=False)` nothing is computed: tensors of the device have a shape and no values, so a training
step of any size takes a moment. Every value that is read is then 1.

In C++ the tensors are on ``meta``, which the autograd engine treats like the CPU, so no CUDA build is needed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
import torch.cuda.amp.common
import torch.optim.optimizer as optimizer
from cuda_rules import FREE, NARROW, WAITING, Log, autocast
from monai.data import MetaTensor
from torch.overrides import TorchFunctionMode
from torch.utils._mode_utils import no_dispatch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

aten = torch.ops.aten
CUDA = torch.device("cuda", 0)

LOG = Log()
#: Where the values of tensors of the device are: on the CPU, or on ``meta``, nowhere.
HOME = [torch.device("cpu")]
_VALUES = "_values_on_the_cpu"
_DICT = next(c.__dict__["__dict__"] for c in torch.Tensor.__mro__ if "__dict__" in c.__dict__)


class DeviceTensor(torch.Tensor):
    """A tensor that reports ``cuda:0``; `values` are its values, on the CPU."""

    @property
    def values(self) -> torch.Tensor:  # type: ignore[override]
        return _DICT.__get__(self)[_VALUES]

    # MONAI copies the attributes of one tensor to another, and the values must not go along.
    @property
    def __dict__(self) -> dict[str, Any]:  # type: ignore[override]
        return {key: value for key, value in _DICT.__get__(self).items() if key != _VALUES}

    @__dict__.setter
    def __dict__(self, new: dict[str, Any]) -> None:
        own = _DICT.__get__(self)
        values = own.get(_VALUES, new.get(_VALUES))
        own.clear()
        own.update({**new, _VALUES: values})

    @staticmethod
    def __new__(cls, values: torch.Tensor) -> DeviceTensor:
        return on_device(values)

    device = property(lambda self: CUDA)  # type: ignore[assignment]
    is_cuda = property(lambda self: True)  # type: ignore[assignment]
    is_cpu = is_meta = property(lambda self: False)  # type: ignore[assignment]

    def get_device(self) -> int:
        return 0

    def numpy(self, *, force: bool = False) -> Any:
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() to copy the tensor first.")

    def __array__(self, dtype: Any = None) -> Any:
        return self.numpy()

    def tolist(self) -> Any:
        LOG.wait("value read")
        return read(self).tolist()

    def __repr__(self, **kwargs: Any) -> str:
        return f"DeviceTensor({self.values!r})"

    def as_subclass(self, cls: type) -> torch.Tensor:  # type: ignore[override]
        with torch._C.DisableTorchFunctionSubclass():
            same = aten.alias(self)
        if issubclass(cls, MetaTensor):
            same.__class__ = MetaDeviceTensor
        return same

    def __reduce_ex__(self, protocol: Any) -> Any:
        LOG.wait("saved")
        return read(self).__reduce_ex__(protocol)

    def __deepcopy__(self, memo: Any) -> torch.Tensor:
        made = self.detach().clone().requires_grad_(self.requires_grad)
        if isinstance(self, torch.nn.Parameter):
            made = torch.nn.Parameter(made, self.requires_grad)
        memo[id(self)] = made
        return made

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return [_VALUES], None

    @staticmethod
    def __tensor_unflatten__(inner: dict[str, torch.Tensor], meta: Any, size: Any, stride: Any) -> DeviceTensor:
        return on_device(inner[_VALUES])

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.Tensor.new_tensor:  # C++ would make a tensor on meta
            LOG.wait("copied from the host")
            return on_device(torch.tensor(args[1], dtype=kwargs.get("dtype", args[0].dtype)))
        with torch._C.DisableTorchFunctionSubclass():
            if torch.is_autocast_enabled("cuda"):
                args, kwargs = autocast(func, args, kwargs)
            made = func(*args, **kwargs)
        if issubclass(cls, MetaTensor) and func not in torch.overrides.get_default_nowrap_functions():
            made = _with_meta(made)
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class MetaDeviceTensor(MetaTensor, DeviceTensor):
    """A `MetaTensor` on the device."""

    __dict__ = DeviceTensor.__dict__["__dict__"]
    as_subclass = DeviceTensor.as_subclass  # type: ignore[assignment]


def _with_meta(made: Any) -> Any:
    if isinstance(made, torch.Tensor) and not isinstance(made, MetaTensor):
        return made.as_subclass(MetaTensor)
    if isinstance(made, tuple | list):
        parts = [_with_meta(part) for part in made]
        return type(made)(*parts) if hasattr(made, "_fields") else type(made)(parts)
    return made


def on_device(values: torch.Tensor) -> DeviceTensor:
    """A tensor of the device with these values of the CPU."""
    if isinstance(values, DeviceTensor):
        return values
    with torch.inference_mode(values.is_inference()):  # a view is what its base is
        made = torch.Tensor._make_wrapper_subclass(
            DeviceTensor,
            values.size(),
            strides=values.stride(),
            storage_offset=values.storage_offset(),
            dtype=values.dtype,
            layout=values.layout,
            device=torch.device("meta"),
        )
    _DICT.__get__(made)[_VALUES] = values
    LOG.hold(values)
    return made


def read(tensor: DeviceTensor) -> torch.Tensor:
    """The values of a tensor of the device, on the CPU: ones where nothing is computed."""
    values = tensor.values.detach()
    return torch.ones_like(values, device="cpu") if values.is_meta else values


def on_cpu(tensor: torch.Tensor) -> torch.Tensor:
    """The values of a tensor of either device, without a note of a wait."""
    return tensor.values if isinstance(tensor, DeviceTensor) else tensor


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Check and run one operation of the dispatcher."""
    flat = tree_flatten((args, kwargs))[0]
    ours = [x for x in flat if isinstance(x, DeviceTensor)]
    device = next((x for x in flat if isinstance(x, torch.device)), None)
    # In C++ a tensor of the device is on meta, as in `other.to(tensor)`.
    there = device is not None and device.type in ("cuda", "meta")
    if not ours and not there:
        return func(*args, **kwargs)
    if func is not aten.item.default and func is not aten._to_copy.default and func._can_decompose():
        with _Mode():
            made = func.decompose(*args, **kwargs)
        if made is not NotImplemented:
            return made
    home = HOME[0] if there or device is None else device
    cpu_args, cpu_kwargs = tree_map(lambda x: home if isinstance(x, torch.device) else on_cpu(x), (args, kwargs))
    if func is aten._local_scalar_dense.default:
        LOG.wait("value read")
        return func(read(*args))
    if func is aten._to_copy.default:
        if ours and device is not None and not there:
            cpu_args = (read(args[0]),)
        made = func(*cpu_args, **{**cpu_kwargs, "pin_memory": False})
        return _copied(args[0], made, bool(ours) if device is None else there, kwargs)
    if func is aten.copy_.default:
        cpu_args[0].copy_(cpu_args[1])
        to, source, *rest = args
        if not isinstance(to, DeviceTensor):
            LOG.wait("copied to the host")
        elif not isinstance(source, DeviceTensor) and source.dim() > 0:
            _upload(source, bool(kwargs.get("non_blocking") or (rest and rest[0])))
        LOG.launch(func, args, kwargs, ())
        return to
    _check(func, args, flat)
    cpu_kwargs.pop("pin_memory", None)
    made = _results(func, args, kwargs, _computed(func, cpu_args, cpu_kwargs))
    view = any(r.alias_info is not None and not r.alias_info.is_write for r in func._schema.returns)
    if not view and func._schema.name not in FREE:
        LOG.launch(func, args, kwargs, made)
    return made


def _computed(func: Any, args: Any, kwargs: Any) -> Any:
    """The result on the CPU. A convolution accumulates in float32, as on a GPU.

    PyTorch's own bfloat16 convolutions on the CPU read memory that nothing has written, in the gradient of the weights
    of a small volume.
    """
    low = next((x.dtype for x in tree_flatten(args)[0] if isinstance(x, torch.Tensor) and x.dtype in NARROW), None)
    if low is None or HOME[0].type == "meta" or "convolution" not in func._schema.name:
        return func(*args, **kwargs)
    made = func(*tree_map(lambda x: x.float() if isinstance(x, torch.Tensor) else x, args), **kwargs)
    return tree_map(lambda x: x.to(low) if isinstance(x, torch.Tensor) else x, made)


def _check(func: Any, args: Any, flat: list[Any]) -> None:
    """Refuse a mixture of devices; note a wait."""
    name = func._schema.name
    if name in WAITING and "out" not in func._schema.overload_name:
        LOG.wait(name)
    theirs = [x for x in flat if isinstance(x, torch.Tensor) and not isinstance(x, DeviceTensor)]
    if name in ("aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_"):
        if not isinstance(args[0], DeviceTensor):
            raise RuntimeError(f"{name}: indices must be on the CPU or on the device of the indexed tensor (cpu)")
        for index in (x for x in args[1] if x is not None):
            if index.dtype in (torch.bool, torch.uint8):
                LOG.wait("mask as an index")
            if not isinstance(index, DeviceTensor):
                LOG.wait("index from the host")
    elif any(isinstance(x, DeviceTensor) for x in flat):
        pointwise = torch.Tag.pointwise in func.tags or "_foreach" in name
        for other in theirs:
            if other.dim() > 0 or not pointwise:
                raise RuntimeError(
                    "Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu! "
                    f"({name}: a tensor of {tuple(other.shape)} on the CPU)"
                )
    if name == "aten::_fused_adam_":  # the CPU accepts other layouts
        for tensors in zip(*args[:4], strict=True):
            if len({tuple(step for n, step in zip(x.shape, x.stride(), strict=True) if n > 1) for x in tensors}) > 1:
                raise RuntimeError("params, grads, exp_avgs, and exp_avg_sqs must have same dtype, device, and layout")


def _results(func: Any, args: Any, kwargs: Any, made: Any) -> Any:
    """The results on the device; a result that was written in place is the argument itself."""
    returns, arguments = func._schema.returns, func._schema.arguments
    if not any(r.alias_info is not None and r.alias_info.is_write for r in returns):
        return tree_map(lambda x: on_device(x) if isinstance(x, torch.Tensor) else x, made)
    given = dict(zip((a.name for a in arguments), args, strict=False)) | kwargs
    results = []
    for ret, part in zip(returns, [made] if len(returns) == 1 else made, strict=True):
        if ret.alias_info is None:
            results.append(tree_map(lambda x: on_device(x) if isinstance(x, torch.Tensor) else x, part))
            continue
        target = next(a for a in arguments if a.alias_info and a.alias_info.before_set & ret.alias_info.before_set)
        written = given[target.name]
        if isinstance(written, DeviceTensor) and written.shape != written.values.shape:
            if torch.Tag.inplace_view not in func.tags:
                raise NotImplementedError(f"{func._schema.name} changes the shape in place")
            with no_dispatch():
                func(*args, **kwargs)
        results.append(written)
    return results[0] if len(results) == 1 else tuple(results)


def _copied(source: torch.Tensor, made: torch.Tensor, there: bool, kwargs: Any) -> torch.Tensor:
    """The result of `Tensor.to`."""
    here = not isinstance(source, DeviceTensor)
    if not there:
        if not here:
            LOG.wait("copied to the host")
        return made
    if here:
        _upload(source, bool(kwargs.get("non_blocking")))
    there_now = on_device(made)
    if here or made.dtype != source.dtype or kwargs.get("memory_format") is not None:
        LOG.launch(aten._to_copy.default, (source,), {}, there_now)
    return there_now


def _upload(source: torch.Tensor, non_blocking: bool) -> None:
    if non_blocking:
        LOG.uploads.append(source.numel() * source.element_size())
    else:
        LOG.wait("copied from the host")


class _Mode(TorchDispatchMode):
    """Runs what creates tensors on the device, such as `torch.zeros`."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class _Indexed(TorchFunctionMode):
    """``cuda`` means ``cuda:0``; PyTorch would ask the driver."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        def indexed(x: Any) -> Any:
            bare = x == "cuda" if isinstance(x, str) else isinstance(x, torch.device) and str(x) == "cuda"
            return CUDA if bare else x

        if func is torch.device:
            return func(*args, **(kwargs or {}))
        return func(*map(indexed, args), **{key: indexed(value) for key, value in (kwargs or {}).items()})


@contextmanager
def tracked_device(bf16: bool = True, values: bool = True) -> Iterator[Log]:
    """Make ``cuda`` a device that is tracked; the log says what happens on it.

    Args:
        bf16: whether the hardware has bfloat16.
        values: whether to compute.
    """
    LOG.clear()
    HOME[0] = torch.device("cpu" if values else "meta")
    foreach = [*optimizer._foreach_supported_types, DeviceTensor]
    lifts = torch._C._only_lift_cpu_tensors()
    with ExitStack() as stack:
        for module, name, value in (
            (torch.cuda, "_lazy_init", lambda: None),
            (torch.cuda, "is_available", lambda: True),
            (torch.cuda, "device_count", lambda: 1),
            (torch.cuda, "current_device", lambda: 0),
            (torch.cuda, "get_device_name", lambda device=None: "tracked device"),
            (torch.cuda, "synchronize", lambda *a: None),
            # PyTorch counts the emulation of bfloat16 on old GPUs unless it is told not to.
            (torch.cuda, "is_bf16_supported", lambda including_emulation=True: bf16 or including_emulation),
            (torch.cuda.amp.common, "amp_definitely_not_available", lambda: False),
            (optimizer, "_foreach_supported_types", foreach),
        ):
            stack.enter_context(patch.object(module, name, value))
        # PyTorch's own `torch.cuda.set_device` runs: it refuses a device without an index.
        stack.enter_context(patch.object(torch._C, "_cuda_setDevice", lambda index: None, create=True))
        torch._C._set_only_lift_cpu_tensors(True)
        stack.callback(torch._C._set_only_lift_cpu_tensors, lifts)
        stack.enter_context(_Indexed())
        stack.enter_context(_Mode())
        yield LOG
