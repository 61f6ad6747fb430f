"""Predicts what scoring and training cost on GPUs, from floating-point operations and bytes; nothing is measured here.

`python benchmarks/cost_model.py --write` puts the tables into docs/performance.md, where the formulas are explained.
Every assumption is a field of `Machine` or `Step`. Standard library only.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from shapes import SHAPES, Shape

PAGE = Path(__file__).parents[1] / "docs" / "performance.md"
GIB = 2**30
TRACES, TRACE_TOKENS, STEP_TOKENS = 3400, 850, 720
"""ProcessBench, and the tokens of a trace and of its steps that are assumed. Counted with SmolLM2's tokenizer on gsm8k,
math and olympiadbench: 786 and 666; omnimath, the fourth subset, has the longest solutions."""
RANK = 128
"""Rank of the adapters of preset `default`."""


@dataclass(frozen=True)
class Machine:
    """GPUs of the H100 class, and which share of their limits is assumed to be reached."""

    flops: float = 650e12
    """FLOP a second of large bfloat16 products."""
    flops_share: float = 0.4
    """Share of it that whole forward and backward passes reach."""
    bandwidth: float = 2.6e12
    """Bytes a second of the GPU's memory."""
    bandwidth_share: float = 0.6
    """Share of it that decoding reaches."""
    launch: float = 2e-3
    """Least seconds of a decoding step: the host's work."""
    memory: float = 80e9
    """Bytes of a GPU."""
    load: float = 2e9
    """Bytes a second of reading weights from a disk into a GPU."""
    links: float = 300e9
    """Bytes a second that a GPU exchanges with the others of its node, eight in all."""
    network: float = 40e9
    """Bytes a second that a GPU exchanges with other nodes."""
    node: int = 8


@dataclass(frozen=True)
class Step:
    """A step of train-distrl, arm distrl_ipvrm, as preset `default` has it."""

    completions: int = 1024
    """Completions trained on: 256 prompts of 4."""
    sampled: int = 2048
    """Completions sampled: one draw of 512 prompts of 4."""
    prompt: int = 200
    """Tokens of a prompt."""
    mean: int = 700
    """Tokens of a completion."""
    longest: int = 2048
    """Tokens of the longest completion, which are the steps of decoding."""


# --- counts -----------------------------------------------------------------------------------------------------------


def body_parameters(shape: Shape) -> int:
    """Return the weights of the layers' matrices; norms and biases, a tenth of a per cent at most, are left out."""
    return shape.layers * sum(inputs * outputs for inputs, outputs in linear_layers(shape))


def linear_layers(shape: Shape) -> list[tuple[int, int]]:
    """Return (inputs, outputs) of a layer's matrices: queries, keys, values, output; gate, up, down."""
    queries, keys = shape.heads * shape.head_width, shape.kv_heads * shape.head_width
    h, i = shape.hidden, shape.intermediate
    return [(h, queries), (h, keys), (h, keys), (queries, h), (h, i), (h, i), (i, h)]


def head_parameters(shape: Shape) -> int:
    """Return the weights of the output head."""
    return shape.vocabulary * shape.hidden


def parameters(shape: Shape) -> int:
    """Return all weights: the layers, the embedding, and the head where it has its own."""
    return body_parameters(shape) + head_parameters(shape) * (1 if shape.tied else 2)


def adapter_parameters(shape: Shape, rank: int) -> int:
    """Return the weights of LoRA adapters of every linear layer."""
    return shape.layers * rank * sum(inputs + outputs for inputs, outputs in linear_layers(shape))


def attention_flops(shape: Shape, tokens: int) -> float:
    """Return the FLOP of causal attention over a sequence: 2 products of tokens x tokens, half of which is masked."""
    return 2.0 * shape.layers * shape.heads * shape.head_width * tokens**2


def forward_flops(shape: Shape, tokens: int, read: int) -> float:
    """Return the FLOP of a forward pass over one sequence whose head is applied at `read` positions."""
    return 2.0 * (body_parameters(shape) * tokens + head_parameters(shape) * read) + attention_flops(shape, tokens)


def scoring_flops(shape: Shape, lengths: Sequence[int], reads: Sequence[int]) -> float:
    """Return the FLOP of one model's pass over traces."""
    return sum(forward_flops(shape, tokens, read) for tokens, read in zip(lengths, reads, strict=True))


def kv_bytes(shape: Shape) -> int:
    """Return the bfloat16 bytes of a token's keys and values."""
    return 2 * 2 * shape.layers * shape.kv_heads * shape.head_width


# --- times ------------------------------------------------------------------------------------------------------------


def scoring_seconds(shape: Shape, machine: Machine, gpus: int = 1) -> dict[str, float]:
    """Return the seconds of loading a model and of its pass over ProcessBench, shared by `gpus` that work at once."""
    flops = TRACES * forward_flops(shape, TRACE_TOKENS, STEP_TOKENS)
    return {
        "load": 2.0 * parameters(shape) / machine.load,
        "pass": flops / (gpus * machine.flops * machine.flops_share),
    }


def step_seconds(shape: Shape, step: Step, machine: Machine, gpus: int, rank: int) -> dict[str, float]:
    """Return the seconds of the parts of a DistRL step whose sampler is vLLM on the same GPUs.

    Passes: the old policy reads once, the reward model learns once and reads once, the policy learns once. Learning
    recomputes the forward pass (checkpointing) and takes a backward pass of twice a forward; with adapters of once,
    since frozen weights need no gradients.
    """
    tokens = step.prompt + step.mean
    forward = step.completions * forward_flops(shape, tokens, step.mean)
    learn = (1 + 1 + (1 if rank else 2)) * forward
    rate = gpus * machine.flops * machine.flops_share
    return {
        "sample": sampling_seconds(shape, step, machine, gpus),
        "read": 2 * forward / rate,
        "learn": 2 * learn / rate,
        "exchange": exchange_seconds(shape, machine, gpus, rank),
    }


def sampling_seconds(shape: Shape, step: Step, machine: Machine, gpus: int) -> float:
    """Return the seconds of decoding: every step reads the weights, and of each unfinished row the keys and values."""
    completions = step.sampled / gpus
    weights = 2.0 * (body_parameters(shape) + head_parameters(shape))
    context = step.prompt + step.mean / 2
    moved = step.longest * weights + completions * step.mean * context * kv_bytes(shape)
    prefill = step.sampled / 4 * forward_flops(shape, step.prompt, 1) / (gpus * machine.flops * machine.flops_share)
    return max(moved / (machine.bandwidth * machine.bandwidth_share), step.longest * machine.launch) + prefill


def exchange_seconds(shape: Shape, machine: Machine, gpus: int, rank: int) -> float:
    """Return the seconds in which float32 gradients of both models are summed over all GPUs, once a step each.

    A ring moves 2 (g - 1) / g of the bytes; across nodes every GPU has the network's rate. Weights that FSDP gathers
    and what overlaps with computing are left out, and so is the copy of the policy's weights into the sampler.
    """
    trained = adapter_parameters(shape, rank) if rank else parameters(shape)
    rate = machine.links if gpus <= machine.node else machine.network
    return 2 * 2 * (gpus - 1) / gpus * 4.0 * trained / rate


def resident_bytes(shape: Shape, gpus: int, rank: int) -> float:
    """Return the bytes on each GPU during an update: policy and reward model, sharded, with gradients and Adam.

    The adapters of both stand on one base in bfloat16, or on one each where it is sharded. The sampler sleeps then.
    """
    trained = 16.0 * (adapter_parameters(shape, rank) if rank else parameters(shape))
    bases = (1 if gpus == 1 else 2) * 2.0 * parameters(shape) if rank else 0.0
    return (bases + 2 * trained) / gpus


ACTIVATIONS = 12e9
"""Bytes kept free on each GPU for activations, the head's logits and fragmentation."""


def fits(shape: Shape, machine: Machine, gpus: int, rank: int) -> bool:
    """Return whether an update fits."""
    return resident_bytes(shape, gpus, rank) + ACTIVATIONS <= machine.memory


# --- tables -----------------------------------------------------------------------------------------------------------


def scoring_table(machine: Machine) -> list[str]:
    """Return the lines of the table on ProcessBench."""
    lines = [
        "| model | weights, bfloat16 | FLOP of a pass | GPUs | predicted pass | predicted loading |",
        "|---|---:|---:|---|---:|---:|",
    ]
    rows = [("0.6B", 1, "1"), ("7B", 1, "1"), ("7B", 8, "8, a share of the traces each")]
    rows += [("72B", 1, "8, `--device balanced`: one works at a time"), ("72B", 8, "8, vLLM's tensor parallelism")]
    for name, gpus, words in rows:
        shape = SHAPES[name]
        seconds = scoring_seconds(shape, machine, gpus)
        flops = TRACES * forward_flops(shape, TRACE_TOKENS, STEP_TOKENS)
        lines.append(
            f"| {name} | {2 * parameters(shape) / 1e9:,.1f} GB | {flops:.1e} | {words} "
            f"| {duration(seconds['pass'])} | {duration(seconds['load'])} |"
        )
    return lines


def step_table(machine: Machine, step: Step) -> list[str]:
    """Return the lines of the table on a DistRL step."""
    lines = [
        "| policy and reward model | GPUs | memory of each | sample | read | learn | exchange | predicted step |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name in ("1.5B", "7B"):
        for rank in (0, RANK):
            for gpus in (1, 8, 64):
                shape, kind = SHAPES[name], f"LoRA-{rank}" if rank else "all weights"
                resident = f"{resident_bytes(shape, gpus, rank) / 1e9:,.1f} GB"
                if fits(shape, machine, gpus, rank):
                    parts = step_seconds(shape, step, machine, gpus, rank)
                    cells = [duration(seconds) for seconds in (*parts.values(), sum(parts.values()))]
                else:
                    cells = ["–"] * 4 + ["does not fit"]
                lines.append(f"| {name}, {kind} | {gpus} | {resident} | {' | '.join(cells)} |")
    return lines


def duration(seconds: float) -> str:
    """Return a time with two significant digits, in the unit in which it is read."""
    if seconds < 100:
        return f"{float(f'{seconds:.2g}'):g} s" if seconds >= 0.05 or not seconds else "under 0.05 s"
    minutes = seconds / 60
    return f"{float(f'{minutes:.2g}'):g} min" if minutes < 100 else f"{float(f'{minutes / 60:.2g}'):g} h"


MARK = "<!-- numbers: prediction: benchmarks/cost_model.py -->"
"""In each row of a table on the page: the numbers have a source, which is a formula."""
TABLES = {"scoring": lambda: scoring_table(Machine()), "step": lambda: step_table(Machine(), Step())}


def rewritten(text: str) -> str:
    """Return the page with its tables as this script computes them."""
    for name, table in TABLES.items():
        begin, end = f"<!-- begin predicted {name} -->\n", f"<!-- end predicted {name} -->"
        before, _, rest = text.partition(begin)
        _, found, after = rest.partition(end)
        if not found:
            raise SystemExit(f"{PAGE}: lacks the lines {begin.strip()} and {end}; put them where the table shall be")
        lines = [line if line.startswith("|---") else f"{line.removesuffix('|')}{MARK} |" for line in table()]
        text = before + begin + "".join(f"{line}\n" for line in lines) + end + after
    return text


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the tables, or write them into the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="write the tables into docs/performance.md")
    if parser.parse_args(arguments).write:
        PAGE.write_text(rewritten(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    else:
        print("\n\n".join("\n".join(table()) for table in TABLES.values()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
