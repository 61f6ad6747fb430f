"""The miniature world: the oracle on hand-made cases, determinism, disjoint splits, and the model's tokens."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
import torch

from prmbench.config import RolloutConfig
from prmbench.core.records import Trace, UserError
from prmbench.data import rollouts
from prmbench.data.rollouts import Rollout
from prmbench.engines import encoding, hf
from prmbench.engines.completion_encoding import encode_completion
from prmbench.engines.generation import Sampling
from prmbench.sampling import completions, monte_carlo
from prmbench.studies.miniature import arithmetic, format_shifts, tiny_model
from prmbench.verification import verifiers

PROMPT = "[plain] 7 #1 + 5 #2 * 3 #3 - 4 ?"
RIGHT = ("7 + 5 = 1", "1 * 3 = 3", "3 - 4 = 10", "Answer: 10")


# --- problems and the oracle ----------------------------------------------------------------------------


def test_values_are_modulo_eleven() -> None:
    task = arithmetic.parse_prompt(PROMPT)
    assert task == arithmetic.Problem(7, (("+", 5), ("*", 3), ("-", 4)))
    assert task.values() == (7, 1, 3, 10)
    assert task.prompt() == PROMPT
    assert arithmetic.solution_steps(task) == RIGHT


@pytest.mark.parametrize(
    ("change", "label"),
    [
        ({}, -1),
        ({0: "7 + 5 = 2"}, 0),  # the result
        ({1: "2 * 3 = 6"}, 1),  # the number it starts from
        ({1: "1 + 3 = 4"}, 1),  # the sign
        ({2: "3 - 5 = 9"}, 2),  # the operand
        ({3: "Answer: 9"}, 3),
        ({1: "Answer: 1"}, 1),  # too early
        ({3: "10 + 2 = 1"}, 3),  # an operation too many
        ({1: "1 * 3 = 3 3"}, 1),
        ({1: "1 * 3"}, 1),
        ({0: "7 + 5 = 1 , 1 * 3 = 3"}, 1),  # the first step is right; the second repeats it
        ({0: "we have 6 , then 7 + 5 = 1"}, 0),
    ],
)
def test_first_error_on_hand_made_changes(change: dict[int, str], label: int) -> None:
    steps = tuple(change.get(k, step) for k, step in enumerate(RIGHT))
    assert arithmetic.first_error(PROMPT, steps) == label


def test_nothing_is_right_after_the_answer() -> None:
    assert arithmetic.first_error(PROMPT, (*RIGHT, "Answer: 10")) == 4
    assert arithmetic.first_error(PROMPT, RIGHT[:2]) == -1


def test_a_prompt_of_another_world_is_an_error_that_quotes_it() -> None:
    with pytest.raises(UserError, match="What is 2 plus 2"):
        arithmetic.parse_prompt("What is 2 plus 2?")


def test_label_rollout_sets_first_error_outcome_answer_and_verdict() -> None:
    wrong = arithmetic.label_rollout(
        Rollout("a", PROMPT, arithmetic.completion_text((*RIGHT[:2], "3 - 4 = 9", "Answer: 9")))
    )
    assert (wrong.first_error, wrong.outcome, wrong.answer, wrong.gold, wrong.verdict) == (2, 0, "9", "10", "wrong")
    assert arithmetic.label_rollout(Rollout("a", PROMPT, arithmetic.completion_text(RIGHT))).outcome == 1
    unfinished = arithmetic.label_rollout(Rollout("a", PROMPT, arithmetic.completion_text(RIGHT[:2])))
    assert (unfinished.first_error, unfinished.outcome, unfinished.verdict) == (-1, 0, "no answer")


# --- data sets ------------------------------------------------------------------------------------------


def test_splits_never_share_a_problem_whatever_the_seeds() -> None:
    texts_by_split = {
        s: {arithmetic.make_problem(s, seed, i).text() for seed in (0, 1) for i in range(300)}
        for s in arithmetic._SPLIT_TENTHS
    }
    assert all(len(texts) > 590 for texts in texts_by_split.values())
    all_texts = [text for texts in texts_by_split.values() for text in texts]
    assert len(all_texts) == len(set(all_texts))


def test_everything_is_a_function_of_the_seed() -> None:
    seed = Random().randrange(10**6)  # a new seed each time, so that nothing holds for stored seeds only
    assert arithmetic.sft_examples(seed, 40)[30:] == [arithmetic._sft_example(seed, i) for i in range(30, 40)]
    assert arithmetic.injected_traces("test", seed, 20) == arithmetic.injected_traces("test", seed, 30)[:20]
    assert arithmetic.make_prompts("test", seed, 5) != arithmetic.make_prompts("test", seed + 1, 5)


def test_injected_traces_have_one_wrong_result_that_later_steps_follow_from() -> None:
    seed = Random().randrange(10**6)
    traces = arithmetic.injected_traces("validation", seed, 1000)  # 17 err at the rarest place, on average
    assert sum(t.first_error == -1 for t in traces) == 500
    assert {t.first_error for t in traces} == {-1, *range(7)}
    for trace in traces:
        assert arithmetic.first_error(trace.prompt, trace.steps) == trace.first_error
        equations = [arithmetic._parse_equations(step)[0] for step in trace.steps[:-1]]
        wrong = [
            k for k, (a, sign, b, result) in enumerate(equations) if arithmetic.apply_operation(a, sign, b) != result
        ]
        assert wrong == [k for k in [trace.first_error] if k is not None and k >= 0]
        assert [e[0] for e in equations[1:]] == [e[3] for e in equations[:-1]]
        assert trace.outcome == int(trace.first_error == -1)  # 11 is prime, so a single error always changes the answer


def test_sft_examples_are_right_and_in_every_format() -> None:
    examples = arithmetic.sft_examples(1, 400)
    labelled = [arithmetic.label_rollout(r) for r in examples]
    assert all((r.first_error, r.outcome) == (-1, 1) for r in labelled)
    styles = [r.prompt.split("]")[0][1:] for r in examples]
    assert set(styles) == {"plain", *format_shifts.SHIFTS}
    assert 0.3 < 1 - styles.count("plain") / 400 < 0.5


def test_on_policy_traces_are_half_right_half_wrong_and_one_of_a_kind_per_prompt() -> None:
    wrong = (*RIGHT[:2], "3 - 4 = 9", "Answer: 9")
    texts = [arithmetic.completion_text(steps) for steps in (RIGHT, RIGHT, wrong, wrong, RIGHT[:3])]
    texts += [texts[0].replace("Step 2", "Step 3")]
    sampled = [Rollout(f"{g}/{k}", PROMPT, text, group=str(g)) for g in range(3) for k, text in enumerate(texts)]
    traces = arithmetic.on_policy_traces(sampled, "val", 4)
    assert [(t.id, t.first_error, t.subset) for t in traces] == [
        ("0/0", -1, "val"),
        ("1/0", -1, "val"),
        ("0/2", 2, "val"),
        ("1/2", 2, "val"),
    ]
    with pytest.raises(UserError, match="6 traces of 8"):
        arithmetic.on_policy_traces(sampled, "val", 8)


# --- the model and its tokens ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> hf.HFEngine:
    folder = tiny_model.build(tmp_path_factory.mktemp("miniature") / "init", 0)
    return hf.load(str(folder), "lm", hf.Placement("cpu", "float32"))


def test_model_depends_on_its_seed_alone(engine: hf.HFEngine, tmp_path: Path) -> None:
    torch.manual_seed(123)
    before = torch.get_rng_state()
    again = hf.load(str(tiny_model.build(tmp_path / "a", 0)), "lm", hf.Placement("cpu", "float32"))
    other = hf.load(str(tiny_model.build(tmp_path / "b", 1)), "lm", hf.Placement("cpu", "float32"))
    assert torch.equal(torch.get_rng_state(), before)
    weights = [e.model.model.embed_tokens.weight for e in (engine, again, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert engine.weight_bytes < 500_000


def test_every_text_of_the_world_is_in_the_vocabulary_and_decodes_to_itself(engine: hf.HFEngine) -> None:
    tokenizer = engine.tokenizer
    for example in arithmetic.sft_examples(0, 300):
        text = f"{example.prompt}{tokenizer.eos_token}{example.completion}"
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert tokenizer.unk_token_id not in ids, example
        assert tokenizer.decode(ids) == text
    assert len(tokenizer) == len(tiny_model.vocabulary()) == len(set(tiny_model.vocabulary()))


def test_a_plain_step_is_six_tokens_and_its_heading_belongs_to_it(engine: hf.HFEngine) -> None:
    encoded = encoding.encode_chat(engine.tokenizer, Trace("t", PROMPT, RIGHT))
    assert [end - begin for begin, end in encoded.spans] == [6, 6, 6, 3]
    begin, end = encoded.spans[1]
    assert engine.tokenizer.decode(encoded.ids[begin:end]) == "\n\nStep 2: 1 * 3 = 3"


def test_a_sampled_completion_is_scored_and_trained_on_as_sampled(engine: hf.HFEngine) -> None:
    """The tokens sampled, the trace's tokens and the training tokens are the same; the verifier agrees."""
    config = RolloutConfig(group_size=1, split="numbered", max_new_tokens=60, verifier="exact")
    prompts = arithmetic.make_prompts("test", 0, 3)
    texts = [
        arithmetic.completion_text(arithmetic.solution_steps(arithmetic.parse_prompt(p.text), wrong_step=w, offset=1))
        for p, w in zip(prompts, (-1, 0, 3), strict=True)
    ]
    claims = [verifiers.Claim(text, p.gold, "exact") for p, text in zip(prompts, texts, strict=True)]
    with verifiers.Verifier(1) as verifier:
        assert [v.outcome for v in verifier.check(claims)] == [1, 0, 0]
        sampled = list(completions.sample_completions(engine, prompts, config, verifier))
    assert [r.id for r in sampled] == [f"{p.id}/0" for p in prompts]
    for prompt, text in zip(prompts, texts, strict=True):
        row = Rollout("x", prompt.text, text, steps=rollouts.split_completion(text, "numbered"))
        scored = encoding.encode_chat(engine.tokenizer, rollouts.to_trace(row))
        trained = encode_completion(engine.tokenizer, prompt.text, text)
        tokens = tuple(engine.tokenizer(text, add_special_tokens=False)["input_ids"])
        assert scored.ids[scored.start : scored.ends[-1]] == tokens
        assert trained.ids[trained.start : trained.stop] == (*tokens, engine.tokenizer.eos_token_id)


def test_prefix_success_counts_what_follows_each_prefix(engine: hf.HFEngine) -> None:
    trace = Trace("t", PROMPT, RIGHT[:2])
    seen: list[str] = []

    def every_other(_: Trace, text: str) -> bool:
        seen.append(text)
        return len(seen) % 2 == 0 or len(seen) > 4

    (valued,) = monte_carlo.prefix_success(engine, [trace], every_other, 4, Sampling(max_new_tokens=8), seed=3)
    assert valued == replace(trace, step_labels=(0.5, 1.0))
    assert [text.startswith(arithmetic.completion_text(RIGHT[:1])) for text in seen] == [True] * 8
    assert [text.startswith(arithmetic.completion_text(RIGHT[:2])) for text in seen[4:]] == [True] * 4
    assert len(set(seen)) == 8  # continuations differ, so their seeds differ
    again: list[str] = []
    other = Trace("u", PROMPT, RIGHT)
    list(
        monte_carlo.prefix_success(
            engine, [other, trace], lambda _, text: bool(again.append(text)), 4, Sampling(max_new_tokens=8), seed=3
        )
    )
    assert again[-8:] == seen  # other traces of the call change nothing


def test_is_solved_reads_the_last_step() -> None:
    trace = Trace("t", PROMPT, RIGHT)
    assert arithmetic.is_solved(trace, arithmetic.completion_text(RIGHT))
    assert not arithmetic.is_solved(trace, arithmetic.completion_text((*RIGHT[:3], "Answer: 1")))
    assert not arithmetic.is_solved(trace, arithmetic.completion_text(RIGHT[:3]))
