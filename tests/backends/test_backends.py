"""Every backend against a slow computation of the same number, and the ways a model can be refused."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from conftest import save_model
from safetensors.torch import save_file
from three_traces import TRACES
from token_kinds import byte_bpe, sentencepiece_bpe

from prmbench import data, evaluation
from prmbench.backends import BASELINES, Facts, cards, endo, find_card, head_weights, load_backend, ref_cache
from prmbench.backends.cards import ModelCard
from prmbench.config import EvalConfig, ModelConfig
from prmbench.core.records import MetricRow, StepScores, Trace, UserError
from prmbench.core.result_files import Run
from prmbench.engines.encoding import encode_chat, encode_separated, encode_tagged
from prmbench.engines.hf import Placement
from prmbench.engines.hf import load as load_engine

SHA = "0123456789abcdef0123456789abcdef01234567"


def evaluated(folder: Path, out: Path, **options: object) -> Run:
    run = evaluation.evaluate(EvalConfig(data=folder, out=out, **options))  # type: ignore[arg-type]
    assert run is not None
    return run


def f1(run: Run, protocol: str, subset: str = "avg[gsm8k,math]") -> MetricRow:
    (row,) = [r for r in run.result.rows if (r.subset, r.protocol, r.metric) == (subset, protocol, "f1")]
    return row


def full_logits(folder: Path, ids: Sequence[int], auto: str = "AutoModelForCausalLM") -> torch.Tensor:
    """[T, v] in float64, by the model itself, one trace at a time, without padding."""
    model = getattr(transformers, auto).from_pretrained(str(folder)).eval()
    with torch.no_grad():
        return model(input_ids=torch.tensor([list(ids)])).logits[0].double()


def closes(actual: Sequence[float], wanted: Sequence[float], atol: float = 2e-5) -> None:
    assert len(actual) == len(wanted)
    np.testing.assert_allclose(actual, wanted, rtol=1e-5, atol=atol)


# --- implicit and endo --------------------------------------------------------------------------------------


@pytest.mark.parametrize("boundary", ["exact", "release"])
def test_implicit_is_the_log_ratio_summed_over_each_step(policy: Path, reference: Path, boundary: str) -> None:
    config = ModelConfig(model=str(policy), ref_model=str(reference), backend="implicit", boundary=boundary)  # type: ignore[arg-type]
    backend = load_backend(config)
    for trace, scores in zip(TRACES, backend.score(TRACES), strict=True):
        encoded = encode_chat(byte_bpe(), trace, boundary=boundary)  # type: ignore[arg-type]
        assert not encoded.masked_positions  # nothing here looks like padding, so the plain model may stand in
        logp, ref = (full_logits(folder, encoded.ids).log_softmax(-1) for folder in (policy, reference))
        wanted = []
        for begin, end in encoded.spans:
            total = 0.0
            for t in range(begin, end):
                total += float(logp[t - 1, encoded.ids[t]] - ref[t - 1, encoded.ids[t]])
            wanted.append(total)
        closes(scores.values, wanted)
        assert scores.tokens == encoded.counts
        assert scores.id == trace.id
        assert backend.cost(trace) == len(encoded.ids)
    assert (backend.facts.kind, backend.facts.fixed, backend.facts.native) == ("logratio", 0.0, None)
    assert backend.facts.ref_model == reference.name
    assert backend.facts.weights != backend.facts.ref_weights


def test_a_policy_against_itself_scores_nothing(policy: Path) -> None:
    backend = load_backend(ModelConfig(model=str(policy), ref_model=str(policy), backend="implicit"))
    assert {value for s in backend.score(TRACES) for value in s.values} == {0.0}


def test_endo_reads_three_series_off_one_model(policy: Path) -> None:
    backend = load_backend(ModelConfig(str(policy), backend="endo"))
    assert backend.facts.series == ("decay", "logprob")
    for trace, scores in zip(TRACES, backend.score(TRACES), strict=True):
        encoded = encode_chat(byte_bpe(), trace)
        logits = full_logits(policy, encoded.ids)
        value = logits.logsumexp(-1)
        plain, decayed, logprob = [], [], []
        for begin, end in encoded.spans:
            q = [float(logits[t - 1, encoded.ids[t]]) for t in range(begin, end)]
            v_next = [float(value[t]) for t in range(begin, end)]
            plain.append(sum(q) - sum(v_next))
            decayed.append(sum(q) - 0.95 * sum(v_next))
            logprob.append(sum(float(logits[t - 1].log_softmax(-1)[encoded.ids[t]]) for t in range(begin, end)))
        closes(scores.values, plain)
        closes(scores.also["decay"], decayed)
        closes(scores.also["logprob"], logprob)
        assert scores.tokens == encoded.counts


@pytest.mark.parametrize("template", ["plain", "file"])
def test_templates_are_used(tmp_path: Path, policy: Path, template: str) -> None:
    source = "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}\n{% endfor %}"
    if template == "file":
        (tmp_path / "own.jinja").write_text(source)
    option = str(tmp_path / "own.jinja") if template == "file" else "plain"
    backend = load_backend(ModelConfig(str(policy), backend="endo", template=option))
    encoded = encode_chat(byte_bpe(), TRACES[0], template=source if template == "file" else "plain")
    logp = full_logits(policy, encoded.ids).log_softmax(-1)
    wanted = [sum(float(logp[t - 1, encoded.ids[t]]) for t in range(*span)) for span in encoded.spans]
    closes(next(backend.score(TRACES[:1])).also["logprob"], wanted)
    assert backend.facts.input_format == ("plain+steps" if template == "plain" else "chat+steps")


def test_different_vocabularies_are_refused(tmp_path: Path, policy: Path) -> None:
    other = save_model(tmp_path / "other", 1)
    sentencepiece_bpe().save_pretrained(other)
    with pytest.raises(UserError, match="different vocabularies"):
        load_backend(ModelConfig(model=str(policy), ref_model=str(other), backend="implicit"))


def test_a_cached_reference_gives_the_same_scores_without_its_weights(
    policy: Path, reference: Path, tmp_path: Path
) -> None:
    plain = ModelConfig(model=str(policy), ref_model=str(reference), backend="implicit")
    wanted = list(load_backend(plain).score(TRACES))
    cached = replace(plain, ref_cache=tmp_path / "cache")
    assert list(load_backend(cached).score(TRACES)) == wanted
    (kept,) = (tmp_path / "cache").glob("*.jsonl")
    with kept.open("a") as file:
        file.write('["torn')
    assert list(load_backend(cached).score(TRACES[:2])) == wanted[:2]  # and still readable after the torn line
    again = load_backend(cached)
    weights = next(reference.glob("*.safetensors"))
    hidden = weights.rename(weights.with_suffix(".hidden"))
    try:  # a hit needs no weights of the reference
        assert list(again.score(TRACES)) == wanted
    finally:
        hidden.rename(weights)


def test_another_reference_has_another_cache(policy: Path, reference: Path, tmp_path: Path) -> None:
    config = ModelConfig(model=str(policy), ref_model=str(reference), backend="implicit", ref_cache=tmp_path)
    first = list(load_backend(config).score(TRACES))
    other = list(load_backend(replace(config, ref_model=str(policy))).score(TRACES))
    assert all(abs(v) < 1e-9 for s in other for v in s.values)
    assert any(abs(v) > 1e-3 for s in first for v in s.values)


def test_the_cache_of_a_reference_does_not_know_which_gpu() -> None:
    found = {ref_cache.reference_identity("w", Placement(f"cuda:{n}", "bfloat16")) for n in range(4)}
    assert len(found) == 1
    for other in (Placement("cuda:0", "float32"), Placement("cpu", "bfloat16")):
        assert ref_cache.reference_identity("w", other) not in found
    assert ref_cache.reference_identity("v", Placement("cuda:0", "bfloat16")) not in found


def test_implicit_needs_a_reference(policy: Path) -> None:
    with pytest.raises(UserError, match="--ref-model"):
        load_backend(ModelConfig(str(policy), backend="implicit"))


def test_a_tokenizer_without_a_template_needs_the_flag(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "base", 0)
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(UserError, match="--template plain"):
        load_backend(ModelConfig(str(folder), backend="endo")).cost(TRACES[0])
    assert load_backend(ModelConfig(str(folder), backend="endo", template="plain")).cost(TRACES[0]) > 0


@pytest.mark.parametrize("short", ["policy", "reference"])
def test_what_does_not_fit_is_unscored_with_its_reason(
    tmp_path: Path, short: str, request: pytest.FixtureRequest
) -> None:
    """The limit is that of the shorter of the two models, and one token more is too much."""
    lengths = {t.id: len(encode_chat(byte_bpe(), t).ids) for t in TRACES}
    assert lengths["b"] > lengths["a"] > lengths["c"]
    folder = save_model(tmp_path / "short", 2)
    shape = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**shape, "max_position_embeddings": lengths["a"]}))
    other = request.getfixturevalue("reference" if short == "policy" else "policy")
    pair = (folder, other) if short == "policy" else (other, folder)
    backend = load_backend(ModelConfig(model=str(pair[0]), ref_model=str(pair[1]), backend="implicit"))
    first, second, third = backend.score(TRACES)
    assert second.unscored == f"{lengths['b']} tokens, the model takes {lengths['a']}"
    assert (second.id, second.values) == ("b", ())
    assert (backend.cost(TRACES[0]), backend.cost(TRACES[1])) == (lengths["a"], 0)
    assert (first.unscored, len(first.values), len(third.values)) == ("", 3, 1)


def test_unscored_traces_count_as_wrong(tmp_path: Path, policy: Path) -> None:
    """Half of the right traces are too long: whatever the threshold, at most half of them can be judged right."""
    rows = [
        {
            "id": f"{n}",
            "problem": f"Problem {n}",
            "steps": ["It is 1. " * (60 if n < 2 else 1)],
            "label": 0 if n == 4 else -1,
        }
        for n in range(5)
    ]
    (tmp_path / "gsm8k.json").write_text(json.dumps(rows))
    folder = save_model(tmp_path / "short", 2)
    shape = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**shape, "max_position_embeddings": 64}))
    run = evaluated(tmp_path / "gsm8k.json", tmp_path / "out", model=str(folder), backend="endo")
    reasons = [s.unscored for s in run.scores]
    assert [bool(r) for r in reasons] == [True, True, False, False, False]
    accuracy = {
        r.protocol: r for r in run.result.rows if r.metric == "correct_accuracy" and not r.protocol.startswith("floor/")
    }
    assert {r.unscored for r in accuracy.values()} == {2}
    assert max(r.value for r in accuracy.values() if r.value is not None) <= 0.5
    low = evaluated(
        tmp_path / "gsm8k.json", tmp_path / "out", model=str(folder), backend="endo", protocol=("step_sum/fixed:-1e9",)
    )
    (row,) = [r for r in low.result.rows if r.protocol == "step_sum/fixed:-1e+09" and r.metric == "correct_accuracy"]
    assert row.value == 0.5  # the two that were scored pass, the two that were not count against the model


# --- value heads ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def scalar(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random token classifier with one output."""
    return save_model(tmp_path_factory.mktemp("models") / "scalar", 3, "AutoModelForTokenClassification", num_labels=1)


def card(folder: Path, **fields: object) -> Path:
    (folder / "prm.json").write_text(json.dumps(fields))
    return folder


def test_value_head_reads_the_last_token_of_a_step(scalar: Path, tmp_path: Path) -> None:
    folder = card(Path(shutil.copytree(scalar, tmp_path / "scalar")), backend="value_head")
    backend = load_backend(ModelConfig(str(folder)))
    for trace, scores in zip(TRACES, backend.score(TRACES), strict=True):
        encoded = encode_chat(byte_bpe(), trace)
        row = full_logits(scalar, encoded.ids, "AutoModelForTokenClassification")[:, 0]
        closes(scores.values, [float(row[end - 1]) for _, end in encoded.spans])
    assert (backend.facts.kind, backend.facts.fixed) == ("value", 0.0)


@pytest.fixture
def headed(tmp_path: Path, policy: Path) -> tuple[Path, torch.Tensor, float]:
    """The policy's folder with room for a head file, and a head."""
    folder = tmp_path / "headed"
    folder.mkdir()
    for file in policy.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    torch.manual_seed(4)
    return folder, torch.randn(1, 32), 0.75


def head_values(folder: Path, ids: Sequence[int], weight: torch.Tensor, bias: float) -> torch.Tensor:
    model = transformers.AutoModel.from_pretrained(str(folder)).eval()
    with torch.no_grad():
        states = model(input_ids=torch.tensor([list(ids)])).last_hidden_state[0].double()
    return states @ weight[0].double() + bias


@pytest.mark.parametrize("name", ["reward_head.pt", "value_head.safetensors", "value_head.bin"])
def test_head_files_beside_a_bare_model(headed: tuple[Path, torch.Tensor, float], name: str) -> None:
    folder, weight, bias = headed
    tensors = {"weight": weight, "bias": torch.tensor([bias])}
    save_file(tensors, folder / name) if name.endswith("safetensors") else torch.save(tensors, folder / name)
    backend = load_backend(ModelConfig(str(card(folder, backend="value_head"))))
    for trace, scores in zip(TRACES, backend.score(TRACES), strict=True):
        encoded = encode_chat(byte_bpe(), trace)
        row = head_values(folder, encoded.ids, weight, bias)
        closes(scores.values, [float(row[end - 1]) for _, end in encoded.spans])


def test_a_cumulative_head_stores_sums(headed: tuple[Path, torch.Tensor, float]) -> None:
    folder, weight, _ = headed
    torch.save({"weight": weight}, folder / "reward_head.pt")  # without a bias, as the authors save it
    backend = load_backend(ModelConfig(str(card(folder, backend="value_head", reading="cumulative"))))
    assert backend.facts.kind == "logratio"
    for trace, scores in zip(TRACES, backend.score(TRACES), strict=True):
        encoded = encode_chat(byte_bpe(), trace)
        row = head_values(folder, encoded.ids, weight, 0.0)
        closes(scores.values, [float(row[begin:end].sum()) for begin, end in encoded.spans])
        assert scores.tokens == encoded.counts


class Payload:
    """What a hostile head file might hold."""

    ran = False

    def __reduce__(self) -> tuple[object, tuple[()]]:
        return (_mark, ())


def _mark() -> dict[str, torch.Tensor]:
    Payload.ran = True
    return {"weight": torch.ones(1, 32)}


@pytest.mark.parametrize("form", ["torch", "pickle", "empty", "text", "list", "safetensors"])
def test_head_files_that_are_not_plain_tensors_are_refused(tmp_path: Path, form: str) -> None:
    path = tmp_path / ("value_head.safetensors" if form == "safetensors" else "reward_head.pt")
    if form == "torch":
        torch.save(Payload(), path)
    elif form == "list":
        torch.save([torch.ones(1, 32)], path)
    else:
        path.write_bytes({"pickle": pickle.dumps(Payload(), protocol=2), "empty": b""}.get(form, b"no head"))
    with pytest.raises(UserError, match=f"{path.name}: not a head of plain tensors") as caught:
        head_weights.read_head(path)
    assert "\n" not in str(caught.value)
    assert "weights_only" not in str(caught.value)  # torch's own advice is to load the file unsafely
    assert not Payload.ran


def test_heads_of_the_wrong_shape_are_refused(
    tmp_path: Path, headed: tuple[Path, torch.Tensor, float], policy: Path
) -> None:
    folder, weight, _ = headed
    torch.save({"a.weight": weight, "b.weight": weight}, tmp_path / "two.pt")
    with pytest.raises(UserError, match=r"holds a\.weight, b\.weight"):
        head_weights.read_head(tmp_path / "two.pt")
    torch.save({"weight": weight[:, :9]}, folder / "reward_head.pt")
    with pytest.raises(UserError, match="takes 9 features, the model gives 32"):
        list(load_backend(ModelConfig(str(folder), backend="value_head")).score(TRACES))


def test_a_classifier_is_not_a_value_head(two_classes: Path) -> None:
    with pytest.raises(UserError, match="2 classes; a value head has one"):
        load_backend(ModelConfig(str(two_classes), backend="value_head"))


def test_a_language_model_has_no_head_to_read(policy: Path) -> None:
    with pytest.raises(UserError, match="lacks weights"):
        load_backend(ModelConfig(str(policy), backend="value_head"))


# --- two classes a token ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def two_classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random token classifier with the classes wrong, right."""
    return save_model(tmp_path_factory.mktemp("models") / "classes", 5, "AutoModelForTokenClassification", num_labels=2)


@pytest.mark.parametrize("convention", ["tag", "separator"])
def test_token_classifiers_give_the_chance_of_right(two_classes: Path, convention: str) -> None:
    if convention == "tag":
        folder = card(two_classes, backend="token_cls", tag="<extra_0>", prompt="qwen_math_prm_system")
        system = cards.prompt_text("qwen_math_prm_system")
        encode = partial(encode_tagged, byte_bpe(), tag="<extra_0>", system=system)
        closing = byte_bpe().convert_tokens_to_ids("<extra_0>")
    else:
        folder = card(two_classes, backend="token_cls", separator="\n")
        encode = partial(encode_separated, byte_bpe(), separator="\n")
        closing = byte_bpe().convert_tokens_to_ids("Ċ")
    backend = load_backend(ModelConfig(str(folder)))
    for trace, scores in zip(TRACES, backend.score(TRACES), strict=True):
        encoded = encode(trace)
        at = [i for i, token in enumerate(encoded.ids) if token == closing and i >= encoded.start]
        assert len(at) == len(trace.steps)
        logits = full_logits(folder, encoded.ids, "AutoModelForTokenClassification")
        closes(scores.values, [float(logits[i].softmax(-1)[1]) for i in at], atol=1e-6)
        assert all(0 < value < 1 for value in scores.values)
    assert (backend.facts.kind, backend.facts.native, backend.facts.fixed) == ("prob", 0.5, 0.5)
    assert convention in backend.facts.input_format


def test_a_tag_that_the_tokenizer_does_not_know(two_classes: Path) -> None:
    with pytest.raises(UserError, match="not a single token"):
        load_backend(ModelConfig(str(card(two_classes, backend="token_cls", tag="<step>")))).cost(TRACES[0])


def test_a_classifier_has_two_classes(scalar: Path) -> None:
    folder = card(scalar, backend="token_cls", separator="\n")
    with pytest.raises(UserError, match="a step classifier has 2"):
        load_backend(ModelConfig(str(folder)))
    (scalar / "prm.json").unlink()


@pytest.mark.parametrize("backend", ["token_cls", "value_head"])
def test_only_log_ratios_know_the_release_boundary(two_classes: Path, backend: str) -> None:
    with pytest.raises(UserError, match="--boundary release"):
        load_backend(ModelConfig(str(two_classes), backend=backend, boundary="release"))


# --- baselines --------------------------------------------------------------------------------------------------


def test_gold_is_perfect_and_all_right_finds_nothing(tmp_path: Path, benchmark_folder: Path) -> None:
    for model, value in (("gold", 1.0), ("all-right", 0.0)):
        run = evaluated(benchmark_folder, tmp_path / "out", model=model)
        for subset in ("gsm8k", "math", "avg[gsm8k,math]"):
            assert f1(run, "vote/native", subset).value == value


def test_random_scores_reach_their_floor(shared_data: Path, tmp_path: Path) -> None:
    """The floor is the expectation of the best threshold chosen beforehand, so an oracle lies a little above it."""
    run = evaluated(shared_data / "processbench" / "math.json", tmp_path, model="random")
    reached, floor = f1(run, "as_is/oracle", "math").value, f1(run, "floor/random", "math").value
    assert reached is not None
    assert floor is not None
    assert -0.02 < reached - floor < 0.04
    again = evaluated(shared_data / "processbench" / "math.json", tmp_path, model="random", seed=1)
    assert again.scores != run.scores
    values = [v for s in run.scores for v in s.values]
    assert abs(float(np.mean(values)) - 0.5) < 0.02


def test_step_length_distrusts_long_steps() -> None:
    backend = load_backend(ModelConfig("step-length"))
    (scores,) = backend.score([Trace("t", "p", ("four", "a", "seven ch"))])
    assert (scores.values, scores.tokens) == ((-4.0, -1.0, -8.0), (1, 1, 1))
    assert (backend.facts.kind, backend.facts.native, backend.facts.fixed) == ("value", None, None)


def test_outcome_oracle_and_position_only(benchmark_folder: Path) -> None:
    traces = data.load("processbench", benchmark_folder).traces
    verdict = {
        t.id: s.verdicts for t, s in zip(traces, load_backend(ModelConfig("outcome-oracle")).score(traces), strict=True)
    }
    assert {verdict[t.id] for t in traces if t.outcome == 1} == {(-1,)}
    assert {verdict[t.id] for t in traces if t.outcome == 0} == {(1,)}
    one, unknown = replace(traces[1], steps=("x",)), replace(traces[1], outcome=None)
    assert [s.verdicts for s in load_backend(ModelConfig("outcome-oracle")).score([one, unknown])] == [(0,), (None,)]
    drawn = [s.verdicts for s in load_backend(ModelConfig("position-only")).score(traces)]
    assert set(drawn) == {(1,), (-1,)}
    assert drawn == [s.verdicts for s in load_backend(ModelConfig("position-only")).score(traces)]


def test_baselines_are_known_by_name_alone() -> None:
    for name in BASELINES:
        assert load_backend(ModelConfig(name)).facts.backend == "baseline"
    with pytest.raises(UserError, match="the baselines are random"):
        load_backend(ModelConfig("worst", backend="baseline"))


# --- backends of the user's own -----------------------------------------------------------------------------------


class Custom:
    """Scores by the length of a step; the options say which trace goes wrong, and how."""

    def __init__(self, config: ModelConfig) -> None:
        self.facts = Facts("prob" if config.model == "no-probability" else "value", "none", fixed=0.0)
        self.model = config.model

    def cost(self, trace: Trace) -> int:
        return len(trace.prompt)

    def score(self, traces: Sequence[Trace]) -> Iterator[StepScores]:
        ordered = reversed(traces) if self.model == "unordered" else traces
        for trace in ordered:
            values = tuple(float(len(step)) for step in trace.steps)
            if self.model == "no-probability":
                values = (0.5,) * len(trace.steps)
            if self.model == "all-nan" or (self.model == "one-nan" and trace.id == "gsm8k-3"):
                values = (*values[:-1], float("nan"))
            if self.model == "no-probability" and trace.id == "gsm8k-3":
                values = (*values[:-1], 1.5)
            if self.model == "all-inf-but-unscored" and trace.id != "gsm8k-3":
                values = (float("inf"),) * len(values)
            elif self.model == "all-inf-but-unscored":
                yield StepScores(trace.id, unscored="too long")
                continue
            yield StepScores(trace.id, values, (1,) * len(values))


OWN = {"backend": "test_backends:Custom"}


def test_a_class_of_the_users_own(tmp_path: Path, benchmark_folder: Path) -> None:
    run = evaluated(benchmark_folder, tmp_path, model="mine", **OWN)
    traces = {t.id: t for t in data.load("processbench", benchmark_folder).traces}
    assert all(s.values == tuple(map(float, map(len, traces[s.id].steps))) for s in run.scores)
    assert (run.result.manifest.backend, run.result.manifest.model) == ("test_backends:Custom", "mine")
    assert {r.protocol for r in run.result.rows} >= {"as_is/oracle", "step_diff/oracle", "as_is/fixed:0"}


@pytest.mark.parametrize(
    "backend", ["no_such_module:Class", "test_backends:NoSuchClass", "test_backends:", ":Class", ".a:B", "nonsense"]
)
def test_backends_that_do_not_exist(backend: str) -> None:
    with pytest.raises(UserError, match="--backend"):
        load_backend(ModelConfig("mine", backend=backend))


def test_one_score_that_is_not_finite_is_counted(tmp_path: Path, benchmark_folder: Path) -> None:
    run = evaluated(benchmark_folder, tmp_path, model="one-nan", **OWN)
    assert {s.id: s.unscored for s in run.scores if s.unscored} == {"gsm8k-3": "non-finite"}
    assert next(s for s in run.scores if s.id == "gsm8k-3").values == ()
    assert f1(run, "as_is/oracle", "gsm8k").unscored == 1
    assert f1(run, "as_is/oracle", "math").unscored == 0


def test_probabilities_are_from_0_to_1(tmp_path: Path, benchmark_folder: Path) -> None:
    """A result with others would not be read again."""
    with pytest.raises(UserError, match="scores of gsm8k-3 are not from 0 to 1, and its kind is prob"):
        evaluated(benchmark_folder, tmp_path, model="no-probability", **OWN)


@pytest.mark.parametrize("model", ["all-nan", "all-inf-but-unscored"])
def test_no_finite_score_at_all_is_an_error(tmp_path: Path, benchmark_folder: Path, model: str) -> None:
    with pytest.raises(UserError, match="NaN or infinite"):
        evaluated(benchmark_folder, tmp_path / "out", model=model, **OWN)
    assert list((tmp_path / "out").iterdir()) == []  # nor is there a journal that would bring the scores back


def test_scores_must_belong_to_their_traces(tmp_path: Path, benchmark_folder: Path) -> None:
    with pytest.raises(UserError, match="in order, with the trace's id"):
        evaluated(benchmark_folder, tmp_path, model="unordered", **OWN)


@pytest.mark.parametrize("backend", ["endo", "value_head"])
def test_weights_of_nan_are_an_error(tmp_path: Path, benchmark_folder: Path, backend: str) -> None:
    auto, more = (
        ("AutoModelForCausalLM", {}) if backend == "endo" else ("AutoModelForTokenClassification", {"num_labels": 1})
    )
    folder = save_model(tmp_path / "nan", 0, auto, **more)
    model = getattr(transformers, auto).from_pretrained(str(folder))
    torch.nn.init.constant_(model.model.norm.weight, float("nan"))
    model.save_pretrained(folder)
    with pytest.raises(UserError, match="NaN or infinite"):
        evaluated(benchmark_folder, tmp_path / "out", model=str(folder), backend=backend)


# --- which card a model has -------------------------------------------------------------------------------------------


def test_a_folder_with_a_card_needs_no_flags(tmp_path: Path, policy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_model(tmp_path / "run" / "model", 0)
    save_model(tmp_path / "run" / "base", 1)
    fields = {"ref_model": "../base", "beta": 10, "signal": "outcome", "trained_on": ["own traces"], "updates": 1}
    folder = card(tmp_path / "run" / "model", backend="implicit", **fields)
    monkeypatch.chdir(tmp_path)
    for name in (str(folder), "run/model"):
        facts = load_backend(ModelConfig(name)).facts
        assert (facts.backend, facts.ref_model, facts.beta) == ("implicit", "base", 10.0)
        assert (facts.signal, facts.trained_on) == ("outcome", ("own traces",))
    asked = find_card(ModelConfig("run/model", ref_model=str(policy), backend="endo"))  # flags win
    assert (asked.ref_model, asked.backend) == (str(policy), "endo")
    card(folder, backend="implicit", ref_model="Some/Hub-Model")
    assert find_card(ModelConfig("run/model")).ref_model == "Some/Hub-Model"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", "not a model card"),
        ("[]", "not a model card"),
        ("{}", "has no backend; `prmbench init .* --force` writes one"),
        ('{"backend": 5}', "expected str"),
        ('{"backend": "value_head", "reading": "at-step"}', "choose from at_step, cumulative"),
        ('{"backend": "implicit", "beta": "ten"}', "expected float"),
        ('{"backend": "token_cls", "remote_code": "yes"}', "expected bool"),
        ('{"backend": "os:system"}', "names code; pass --backend os:system"),
        ('{"backend": "guess"}', "choose from auto, implicit"),
    ],
)
def test_cards_that_are_wrong(tmp_path: Path, content: str, says: str) -> None:
    (tmp_path / "prm.json").write_text(content)
    with pytest.raises(UserError, match=says) as caught:
        load_backend(ModelConfig(str(tmp_path)))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["../../../pyproject", "no_such_prompt"])
def test_prompts_come_from_the_package_only(two_classes: Path, name: str) -> None:
    folder = card(two_classes, backend="token_cls", tag="<extra_0>", prompt=name)
    with pytest.raises(UserError, match="there is none of that name"):
        load_backend(ModelConfig(str(folder))).cost(TRACES[0])


def test_a_model_without_any_card() -> None:
    with pytest.raises(UserError, match="--model is missing"):
        load_backend(ModelConfig())
    with pytest.raises(UserError, match=r"no card and no prm\.json"):
        load_backend(ModelConfig("nobody/knows-this"))


def test_code_of_the_models_own_needs_row_flag_and_sha(two_classes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = "org/own-code"
    monkeypatch.setitem(cards.MODELS, known, ModelCard(known, "token_cls", tag="<extra_0>", remote_code=True))
    with pytest.raises(UserError, match="pass --trust-remote-code"):
        load_backend(ModelConfig(known))
    with pytest.raises(UserError, match="pass --trust-remote-code"):
        load_backend(ModelConfig(known, revision=SHA))
    for revision in (None, "main", SHA[:12], SHA.upper(), f"{SHA}0"):
        with pytest.raises(UserError, match="full 40-digit sha"):
            load_backend(ModelConfig(known, revision=revision, trust_remote_code=True))
    with pytest.raises(UserError, match="asks for no code"):
        load_backend(ModelConfig(str(card(two_classes, backend="token_cls", separator="\n")), trust_remote_code=True))
    with pytest.raises(UserError, match="cannot be loaded"):  # past the gate; offline it ends at the hub
        load_backend(ModelConfig(known, revision=SHA, trust_remote_code=True))


def test_code_in_a_folder_does_not_run(tmp_path: Path) -> None:
    """transformers would run `modeling.py` of this folder, if anything passed trust_remote_code on."""
    folder = card(save_model(tmp_path / "hostile", 0), backend="endo")
    shape = json.loads((folder / "config.json").read_text())
    code = {"AutoConfig": "modeling.Shape", "AutoModelForCausalLM": "modeling.Model"}
    (folder / "config.json").write_text(json.dumps({**shape, "model_type": "hostile", "auto_map": code}))
    (folder / "modeling.py").write_text("import sys\nsys.modules['hostile_ran'] = sys\n")
    with pytest.raises(UserError, match="cannot be loaded"):
        load_backend(ModelConfig(str(folder)))
    assert "hostile_ran" not in sys.modules


class _Call:
    """Pickled, a call of a function: it would set a variable of the environment."""

    def __reduce__(self) -> tuple[object, ...]:
        return exec, ("import os; os.environ['HOSTILE_RAN'] = '1'",)


@pytest.mark.parametrize("protocol", ["torch", "pickle"])
def test_weights_that_call_functions_are_not_unpickled(tmp_path: Path, protocol: str) -> None:
    folder = card(save_model(tmp_path / "hostile", 0), backend="endo")
    (folder / "model.safetensors").unlink()
    with (folder / "pytorch_model.bin").open("wb") as file:
        torch.save({"lm_head.weight": _Call()}, file) if protocol == "torch" else pickle.dump(_Call(), file)
    with pytest.raises(UserError, match="a pickle that holds more than tensors") as caught:
        load_backend(ModelConfig(str(folder)))
    assert "HOSTILE_RAN" not in os.environ
    assert "weights_only" not in str(caught.value)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"attn_implementation": "hostile/kernel"}, "names a kernel on the hub"),
        ({"_attn_implementation": "paged|hostile/kernel@main:forward"}, "names a kernel on the hub"),
        ({"attn_implementation": {"": "sdpa", "text_config": "hostile/kernel"}}, "names a kernel on the hub"),
        ({"text_config": {"_attn_implementation_internal": "hostile/kernel"}}, "names a kernel on the hub"),
        ({"experts_implementation": "hostile/kernel"}, "names a kernel on the hub"),
        ({"quantization_config": "x"}, "cannot be loaded"),
        ({"attention_bias": "x"}, "cannot be loaded"),
        ({"hidden_size": -1}, "cannot be loaded"),
    ],
)
def test_configurations_that_run_code_or_make_no_sense(tmp_path: Path, values: dict[str, Any], says: str) -> None:
    folder = card(save_model(tmp_path / "odd", 0), backend="endo")
    shape = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**shape, **values}))
    with pytest.raises(UserError, match=says) as caught:
        load_backend(ModelConfig(str(folder)))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "values"), [("tokenizer_config.json", {"model_max_length": "x"}), ("tokenizer.json", {"version": "x"})]
)
def test_tokenizers_that_make_no_sense(tmp_path: Path, name: str, values: dict[str, Any]) -> None:
    folder = card(save_model(tmp_path / "odd", 0), backend="endo")
    told = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps({**told, **values}))
    with pytest.raises(UserError, match="cannot be loaded"):
        load_backend(ModelConfig(str(folder)))


def test_cards_are_complete() -> None:
    for name, row in cards.MODELS.items():
        assert isinstance(row, ModelCard)
        assert row.model == name
        assert row.backend in ("implicit", "value_head", "token_cls", "tag_lm", "critic")
        assert row.prompt is None or cards.prompt_text(row.prompt)
        assert row.revision is None or len(row.revision) == 40


def test_endo_counts_no_value_after_the_end(policy: Path) -> None:
    """With the release boundary the last step holds the end-of-turn token, after which V is 0 (arXiv 2506.23235)."""
    engine = load_engine(str(policy), "lm", Placement("cpu", "float32"))
    engine.tokenizer.eos_token = "<|end|>"
    trace = Trace("t", "What is 1 plus 1?", ("We add.", "It is 2."))
    released = encode_chat(engine.tokenizer, trace, boundary="release")
    assert released.ids[released.ends[-1] - 1] == engine.tokenizer.eos_token_id
    out = next(engine.logprobs([released]))
    sums = [float(v) for v in next(endo.read(engine, [released])).values]
    begin = released.spans[-1][0] - released.start
    q = out.logprobs[begin:].astype(float) + out.normalisers[begin:-1]
    after = [*out.normalisers[begin + 1 : -1].astype(float), 0.0]
    assert sums[-1] == pytest.approx(float((q - after).sum()), rel=1e-5)
