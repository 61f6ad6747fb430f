"""New weights on their way to the engine that samples, and the probe that sees whether they arrived. No vLLM here."""

from __future__ import annotations

import json
import sys
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sync_runs
import torch
from conftest import save_model
from forked import run_group
from numpy.typing import NDArray
from small_samplers import CPU, PROMPTS, draw, loaded
from stub_server import stub_server
from torch import Tensor

from prmbench.core.records import RetryError, UserError
from prmbench.engines.encoding import Encoded
from prmbench.engines.generation import SampledTokens, Sampling
from prmbench.engines.hf import HFEngine
from prmbench.engines.server import ServerEngine, open_server
from prmbench.engines.vllm import VllmOptions, open_vllm, serve_command
from prmbench.engines.weight_sync import (
    STABLE,
    AdapterWeights,
    AdapterWriter,
    EngineLink,
    ModelCopyLink,
    ModelWeights,
    SamplerLink,
    SharedModelLink,
    WeightFilesLink,
    WeightsWriter,
)
from prmbench.engines.weight_sync_check import (
    TOLERANCE,
    Mismatch,
    check_mismatch,
    measure_mismatch,
    perturbed_weights,
    self_test,
)


@pytest.fixture(scope="session")
def tied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("tied"), 2, tie_word_embeddings=True)


def logprobs(engine: HFEngine, drawn: Sequence[SampledTokens]) -> NDArray[Any]:
    batch = [Encoded("", (*p, *d.ids), len(p), (len(p) + len(d.ids),)) for p, d in zip(PROMPTS, drawn, strict=True)]
    return np.concatenate([found.logprobs for found in engine.logprobs(batch)])


def probed(trainer: HFEngine, link: SamplerLink) -> Any:
    return self_test(
        link,
        ModelWeights(trainer.model),
        partial(perturbed_weights, trainer.model),
        partial(draw, link.sampler),
        partial(logprobs, trainer),
        TOLERANCE["float32"],
    )


def with_lora(engine: HFEngine) -> Any:
    import peft

    shape = peft.LoraConfig(r=2, lora_alpha=2, target_modules=["q_proj", "down_proj"])
    return peft.get_peft_model(engine.model, shape)


# ---- links


def test_a_copy_samples_as_the_trained_model(policy: Path, reference: Path) -> None:
    trained, copied = loaded(policy), loaded(reference)
    before = draw(copied)
    ModelCopyLink(copied).push(1, ModelWeights(trained.model))
    assert draw(copied) == draw(trained) != before
    with torch.no_grad():
        trained.model.lm_head.weight.mul_(2.0)  # the copy has tensors of its own
    assert draw(copied) != draw(trained)


def test_a_copy_is_tied_to_itself_only(tied: Path, tmp_path: Path) -> None:
    trained, copied = loaded(tied), loaded(save_model(tmp_path, 5, tie_word_embeddings=True))
    ModelCopyLink(copied).push(1, ModelWeights(trained.model))
    assert draw(copied) == draw(trained)


def test_a_copy_of_another_shape_is_refused(policy: Path) -> None:
    with pytest.raises(UserError, match=r"no weight lm_head\.weight"):
        ModelCopyLink(loaded(policy)).push(1, {"model.norm.weight": torch.ones(32)}.items())


def test_written_weights_are_an_untied_model_of_their_own(tied: Path, tmp_path: Path) -> None:
    trained = loaded(tied)
    WeightsWriter(trained.model, trained.tokenizer, torch.float32)(tmp_path, dict(ModelWeights(trained.model)))
    written = loaded(tmp_path)
    assert written.model.config.tie_word_embeddings is False
    assert trained.model.config.tie_word_embeddings is True  # the trainer's own stays as it was
    head, embedding = written.model.lm_head.weight, written.model.model.embed_tokens.weight
    assert torch.equal(head, embedding)
    assert head.data_ptr() != embedding.data_ptr()
    assert draw(written) == draw(trained)


def test_weights_are_written_in_the_samplers_precision(policy: Path, tmp_path: Path) -> None:
    trained = loaded(policy)
    WeightsWriter(trained.model, trained.tokenizer, torch.bfloat16)(tmp_path, dict(ModelWeights(trained.model)))
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "bfloat16"
    from safetensors.torch import load_file

    written = load_file(tmp_path / "model.safetensors")
    assert {w.dtype for w in written.values()} == {torch.bfloat16}
    state = trained.model.state_dict()
    assert all(torch.equal(w, state[name].to(torch.bfloat16)) for name, w in written.items())


def test_a_written_adapter_is_the_trained_one(policy: Path, tmp_path: Path) -> None:
    import peft

    trained = loaded(policy)
    adapted = with_lora(trained)
    with perturbed_weights(trained.model):
        state = dict(AdapterWeights(trained.model))
        AdapterWriter(adapted.peft_config["default"])(tmp_path, state)
        again = HFEngine(peft.PeftModel.from_pretrained(loaded(policy).model, tmp_path), trained.tokenizer)
        assert len(state) == 8  # A and B of two projections in two layers
        assert draw(again) == draw(trained)
    assert draw(again) != draw(trained)


class Recorder:
    """A sampler that notes what lies on disk when it is told to read."""

    def __init__(self, inner: HFEngine) -> None:
        self.inner, self.seen = inner, []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def reload(self, folder: Path) -> None:
        self.seen.append((folder.name, sorted(p.name for p in folder.iterdir())))
        self.inner = loaded(folder)

    def adapter(self, folder: Path) -> None:
        self.seen.append((folder.name, sorted(p.name for p in folder.iterdir())))


def test_an_engine_reads_a_whole_version_and_old_ones_go(policy: Path, tmp_path: Path) -> None:
    trained = loaded(policy)
    link = WeightFilesLink(Recorder(trained), tmp_path, WeightsWriter(trained.model, trained.tokenizer, torch.float32))
    for version in (1, 2, 12, 2):  # the last: the same step again, after a restart
        link.push(version, ModelWeights(trained.model))
    assert [name for name, _ in link.sampler.seen] == ["v000001", "v000002", "v000012", "v000002"]
    for _, files in link.sampler.seen:
        assert {STABLE, "config.json", "model.safetensors", "tokenizer.json"} <= set(files)
    assert [p.name for p in tmp_path.iterdir()] == ["v000002"]


def test_stable_is_written_after_everything_else(policy: Path, tmp_path: Path) -> None:
    def breaks(folder: Path, _: Mapping[str, Tensor]) -> None:
        (folder / "model.safetensors").write_bytes(b"half")
        raise OSError(28, "No space left on device")

    link = WeightFilesLink(Recorder(loaded(policy)), tmp_path, breaks)
    with pytest.raises(UserError, match=r"cannot write .*No space left"):
        link.push(1, ())
    assert [p.name for p in (tmp_path / "v000001").iterdir()] == ["model.safetensors"]
    assert not link.sampler.seen


# ---- the probe


@pytest.mark.parametrize("kind", ["shared", "copied", "written"])
def test_the_self_test_passes_where_weights_arrive(kind: str, policy: Path, tmp_path: Path) -> None:
    trained = loaded(policy)
    before = {name: w.clone() for name, w in trained.model.state_dict().items()}
    links: dict[str, Callable[[], SamplerLink]] = {
        "shared": lambda: SharedModelLink(trained),
        "copied": lambda: ModelCopyLink(loaded(policy)),
        "written": lambda: WeightFilesLink(
            Recorder(trained), tmp_path, WeightsWriter(trained.model, trained.tokenizer, torch.float32)
        ),
    }
    result = probed(trained, links[kind]())
    assert max(result.disturbed.rms, result.true.rms) < 1e-5
    assert result.moved > 0.05
    after = trained.model.state_dict()
    assert all(torch.equal(w, after[name]) for name, w in before.items())  # the very bits


def test_a_sampler_that_ignores_a_push_is_caught(policy: Path) -> None:
    """Before the first update, when its weights are right by chance, only the exaggerated push shows it."""
    trained, deaf = loaded(policy), SharedModelLink(loaded(policy))
    assert measure_mismatch(logprobs(trained, draw(deaf.sampler)), sampled(draw(deaf.sampler))).rms < 1e-5
    with pytest.raises(UserError, match="does not take the weights"):
        probed(trained, deaf)


def test_a_sampler_that_keeps_its_head_is_caught(policy: Path) -> None:
    """As vLLM does when embeddings are tied: every weight arrives but one."""

    class KeepsHead(ModelCopyLink):
        def push(self, version: int, state: Any) -> None:
            found = {**dict(state), "lm_head.weight": self.sampler.model.lm_head.weight.detach().clone()}
            super().push(version, found.items())

    with pytest.raises(UserError, match="after a push of exaggerated weights"):
        probed(loaded(policy), KeepsHead(loaded(policy)))


def test_a_sampler_that_forgets_the_true_weights_is_caught(policy: Path) -> None:
    """The push works once and never again."""

    class Once(ModelCopyLink):
        def push(self, version: int, state: Any) -> None:
            if not hasattr(self.sampler, "pushed"):
                super().push(version, state)
                self.sampler.pushed = True  # type: ignore[attr-defined]

    with pytest.raises(UserError, match="after the true ones"):
        probed(loaded(policy), Once(loaded(policy)))


def test_a_self_test_that_could_see_nothing_says_so(policy: Path) -> None:
    trained = loaded(policy)
    with pytest.raises(UserError, match="cannot be checked"):
        self_test(
            SharedModelLink(trained),
            ModelWeights(trained.model),
            nullcontext,
            partial(draw, trained),
            partial(logprobs, trained),
            TOLERANCE["float32"],
        )


def test_noise_reaches_what_is_trained_and_nothing_else(policy: Path) -> None:
    """A new adapter's B is zero: without noise on it, an adapter that never arrives would not show."""
    trained = loaded(policy)
    with_lora(trained)
    before = {name: w.detach().clone() for name, w in trained.model.named_parameters()}
    with perturbed_weights(trained.model, seed=3):
        first = {name: w.detach().clone() for name, w in trained.model.named_parameters()}
    with perturbed_weights(trained.model, seed=3):
        assert all(torch.equal(w, first[name]) for name, w in trained.model.named_parameters())
    changed = {name for name, w in first.items() if not torch.equal(w, before[name])}
    assert changed == {name for name in before if ".lora_" in name}
    assert any("lora_B" in name for name in changed)
    a = next(name for name in changed if "lora_A" in name)
    size = float((first[a] - before[a]).square().mean().sqrt() / before[a].square().mean().sqrt())
    assert size == pytest.approx(0.05, rel=0.3)
    assert all(torch.equal(w, before[name]) for name, w in trained.model.named_parameters())


def sampled(drawn: Sequence[SampledTokens]) -> NDArray[Any]:
    return np.array([logprob for d in drawn for logprob in d.logprobs])


def test_mismatch_by_hand() -> None:
    """Ratios 2, 1 and 1/2: the trainer's probability over the sampler's."""
    measured = measure_mismatch(np.log([0.4, 0.3, 0.1]), np.log([0.2, 0.3, 0.2]))
    assert measured.rms == pytest.approx(np.log(2) * (2 / 3) ** 0.5)
    assert measured.mean_ratio == pytest.approx(3.5 / 3)
    assert measured.max_ratio == pytest.approx(2.0)
    assert measured.ess == pytest.approx(3.5**2 / (3 * 5.25))
    assert measured.tokens == 3
    assert measure_mismatch(np.array([]), np.array([])) == Mismatch(0.0, 1.0, 1.0, 1.0, 0)


def test_stale_weights_stop_a_step(policy: Path, reference: Path) -> None:
    trained, other = loaded(policy), loaded(reference)
    check_mismatch(measure_mismatch(logprobs(trained, draw(trained)), sampled(draw(trained))), TOLERANCE["float32"])
    with pytest.raises(RetryError, match="other weights"):
        check_mismatch(measure_mismatch(logprobs(trained, draw(other)), sampled(draw(other))), TOLERANCE["bfloat16"])
    with pytest.raises(RetryError, match="nan"):
        check_mismatch(measure_mismatch(np.array([np.nan]), np.array([0.0])), 1.0)


@pytest.mark.slow
def test_two_process_shards_reach_the_copy_in_every_process(policy: Path, reference: Path, tmp_path: Path) -> None:
    run_group(sync_runs.send_weights, policy, reference, tmp_path)
    for rank in range(2):
        result = json.loads((tmp_path / f"{rank}.json").read_text())
        assert max(result["disturbed"]["rms"], result["true"]["rms"]) < 1e-5
        assert result["disturbed"]["tokens"] == 2 * 3 * 8  # the probe looks at what both drew
        assert result["moved"] > 0.05
        assert [tuple(ids) for ids in result["drawn"]] == [d.ids for d in draw(loaded(policy))]


# ---- the server's engine, against a server of a few lines


def test_a_body_without_end_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prmbench.engines.server.MAX_BODY_BYTES", 2**20)
    monkeypatch.setattr("prmbench.engines.server.load_tokenizer", lambda name, revision: (None, frozenset()))
    with (
        stub_server(lambda path, body: (200, " " * 2**21)) as (url, _),
        pytest.raises(RetryError, match="more than 64 MiB"),
    ):
        open_server(url, "m")
    with (
        stub_server(lambda path, body: (200, {}), {"Content-Length": "99", "Connection": "close"}) as (url, _),
        pytest.raises(RetryError, match="IncompleteRead"),
    ):
        open_server(url, "m")


def completion(body: dict[str, Any]) -> dict[str, Any]:
    """Ids that tell which prompt and seed they answer."""
    ids = [body["prompt"][0], body["seed"]]
    return {"choices": [{"token_ids": ids, "logprobs": {"token_logprobs": [-0.5, -1.5]}, "finish_reason": "length"}]}


def engine(url: str, **more: Any) -> ServerEngine:
    return ServerEngine(url, None, frozenset({2}), model="base", **{"tries": 3, "first_pause": 0.01, **more})


def test_a_server_is_asked_for_exactly_what_is_wanted() -> None:
    with stub_server(lambda _, body: (200, completion(body))) as (url, requests):
        drawn = engine(url).sample(PROMPTS, [8, 9, 10], [1, 2**64 - 1, 3], Sampling(0.7, top_p=0.9, top_k=4), {7, 2})
    assert drawn == [
        SampledTokens((5, 1), (-0.5, -1.5)),
        SampledTokens((40, 2**63 - 1), (-0.5, -1.5)),
        SampledTokens((9, 3), (-0.5, -1.5)),
    ]
    path, body = next((path, body) for path, body in requests if body["seed"] == 3)
    assert path == "/v1/completions"
    assert body == {
        "model": "base",
        "prompt": [9, 8, 7, 6],
        "temperature": 0.7,
        "top_p": 0.9,
        "top_k": 4,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "max_tokens": 10,
        "seed": 3,
        "stop_token_ids": [2, 7],
        "ignore_eos": True,
        "logprobs": 0,
        "return_token_ids": True,
    }


def test_a_failing_server_is_asked_again_with_the_same_seeds() -> None:
    failures = iter([500, 503, 429, 500])

    def answers(_: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        status = next(failures, 200)
        return status, completion(body) if status == 200 else {"error": {"message": "busy"}}

    with stub_server(answers) as (url, requests):
        drawn = engine(url, tries=5).sample(PROMPTS, [8] * 3, [11, 12, 13], Sampling(), ())
    assert [d.ids for d in drawn] == [(5, 11), (40, 12), (9, 13)]
    assert len(requests) == 7
    assert {(body["prompt"][0], body["seed"]) for _, body in requests} == {(5, 11), (40, 12), (9, 13)}


def test_a_server_that_is_gone_or_always_fails_is_given_up() -> None:
    with stub_server(lambda *_: (500, {"error": {"message": "engine died"}})) as (url, requests):
        with pytest.raises(RetryError, match=r"after 3 attempts \(engine died\)"):
            engine(url).sample(PROMPTS[:1], [8], [1], Sampling(), ())
        assert len(requests) == 3
    with pytest.raises(RetryError, match="no answer from /v1/completions"):
        engine(url).sample(PROMPTS, [8] * 3, [1, 2, 3], Sampling(), ())
    with pytest.raises(RetryError, match="no answer from /collective_rpc"):
        engine(url).reload(Path("weights"))


@pytest.mark.parametrize(
    ("status", "found", "error", "says"),
    [
        (400, {"error": {"message": "prompt too long"}}, UserError, "400: prompt too long"),
        (404, {}, RetryError, "no model base"),
        (200, {"choices": []}, UserError, "is it vLLM"),
        (
            200,
            {"choices": [{"token_ids": [], "logprobs": {"token_logprobs": []}, "finish_reason": "abort"}]},
            RetryError,
            "broke a completion off",
        ),
    ],
)
def test_answers_that_cannot_be_used(status: int, found: Any, error: type[Exception], says: str) -> None:
    with stub_server(lambda *_: (status, found)) as (url, requests):
        with pytest.raises(error, match=says):
            engine(url).sample(PROMPTS[:1], [8], [1], Sampling(), ())
        assert len(requests) == 1  # asking again would not help


def test_weights_are_sent_by_one_process_and_the_cache_is_reset(tmp_path: Path) -> None:
    with stub_server(lambda path, _: (404 if "unload" in path else 200, {"success": True})) as (url, requests):
        engine(url).reload(tmp_path / "v000001")
        engine(url, sends_weights=False).reload(tmp_path / "v000001")
        where = {"weights_path": str(tmp_path / "v000001")}
        assert requests == [
            ("/collective_rpc", {"method": "reload_weights", "kwargs": where}),
            ("/reset_prefix_cache", {}),
        ]


def test_an_adapter_is_asked_for_by_its_versions_name(tmp_path: Path) -> None:
    """In the process that sends it and in those that only ask; the one before is taken off."""

    def answers(path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        return (200, completion(body)) if path == "/v1/completions" else (200, {"success": True})

    with stub_server(answers) as (url, requests):
        tells, asks = engine(url), engine(url, sends_weights=False)
        for name in ("v000001", "v000002"):
            tells.adapter(tmp_path / name)
            asks.adapter(tmp_path / name)
        for one in (tells, asks):
            one.sample(PROMPTS[:1], [8], [1], Sampling(), ())
    sent = [(path, body.get("lora_name")) for path, body in requests if "lora" in path]
    assert sent[-3:] == [
        ("/v1/unload_lora_adapter", "v000002"),
        ("/v1/load_lora_adapter", "v000002"),
        ("/v1/unload_lora_adapter", "v000001"),
    ]
    assert [body["lora_path"] for path, body in requests if "/load" in path] == [
        str(tmp_path / name) for name in ("v000001", "v000002")
    ]
    assert [path for path, _ in requests].count("/reset_prefix_cache") == 2
    assert [body["model"] for path, body in requests if path == "/v1/completions"] == ["v000002", "v000002"]


def test_a_busy_cache_or_a_server_without_weight_endpoints_stops(tmp_path: Path) -> None:
    with (
        stub_server(lambda *_: (200, {"success": False})) as (url, _),
        pytest.raises(RetryError, match="cannot be reset"),
    ):
        engine(url).reload(tmp_path)
    with stub_server(lambda *_: (404, {})) as (url, _), pytest.raises(UserError, match="has no /collective_rpc"):
        engine(url).reload(tmp_path)


def test_a_server_is_opened_by_its_address(policy: Path) -> None:
    served = {"data": [{"id": "org/model", "max_model_len": 512}, {"id": "v000007"}]}
    with stub_server(lambda *_: (200, served)) as (url, requests):
        engine_ = open_server(url + "/", str(policy))
        assert requests == [("/v1/models", {})]
    assert (engine_.model, engine_.max_tokens, engine_.sends_weights) == ("org/model", 512, True)
    assert engine_.stops == loaded(policy).stops
    with (
        stub_server(lambda *_: (200, {"data": []})) as (url, _),
        pytest.raises(UserError, match="is not a vLLM server"),
    ):
        open_server(url, str(policy))
    with pytest.raises(RetryError, match="does not answer"):
        open_server(url, str(policy))


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_to_another_server_is_not_followed(status: int, policy: Path) -> None:
    """Prompts, and where the weights lie, are for the server that was named."""
    with stub_server(lambda *_: (200, {"data": [{"id": "m"}]})) as (thief, stolen):
        headers = {"Location": f"{thief}/v1/completions?key=pw9"}
        with stub_server(lambda *_: (status, {}), headers) as (url, requests):
            for ask in (
                lambda: engine(url).sample(PROMPTS[:1], [8], [1], Sampling(), ()),
                lambda: engine(url).reload(Path("weights")),
                lambda: open_server(url, str(policy)),
            ):
                with pytest.raises(UserError, match=f"--server {url}: redirects to {thief}, which is not") as caught:
                    ask()
                assert "pw9" not in str(caught.value)
        assert len(requests) == 3
        assert stolen == []


def test_a_redirect_within_a_server_is_a_refusal() -> None:
    line = r"refused /v1/completions \(307"
    with stub_server(lambda *_: (307, {}), {"Location": "/v2"}) as (url, _), pytest.raises(UserError, match=line):
        engine(url).sample(PROMPTS[:1], [8], [1], Sampling(), ())


def test_a_server_that_sends_a_byte_now_and_then_is_not_waited_for() -> None:
    line = r"no whole answer within 0\.2 seconds"
    with stub_server(lambda *_: (200, {}), pause=0.02) as (url, _), pytest.raises(RetryError, match=line):
        engine(url, tries=1, timeout=0.2).sample(PROMPTS[:1], [8], [1], Sampling(), ())


@pytest.mark.parametrize(
    "body", [{"detail": "out of\nmemory"}, ["out of memory"], "out of memory", {"error": {"message": "out of memory"}}]
)
def test_the_reason_of_a_refusal_is_one_line(body: Any) -> None:
    with stub_server(lambda *_: (400, body)) as (url, _), pytest.raises(UserError, match=r"\(400: out of memory\)$"):
        engine(url).sample(PROMPTS[:1], [8], [1], Sampling(), ())


@pytest.mark.parametrize(
    "choice",
    [
        {"token_ids": ["a"], "logprobs": {"token_logprobs": [-1.0]}},
        {"token_ids": [1], "logprobs": {"token_logprobs": [None]}},
        {"token_ids": [1], "logprobs": {"token_logprobs": [float("nan")]}},
        {"token_ids": [True], "logprobs": {"token_logprobs": [-1.0]}},
        {"token_ids": [-1], "logprobs": {"token_logprobs": [-1.0]}},
        {"token_ids": 3, "logprobs": []},
        {"token_ids": [1], "logprobs": None},
        [],
        None,
    ],
)
def test_malformed_completions(choice: Any) -> None:
    answer = {**choice, "finish_reason": "stop"} if isinstance(choice, dict) else choice
    with stub_server(lambda *_: (200, {"choices": [answer]})) as (url, _), pytest.raises(UserError, match="is it vLLM"):
        engine(url).sample(PROMPTS[:1], [8], [1], Sampling(), ())


@pytest.mark.parametrize(
    "served", [{"data": 3}, {"data": [{"id": 3}]}, {"data": [{"id": "m", "max_model_len": "long"}]}, {"data": [None]}]
)
def test_a_server_that_is_none(served: Any, policy: Path) -> None:
    with stub_server(lambda *_: (200, served)) as (url, _), pytest.raises(UserError, match="is not a vLLM server"):
        open_server(url, str(policy))


# ---- how vLLM is started


def test_the_command_that_starts_a_server() -> None:
    command = serve_command("org/model", "bfloat16", VllmOptions("weights", max_tokens=4096), port=8001)
    assert command[:3] == ["env", "VLLM_SERVER_DEV_MODE=1", "VLLM_ALLOW_RUNTIME_LORA_UPDATING=1"]
    assert command[3:6] == ["python", "-m", "vllm.entrypoints.openai.api_server"]
    given = dict(zip(command[6::2], command[7::2], strict=True))
    assert given == {
        "--model": "org/model",
        "--host": "127.0.0.1",
        "--port": "8001",
        "--dtype": "bfloat16",
        "--max-model-len": "4096",
        "--logprobs-mode": "processed_logprobs",
        "--generation-config": "vllm",
        "--hf-overrides": '{"tie_word_embeddings": false}',
        "--weight-transfer-config": '{"backend": "nccl"}',
    }
    adapter = serve_command("m", "float32", VllmOptions("adapter", lora_rank=24, eager=True))
    assert "--hf-overrides" not in adapter
    assert adapter[adapter.index("--max-lora-rank") + 1] == "32"
    assert "--enable-lora" in adapter
    assert "--enforce-eager" in adapter


def test_options_and_a_missing_vllm_are_one_line(policy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="--lora-rank 513"):
        VllmOptions("adapter", lora_rank=513).arguments("float32")
    monkeypatch.setitem(sys.modules, "vllm", None)  # as if it were not installed
    with pytest.raises(UserError, match=r"prmbench\[vllm\]"):
        open_vllm(str(policy), None, CPU)


# ---- weights from memory, into a stand-in for vLLM's engine


class Engine:
    """Takes what a vLLM engine takes; notes it, and how many tensors are alive at a time."""

    def __init__(self) -> None:
        self.events: list[Any] = []
        self.most_alive = 0

    def wake_up(self) -> None:
        self.events.append("wake up")

    def load_weights(self, weights: Iterator[tuple[str, Tensor]]) -> None:
        alive: list[weakref.ref[Tensor]] = []
        names = []
        for name, tensor in weights:
            alive.append(weakref.ref(tensor))
            self.most_alive = max(self.most_alive, sum(ref() is not None for ref in alive))
            names.append((name, tensor.dtype, float(tensor.float().sum())))
        self.events.append(names)

    def load_adapter(self, name: str, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        self.events.append((name, config["r"], sorted(tensors)))


def test_an_engine_is_woken_and_gets_each_weight_alone(tied: Path) -> None:
    """In its own precision, a tied head under its own name; the one before it is let go."""
    trained, sampler = loaded(tied), Engine()
    weights = ModelWeights(trained.model, torch.bfloat16)
    EngineLink(sampler).push(3, weights)  # type: ignore[arg-type]
    expected = [
        (name, torch.bfloat16, float(w.bfloat16().float().sum())) for name, w in trained.model.state_dict().items()
    ]
    assert sampler.events == ["wake up", expected]
    assert {"lm_head.weight", "model.embed_tokens.weight"} <= {name for name, *_ in expected}
    assert sampler.most_alive == 1
    assert [(i.name, i.dtype, i.shape) for i in weights.metadata()] == [
        (name, torch.bfloat16, tuple(w.shape)) for name, w in trained.model.state_dict().items()
    ]


def test_an_engine_gets_an_adapter_by_the_names_of_peft(policy: Path) -> None:
    trained, sampler = loaded(policy), Engine()
    adapters = with_lora(trained).peft_config["default"]
    EngineLink(sampler, adapters).push(3, AdapterWeights(trained.model))  # type: ignore[arg-type]
    layers = [f"base_model.model.model.layers.{n}.{m}" for n in (0, 1) for m in ("mlp.down_proj", "self_attn.q_proj")]
    names = sorted(f"{layer}.lora_{part}.weight" for layer in layers for part in "AB")
    assert sampler.events == ["wake up", ("v000003", 2, names)]


def test_weights_are_gathered_to_the_end_when_an_engine_refuses_them() -> None:
    """The other processes gather with this one, and would wait for it."""
    gathered = []

    class Refuses(Engine):
        def load_weights(self, weights: Iterator[tuple[str, Tensor]]) -> None:
            next(weights)
            raise UserError("it does not fit")

    def weights() -> Iterator[tuple[str, Tensor]]:
        for n in range(3):
            gathered.append(n)
            yield str(n), torch.zeros(1)

    with pytest.raises(UserError, match="it does not fit"):
        EngineLink(Refuses()).push(1, weights())  # type: ignore[arg-type]
    assert gathered == [0, 1, 2]
