"""Completions are verified while others are sampled, whichever engine samples, and every batch comes back whole."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from threading import Event
from typing import Any

import pytest
from token_kinds import byte_bpe

from prmbench.config import RolloutConfig
from prmbench.data.prompts import Prompt
from prmbench.engines.generation import OnFinished, SampledTokens, Sampling
from prmbench.sampling import completions
from prmbench.verification.verifiers import Claim, Verdict

PATIENCE = 30.0
"""Seconds after which a test that would wait for ever fails."""
PROMPTS = [Prompt(id=str(i), text=f"What is {i}?", gold=str(i), subset="s") for i in range(3)]
CONFIG = RolloutConfig(model="any", group_size=2, max_new_tokens=5, template="plain", batch_tokens=40)


class Watch:
    """A verifier that finds everything right, and counts what it was asked while the sampler was at work."""

    def __init__(self) -> None:
        self.is_sampling = False
        self.checked = Event()
        self.during_sampling = self.all = 0

    def check(self, claims: Sequence[Claim], *_: object) -> list[Verdict]:
        self.all += len(claims)
        self.during_sampling += len(claims) * self.is_sampling
        self.checked.set()
        return [Verdict("right", claim.text) for claim in claims]


class BatchSampler:
    """Samples batch by batch, as vLLM does; goes on with a later batch only once the one before is being verified."""

    def __init__(self, watch: Watch) -> None:
        self.watch = watch
        self.tokenizer = byte_bpe()
        self.max_tokens: int | None = None
        self.stops = frozenset[int]()
        self.batch_tokens = 40
        self.calls = 0

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        limits: Sequence[int],
        seeds: Sequence[int],
        sampling: Sampling,
        stops: Collection[int],
    ) -> list[SampledTokens]:
        self.watch.is_sampling = True
        if self.calls:
            assert self.watch.checked.wait(PATIENCE)
        self.watch.checked.clear()
        self.calls += 1
        return [self.completion(seed) for seed in seeds]

    def completion(self, seed: int) -> SampledTokens:
        return SampledTokens((20 + seed % 7, 30), (-0.5, -0.5))


class RowSampler(BatchSampler):
    """Reports every completion when it is finished, from the last to the first, and waits until that is verified."""

    def sample_continuously(self, *inputs: Any) -> None:
        prompts, _, seeds, _, _, cache_tokens, on_finished = inputs
        assert cache_tokens == CONFIG.batch_tokens
        self.calls += 1
        self.watch.is_sampling = True
        report: OnFinished = on_finished
        for i in reversed(range(len(prompts))):
            self.watch.checked.clear()
            report(i, self.completion(seeds[i]))
            assert self.watch.checked.wait(PATIENCE)
        self.watch.is_sampling = False


@pytest.mark.parametrize("sampler", [BatchSampler, RowSampler])
def test_completions_are_verified_while_others_are_sampled(sampler: Callable[[Watch], Any]) -> None:
    watch = Watch()
    verifier: Any = watch
    engine = sampler(watch)
    plan = completions.prepare(engine, PROMPTS, CONFIG)
    assert len(plan.batches) > 1
    batches: dict[int, list[tuple[str, str]]] = {}
    completions.sample_batches(
        engine,
        plan,
        range(len(plan.batches)),
        CONFIG,
        verifier,
        lambda number, rows: batches.update({number: [(r.id, r.completion) for r, _ in rows]}),
    )
    last = len(plan.batches[-1]) if sampler is BatchSampler else 0
    assert watch.all == len(PROMPTS) * CONFIG.group_size
    assert watch.during_sampling >= watch.all - last
    assert engine.calls == (len(plan.batches) if sampler is BatchSampler else 1)
    for number, rows in batches.items():
        expected = [f"{PROMPTS[i // 2].id}/{i % 2}" for i in plan.batches[number]]
        assert [name for name, _ in rows] == expected
        for name, text in rows:
            prompt, _, k = name.partition("/")
            tokens = engine.completion(completions.request_seed(CONFIG.seed, prompt, int(k)))
            assert text == engine.tokenizer.decode(list(tokens.ids))
    assert sorted(batches) == list(range(len(plan.batches)))


def test_a_batch_is_recorded_while_the_engine_samples_the_next() -> None:
    """The call of vLLM for a batch takes long: a kill in it must not cost the batch before, too."""
    watch: Any = Watch()
    recorded = Event()

    class PatientSampler(BatchSampler):
        def sample(self, *inputs: Any) -> list[SampledTokens]:
            if self.calls:
                assert recorded.wait(PATIENCE)
                recorded.clear()
            return super().sample(*inputs)

    engine = PatientSampler(watch)
    watch.checked.set = lambda: None  # type: ignore[method-assign]
    watch.checked.wait = lambda _: True
    plan = completions.prepare(engine, PROMPTS, CONFIG)
    numbers = range(len(plan.batches))
    completions.sample_batches(engine, plan, numbers, CONFIG, watch, lambda *_: recorded.set())
    assert engine.calls == len(plan.batches) > 1
