"""Steps without anything to train on: a notice at the first, and the end of the run at the third in a row."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from prmbench.config.distrl_options import ResolvedDistRL
from prmbench.core import processes
from prmbench.core.records import Notice, UserError
from prmbench.rl.alarms import ALARMS
from prmbench.rl.resume import Progress

PATIENCE = 3
"""Steps in a row without anything to train on, after which a run stops."""
REMEDIES: dict[str, tuple[str, str]] = {
    "cut": (
        "with a completion cut by length",
        "raise --max-new-tokens ({max_new_tokens} now), or say --truncated mask or keep",
    ),
    "all_wrong": (
        "with wrong ones only",
        "take easier prompts or a stronger --model, raise --group-size, or check the answers of --data and --verifier",
    ),
    "all_right": ("with right ones only", "take harder prompts, or raise --group-size"),
    "unverified": ("not verified", "check --verifier and the answers of --data"),
}
"""Reason why a prompt's completions cannot be trained on -> its description, and the options that help."""


def count_empty_steps(progress: Progress, line: Mapping[str, Any], config: ResolvedDistRL) -> None:
    """Counts such steps in a row and explains the first in a notice; `line` is the step's of metrics.jsonl."""
    progress.empty = 0 if line["groups"] else progress.empty + 1
    if progress.empty == 1 and processes.rank() == 0:
        warnings.warn(explain(line, config.max_new_tokens), Notice, stacklevel=2)


def is_stalled(progress: Progress, config: ResolvedDistRL) -> bool:
    """Returns whether a run has to stop. The counts are those of all processes, so all decide alike."""
    return progress.empty >= PATIENCE and not config.allow_empty


def check_not_stalled(progress: Progress, history: Sequence[Mapping[str, Any]], config: ResolvedDistRL) -> None:
    """Raises UserError on a stalled run, whose checkpoint has been written."""
    if is_stalled(progress, config):
        last = history[-1] if history else {"step": progress.done, "prompts_drawn": 0}  # metrics.jsonl may be missing
        raise UserError(
            f"{explain(last, config.max_new_tokens)}. The last {progress.empty} steps were like that, so the run "
            f"stops, with a checkpoint: other options need another --out; with --allow-empty this command goes on"
        )


def explain(line: Mapping[str, Any], max_new_tokens: int) -> str:
    """Returns why a step had nothing to train on, how often each reason held, and the options that help most.

    Args:
        line: The step's line of metrics.jsonl.
        max_new_tokens: The run's --max-new-tokens.
    """
    counts = {reason: int(line.get(f"prompts_{reason}") or 0) for reason in REMEDIES}
    reasons = sorted((reason for reason in counts if counts[reason]), key=lambda reason: -counts[reason])
    parts = [f"{counts[reason]} {REMEDIES[reason][0]}" for reason in reasons]
    parts.append(f"{line.get('truncated') or 0.0:.0%} of the completions are cut")
    main = reasons[:1]
    if (line.get("truncated") or 0.0) > ALARMS["truncation"].above and "cut" not in main:
        main = ["cut", *main]  # truncated completions are seldom right
    advice = "; ".join(REMEDIES[reason][1] for reason in main).format(max_new_tokens=max_new_tokens)
    return (
        f"step {line['step']} has nothing to train on: none of {line['prompts_drawn']:.0f} prompts has right and wrong "
        f"completions that may be used ({', '.join(parts)}); {advice or 'see metrics.jsonl'}"
    )
