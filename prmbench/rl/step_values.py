"""Values of the steps of sampled completions, which need no reward model: continuations, or the gold answer's chance.

A step is what the completion's splitter calls one; what stands between two steps belongs to the later one. A completion
of S steps has S values, one before each step; after the last step its value is its outcome.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

import torch
from torch import Tensor

from prmbench import objectives
from prmbench.core import processes
from prmbench.core.reading import normalise_line_ends
from prmbench.core.token_batches import token_batches
from prmbench.data.prompts import Prompt
from prmbench.engines import generation
from prmbench.engines.completion_encoding import encode_continuation
from prmbench.engines.generation import SampledTokens, Sampler
from prmbench.rl import models
from prmbench.rl.setup import Job, gold_text
from prmbench.rl.step_rollouts import StepRollouts
from prmbench.rl.token_rows import Row, Rows, micro_batches
from prmbench.sampling import completions
from prmbench.training.model import Runner
from prmbench.verification.background import BackgroundVerifier
from prmbench.verification.verifiers import Verdict, Verifier


@dataclass(frozen=True, slots=True)
class _Prefix:
    """A place at which a value is measured."""

    row: int
    """Index of the completion; of a prompt's first completion for the prompt itself, which all of them share."""
    step: int
    """Number of finished steps."""
    length: int
    """Tokens of the completion that belong to the prefix."""


def with_starts(job: Job, row: Row) -> Row:
    """Returns the row with the first token of each of its steps."""
    ids = row.ids[row.start :]
    text = _decode(job, ids)
    starts, position = [0], 0
    for step in row.rollout.steps[:-1]:
        at = text.find(step, position)
        if at < 0:
            break  # the steps are not this text's: what is left is one step
        position = at + len(step)
        token = _first_token_after(job, ids, position)
        if starts[-1] < token < len(ids):
            starts.append(token)
    return replace(row, step_starts=tuple(starts))


def _first_token_after(job: Job, ids: Sequence[int], characters: int) -> int:
    """Returns the smallest number of tokens whose text has so many characters."""
    low, high = 0, len(ids)
    while low < high:
        middle = (low + high) // 2
        if len(_decode(job, ids[:middle])) >= characters:
            high = middle
        else:
            low = middle + 1
    return low


def _decode(job: Job, ids: Sequence[int]) -> str:
    text = job.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return normalise_line_ends(str(text))


def _prefixes(rows: Sequence[Row]) -> list[_Prefix]:
    """Returns the prompts, once each, and the prefixes that end before a step."""
    first_of_group: dict[int, int] = {}
    for i, row in enumerate(rows):
        if not row.masked:
            first_of_group.setdefault(row.group, i)
    inside = [
        _Prefix(i, step, start)
        for i, row in enumerate(rows)
        if not row.masked
        for step, start in enumerate(row.step_starts[1:], 1)
    ]
    return [*(_Prefix(i, 0, 0) for i in first_of_group.values()), *inside]


def _with_values(rows: Sequence[Row], values: Sequence[tuple[_Prefix, float | None]]) -> tuple[Row, ...]:
    """Returns the rows with their values; where one is unknown, the value before it still holds."""
    of_prompt = {rows[prefix.row].group: value for prefix, value in values if not prefix.step}
    of_step = {(prefix.row, prefix.step): value for prefix, value in values if prefix.step}
    valued = []
    for i, row in enumerate(rows):
        if row.masked:
            valued.append(row)
            continue
        own = [0.0 if (start := of_prompt[row.group]) is None else start]
        for step in range(1, len(row.step_starts)):
            value = of_step[i, step]
            own.append(own[-1] if value is None else value)
        valued.append(replace(row, step_values=tuple(own)))
    return tuple(valued)


def add_values(
    job: Job, rollouts: StepRollouts, sampler: Sampler, verifier: Verifier, policy: Runner, budget: int
) -> StepRollouts:
    """Returns a step's rollouts with the values of their steps by --step-values. All processes call it.

    The tally counts `value_prefixes`, at which a value was measured, and `value_tokens`: those sampled for
    continuations, or read for the gold answer's probability, over all processes.

    Args:
        job: The run.
        rollouts: The completions that the step trains on in this process.
        sampler: Samples continuations.
        verifier: Verifies them.
        policy: The policy that sampled the completions.
        budget: Padded tokens of a micro-batch.
    """
    if job.config.step_values == "none":
        return rollouts
    rows = [with_starts(job, row) for row in rollouts.rows]
    prefixes = _prefixes(rows)
    values: list[float | None]
    if not processes.all_reduce_max(len(prefixes)):
        values, tokens = [], 0
    elif job.config.step_values == "continuations":
        values, tokens = continuation_values(job, rows, prefixes, sampler, verifier)
    else:
        values, tokens = answer_values(job, rows, prefixes, policy, budget)
    counts = processes.all_reduce_sum([float(len(prefixes)), float(tokens)])
    tally = {**rollouts.tally, **dict(zip(("value_prefixes", "value_tokens"), counts, strict=True))}
    return replace(rollouts, rows=_with_values(rows, list(zip(prefixes, values, strict=True))), tally=tally)


def _prompt_of(job: Job) -> Callable[[Row], Prompt]:
    by_id = {prompt.id: prompt for prompt in job.prompts}
    return lambda row: by_id[row.rollout.group.partition("/")[2]]


# --- VinePPO ------------------------------------------------------------------------------------------------


def continuation_values(
    job: Job, rows: Sequence[Row], prefixes: Sequence[_Prefix], sampler: Sampler, verifier: Verifier
) -> tuple[list[float | None], int]:
    """Returns the share of continuations of each prefix that end right, and the number of tokens sampled.

    None where no continuation could be sampled or verified. Each continuation has a seed of its own.
    """
    count, how = job.config.continuations, completions.sampling_parameters(job.drawing)
    prompt_of, stops = _prompt_of(job), sampler.stops | generation.end_of_turn(job.tokenizer, job.template)
    ids = [rows[p.row].ids[: rows[p.row].start + p.length] for p in prefixes]
    limits = [
        min(how.max_new_tokens - p.length, how.max_new_tokens if room is None else room)
        for p, room in zip(prefixes, generation.remaining_context(sampler, ids), strict=True)
    ]
    requests = [(i, k) for i, limit in enumerate(limits) if limit > 0 for k in range(count)]
    batches = token_batches(
        [len(ids[i]) + limits[i] for i, _ in requests], generation.budget(sampler, job.drawing.batch_tokens)
    )
    outcomes: list[list[int]] = [[] for _ in prefixes]
    tokens = 0

    def keep(number: int, verdict: Verdict) -> None:
        outcomes[requests[number][0]] += [] if verdict.outcome is None else [verdict.outcome]

    with BackgroundVerifier(verifier, keep) as checks:

        def verify(number: int, continuation: SampledTokens) -> None:
            nonlocal tokens
            i = requests[number][0]
            row = rows[prefixes[i].row]
            whole = SampledTokens((*ids[i][row.start :], *continuation.ids), ())
            text = generation.decode_completion(job.tokenizer, whole, stops).text
            checks.submit(number, completions.claim(prompt_of(row), text, job.drawing))
            tokens += len(continuation.ids)

        seeds = [completions.request_seed(job.config.seed, _name(rows, prefixes[i]), k) for i, k in requests]
        generation.sample_batches(
            sampler,
            [generation.Request(ids[i], limits[i], seed) for (i, _), seed in zip(requests, seeds, strict=True)],
            batches,
            how,
            stops,
            job.drawing.batch_tokens,
            verify,
        )
        checks.finish()
    return [fmean(seen) if seen else None for seen in outcomes], tokens


def _name(rows: Sequence[Row], prefix: _Prefix) -> str:
    """Returns a name for the seeds of a prefix's continuations: none of a completion's, which are `<group>`."""
    rollout = rows[prefix.row].rollout
    return f"{rollout.id}/after {prefix.step}" if prefix.step else f"{rollout.group}/before"


# --- GRPO-VPS, our reading ----------------------------------------------------------------------------------


def answer_values(
    job: Job, rows: Sequence[Row], prefixes: Sequence[_Prefix], policy: Runner, budget: int
) -> tuple[list[float | None], int]:
    """Returns the policy's probability of the gold answer after each prefix and --answer-text, and the tokens read.

    The probability is that of all tokens of the gold answer together. None where it does not fit into the context.
    """
    prompt_of = _prompt_of(job)
    probes: list[Row] = []
    places: list[int] = []
    for place, prefix in enumerate(prefixes):
        row = rows[prefix.row]
        lead, gold = _answer_text(prompt_of(row), prefix, job)
        before, answer = encode_continuation(job.tokenizer, lead, gold)
        ids = (*row.ids[: row.start + prefix.length], *before, *answer)
        if job.max_tokens is None or len(ids) <= job.max_tokens:
            probes.append(Row(row.rollout, ids, len(ids) - len(answer), row.group))
            places.append(place)
    probe_rows = Rows(tuple(probes), policy.device)
    micros = micro_batches(probe_rows, [[i] for i in range(len(probes))], budget)
    targets = [token for probe in probes for token in probe.ids[probe.start :]]
    ids_tensor = torch.tensor(targets, dtype=torch.long, device=policy.device)[:, None]
    logprobs = models.logprobs(policy, probe_rows, micros, ids_tensor)[:, 0]
    sums = objectives.masked_sum(probe_rows.padded(logprobs), probe_rows.mask) if probes else logprobs
    values: list[float | None] = [None] * len(prefixes)
    for place, value in zip(places, sums.exp().tolist(), strict=True):
        values[place] = value
    return values, sum(len(probe.ids) for probe in probes)


def _answer_text(prompt: Prompt, prefix: _Prefix, job: Job) -> tuple[str, str]:
    """Returns what is appended to a prefix: the text before the gold answer, and the gold answer."""
    before = job.config.answer_text.partition("{gold}")[0].replace("{step}", str(prefix.step + 1))
    return before if prefix.step else before.lstrip(), gold_text(prompt, job.drawing)


# --- advantages ---------------------------------------------------------------------------------------------


def step_advantages(rows: Rows) -> Tensor:
    """Returns the [b, T] changes of value by the tokens' steps, 0 where no token learns.

    The value after the last step is the outcome.
    """
    sizes = rows.sizes
    values = torch.zeros(len(sizes), max((len(r.step_values) for r in rows.rows), default=0) + 1, device=rows.device)
    step = torch.zeros(rows.mask.shape, dtype=torch.long, device=rows.device)
    for i, row in enumerate(rows.rows):
        to_outcome = (*row.step_values, float(row.outcome))
        values[i, : len(to_outcome)] = torch.tensor(to_outcome, device=rows.device)
        for start in row.step_starts[1 : len(row.step_values)]:
            step[i, start:] += 1
    return objectives.step_advantages(values, step, rows.learning)
