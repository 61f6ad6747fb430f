"""Every family of cards.py: a golden input, a slow second computation of its scores, as many scores as steps.

Weights cannot be had here, so each family has a tiny random checkpoint of its real architecture and tokenizer kind.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from family_checkpoints import (
    QWEN_CODE,
    TAG,
    by_eurus,
    by_qwen,
    by_rlhflow,
    by_separator,
    by_shepherd,
    by_skywork,
    llama_tokens,
    logits_of,
    mistral_tokens,
    qwen_tokens,
    row_of,
    save,
)
from safetensors.torch import load_file, save_file
from token_kinds import byte_bpe, sentencepiece_bpe
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from prmbench import data
from prmbench.backends import Backend, cards, common, head_weights, listing, load_backend, token_cls
from prmbench.config import ModelConfig
from prmbench.core.records import EvalProtocol, StepScores, Trace, UserError, join_scores
from prmbench.engines.encoding import encode_separated, encode_tagged
from prmbench.engines.family_encodings import encode_pieces, encode_tagged_text, encode_turns, text_token, turn_token
from prmbench.engines.hf import HFEngine
from prmbench.metrics.first_error import sample

SHA = "0123456789abcdef0123456789abcdef01234567"
SUM = Trace("sum", "What is 2 + 3?", ("We add 2 and 3.", "That is 5."))
TRACES = (
    SUM,
    Trace("inner", "Half of 18?", ("18 / 2\n\n= 8.", "Check:\n8 + 8 = 16,\nnot 18.\n", "So no."), first_error=0),
    Trace("header", "Is 91 prime?", ("Step 1: 91 = 7 * 13.",)),
    # What stands for a verdict or closes a step stands elsewhere, too.
    Trace("traps", f"Does {TAG} + - mean +?\n\n", ("+", f"It is {TAG}\n and +.", "- + -")),
)


# --- tiny checkpoints -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shepherd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("families") / "shepherd"
    save(folder, "LlamaForCausalLM", mistral_tokens(), 1, **row_of("peiyi9979/math-shepherd-mistral-7b-prm"))
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings |= {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "legacy": True}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


@pytest.fixture(scope="module")
def rlhflow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("families") / "rlhflow"
    save(folder, "LlamaForCausalLM", llama_tokens(), 2, **row_of("RLHFlow/Llama3.1-8B-PRM-Mistral-Data"))
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"][llama_tokens().convert_tokens_to_ids(["+", "-"])] *= 5  # often the likeliest of all
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def skywork(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Qwen2 with a language head that nothing reads, and the value head among the weights."""
    folder = tmp_path_factory.mktemp("families") / "skywork"
    save(folder, "Qwen2ForCausalLM", qwen_tokens(), 3, **row_of("Skywork/Skywork-o1-Open-PRM-Qwen-2.5-1.5B"))
    weights = load_file(folder / "model.safetensors")
    head = {"v_head.summary.weight": torch.randn(1, 32), "v_head.summary.bias": torch.tensor([0.3])}
    save_file(weights | head, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def pure(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("families") / "pure"
    return save(folder, "Qwen2ForTokenClassification", qwen_tokens(), 4, **row_of("jinachris/PURE-PRM-7B"))


@pytest.fixture(scope="module")
def trl_prm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("families") / "trl"
    row = row_of("HuggingFaceH4/Qwen2.5-Math-7B-Instruct-PRM-0.2")
    return save(folder, "Qwen2ForTokenClassification", llama_tokens(), 5, **row)  # llama_tokens: one with a bos


@pytest.fixture(scope="module")
def qwen_prm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("families") / "qwen"
    save(folder, "Qwen2ForCausalLM", qwen_tokens(), 6, **row_of("Qwen/Qwen2.5-Math-PRM-7B"))
    head = torch.nn.Sequential(torch.nn.Linear(32, 32), torch.nn.ReLU(), torch.nn.Linear(32, 2))
    tensors = {f"score.{k}": v.detach().clone() for k, v in head.state_dict().items()}
    weights = {k: v for k, v in load_file(folder / "model.safetensors").items() if not k.startswith("lm_head")}
    save_file(weights | tensors, folder / "model.safetensors", {"format": "pt"})
    (folder / "modeling_prm.py").write_text(QWEN_CODE)
    shape = json.loads((folder / "config.json").read_text())
    shape |= {"architectures": ["Prm"], "auto_map": {"AutoModel": "modeling_prm.Prm"}}
    (folder / "config.json").write_text(json.dumps(shape))
    return folder


@pytest.fixture(scope="module")
def eurus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("families")
    save(folder / "reference", "Qwen2ForCausalLM", qwen_tokens(), 7)
    row = row_of("PRIME-RL/EurusPRM-Stage1") | {"ref_model": "../reference"}
    return save(folder / "eurus", "Qwen2ForCausalLM", qwen_tokens(), 8, **row)


def opened(folder: Path) -> Backend:
    own_code = bool(json.loads((folder / "prm.json").read_text()).get("remote_code"))
    return load_backend(ModelConfig(str(folder), revision=SHA if own_code else None, trust_remote_code=own_code))


FAMILIES = ("shepherd", "rlhflow", "skywork", "pure", "trl_prm", "qwen_prm", "eurus")


@pytest.fixture
def code_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where transformers copies a model's own code to: not into the user's cache."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))


# --- scores -----------------------------------------------------------------------------------------------------------


SLOW: dict[str, Callable[[Path, Trace], list[float]]] = {
    "shepherd": by_shepherd,
    "rlhflow": lambda folder, trace: by_rlhflow(folder, trace)[0],
    "skywork": by_skywork,
    "pure": by_separator,
    "trl_prm": by_separator,
    "qwen_prm": by_qwen,
    "eurus": by_eurus,
}


@pytest.mark.usefixtures("code_cache")
@pytest.mark.parametrize("family", FAMILIES)
def test_scores_equal_a_slow_computation(family: str, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(family)
    backend = opened(folder)
    found = list(backend.score(TRACES))
    assert [s.unscored for s in found] == [""] * len(TRACES)
    for trace, scores in zip(TRACES, found, strict=True):
        np.testing.assert_allclose(scores.values, SLOW[family](folder, trace), rtol=1e-5, atol=1e-5)
        assert len(scores.values) == len(trace.steps)
    alone = [next(backend.score([trace])).values for trace in TRACES]
    for together, single in zip(found, alone, strict=True):  # nor does a batch change a score
        np.testing.assert_allclose(together.values, single, rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module")
def real(shared_data: Path) -> tuple[Trace, ...]:
    """ProcessBench traces with headers of their own, or with line breaks inside steps, and a plain one."""
    traces = data.load("processbench", shared_data / "processbench").traces
    named = [t for t in traces if t.id in ("gsm8k-64", "math-3", "gsm8k-0")]
    broken = [t for t in traces if any("\n" in step for step in t.steps)][:300:60]
    return (*named, *broken)


@pytest.mark.usefixtures("code_cache")
@pytest.mark.parametrize("family", FAMILIES)
def test_real_traces_have_a_score_for_every_step(
    family: str, request: pytest.FixtureRequest, real: tuple[Trace, ...]
) -> None:
    for trace, scores in zip(real, opened(request.getfixturevalue(family)).score(real), strict=True):
        row = join_scores(trace, scores)
        assert row.unscored == ""
        assert len(row.values) == len(row.tokens) == len(trace.steps)


# --- golden inputs ----------------------------------------------------------------------------------------------------


def pieces(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> list[str]:
    return list(tokenizer.convert_ids_to_tokens(list(ids)))


def test_golden_math_shepherd() -> None:
    tokenizer = mistral_tokens()
    encoded = encode_tagged_text(tokenizer, SUM, TAG)
    text = f"What is 2 + 3? Step 1: We add 2 and 3. {TAG}\nStep 2: That is 5. {TAG}\n"
    assert list(encoded.ids) == tokenizer.encode(text)
    assert encoded.ids[0] == tokenizer.bos_token_id
    tokens = pieces(tokenizer, encoded.ids)
    assert [i for i, token in enumerate(tokens) if token == f"▁{TAG}"] == list(encoded.score_positions)
    assert tokenizer.decode(encoded.ids[encoded.start : encoded.ends[0]]).strip() == f"Step 1: We add 2 and 3. {TAG}"
    assert [text_token(tokenizer, label) for label in "+-"] == tokenizer.encode("+ -")[1:]


def test_golden_headers_stand_twice_when_the_step_brings_one() -> None:
    tokenizer = mistral_tokens()
    encoded = encode_tagged_text(tokenizer, TRACES[2], TAG)
    assert list(encoded.ids) == tokenizer.encode(f"Is 91 prime? Step 1: Step 1: 91 = 7 * 13. {TAG}\n")


def test_golden_rlhflow() -> None:
    tokenizer = llama_tokens()
    encoded = encode_turns(tokenizer, SUM, " ", "+")
    text = (
        "<s><|user|>\n\nWhat is 2 + 3? We add 2 and 3.<|end|><|assistant|>\n\n+<|end|>"
        "<|user|>\n\nThat is 5.<|end|><|assistant|>\n\n+<|end|>"
    )
    assert list(encoded.ids) == tokenizer.encode(text, add_special_tokens=False)
    tokens = pieces(tokenizer, encoded.ids)
    assert [tokens[at : at + 3] for at in encoded.score_positions] == [["ĊĊ", "+", "<|end|>"]] * 2
    assert tokenizer.decode(encoded.ids[encoded.start :]).startswith("We add 2 and 3.<|end|>")
    other = encode_turns(tokenizer, SUM, "\n\n", "+")
    assert tokenizer.decode(other.ids).startswith("<s><|user|>\n\nWhat is 2 + 3?\n\nWe add 2 and 3.<|end|>")


def test_golden_skywork() -> None:
    tokenizer = qwen_tokens()
    trace = Trace("t", "1 + 1?", ("I\n\nadd", "2\n"))
    wanted = [*tokenizer.encode("1 + 1?\n"), *tokenizer.encode("I"), *tokenizer.encode("\n") * 2]
    wanted += [*tokenizer.encode("add"), *tokenizer.encode("\n"), *tokenizer.encode("2"), *tokenizer.encode("\n") * 2]
    encoded = encode_pieces(tokenizer, trace, "\n")
    assert list(encoded.ids) == wanted
    assert encoded.score_positions == (len(wanted) - 4, len(wanted) - 1)
    begun = encode_pieces(llama_tokens(), trace, "\n")
    assert list(begun.ids) == [llama_tokens().bos_token_id, *wanted]


def test_golden_pure_and_trl() -> None:
    tokenizer, trace = qwen_tokens(), Trace("t", "1 + 1?", ("I add.", "2"))
    encoded = encode_separated(tokenizer, trace, "\n\n")
    gap = tokenizer.encode("\n\n")
    wanted = [*tokenizer.encode("1 + 1?"), *tokenizer.encode("I add."), *gap, *tokenizer.encode("2"), *gap]
    assert list(encoded.ids) == wanted
    joined = tokenizer.encode("1 + 1?I add.\n\n2\n\n")
    assert joined != wanted  # ".\n\n" is one token there: another input, and F1 four points lower for one PRM


def test_golden_qwen() -> None:
    tokenizer = qwen_tokens()
    system = cards.prompt_text("qwen_math_prm_system")
    encoded = encode_tagged(tokenizer, SUM, "<extra_0>", system)
    text = tokenizer.decode(encoded.ids)
    assert text == (
        "<|system|>\nPlease reason step by step, and put your final answer within \\boxed{}.<|end|>\n"
        "<|user|>\nWhat is 2 + 3?<|end|>\n"
        "<|assistant|>\nWe add 2 and 3.<extra_0>That is 5.<extra_0><|end|>\n"
    )
    assert "\b" not in text  # "\boxed" in a Python string that is not raw begins with a backspace


# --- RLHFlow's three readings -----------------------------------------------------------------------------------------


def test_one_pass_gives_all_three_readings(rlhflow: Path) -> None:
    backend = opened(rlhflow)
    assert (backend.facts.kind, backend.facts.native, backend.facts.fixed) == ("prob", 0.5, 0.5)
    assert backend.facts.series == ("full", "greedy")
    traces = [replace(SUM, id=str(n), prompt=f"{SUM.prompt} {n}") for n in range(12)]
    seen = []
    for trace, scores in zip(traces, backend.score(traces), strict=True):
        two, full, greedy = by_rlhflow(rlhflow, trace)
        np.testing.assert_allclose(scores.values, two, atol=1e-5)
        np.testing.assert_allclose(scores.also["full"], full, rtol=1e-4, atol=1e-7)
        assert list(scores.also["greedy"]) == greedy
        seen += zip((value > 0.5 for value in scores.values), scores.also["greedy"], strict=True)
    assert set(seen) >= {(True, 1), (True, 0), (False, 0)}, "all cases that tell the readings apart"


def test_math_shepherd_has_one_reading(shepherd: Path) -> None:
    backend = opened(shepherd)
    assert (backend.facts.kind, backend.facts.native, backend.facts.fixed) == ("prob", 0.5, 0.5)
    assert (backend.facts.series, backend.facts.input_format) == ((), f"text+tag {TAG}")
    assert [s.also for s in backend.score(TRACES)] == [{}] * len(TRACES)


def test_greedy_is_the_likeliest_of_all_tokens(rlhflow: Path) -> None:
    engine = opened_engine(rlhflow)
    encoded = encode_turns(engine.tokenizer, SUM, " ", "+")
    likeliest = [int(logits_of(rlhflow, encoded.ids)[at].argmax()) for at in encoded.score_positions]
    (found,) = engine.next_tokens([encoded], likeliest)
    assert found.likeliest.tolist() == likeliest
    assert found.logprobs.shape == (2, 2)
    np.testing.assert_allclose(
        [found.logprobs[i, i] for i in range(2)],
        [float(logits_of(rlhflow, encoded.ids)[at].log_softmax(0).max()) for at in encoded.score_positions],
        atol=1e-5,
    )


def opened_engine(folder: Path) -> HFEngine:
    config = ModelConfig(str(folder))
    return common.open_model(cards.ModelCard(str(folder), "tag_lm"), config, "lm")


def test_the_joint_is_part_of_the_input_format(rlhflow: Path, tmp_path: Path) -> None:
    """The card's is ProcessBench's blank line; the authors' own code has a blank."""
    folder = tmp_path / "blank"
    row = row_of("RLHFlow/Llama3.1-8B-PRM-Mistral-Data") | {"joint": " "}
    save(folder, "LlamaForCausalLM", llama_tokens(), 2, **row)
    authors, official = opened(folder), opened(rlhflow)
    assert official.facts.input_format == "turns, joint '\\n\\n'"
    assert authors.facts.input_format == "turns, joint ' '"
    np.testing.assert_allclose(next(authors.score([SUM])).values, by_rlhflow(folder, SUM, " ")[0], rtol=1e-5, atol=1e-5)


TIES = {"shepherd": "wrong", "rlhflow": "wrong", "pure": "wrong", "trl_prm": "wrong", "skywork": "right"}
TIES |= {"qwen_prm": "right", "eurus": "right"}


@pytest.mark.usefixtures("code_cache")
@pytest.mark.parametrize("family", FAMILIES)
def test_ties_are_judged_as_the_familys_authors_do(family: str, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(family)
    assert opened(folder).facts.tie == TIES[family]
    card = cards.from_folder(folder)
    assert card is not None
    assert cards.tie_rule(replace(card, tie="wrong")) == "wrong"
    assert cards.tie_rule(replace(card, tie="right")) == "right"


def test_only_read_positions_meet_the_head(shepherd: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from prmbench.engines import token_logprobs as head

    rows, original = [], head.logprobs_at

    def counted(hidden: torch.Tensor, *rest: Any) -> Any:
        rows.append(len(hidden))
        return original(hidden, *rest)

    backend = opened(shepherd)
    monkeypatch.setattr(head, "logprobs_at", counted)
    list(backend.score(TRACES))
    assert rows == [sum(len(trace.steps) for trace in TRACES)]


# --- where Skywork's head lies ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["shards", "bin", "beside"])
def test_skywork_heads_wherever_they_lie(skywork: Path, tmp_path: Path, form: str) -> None:
    row = row_of("Skywork/Skywork-o1-Open-PRM-Qwen-2.5-7B")
    folder = save(tmp_path / form, "Qwen2ForCausalLM", qwen_tokens(), 3, **row)
    weights = load_file(skywork / "model.safetensors")
    head = {name: weights.pop(name) for name in list(weights) if name.startswith("v_head")}
    (folder / "model.safetensors").unlink()
    if form == "shards":
        first = {k: v for k, v in weights.items() if "layers.0" in k} | {
            "v_head.summary.bias": head.pop("v_head.summary.bias")
        }
        second = {k: v for k, v in weights.items() if k not in first} | head
        places = {"one.safetensors": first, "two.safetensors": second}
        for name, tensors in places.items():
            save_file(tensors, folder / name, {"format": "pt"})
        index = {"metadata": {}, "weight_map": {k: name for name, tensors in places.items() for k in tensors}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    elif form == "bin":
        torch.save(weights | head, folder / "pytorch_model.bin")
    else:
        save_file(weights, folder / "model.safetensors", {"format": "pt"})
        save_file(head, folder / "value_head.safetensors")
        del row["head"]
        (folder / "prm.json").write_text(json.dumps(row))
    found, wanted = (list(opened(f).score(TRACES)) for f in (folder, skywork))
    assert [s.values for s in found] == [s.values for s in wanted]


@pytest.mark.parametrize(
    "index", ["{", "[]", "{}", '{"weight_map": [1]}', '{"weight_map": {"v_head": 1}}', "[" * 100_000]
)
def test_an_index_that_is_none_is_one_line(tmp_path: Path, index: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(index)
    with pytest.raises(UserError, match=r"^/.*model\.safetensors\.index\.json: n"):
        head_weights.checkpoint_head(cards.ModelCard(str(tmp_path), "value_head", head="v_head"))


def test_skywork_scores_are_probabilities(skywork: Path) -> None:
    backend = opened(skywork)
    assert (backend.facts.kind, backend.facts.fixed, backend.facts.native) == ("prob", 0.5, None)
    assert backend.facts.input_format == "pieces '\\n'"
    assert all(0 < value < 1 for scores in backend.score(TRACES) for value in scores.values)


def test_a_checkpoint_without_the_head_is_refused(skywork: Path, tmp_path: Path) -> None:
    row = row_of("Skywork/Skywork-o1-Open-PRM-Qwen-2.5-7B")
    folder = save(tmp_path / "bare", "Qwen2ForCausalLM", qwen_tokens(), 3, **row)
    with pytest.raises(UserError, match=r"tensors v_head\.summary\.\*: holds nothing; expected one weight") as caught:
        opened(folder)
    assert "\n" not in str(caught.value)
    load_backend(ModelConfig(str(folder), dry_run=True)).cost(SUM)  # a plan reads no weights
    (skywork / "prm.json").write_text(json.dumps({**row, "reading": "cumulative"}))
    try:
        with pytest.raises(UserError, match="a cumulative reading has no sigmoid"):
            opened(skywork)
    finally:
        (skywork / "prm.json").write_text(json.dumps(row))


BARE = "{% for m in messages %}{{ m['content'] }}{% endfor %}"

# --- traps ------------------------------------------------------------------------------------------------------------


def test_a_tag_of_several_tokens_is_refused() -> None:
    for encode in (
        lambda: encode_tagged_text(sentencepiece_bpe(), SUM, TAG),  # bytes there
        lambda: encode_tagged_text(byte_bpe(), SUM, TAG),
        lambda: encode_tagged(byte_bpe(), SUM, TAG),
        lambda: text_token(sentencepiece_bpe(), TAG[-1]),  # two bytes at one place
        lambda: turn_token(sentencepiece_bpe("0+"), "+", BARE),  # one token with what comes before
        lambda: turn_token(llama_tokens(), "good one"),
    ):
        with pytest.raises(UserError, match="not a single token of this tokenizer") as caught:
            encode()
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("own_class", [False, True])  # LlamaTokenizer does not cut text at blanks
def test_a_tag_is_found_whatever_precedes_it(shepherd: Path, own_class: bool) -> None:
    tokenizer = AutoTokenizer.from_pretrained(str(shepherd)) if own_class else mistral_tokens()
    for ending in ("5", "5.", "5 ", " 5  ", "5\t", "$x$", "5\n", "π", "+", TAG, f"{TAG} {TAG}", "\u00a0"):
        step = f"It is {ending}"
        encoded = encode_tagged_text(tokenizer, Trace("t", "Q", (step, step)), TAG)
        assert encoded.unscored == "", repr(ending)
        assert [tokenizer.convert_ids_to_tokens(encoded.ids[i]) for i in encoded.score_positions] == [f"▁{TAG}"] * 2
        assert tokenizer.convert_ids_to_tokens(encoded.ids[encoded.score_positions[0] + 1]) == "<0x0A>"


def test_a_tag_in_the_problem_is_not_counted() -> None:
    tokenizer = mistral_tokens()
    plain, tagged = (
        encode_tagged_text(tokenizer, Trace("t", prompt, ("One.", "Two.")), TAG) for prompt in ("Q", f"Q {TAG}\n {TAG}")
    )
    assert len(plain.score_positions) == len(tagged.score_positions) == 2
    more = len(tagged.ids) - len(plain.ids)
    assert tagged.score_positions == tuple(at + more for at in plain.score_positions)
    chat = encode_tagged(byte_bpe(), Trace("t", "Q <extra_0>", ("One.", "Two.")), "<extra_0>")
    assert len(chat.score_positions) == 2


def test_what_a_tokenizer_merges_with_the_tag_is_unscored_not_shifted() -> None:
    """A step's own text can only spoil a special token: it would be one more tag."""
    encoded = encode_tagged(byte_bpe(), Trace("t", "Q", ("One <extra_0>.", "Two.")), "<extra_0>")
    assert encoded.unscored == "3 tags for 2 steps"


@pytest.mark.parametrize(
    ("kept", "says"),
    [
        ("m['content'] | replace('is', '')", "the chat template rewrites the solution"),
        ("m['content'] if loop.index < 4 else 'cut'", "the chat template rewrites the solution"),
        ("m['content']", "a verdict is not a token of its own"),  # the blank before it becomes a part of it
    ],
)
def test_turns_that_a_template_spoils_are_unscored(kept: str, says: str) -> None:
    template = f"{{% for m in messages %}}{{{{ {kept} }}}}{{% endfor %}}"
    trace = Trace("t", "Q", ("It is 1.", "It is "))
    assert encode_turns(llama_tokens(), trace, " ", "+", template).unscored == says


@pytest.mark.parametrize(
    "kept",
    [
        "m['content'] | upper",
        "m['content'] if m['role'] == 'user'",
        "m['content'] | replace('+', 'plus')",
    ],
)
def test_templates_that_spoil_every_turn_are_refused(kept: str) -> None:
    template = f"{{% for m in messages %}}{{{{ {kept} }}}}{{% endfor %}}"
    with pytest.raises(UserError, match="does not keep the answer") as caught:
        encode_turns(llama_tokens(), SUM, " ", "+", template)
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("code_cache")
@pytest.mark.parametrize("family", FAMILIES)
def test_a_trace_that_is_too_long_is_unscored_never_cut(
    family: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    folder = tmp_path / family
    folder.mkdir()
    for file in request.getfixturevalue(family).iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    shape = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**shape, "max_position_embeddings": 150}))
    if family == "eurus":
        reference = request.getfixturevalue(family).parent / "reference"
        row = json.loads((folder / "prm.json").read_text())
        (folder / "prm.json").write_text(json.dumps({**row, "ref_model": str(reference)}))
    long = Trace("long", "What is 2 plus 3?", ("We add 2 and 3.",) * 40)
    for trace, scores in zip((long, SUM), opened(folder).score([long, SUM]), strict=True):
        assert bool(scores.values) != bool(scores.unscored)
        assert ("the model takes 150" in scores.unscored) == (trace is long)


def test_probabilities_of_exactly_zero_keep_their_step(pure: Path) -> None:
    """Where zeros are dropped, as in a widespread helper, every later score would move one step forward."""
    engine = common.open_model(cards.ModelCard(str(pure), "token_cls"), ModelConfig(str(pure)), "classes")
    encoded = encode_separated(engine.tokenizer, TRACES[1], "\n\n")

    class Certain:
        def outputs(self, batch: Sequence[object], positions: Sequence[Sequence[int]]) -> list[np.ndarray]:
            row = np.zeros((len(encoded.ids), 2), dtype=np.float32)
            row[encoded.score_positions[0]] = (800, -800)  # P(right) is 0 in every precision
            row[encoded.score_positions[1]] = (-800, 800)
            row[encoded.score_positions[2]] = (1, 0)
            return [row[list(positions[0])]]

    (scores,) = token_cls.read(Certain(), [encoded])  # type: ignore[arg-type]
    assert scores.values[:2] == (0.0, 1.0)
    assert scores.values[2] == pytest.approx(1 / (1 + np.e))


def test_a_tie_is_right_and_less_is_wrong() -> None:
    """The rule everywhere is score < threshold; PURE and mr_eval call a tie wrong, which one ulp decides."""
    assert common.sigmoid(np.array([0.0]))[0] == 0.5
    trace, protocol = replace(SUM, first_error=-1), EvalProtocol("as_is", "native", 0.5)
    for value, right in ((0.5, True), (np.nextafter(0.5, 0), False)):
        row = join_scores(trace, StepScores(trace.id, (0.9, value), (1, 1)))
        assert sample([row], protocol).matches(np.array([0.5])).item() is right


def test_small_probabilities_stay_apart() -> None:
    x = np.array([-800.0, -700.0, -50.0, -49.0, 0.0, 40.0])
    found = common.sigmoid(x)
    assert (np.diff(found) > 0).all()
    np.testing.assert_allclose(found[1:], 1 / (1 + np.exp(-x[1:])), rtol=1e-12)


# --- rows -------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("code_cache")
def test_code_of_a_skywork_checkpoint_does_not_run(skywork: Path, tmp_path: Path) -> None:
    """The row needs none, so that code beside the weights is left alone."""
    folder = tmp_path / "hostile"
    folder.mkdir()
    for file in skywork.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    shape = json.loads((folder / "config.json").read_text())
    shape |= {"architectures": ["Qwen2ForPrmModel"], "auto_map": {"AutoModel": "modeling_prm.Qwen2ForPrmModel"}}
    (folder / "config.json").write_text(json.dumps(shape))
    (folder / "modeling_prm.py").write_text("raise SystemExit('ran')\n")
    assert [s.values for s in opened(folder).score(TRACES)] == [s.values for s in opened(skywork).score(TRACES)]


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({}, "needs a tag or a joint"),
        ({"tag": TAG}, "not a single token"),
        ({"joint": " ", "good": "good one"}, "not a single token"),
        ({"joint": " ", "bad": "+"}, "are one token"),
        ({"joint": 1}, "expected str"),
    ],
)
def test_cards_that_tag_lm_cannot_use(rlhflow: Path, tmp_path: Path, fields: dict[str, Any], says: str) -> None:
    folder = save(tmp_path / "m", "LlamaForCausalLM", llama_tokens(), backend="tag_lm", **fields)
    with pytest.raises(UserError, match=says) as caught:
        opened(folder).cost(SUM)
    assert "\n" not in str(caught.value)


def test_every_family_of_the_cards_is_tested_here_and_listed() -> None:
    rows = listing.describe_models()
    assert [row.model for row in rows] == list(cards.MODELS)
    tested = {"Math-Shepherd", "RLHFlow", "Skywork-o1-PRM", "PURE", "TRL", "Qwen2.5-Math-PRM", "EurusPRM"}
    asked = {"ThinkPRM", "GenPRM"}  # tests/backends/test_critic.py
    assert {row.family for row in rows} == tested | asked
    assert {row.family for row in rows if row.backend == "critic"} == asked
    for row in rows:
        assert all((row.input, row.position, row.label, row.verified, row.note))
        assert row.remote_code == ("code" in row.verified)
    eurus = [row for row in cards.MODELS.values() if row.backend == "implicit"]
    assert {row.ref_model for row in eurus} == {"Qwen/Qwen2.5-Math-7B-Instruct"}
    assert all("unverified" in row.note for row in eurus)
    ties = {row.family: row.tie for row in rows}
    assert ties == {
        **dict.fromkeys(("Math-Shepherd", "RLHFlow", "PURE", "TRL"), "wrong"),
        **dict.fromkeys(("Qwen2.5-Math-PRM", "Skywork-o1-PRM", "EurusPRM", "ThinkPRM", "GenPRM"), "right"),
    }
    assert "a score at the threshold is wrong" in listing.format_row(next(r for r in rows if r.family == "TRL"))
    position = {row.family: row.position for row in rows}
    assert position["Skywork-o1-PRM"] == "sigmoid(value) at its last separator"
    assert position["Qwen2.5-Math-PRM"] == "class 1 at the tag"
    assert position["RLHFlow"] == "next token before '+'"
    assert position["Math-Shepherd"] == "next token at the tag, '+' or '-'"
