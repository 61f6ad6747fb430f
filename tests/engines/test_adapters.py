"""A LoRA folder as a model: read with its base, whose hash or revision belongs to the run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from conftest import ROWS, save_model

from prmbench import evaluation
from prmbench.backends import common
from prmbench.config import EvalConfig
from prmbench.core import provenance
from prmbench.core.records import Notice, UserError
from prmbench.core.result_files import Run
from prmbench.engines.hf import HFEngine, Placement, load

peft = pytest.importorskip("peft")
CPU = Placement("cpu", "float32")


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """An adapter whose base lies beside it; it has no tokenizer."""
    base = save_model(tmp_path / "base", 3)
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    tuned = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
    torch.manual_seed(0)
    for name, weight in tuned.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.5)
    tuned.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def change(adapter: Path, **values: Any) -> None:
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def logits(engine: HFEngine) -> torch.Tensor:
    with torch.no_grad():
        return engine.model(torch.arange(8)[None]).logits


def evaluated(model: Path, folder: Path) -> Run:
    data = folder / "gsm8k.json"
    data.write_text(json.dumps(ROWS[:4]))
    run = evaluation.evaluate(EvalConfig(str(model), backend="endo", data=data, out=folder / "runs", device="cpu"))
    assert run is not None
    return run


def test_a_base_that_could_be_either_of_two_folders_is_refused(adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Found from the current folder and from the adapter's, `../base` would be another model in each."""
    change(adapter, base_model_name_or_path="../base")
    elsewhere = adapter.parent / "projects" / "here"
    elsewhere.mkdir(parents=True)
    monkeypatch.chdir(elsewhere)
    assert provenance.adapter_base(adapter) == (str(adapter / "../base"), None)
    (elsewhere.parent / "base").mkdir()
    with pytest.raises(UserError, match=r"base \.\./base is in the current folder and beside the adapter"):
        provenance.adapter_base(adapter)


def test_an_adapter_is_read_with_its_base_and_the_bases_tokenizer(adapter: Path) -> None:
    base = adapter.parent / "base"
    with pytest.warns(Notice, match=f"an adapter of {base}, without a tokenizer; the base's is used"):
        engine = load(str(adapter), "lm", CPU)
    with pytest.warns(Notice):
        assert load(str(adapter), "lm", CPU, empty=True).max_tokens == engine.max_tokens
    assert engine.tokenizer.get_vocab() == load(str(base), "lm", CPU).tokenizer.get_vocab()
    expected = peft.PeftModel.from_pretrained(transformers.AutoModelForCausalLM.from_pretrained(base), adapter)
    with torch.no_grad():
        assert torch.allclose(logits(engine), expected(torch.arange(8)[None]).logits, atol=1e-5)
    assert not torch.allclose(logits(engine), logits(load(str(base), "lm", CPU)), atol=1e-2)


def test_a_tokenizer_of_its_own_is_used(adapter: Path, recwarn: pytest.WarningsRecorder) -> None:
    transformers.AutoTokenizer.from_pretrained(adapter.parent / "base").save_pretrained(adapter)
    load(str(adapter), "lm", CPU)
    assert not [w for w in recwarn if w.category is Notice]


def test_a_base_retrained_in_place_makes_another_run(adapter: Path) -> None:
    first = evaluated(adapter, adapter.parent)
    assert evaluated(adapter, adapter.parent).path == first.path
    save_model(adapter.parent / "base", 4)
    second = evaluated(adapter, adapter.parent)
    assert second.path != first.path
    assert second.scores != first.scores
    assert second.result.manifest.weights != first.result.manifest.weights


def test_the_base_of_a_hub_name_counts_with_its_revision(adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = set()
    for sha in ("a" * 40, "b" * 40):
        monkeypatch.setattr(common, "resolve_commit", lambda name, revision, sha=sha: sha)
        for base in ("org/base", "org/other"):
            change(adapter, base_model_name_or_path=base)
            found.add(common.local_weights(str(adapter)))
    assert len(found) == 4


def test_a_relative_base_is_found_beside_the_adapter(adapter: Path) -> None:
    change(adapter, base_model_name_or_path="../base")
    with pytest.warns(Notice):
        load(str(adapter), "lm", CPU)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"base_model_name_or_path": None}, "names no base model"),
        ({"base_model_name_or_path": 5}, "names no base model"),
        ({"base_model_name_or_path": "a\0b"}, "a NUL can be in no name"),
        ({"base_model_name_or_path": "./nowhere"}, "there is no such file or folder"),
        ({"base_model_name_or_path": "../adapter"}, "which is an adapter itself"),
    ],
)
def test_a_base_that_cannot_be(adapter: Path, values: dict[str, Any], says: str) -> None:
    change(adapter, **values)
    with pytest.raises(UserError, match=says) as caught:
        load(str(adapter), "lm", CPU)
    assert "\n" not in str(caught.value)


def test_an_adapter_without_its_weights(adapter: Path) -> None:
    (adapter / "adapter_model.safetensors").unlink()
    with pytest.warns(Notice), pytest.raises(UserError, match=r"cannot be loaded|lacks weights"):
        load(str(adapter), "lm", CPU)


def test_a_whole_model_with_an_adapter_inside_is_a_whole_model(adapter: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        shutil.copy(adapter.parent / "base" / name, adapter)
    assert provenance.adapter_base(adapter) is None


@pytest.mark.parametrize("command", ["train-sft", "train-rm", "train-distrl"])
def test_training_starts_from_whole_weights(adapter: Path, tmp_path: Path, command: str) -> None:
    from cli_calls import refused

    line = refused(command, "--model", adapter, "--data", tmp_path / "x.jsonl", "--out", tmp_path / "out")
    assert "is an adapter of" in line
    assert not (tmp_path / "out").exists()
