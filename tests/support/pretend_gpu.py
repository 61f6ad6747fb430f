"""A pretend accelerator: a device whose tensors hold CPU numbers, so that code for a GPU runs where there is none.

Its tensors report the device `pretend:0`. As on a GPU an operation on tensors of two devices raises, and whatever makes
the host wait for the device is counted in `SYNCS`. Numbers are the CPU's, so results can be compared exactly; it shows
nothing of speed, of half precision's kernels or of memory that runs out.

Turning it on changes torch for the whole process and cannot be undone, so tests run in a process of their own:
`python -m pytest -p pretend_gpu -m gpu tests/test_gpu.py` is what tests/test_pretend_gpu.py does.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

NAME = "pretend"
SYNCS: Counter[str] = Counter()
"""How often the host waited for the device, by the operation that made it wait."""
LARGEST: Counter[int] = Counter()
"""Bytes of the largest tensor that an operation has made on the device, by the size of its last dimension."""
COPIES = {"_to_copy", "copy_"}
"""Operations that take tensors of two devices."""
DATA_DEPENDENT = {"nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive", "repeat_interleave"}
"""Operations whose result has a size that the host must wait for."""
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_"}
AUTOCAST = ("linear", "matmul", "mm", "bmm", "addmm", "scaled_dot_product_attention")
"""Operations whose float32 arguments autocast rounds."""
_SET_DATA: Any = vars(torch._C.TensorBase)["data"].__set__
_MODES: list[Any] = []


class PretendTensor(torch.Tensor):
    """A tensor that says it is on the accelerator; `on_cpu` holds its numbers."""

    on_cpu: torch.Tensor

    @staticmethod
    def __new__(cls, on_cpu: torch.Tensor) -> PretendTensor:
        wrapper = torch.Tensor._make_wrapper_subclass(
            cls,
            on_cpu.shape,
            strides=on_cpu.stride(),
            storage_offset=on_cpu.storage_offset(),
            dtype=on_cpu.dtype,
            device=torch.device(NAME, 0),
        )
        wrapper.on_cpu = on_cpu
        return wrapper

    def __repr__(self, **_: Any) -> str:
        return f"PretendTensor({self.on_cpu})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _dispatch(func, args, kwargs or {})


def is_on() -> bool:
    """Returns whether this process has the device."""
    return bool(_MODES)


def turn_on() -> None:
    """Gives this process the device."""
    if is_on():
        return
    from torch.utils import backend_registration

    backend_registration._setup_privateuseone_for_python_backend(NAME, _device_module())
    library, products = torch.library.Library("_", "IMPL"), torch.library.Library("aten", "IMPL")
    library.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
    for name in AUTOCAST:
        products.impl(name, _rounded_first(getattr(torch.ops.aten, name)), "AutocastPrivateUse1")
    _MODES.extend((library, products))  # torch forgets them when they are deleted
    for mode in (_Factories(), _BelowTheDispatcher()):
        mode.__enter__()
        _MODES.append(mode)
    _accept_device()


def _rounded_first(operation: Callable[..., Any]) -> Callable[..., Any]:
    """Returns an operation as autocast runs it."""

    def run(*args: Any, **kwargs: Any) -> Any:
        dtype = torch.get_autocast_dtype(NAME)

        def rounded(x: Any) -> Any:
            return x.to(dtype) if isinstance(x, torch.Tensor) and x.dtype == torch.float32 else x

        with torch.autocast(NAME, enabled=False):
            return operation(*tree_map(rounded, args), **tree_map(rounded, kwargs))

    return run


def pytest_configure() -> None:
    """Turns the device on where this file is a plugin of pytest."""
    turn_on()


class _Stream:
    """The only stream, in which everything is done at once."""

    def synchronize(self) -> None: ...

    def wait_stream(self, _: Any) -> None: ...


def _device_module() -> Any:
    """Returns what torch wants of a device: `torch.pretend`."""
    from torch.utils import backend_registration

    stream = _Stream()

    class Module(backend_registration._DummyBackendModule):
        def _lazy_init(self) -> None: ...

        def empty_cache(self) -> None: ...

        def synchronize(self, *_: Any) -> None: ...

        def current_stream(self) -> _Stream:
            return stream

        def stream(self, _: Any) -> AbstractContextManager[None]:
            return nullcontext()

        def get_amp_supported_dtype(self) -> list[torch.dtype]:
            return [torch.bfloat16, torch.float16]

        def get_rng_state(self, *_: Any) -> torch.Tensor:
            return torch.zeros(1, dtype=torch.uint8)

        def set_rng_state(self, *_: Any) -> None: ...

    return Module()


def _accept_device() -> None:
    """Lets --device name the accelerator."""
    from prmbench.engines.hf import Placement

    resolve = Placement.resolve

    def resolve_pretended(self: Placement) -> Placement:
        if self.device.startswith(NAME):
            return Placement(f"{NAME}:0", "float32" if self.dtype == "auto" else self.dtype)
        return resolve(self)

    Placement.resolve = resolve_pretended  # type: ignore[method-assign]


def _is_pretended(device: Any) -> bool:
    return device is not None and torch.device(device).type == NAME


def _unwrapped(x: Any) -> Any:
    return x.on_cpu if isinstance(x, PretendTensor) else x


def _wrapped(output: Any, inputs: Sequence[Any]) -> Any:
    """Wraps the tensors of an output; those that are inputs, as after an operation in place, keep their wrapper."""
    wrappers = {id(x.on_cpu): x for x in inputs if isinstance(x, PretendTensor)}

    def wrap(x: Any) -> Any:
        if not isinstance(x, torch.Tensor):
            return x
        if id(x) in wrappers:
            return wrappers[id(x)]
        if x.dim():
            LARGEST[x.shape[-1]] = max(LARGEST[x.shape[-1]], x.numel() * x.element_size())
        return PretendTensor(x)

    return tree_map(wrap, output)


def _dispatch(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Runs an operation on the CPU, after the checks of a device of its own."""
    name = func._schema.name.partition("::")[2]
    if name in COPIES:
        return _copy(func, name, args, kwargs)
    tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
    on_device = [x for x in tensors if isinstance(x, PretendTensor)]
    device = kwargs.get("device")
    to_device = bool(on_device) if device is None else _is_pretended(device)
    if on_device:
        _count(name, args)
        _check_one_device(name, args, [x for x in tensors if not isinstance(x, PretendTensor)])
    if to_device:
        kwargs = {k: v for k, v in kwargs.items() if k not in ("device", "pin_memory")}
        if device is not None and not on_device:
            kwargs["device"] = torch.device("cpu")
    output = func(*tree_map(_unwrapped, args), **tree_map(_unwrapped, kwargs))
    return _wrapped(output, tensors) if to_device else output


def _copy(func: Any, name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Copies within a device, or from one to the other."""
    if name == "copy_":
        target, source = args[0], args[1]
        if isinstance(source, PretendTensor) and not isinstance(target, PretendTensor):
            SYNCS["copy to the host"] += 1
        _unwrapped(target).copy_(_unwrapped(source))
        return target
    source, device = args[0], kwargs.get("device")
    to_device = isinstance(source, PretendTensor) if device is None else _is_pretended(device)
    if isinstance(source, PretendTensor) and not to_device:
        SYNCS["copy to the host"] += 1
    options = {k: v for k, v in kwargs.items() if k not in ("device", "pin_memory")}
    other_device = {} if device is None or to_device else {"device": device}
    output = func(_unwrapped(source), **options, **other_device)
    return PretendTensor(output) if to_device else output


def _count(name: str, args: Sequence[Any]) -> None:
    indices = [i for i in args[1] if i is not None] if name in INDEXING else []
    if name == "_local_scalar_dense":
        SYNCS["item"] += 1
    elif name in DATA_DEPENDENT or any(i.dtype in (torch.bool, torch.uint8) for i in indices):
        SYNCS[name] += 1


def _check_one_device(name: str, args: Sequence[Any], on_cpu: Sequence[torch.Tensor]) -> None:
    """Raises RuntimeError as CUDA does. CUDA takes numbers from the host, and indices into a tensor of its own."""
    allowed = [id(i) for i in args[1]] if name in INDEXING and isinstance(args[0], PretendTensor) else []
    strangers = [x for x in on_cpu if x.dim() > 0 and id(x) not in allowed]
    if strangers:
        shapes = ", ".join(str(tuple(x.shape)) for x in strangers)
        raise RuntimeError(f"{name}: tensors on two devices, {NAME}:0 and cpu (shapes {shapes})")


def _as_index(numbers: list[int], indexed: torch.Tensor) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.long).to(indexed.device)


class _Factories(TorchDispatchMode):
    """Sees the operations that take no tensor of the device but may make one."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func._can_decompose():  # in inference mode also operations arrive that consist of others
            with self:
                return func.decompose(*args, **(kwargs or {}))
        return _dispatch(func, args, kwargs or {})


class _BelowTheDispatcher(TorchFunctionMode):
    """Does in Python what torch's bindings do with the memory of a tensor, where this device has none."""

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (torch.tensor, torch.as_tensor) and _is_pretended(kwargs.get("device")):
            return func(*args, **{**kwargs, "device": "cpu"}).to(kwargs["device"])
        if func == _SET_DATA and all(isinstance(x, PretendTensor) for x in args):
            args[0].on_cpu = args[1].on_cpu
        if func is torch.Tensor.tolist and isinstance(args[0], PretendTensor):
            SYNCS["copy to the host"] += 1
            return args[0].on_cpu.detach().tolist()
        if func in (torch.Tensor.__getitem__, torch.Tensor.__setitem__) and isinstance(args[0], PretendTensor):
            index = args[1] if isinstance(args[1], tuple) else (args[1],)
            index = tuple(_as_index(i, args[0]) if isinstance(i, list) else i for i in index)
            return func(args[0], index, *args[2:], **kwargs)
        return func(*args, **kwargs)
