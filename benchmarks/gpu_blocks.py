"""The blocks of gpu.py: each is a function from the place where it runs to its measurements."""

from __future__ import annotations

import importlib.util
import json
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import cost_model
import numpy as np
import torch
import transformers
from shapes import SHAPES, TOY, Shape

from prmbench.core.token_batches import token_batches
from prmbench.engines import token_logprobs
from prmbench.engines.encoding import Encoded
from prmbench.engines.generation import Sampling
from prmbench.engines.hf import HFEngine

ROOT = Path(__file__).parents[1]
GIB = 2**30
WORDS = ("x", "y", "Answer: 0\n", "Answer: 1\n", "Well.\n\n")
"""What the policy of `resume` can say: every answer is right by chance."""
MARKERS = ("<unk>", "<|end|>", "<|user|>", "<|assistant|>")
TEMPLATE = "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"


class MissingError(Exception):
    """The block needs a package or a device that is not here."""


@dataclass(frozen=True)
class Place:
    """Where blocks run, and at which size."""

    device: str
    toy: bool

    @property
    def kind(self) -> str:
        """`cuda`, `cpu` or another kind of device."""
        return self.device.partition(":")[0]

    def shape(self, name: str) -> Shape:
        """Return a model's shape; at toy size a tiny one."""
        return TOY if self.toy else SHAPES[name]

    def choose(self, full: int, toy: int) -> int:
        """Return a size."""
        return toy if self.toy else full

    def synchronize(self) -> None:
        """Wait until the device has done what it was given."""
        if self.kind == "cuda":
            torch.cuda.synchronize()

    def seconds(self, run: Callable[[], object], calls: int = 1, rounds: int = 5) -> float:
        """Return the seconds of one of several calls between two synchronisations; median of some rounds after one."""
        times = []
        for _ in range(rounds + 1):
            self.synchronize()
            start = time.perf_counter()
            for _ in range(calls):
                run()
            self.synchronize()
            times.append((time.perf_counter() - start) / calls)
        return statistics.median(times[1:])


def need(*packages: str) -> None:
    """Raise MissingError where a package is not installed."""
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise MissingError(f"needs {package}, which is not installed")


def random_model(place: Place, shape: Shape, dtype: torch.dtype) -> Any:
    """Return a language model with random weights, made on the device."""
    torch.manual_seed(0)
    with torch.device(place.device):
        return transformers.AutoModelForCausalLM.from_config(shape.config(), dtype=dtype)


def random_ids(count: int, vocabulary: int, seed: int) -> tuple[int, ...]:
    """Return random token ids."""
    return tuple(map(int, np.random.default_rng(seed).integers(0, vocabulary, count)))


# --- 1. ceilings ----------------------------------------------------------------------------------------------------


def ceilings(place: Place) -> dict[str, Any]:
    """Measure what nothing can exceed: a large product, the output head's product, and a copy on the device."""
    size, rows, bytes_copied = place.choose(8192, 64), place.choose(2048, 16), place.choose(2 * GIB, 2**16)
    shape = place.shape("1.5B")
    calls = place.choose(10, 2)
    a, b, out = (torch.randn(size, size, device=place.device, dtype=torch.bfloat16) for _ in range(3))
    product = place.seconds(lambda: torch.mm(a, b, out=out), calls)
    hidden = torch.randn(rows, shape.hidden, device=place.device, dtype=torch.bfloat16)
    head = torch.randn(shape.vocabulary, shape.hidden, device=place.device, dtype=torch.bfloat16)
    sums = {"out_dtype": torch.float32} if place.kind == "cuda" else {}
    head_product = place.seconds(lambda: torch.mm(hidden, head.T, **sums), calls)
    source = torch.zeros(bytes_copied, device=place.device, dtype=torch.uint8)
    target = torch.empty_like(source)
    copy = place.seconds(lambda: target.copy_(source), calls)
    return {
        "product": {"size": size, "tflops": 2 * size**3 / product / 1e12},
        "head_product": {
            "rows": rows,
            "shape": [shape.hidden, shape.vocabulary],
            "tflops": 2 * rows * shape.hidden * shape.vocabulary / head_product / 1e12,
        },
        "copy": {"bytes": bytes_copied, "gb_per_s_read_and_written": 2 * bytes_copied / copy / 1e9},
    }


# --- 2. tests -------------------------------------------------------------------------------------------------------


def tests(_: Place) -> dict[str, Any]:
    """Run the tests marked `gpu`; those of the blocks would run them twice."""
    need("pytest")
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", "-m", "gpu", "-k", "not block"]
    done = subprocess.run([*command, "tests/test_gpu.py"], cwd=ROOT, capture_output=True, text=True, check=False)
    last = (done.stdout.splitlines() or ["no output"])[-1]
    if done.returncode:
        names = re.findall(r"^(?:FAILED|ERROR) \S+?::(\S+)", done.stdout, re.MULTILINE)
        raise RuntimeError(f"pytest says {last!r}: {', '.join(names)}")
    return {kind: int(count) for count, kind in re.findall(r"(\d+) (passed|skipped|failed)", last)}


# --- 3. decoding ----------------------------------------------------------------------------------------------------


def decoding(place: Place) -> dict[str, Any]:
    """Measure the time of a step of sampling, and how much of it the device has nothing to do.

    Two lengths are timed, and their difference leaves the prefill out.
    """
    shape = place.shape("1.5B")
    engine = HFEngine(random_model(place, shape, torch.bfloat16), None)
    few, many, prompt = (place.choose(*sizes) for sizes in ((16, 1), (80, 3), (512, 4)))
    result = {}
    for rows in (2, 3, 4) if place.toy else (64, 136, 400):
        prompts = [random_ids(prompt, shape.vocabulary, i) for i in range(rows)]
        sample = {
            n: partial(engine.sample, prompts, [n] * rows, list(range(rows)), Sampling(), ()) for n in (few, many)
        }
        seconds = {n: place.seconds(run, rounds=place.choose(3, 1)) for n, run in sample.items()}
        kernels = {n: device_work(place, run) for n, run in sample.items()}
        step, busy, launches = (
            (many_value - few_value) / (many - few)
            for few_value, many_value in ((seconds[few], seconds[many]), *zip(kernels[few], kernels[many], strict=True))
        )
        result[str(rows)] = {
            "ms_a_step": 1e3 * step,
            "tokens_per_s": rows / step,
            "launches_a_step": launches or None,
            "idle_share": 1 - busy / step if busy else None,
        }
    return {"shape": "toy" if place.toy else "1.5B", "prompt_tokens": prompt, "steps": many - few, "rows": result}


def device_work(place: Place, run: Callable[[], object]) -> tuple[float, float]:
    """Return the seconds that a call's kernels take, and their number; zeros where the device is no GPU."""
    if place.kind != "cuda":
        return 0.0, 0.0
    kernels = profiled(place, run)
    return sum(e.self_device_time_total for e in kernels) / 1e6, float(sum(e.count for e in kernels))


def profiled(place: Place, run: Callable[[], object]) -> list[Any]:
    """Return the profiler's events of a call by name: a GPU's kernels, or the CPU's operations where there is none."""
    from torch.profiler import ProfilerActivity, profile

    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if place.kind == "cuda" else [])]
    with profile(activities=activities) as profiler:
        run()
        place.synchronize()
    kind = torch.autograd.DeviceType.CUDA if place.kind == "cuda" else torch.autograd.DeviceType.CPU
    return [event for event in profiler.key_averages() if event.device_type == kind]


# --- 4. memory ------------------------------------------------------------------------------------------------------

MEMORY_CASES = {
    "1.5B full": ("1.5B", 0, False),
    "1.5B full, checkpointing": ("1.5B", 0, True),
    "1.5B LoRA-128": ("1.5B", 128, False),
    "1.5B LoRA-128, checkpointing": ("1.5B", 128, True),
    "7B LoRA-128, checkpointing": ("7B", 128, True),
}
IDS_A_PLACE = 11


def memory(place: Place) -> dict[str, Any]:
    """Compare the memory of an update with the prediction: 8,190 padded tokens, 11 ids at each of their positions."""
    from prmbench.training.memory import Plan, shape_of

    result: dict[str, Any] = {}
    for name, (shape_name, rank, checkpointing) in MEMORY_CASES.items():
        if rank and importlib.util.find_spec("peft") is None:
            result[name] = {"skipped": "needs peft"}
            continue
        config, size = place.shape(shape_name).config(), (place.choose(6, 2), place.choose(1365, 8))
        with torch.device("meta"):
            shape = shape_of(transformers.AutoModel.from_config(config))
        plan = Plan(shape, half=True, lora_rank=rank, checkpointing=checkpointing)
        update = plan.gradients + plan.update(size[0] * size[1])
        predicted = {"weights": plan.weights, "adam": plan.moments, "peak": plan.weights + plan.moments + update}
        result[name] = {
            "predicted_gib": {part: n / GIB for part, n in predicted.items()},
            "counted_gib": counted_memory(place, place.shape(shape_name), rank, checkpointing, size),
        }
    return result


def counted_memory(
    place: Place, shape: Shape, rank: int, checkpointing: bool, size: tuple[int, int]
) -> dict[str, float] | None:
    """Return the GiB that the allocator gives out for weights, for Adam and at the peak; None where it does not count.

    The model is prepared and run as the trainer does it: two updates of two micro-batches, since Adam has its state in
    the second alone.
    """
    from prmbench.config import TrainConfig
    from prmbench.engines.hf import Placement
    from prmbench.training import optimiser
    from prmbench.training.model import ModelSetup, add_adapters, prepared

    allocated = torch.cuda.memory_allocated if place.kind == "cuda" else lambda: 0
    if place.kind == "cuda":
        torch.cuda.empty_cache()
    before = allocated()
    model = random_model(place, shape, torch.float32)
    setup = ModelSetup(Placement(place.device, "bfloat16"), "ddp", rank, checkpointing)
    adapters = add_adapters(model, "lm", rank) if rank else None
    runner = prepared(HFEngine(model, None), adapters, "lm", setup)
    weights = allocated() - before
    optimizer = optimiser.make(runner.trained, TrainConfig())
    ids = torch.tensor([random_ids(size[1], shape.vocabulary, i) for i in range(size[0])], device=place.device)
    positions = torch.arange(ids.numel(), device=place.device)
    targets = ids.flatten()[:, None].expand(-1, IDS_A_PLACE).contiguous()
    for _ in range(2):
        if place.kind == "cuda":
            torch.cuda.reset_peak_memory_stats()
        for _ in range(2):
            runner.run(ids, positions, targets).mean().backward()
        optimiser.step(optimizer, 1e-5)
    if place.kind != "cuda":
        return None
    state = sum(x.numel() * x.element_size() for values in optimizer.state.values() for x in values.values())
    peak = torch.cuda.max_memory_allocated() - before
    return {part: n / GIB for part, n in {"weights": weights, "adam": state, "peak": peak}.items()}


# --- 5. scoring -----------------------------------------------------------------------------------------------------


def scoring(place: Place) -> dict[str, Any]:
    """Measure scoring of 512 traces of log-normal lengths, as it is and with one thing changed at a time."""
    from measure import matmul_rate

    rate = matmul_rate(torch.device(place.device), torch.bfloat16) if not place.toy else None
    return {name: score_shape(place, place.shape(name), rate) for name in ("0.6B", "7B")}


def log_normal_lengths(count: int, median: int) -> list[int]:
    """Return the tokens of traces; with a median of 600 about 700 on average, as in the subset math of ProcessBench."""
    rng = random.Random(0)
    return [max(8, min(8 * median, round(rng.lognormvariate(np.log(median), 0.55)))) for _ in range(count)]


def score_shape(place: Place, shape: Shape, rate: float | None) -> dict[str, Any]:
    """Return tokens a second, the share of the product's rate and the difference to scoring with a mask, by variant."""
    lengths = log_normal_lengths(place.choose(512, 6), place.choose(600, 20))
    traces = [
        Encoded(str(i), random_ids(n, shape.vocabulary, i), start=max(1, n // 4), ends=(n,))
        for i, n in enumerate(lengths)
    ]
    batches = [[traces[i] for i in batch] for batch in token_batches(lengths, place.choose(16384, 64))]
    flops = cost_model.scoring_flops(shape, lengths, [e.ends[-1] - e.start for e in traces])
    result: dict[str, Any] = {"traces": len(lengths), "tokens": sum(lengths), "batches": len(batches)}
    masked: torch.Tensor | None = None
    for name, (change, score) in SCORING.items():
        engine = HFEngine(random_model(place, shape, torch.bfloat16), None)  # the same weights each time
        try:
            change(place, engine.model)
        except MissingError as reason:
            result[name] = {"skipped": str(reason)}
            continue

        def run(engine: HFEngine = engine, score: Score = score) -> torch.Tensor:
            with torch.inference_mode():
                return torch.cat([score(engine, batch) for batch in batches])

        scores = run()
        masked = scores if masked is None else masked
        seconds = place.seconds(run, rounds=place.choose(3, 1))
        result[name] = {
            "tokens_per_s": sum(lengths) / seconds,
            "share_of_product_rate": None if rate is None else flops / seconds / rate,
            "rms_to_masked_nats": float((scores - masked).square().mean().sqrt()),
        }
    return result


def score_as_is(engine: HFEngine, batch: Sequence[Encoded]) -> torch.Tensor:
    """Return the log-probabilities of a batch's step tokens, as the engine gives them."""
    return torch.cat([torch.from_numpy(trace.logprobs) for trace in engine.logprobs(batch)])


def score_by_hand(engine: HFEngine, batch: Sequence[Encoded], masked: bool, chunk: int) -> torch.Tensor:
    """Return the same, with or without a mask of the padding, and with so many rows of logits at a time."""
    model = engine.model
    width = max(len(e.ids) for e in batch)
    ids = torch.tensor([[*e.ids, *[0] * (width - len(e.ids))] for e in batch], device=model.device)
    mask = torch.tensor([[1] * len(e.ids) + [0] * (width - len(e.ids)) for e in batch], device=model.device)
    states = model.base_model(input_ids=ids, attention_mask=mask if masked else None, use_cache=False).last_hidden_state
    hidden = torch.cat([row[e.start - 1 : e.ends[-1] - 1] for e, row in zip(batch, states, strict=True)])
    targets = torch.tensor([i for e in batch for i in e.ids[e.start : e.ends[-1]]], device=model.device)
    weight = model.get_output_embeddings().weight
    return token_logprobs.target_logprobs(hidden, weight, targets, chunk=chunk)[0].cpu()


def unchanged(_: Place, __: Any) -> None:
    """Leave the model as it is."""


def apply_liger(place: Place, model: Any) -> None:
    """Replace norms, rotary embeddings and MLPs by Liger's kernels."""
    need("liger_kernel")
    if place.kind != "cuda":
        raise MissingError("Liger's kernels need a GPU")
    from transformers.integrations.liger import apply_liger_kernel

    apply_liger_kernel(model, {"fused_linear_cross_entropy": False, "cross_entropy": False})


def compile_regions(place: Place, model: Any) -> None:
    """Compile the decoder's layers, one for all; at toy size without a compiler behind it, which takes a minute."""
    if place.kind not in ("cuda", "cpu"):
        raise MissingError(f"torch.compile knows no device {place.kind}")
    for layer in model.base_model.layers:
        layer.compile(dynamic=True, backend="eager" if place.toy else "inductor")


Score = Callable[[HFEngine, Sequence[Encoded]], torch.Tensor]
BY_HAND = partial(score_by_hand, masked=False, chunk=2048)
SCORING: dict[str, tuple[Callable[[Place, Any], None], Score]] = {
    "mask, chunk 256": (unchanged, partial(score_by_hand, masked=True, chunk=256)),
    "as is": (unchanged, score_as_is),
    "no mask, chunk 256": (unchanged, partial(score_by_hand, masked=False, chunk=256)),
    "no mask, chunk 2048": (unchanged, BY_HAND),
    "no mask, chunk 2048, compiled by region": (compile_regions, BY_HAND),
    "no mask, chunk 2048, Liger kernels": (apply_liger, BY_HAND),
}
"""What is done to the model, and how it is scored; Liger also changes the model's module, so it comes last."""


# --- 6. a step of training ------------------------------------------------------------------------------------------

ARMS = {
    "distrl_ipvrm": ("distrl_ipvrm", 1),
    "grpo_ipvrm": ("grpo_ipvrm", 1),
    "grpo": ("grpo", 1),
    "grpo, two updates": ("grpo", 2),
}
"""Arm and policy updates a step. With one update GRPO may need no pass of the old policy; with two it needs one."""


def step(place: Place) -> dict[str, Any]:
    """Measure a step of DistRL and of GRPO, without sampling, and list what DistRL's time goes to."""
    need("scipy", "pydantic")
    import rl_setup

    rl_setup.SHAPES["1.5B"] = {
        "vocab_size": SHAPES["1.5B"].vocabulary,
        "hidden_size": SHAPES["1.5B"].hidden,
        "intermediate_size": SHAPES["1.5B"].intermediate,
        "num_hidden_layers": SHAPES["1.5B"].layers,
        "num_attention_heads": SHAPES["1.5B"].heads,
        "num_key_value_heads": SHAPES["1.5B"].kv_heads,
        "initializer_range": 0.2,
    }
    rl_setup.SHARPNESS["1.5B"] = 0.26  # logits as wide, against the log of the vocabulary, as at SmolLM2's shape
    size = rl_setup.Size("miniature" if place.toy else "1.5B", place.choose(16, 2), 4, place.choose(768, 12), updates=1)
    options = {
        "device": place.device,
        "dtype": "bfloat16",
        "gradient_checkpointing": not place.toy,
        "lora_rank": 0,
        "verifier": "exact",  # the others need packages, and outcomes are made up
    }
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name, catch_prints():
        folder = Path(name)
        rl_setup.write_inputs(folder, size)
        setup = rl_setup.open_setup(folder, size, "distrl_ipvrm", options)
        result["completions"] = len(setup.draw.rows)
        result["tokens"] = sum(len(row.ids) for row in setup.draw.rows)
        for arm_name, (arm, updates) in ARMS.items():
            config = replace(rl_setup.fixed_config(setup, arm), minibatch=-(-size.prompts // updates))
            result[arm_name] = time_arm(place, setup, config, folder / arm_name)
    return result


def time_arm(place: Place, setup: Any, config: Any, folder: Path) -> dict[str, Any]:
    """Return an arm's seconds a step, the tokens that the policy reads for each token it trains on, and a profile."""
    import rl_setup

    from prmbench.rl import distrl

    if place.kind == "cuda":
        torch.cuda.reset_peak_memory_stats()
    run = rl_setup.make_run(setup, config, folder)
    read: list[int] = []
    body = setup.models.policy.model.base_model
    hook = body.register_forward_pre_hook(
        lambda _, args, kwargs: read.append((kwargs.get("input_ids", args[0] if args else None)).numel()),
        with_kwargs=True,
    )
    metrics = distrl.learn(run, setup.draw, False)
    hook.remove()
    learn = partial(distrl.learn, run, setup.draw, False)
    seconds = place.seconds(learn, rounds=place.choose(3, 1))
    result = {
        "seconds": seconds,
        "policy_tokens_read": sum(read),
        "candidates": metrics.get("candidates"),
        "peak_gib": torch.cuda.max_memory_allocated() / GIB if place.kind == "cuda" else None,
    }
    if config.arm == "distrl_ipvrm":
        events = [(e.key, own_time(e, place)) for e in profiled(place, learn)]
        events.sort(key=lambda event: -event[1])
        result["top_15_ms"] = {key: round(1e3 * value, 3) for key, value in events[:15]}
    return result


def own_time(event: Any, place: Place) -> float:
    """Return the seconds of an event without its children: the device's, or the CPU's where there is no GPU."""
    return float(event.self_device_time_total if place.kind == "cuda" else event.self_cpu_time_total) / 1e6


@contextmanager
def catch_prints() -> Iterator[None]:
    """Send what libraries print to stderr, since the last line of stdout is the result."""
    from contextlib import redirect_stdout

    with redirect_stdout(sys.stderr):
        yield


# --- 7. a run that is stopped and goes on ---------------------------------------------------------------------------


def words_tokenizer() -> Any:
    """Return a tokenizer of ten words, so that a policy with random weights is right by chance."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate((*MARKERS, *WORDS))}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Split(Regex(r"Answer: \d\n|Well\.\n\n|[\s\S]"), "isolated")
    core.decoder = decoders.Fuse()
    core.add_special_tokens([AddedToken(marker, special=True, normalized=False) for marker in MARKERS])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="<|end|>", unk_token="<unk>", chat_template=TEMPLATE
    )


def resume(place: Place) -> dict[str, Any]:
    """Train with train-distrl in bfloat16 for three steps, with a SIGTERM in the second, and go on."""
    need("scipy", "pydantic")
    from prmbench.config.distrl_options import DistRLConfig
    from prmbench.rl.distrl import train_distrl

    tokenizer = words_tokenizer()
    with tempfile.TemporaryDirectory() as name, catch_prints():
        folder = Path(name)
        shape = replace(place.shape("0.6B"), vocabulary=len(tokenizer))
        model = random_model(Place("cpu", place.toy), shape, torch.float32)
        model.save_pretrained(folder / "model")
        tokenizer.save_pretrained(folder / "model")
        prompts = [{"id": f"p{i}", "prompt": "xy"[i % 2] * (1 + i // 2), "answer": str(i % 2)} for i in range(8)]
        (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in prompts), encoding="utf-8")
        config = DistRLConfig(
            model=str(folder / "model"), data=folder / "prompts.jsonl", out=folder / "run", preset="paper",
            verifier="exact", group_size=8, prompts=4, draw=8, rounds=3, minibatch=0, rm_minibatch=0, lora_rank=0,
            max_new_tokens=16, steps=3, save_every=0, allow_empty=True, device=place.device, dtype="bfloat16",
        )  # fmt: skip

        def stop_after_first(done: int, *_: Any) -> None:
            if done == 1:
                os.kill(os.getpid(), signal.SIGTERM)

        started = time.monotonic()
        try:
            train_distrl(config, stop_after_first)
        except KeyboardInterrupt:
            stopped = time.monotonic() - started
        else:
            raise RuntimeError("SIGTERM did not stop the run")
        before = read_steps(folder / "run")
        train_distrl(config)
        steps = read_steps(folder / "run")
    if steps[: len(before)] != before or [line["step"] for line in steps] != [1, 2, 3]:
        raise RuntimeError(f"the run did not go on where it was stopped: {before}, {steps}")
    return {
        "steps_before_the_stop": len(before),
        "seconds_before_the_stop": stopped,
        "seconds_after_it": time.monotonic() - started - stopped,
        "losses": [line.get("loss") for line in steps],
        "mismatch_rms": [line.get("mismatch_rms") for line in steps],
    }


def read_steps(out: Path) -> list[dict[str, Any]]:
    """Return the lines on steps in a run's metrics."""
    lines = (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [line for line in map(json.loads, lines) if "validation" not in line]


# --- 8. a checkpoint ------------------------------------------------------------------------------------------------


def checkpoint(place: Place) -> dict[str, Any]:
    """Measure the seconds of saving, checking and loading the weights of a 1.5B model with Adam's state."""
    from prmbench.config import TrainRMConfig
    from prmbench.training import checkpoints, optimiser

    model = random_model(place, place.shape("1.5B"), torch.float32)
    optimizer = optimiser.make(list(model.parameters()), TrainRMConfig())
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimiser.step(optimizer, 0.0)
    state = {"model": checkpoints.training_state(model, optimizer)}
    times = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        place.synchronize()
        marks = [time.perf_counter()]
        checkpoints.save(folder, 1, state, {})
        marks.append(time.perf_counter())
        newest = checkpoints.newest(folder)
        marks.append(time.perf_counter())
        if newest is None:
            raise RuntimeError("the checkpoint is not valid")
        checkpoints.load(newest, state)
        place.synchronize()
        marks.append(time.perf_counter())
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    times = dict(zip(("save", "check", "load"), np.diff(marks).tolist(), strict=True))
    return {"gib": size / GIB, "seconds": times, "gib_per_s": {name: size / GIB / s for name, s in times.items()}}


BLOCKS: dict[str, Callable[[Place], dict[str, Any]]] = {
    "ceilings": ceilings,
    "tests": tests,
    "decoding": decoding,
    "memory": memory,
    "scoring": scoring,
    "step": step,
    "resume": resume,
    "checkpoint": checkpoint,
}
"""In the order in which they are worth a short lease of a GPU."""
