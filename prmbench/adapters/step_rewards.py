"""A reward model as trainers use it: completions in, a value for every step and the policy's token at which it ends."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from operator import index
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from prmbench.adapters import dense_rewards
from prmbench.adapters.dense_rewards import Placement, check_choice, check_number
from prmbench.adapters.problem_text import Prompt, last_user_text, problem_of
from prmbench.adapters.token_alignment import Step, content_length, decode, find_steps, token_ends
from prmbench.backends import Backend, load_backend
from prmbench.config import ModelConfig, check_model_path, from_mapping, unused_options
from prmbench.core.option_values import OPTIONS, check_names
from prmbench.core.records import (
    DEFAULT_READOUTS,
    READOUTS,
    EvalProtocol,
    Readout,
    ScoredTrace,
    StepScores,
    Trace,
    UserError,
    join_scores,
    text_hash,
)
from prmbench.data.solutions import SPLITTERS
from prmbench.evaluation import scoring
from prmbench.metrics import first_error
from prmbench.verification.verifiers import final_answer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NEED_LABELS = ("gold", "outcome-oracle")
"""Baselines that read the labels of the data; a policy's completions have none."""
_DIFFERENCES: tuple[Readout, ...] = ("step_sum", "step_mean", "step_diff")
"""Readouts that are what a step adds; the others are values of the prefix that a step ends."""


@dataclass(frozen=True, slots=True)
class Guard:
    """Refuses completions that a reward model must not be asked about, since degenerate ones may get high values.

    A completion without a step, such as an empty one, is always refused. By default nothing else is.
    """

    min_steps: int = 1
    """Completions with fewer steps are refused."""
    require_answer: bool = False
    r"""Refuse completions without a final answer: a box, `<answer>`, or "the answer is"."""
    floor: float | None = None
    """The reward of a refused completion. None: it has no reward, as any unscored one."""

    def refusal(self, text: str, steps: Sequence[Step]) -> str:
        """Return why a completion is refused; empty where it is not."""
        if not steps:
            return "no step" if text.strip() else "empty"
        if len(steps) < self.min_steps:
            return f"{len(steps)} steps of at least {self.min_steps}"
        return "no final answer" if self.require_answer and not final_answer(text) else ""


def _is_one_completion(prompt: Any, ids: Any) -> bool:
    """Whether ids are those of one completion: an empty one shows in its prompt, which is none of several."""
    if len(ids):
        return np.ndim(ids[0]) == 0 and not isinstance(ids[0], str | type(None))
    return isinstance(prompt, str) or (len(prompt) > 0 and not isinstance(prompt[0], str) and np.ndim(prompt[0]) == 0)


@dataclass(frozen=True, slots=True)
class StepRewards:
    """The steps of one completion with their values; unpacks into (values, token_ends)."""

    values: tuple[float, ...] | None
    """One value a step; None = unscored, which is not the same as 0. A refused completion with a floor has that."""
    token_ends: tuple[int, ...] = ()
    """Index of the policy's token in which each step ends. Empty where only texts were scored."""
    unscored: str = ""
    """Why there is no value."""
    refused: str = ""
    """Why the guard gave the completion its floor."""

    def __iter__(self) -> Iterator[tuple[Any, ...] | None]:
        yield self.values
        yield self.token_ends


@dataclass(frozen=True)
class Prm:
    """A reward model, and how a trainer's completions become its traces and its scores become rewards."""

    backend: Backend
    policy_tokenizer: PreTrainedTokenizerBase | None = None
    """Tokenizer of the policy whose token ids come; may differ from the reward model's. Not needed for texts."""
    split: str = "paragraph"
    """How a completion becomes steps: paragraph, line or numbered, as for `prmbench rollout`."""
    readout: Readout | None = None
    """What a step's value is (docs/protocols.md). None: the backend's score as it is; for log-ratios their sum over the
    step's tokens, in nats, not multiplied by beta; for critics the share of critiques that find no error up to it."""
    aggregation: str = "soft_min"
    """How `reward` makes one number of a completion's values; see `dense_rewards.aggregate`."""
    temperature: float = 0.1
    """T of the soft minimum, in the unit of the values."""
    placement: Placement = "value"
    """What `token_rewards` gives to the last token of a step; see `dense_rewards.step_credits`."""
    guard: Guard = field(default_factory=Guard)
    problem: Callable[[str], str] | None = None
    """Makes the problem of a prompt, whose token ids come decoded with their special tokens. None: see
    `problem_text.problem_of`."""
    batch_tokens: int | None = None
    """Padded tokens of the reward model that a batch may hold; None = by device."""
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Raise UserError on options that do not exist, or do not fit the backend's scores."""
        kind = self.backend.facts.kind
        if not isinstance(self.guard, Guard):
            raise UserError(f"guard is {self.guard!r:.60}; use Guard(min_steps=..., require_answer=..., floor=...)")
        if not isinstance(self.guard.min_steps, int):
            raise UserError(f"guard: min_steps is {self.guard.min_steps!r:.60}; use a whole number")
        if self.problem is not None and not callable(self.problem):
            raise UserError(f"problem is {self.problem!r:.60}; use a function that makes the problem of a prompt")
        if self.policy_tokenizer is not None and not callable(self.policy_tokenizer):
            raise UserError(
                f"policy_tokenizer is {self.policy_tokenizer!r:.60}; use a tokenizer, or its name in open_prm"
            )
        check_choice("split", self.split, tuple(SPLITTERS))
        check_choice("aggregation", self.aggregation, dense_rewards.AGGREGATIONS)
        check_choice("placement", self.placement, dense_rewards.PLACEMENTS)
        if not READOUTS[kind]:
            raise UserError(f"the backend's kind is {kind}, which has no step scores; use a reward model")
        check_choice("readout", self._readout, READOUTS[kind])
        if self.placement == "difference" and self._readout in _DIFFERENCES:
            raise UserError(f"placement 'difference': {self._readout} is one already; use value, or another readout")
        if self.guard.floor is not None:
            check_number("guard: floor", self.guard.floor)
        if self.batch_tokens is not None and not isinstance(self.batch_tokens, int):
            raise UserError(f"batch_tokens is {self.batch_tokens!r:.60}; use a whole number, or None")
        if not isinstance(self.temperature, int | float) or not self.temperature > 0:
            raise UserError(f"temperature {self.temperature}: use a number above 0; a small one is nearly the minimum")

    @property
    def _readout(self) -> Readout:
        return self.readout or DEFAULT_READOUTS[self.backend.facts.kind]

    @overload
    def step_rewards(self, prompt_ids: Prompt, completion_ids: Sequence[int]) -> StepRewards: ...

    @overload
    def step_rewards(
        self, prompt_ids: Sequence[Prompt], completion_ids: Sequence[Sequence[int]]
    ) -> list[StepRewards]: ...

    def step_rewards(self, prompt_ids: Any, completion_ids: Any) -> Any:
        """Return the values of the steps of completions, and the token of the policy at which each step ends.

        Tokens after the first end of sequence, padding and special tokens belong to no step.

        Args:
            prompt_ids: Token ids of each completion's prompt; or the problem as text, or a conversation.
            completion_ids: Token ids of each completion as the policy sampled them, lists or tensors. Ids that are not
                in a list of completions are one completion, and `prompt_ids` its prompt.

        Returns:
            One entry for each completion, in order; of one completion its entry, which unpacks into values, token_ends.

        Raises:
            UserError: Token ids come without a tokenizer or are none, or a prompt's problem cannot be found.
        """
        if _is_one_completion(prompt_ids, completion_ids):
            return self.step_rewards([prompt_ids], [completion_ids])[0]
        tokenizer = self.policy_tokenizer
        if tokenizer is None:
            raise UserError("completions are token ids: give the policy's tokenizer, policy_tokenizer=")
        try:
            rows = [[index(i) for i in ids] for ids in completion_ids]
        except TypeError as error:
            message = f"completion_ids: expected a list of token ids, whole numbers, for each completion ({error})"
            raise UserError(message) from error
        contents = [row[: content_length(tokenizer, row)] for row in rows]
        foreign = [next((i for i in ids if i >= len(tokenizer)), None) for ids in contents]
        texts = [decode(tokenizer, ids) if i is None else "" for ids, i in zip(contents, foreign, strict=True)]
        scored = [
            row if i is None else StepRewards(None, unscored=f"token id {i} is not in the policy's tokenizer")
            for row, i in zip(self.score_texts(prompt_ids, texts), foreign, strict=True)
        ]
        return [self._aligned(row, ids, text) for row, ids, text in zip(scored, contents, texts, strict=True)]

    def _aligned(self, row: StepRewards, ids: Sequence[int], text: str) -> StepRewards:
        assert self.policy_tokenizer is not None
        if row.values is None:
            return row
        if row.refused:
            return replace(row, token_ends=(len(ids) - 1,) if ids else ())
        ends = [step.end for step in find_steps(text, self.split)]
        return replace(row, token_ends=tuple(token_ends(self.policy_tokenizer, ids, text, ends)))

    def score_texts(self, prompts: Sequence[Prompt], completions: Sequence[str]) -> list[StepRewards]:
        """Return the values of the steps of many completions that come as text, without special tokens.

        Args:
            prompts: Problems, conversations or token ids.
            completions: The completions.

        Raises:
            UserError: The numbers differ, or a prompt's problem cannot be found.
        """
        if len(prompts) != len(completions):
            raise UserError(f"{len(prompts)} prompts for {len(completions)} completions; give a prompt for each")
        steps = [find_steps(text, self.split) for text in completions]
        refusals = [self.guard.refusal(text, found) for text, found in zip(completions, steps, strict=True)]
        traces = {
            i: self._trace(prompt, tuple(step.text for step in steps[i]))
            for i, prompt in enumerate(prompts)
            if not refusals[i]
        }
        different = list(dict.fromkeys(traces.values()))  # equal completions are scored once
        rewards = dict(zip(different, self._score(different), strict=True))
        return [rewards[traces[i]] if i in traces else self._refused(reason) for i, reason in enumerate(refusals)]

    def _refused(self, reason: str) -> StepRewards:
        if self.guard.floor is None:
            return StepRewards(None, unscored=reason)
        return StepRewards((self.guard.floor,), refused=reason)

    def _trace(self, prompt: Prompt, steps: tuple[str, ...]) -> Trace:
        problem = self.problem_text(prompt)
        # Critics and the random baseline seed by the id, so that it must not depend on the batch.
        return Trace(text_hash(repr((problem, steps))), problem, steps)

    def problem_text(self, prompt: Prompt) -> str:
        """Return the problem that the reward model reads for a prompt. Raises UserError where none can be found."""
        if self.problem is None:
            return problem_of(prompt, self.policy_tokenizer)
        if isinstance(prompt, str):
            return self.problem(prompt)
        items: list[Any] = list(prompt)
        if items and not isinstance(items[0], Mapping) and self.policy_tokenizer is not None:
            return self.problem(decode(self.policy_tokenizer, [int(i) for i in items], special=True))
        return self.problem(problem_of(prompt, self.policy_tokenizer))

    def rendered_problem(self, prompt: str) -> str:
        """Return the problem of a prompt that the policy's chat template has rendered as text."""
        if self.problem is not None or self.policy_tokenizer is None:
            return self.problem_text(prompt)
        return last_user_text(prompt, self.policy_tokenizer)

    def _score(self, traces: Sequence[Trace]) -> list[StepRewards]:
        """Score in batches of limited size, one caller at a time: trainers may ask from several threads."""
        with self._lock:
            budget = scoring.batch_budget(self.backend, self.batch_tokens)
            score = scoring.batch_scorer(self.backend)
            costs = [self.backend.cost(trace) for trace in traces]
            rewards: dict[int, StepRewards] = {}
            for batch in scoring.form_batches(traces, costs, budget):
                members = [traces[i] for i in batch]
                for i, trace, scores in zip(batch, members, score(members), strict=True):
                    rewards[i] = self._read(trace, scores)
            forget = getattr(self.backend, "forget_encodings", None)
            if forget is not None:
                forget()
        return [rewards[i] for i in range(len(traces))]

    def _read(self, trace: Trace, scores: StepScores) -> StepRewards:
        row = join_scores(trace, scores)
        if row.unscored:
            return StepRewards(None, unscored=row.unscored)
        if self._readout == "vote":
            return _vote(row)
        ((_, values),) = first_error.readouts([row], EvalProtocol(self._readout, "oracle"))
        return StepRewards(tuple(float(value) for value in values[0]))

    def reward(self, row: StepRewards) -> float | None:
        """Return the completion's reward; None where it is unscored, the guard's floor where it was refused."""
        if row.values is None:
            return None
        if row.refused:
            return self.guard.floor
        facts = self.backend.facts
        probability = facts.kind in ("prob", "verdict")
        return dense_rewards.aggregate(row.values, self.aggregation, self.temperature, facts.beta or 1.0, probability)

    def step_credits(self, row: StepRewards) -> list[float] | None:
        """Return what the last token of each step gets; None where the completion is unscored."""
        if row.values is None:
            return None
        if row.refused:  # the floor as it is, at the last token where there is one
            return list(row.values[: len(row.token_ends)])
        return dense_rewards.step_credits(row.values, self.placement, self.temperature)

    def token_rewards(self, row: StepRewards, length: int) -> list[float] | None:
        """Return one reward a token, 0 where no step ends; None where the completion is unscored.

        Args:
            row: From `step_rewards`.
            length: Number of the completion's tokens, those after its end included.
        """
        credits_of_steps = self.step_credits(row)
        return None if credits_of_steps is None else dense_rewards.place(credits_of_steps, row.token_ends, length)


def _vote(row: ScoredTrace) -> StepRewards:
    """Return for each step the share of a critic's critiques that find no error up to it."""
    verdicts = [verdict for verdict in row.verdicts if verdict is not None]
    if not verdicts:
        return StepRewards(None, unscored="no critique could be read")
    shares = [np.mean([verdict < 0 or verdict > step for verdict in verdicts]) for step in range(row.steps)]
    return StepRewards(tuple(map(float, shares)))


_PRM_OPTIONS = [f.name for f in fields(Prm) if f.name not in ("backend", "_lock")]
_OF_RUNS = (*unused_options.DATA, "dry_run", "max_cost", "ref_cache", "model")
"""Options of `prmbench eval` that mean nothing without a run: there is no data, no journal and no end."""
_MODEL_OPTIONS = [f.name for f in fields(ModelConfig) if f.name not in (*_OF_RUNS, *_PRM_OPTIONS)]


def open_prm(model: str, **options: Any) -> Prm:
    """Load a reward model for a trainer.

    Args:
        model: Hub id, folder or baseline, as `prmbench eval --model` takes it.
        **options: The options of `Prm` (policy_tokenizer: a tokenizer or its name; split, readout, aggregation,
            temperature, placement, guard, problem, batch_tokens), and those of `ModelConfig`, which are the flags of
            `prmbench eval` that choose the model: ref_model, backend, dtype, device, template ...

    Raises:
        UserError: An option does not exist, or the model cannot be loaded.
    """
    check_names(options, [*_PRM_OPTIONS, *_MODEL_OPTIONS], "open_prm: unknown option")
    if model in NEED_LABELS:
        raise UserError(f"model {model}: reads labels, and a policy's completions have none")
    own = {name: options.pop(name) for name in _PRM_OPTIONS if name in options}
    if isinstance(own.get("policy_tokenizer"), str):
        own["policy_tokenizer"] = load_tokenizer(own["policy_tokenizer"])
    config = from_mapping(ModelConfig, {"model": model, **options}, OPTIONS)
    return Prm(load_backend(config), **own)


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a hub id or folder. Raises UserError where it cannot be loaded."""
    from transformers import AutoTokenizer

    from prmbench.engines.loading import errors_in_one_line

    check_model_path(name, option="policy_tokenizer")
    with errors_in_one_line(name, "has no tokenizer that can be loaded"):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(name)
    return tokenizer
