"""Values of steps: where steps begin among the tokens, both kinds of values, advantages by hand, whole runs."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from rl_fixtures import SGD, column, lines, options, rows, run, words

from prmbench.config.distrl_options import DistRLConfig, resolve
from prmbench.core.records import UserError
from prmbench.data.rollouts import Rollout, split_completion
from prmbench.engines.completion_encoding import encode_continuation
from prmbench.engines.generation import SampledTokens, Sampling
from prmbench.engines.hf import Placement
from prmbench.objectives import step_advantages
from prmbench.rl import advantages, distrl, setup, step_values
from prmbench.rl.resume import DRAWN
from prmbench.rl.setup import Job
from prmbench.rl.token_rows import Row
from prmbench.training.model import ModelSetup, open_runner
from prmbench.verification.verifiers import Verifier

THREE_STEPS = "Well.\n\nx\n\nAnswer: 1\n"
"""Tokens: `Well.\\n\\n` (closes the first step), x, \\n, \\n, `Answer: 1\\n`."""


def _ids(text: str) -> tuple[int, ...]:
    return tuple(words()(text, add_special_tokens=False)["input_ids"])


def _row(text: str, outcome: int, group: int = 0, k: int = 0, *, masked: bool = False) -> Row:
    """A finished completion of the prompt `xx`, whose answer is 0 (p0), or `xy`, whose answer is 1 (p1)."""
    prompt = ("xx", "xy")[group]
    steps = split_completion(text, "paragraph")
    rollout = Rollout(f"{group}/p{group}/{k}", prompt, text, steps, outcome, group=f"{group}/p{group}", gold=str(group))
    before = _ids(f"<|user|>{prompt}<|assistant|>")
    return Row(rollout, (*before, *_ids(text), 1), len(before), group, masked=masked)


def _job(start: Path, prompts: Path, out: Path, **more: Any) -> Job:
    return setup.prepare(setup.resolved(options(start, prompts, out, **more)))


# --- where steps begin ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "starts"),
    [
        (THREE_STEPS, (0, 1, 2)),
        ("Answer: 1\n", (0,)),
        ("xy\n\nyx\n\nAnswer: 0\n", (0, 2, 6)),
        ("x\n\n\n\nAnswer: 0\n", (0, 1)),  # the blank lines belong to the later step
        ("x\n\nx\n\nx", (0, 1, 4)),  # equal steps are not the same place
        ("", (0,)),
    ],
)
def test_the_first_token_of_every_step(
    text: str, starts: tuple[int, ...], start: Path, prompts: Path, tmp_path: Path
) -> None:
    job = _job(start, prompts, tmp_path / "out", arm="vineppo")
    assert step_values.with_starts(job, _row(text, 1)).step_starts == starts


def test_steps_that_are_not_the_texts_leave_one_step(start: Path, prompts: Path, tmp_path: Path) -> None:
    job = _job(start, prompts, tmp_path / "out", arm="vineppo")
    row = _row(THREE_STEPS, 1)
    other = replace(row, rollout=replace(row.rollout, steps=("a", "b")))
    assert step_values.with_starts(job, other).step_starts == (0,)


# --- advantages -------------------------------------------------------------------------------------------


def test_a_tokens_advantage_is_the_change_of_its_step() -> None:
    values = torch.tensor([[0.25, 0.5, 0.0, 1.0], [0.5, 0.0, 0.0, 0.0]])
    step = torch.tensor([[0, 0, 1, 2, 2], [0, 0, 0, 0, 0]])
    mask = torch.tensor([[True] * 5, [True, True, False, False, False]])
    expected = [[0.25, 0.25, -0.5, 1.0, 1.0], [-0.5, -0.5, 0.0, 0.0, 0.0]]
    assert step_advantages(values, step, mask).tolist() == expected


def _valued() -> Any:
    """Two completions of one prompt: right by way of a doubtful step, and wrong; the prompt's value is 0.5."""
    right = replace(_row(THREE_STEPS, 1), step_starts=(0, 1, 2), step_values=(0.5, 0.75, 0.25))
    wrong = replace(_row("Answer: 0\n", 0, k=1), step_starts=(0,), step_values=(0.5,))
    return rows(right, wrong)


CHANGES = [[0.25, -0.5, 0.75, 0.75, 0.75, 0.75], [-0.5, -0.5, 0.0, 0.0, 0.0, 0.0]]
"""The end of turn belongs to the last step, after which the value is the outcome."""


def test_vineppo_takes_the_changes_alone() -> None:
    result = advantages.compute(_valued(), None, resolve(DistRLConfig(arm="vineppo", preset="paper", whiten=False)))
    assert result.tokens.tolist() == CHANGES
    assert (result.candidates.shape, dict(result.metrics)) == ((8, 0), {})


def test_grpo_vps_adds_them_to_the_outcomes_advantage() -> None:
    config = resolve(DistRLConfig(arm="grpo_vps", preset="paper", whiten=False, step_weight=2.0))
    result = advantages.compute(_valued(), None, config)
    outcome = torch.tensor([[1.0] * 6, [-1.0] * 2 + [0.0] * 4])
    assert torch.allclose(result.tokens, outcome + 2.0 * torch.tensor(CHANGES), atol=1e-5)
    squares = sum(v * v for line in CHANGES for v in line)
    assert result.metrics["gae_outcome_ratio"] == pytest.approx(2.0 * (squares / 8) ** 0.5, rel=1e-4)


def test_both_whiten_the_changes_over_the_tokens() -> None:
    flat = torch.tensor([*CHANGES[0], *CHANGES[1][:2]])
    expected = (flat - flat.mean()) / flat.std()
    vine = advantages.compute(_valued(), None, resolve(DistRLConfig(arm="vineppo", preset="paper")))
    assert torch.allclose(vine.tokens[_valued().mask], expected, atol=1e-4)
    vps = advantages.compute(_valued(), None, resolve(DistRLConfig(arm="grpo_vps", preset="paper")))
    outcome = torch.tensor([1.0] * 6 + [-1.0] * 2)
    assert torch.allclose(vps.tokens[_valued().mask], expected + outcome, atol=1e-4)


def test_a_masked_completion_learns_nothing() -> None:
    both = _valued()
    hidden = rows(both.rows[0], replace(both.rows[1], masked=True, step_values=()))
    result = advantages.compute(hidden, None, resolve(DistRLConfig(arm="vineppo", preset="paper", whiten=False)))
    assert result.tokens.tolist() == [CHANGES[0], [0.0] * 6]


# --- continuations ----------------------------------------------------------------------------------------


class Scripted:
    """Continues with an answer by its place in the request's seeds; remembers what it was asked."""

    def __init__(self) -> None:
        self.tokenizer = words()
        self.max_tokens: int | None = None
        self.stops = frozenset({1})
        self.batch_tokens = 40
        self.asked: list[tuple[tuple[int, ...], int, int]] = []

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        limits: Sequence[int],
        seeds: Sequence[int],
        sampling: Sampling,
        stops: Collection[int],
    ) -> list[SampledTokens]:
        """Answers 1 after a prefix with a y, and else 1, 0, 0, 0 in turn."""
        assert (sampling.temperature, sampling.top_p) == (1.0, 1.0)
        assert 1 in stops
        replies = []
        for prompt, limit, seed in zip(prompts, limits, seeds, strict=True):
            earlier = sum(tuple(prompt) == p for p, _, _ in self.asked)
            self.asked.append((tuple(prompt), limit, seed))
            answer = "1" if _ids("y")[0] in prompt[-1:] or earlier % 4 == 0 else "0"
            replies.append(SampledTokens((*_ids(f"\n\nAnswer: {answer}\n"), 1), ()))
        return replies


def test_a_continuations_value_is_the_share_that_ends_right(start: Path, prompts: Path, tmp_path: Path) -> None:
    job = _job(start, prompts, tmp_path / "out", arm="vineppo", continuations=4, max_new_tokens=12)
    texts = [(THREE_STEPS, 1), ("y\n\nAnswer: 0\n", 0)]
    drawn = [_row(text, outcome, 1, k) for k, (text, outcome) in enumerate(texts)]
    cut = _row("Well.\n\nx", 0, 1, 2, masked=True)
    sampler = Scripted()
    step = SimpleNamespace(rows=(*drawn, cut), tally={"tokens": 1.0})
    with Verifier(1) as verifier:
        rows_ = [step_values.with_starts(job, row) for row in step.rows]
        prefixes = step_values._prefixes(rows_)
        values, tokens = step_values.continuation_values(job, rows_, prefixes, sampler, verifier)
    right, wrong, masked = step_values._with_values(rows_, list(zip(prefixes, values, strict=True)))
    assert right.step_values == (0.25, 0.25, 0.25)
    assert wrong.step_values == (0.25, 1.0)  # the prompt's value is one for the group
    assert masked.step_values == ()
    # The prompt, two places in the first completion, one in the second: four continuations of four tokens each.
    assert len(sampler.asked) == len({seed for _, _, seed in sampler.asked}) == 16
    assert tokens == 16 * 4
    prompt = right.ids[: right.start]
    by_prefix = {prefix[len(prompt) :]: limit for prefix, limit, _ in sampler.asked}
    assert by_prefix == {(): 12, _ids("Well.\n\n"): 11, _ids("Well.\n\nx"): 10, _ids("y"): 11}


def test_a_value_that_is_unknown_is_the_one_before_it(start: Path, prompts: Path, tmp_path: Path) -> None:
    job = _job(start, prompts, tmp_path / "out", arm="vineppo")
    (row,) = (step_values.with_starts(job, _row(THREE_STEPS, 1)),)
    prefixes = step_values._prefixes([row])
    (valued,) = step_values._with_values([row], list(zip(prefixes, [0.5, None, 0.75], strict=True)))
    assert valued.step_values == (0.5, 0.5, 0.75)


# --- the gold answer's probability ------------------------------------------------------------------------


def test_an_answers_value_is_its_probability_after_the_prefix(start: Path, prompts: Path, tmp_path: Path) -> None:
    text = "\nxy{step}x{gold}\n"
    job = _job(start, prompts, tmp_path / "out", arm="grpo_vps", answer_text=text)
    row = step_values.with_starts(job, _row(THREE_STEPS, 1, group=1))
    prefixes = step_values._prefixes([row])
    runner = open_runner(str(start), None, "lm", ModelSetup(Placement("cpu", "float32")))
    values, tokens = step_values.answer_values(job, [row], prefixes, runner, 64)
    model = transformers.AutoModelForCausalLM.from_pretrained(start).eval()
    expected, read = [], 0
    for step, length in enumerate((0, 1, 2)):
        lead = f"\nxy{step + 1}x" if step else "xy1x"  # nothing stands before the first step
        ids = [*row.ids[: row.start + length], *_ids(lead), *_ids("1")]
        logits = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        expected.append(float(logits[len(ids) - 2, ids[-1]].detach().exp()))
        read += len(ids)
    assert values == pytest.approx(expected, rel=1e-4)
    assert len(set(values)) == 3
    assert tokens == read


def test_the_tokens_of_an_answer_are_told_from_its_lead() -> None:
    before, answer = encode_continuation(words(), "xy", "yx")
    assert (before, answer) == (_ids("xy"), _ids("yx"))
    merged = encode_continuation(words(), "xAnswer: ", "1\n")  # one token over the border belongs to the answer
    assert merged == (_ids("x"), _ids("Answer: 1\n"))


@pytest.mark.parametrize(
    ("verifier", "gold", "text"),
    [("math", "so 6 x 7 #### 42", "42"), ("math", "\\boxed{\\frac12}", "\\frac{1}{2}"), ("exact", "B", "B")],
)
def test_the_text_of_a_gold_answer(verifier: str, gold: str, text: str) -> None:
    prompt: Any = SimpleNamespace(gold=gold, verifier=verifier)
    drawing: Any = SimpleNamespace(verifier="auto")
    assert setup.gold_text(prompt, drawing) == text


# --- whole runs -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arm", ["vineppo", "grpo_vps"])
def test_a_run_counts_its_cost_and_stores_its_values(arm: Any, start: Path, prompts: Path, tmp_path: Path) -> None:
    more = {"arm": arm, "continuations": 2, "answer_text": "\nAnswer: {gold}\n", "split": "line", **SGD}
    if arm == "grpo_vps":
        del more["continuations"]
    out = tmp_path / "out"
    run(options(start, prompts, out, **more))
    run(options(start, prompts, tmp_path / "grpo", arm="grpo", **SGD, split="line"))
    assert all(count > 0 for count in column(out, "value_prefixes"))
    assert all(a > b for a, b in zip(column(out, "value_tokens"), column(out, "value_prefixes"), strict=True))
    assert column(tmp_path / "grpo", "value_tokens") == [None, None]
    assert column(out, "completions")[0] == column(tmp_path / "grpo", "completions")[0]
    assert column(out, "grad_norm")[0] != pytest.approx(column(tmp_path / "grpo", "grad_norm")[0], rel=1e-3)
    stored = [json.loads(line) for line in (out / DRAWN / "0.jsonl").read_text().splitlines()]
    assert {len(line["step_values"]) - len(line["step_starts"]) for line in stored[1:]} == {0}
    assert stored[0]["tally"]["value_tokens"] == lines(out)[-1]["value_tokens"]


def test_an_arm_without_values_has_its_old_identity(start: Path, prompts: Path, tmp_path: Path) -> None:
    used = {"vineppo": {"step_values", "continuations"}, "grpo_vps": {"step_values", "step_weight", "answer_text"}}
    for arm in ("grpo", "distrl_ipvrm", *used):
        identity = _job(start, prompts, tmp_path / "out", arm=arm).identity
        names = {"step_values", "step_weight", "continuations", "answer_text"} & identity.keys()
        assert names == used.get(arm, set())


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"arm": "distrl_ipvrm", "step_values": "answer"}, "--step-values answer: takes no reward model"),
        ({"arm": "grpo_vps", "answer_text": "so"}, "--answer-text 'so': has no {gold}"),
        ({"arm": "vineppo", "first_rollouts": "prompts"}, "--first-rollouts: their steps get no values"),
        ({"arm": "grpo_vps", "verifier": "math"}, "--step-values answer: reads the probability of the gold answer"),
    ],
)
def test_what_does_not_go_together(more: dict[str, Any], message: str, start: Path, tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    gold = "\\frac{1}{" if more.get("verifier") == "math" else "1"
    path.write_text(json.dumps({"id": "a", "prompt": "xx", "answer": gold}) + "\n")
    if "first_rollouts" in more:
        more = {**more, "first_rollouts": path}
    with pytest.raises(UserError, match="^" + message.replace("{", r"\{")):
        distrl.train_distrl(options(start, path, tmp_path / "out", **more))
