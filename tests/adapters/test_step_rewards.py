"""Prm: the values are those that `prmbench score` gives, for every backend; guards, batches and refusals."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import sleep
from typing import Any

import pytest
import torch
from conftest import save_model
from family_checkpoints import TAG, by_separator, by_shepherd, llama_tokens, mistral_tokens, save
from length_prm import LengthBackend, length_prm, value
from token_kinds import byte_bpe, sentencepiece_bpe, smollm2

from prmbench.adapters import Guard, Prm, open_prm
from prmbench.backends import Facts
from prmbench.core.records import StepScores, Trace, UserError

PROBLEM = "What is 2 + 3?"
STEPS = ("We add 2 and 3.", "That is ∠ 5 – é.", "The answer is \\boxed{5}.")
TEXT = "\n\n".join(STEPS)


def sampled(tokenizer: Any, text: str) -> list[int]:
    return [*tokenizer.encode(text, add_special_tokens=False), tokenizer.eos_token_id]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Options of open_prm for a tiny checkpoint of every kind of backend."""
    root = tmp_path_factory.mktemp("prms")
    lm, reference = (str(save_model(root / name, seed)) for seed, name in enumerate(("lm", "reference")))
    heads = save_model(root / "heads", 2, "AutoModelForTokenClassification", num_labels=1)
    separated = save(
        root / "cls", "Qwen2ForTokenClassification", llama_tokens(), 3, backend="token_cls", separator="\n\n"
    )
    tagged = save(root / "tag", "LlamaForCausalLM", mistral_tokens(), 4, backend="tag_lm", tag=TAG, good="+", bad="-")
    return {
        "implicit": {"model": lm, "backend": "implicit", "ref_model": reference},
        "endo": {"model": lm, "backend": "endo"},
        "value_head": {"model": str(heads), "backend": "value_head"},
        "token_cls": {"model": str(separated)},
        "tag_lm": {"model": str(tagged)},
        "baseline": {"model": "random"},
    }


@pytest.mark.parametrize("kind", ["implicit", "endo", "value_head", "token_cls", "tag_lm", "baseline"])
@pytest.mark.parametrize("tokenizer", [byte_bpe, sentencepiece_bpe])
def test_values_are_the_backends_scores_whatever_the_policys_tokenizer(
    models: dict[str, dict[str, Any]], kind: str, tokenizer: Any
) -> None:
    prm = open_prm(**models[kind], policy_tokenizer=tokenizer())
    completions = [TEXT, "One step, no more.", "\n\n".join(STEPS[:2])]
    rows = prm.step_rewards([PROBLEM] * 3, [sampled(tokenizer(), text) for text in completions])
    for (values, ends), text in zip(rows, completions, strict=True):
        assert values is not None
        assert len(values) == len(ends) == len(text.split("\n\n"))
        if kind != "baseline":  # it seeds by the trace's id
            steps = tuple(text.split("\n\n"))
            (direct,) = prm.backend.score([Trace("t", PROBLEM, steps)])
            assert values == pytest.approx(direct.values, rel=1e-4, abs=1e-5)


def test_values_equal_a_slow_computation_of_transformers_alone(models: dict[str, dict[str, Any]]) -> None:
    trace = Trace("t", PROBLEM, STEPS)
    for kind, slow in (("token_cls", by_separator), ("tag_lm", by_shepherd)):
        prm = open_prm(**models[kind], policy_tokenizer=smollm2())
        ((values, _),) = prm.step_rewards([PROBLEM], [sampled(smollm2(), TEXT)])
        assert values == pytest.approx(slow(Path(models[kind]["model"]), trace), rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("tokenizer", [byte_bpe, sentencepiece_bpe])
def test_steps_end_where_their_text_ends_in_the_policys_tokens(tokenizer: Any) -> None:
    t = tokenizer()
    ids = sampled(t, TEXT)
    ((values, ends),) = length_prm(t).step_rewards([PROBLEM], [[*ids, 7, 7, t.pad_token_id]])
    assert values == pytest.approx([value(step) for step in STEPS])
    for step, end in zip(STEPS, ends, strict=True):
        assert t.decode(ids[: end + 1]).rstrip().endswith(step)
        assert not t.decode(ids[:end]).rstrip().endswith(step)


def test_ids_may_be_tensors_and_prompts_rendered_token_ids() -> None:
    t = byte_bpe()
    turn = [{"role": "user", "content": PROBLEM}]
    prompt = torch.tensor([t.pad_token_id, *t.apply_chat_template(turn, return_dict=False)])
    prm = length_prm(t)
    prm.step_rewards([prompt], [torch.tensor(sampled(t, TEXT))])
    assert isinstance(prm.backend, LengthBackend)
    assert [trace.prompt for batch in prm.backend.batches for trace in batch] == [PROBLEM]


@pytest.mark.parametrize("as_given", [list, torch.tensor])
def test_one_completion_gives_its_values_and_token_ends(as_given: Any) -> None:
    t = byte_bpe()
    turn = [{"role": "user", "content": PROBLEM}]
    prompt, ids = t.apply_chat_template(turn, return_dict=False), sampled(t, TEXT)
    values, ends = length_prm(t).step_rewards(as_given(prompt), as_given(ids))
    assert (values, ends) == tuple(length_prm(t).step_rewards([PROBLEM], [ids])[0])
    assert length_prm(t).step_rewards([], []) == []


def test_many_completions_are_scored_in_batches_of_limited_size_and_equal_ones_once() -> None:
    texts = [f"{'x' * length}\n\nend" for length in (5, 40, 5, 17, 40, 9)]
    prm = length_prm(batch_tokens=50)
    rows = prm.score_texts([PROBLEM] * 6, texts)
    assert [row.values for row in rows] == [(value("x" * n), value("end")) for n in (5, 40, 5, 17, 40, 9)]
    assert isinstance(prm.backend, LengthBackend)
    sizes = [[sum(map(len, trace.steps)) for trace in batch] for batch in prm.backend.batches]
    assert sorted(size for batch in sizes for size in batch) == [8, 12, 20, 43]
    assert all(len(batch) * max(batch) <= 50 for batch in sizes)
    assert max(map(len, sizes)) > 1


def test_threads_are_scored_one_after_the_other() -> None:
    class Alone(LengthBackend):
        """Counts those that score at the same time."""

        inside, most = 0, 0

        def score(self, traces: Sequence[Trace]) -> Iterator[StepScores]:
            self.inside += 1
            self.most = max(self.most, self.inside)
            sleep(0.002)
            yield from super().score(traces)
            self.inside -= 1

    backend = Alone()
    prm = Prm(backend)
    with ThreadPoolExecutor(8) as pool:
        rows = list(pool.map(lambda n: prm.score_texts([PROBLEM], ["x" * n])[0].values, range(1, 30)))
    assert rows == [(1 / n,) for n in range(1, 30)]
    assert backend.most == 1


def test_encodings_are_forgotten_after_a_call(models: dict[str, dict[str, Any]]) -> None:
    prm = open_prm(**models["token_cls"])
    prm.score_texts([PROBLEM] * 2, [TEXT, "One."])
    backend: Any = prm.backend
    assert backend.encode.cache_info().currsize == 0


# --- unscored and refused ---


def test_what_cannot_be_scored_is_none_and_not_zero() -> None:
    prm = length_prm(byte_bpe())
    rows = prm.step_rewards([PROBLEM] * 3, [sampled(byte_bpe(), text) for text in ("unscorable", "fine", "")])
    assert [row.values for row in rows] == [None, (0.25,), None]
    assert [row.unscored for row in rows] == ["it says so", "", "empty"]
    assert [prm.reward(row) for row in rows] == [None, 0.25, None]
    assert [prm.token_rewards(row, 20) is None for row in rows] == [True, False, True]


def test_a_score_that_is_no_number_is_none() -> None:
    class Nan(LengthBackend):
        """Its second step has no number."""

        def score(self, traces: Sequence[Trace]) -> Iterator[StepScores]:
            for trace in traces:
                yield StepScores(trace.id, (0.5, math.nan), (1, 1))

    ((values, _),) = Prm(Nan()).score_texts([PROBLEM], ["a\n\nb"])
    assert values is None


REFUSALS = [
    ("", {}, "empty"),
    (" \n\n \r\n", {}, "empty"),
    ("one", {"min_steps": 2}, "1 steps of at least 2"),
    ("one\n\ntwo", {"min_steps": 2}, ""),
    ("no box\n\nhere", {"require_answer": True}, "no final answer"),
    ("so\n\n\\boxed{4}", {"require_answer": True}, ""),
    ("so the answer is 4", {"require_answer": True}, ""),
    ("cut \\boxed{4", {"require_answer": True}, "no final answer"),
]


@pytest.mark.parametrize(("text", "guard", "reason"), REFUSALS)
@pytest.mark.parametrize("floor", [None, 0.0, -1.0])
def test_refused_completions_get_the_floor_or_none(
    text: str, guard: dict[str, Any], reason: str, floor: float | None
) -> None:
    prm = length_prm(byte_bpe(), guard=Guard(**guard, floor=floor), aggregation="prod")
    ids = sampled(byte_bpe(), text)
    (row,) = prm.step_rewards([PROBLEM], [ids])
    if not reason:
        assert (row.unscored, row.refused) == ("", "")
        assert row.values == tuple(value(step) for step in text.split("\n\n"))
    elif floor is None:
        assert (row.values, row.unscored, row.refused) == (None, reason, "")
        assert prm.reward(row) is None
    else:
        assert (row.values, row.unscored, row.refused) == ((floor,), "", reason)
        assert prm.reward(row) == floor
        assert prm.token_rewards(row, len(ids) + 1) == [*[0.0] * (len(ids) - 1), floor, 0.0]


def test_a_completion_without_any_token_has_the_floor_but_no_token_to_put_it() -> None:
    prm = length_prm(byte_bpe(), guard=Guard(floor=-1.0))
    (row,) = prm.step_rewards([PROBLEM], [[]])
    assert (prm.reward(row), prm.token_rewards(row, 0)) == (-1.0, [])


def test_a_heading_alone_is_no_step() -> None:
    (row,) = length_prm(split="numbered").score_texts([PROBLEM], ["Step 1:"])
    assert (row.values, row.unscored) == (None, "no step")


# --- readouts ---


class Sums(LengthBackend):
    """Log-ratios: the step's length, over two tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.facts = Facts(kind="logratio", input_format="none", beta=5.0)

    def score(self, traces: Sequence[Trace]) -> Iterator[StepScores]:
        for trace in traces:
            yield StepScores(trace.id, tuple(float(len(step)) for step in trace.steps), (2,) * len(trace.steps))


@pytest.mark.parametrize(
    ("readout", "expected"),
    [
        (None, (1, 3, 2)),
        ("step_sum", (1, 3, 2)),
        ("prefix_sum", (1, 4, 6)),
        ("step_mean", (0.5, 1.5, 1)),
        ("prefix_mean", (0.5, 1, 1)),
    ],
)
def test_readouts_of_log_ratios_by_hand(readout: Any, expected: tuple[float, ...]) -> None:
    ((values, _),) = Prm(Sums(), readout=readout).score_texts([PROBLEM], ["a\n\nabc\n\nab"])
    assert values == pytest.approx(expected)


def test_differences_of_prefix_sums_are_the_step_sums_at_the_steps_ends() -> None:
    t = byte_bpe()
    prm = Prm(Sums(), policy_tokenizer=t, readout="prefix_sum", placement="difference")
    ids = sampled(t, "a\n\nabc")
    (row,) = prm.step_rewards([PROBLEM], [ids])
    rewards = prm.token_rewards(row, len(ids))
    assert rewards is not None
    assert [rewards[end] for end in row.token_ends] == [1, 3]
    assert sum(rewards) == 4


def test_a_critics_value_is_the_share_of_critiques_without_an_error_so_far() -> None:
    class Critic(LengthBackend):
        """Four votes, of which one cannot be read."""

        def __init__(self, *verdicts: int | None) -> None:
            super().__init__()
            self.facts, self.verdicts = Facts(kind="verdict", input_format="none"), verdicts

        def score(self, traces: Sequence[Trace]) -> Iterator[StepScores]:
            for trace in traces:
                yield StepScores(trace.id, verdicts=self.verdicts)

    ((values, _),) = Prm(Critic(-1, 1, None, 0)).score_texts([PROBLEM], ["a\n\nb\n\nc"])
    assert values == pytest.approx((2 / 3, 1 / 3, 1 / 3))
    (row,) = Prm(Critic(None, None)).score_texts([PROBLEM], ["a"])
    assert (row.values, row.unscored) == (None, "no critique could be read")


# --- mistakes ---


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"aggregation": "product"}, "aggregation 'product': choose from soft_min, min, mean, last, sum, prod"),
        ({"split": "sentence"}, "split 'sentence': choose from paragraph, line, numbered"),
        ({"placement": "end"}, "placement 'end': choose from"),
        ({"readout": "prefix_sum"}, "readout 'prefix_sum': choose from as_is"),
        ({"temperature": 0.0}, "temperature 0.0: use a number above 0"),
        ({"temperature": math.nan}, "temperature nan"),
        ({"tempratur": 1.0}, "open_prm: unknown option 'tempratur'; the nearest is 'temperature'"),
        ({"dtype": "int8"}, "dtype"),
        ({"max_cost": 1.0}, "open_prm: unknown option 'max_cost'"),
        ({"dry_run": True}, "open_prm: unknown option 'dry_run'"),
        ({"guard": Guard(floor=math.nan)}, "guard: floor nan: give a finite number"),
        ({"model": "gold"}, "gold: reads labels"),
        ({"model": "outcome-oracle"}, "outcome-oracle: reads labels"),
        ({"policy_tokenizer": "no/such/folder"}, "policy_tokenizer no/such/folder: no such file or folder"),
        ({"policy_tokenizer": "polcy"}, "policy_tokenizer polcy: no such file or folder, and no hub id"),
        ({"policy_tokenizer": 5}, "policy_tokenizer is 5"),
        ({"guard": "x"}, "guard is 'x'; use Guard("),
        ({"guard": {"min_steps": 2}}, "guard is {'min_steps': 2}; use Guard("),
        ({"guard": Guard(min_steps="2")}, "guard: min_steps is '2'"),  # type: ignore[arg-type]
        ({"temperature": "x"}, "temperature x: use a number above 0"),
        ({"problem": "x"}, "problem is 'x'"),
        ({"batch_tokens": "x"}, "batch_tokens is 'x'"),
        ({"split": 3}, "split 3: choose from"),
    ],
)
def test_wrong_options_are_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        open_prm(**{"model": "random", **options})
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_differences_of_differences_are_refused() -> None:
    with pytest.raises(UserError, match="placement 'difference': step_sum is one already"):
        Prm(Sums(), placement="difference")


def test_wrong_calls_are_one_line() -> None:
    with pytest.raises(UserError, match="give the policy's tokenizer"):
        length_prm().step_rewards([PROBLEM], [[1, 2]])
    with pytest.raises(UserError, match="1 prompts for 2 completions"):
        length_prm().score_texts([PROBLEM], ["a", "b"])


def test_the_options_of_a_model_reach_it(models: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    folder = tmp_path / "own"
    folder.mkdir()
    (folder / "prm.json").write_text(json.dumps({"backend": "implicit", "ref_model": models["implicit"]["ref_model"]}))
    for file in Path(models["implicit"]["model"]).iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    plain = open_prm(str(folder), template="plain").score_texts([PROBLEM], [TEXT])
    chat = open_prm(str(folder)).score_texts([PROBLEM], [TEXT])
    assert plain[0].values != chat[0].values


@pytest.mark.parametrize("prompt", [PROBLEM, [5, 6], [{"role": "user", "content": PROBLEM}]])
def test_one_completion_may_be_empty(prompt: Any) -> None:
    row = open_prm("random", policy_tokenizer=byte_bpe()).step_rewards(prompt, [])
    assert (row.values, row.token_ends, row.unscored) == (None, (), "empty")


def test_a_token_that_the_tokenizer_does_not_have_is_no_text_that_was_sampled() -> None:
    """Decoding drops it: the rest would be scored as if nothing had been there."""
    tokenizer = byte_bpe()
    prm = open_prm("random", policy_tokenizer=tokenizer)
    ids = sampled(tokenizer, TEXT)
    for foreign in (len(tokenizer), 2**40):
        good, bad = prm.step_rewards([PROBLEM] * 2, [ids, [ids[0], foreign, *ids[1:]]])
        assert good.values is not None
        assert (bad.values, bad.unscored) == (None, f"token id {foreign} is not in the policy's tokenizer")


@pytest.mark.parametrize("ids", [[1.5, 2.5], [float("nan")], [["a"]], ["text"], [None], [[None]], torch.zeros(1, 2, 3)])
def test_what_is_no_list_of_token_ids_is_one_line(ids: Any) -> None:
    prm = open_prm("random", policy_tokenizer=byte_bpe())
    with pytest.raises(UserError, match="completion_ids: expected a list of token ids, whole numbers, for each"):
        prm.step_rewards([PROBLEM], ids)
