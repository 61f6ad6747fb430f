"""Sampling: what is drawn and how often, that it depends on nothing but model, prompt and seed, and what is counted."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import transformers
from conftest import save_model
from token_kinds import KINDS, TEMPLATE, byte_bpe

from prmbench.core.records import UserError
from prmbench.engines import decoding, generation
from prmbench.engines.completion_encoding import encode_completion
from prmbench.engines.encoding import Encoded
from prmbench.engines.generation import Sampling, generate
from prmbench.engines.hf import HFEngine, Placement, load

MASK = 2**64 - 1
PROMPTS = [f"What is {i} plus {i * 1000}?" + " Quickly, please." * (i % 3) for i in range(6)]


@pytest.fixture(scope="module")
def engine(policy: Path) -> HFEngine:
    return load(str(policy), "lm", Placement("cpu", "float32"))


@pytest.fixture(scope="module")
def texts(engine: HFEngine) -> list[str]:
    return [generation.render_prompt(engine.tokenizer, prompt) for prompt in PROMPTS]


# --- noise and draws --------------------------------------------------------------------------------------


def test_mix_is_splitmix64() -> None:
    """Against Python's integers; the first output from state 0 is the generator's published one."""

    def by_hand(x: int) -> int:
        x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & MASK
        x = (x ^ (x >> 27)) * 0x94D049BB133111EB & MASK
        return x ^ (x >> 31)

    numbers = [0x9E3779B97F4A7C15, 0, 1, 2**63, 2**63 - 1, MASK, 12345678901234567890]
    mixed = decoding.splitmix64(torch.tensor([n - 2**64 if n >= 2**63 else n for n in numbers])).tolist()
    assert [m & MASK for m in mixed] == [by_hand(n) for n in numbers]
    assert mixed[0] & MASK == 0xE220A8397B1DCDAF


def test_noise_is_gumbel_and_depends_on_key_step_and_token_alone() -> None:
    keys = decoding.splitmix64(torch.arange(400))
    noise = decoding.gumbel(keys, 3, 500)
    assert noise.mean().item() == pytest.approx(0.5772, abs=0.01)
    assert noise.var().item() == pytest.approx(math.pi**2 / 6, abs=0.03)
    assert torch.equal(decoding.gumbel(keys[7:9], 3, 200), noise[7:9, :200])
    others = (decoding.gumbel(keys, 4, 500), noise.roll(1, 0), noise.roll(1, 1))
    for other in others:
        assert abs(torch.corrcoef(torch.stack([noise.flatten(), other.flatten()]))[0, 1].item()) < 0.01


@pytest.mark.parametrize(
    ("how", "kept"),
    [
        (Sampling(1.0), [0.4, 0.3, 0.15, 0.1, 0.05]),
        (Sampling(0.5), [p**2 for p in (0.4, 0.3, 0.15, 0.1, 0.05)]),
        (Sampling(1.0, top_k=2), [0.4, 0.3, 0, 0, 0]),
        (Sampling(1.0, top_p=0.84), [0.4, 0.3, 0.15, 0, 0]),
        (Sampling(1.0, top_p=0.71), [0.4, 0.3, 0.15, 0, 0]),
        (Sampling(1.0, top_p=0.2), [1, 0, 0, 0, 0]),
        (Sampling(1.0, top_p=0.55, top_k=2), [1, 0, 0, 0, 0]),  # of the two left, the first has 4/7
    ],
)
def test_frequencies_are_the_probabilities(how: Sampling, kept: list[float]) -> None:
    order = [3, 0, 4, 1, 2]  # the likeliest token is not the first
    probabilities = torch.tensor([0.4, 0.3, 0.15, 0.1, 0.05])[order]
    n = 20_000
    keys = decoding.splitmix64(torch.arange(n))
    token, logp = decoding.sample_token((probabilities.log() + 2.5).expand(n, -1), keys, 0, how)
    expected = torch.tensor(kept)[order] / sum(kept)
    found = torch.bincount(token, minlength=5) / n
    assert torch.equal(found == 0, expected == 0)
    assert (found - expected).abs().max().item() < 4 * 0.5 / math.sqrt(n)
    tempered = (probabilities.log() / how.temperature).log_softmax(0)
    torch.testing.assert_close(logp, tempered[token])


def test_greedy_takes_the_likeliest() -> None:
    token, logp = decoding.sample_token(torch.tensor([[0.0, 2.0, 1.0]]), torch.tensor([5]), 0, Sampling(0.0))
    assert token.tolist() == [1]
    assert logp.item() == pytest.approx(2 - math.log(1 + math.e + math.e**2))


def test_a_nucleus_wider_than_the_first_guess() -> None:
    logp = torch.zeros(2, 1000).log_softmax(-1) + torch.linspace(0, 1e-3, 1000)
    kept = decoding.filter_logprobs(logp.log_softmax(-1), 0, 0.7).isfinite()
    assert kept.sum(-1).tolist() == [700, 700]
    assert kept[0, -700:].all()


# --- completions ------------------------------------------------------------------------------------------


def test_greedy_equals_a_loop_without_cache(engine: HFEngine, texts: list[str]) -> None:
    """Prompts of different lengths in one batch: left padding, positions and mask must be right."""
    completions = list(generate(engine, texts, Sampling(0.0, max_new_tokens=12), [0] * len(texts)))
    for text, completion in zip(texts, completions, strict=True):
        ids = generation.token_ids(engine.tokenizer, [text])[0]
        for token in completion.ids:
            with torch.inference_mode():
                assert engine.model(torch.tensor([ids])).logits[0, -1].argmax().item() == token
            ids.append(token)
        assert len(completion.ids) == 12 or completion.ids[-1] in engine.stops


def test_logprobs_are_those_of_a_scoring_pass(engine: HFEngine, texts: list[str]) -> None:
    completions = next(iter(generate(engine, texts[1:2], Sampling(1.0, top_k=20, max_new_tokens=15), [11])))
    prompt = generation.token_ids(engine.tokenizer, texts[1:2])[0]
    ids = (*prompt, *completions.ids)
    (scored,) = engine.logprobs([Encoded("x", ids, len(prompt), (len(ids),))])
    assert scored.logprobs.tolist() == pytest.approx(completions.logprobs, abs=1e-5)


@pytest.mark.parametrize("how", [Sampling(1.0, max_new_tokens=25), Sampling(0.6, 0.95, 50, 25)])
def test_a_completion_does_not_depend_on_its_company(engine: HFEngine, texts: list[str], how: Sampling) -> None:
    prompts = [text for text in texts for _ in range(4)]
    seeds = list(range(len(prompts)))
    uncut = [c.ids for c in generate(engine, prompts, how, seeds)]
    assert [c.ids for c in generate(engine, prompts, how, seeds, batch_tokens=1)] == uncut
    assert [c.ids for c in generate(engine, prompts, how, seeds, batch_tokens=300)] == uncut
    backwards = generate(engine, prompts[::-1], how, seeds[::-1])
    assert [c.ids for c in backwards] == uncut[::-1]
    assert len({ids for ids in uncut[:4]}) == 4  # one prompt, four seeds
    assert [c.ids for c in generate(engine, prompts, how, [s + 1 for s in seeds])][:-1] != uncut[:-1]


def test_a_stop_ends_a_row_and_is_counted(engine: HFEngine, texts: list[str]) -> None:
    """The third token of one completion, made a stop: that one has three tokens, others go on past it."""
    how, seeds = Sampling(1.0, max_new_tokens=20), list(range(len(texts)))
    uncut = list(generate(engine, texts, how, seeds))
    stop = uncut[2].ids[2]
    cut = list(generate(engine, texts, how, seeds, stops=[stop]))
    assert (cut[2].finish, cut[2].tokens, cut[2].ids) == ("stop", 3, uncut[2].ids[:3])
    assert cut[2].text == engine.tokenizer.decode(uncut[2].ids[:2], skip_special_tokens=True)
    for before, after in zip(uncut, cut, strict=True):
        at = before.ids.index(stop) + 1 if stop in before.ids else len(before.ids)
        assert after.ids == before.ids[:at]
        assert after.tokens == len(after.ids) == len(after.logprobs)
        assert after.finish == ("stop" if after.ids[-1] in engine.stops | {stop} else "length")
    assert {c.tokens for c in uncut if c.finish == "length"} == {20}


def test_the_context_bounds_prompt_and_completion(engine: HFEngine, texts: list[str]) -> None:
    small = HFEngine(engine.model, engine.tokenizer)
    lengths = [len(ids) for ids in generation.token_ids(engine.tokenizer, texts)]
    small.max_tokens = lengths[1]  # its prompt just fills the context; prompt 0 leaves some room
    completions = list(generate(small, texts[:2], Sampling(0.0, max_new_tokens=50), [0, 0]))
    assert (completions[1].refused, completions[1].tokens, completions[1].finish) == (
        f"{lengths[1]} tokens of prompt fill the context",
        0,
        "",
    )
    assert completions[0].refused == ""
    assert completions[0].tokens == lengths[1] - lengths[0]
    assert completions[0].finish == "length"


def test_weights_that_are_nan_are_an_error(engine: HFEngine, policy: Path, texts: list[str]) -> None:
    broken = load(str(policy), "lm", Placement("cpu", "float32"))
    broken.model.model.norm.weight.data.fill_(math.nan)
    with pytest.raises(UserError, match="NaN or infinite"):
        list(generate(broken, texts[:1], Sampling(), [0]))


def test_learned_positions_do_not_run_out() -> None:
    """A row that is done stays in the batch for a while; its position must not leave the table."""
    shape = transformers.GPT2Config(
        vocab_size=20, n_positions=12, n_embd=8, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0
    )
    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(shape).eval()
    prompts = [[1] * 11] + [[2, 3]] * 20
    sampled = decoding.decode(model, prompts, [1] + [10] * 20, list(range(21)), Sampling(), ())
    assert [len(d.ids) for d in sampled] == [1] + [10] * 20


# --- prompts ----------------------------------------------------------------------------------------------

OPENS = TEMPLATE + "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
THINKS = (
    "{% for m in messages %}<|{{ m['role'] }}|>\n"
    "{% if m['role'] == 'assistant' %}<think>\n\n</think>\n\n{% endif %}{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
INST = (
    "{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]"
    "{% else %} {{ m['content'] }}<|end|>{% endif %}{% endfor %}"
)


@pytest.mark.parametrize(
    ("template", "rendered"),
    [
        (OPENS, "<|user|>\nHow?<|end|>\n<|assistant|>\n"),
        (TEMPLATE, "<|user|>\nHow?<|end|>\n<|assistant|>\n"),  # takes no notice of add_generation_prompt
        (THINKS, "<|user|>\nHow?<|end|>\n<|assistant|>\n<think>\n\n</think>\n\n"),
        (INST, "[INST] How? [/INST]"),
        ("plain", "<s>How?\n\n"),
    ],
)
def test_prompts_end_where_the_assistant_begins(template: str, rendered: str) -> None:
    assert generation.render_prompt(byte_bpe(), "How?", template) == rendered


@pytest.mark.parametrize(
    ("kind", "template"), [*((kind, t) for kind in KINDS for t in (None, OPENS)), ("byte_bpe", THINKS)]
)
def test_training_sees_the_tokens_that_were_sampled_from(kind: str, template: str | None) -> None:
    tokenizer = KINDS[kind]()
    prompt = generation.token_ids(tokenizer, [generation.render_prompt(tokenizer, "How many?", template)])[0]
    trained = encode_completion(tokenizer, "How many?", "There are 12 apples.", template)
    if kind == "collapsing_unigram":  # its mark for a blank is a token of the prompt until a word takes it over
        prompt = prompt[:-1]
    assert list(trained.ids[: trained.start]) == prompt
    assert generation.end_of_turn(tokenizer, template) == {trained.ids[-1]}


def test_stops_are_those_of_config_and_tokenizer(policy: Path, tmp_path: Path) -> None:
    one = load(str(policy), "lm", Placement("cpu", "float32"))
    one.model.generation_config.eos_token_id = [5, 7]
    assert one.stops == {5, 7, one.tokenizer.eos_token_id}
    one.model.generation_config.eos_token_id = 9
    assert one.stops == {9, one.tokenizer.eos_token_id}


# --- batches and options ----------------------------------------------------------------------------------


def test_default_budget_follows_the_size_of_the_cache(tmp_path: Path) -> None:
    tiny = load(str(save_model(tmp_path, 0)), "lm", Placement("cpu", "float32"))
    assert tiny.batch_tokens == generation.CPU_MAX_BATCH_TOKENS
    tiny.model.config.num_hidden_layers = 2000  # 2 * 2000 * 2 heads * 8 * 4 bytes a token
    assert tiny.batch_tokens == 2**30 // 256_000
    assert generation.budget(tiny, 7) == 7


def test_a_prompt_without_a_token_is_refused(engine: HFEngine) -> None:
    with pytest.raises(UserError, match="gives no token"):
        list(generate(engine, [""], Sampling(), [0]))
