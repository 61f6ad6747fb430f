"""A policy at work: prompts -> completions -> verdicts, batch by batch. Whole batches are journalled.

A batch, its seeds and its texts follow from prompts and options alone: a killed run, resumed, gives the same rows.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from prmbench import config as options
from prmbench.backends import BASELINES
from prmbench.backends.common import LM, local_weights, open_lm, placement, template_source
from prmbench.config import EvalConfig, RolloutConfig
from prmbench.core import batch_jobs, processes, result_files
from prmbench.core.batch_jobs import Progress
from prmbench.core.records import Notice, UserError
from prmbench.core.token_batches import token_batches
from prmbench.data import rollouts as rollout_files
from prmbench.data.prompts import Prompt
from prmbench.data.rollouts import Rollout
from prmbench.engines import generation
from prmbench.engines.decoding import Drawn
from prmbench.engines.generation import CPU_MOST_TOKENS, GPU_MOST_TOKENS, Sampler, Sampling
from prmbench.engines.vllm import ALONE
from prmbench.engines.vllm import Options as VllmOptions
from prmbench.verification import verifiers
from prmbench.verification.extraction import golds
from prmbench.verification.gym_tasks import refusal

Options = RolloutConfig | EvalConfig
VERSION = 2
"""Of the code between a prompt and a row; a change that moves rows bumps it."""
REFUSED = "refused"
"""Verdict of a completion that was never drawn, since the prompt fills the context; outcome None."""


@dataclass(frozen=True, slots=True)
class Work:
    """Rendered prompts, and the batches in which their completions are drawn; completion i is of prompt i // n."""

    prompts: tuple[Prompt, ...]
    ids: tuple[tuple[int, ...], ...]
    rooms: tuple[int, ...]
    """Longest completion of each prompt; 0 = the prompt leaves no room, so its completions are refused."""
    stops: frozenset[int]
    n: int
    batches: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class Sampled:
    """Every completion of a finished journal, in the order of the prompts, and how they were made."""

    rollouts: tuple[Rollout, ...]
    facts: Mapping[str, Any]
    """Commit, seconds and the like, by RunManifest's names."""
    journal: result_files.Journal
    """To be removed once the rollouts are safe elsewhere."""


def sample(
    engine: Sampler, prompts: Sequence[Prompt], config: Options, verifier: verifiers.Verifier
) -> Iterator[Rollout]:
    """Completions of prompts, verified, in order; in this process and without a journal. Raises UserError."""
    work = prepare(engine, prompts, config)
    found: dict[int, Rollout] = {}
    at = 0
    for batch in work.batches:
        found |= dict(zip(batch, draw(engine, work, batch, config, verifier), strict=True))
        while at in found:
            yield found.pop(at)
            at += 1


def sample_all(
    engine: Sampler,
    prompts: Sequence[Prompt],
    config: Options,
    folder: Path,
    progress: Progress | None = None,
    anew: bool = False,
) -> Sampled | None:
    """The same, journalled in `folder`, each process drawing its share; None in all processes but the first.

    `anew` forgets what an earlier sitting has drawn. Raises UserError when `folder` holds a run begun with other
    options.
    """
    work = prepare(engine, prompts, config)
    journal = batch_jobs.open_journal(folder, identity(engine, work, config), len(work.batches), anew)
    workers = max(1, min(8, (os.cpu_count() or 1) // processes.world_size()))
    with verifiers.Verifier(workers) as verifier:

        def share(number: int) -> tuple[dict[str, Any], int]:
            rows = draw(engine, work, work.batches[number], config, verifier)
            return {"rollouts": [rollout_files.to_row(r) for r in rows]}, sum(r.tokens or 0 for r in rows)

        batch_jobs.work(journal, len(work.batches), share, progress)
    return _collect(work, journal) if processes.rank() == 0 else None


def open_policy(config: Options) -> LM:
    """The model that writes. Raises UserError when there is none, or none that can."""
    if not config.model or config.model in BASELINES:
        what = f"{config.model}: a baseline writes nothing;" if config.model else "is missing:"
        raise UserError(f"--model {what} give the hub id, folder or .gguf file of a causal language model")
    if config.trust_remote_code:
        raise UserError("--trust-remote-code: no policy's card asks for code of the model's own; drop it")
    return open_lm(config.model, config.revision, config, VllmOptions(share=ALONE), config.dry_run)


def prepare(engine: Sampler, prompts: Sequence[Prompt], config: Options) -> Work:
    """Renders the prompts and forms batches. Raises UserError on options that draw nothing."""
    how, n = how_drawn(config), config.group_size
    if how.temperature == 0 and n > 1:
        raise UserError(f"--group-size is {n}: greedy completions are all alike; use 1, or a --temperature above 0")
    template = template_source(config)
    texts = [generation.render_prompt(engine.tokenizer, prompt.text, template) for prompt in prompts]
    ids = generation.token_ids(engine.tokenizer, texts)
    limits = [how.max_new_tokens if r is None else min(r, how.max_new_tokens) for r in generation.rooms(engine, ids)]
    rooms = tuple(max(0, limit) for limit in limits)
    costs = [len(i) + room if room else 0 for i, room in zip(ids, rooms, strict=True) for _ in range(n)]
    return Work(
        prompts=tuple(prompts),
        ids=tuple(map(tuple, ids)),
        rooms=rooms,
        stops=engine.stops | generation.end_of_turn(engine.tokenizer, template),
        n=n,
        batches=tuple(token_batches(costs, _budget(engine, config))),
    )


def _budget(engine: Sampler, config: Options) -> int:
    """Tokens of a batch. VLLM makes its own, so there it says how much is drawn before the journal is written."""
    if config.engine != "vllm" or config.batch_tokens is not None:
        return generation.budget(engine, config.batch_tokens)
    return CPU_MOST_TOKENS if placement(config).device == "cpu" else 4 * GPU_MOST_TOKENS


def how_drawn(config: Options) -> Sampling:
    """The options that say how tokens are drawn."""
    return Sampling(config.temperature, config.top_p, config.top_k, config.max_new_tokens)


def kind_of(prompt: Prompt, config: Options) -> Any:
    """Who checks this prompt's answers: `--verifier`, else what the prompt names, else math-verify."""
    return prompt.verifier or "math" if config.verifier == "auto" else config.verifier


def check_verifiers(prompts: Sequence[Prompt], config: Options) -> None:
    """Sees to it that every prompt's answers can be checked, before anything is drawn.

    Prompts whose gold answer cannot be read are counted in one Notice: their completions stay unverified.

    Raises:
        UserError: A package is missing, a row of a file asks for reasoning-gym without `--verifier gym`, or the scorer
            of its task is not run here.
    """
    for kind in sorted({kind_of(prompt, config) for prompt in prompts}):
        verifiers.need(kind)
    unreadable = [p.id for p in prompts if kind_of(p, config) == "math" and not golds(p.gold)]
    if unreadable:
        warnings.warn(
            f"{len(unreadable)} of {len(prompts)} prompts have a gold answer that cannot be read (first: "
            f"{unreadable[0]}); their completions get the verdict `no gold`: give the final answer alone, in a box or "
            "after ####",
            Notice,
            stacklevel=2,
        )
    for prompt in prompts:
        if kind_of(prompt, config) != "gym":
            continue
        if not prompt.generated and config.verifier != "gym":
            raise UserError(f"prompt {prompt.id}: asks for the verifier gym; give --verifier gym if you trust its file")
        if reason := refusal(prompt.metadata):
            raise UserError(f"prompt {prompt.id}: reasoning-gym does not score it here ({reason}); leave it out")


def request_seed(seed: int, prompt: str, k: int) -> int:
    """Of completion `k` of the prompt with that id: 63 bits that no other run, prompt or completion shares."""
    return int.from_bytes(hashlib.sha256(f"{seed}\0{prompt}\0{k}".encode()).digest()[:8]) >> 1


def draw(
    engine: Sampler,
    work: Work,
    batch: Sequence[int],
    config: Options,
    verifier: verifiers.Verifier,
) -> list[Rollout]:
    """One batch: completions drawn, cut into steps and verified."""
    return [rollout for rollout, _ in draw_tokens(engine, work, batch, config, verifier)]


def draw_tokens(
    engine: Sampler,
    work: Work,
    batch: Sequence[int],
    config: Options,
    verifier: verifiers.Verifier,
) -> list[tuple[Rollout, Drawn | None]]:
    """The same with the tokens as they were drawn; None for what was refused."""
    of = [work.prompts[i // work.n] for i in batch]
    if not work.rooms[batch[0] // work.n]:
        refused = [Rollout(**_whose(p, i % work.n), verdict=REFUSED, tokens=0) for i, p in zip(batch, of, strict=True)]
        return [(rollout, None) for rollout in refused]
    drawn = engine.sample(
        [work.ids[i // work.n] for i in batch],
        [work.rooms[i // work.n] for i in batch],
        [request_seed(config.seed, p.id, i % work.n) for i, p in zip(batch, of, strict=True)],
        how_drawn(config),
        work.stops,
    )
    said = [generation.completion(engine.tokenizer, d, work.stops) for d in drawn]
    verdicts = verifier.check([_claim(p, c.text, config) for p, c in zip(of, said, strict=True)])
    rows = zip(batch, of, said, verdicts, strict=True)
    made = [_row(p, i % work.n, c, verdict, config.split) for i, p, c, verdict in rows]
    return list(zip(made, drawn, strict=True))


def _claim(prompt: Prompt, text: str, config: Options) -> verifiers.Claim:
    kind = kind_of(prompt, config)
    entry = {"question": prompt.text, "answer": prompt.gold, "metadata": prompt.metadata} if kind == "gym" else {}
    return verifiers.Claim(text, prompt.gold, kind, entry)


def _row(prompt: Prompt, k: int, said: generation.Completion, verdict: verifiers.Verdict, split: str) -> Rollout:
    return Rollout(
        **_whose(prompt, k),
        completion=said.text,
        steps=rollout_files.cut(said.text, split),
        outcome=verdict.outcome,
        verdict=verdict.verdict,
        answer=verdict.answer,
        finish=said.finish,
        tokens=said.tokens,
    )


def _whose(prompt: Prompt, k: int) -> dict[str, Any]:
    facts = {"prompt": prompt.text, "gold": prompt.gold, "group": prompt.id, "subset": prompt.subset}
    return {"id": f"{prompt.id}/{k}", **facts}


# --- the journal ------------------------------------------------------------------------------------------


def identity(engine: Sampler, work: Work, config: Options) -> dict[str, Any]:
    """All that moves a row, and nothing else."""
    where = placement(config)
    asked = [(p.id, ids, p.gold, kind_of(p, config)) for p, ids in zip(work.prompts, work.ids, strict=True)]
    return {
        "version": VERSION,
        "model": options.public_name(config.model),
        "revision": getattr(engine, "revision", None) or config.revision,
        "weights": local_weights(config.model),
        "dtype": where.dtype,
        "device": where.device.partition(":")[0],
        "engine": config.engine,
        "sampling": asdict(how_drawn(config)),
        "seed": config.seed,
        "split": config.split,
        "prompts": result_files.sha256(repr(asked).encode()),
        "batches": result_files.short_hash({"batches": work.batches, "rooms": work.rooms}),
        "stops": sorted(work.stops),
    }


def _collect(work: Work, journal: result_files.Journal) -> Sampled:
    entries = batch_jobs.finished(journal, len(work.batches))
    try:
        rows = {
            i: rollout_files.from_row(row)
            for batch, entry in zip(work.batches, entries, strict=True)
            for i, row in zip(batch, entry["rollouts"], strict=True)
        }
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{journal.folder}: not a journal of completions ({error}); delete it to draw anew") from error
    return Sampled(tuple(rows[i] for i in sorted(rows)), batch_jobs.manifest_fields(entries), journal)
