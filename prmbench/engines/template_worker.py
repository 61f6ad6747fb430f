"""The process that renders chat templates for templates.py: one JSON job a line in, one JSON reply a line out.

A template is a program of whoever made the model. Here it has no environment, a bounded memory, and a parent who ends
the process when it takes too long.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from typing import Any

from jinja2 import TemplateError
from transformers.utils.chat_template_utils import render_jinja_template

FAILURES = (
    *(ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TemplateError),
    *(TypeError, ValueError),
)
"""What a template with a mistake raises. Any other error ends this process, and the parent takes that for a failure."""
MEMORY = 2**29
"""Bytes that rendering may take beyond what the process has when it starts."""


def render(job: dict[str, Any]) -> dict[str, str]:
    """The text of a conversation, or why there is none: `failed` names the template's mistake, `limit` what it met."""
    try:
        rendered = render_jinja_template(
            conversations=[job["messages"]],
            chat_template=job["source"],
            add_generation_prompt=False,
            continue_final_message=False,
            return_assistant_tokens_mask=False,
            **job["values"],
        )
    except MemoryError:
        return {"limit": "memory"}
    except RecursionError:
        return {"limit": "depth"}
    except FAILURES as error:
        return {"failed": str(error) or type(error).__name__}
    text = str(rendered[0][0])
    return {"limit": "size"} if len(text) > job["longest"] else {"text": text}


def serve() -> None:
    """Answers jobs until the input ends. Nothing but replies reaches the output."""
    jobs = os.fdopen(os.dup(sys.stdin.fileno()), "rb")
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    with open("/proc/self/statm", "rb") as file:  # noqa: PTH123
        pages = int(file.read().split()[0])
    most = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for line in jobs:
        replies.write(json.dumps(render(json.loads(line))).encode() + b"\n")
        replies.flush()


if __name__ == "__main__":
    serve()
