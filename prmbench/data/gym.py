"""reasoning-gym tasks as prompts, by name: an endless second source of problems with a scorer each.

Needs the extra `verify`. Scoring is verifiers.py's business; it finds the task's name in the metadata.
"""

from __future__ import annotations

from typing import Any

from prmbench.core.records import UserError
from prmbench.verification.gym_tasks import refusal

TAGS = "\n\nPut the final answer, and nothing else, between <answer> and </answer>."
"""Some answers are grids of several lines, so a line or a box would not hold them; reasoning-gym reads these tags."""
USUAL = {"size": 100, "seed": 0}


def prompts(spec: str) -> list[tuple[str, str, str, str, dict[str, Any]]]:
    """`gym:chain_sum,gcd,size=100,seed=0`: so many entries of each task; further options go to the task's own config.

    Returns (id, text, reference answer, task, metadata) of each prompt; `metadata` is the entry's, and its
    `source_dataset` is the task's name. Raises UserError on an unknown task or option.
    """
    names, options = _parsed(spec)
    try:
        import reasoning_gym
    except ImportError as error:
        raise UserError(f"--data {spec}: needs reasoning-gym; pip install 'prmbench[verify]'") from error
    known = reasoning_gym.factory.DATASETS
    found = []
    for name in names:
        if name not in known:
            raise UserError(f"--data {spec}: no task {name!r} in reasoning-gym; it has {', '.join(sorted(known))}")
        if reason := refusal({"source_dataset": name}):
            raise UserError(f"--data {spec}: reasoning-gym's answers are not scored here ({reason}); take another task")
        try:
            entries = list(reasoning_gym.create_dataset(name, **options))
        except (AssertionError, TypeError, ValueError) as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise UserError(f"--data {spec}: reasoning-gym refuses it ({reason}); change the options") from error
        found += [
            (f"{name}-{k}", entry["question"] + TAGS, entry["answer"] or "", name, entry["metadata"])
            for k, entry in enumerate(entries)
        ]
    return found


def _parsed(spec: str) -> tuple[list[str], dict[str, int]]:
    names, options = [], dict(USUAL)
    for part in spec.removeprefix("gym:").split(","):
        name, equals, value = part.strip().partition("=")
        if not equals:
            names.append(name)
        elif value.isdecimal():
            options[name] = int(value)
        else:
            raise UserError(f"--data {spec}: {name} is {value!r}; expected a whole number")
    if not names or not all(names):
        raise UserError(f"--data {spec}: names no task; write e.g. gym:chain_sum,size=100,seed=0")
    return names, options
