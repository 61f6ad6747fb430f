"""`prmbench verify`: puts outcomes on completions that other tools have written.

data/completion_rows.py knows the shapes of rows; the answers are checked in the worker processes of verification/.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from prmbench.config import VerifyConfig, validate
from prmbench.core import batch_jobs, output_checks, processes, result_files, writing
from prmbench.core.batch_jobs import Progress
from prmbench.core.records import Notice, UserError
from prmbench.data import chat_texts, completion_rows, field_names, files, row_kinds
from prmbench.data import rollouts as rollout_files
from prmbench.data.field_names import Fields
from prmbench.data.rollouts import Rollout
from prmbench.verification import verifiers

BATCH = 500
"""Completions between two entries of the journal, from which an interrupted run goes on."""
UNREADABLE = "row that cannot be read"


@dataclass(frozen=True, slots=True)
class Verified:
    """Counts of a verification."""

    out: Path
    rows: int
    prompts: int
    completions: int
    right: int
    wrong: int
    """Without an answer included."""
    unverified: int
    """Completions without an outcome: the verifier failed or ran out of time, or there is no reference answer."""
    verdicts: Mapping[str, int]
    changed: int
    """Completions whose row had the other outcome."""
    left_out: Mapping[str, int]
    """Reason -> how many rows were left out for it."""
    examples: tuple[str, ...]
    """Location and reason of the first few rows that are left out or have no reference answer."""


@dataclass(frozen=True, slots=True)
class _Read:
    """What a file holds."""

    rows: int
    rollouts: tuple[Rollout, ...]
    """Without the outcomes of their rows."""
    outcomes: tuple[int | None, ...]
    """The outcomes of their rows."""
    locations: tuple[str, ...]
    """The locations of their rows."""
    unreadable: tuple[str, ...]
    without_answer: tuple[str, ...]
    """Locations of rows without a reference answer."""


def verify(config: VerifyConfig, data: Path, progress: Progress | None = None) -> Verified | None:
    """Verify the completions of a file, and write them as rollouts with their outcomes.

    An interrupted run goes on where it was. A completion that cannot be verified has no outcome, and is never wrong.

    Args:
        config: The options of `prmbench verify`.
        data: A data file, or a folder of them.
        progress: Called after every batch.

    Returns:
        The counts; None in all processes but the first under torchrun, where each verifies its share.

    Raises:
        UserError: An option is invalid, the file holds no completion with a reference answer, or what one of its fields
            means is not clear.
    """
    config = validate(config)
    rollout_files.check_suffix(config.out)
    output_checks.check_outputs([config.out], config, [data], force=config.force)
    writing.check_writable(config.out.parent)
    verifiers.check_installed(config.verifier)
    content = _read(data, field_names.parse(config.fields))
    claims = [verifiers.Claim(r.completion, r.gold, config.verifier) for r in content.rollouts]
    batches = [claims[start : start + BATCH] for start in range(0, len(claims), BATCH)]
    journal = batch_jobs.open_journal(
        config.out.with_name(config.out.name + ".journal"),
        {
            "verifier": config.verifier,
            "claims": result_files.sha256(repr([(claim.text, claim.gold) for claim in claims]).encode()),
            "batch": BATCH,
        },
        len(batches),
        config.force,
    )
    verdicts = _verdicts(batches, journal, progress)
    if verdicts is None:
        return None
    rows = [
        replace(
            rollout,
            steps=rollout_files.split_completion(rollout.completion, config.split),
            outcome=verdict.outcome,
            verdict=verdict.verdict,
            answer=verdict.answer,
        )
        for rollout, verdict in zip(content.rollouts, verdicts, strict=True)
    ]
    unreadable_golds = [
        location for location, row in zip(content.locations, rows, strict=True) if row.gold and row.verdict == "no gold"
    ]
    _warn_of(unreadable_golds, f"{data}: the verifier cannot read the reference answer of", len(rows), "completions")
    rollout_files.warn_if_never_split(rows, config.split, config.out.name)
    rollout_files.warn_if_unverified(rows, data.name)
    rollout_files.write(config.out, rows)
    journal.remove()
    return _counts(config.out, content, rows)


def _verdicts(
    batches: Sequence[Sequence[verifiers.Claim]], journal: result_files.Journal, progress: Progress | None
) -> list[verifiers.Verdict] | None:
    """Return the verdicts in the first process, None in the others."""
    with verifiers.Verifier() as verifier:

        def check(number: int) -> tuple[dict[str, Any], int]:
            return {"verdicts": [asdict(v) for v in verifier.check(batches[number])]}, len(batches[number])

        batch_jobs.run_batches(journal, len(batches), check, progress)
    if processes.rank() != 0:
        return None
    entries = batch_jobs.completed_entries(journal, len(batches))
    return [verifiers.Verdict(**verdict) for entry in entries for verdict in entry["verdicts"]]


# --- reading ------------------------------------------------------------------------------------------------


def _read(path: Path, names: Fields) -> _Read:
    """Read the completions of a file or folder.

    Raises:
        UserError: There is no completion with a reference answer, or what a field means is not clear.
    """
    located: list[tuple[Rollout, str]] = []
    unreadable: list[str] = []
    without_answer: list[tuple[str, Path, dict[str, Any]]] = []
    nulls: Counter[str] = Counter()
    systems = readable = 0
    for file in files.data_files(path):
        for location, row in field_names.rows(file, names, unreadable.append):
            rollouts = _row_or_reason(row, location, file)
            if isinstance(rollouts, str):
                unreadable.append(rollouts)
                continue
            readable += 1
            nulls[location] = completion_rows.null_completions(row, location)
            located += [(rollout, location) for rollout in rollouts]
            without_answer += [] if rollouts[0].gold else [(location, file, row)]
            systems += any(chat_texts.has_system_message(row.get(name)) for name in ("prompt", "messages"))
    rollout_files.warn_of_nulls(path, nulls)
    if not located:
        raise UserError(unreadable[0] if unreadable else f"{path}: holds no completion")
    if len(without_answer) == readable:
        location, file, row = without_answer[0]
        with row_kinds.advice(row, file, "completions"):
            raise UserError(f"{location}: has no reference answer, nor has any other row; name it: --fields answer=...")
    rows = readable + len(unreadable)
    locations = tuple(location for location, *_ in without_answer)
    files.warn_of_unreadable_rows(path, unreadable, rows)
    _warn_of(locations, f"{path}: there is no reference answer in", rows, "rows")
    if systems:
        message = f"{path}: {systems} of {rows} rows have a system message, which a rollouts file does not hold"
        warnings.warn(message, Notice, stacklevel=3)
    identified = rollout_files.with_ids(_with_unique_ids(located))
    return _Read(
        rows=rows,
        rollouts=tuple(replace(rollout, outcome=None) for rollout in identified),
        outcomes=tuple(rollout.outcome for rollout in identified),
        locations=tuple(location for _, location in located),
        unreadable=tuple(unreadable),
        without_answer=locations,
    )


def _row_or_reason(row: dict[str, Any], location: str, file: Path) -> list[Rollout] | str:
    """Return the completions of a row, or why it cannot be read. Raises UserError if its fields have two meanings."""
    field_names.check_clear(row, location)
    try:
        with row_kinds.advice(row, file, "completions"):
            return [replace(r, subset=r.subset or file.stem) for r in rollout_files.from_other_tools(row, location)]
    except UserError as error:
        return str(error)


def _with_unique_ids(located: Sequence[tuple[Rollout, str]]) -> list[tuple[Rollout, str]]:
    """Drop the ids of the rows where they do not tell all completions apart; every completion then gets a new one."""
    ids = [rollout.id for rollout, _ in located]
    if "" not in ids and len(set(ids)) == len(ids):
        return list(located)
    return [(replace(rollout, id=""), location) for rollout, location in located]


def _warn_of(locations: Sequence[str], what: str, total: int, unit: str) -> None:
    """Emit one warning that completions stay unverified, with the first few of their locations, each once."""
    if locations:
        places = list(dict.fromkeys(locations))
        more = ", ..." if len(places) > files.MAX_QUOTED_ROWS else ""
        quoted = ", ".join(places[: files.MAX_QUOTED_ROWS]) + more
        message = f"{what} {len(locations)} of {total} {unit}, which makes them unverified: {quoted}"
        warnings.warn(message, Notice, stacklevel=4)


def _counts(out: Path, content: _Read, rows: Sequence[Rollout]) -> Verified:
    outcomes = [r.outcome for r in rows]
    examples = [*content.unreadable, *(f"{location}: has no reference answer" for location in content.without_answer)]
    return Verified(
        out=out,
        rows=content.rows,
        prompts=len({r.group for r in rows}),
        completions=len(rows),
        right=outcomes.count(1),
        wrong=outcomes.count(0),
        unverified=outcomes.count(None),
        verdicts=dict(sorted(Counter(r.verdict for r in rows).items())),
        changed=sum(
            None not in (before, after) and before != after
            for before, after in zip(content.outcomes, outcomes, strict=True)
        ),
        left_out={UNREADABLE: len(content.unreadable)} if content.unreadable else {},
        examples=tuple(examples[: files.MAX_QUOTED_ROWS]),
    )
