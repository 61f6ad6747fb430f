"""Speed of log-ratio scoring against the usual way, on the same models and traces in one run.

The usual way, as in the published scripts: padded batches of 2 in data order, a full log-softmax over all positions for
policy and reference, and each step boundary found by tokenising a prefix again. Both sides must give the same
log-ratios before anything is timed; the result is the median of alternating rounds. The last line printed is one JSON
object.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from measure import last_line_of_new_process, matmul_rate, peak_of, seconds

import prmbench
from prmbench import data
from prmbench.backends import Facts, ModelBackend, implicit
from prmbench.backends.ref_cache import step_logprobs
from prmbench.core.records import StepScores, Trace
from prmbench.engines.encoding import Encoded, encode_chat, render
from prmbench.engines.hf import HFEngine, Placement, keep_freed_memory, load
from prmbench.evaluation import scoring
from prmbench.studies import demo_smollm2

TOLERANCE = {"float32": 2e-3, "bfloat16": 0.5}
"""Largest difference in nats per token. In bfloat16 the peer rounds its logits, ours does not."""
QWEN3_0_6B = {
    "vocab_size": 151936,
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "tie_word_embeddings": True,
}


DEMO_TRACES = Path(prmbench.__file__).parent / "assets" / "demo_traces.jsonl"


def model_pair(shape: str, model: str | None, place: Placement) -> tuple[HFEngine, HFEngine]:
    """Return a perturbed policy and its reference: a model (default: SmolLM2-135M), or Qwen3-0.6B's shape at random."""
    reference = load(model or str(demo_smollm2.smollm2_path()), "lm", place)
    if shape == "qwen3-0.6b":
        torch.manual_seed(0)
        qwen3 = transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**QWEN3_0_6B))
        reference = HFEngine(qwen3.to(place.device, getattr(torch, place.dtype)), reference.tokenizer)
    policy = copy.deepcopy(reference.model)
    with torch.no_grad():
        for weight in policy.parameters():
            weight.add_(torch.randn_like(weight) * 0.02 * weight.std())
    return HFEngine(policy, reference.tokenizer), reference


# --- the two sides ----------------------------------------------------------------------------------------


def ours(policy: HFEngine, reference: HFEngine, traces: Sequence[Trace]) -> dict[str, tuple[float, ...]]:
    """Return the step scores of each trace, from the backend with the command's batch plan."""
    tokenizer = policy.tokenizer
    device = policy.model.device.type
    encoded = {t.id: encode_chat(tokenizer, t) for t in traces}
    backend = ModelBackend(
        Facts("logratio", "chat+steps", device=device),
        lambda t: encoded[t.id],
        lambda batch: implicit.read(policy, partial(step_logprobs, reference), batch),
    )
    plan = scoring.make_plan("benchmark", backend, traces, None)
    scores: list[StepScores] = []
    for batch in plan.batches:
        scores += backend.score([traces[i] for i in batch])
    return {s.id: s.values for s in scores}


@torch.inference_mode()
def peer(policy: HFEngine, reference: HFEngine, traces: Sequence[Trace]) -> dict[str, np.ndarray]:
    """Return each trace's cumulative log-ratio per token; also tokenises all prefixes, for their time only."""
    tokenizer, device = policy.tokenizer, policy.model.device
    cumulative = {}
    for start in range(0, len(traces), 2):
        batch = traces[start : start + 2]
        rows = [tokenizer(chat(tokenizer, t, len(t.steps)), add_special_tokens=False)["input_ids"] for t in batch]
        for t in batch:
            for k in range(len(t.steps) + 1):
                tokenizer(chat(tokenizer, t, k), add_special_tokens=False)
        width = max(map(len, rows))
        ids = torch.tensor([row + [0] * (width - len(row)) for row in rows], device=device)
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows], device=device)
        logps = []
        for engine in (policy, reference):
            logits = engine.model(input_ids=ids, attention_mask=mask).logits[:, :-1]
            logps.append(torch.log_softmax(logits, -1).gather(2, ids[:, 1:, None])[..., 0])
        ratio = (logps[0] - logps[1]).float().cpu().numpy()
        for t, row, values in zip(batch, rows, ratio, strict=True):
            cumulative[t.id] = np.concatenate([[0.0], values[: len(row) - 1]]).cumsum()
    return cumulative


def chat(tokenizer: Any, trace: Trace, k: int) -> str:
    """Return the rendered conversation with the first k steps."""
    text = "\n\n".join(f"Step {n}: {step}" for n, step in enumerate(trace.steps[:k], 1))
    messages = [{"role": "user", "content": trace.prompt}, {"role": "assistant", "content": text}]
    return render(tokenizer, messages, None)


# --- measurement ---------------------------------------------------------------------------------------------


def check_same(policy: HFEngine, reference: HFEngine, traces: Sequence[Trace], dtype: str) -> float:
    """Return the largest difference between both sides' step sums in nats per token; exit when it is too large."""
    mine, theirs = ours(policy, reference, traces), peer(policy, reference, traces)
    worst = 0.0
    for t in traces:
        encoding = encode_chat(policy.tokenizer, t)
        sums = [theirs[t.id][end - 1] - theirs[t.id][begin - 1] for begin, end in encoding.spans]
        gap = np.abs(np.array(sums) - np.array(mine[t.id])) / np.array(encoding.counts)
        worst = max(worst, float(gap.max()))
    if not worst <= TOLERANCE[dtype]:
        sys.exit(f"the two sides differ by {worst:.4g} nats a token; nothing was timed")
    return worst


def useful_flops(policy: HFEngine, encoded: Sequence[Encoded]) -> float:
    """Return the FLOP of two models: the body for each token, the head at step positions, without attention."""
    embedding = policy.model.get_input_embeddings().weight.numel()
    body = sum(p.numel() for p in policy.model.base_model.parameters()) - embedding
    tokens = sum(len(encoding.ids) for encoding in encoded)
    read = sum(encoding.ends[-1] - encoding.start for encoding in encoded)
    return 2 * 2.0 * (body * tokens + embedding * read)


def main() -> None:
    """Check that both sides agree, measure, and print the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=("smollm2", "qwen3-0.6b"), default="smollm2")
    parser.add_argument("--model", help="folder of another model than SmolLM2-135M")
    parser.add_argument("--data", type=Path, help="ProcessBench folder or file [default: the shipped traces]")
    parser.add_argument("--subset", default=None)
    parser.add_argument("--traces", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--only", choices=("ours", "peer"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    source = options.data or DEMO_TRACES
    traces = data.load("processbench", source, (options.subset,) if options.subset else (), options.traces).traces
    place = Placement(options.device).resolve()
    keep_freed_memory()
    policy, reference = model_pair(options.shape, options.model, place)
    sides = {"ours": lambda: ours(policy, reference, traces), "peer": lambda: peer(policy, reference, traces)}
    if options.only:
        print(peak_of(sides[options.only]))
        return
    worst = check_same(policy, reference, traces, place.dtype)
    times: dict[str, list[float]] = {"ours": [], "peer": []}
    for _ in range(options.rounds):
        for name, run in sides.items():
            times[name].append(seconds(run))
    encoded = [encode_chat(policy.tokenizer, t) for t in traces]
    tokens = 2 * sum(len(encoding.ids) for encoding in encoded)
    median = {name: statistics.median(t) for name, t in times.items()}
    rate = matmul_rate(policy.model.device, policy.model.dtype)
    result = {
        "benchmark": "score_throughput",
        "ratio": round(median["peer"] / median["ours"], 3),
        "ours": round(tokens / median["ours"], 1),
        "peer": round(tokens / median["peer"], 1),
        "unit": "tokens/s, both models counted",
        "rounds": options.rounds,
        "spread": {name: [round(min(t), 3), round(max(t), 3)] for name, t in times.items()},
        "max_difference_nats_per_token": worst,
        "matmul_share": round(useful_flops(policy, encoded) / median["ours"] / rate, 3),
        "matmul_gflops": round(rate / 1e9, 1),
        "peak_gib": {name: round(float(last_line_of_new_process("--only", name)), 2) for name in sides},
        "shape": options.shape,
        "model": Path(options.model).name if options.model else "SmolLM2-135M",
        "traces": len(traces),
        "dtype": place.dtype,
        "device": place.device,
        "threads": torch.get_num_threads(),
        "data": options.data.name if options.data else "shipped",
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
