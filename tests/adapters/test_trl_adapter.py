"""TRL's GRPOTrainer, run with the adapter's reward function on a tiny policy; rewards equal direct scores."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import transformers
from family_checkpoints import llama_tokens, save
from length_prm import length_prm
from token_kinds import byte_bpe

from prmbench.adapters import Guard, Prm, open_prm
from prmbench.adapters.trl import reward_function
from prmbench.core.records import Trace, UserError

trl = pytest.importorskip("trl")
datasets = pytest.importorskip("datasets")
pytestmark = pytest.mark.slow


class Recorder:
    """A reward function that keeps what TRL gave it and what came back."""

    __name__ = "recorded"

    def __init__(self, function: Any) -> None:
        self.function, self.calls = function, []  # type: ignore[var-annotated]

    def __call__(self, **arguments: Any) -> list[float | None]:
        rewards = self.function(**arguments)
        self.calls.append((arguments, rewards))
        return list(rewards)


def train(policy: Path, out: Path, function: Any, rows: list[dict[str, Any]], steps: int) -> Any:
    trainer = trl.GRPOTrainer(
        model=str(policy),
        reward_funcs=function,
        args=trl.GRPOConfig(
            str(out),
            use_cpu=True,
            bf16=False,
            report_to=[],
            disable_tqdm=True,
            per_device_train_batch_size=4,
            num_generations=2,
            max_completion_length=12,
            max_steps=steps,
            logging_steps=1,
            learning_rate=0.05,
            save_strategy="no",
            seed=1,
        ),
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=transformers.AutoTokenizer.from_pretrained(policy),
    )
    before = {name: weight.detach().clone() for name, weight in trainer.model.named_parameters()}
    trainer.train()
    changed = any(not weight.equal(before[name]) for name, weight in trainer.model.named_parameters())
    return trainer.state.log_history, changed


def direct(prm: Prm, problem: str, text: str) -> float | None:
    """The soft minimum of the backend's scores of the completion's paragraphs, without the adapter."""
    steps = tuple(piece.strip() for piece in text.replace("\r", "\n").split("\n\n") if piece.strip())
    if not steps:
        return None
    (scores,) = prm.backend.score([Trace("t", problem, steps)])
    weights = [math.exp(-value / 0.1) for value in scores.values]
    return sum(w * v for w, v in zip(weights, scores.values, strict=True)) / sum(weights)


def test_two_steps_of_grpo_with_rewards_of_a_prm(policy: Path, tmp_path: Path) -> None:
    folder = save(
        tmp_path / "prm", "Qwen2ForTokenClassification", llama_tokens(), 3, backend="token_cls", separator="\n\n"
    )
    tokenizer = transformers.AutoTokenizer.from_pretrained(policy)
    prm = open_prm(str(folder), policy_tokenizer=tokenizer)
    rows = [{"prompt": [{"role": "user", "content": f"What is {n} + 2?"}], "problem": f"{n} + 2 = ?"} for n in range(4)]
    recorder = Recorder(reward_function(prm, problem_column="problem"))
    log, changed = train(policy, tmp_path / "out", recorder, rows, steps=2)
    assert changed
    assert len(recorder.calls) == 2
    seen = set()
    for step, (arguments, rewards) in enumerate(recorder.calls):
        assert set(arguments["problem"]) <= {row["problem"] for row in rows}
        texts = [tokenizer.decode(ids, skip_special_tokens=True) for ids in arguments["completion_ids"]]
        expected = [direct(prm, problem, text) for problem, text in zip(arguments["problem"], texts, strict=True)]
        assert rewards == pytest.approx(expected, rel=1e-4)
        seen |= set(rewards)
        assert log[step]["reward"] == pytest.approx(sum(expected) / len(expected), rel=1e-3)
        assert log[step]["prm_reward/unscored"] == 0.0
        assert log[step]["prm_reward/steps"] >= 1
    assert len(seen) > 4, "equal rewards would hide a mixed-up order"


def test_unscored_completions_are_none_and_have_no_advantage(policy: Path, tmp_path: Path) -> None:
    """All refused: TRL leaves them out, so that nothing is learnt and no reward is logged."""
    prm = length_prm(byte_bpe(), guard=Guard(min_steps=99))
    recorder = Recorder(reward_function(prm))
    log, changed = train(policy, tmp_path, recorder, [{"prompt": f"What is {n}?"} for n in range(4)], steps=1)
    assert recorder.calls[0][1] == [None] * 4
    assert not changed
    assert log[0]["reward"] is None  # as TRL logs nan
    assert log[0]["prm_reward/unscored"] == 1.0


def test_a_column_that_is_not_there_is_one_line() -> None:
    with pytest.raises(UserError, match="problem_column 'question': the data set's columns are answer, trainer_state"):
        reward_function(length_prm(), "question")(prompts=["q"], completions=["a"], answer=["1"], trainer_state=None)


def test_completions_without_token_ids_are_scored_as_texts() -> None:
    function = reward_function(length_prm(), name="steps_reward")
    assert function.__name__ == "steps_reward"
    completions = ["abcd", [{"role": "assistant", "content": "ab"}], "unscorable", ""]
    rewards = function(prompts=["q"] * 4, completions=completions, trainer_state=None, log_extra=None, answer=["1"] * 4)
    assert rewards == [0.25, 0.5, None, None]
