"""Safe loading of untrusted models by transformers: errors in one line, and no kernels from the hub.

`--trust-remote-code` decides whether a model's own code may run (backends); transformers respects it except for
kernels.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open

from prmbench.core.records import UserError
from prmbench.core.redaction import first_line

UNLOADABLE = (
    *(ArithmeticError, AssertionError, AttributeError, EOFError, ImportError, LookupError, OSError, RuntimeError),
    *(SafetensorError, StrictDataclassError, TypeError, ValueError, struct.error),
)
"""Errors that loading raises on files that are no model, or another kind of model."""
_HUB_KERNEL = re.compile(r'_implementation\w*": (?:"|\{[^{}]*: ")[^"{}]*/')
"""Matches an attention or similar implementation given as a hub repository, whose code transformers would run."""


def head_in_memory(layer: Any) -> AbstractContextManager[Any]:
    """Return a context in which the weights of an output head are in memory.

    Where `device_map` has put the head aside, accelerate loads its weights only while the head's own forward runs,
    which is not called where token_logprobs.py computes its products.
    """
    if layer.weight.device.type != "meta":
        return nullcontext()
    from accelerate.utils import align_module_device  # type: ignore[import-untyped]

    return align_module_device(layer)


@contextmanager
def errors_in_one_line(name: str, problem: str = "cannot be loaded") -> Iterator[None]:
    """Turn the errors of loading a model into a UserError of one line."""
    try:
        yield
    except UnpicklingError as error:  # torch's own message explains how to load the file unsafely
        raise UserError(
            f"model {name}: {problem} (its weights are a pickle that holds more than tensors); save them as safetensors"
        ) from error
    except Exception as error:
        if type(error) is not Exception and not isinstance(error, UNLOADABLE):  # tokenizers raises plain Exception
            raise
        raise UserError(f"model {name}: {problem} ({first_line(error)})") from error


def refuse_kernels(name: str, options: Mapping[str, Any]) -> None:
    """Raise UserError when a model's config names a kernel on the hub, unless `--trust-remote-code` is given.

    Args:
        name: Name for `from_pretrained`.
        options: Options for `from_pretrained`.
    """
    import transformers

    if options.get("trust_remote_code") or "gguf_file" in options:  # transformers itself writes a GGUF file's config
        return
    values, _ = transformers.PreTrainedConfig.get_config_dict(name, **options)
    if _HUB_KERNEL.search(json.dumps(values, default=str)):
        raise UserError(
            f"model {name}: its config.json names a kernel on the hub, which is code (attn_implementation or alike); "
            "take that out"
        )


def tensor_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Return the shape of each tensor in a safetensors file or a weights-only pickle, by name, without reading them.

    Raises:
        UserError: The file is damaged, or holds anything else.
    """
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, "np") as file:
                return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        import torch

        tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        return {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    except (*UNLOADABLE, UnpicklingError) as error:  # not the error's own text: torch's tells to load it unsafely
        raise UserError(f"{path}: cannot be read as weights ({type(error).__name__}); copy the file again") from error
