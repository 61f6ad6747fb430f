"""What a stranger's model may do while transformers loads it: fail in one line, and run nothing.

Whether code of a model's own may run, `--trust-remote-code` says (backends); transformers keeps to it, but for kernels.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pickle import UnpicklingError
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError

from prmbench.core.records import UserError
from prmbench.core.redaction import first_line

UNLOADABLE = (
    *(ArithmeticError, AssertionError, AttributeError, EOFError, ImportError, LookupError, OSError, RuntimeError),
    *(SafetensorError, StrictDataclassError, TypeError, ValueError, struct.error),
)
"""What loading raises on files that are no model, or not this kind of one."""
_HUB_KERNEL = re.compile(r'_implementation\w*": (?:"|\{[^{}]*: ")[^"{}]*/')
"""In a configuration: an attention, or the like, by the name of a repository, whose code transformers would run."""


@contextmanager
def errors_in_one_line(name: str, what: str = "cannot be loaded") -> Iterator[None]:
    """Inside, what loading a model raises becomes a UserError."""
    try:
        yield
    except UnpicklingError as error:  # without torch's own text, which tells how to load the file unsafely
        raise UserError(
            f"model {name}: {what} (its weights are a pickle that holds more than tensors); save them as safetensors"
        ) from error
    except Exception as error:
        if type(error) is not Exception and not isinstance(error, UNLOADABLE):  # tokenizers raises bare ones
            raise
        raise UserError(f"model {name}: {what} ({first_line(error)})") from error


def refuse_kernels(name: str, options: Mapping[str, Any]) -> None:
    """Raise UserError where a model's configuration names code on the hub, unless `--trust-remote-code` is given.

    Args:
        name: What `from_pretrained` takes.
        options: The options that it will be given.
    """
    import transformers

    if options.get("trust_remote_code") or "gguf_file" in options:  # whose configuration transformers writes
        return
    values, _ = transformers.PreTrainedConfig.get_config_dict(name, **options)
    if _HUB_KERNEL.search(json.dumps(values, default=str)):
        raise UserError(
            f"model {name}: its config.json names a kernel on the hub, which is code (attn_implementation or alike); "
            "take that out"
        )
