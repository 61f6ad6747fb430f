"""Samples completions of prompts and verifies them, one beside the other; a journal records each complete batch.

Batches and seeds depend on the prompts and options alone, so a run that is killed and resumed gives the same rows; up
to rounding, since completions are sampled with others: two tokens whose scores agree to seven digits may be exchanged.
"""

from __future__ import annotations

import hashlib
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from prmbench import config as options
from prmbench.backends import BASELINES
from prmbench.backends.common import LM, local_weights, open_lm, resolve_placement, template_source
from prmbench.config import EvalConfig, RolloutConfig
from prmbench.core import batch_jobs, processes, result_files
from prmbench.core.batch_jobs import Progress
from prmbench.core.records import Notice, UserError
from prmbench.core.token_batches import token_batches
from prmbench.data import rollouts as rollout_files
from prmbench.data.prompts import Prompt
from prmbench.data.rollouts import Rollout
from prmbench.engines import generation
from prmbench.engines.generation import CPU_MAX_BATCH_TOKENS, GPU_MAX_BATCH_TOKENS, SampledTokens, Sampler, Sampling
from prmbench.engines.vllm import EXCLUSIVE_SHARE, VllmOptions
from prmbench.verification import verifiers
from prmbench.verification.background import BackgroundVerifier
from prmbench.verification.extraction import extract_gold_answers
from prmbench.verification.gym_tasks import refusal

Options = RolloutConfig | EvalConfig
VERSION = 2
"""Version of the code between a prompt and a row; raise it with every change that changes rows."""
RolloutWithTokens = tuple[Rollout, SampledTokens | None]
"""A completion and its tokens; None where the prompt was refused."""
OnBatch = Callable[[int, Sequence[RolloutWithTokens]], None]
"""Called with a batch's number and its completions."""
REFUSED = "refused"
"""Verdict of a completion that was not sampled because the prompt fills the context; its outcome is None."""


@dataclass(frozen=True, slots=True)
class SamplingPlan:
    """Tokenised prompts, and the batches in which their completions are sampled; completion i is of prompt i // n."""

    prompts: tuple[Prompt, ...]
    prompt_ids: tuple[tuple[int, ...], ...]
    token_limits: tuple[int, ...]
    """Longest completion of each prompt in tokens; 0 = the prompt fills the context, so its completions are refused."""
    stop_ids: frozenset[int]
    n: int
    """Completions per prompt."""
    batches: tuple[tuple[int, ...], ...]
    """Indices of the completions of each batch."""


@dataclass(frozen=True, slots=True)
class SampledRollouts:
    """All completions of a finished journal, in the order of the prompts, with their provenance."""

    rollouts: tuple[Rollout, ...]
    facts: Mapping[str, Any]
    """Commit, seconds and other fields of RunManifest, by name."""
    journal: result_files.Journal
    """The journal, to be removed once the rollouts have been written."""


def sample_completions(
    engine: Sampler, prompts: Sequence[Prompt], config: Options, verifier: verifiers.Verifier
) -> Iterator[Rollout]:
    """Yield the verified completions of prompts, in order, sampled in this process without a journal.

    Raises:
        UserError: The options sample nothing.
    """
    plan = prepare(engine, prompts, config)
    yield from (rollout for rollout, _ in sample_plan(engine, plan, config, verifier))


def sample_with_journal(
    engine: Sampler,
    prompts: Sequence[Prompt],
    config: Options,
    folder: Path,
    progress: Progress | None = None,
    anew: bool = False,
) -> SampledRollouts | None:
    """Sample and verify the completions of prompts, with a journal; under torchrun each process takes some batches.

    Args:
        engine: The policy.
        prompts: The prompts.
        config: How to sample and verify.
        folder: Folder of the journal; batches that it already has are not sampled again.
        progress: Called after each batch.
        anew: Whether to delete the journal of an earlier run first.

    Returns:
        All completions in the first process, None in the others.

    Raises:
        UserError: `folder` has the journal of a run with other options.
    """
    logging.getLogger(__name__).info("tokenizing %d prompts", len(prompts))
    plan = prepare(engine, prompts, config)
    journal = batch_jobs.open_journal(folder, run_identity(engine, plan, config), len(plan.batches), anew)
    with verifiers.Verifier() as verifier, batch_jobs.recorded_batches(journal, len(plan.batches), progress) as share:
        remaining, record = share

        def record_rows(number: int, rows: Sequence[RolloutWithTokens]) -> None:
            entry = {"rollouts": [rollout_files.to_row(rollout) for rollout, _ in rows]}
            record(number, (entry, sum(rollout.tokens or 0 for rollout, _ in rows)))

        sample_batches(engine, plan, remaining, config, verifier, record_rows)
    return _collect(plan, journal) if processes.rank() == 0 else None


def open_policy(config: Options) -> LM:
    """Return the language model that writes the completions.

    Raises:
        UserError: No model is given, or it cannot write.
    """
    if not config.model or config.model in BASELINES:
        fault = f"{config.model}: a baseline writes nothing;" if config.model else "is missing:"
        raise UserError(f"--model {fault} give the hub id, folder or .gguf file of a causal language model")
    if config.trust_remote_code:
        raise UserError("--trust-remote-code: no policy's card asks for code of the model's own; drop it")
    return open_lm(config.model, config.revision, config, VllmOptions(share=EXCLUSIVE_SHARE), config.dry_run)


def prepare(engine: Sampler, prompts: Sequence[Prompt], config: Options) -> SamplingPlan:
    """Render and tokenise the prompts, and form batches of completions.

    Raises:
        UserError: The options sample nothing, or several equal greedy completions.
    """
    sampling, n = sampling_parameters(config), config.group_size
    if sampling.temperature == 0 and n > 1:
        raise UserError(f"--group-size is {n}: greedy completions are all alike; use 1, or a --temperature above 0")
    template = template_source(config)
    texts = [generation.render_prompt(engine.tokenizer, prompt.text, template) for prompt in prompts]
    ids = generation.token_ids(engine.tokenizer, texts)
    limits = [
        sampling.max_new_tokens if room is None else min(room, sampling.max_new_tokens)
        for room in generation.remaining_context(engine, ids)
    ]
    token_limits = tuple(max(0, limit) for limit in limits)
    costs = [len(i) + limit if limit else 0 for i, limit in zip(ids, token_limits, strict=True) for _ in range(n)]
    return SamplingPlan(
        prompts=tuple(prompts),
        prompt_ids=tuple(map(tuple, ids)),
        token_limits=token_limits,
        stop_ids=engine.stops | generation.end_of_turn(engine.tokenizer, template),
        n=n,
        batches=tuple(token_batches(costs, _budget(engine, config))),
    )


def _budget(engine: Sampler, config: Options) -> int:
    """Return the tokens of a batch; vLLM forms its own batches, so there it sets how often the journal is written."""
    if config.engine != "vllm" or config.batch_tokens is not None:
        return generation.budget(engine, config.batch_tokens)
    return CPU_MAX_BATCH_TOKENS if resolve_placement(config).device == "cpu" else 4 * GPU_MAX_BATCH_TOKENS


def sampling_parameters(config: Options) -> Sampling:
    """Return the sampling parameters of a configuration."""
    return Sampling(config.temperature, config.top_p, config.top_k, config.max_new_tokens)


def verifier_kind(prompt: Prompt, config: Options) -> Any:
    """Return the verifier of a prompt's answers: `--verifier`, else the prompt's own, else math-verify."""
    return prompt.verifier or "math" if config.verifier == "auto" else config.verifier


def check_verifiers(prompts: Sequence[Prompt], config: Options) -> None:
    """Check, before anything is sampled, that the answers to every prompt can be verified.

    One Notice counts the prompts whose gold answer cannot be read; their completions stay unverified.

    Raises:
        UserError: A package is missing, a row of a file needs reasoning-gym without `--verifier gym`, or the scorer of
            its task is not run here.
    """
    for kind in sorted({verifier_kind(prompt, config) for prompt in prompts}):
        verifiers.check_installed(kind)
    unreadable = [p.id for p in prompts if verifier_kind(p, config) == "math" and not extract_gold_answers(p.gold)]
    if unreadable:
        warnings.warn(
            f"{len(unreadable)} of {len(prompts)} prompts have a gold answer that cannot be read (first: "
            f"{unreadable[0]}); their completions get the verdict `no gold`: give the final answer alone, in a box or "
            "after ####",
            Notice,
            stacklevel=2,
        )
    for prompt in prompts:
        if verifier_kind(prompt, config) != "gym":
            continue
        if not prompt.generated and config.verifier != "gym":
            raise UserError(f"prompt {prompt.id}: asks for the verifier gym; give --verifier gym if you trust its file")
        if reason := refusal(prompt.metadata):
            raise UserError(f"prompt {prompt.id}: reasoning-gym does not score it here ({reason}); leave it out")


def request_seed(seed: int, prompt: str, k: int) -> int:
    """Return the 63-bit seed of completion `k` of the prompt with this id, different for every seed, prompt and k."""
    return int.from_bytes(hashlib.sha256(f"{seed}\0{prompt}\0{k}".encode()).digest()[:8]) >> 1


def sample_plan(
    engine: Sampler, plan: SamplingPlan, config: Options, verifier: verifiers.Verifier
) -> list[RolloutWithTokens]:
    """Return the verified completions of a whole plan, in order, with their tokens; None for refused prompts."""
    rows: dict[int, RolloutWithTokens] = {}
    sample_batches(
        engine,
        plan,
        range(len(plan.batches)),
        config,
        verifier,
        lambda number, batch: rows.update(zip(plan.batches[number], batch, strict=True)),
    )
    return [rows[i] for i in range(len(rows))]


def sample_batches(
    engine: Sampler,
    plan: SamplingPlan,
    numbers: Sequence[int],
    config: Options,
    verifier: verifiers.Verifier,
    on_batch: OnBatch,
) -> None:
    """Sample batches of completions, split them into steps and verify them; verification runs beside sampling.

    Args:
        engine: The policy.
        plan: The prompts and batches.
        numbers: The batches to sample.
        config: How to sample and verify.
        verifier: Checks the completions; a thread uses it until this function returns.
        on_batch: Called in that thread with the number of a batch and its completions, in order, as soon as all of
            them are verified, though the engine may be in a long call for the next batch.
    """
    sampled: dict[int, tuple[generation.Completion, SampledTokens]] = {}
    rows: dict[int, RolloutWithTokens] = {}
    batch_of = {i: number for number in numbers for i in plan.batches[number]}
    missing = {number: len(plan.batches[number]) for number in numbers}
    is_refused = {number: not plan.token_limits[plan.batches[number][0] // plan.n] for number in numbers}

    def finish(i: int, row: RolloutWithTokens) -> None:
        rows[i] = row
        missing[batch_of[i]] -= 1
        if not missing[batch_of[i]]:
            on_batch(batch_of[i], [rows.pop(k) for k in plan.batches[batch_of[i]]])

    def finish_verified(i: int, verdict: verifiers.Verdict) -> None:
        completion, tokens = sampled.pop(i)
        finish(i, (_rollout(plan.prompts[i // plan.n], i % plan.n, completion, verdict, config.split), tokens))

    with BackgroundVerifier(verifier, finish_verified) as checks:

        def verify(i: int, tokens: SampledTokens) -> None:
            completion = generation.decode_completion(engine.tokenizer, tokens, plan.stop_ids)
            sampled[i] = completion, tokens
            checks.submit(i, claim(plan.prompts[i // plan.n], completion.text, config))

        generation.sample_batches(
            engine,
            [_request(plan, i, config.seed) for i in range(plan.n * len(plan.prompts))],
            [plan.batches[number] for number in numbers if not is_refused[number]],
            sampling_parameters(config),
            plan.stop_ids,
            config.batch_tokens,
            verify,
        )
        checks.finish()
    for i in (i for number in numbers if is_refused[number] for i in plan.batches[number]):
        refused = Rollout(**_prompt_fields(plan.prompts[i // plan.n], i % plan.n), verdict=REFUSED, tokens=0)
        finish(i, (refused, None))


def _request(plan: SamplingPlan, i: int, seed: int) -> generation.Request:
    place, k = divmod(i, plan.n)
    limit = plan.token_limits[place]
    return generation.Request(plan.prompt_ids[place], limit, request_seed(seed, plan.prompts[place].id, k))


def claim(prompt: Prompt, text: str, config: Options) -> verifiers.Claim:
    """Return a completion's text as the verifier of its prompt takes it."""
    kind = verifier_kind(prompt, config)
    entry = {"question": prompt.text, "answer": prompt.gold, "metadata": prompt.metadata} if kind == "gym" else {}
    return verifiers.Claim(text, prompt.gold, kind, entry)


def _rollout(
    prompt: Prompt, k: int, completion: generation.Completion, verdict: verifiers.Verdict, split: str
) -> Rollout:
    return Rollout(
        **_prompt_fields(prompt, k),
        completion=completion.text,
        steps=rollout_files.split_completion(completion.text, split),
        outcome=verdict.outcome,
        verdict=verdict.verdict,
        answer=verdict.answer,
        finish=completion.finish,
        tokens=completion.tokens,
    )


def _prompt_fields(prompt: Prompt, k: int) -> dict[str, Any]:
    """Return the fields that completion `k` has from its prompt."""
    fields = {"prompt": prompt.text, "gold": prompt.gold, "group": prompt.id, "subset": prompt.subset}
    return {"id": f"{prompt.id}/{k}", **fields}


# --- the journal ------------------------------------------------------------------------------------------


def run_identity(engine: Sampler, plan: SamplingPlan, config: Options) -> dict[str, Any]:
    """Return everything that affects a row, and nothing else; only a run with the same identity resumes a journal."""
    place = resolve_placement(config)
    inputs = [
        (p.id, ids, p.gold, verifier_kind(p, config)) for p, ids in zip(plan.prompts, plan.prompt_ids, strict=True)
    ]
    return {
        "version": VERSION,
        "model": options.public_name(config.model),
        "revision": getattr(engine, "revision", None) or config.revision,
        "weights": local_weights(config.model),
        "dtype": place.dtype,
        "device": place.device.partition(":")[0],
        "engine": config.engine,
        "sampling": asdict(sampling_parameters(config)),
        "seed": config.seed,
        "split": config.split,
        "prompts": result_files.sha256(repr(inputs).encode()),
        "batches": result_files.short_hash({"batches": plan.batches, "rooms": plan.token_limits}),
        "stops": sorted(plan.stop_ids),
    }


def _collect(plan: SamplingPlan, journal: result_files.Journal) -> SampledRollouts:
    entries = batch_jobs.completed_entries(journal, len(plan.batches))
    try:
        rows = {
            i: rollout_files.from_row(row)
            for batch, entry in zip(plan.batches, entries, strict=True)
            for i, row in zip(batch, entry["rollouts"], strict=True)
        }
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{journal.folder}: not a journal of completions ({error}); delete it to draw anew") from error
    return SampledRollouts(tuple(rows[i] for i in sorted(rows)), batch_jobs.manifest_fields(entries), journal)
