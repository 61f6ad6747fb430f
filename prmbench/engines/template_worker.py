"""The process that renders chat templates for chat_templates.py: one JSON job a line in, one JSON reply a line out.

A template is a program of whoever made the model. Here it has no environment, a bounded memory, and a parent who ends
the process when it takes too long.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
from pathlib import Path
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
    _bound_memory()
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for line in jobs:
        job = json.loads(line)
        signal.setitimer(signal.ITIMER_REAL, job["seconds"])  # its signal ends this process: a parent may be gone
        reply = render(job)
        signal.setitimer(signal.ITIMER_REAL, 0)
        replies.write(json.dumps(reply).encode() + b"\n")
        replies.flush()


def _bound_memory() -> None:
    statm = Path("/proc/self/statm")
    if not statm.exists():  # not Linux, where alone the limit is kept
        return
    most = int(statm.read_text().split()[0]) * resource.getpagesize() + MEMORY
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))


if __name__ == "__main__":
    serve()
