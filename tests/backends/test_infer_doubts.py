"""What the files of a model leave open: it is said, refused with the way out, and never a silent wrong number."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from cli_calls import call, fine, refused
from conftest import save_model
from safetensors.torch import load_file, save_file

from prmbench.backends.step_labels import find_class, means_wrong, numbered_labels
from prmbench.core import provenance
from prmbench.core.records import UserError

ROW = {"id": "r", "problem": "What is 1+1?", "steps": ["We add.", "It is 2."], "label": -1}


@pytest.fixture(scope="module")
def classifiers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Path]]:
    """Makes copies of a tiny classifier with other fields in its config.json."""
    place = tmp_path_factory.mktemp("classifiers")
    for classes in (1, 2):
        save_model(place / f"of-{classes}", 0, "AutoModelForTokenClassification", num_labels=classes)

    def copy(name: str, classes: int = 2, **changes: Any) -> Path:
        shutil.copytree(place / f"of-{classes}", place / name, dirs_exist_ok=True)
        config = json.loads((place / name / "config.json").read_text())
        (place / name / "config.json").write_text(json.dumps(config | changes))
        return place / name

    return copy


@pytest.fixture
def arguments(tmp_path: Path) -> Callable[..., tuple[object, ...]]:
    (tmp_path / "rows.jsonl").write_text(json.dumps(ROW) + "\n")

    def score(model: Path, *options: object) -> tuple[object, ...]:
        return ("score", "--model", model, "--data", tmp_path / "rows.jsonl", "--out", tmp_path / "s.jsonl", *options)

    return score


@pytest.fixture
def scores(tmp_path: Path, arguments: Callable[..., tuple[object, ...]]) -> Callable[..., list[float]]:
    def values(model: Path, *options: object) -> list[float]:
        fine(*arguments(model, "--force", *options))
        row: dict[str, Any] = json.loads((tmp_path / "s.jsonl").read_text().splitlines()[0])
        numbers: list[float] = row["values"]
        return numbers

    return values


def test_a_stated_value_head_gets_the_rest_from_its_files(
    classifiers: Callable[..., Path],
    arguments: Callable[..., tuple[object, ...]],
    scores: Callable[..., list[float]],
) -> None:
    model = classifiers("value", 1)
    assert scores(model, "--backend", "value_head") == scores(model)
    assert "tag <extra_0>" in call(*arguments(model, "--force", "--backend", "value_head")).stderr


@pytest.mark.parametrize("name", ["error", "Wrong", "incorrect", "is_error", "not_correct"])
def test_a_value_named_after_errors_is_negated_and_the_run_says_so(
    name: str,
    classifiers: Callable[..., Path],
    arguments: Callable[..., tuple[object, ...]],
    scores: Callable[..., list[float]],
) -> None:
    model = classifiers(f"rises-with-{name}", 1, id2label={"0": name})
    plain = scores(classifiers("value", 1))
    assert scores(model) == [-value for value in plain]
    assert "value negated" in call(*arguments(model, "--force")).stderr
    (model / "prm.json").write_text(json.dumps({"backend": "value_head", "tag": "<extra_0>", "activation": "none"}))
    assert scores(model) == plain


@pytest.mark.parametrize("name", ["LABEL_0", "correct", "reward", "0", "-", "not sure", "no error"])
def test_other_names_leave_a_value_as_it_is(name: str) -> None:
    assert not means_wrong(name)


def test_the_function_between_the_layers_of_a_foreign_head_is_called_a_guess(
    tmp_path: Path, arguments: Callable[..., tuple[object, ...]]
) -> None:
    model = save_model(tmp_path / "layered", 0, "AutoModel")
    tensors = {f"model.{name}": tensor for name, tensor in load_file(model / "model.safetensors").items()}
    for number, rows in ((0, 32), (2, 1)):
        tensors |= {f"v_head.{number}.weight": torch.ones(rows, 32), f"v_head.{number}.bias": torch.ones(rows)}
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "architectures": ["LlamaForRewardModel"]}))
    assert "ReLU between the 2 layers of its head (a guess" in call(*arguments(model)).stderr


@pytest.mark.parametrize(
    ("id2label", "option", "message"),
    [
        ({"1": "bad", "2": "good"}, None, "numbers them 1, 2, and classes count from 0 to 1"),
        ({"1": "bad", "2": "good"}, "good", "choose from 0, 1"),
        ({"0": "good", "1": "Good"}, None, "cannot be told from its classes (0: good, 1: Good)"),
        ({"0": "good", "1": "Good"}, "good", "the classes 0 and 1 have this name; give the index"),
        ({"a": "bad", "b": "good"}, "1", 'write {"0": "bad", "1": "good"}'),
        (["bad", "good"], None, 'write {"0": "bad", "1": "good"}'),
    ],
)
def test_names_that_tell_no_class_are_refused_with_the_way_out(
    id2label: object,
    option: str | None,
    message: str,
    classifiers: Callable[..., Path],
    arguments: Callable[..., tuple[object, ...]],
) -> None:
    model = classifiers("named", id2label=id2label)
    stderr = refused(*arguments(model, *(("--positive-class", option) if option else ())))
    assert message in stderr
    assert option or "--positive-class 1" in stderr or "write" in stderr


def test_an_index_says_which_of_two_classes_of_one_name_is_right(
    classifiers: Callable[..., Path], scores: Callable[..., list[float]]
) -> None:
    model = classifiers("named", id2label={"0": "good", "1": "Good"})
    first, second = scores(model, "--positive-class", "0"), scores(model, "--positive-class", "1")
    assert [a + b for a, b in zip(first, second, strict=True)] == pytest.approx([1.0, 1.0])


@pytest.mark.parametrize(
    ("names", "classes", "labels"),
    [
        ({"0": "a", "1": "b"}, 2, {0: "a", 1: "b"}),
        ({1: "b", 0: "a"}, None, {0: "a", 1: "b"}),
        (["a", "b"], 2, {0: "a", 1: "b"}),
        ({"1": "a", "2": "b"}, 2, {}),
        ({"0": "a"}, 2, {}),
        ({"x": "a", "0": "b"}, 2, {}),
        (None, 2, {}),
        ("ab", 2, {}),
    ],
)
def test_labels_are_numbered_from_zero_or_none(names: object, classes: int | None, labels: dict[int, str]) -> None:
    assert numbered_labels(names, classes) == labels


def test_a_name_of_two_classes_names_none() -> None:
    with pytest.raises(UserError, match="classes 0 and 1 have this name"):
        find_class("good", {0: "good", 1: "GOOD"}, 2, "x")


# --- LoRA folders ---


@pytest.mark.parametrize("own", [None, {}, {"id2label": {"0": "good", "1": "bad"}}])
def test_a_lora_folder_with_a_config_is_an_adapter_whose_own_names_count(
    own: dict[str, Any] | None, tmp_path: Path, classifiers: Callable[..., Path], scores: Callable[..., list[float]]
) -> None:
    peft = pytest.importorskip("peft")
    base = classifiers("base")
    model = transformers.AutoModelForTokenClassification.from_pretrained(base)
    tuned = peft.get_peft_model(model, peft.LoraConfig(task_type="TOKEN_CLS", r=2, target_modules=["q_proj"]))
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if "lora_B" in name or "score" in name:
                parameter.normal_(std=0.1)
    tuned.save_pretrained(tmp_path / "lora")
    plain = scores(tmp_path / "lora")
    assert plain != scores(base)
    if own is not None:
        config = json.loads((base / "config.json").read_text())
        (tmp_path / "lora" / "config.json").write_text(json.dumps(config | own))
    expected = [1 - value for value in plain] if own else plain
    assert scores(tmp_path / "lora") == pytest.approx(expected)


def test_a_whole_model_with_an_adapters_files_stays_whole(tmp_path: Path) -> None:
    for name in ("config.json", "adapter_config.json", "adapter_model.safetensors", "model.safetensors"):
        (tmp_path / name).write_text(json.dumps({"base_model_name_or_path": "org/base"}))
    assert provenance.adapter_base(tmp_path) is None
    (tmp_path / "model.safetensors").unlink()
    assert provenance.adapter_base(tmp_path) == ("org/base", None)
