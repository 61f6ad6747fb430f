"""The process that renders chat templates for chat_templates.py; it reads JSON jobs and writes JSON replies by line.

A template is an untrusted program. Here it has no environment variables and limited memory, and the parent process
stops this one when it takes too long.
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

TEMPLATE_ERRORS = (
    *(ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TemplateError),
    *(TypeError, ValueError),
)
"""Errors of a faulty template. Any other error ends this process, which the parent reports as a failure."""
EXTRA_MEMORY = 2**29
"""Bytes that rendering may use beyond those that the process uses at its start."""


def render(job: dict[str, Any]) -> dict[str, str]:
    """Return the `text` of a conversation, or its error as `failed`, or the exceeded `limit`."""
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
    except TEMPLATE_ERRORS as error:
        return {"failed": str(error) or type(error).__name__}
    text = str(rendered[0][0])
    return {"limit": "size"} if len(text) > job["longest"] else {"text": text}


def serve() -> None:
    """Answer jobs until the input ends. Only replies reach the output."""
    jobs = os.fdopen(os.dup(sys.stdin.fileno()), "rb")
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    _limit_memory()
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for line in jobs:
        job = json.loads(line)
        # The timer's signal ends this process even when the parent is gone.
        signal.setitimer(signal.ITIMER_REAL, job["seconds"])
        reply = render(job)
        signal.setitimer(signal.ITIMER_REAL, 0)
        replies.write(json.dumps(reply).encode() + b"\n")
        replies.flush()


def _limit_memory() -> None:
    statm = Path("/proc/self/statm")
    if not statm.exists():  # only Linux enforces the limit
        return
    limit = int(statm.read_text().split()[0]) * resource.getpagesize() + EXTRA_MEMORY
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))


if __name__ == "__main__":
    serve()
