"""verl, OpenRLHF, SkyRL, slime and prime-rl: their interfaces, by stand-ins; none of them is run here."""

from __future__ import annotations

import ast
import asyncio
import importlib
import math
import re
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import trainer_stand_ins as stand_ins
from length_prm import LengthBackend, length_prm, value
from token_kinds import byte_bpe

from prmbench.adapters import Guard, Prm, openrlhf, prime_rl, skyrl, slime, verl
from prmbench.adapters.dense_rewards import AGGREGATIONS, PLACEMENTS
from prmbench.config import ModelConfig
from prmbench.core.records import Notice, UserError

PROBLEM = "What is 2 + 3?"
TEXTS = ("aaaa\n\nbb", "cc", "unscorable", "", "dddddddd\n\neeee\n\nf")
VALUES = ((1 / 4, 1 / 2), (1 / 2,), None, None, (1 / 8, 1 / 4, 1.0))


def prompt_ids(tokenizer: Any, problem: str = PROBLEM) -> list[int]:
    ids = tokenizer.apply_chat_template([{"role": "user", "content": problem}], return_dict=False)
    return list(ids)


def ids_of(tokenizer: Any, texts: Sequence[str] = TEXTS) -> list[list[int]]:
    return [[*tokenizer.encode(text, add_special_tokens=False), tokenizer.eos_token_id] for text in texts]


def step_ends(tokenizer: Any, text: str) -> list[int]:
    """Each step by itself, with the gap before it: the steps below are made so that tokens cross none."""
    pieces = text.split("\n\n")
    prefixes = ["\n\n".join(pieces[: k + 1]) for k in range(len(pieces))]
    return [len(tokenizer.encode(prefix, add_special_tokens=False)) - 1 for prefix in prefixes]


def min_prm(tokenizer: Any, **options: Any) -> Any:
    return length_prm(tokenizer, aggregation="min", **options)


# --- the page ---

PAGE = (Path(__file__).parents[2] / "docs" / "adapters.md").read_text(encoding="utf-8")


def test_the_pages_snippets_are_python_and_name_what_exists() -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    assert len(blocks) == 8
    options = {field.name for field in fields(Prm)} | {field.name for field in fields(ModelConfig)}
    imported = set()
    for block in blocks:
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("prmbench"):
                module = importlib.import_module(node.module or "")
                for alias in node.names:
                    assert hasattr(module, alias.name) or importlib.import_module(f"{node.module}.{alias.name}")
                    imported.add(f"{node.module}.{alias.name}")
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "open_prm":
                assert {keyword.arg for keyword in node.keywords} <= options
    assert "prmbench.adapters.probe_hacks" in imported


def test_the_page_says_where_an_adapter_was_run() -> None:
    for name in ("trl", "verl", "openrlhf", "skyrl", "slime", "prime_rl"):
        (line,) = re.findall(rf"^\| .*`prmbench\.adapters\.{name}`.*$", PAGE, re.MULTILINE)
        module = importlib.import_module(f"prmbench.adapters.{name}")
        ran, in_page = "Not run inside" not in (module.__doc__ or ""), "not run inside" not in line
        assert ran == in_page == (name == "trl")


def test_the_pages_choices_are_those_that_there_are() -> None:
    assert all(f"`{name}`" in PAGE for name in (*AGGREGATIONS, *PLACEMENTS, *(field.name for field in fields(Guard))))


# --- importing ---


@pytest.mark.parametrize("trainer", ["trl", "verl", "openrlhf", "skyrl", "slime", "prime_rl"])
def test_no_trainer_is_imported_with_its_adapter(trainer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, f"prmbench.adapters.{trainer}", raising=False)
    for name in ("trl", "verl", "openrlhf", "skyrl", "slime", "prime_rl"):
        monkeypatch.setitem(sys.modules, name, None)  # importing it would now be an ImportError
    importlib.import_module(f"prmbench.adapters.{trainer}")


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (lambda: verl.reward_manager(min_prm, unscored=0.0), "verl is not installed"),
        (skyrl.register, "skyrl is not installed"),
        (lambda: prime_rl.algorithm(min_prm), "prime-rl is not installed"),
    ],
)
def test_a_missing_trainer_is_one_line(use: Any, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        use()
    assert "\n" not in str(error.value)


def test_another_version_of_a_trainer_is_named_so() -> None:
    with stand_ins.installed(verl={"__path__": []}), pytest.raises(UserError, match=r"verl has no module verl\.exper"):
        verl.reward_manager(min_prm, unscored=0.0)


@pytest.mark.parametrize("unscored", [None, math.nan, math.inf, "0", True])
def test_where_a_trainer_needs_a_number_unscored_completions_get_one_that_was_chosen(unscored: Any) -> None:
    with pytest.raises(UserError, match=r"unscored .*: give a finite number"):
        openrlhf.reward_function(min_prm(byte_bpe()), unscored=unscored)
    with pytest.raises(UserError, match=r"unscored .*: give a finite number"):
        verl.reward_manager(min_prm, unscored=unscored)


# --- verl ---

VERL_BASE = "verl__experimental__reward_loop__reward_manager__base"
REWARD_FILE = """
from length_prm import length_prm
from prmbench.adapters.verl import reward_manager

Manager = reward_manager(lambda tokenizer: length_prm(tokenizer, aggregation="min"), unscored=-7.0)
"""


@pytest.mark.parametrize("conversation", [True, False])
def test_verl(tmp_path: Path, conversation: bool) -> None:
    t = byte_bpe()
    (tmp_path / "own_rewards.py").write_text(REWARD_FILE)
    problems = [f"{PROBLEM} {n}" for n in range(len(TEXTS))]
    turns = [[{"role": "user", "content": problem}] for problem in problems]
    others = {"raw_prompt": turns} if conversation else {"data_source": ["x"] * len(TEXTS)}
    prompts = [prompt_ids(t, problem) for problem in problems]
    with stand_ins.installed(**{VERL_BASE: {"RewardManagerBase": stand_ins.RewardManagerBase}}):
        manager_class = stand_ins.load_file(tmp_path / "own_rewards.py", "Manager")
        assert issubclass(manager_class, stand_ins.RewardManagerBase)
        manager = manager_class(config=None, tokenizer=t, compute_score=None, reward_router_address=None)
        data = stand_ins.data_proto(prompts, ids_of(t), t.pad_token_id, **others)
        results = stand_ins.run_reward_loop(manager, data)
    scores = [result["reward_score"] for result in results]
    assert scores == [1 / 4, 1 / 2, -7.0, -7.0, 1 / 8]
    assert manager_class.assemble_rm_scores(data, scores).tolist() == pytest.approx(scores)
    extras = [result["reward_extra_info"] for result in results]
    assert [extra["prm_unscored"] for extra in extras] == [0, 0, 1, 1, 0]
    assert [extra["prm_steps"] for extra in extras] == [2, 1, 0, 0, 3]
    assert {tuple(extra) for extra in extras} == {("prm_unscored", "prm_refused", "prm_steps")}
    batches = manager.prm.backend.batches
    assert sorted(trace.prompt for batch in batches for trace in batch) == [problems[i] for i in (0, 1, 2, 4)]
    assert len(batches) < 4, "what waits is scored together"


def test_verl_reads_the_tokens_that_the_mask_covers() -> None:
    batch = {"prompts": torch.tensor([5, 6, 7]), "responses": torch.tensor([20, 21, 22, 23])}
    batch["attention_mask"] = torch.tensor([0, 1, 1, 1, 1, 0, 0])
    item = SimpleNamespace(batch=batch, non_tensor_batch={})
    assert (verl._prompt(item), verl._response(item)) == ([6, 7], [20, 21])


def test_verl_tells_every_waiting_caller_of_an_error() -> None:
    class Broken(LengthBackend):
        """Cannot score."""

        def score(self, traces: Sequence[Any]) -> Any:
            raise UserError("out of memory")

    t = byte_bpe()
    with stand_ins.installed(**{VERL_BASE: {"RewardManagerBase": stand_ins.RewardManagerBase}}):
        manager = verl.reward_manager(lambda _: Prm(Broken(), t), unscored=0.0)(None, t)
        data = stand_ins.data_proto([prompt_ids(t)] * 3, ids_of(t, ["a", "b", "c"]), t.pad_token_id)

        async def score() -> list[Any]:
            calls = (manager.run_single(data[i : i + 1]) for i in range(3))
            return await asyncio.gather(*calls, return_exceptions=True)

        results = asyncio.run(asyncio.wait_for(score(), 60))
    assert [str(result) for result in results] == ["out of memory"] * 3


# --- OpenRLHF ---


def test_openrlhf() -> None:
    t = byte_bpe()
    function = openrlhf.reward_function(min_prm(t, guard=Guard(min_steps=1)), unscored=-7.0)
    prompt = t.decode(t.apply_chat_template([{"role": "user", "content": PROBLEM}], return_dict=False))
    queries = [t.decode([*t.encode(prompt), *ids]) for ids in ids_of(t)]
    result = function(queries, [prompt] * len(queries), ["5"] * len(queries))
    assert result["rewards"].tolist() == pytest.approx([1 / 4, 1 / 2, -7, -7, 1 / 8])
    assert result["scores"].tolist() == result["rewards"].tolist()
    assert result["extra_logs"]["prm_unscored"].tolist() == [0, 0, 1, 1, 0]
    assert result["extra_logs"]["prm_steps"].tolist() == [2, 1, 0, 0, 3]
    one = function(queries[4:], [prompt], ["5"], action_ranges=[(0, 1)])  # one at a time, as its executor does
    assert one["rewards"].shape == (1,)
    assert float(one["rewards"]) == pytest.approx(1 / 8)


def test_openrlhf_gives_the_problem_and_not_its_markup() -> None:
    t = byte_bpe()
    prm = min_prm(t)
    prompt = t.decode(prompt_ids(t))
    openrlhf.reward_function(prm, unscored=0.0)([prompt + "abc<|end|>"], [prompt], [None])
    assert [(trace.prompt, trace.steps) for trace in prm.backend.batches[0]] == [(PROBLEM, ("abc",))]


def test_openrlhf_mistakes() -> None:
    with pytest.raises(UserError, match="give open_prm the policy_tokenizer"):
        openrlhf.reward_function(min_prm(None), unscored=0.0)
    with pytest.raises(UserError, match="does not begin with its prompt"):
        openrlhf.reward_function(min_prm(byte_bpe()), unscored=0.0)(["b c"], ["a b"], [None])


# --- dense: SkyRL, slime, prime-rl give the same advantages ---


def expected_advantages(tokenizer: Any, rows: Sequence[int]) -> list[list[float]]:
    """PRIME's leave-one-out returns by loops: over TEXTS[rows], all of one prompt."""
    scored = [VALUES[i] for i in rows if VALUES[i] is not None]
    n = len(scored)
    mean = sum(sum(values) / len(values) for values in scored if values) / n
    result = []
    for i, ids in zip(rows, ids_of(tokenizer, [TEXTS[i] for i in rows]), strict=True):
        advantages = [0.0] * len(ids)
        for reward, end in zip(VALUES[i] or (), step_ends(tokenizer, TEXTS[i]), strict=False):
            for token in range(end + 1):
                advantages[token] += n / (n - 1) * (reward - mean)
        result.append(advantages)
    return result


def close(rows: Sequence[Sequence[float]], expected: Sequence[Sequence[float]]) -> None:
    for row, numbers in zip(rows, expected, strict=True):
        assert list(row) == pytest.approx(numbers, abs=1e-6)


def test_skyrl() -> None:
    t = byte_bpe()
    output = {
        "prompt_token_ids": [prompt_ids(t)] * 5,
        "response_ids": ids_of(t),
        "rewards": [1.0] * 5,
        "loss_masks": [[1] * len(ids) for ids in ids_of(t)],
    }
    skyrl.add_step_rewards(length_prm(t), output)
    rewards: Any = output["rewards"]
    assert isinstance(rewards[0], list), "SkyRL tells token-level rewards by the first row's type"
    assert [len(row) for row in rewards] == [len(ids) for ids in output["response_ids"]]
    for row, text, values in zip(rewards, TEXTS, VALUES, strict=True):
        if values is None:
            assert math.isnan(row[-1])
        else:
            assert [row[end] for end in step_ends(t, text)] == pytest.approx(values)
    assert [sum(mask) > 0 for mask in output["loss_masks"]] == [True, True, False, False, True]
    tensor, mask = stand_ins.skyrl_tensors(rewards)
    registry = stand_ins.AdvantageEstimatorRegistry()
    with stand_ins.installed(skyrl__backends__skyrl_train__utils__ppo_utils={"AdvantageEstimatorRegistry": registry}):
        skyrl.register()
    advantages, returns = registry.functions["prm_step"](
        token_level_rewards=tensor,
        response_mask=mask,
        index=["u"] * 5,
        values=None,
        grpo_norm_by_std=True,
        gamma=1.0,
        lambd=1.0,
        config=SimpleNamespace(use_kl_in_reward=False),
    )
    assert advantages.shape == returns.shape == tensor.shape
    assert advantages.isfinite().all()
    wanted = [[*row, *[0.0] * (tensor.shape[1] - len(row))] for row in expected_advantages(t, range(5))]
    close(advantages.tolist(), wanted)
    assert not advantages[~mask.bool()].any()


def test_skyrl_sees_a_step_whose_reward_is_zero() -> None:
    """Two steps of 1 and 0 against one of 1: means 1/2 and 1, of which the mean is 3/4; scale 2."""
    rewards, mask = stand_ins.skyrl_tensors([[1.0, skyrl._ZERO], [1.0]])
    advantages, _ = skyrl.step_advantages(rewards, mask, ["u", "u"])
    assert advantages[0, :2].tolist() == pytest.approx([2 * (0.25 - 0.75), 2 * -0.75])
    output = {
        "prompt_token_ids": ["q"],
        "response_ids": ids_of(byte_bpe(), [""]),
        "rewards": [0.0],
        "loss_masks": [[1]],
    }
    skyrl.add_step_rewards(length_prm(byte_bpe(), guard=Guard(floor=0.0)), output)
    assert output["rewards"] == [[skyrl._ZERO]]


def test_skyrl_refuses_a_kl_penalty_in_the_rewards() -> None:
    with pytest.raises(UserError, match="use_kl_in_reward"):
        skyrl.step_advantages(torch.ones(1, 1), torch.ones(1, 1), ["u"], config=SimpleNamespace(use_kl_in_reward=True))


def slime_data(tokenizer: Any, rows: Sequence[int], problems: Sequence[str]) -> dict[str, Any]:
    responses = ids_of(tokenizer, [TEXTS[i] for i in rows])
    prompts = [prompt_ids(tokenizer, problem) for problem in problems]
    return {
        "tokens": [torch.tensor(p + r) for p, r in zip(prompts, responses, strict=True)],
        "response_lengths": [len(r) for r in responses],
        "total_lengths": [len(p) + len(r) for p, r in zip(prompts, responses, strict=True)],
        "loss_masks": [torch.ones(len(r), dtype=torch.int) for r in responses],
        "rewards": [0.5] * len(rows),
        "kl": [torch.zeros(len(r)) for r in responses],
    }


def test_slime() -> None:
    t = byte_bpe()
    opened = []

    def opener(args: Any) -> Any:
        opened.append(args.hf_checkpoint)
        return length_prm(t)

    function = slime.advantage_function(opener)
    args = SimpleNamespace(hf_checkpoint="policy")
    data = slime_data(t, range(5), [PROBLEM] * 5)
    assert function(args, data) is None
    close([row.tolist() for row in data["advantages"]], expected_advantages(t, range(5)))
    assert [row.dtype for row in data["returns"]] == [torch.float32] * 5
    assert all(a.equal(r) and a is not r for a, r in zip(data["advantages"], data["returns"], strict=True))
    assert [len(row) for row in data["advantages"]] == data["response_lengths"]
    with pytest.warns(Notice, match="1 of 3 scored completions have no other of their prompt in this process"):
        function(args, mixed := slime_data(t, (0, 4, 1), [PROBLEM, PROBLEM, "Another?"]))
    close([row.tolist() for row in mixed["advantages"][:2]], expected_advantages(t, (0, 4)))
    assert not mixed["advantages"][2].any()
    assert opened == ["policy"], "the model is loaded once in a process"


def test_slime_refuses_sequences_that_are_spread_over_processes() -> None:
    data = slime_data(byte_bpe(), (0,), [PROBLEM])
    data["kl"] = [data["kl"][0][:1]]
    with pytest.raises(UserError, match="context-parallel-size 1"):
        slime.advantage_function(lambda _: length_prm(byte_bpe()))(None, data)


def test_prime_rl() -> None:
    t = byte_bpe()
    traces = [
        stand_ins.trace(str(i), PROBLEM, prompt_ids(t), [9, *ids] if i == 0 else ids, forced=int(i == 0))
        for i, ids in enumerate(ids_of(t))
    ]
    traces.append(stand_ins.trace("failed", PROBLEM, prompt_ids(t), [5]))
    traces[-1].has_error = True
    episodes = [SimpleNamespace(traces=traces[:2]), SimpleNamespace(traces=traces[2:])]
    base = {"Algorithm": stand_ins.Algorithm, "iter_trainable_traces": stand_ins.iter_trainable_traces}
    with stand_ins.installed(
        prime_rl__orchestrator__algo__base=base,
        prime_rl__orchestrator__algo__routing={"assign_advantages": stand_ins.assign_advantages},
    ):
        algorithm = prime_rl.algorithm(lambda config: length_prm(t))("config", "pool")
        assert isinstance(algorithm, stand_ins.Algorithm)
        assert algorithm.policy_pool == "pool"
        asyncio.run(algorithm.score_group(episodes))
    close([trace.nodes[1].advantages for trace in traces[:5]], expected_advantages(t, range(5)))
    assert [trace.nodes[0].advantages for trace in traces[:5]] == [None] * 5
    assert traces[5].nodes[1].advantages is None


def test_prime_rl_refuses_traces_of_several_sampled_turns() -> None:
    trace = stand_ins.trace("t", PROBLEM, [1], [2])
    trace.nodes.append(trace.nodes[1])
    with pytest.raises(UserError, match="trace t: has 2 sampled turns"):
        prime_rl.advantages_of(length_prm(byte_bpe()), [trace])


def test_the_stand_in_steps_cross_no_token() -> None:
    for text, values in zip(TEXTS, VALUES, strict=True):
        if values is not None:
            assert values == tuple(map(value, text.split("\n\n")))
            ids = byte_bpe().encode(text)
            assert [len(byte_bpe().decode(ids[: end + 1])) for end in step_ends(byte_bpe(), text)] == [
                len("\n\n".join(text.split("\n\n")[: k + 1])) for k in range(len(values))
            ]
