"""Models without a prm.json: what is inferred from their files, what is refused, and that the scores are right."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from cli_calls import call, fine, refused
from conftest import ROWS, save_model
from family_checkpoints import QWEN_CODE, by_separator, llama_tokens, logits_of, qwen_tokens, row_of, save
from safetensors.torch import load_file, save_file
from three_traces import TRACES

from prmbench import tasks
from prmbench.backends import cards, find_card, load_backend, trl_files
from prmbench.config import ModelConfig
from prmbench.core.records import Notice, UserError
from prmbench.engines.family_encodings import encode_pieces

SHA = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class PRMConfig:
    """What TRL's class of that name pickles into training_args.bin, in part."""

    output_dir: str
    step_separator: str | None
    disable_dropout: str = "True"


def files(
    folder: Path,
    architecture: str = "",
    tensors: Mapping[str, tuple[int, ...]] = {},
    added: tuple[str, ...] = (),
    **config: Any,
) -> Path:
    """A folder with nothing but what inference looks at."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"architectures": [architecture], **config}))
    save_file({name: torch.zeros(shape) for name, shape in tensors.items()}, folder / "model.safetensors")
    (folder / "tokenizer.json").write_text(json.dumps({"added_tokens": [{"content": token} for token in added]}))
    return folder


def labels(*names: str) -> dict[str, dict[str, str]]:
    return {"id2label": {str(index): name for index, name in enumerate(names)}}


def fields_of(card: cards.ModelCard) -> dict[str, Any]:
    names = ("backend", "separator", "tag", "positive_class", "prompt", "head", "activation", "ref_model")
    values = {name: getattr(card, name) for name in names}
    return {name: value for name, value in values.items() if value not in (None, "none")}


# --- what is inferred -------------------------------------------------------------------------------------------------

CLASSIFIER = "Qwen2ForTokenClassification"
LAYERS = {"score.0.weight": (4, 4), "score.0.bias": (4,), "score.2.weight": (2, 4), "score.2.bias": (2,)}
CHAT = ("<|im_start|>", "<|im_end|>", "<think>", "<tool_call>", "<|endoftext|>")
TOKEN_CLS = {"backend": "token_cls"}


@pytest.mark.parametrize(
    ("model", "options", "expected"),
    [
        ({"architecture": CLASSIFIER}, {}, {**TOKEN_CLS, "separator": "\n"}),
        ({"architecture": CLASSIFIER, "added": CHAT}, {}, {**TOKEN_CLS, "separator": "\n"}),
        ({"architecture": CLASSIFIER, "added": (*CHAT, "<extra_0>")}, {}, {**TOKEN_CLS, "tag": "<extra_0>"}),
        ({"architecture": CLASSIFIER, "added": (*CHAT, "<|step_end|>")}, {}, {**TOKEN_CLS, "tag": "<|step_end|>"}),
        ({"architecture": CLASSIFIER, "added": ("<step>", "</step>")}, {}, {**TOKEN_CLS, "tag": "</step>"}),
        ({"architecture": CLASSIFIER, "added": ("[PRM]",)}, {}, {**TOKEN_CLS, "tag": "[PRM]"}),
        ({"architecture": CLASSIFIER, "added": ("<a>",)}, {"tag": "<a>"}, {**TOKEN_CLS, "tag": "<a>"}),
        ({"architecture": CLASSIFIER}, {"separator": r"\n\n"}, {**TOKEN_CLS, "separator": "\n\n"}),
        ({"architecture": CLASSIFIER}, {"separator": "\n\n"}, {**TOKEN_CLS, "separator": "\n\n"}),
        ({"architecture": CLASSIFIER}, {"backend": "token_cls"}, {**TOKEN_CLS, "separator": "\n"}),
        (
            {"architecture": CLASSIFIER, **labels("good", "bad")},
            {},
            {**TOKEN_CLS, "separator": "\n", "positive_class": 0},
        ),
        ({"architecture": CLASSIFIER, **labels("bad", "good")}, {}, {**TOKEN_CLS, "separator": "\n"}),
        (
            {"architecture": CLASSIFIER, **labels("negative", "neutral", "positive")},
            {},
            {**TOKEN_CLS, "separator": "\n", "positive_class": 2},
        ),
        (
            {"architecture": CLASSIFIER, **labels("A", "B")},
            {"positive_class": "a"},
            {**TOKEN_CLS, "separator": "\n", "positive_class": 0},
        ),
        (
            {"architecture": "Qwen2ForProcessRewardModel", "tensors": LAYERS, "added": ("<extra_0>",)},
            {},
            {**TOKEN_CLS, "tag": "<extra_0>", "head": "score.", "prompt": "qwen_math_prm_system"},
        ),
        (
            {"architecture": "Qwen2ForProcessRewardModel", "tensors": LAYERS, "added": ("<extra_0>",)},
            {"tag": "<extra_0>"},
            {**TOKEN_CLS, "tag": "<extra_0>", "head": "score.", "prompt": "qwen_math_prm_system"},
        ),
        (
            {"architecture": CLASSIFIER, "tensors": {"score.weight": (2, 4)}, **labels("1", "0")},
            {},
            {**TOKEN_CLS, "separator": "\n", "positive_class": 0},
        ),
        (
            {
                "architecture": "Qwen2ForRewardModel",
                "tensors": {**LAYERS, "score.2.weight": (1, 4), "score.2.bias": (1,)},
            },
            {},
            {"backend": "value_head", "head": "score."},
        ),
        (
            {"architecture": "LlamaForSequenceClassification", "tensors": {"score.weight": (1, 4)}},
            {},
            {"backend": "value_head"},
        ),
        ({"architecture": "LlamaForRewardModel", "tensors": {"score.weight": (1, 4)}}, {}, {"backend": "value_head"}),
        ({"architecture": CLASSIFIER, **labels("LABEL_0")}, {}, {"backend": "value_head"}),
        (
            {"architecture": CLASSIFIER, "tensors": {"score.weight": (1, 4)}},
            {"tag": "<a>"},
            {"backend": "value_head", "tag": "<a>"},
        ),
        (
            {
                "architecture": "LlamaForCausalLM",
                "tensors": {"v_head.summary.weight": (1, 4), "lm_head.weight": (9, 4)},
            },
            {},
            {"backend": "value_head", "head": "v_head.summary."},
        ),
        (
            {
                "architecture": "Qwen2ForPrmModel",
                "tensors": {"v_head.summary.weight": (1, 4), "v_head.summary.bias": (1,)},
            },
            {},
            {"backend": "value_head", "head": "v_head.summary.", "separator": "\n", "activation": "sigmoid"},
        ),
        (
            {"architecture": "LlamaModel", "tensors": {"model.value_head.weight": (1, 4)}},
            {},
            {"backend": "value_head", "head": "model.value_head."},
        ),
        ({"architecture": "LlamaForCausalLM", "added": CHAT}, {"tag": "ки"}, {"backend": "tag_lm", "tag": "ки"}),
        ({"architecture": "GPT2LMHeadModel"}, {"ref_model": "."}, {"backend": "implicit", "ref_model": "."}),
    ],
)
def test_fields_are_inferred(
    tmp_path: Path, model: dict[str, Any], options: dict[str, Any], expected: dict[str, Any]
) -> None:
    folder = files(tmp_path / "m", **model)
    with pytest.warns(Notice, match=r"no prm\.json, so assumed from its files: backend") as notices:
        card = find_card(ModelConfig(str(folder), **options))
    assert fields_of(card) == expected
    (notice,) = [str(n.message) for n in notices]
    assert "\n" not in notice
    assert f"backend {expected['backend']}" in notice
    assert f"prmbench init {folder}" in notice
    for name in ("separator", "tag"):
        assert name not in expected or (repr(expected[name]) in notice or expected[name] in notice)
    if expected["backend"] == "token_cls":
        assert f"class {expected.get('positive_class', 1)} means right" in notice


@pytest.mark.parametrize(
    ("model", "options", "says", "example"),
    [
        (
            {"architecture": "LlamaForCausalLM"},
            {},
            "--ref-model MODEL",
            {"backend": "implicit", "ref_model": "PATH OR HUB ID"},
        ),
        (
            {"architecture": "LlamaForCausalLM", "_name_or_path": "org/sft"},
            {},
            "--ref-model org/sft",
            {"backend": "implicit", "ref_model": "org/sft"},
        ),
        (
            {"architecture": CLASSIFIER, **labels("A", "B")},
            {},
            "--positive-class 1",
            {**TOKEN_CLS, "separator": "\n", "positive_class": 1},
        ),
        (
            {"architecture": CLASSIFIER, **labels("LABEL_0", "LABEL_1", "LABEL_2")},
            {},
            "--positive-class 2",
            {**TOKEN_CLS, "separator": "\n", "positive_class": 2},
        ),
        (
            {"architecture": CLASSIFIER, "added": ("<step>", "<reward>")},
            {},
            "--tag '<step>'",
            {**TOKEN_CLS, "tag": "<step>"},
        ),
        ({"architecture": CLASSIFIER}, {"backend": "value_head_"}, "--backend value_head_", None),
        (
            {"architecture": "BertForSequenceClassification", **labels("x")},
            {},
            "scores a text as a whole",
            {"backend": "implicit", "ref_model": "PATH OR HUB ID"},
        ),
        (
            {"architecture": "LlamaModel"},
            {},
            "without a head for rewards",
            {"backend": "implicit", "ref_model": "PATH OR HUB ID"},
        ),
        (
            {"architecture": "LlamaModel", "tensors": {"a_head.x.weight": (1, 4)}},
            {},
            "without a head for rewards",
            {"backend": "implicit", "ref_model": "PATH OR HUB ID"},
        ),
        (
            {"architecture": "LlamaModel", "tensors": {"v_head.weight": (1, 4), "rm_head.weight": (1, 4)}},
            {},
            "several heads",
            {"backend": "value_head", "head": "rm_head."},
        ),
        ({"architecture": CLASSIFIER}, {"separator": "x", "tag": "y"}, "--separator and --tag", None),
        ({"architecture": CLASSIFIER}, {"separator": ""}, "--separator is empty", None),
        ({"architecture": CLASSIFIER}, {"positive_class": "2"}, "choose from 0, 1", None),
        (
            {"architecture": CLASSIFIER, **labels("right", "wrong")},
            {"positive_class": "rigth"},
            "the nearest is 'right'",
            None,
        ),
        (
            {"architecture": "LlamaForCausalLM"},
            {"ref_model": ".", "separator": "x"},
            "--separator: is of token_cls",
            None,
        ),
        (
            {"architecture": CLASSIFIER, **labels("x")},
            {"positive_class": "1"},
            "--positive-class: is of token_cls",
            None,
        ),
    ],
)
def test_what_cannot_be_inferred_is_one_line_with_the_prm_json(
    tmp_path: Path, model: dict[str, Any], options: dict[str, Any], says: str, example: dict[str, Any] | None
) -> None:
    folder = files(tmp_path / "m", **model)
    with pytest.raises(UserError) as caught:
        find_card(ModelConfig(str(folder), **options))
    text = str(caught.value)
    assert any(part in text for part in says.split("|"))
    assert "\n" not in text
    if example is not None:
        (written,) = re.findall(r"\{.*\}", text)
        assert json.loads(written) == example
        (folder / "prm.json").write_text(written)
        card = cards.from_folder(folder)  # it is a card
        assert card is not None
        assert card.backend == example["backend"]


def test_a_baseline_has_no_such_options() -> None:
    with pytest.raises(UserError, match="--tag: is of token_cls"):
        find_card(ModelConfig("random", tag="x"))


def test_a_folder_without_a_model_names_its_checkpoint(tmp_path: Path) -> None:
    files(tmp_path / "run" / "checkpoint-7", CLASSIFIER)
    with pytest.raises(UserError, match=r"no config\.json; did you mean .*run/checkpoint-7\?"):
        find_card(ModelConfig(str(tmp_path / "run")))


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_damaged_files_are_named(tmp_path: Path, name: str) -> None:
    folder = files(tmp_path / "m", CLASSIFIER)
    (folder / name).write_text("{")
    with pytest.raises(UserError, match=name):
        find_card(ModelConfig(str(folder)))


@pytest.mark.parametrize("separator", ["\n", "\n\n", " ки", "True", None])
def test_trls_separator_is_read_without_unpickling(tmp_path: Path, separator: str | None) -> None:
    folder = files(tmp_path / "m", CLASSIFIER, added=("<extra_0>",))
    torch.save(PRMConfig("\n\n", separator), folder / "training_args.bin")  # texts that stand there twice
    assert trl_files.step_separator(folder / "training_args.bin") == separator
    expected = {"tag": "<extra_0>"} if separator is None else {"separator": separator}
    assert fields_of(find_card(ModelConfig(str(folder)))) == {**TOKEN_CLS, **expected}
    for content in (b"", b"PK\x05\x06" + bytes(18), b"\x80\x02."):
        (folder / "training_args.bin").write_bytes(content)
        assert trl_files.step_separator(folder / "training_args.bin") is None


@pytest.mark.parametrize(("place", "value"), [(6, 1), (8, 99)])  # flags: encrypted; a compression nobody knows
def test_training_arguments_that_cannot_be_unpacked_are_left_alone(tmp_path: Path, place: int, value: int) -> None:
    path = tmp_path / "training_args.bin"
    torch.save(PRMConfig("out", "x"), path)
    content = bytearray(path.read_bytes())
    for signature, offset in ((b"PK\x03\x04", place), (b"PK\x01\x02", place + 2)):
        start = content.find(signature)
        while start >= 0:
            content[start + offset] |= value
            start = content.find(signature, start + 4)
    path.write_bytes(bytes(content))
    assert trl_files.step_separator(path) is None


def test_a_huge_pickle_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save(PRMConfig("out", "x"), tmp_path / "training_args.bin")
    assert trl_files.step_separator(tmp_path / "training_args.bin") == "x"
    monkeypatch.setattr(trl_files, "MAX_BYTES", 10)
    assert trl_files.step_separator(tmp_path / "training_args.bin") is None


@pytest.mark.parametrize(
    ("model", "options", "is_guess"),
    [
        ({}, {}, True),
        ({"added": ("<extra_0>",)}, {}, False),
        ({}, {"separator": r"\n"}, False),
        ({"saved": "\n"}, {}, False),
    ],
)
def test_a_separator_that_nothing_names_is_called_a_guess(
    tmp_path: Path, model: dict[str, Any], options: dict[str, Any], is_guess: bool
) -> None:
    saved = model.get("saved")
    folder = files(tmp_path / "m", CLASSIFIER, added=model.get("added", ()))
    if saved is not None:
        torch.save(PRMConfig("out", saved), folder / "training_args.bin")
    with pytest.warns(Notice, match="assumed from its files") as notices:
        find_card(ModelConfig(str(folder), **options))
    guess = r"separator '\n' (a guess, TRL's default: no file names it; a wrong one gives numbers near the floors)"
    assert [guess in str(notice.message) for notice in notices] == [is_guess]


def test_a_model_in_the_hubs_cache_is_read_as_a_folder_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repository = tmp_path / "models--org--prm"
    files(repository / "snapshots" / SHA, CLASSIFIER, {"score.weight": (2, 4)}, ("<extra_0>",))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(SHA)
    for place in ("huggingface_hub.constants.HF_HUB_CACHE", "huggingface_hub.file_download.constants.HF_HUB_CACHE"):
        monkeypatch.setattr(place, str(tmp_path))
    monkeypatch.setattr("transformers.utils.hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert fields_of(find_card(ModelConfig("org/prm"))) == {**TOKEN_CLS, "tag": "<extra_0>"}


# --- scores -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trl_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier as TRL saves it, trained with two line breaks."""
    folder = save(tmp_path_factory.mktemp("own") / "trl", CLASSIFIER, llama_tokens(), 5)
    (folder / "prm.json").unlink()
    torch.save(PRMConfig("out", "\n\n"), folder / "training_args.bin")
    return folder


@pytest.fixture
def traces(tmp_path: Path) -> Path:
    path = tmp_path / "gsm8k.json"
    path.write_text(json.dumps(ROWS[:6]))
    return path


def scored(model: Path, traces: Path, out: Path, *flags: object) -> tuple[str, dict[str, tuple[float, ...]], Any]:
    """The run's id, its scores and its manifest."""
    printed = json.loads(fine("eval", "--model", model, "--data", traces, "--out", out, "--json", *flags))
    run = tasks.read_run(Path(printed["path"]))
    return printed["manifest"]["run_id"], {t.id: t.values for t in run.scores}, run.result.manifest


def test_a_trl_prm_needs_no_flag_and_init_writes_down_what_was_assumed(
    trl_folder: Path, traces: Path, tmp_path: Path
) -> None:
    backend = load_backend(ModelConfig(str(trl_folder)))
    assert (backend.facts.input_format, backend.facts.positive_class) == (r"separator '\n\n'", None)
    assert backend.facts.assumed == {"backend": "token_cls", "separator": "\n\n"}
    for trace, scores in zip(TRACES, backend.score(TRACES), strict=True):
        np.testing.assert_allclose(scores.values, by_separator(trl_folder, trace), rtol=1e-5, atol=1e-5)
    folder = Path(shutil.copytree(trl_folder, tmp_path / "copy"))
    run_id, values, manifest = scored(folder, traces, tmp_path / "runs")
    assert manifest.assumed == {"backend": "token_cls", "separator": "\n\n"}
    for flag in (r"\n\n", "\n\n"):
        assert scored(folder, traces, tmp_path / "runs", "--separator", flag)[0] == run_id
    assert scored(folder, traces, tmp_path / "runs", "--positive-class", 1)[0] == run_id
    other_id, other, _ = scored(folder, traces, tmp_path / "runs", "--separator", r"\n")
    assert other_id != run_id
    assert other != values
    assert json.loads(fine("init", folder).split(": ", 1)[1]) == {"backend": "token_cls", "separator": "\n\n"}
    _, after, manifest = scored(folder, traces, tmp_path / "runs")
    assert (after, manifest.assumed) == (values, {})


def test_flags_win_over_the_card(trl_folder: Path, traces: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(trl_folder, tmp_path / "copy"))
    (folder / "prm.json").write_text('{"backend": "token_cls", "separator": "\\n"}')
    run_id, _, _ = scored(folder, traces, tmp_path / "runs")
    changed_id, values, manifest = scored(folder, traces, tmp_path / "runs", "--separator", r"\n\n")
    assert changed_id != run_id
    assert values == scored(trl_folder, traces, tmp_path / "runs")[1]
    assert manifest.assumed == {"separator": "\n\n"}
    _, _, manifest = scored(folder, traces, tmp_path / "runs", "--tag", "<extra_0>")
    assert manifest.input_format == "chat+tag <extra_0>"


def test_the_class_of_a_right_step(trl_folder: Path, traces: Path, tmp_path: Path) -> None:
    run_id, values, _ = scored(trl_folder, traces, tmp_path / "runs")
    folder = Path(shutil.copytree(trl_folder, tmp_path / "swapped"))
    shape = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**shape, **labels("correct", "incorrect")}))
    _, swapped, manifest = scored(folder, traces, tmp_path / "runs")
    assert manifest.positive_class == 0
    for name, expected in values.items():
        np.testing.assert_allclose(swapped[name], [1 - value for value in expected], atol=1e-12)
    zero_id, zero, _ = scored(trl_folder, traces, tmp_path / "runs", "--positive-class", 0)
    assert zero_id != run_id
    assert zero == swapped
    assert scored(folder, traces, tmp_path / "runs", "--positive-class", "INCORRECT")[1] == values
    (folder / "prm.json").write_text('{"backend": "token_cls", "separator": "\\n\\n"}')
    with pytest.warns(Notice, match="class 0 is named 'correct', and class 1 counts as right"):
        load_backend(ModelConfig(str(folder)))
    assert scored(folder, traces, tmp_path / "runs")[1] == values  # a card is read as before
    (folder / "prm.json").write_text('{"backend": "token_cls", "separator": "\\n\\n", "positive_class": 0}')
    assert scored(folder, traces, tmp_path / "runs")[1] == swapped


def test_three_classes(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "three", 1, "AutoModelForTokenClassification", num_labels=3)
    shape = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**shape, **labels("wrong", "neutral", "right")}))
    backend = load_backend(ModelConfig(str(folder), separator=r"\n"))
    assert backend.facts.positive_class == 2
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(folder))
    for trace, scores in zip(TRACES, backend.score(TRACES), strict=True):
        ids, ends = [tokenizer.bos_token_id, *tokenizer.encode(trace.prompt, add_special_tokens=False)], []
        for step in trace.steps:
            ids += tokenizer.encode(step, add_special_tokens=False) + tokenizer.encode("\n", add_special_tokens=False)
            ends.append(len(ids) - 1)
        right = logits_of(folder, ids, "AutoModelForTokenClassification").softmax(-1)[ends, 2]
        np.testing.assert_allclose(scores.values, right, atol=1e-5)


def test_a_scalar_reward_model_and_a_language_models_value_head(tmp_path: Path) -> None:
    scalar = save_model(tmp_path / "scalar", 1, "AutoModelForSequenceClassification", num_labels=1)
    weight = load_file(scalar / "model.safetensors")["score.weight"][0].double()
    headed = save_model(tmp_path / "headed", 2)
    tensors = load_file(headed / "model.safetensors")
    head = {"v_head.summary.weight": torch.randn(1, 32), "v_head.summary.bias": torch.tensor([0.5])}
    save_file(tensors | head, headed / "model.safetensors", {"format": "pt"})
    for folder, row, bias in ((scalar, weight, 0.0), (headed, head["v_head.summary.weight"][0].double(), 0.5)):
        backend = load_backend(ModelConfig(str(folder), separator="\\n"))
        assert (backend.facts.kind, backend.facts.backend) == ("value", "value_head")
        model = transformers.AutoModel.from_pretrained(str(folder)).eval()
        for trace, scores in zip(TRACES, backend.score(TRACES), strict=True):
            encoded = encode_pieces(transformers.AutoTokenizer.from_pretrained(str(folder)), trace, "\n")
            with torch.no_grad():
                states = model(input_ids=torch.tensor([encoded.ids])).last_hidden_state[0].double()
            expected = (states[list(encoded.score_positions)] @ row + bias).tolist()
            np.testing.assert_allclose(scores.values, expected, rtol=1e-4, atol=1e-4)
    tagged = load_backend(ModelConfig(str(scalar)))  # its tokenizer has <extra_0>
    assert tagged.facts.input_format == "chat+tag <extra_0>"
    assert all(len(s.values) == len(t.steps) for t, s in zip(TRACES, tagged.score(TRACES), strict=True))


@pytest.mark.parametrize(
    ("task", "auto", "classes"),
    [("TOKEN_CLS", "AutoModelForTokenClassification", 2), ("SEQ_CLS", "AutoModelForSequenceClassification", 1)],
)
def test_a_prm_saved_as_lora(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: str, auto: str, classes: int
) -> None:
    peft = pytest.importorskip("peft")
    base = save_model(tmp_path / "base", 3)
    model = getattr(transformers, auto).from_pretrained(base, num_labels=classes)
    tuned = peft.get_peft_model(model, peft.LoraConfig(r=2, task_type=task, target_modules=["q_proj", "v_proj"]))
    torch.manual_seed(0)
    for name, tensor in tuned.named_parameters():
        if "lora_B" in name or "score" in name:
            torch.nn.init.normal_(tensor, std=0.5)
    tuned.save_pretrained(tmp_path / "lora")
    adapter = tmp_path / "lora" / "adapter_config.json"
    adapter.write_text(json.dumps({**json.loads(adapter.read_text()), "base_model_name_or_path": "../base"}))
    monkeypatch.chdir("/")
    backend = load_backend(ModelConfig(str(tmp_path / "lora"), separator="\\n"))
    assert backend.facts.backend == ("token_cls" if classes > 1 else "value_head")
    plan = load_backend(ModelConfig(str(tmp_path / "lora"), separator="\\n", dry_run=True))
    tuned.eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(base))
    for trace, scores in zip(TRACES, backend.score(TRACES), strict=True):
        assert plan.cost(trace) == backend.cost(trace)
        encoded = backend.encode(trace)  # type: ignore[attr-defined]
        with torch.no_grad():
            states = tuned.base_model.model.model(torch.tensor([encoded.ids])).last_hidden_state
            outputs = tuned.base_model.model.score(states)[0, [end - 1 for end in encoded.ends]].double()
        expected = outputs.softmax(-1)[:, 1] if classes > 1 else outputs[:, 0]
        np.testing.assert_allclose(scores.values, expected, rtol=1e-4, atol=1e-5)
    assert tokenizer.decode(encoded.ids[-1]) == "\n"


def test_a_language_model_saved_as_lora_names_its_base(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    (tmp_path / "lora").mkdir()
    values = {"base_model_name_or_path": str(tmp_path / "base"), "task_type": "CAUSAL_LM"}
    (tmp_path / "lora" / "adapter_config.json").write_text(json.dumps(values))
    line = refused("eval", "--model", tmp_path / "lora", "--data", "x.json", "--out", tmp_path / "runs")
    assert '{"backend": "implicit", "ref_model": "../base"}' in line
    assert "CAUSAL_LM adapter" in line


# --- Qwen2.5-Math-PRM -------------------------------------------------------------------------------------------------


def test_qwens_head_of_two_layers_needs_none_of_its_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stand-in for the repository's own code gives the same scores to the last bit, and native reads run none."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    folder = save(tmp_path / "qwen", "Qwen2ForCausalLM", qwen_tokens(), 6)
    torch.manual_seed(1)
    head = torch.nn.Sequential(torch.nn.Linear(32, 32), torch.nn.ReLU(), torch.nn.Linear(32, 2))
    tensors = {f"score.{name}": value.detach().clone() for name, value in head.state_dict().items()}
    weights = {k: v for k, v in load_file(folder / "model.safetensors").items() if not k.startswith("lm_head")}
    save_file(weights | tensors, folder / "model.safetensors", {"format": "pt"})
    (folder / "modeling_prm.py").write_text(QWEN_CODE + "\n\nimport sys\nsys.modules['its_own_code_ran'] = sys\n")
    shape = json.loads((folder / "config.json").read_text())
    shape |= {"architectures": ["Qwen2ForProcessRewardModel"], "auto_map": {"AutoModel": "modeling_prm.Prm"}}
    (folder / "config.json").write_text(json.dumps(shape))
    row = row_of("Qwen/Qwen2.5-Math-PRM-7B")
    (folder / "prm.json").write_text(json.dumps(row))
    native = [s.values for s in load_backend(ModelConfig(str(folder))).score(TRACES)]
    (folder / "prm.json").unlink()
    inferred = load_backend(ModelConfig(str(folder)))
    assert [s.values for s in inferred.score(TRACES)] == native
    import sys

    assert "its_own_code_ran" not in sys.modules
    (folder / "prm.json").write_text(json.dumps({**row, "remote_code": True, "head": None}))
    config = ModelConfig(str(folder), revision=SHA, trust_remote_code=True)
    assert [s.values for s in load_backend(config).score(TRACES)] == native
    assert sys.modules.pop("its_own_code_ran")
    assert len({value for values in native for value in values}) == sum(len(t.steps) for t in TRACES)
    assert not [name for name, card in cards.MODELS.items() if card.remote_code]


def test_layers_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    folder = save(tmp_path / "qwen", "Qwen2ForCausalLM", qwen_tokens(), 6, **row_of("Qwen/Qwen2.5-Math-PRM-7B"))
    weights = load_file(folder / "model.safetensors")
    for tensors in (
        {},
        {"score.0.weight": torch.ones(8, 32), "score.2.weight": torch.ones(2, 9)},
        {"score.0.weight": torch.ones(8, 32), "score.1.weight": torch.ones(2, 8)},
        {"score.0.weight": torch.ones(8, 32), "score.2.bias": torch.ones(2)},
    ):
        save_file(weights | tensors, folder / "model.safetensors", {"format": "pt"})
        with pytest.raises(UserError, match=r"tensors score\.\*: holds .*; expected linear layers 0, 2"):
            load_backend(ModelConfig(str(folder)))


# --- init -------------------------------------------------------------------------------------------------------------


def test_init_writes_a_card_that_needs_no_flags(policy: Path, reference: Path, tmp_path: Path, traces: Path) -> None:
    for folder in (policy, reference):
        shutil.copytree(folder, tmp_path / folder.name)
    model = tmp_path / policy.name
    assert "several ways" in refused("init", model)
    assert not (model / "prm.json").exists()
    flags = ("--ref-model", tmp_path / reference.name)
    _, values, _ = scored(model, traces, tmp_path / "runs", *flags)
    printed = fine("init", model, *flags)
    content = {"backend": "implicit", "ref_model": f"../{reference.name}"}
    assert json.loads((model / "prm.json").read_text()) == content
    assert json.loads(printed.split(": ", 1)[1]) == content
    assert scored(model, traces, tmp_path / "runs")[1] == values
    assert "exists; pass --force" in refused("init", model, "--backend", "endo")
    (model / "prm.json").write_text(json.dumps({**content, "seed": 3, "signal": "outcome", "trained_on": ["a"]}))
    fine("init", model, "--backend", "endo", "--force")
    kept = {"seed": 3, "signal": "outcome", "trained_on": ["a"]}
    assert json.loads((model / "prm.json").read_text()) == {"backend": "endo", **kept}


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--backend", "implicit"), "needs --ref-model"),
        (("--backend", "tag_lm"), "needs --tag"),
        (("--backend", "token-cls"), "the nearest is 'token_cls'"),
        (("--backend", "endo", "--tag", "x"), "--tag: is of"),
        (("--backend", "endo", "--ref-model", "."), "has no reference; drop it, or pass --backend implicit"),
        (("--ref-model", "./missing"), "--ref-model ./missing: no such file"),
        (("--separator", "x", "--tag", "y"), "both close a step"),
    ],
)
def test_init_refuses(policy: Path, flags: tuple[str, ...], says: str) -> None:
    assert says in refused("init", policy, *flags)
    assert not (policy / "prm.json").exists()


def test_init_needs_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    files(tmp_path / "runs" / "mine", CLASSIFIER)
    assert "did you mean runs/mine?" in refused("init", "runs/mime")
    assert "not a folder" in refused("init", "org/name")
    (tmp_path / "runs" / "mine" / "prm.json").symlink_to(tmp_path / "elsewhere.json")
    assert call("init", "runs/mine", "--force").exit_code == 2
    assert not (tmp_path / "elsewhere.json").exists()


@pytest.mark.parametrize("command", [("eval", "--model"), ("init",), ("score", "--data", "x.jsonl", "--model")])
@pytest.mark.parametrize("backend", [(), ("--backend", "token_cls")])
def test_a_reference_of_a_classifier_is_refused_in_one_line_without_another_hint(
    tmp_path: Path, command: tuple[str, ...], backend: tuple[str, ...]
) -> None:
    model = files(tmp_path / "model", CLASSIFIER)
    (tmp_path / "x.jsonl").write_text(json.dumps({"problem": "1+1?", "steps": ["2"]}) + "\n")
    arguments = [tmp_path / word if word == "x.jsonl" else word for word in command]
    result = call(*arguments, model, *backend, "--ref-model", model)
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"error: --ref-model {model}: {model} is a classifier, whose steps backend token_cls scores")
    assert line.endswith("without a reference; drop it")
    assert not (model / "prm.json").exists()
