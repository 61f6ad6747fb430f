"""Options: one flat frozen dataclass per command. The command line, TOML files and manifests all come from here.

Standard library only, so that `--help` loads nothing heavy.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from prmbench.config.model_names import check_model_path as check_model_path
from prmbench.config.option_field import option
from prmbench.core import option_values, reading
from prmbench.core.records import Boundary
from prmbench.core.redaction import host_of, scrub

LITERAL_TEXTS = ("separator", "tag", "positive_class", "name")
"""Options whose text is never the name of a file."""
# The functions that build the dataclasses below, for those who import this package.
validate, from_mapping, read_toml = option_values.validate, option_values.from_mapping, option_values.read_toml


@dataclass(frozen=True)
class LoadConfig:
    """Options of every command that runs a model: the model, the hardware and the data."""

    model: str = option("", "Hub id, folder or .gguf.")
    revision: str | None = option(None, "Hub revision of the model; the resolved sha goes into the manifest.")
    template: str = option("auto", "auto (the tokenizer's chat template), plain, or a Jinja file.")
    engine: Literal["hf"] = option("hf", "Who runs the forward pass.")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = option(
        "auto", "auto: bfloat16 on a GPU, float32 on a CPU."
    )
    device: str = option("auto", "auto, cpu, cuda, cuda:N, or balanced (spread one large model over all GPUs).")
    batch_tokens: int | None = option(None, "Padded tokens a batch may hold (default: by device).", min=1)
    trust_remote_code: bool = option(
        False, "Allow a model's own code; also needs a card that says so and a full-sha --revision."
    )
    data: Path | None = option(None, "File or folder: json, jsonl or parquet (rollout also: gym:NAME,size=N).")
    fields: str | None = option(
        None, "Unusual names of the fields in --data: prompt=question,answer=a.b (also completion, id, ...)."
    )
    limit: int | None = option(
        None, "Only N traces or prompts of each subset, evenly spaced (score: the first N).", min=1
    )
    seed: int = option(0, "Seed of everything random: bootstrap, sampling, data order, the random baseline.", min=0)
    dry_run: bool = option(False, "Print the plan (traces, tokens, batches, memory) and stop; no weights are loaded.")


@dataclass(frozen=True)
class CardOptions:
    """Options that win over a model's prm.json, or over what is inferred without one."""

    separator: str | None = option(
        None,
        r"Backend token_cls or value_head: text that closes every step, e.g. '\n\n' (default: prm.json, or inferred).",
    )
    tag: str | None = option(
        None, "Backend token_cls, value_head or tag_lm: token that closes every step (default: prm.json, or inferred)."
    )
    positive_class: str | None = option(
        None,
        "Backend token_cls: class of a right step, its index or its name in id2label (default: as prm.json, else 1).",
    )


@dataclass(frozen=True)
class ModelConfig(CardOptions, LoadConfig):
    """Options of `eval` and `score`: how the scores of a reward model are computed."""

    model: str = option(
        LoadConfig.model,
        "Hub id, folder or .gguf; or a baseline: random, step-length, all-right, position-only, and where there are "
        "labels outcome-oracle and gold.",
    )
    engine: Literal["auto", "hf", "vllm", "openai"] = option(  # type: ignore[assignment]
        "auto",
        "Who runs the model: hf, vllm (all backends but endo and tag_lm with a joint), openai (critics: a server at "
        "--base-url), or auto: vllm for critics and policies where it is installed and there is a GPU, else hf.",
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16", "bf16-products"] = option(  # type: ignore[assignment]
        "auto",
        "auto: bfloat16 on a GPU, float32 on a CPU; bf16-products (a CPU with avx512_bf16 or AMX): linear layers "
        "multiply in bfloat16, all else is float32.",
    )
    kernels: Literal["torch", "liger"] = option("torch", "Engine hf: torch's kernels, or Liger's on a GPU.")
    compile: bool = option(False, "Engine hf: compile the model's layers first (a minute or more; for long runs).")
    tensor_parallel: int = option(1, "Engine vllm: GPUs that share one model.", min=1)
    ref_model: str | None = option(None, "Reference of the log-ratio (backend implicit).")
    ref_revision: str | None = option(None, "Hub revision of the reference.")
    ref_cache: Path | None = option(
        None, "Folder that caches the reference's step log-probabilities for further models with the same reference."
    )
    backend: str = option(
        "auto", "auto, implicit, endo, value_head, token_cls, tag_lm, critic, baseline, or pkg.mod:Class."
    )
    boundary: Boundary = option(
        "exact", "Step boundaries: exact, or release (the IPVRM script's positions and mask; backend implicit or endo)."
    )
    decay: float = option(0.95, "Backend endo: discount of V(s_t+1) in the series `decay` (IPVRM paper, section 4).")
    critic: Literal["processbench", "stepwise", "yes_no"] | None = option(
        None,
        "Backend critic: the prompt: processbench (the official one), stepwise (a verdict on every step) or "
        "yes_no (P(yes) for every step); default: as its card says, else processbench.",
    )
    votes: int = option(1, "Backend critic: answers per trace; 1 = greedy, more = majority vote (yes_no: mean).", min=1)
    critic_temperature: float | None = option(None, "Backend critic: temperature (default: the critic's own).", min=0)
    critic_top_p: float | None = option(
        None, "Backend critic: top-p of nucleus sampling (default: the critic's own).", above=0, max=1
    )
    critic_top_k: int | None = option(None, "Backend critic: top-k, 0 = off (default: the critic's own).", min=0)
    critic_tokens: int | None = option(
        None, "Backend critic: longest answer, in tokens (default: the critic's own).", min=1
    )
    base_url: str | None = option(None, "Engine openai: address of the server, e.g. http://127.0.0.1:8000/v1.")
    requests: int = option(16, "Engine openai: concurrent requests.", min=1)
    rate: float | None = option(None, "Engine openai: maximum requests per minute (default: no limit).", min=0.001)
    input_price: float | None = option(None, "Engine openai: price of a million prompt tokens.", min=0, max=1e6)
    output_price: float | None = option(None, "Engine openai: price of a million answer tokens.", min=0, max=1e6)
    max_cost: float | None = option(None, "Engine openai: maximum cost of a run, resumed ones included.", min=0)


@dataclass(frozen=True)
class SamplingConfig:
    """Options of `rollout` and `eval --benchmark policy`: how completions are sampled, split and verified."""

    group_size: int = option(8, "Completions per prompt (policy: 8, IPVRM paper Table 5).", min=1)
    temperature: float = option(0.6, "Sampling temperature; 0 = greedy (policy: 0.6, IPVRM paper).", min=0)
    top_p: float = option(0.95, "Nucleus sampling; 1 = off (policy: 0.95, IPVRM paper).", above=0, max=1)
    top_k: int = option(0, "Sample among the k likeliest tokens; 0 = off.", min=0)
    max_new_tokens: int = option(
        2048, "Longest completion; a longer one is cut and marked (IPVRM release: 2048).", min=1
    )
    verifier: Literal["auto", "math", "exact", "gym"] = option(
        "auto",
        "Verifier of answers: auto (as the prompt says, else math), math-verify, exact match, reasoning-gym.",
    )
    split: Literal["paragraph", "line", "numbered"] = option(
        "paragraph", "How free text becomes steps: blank lines, line ends, or `Step n` / `n.` headings."
    )


@dataclass(frozen=True)
class EvalConfig(SamplingConfig, ModelConfig):
    """The options of `prmbench eval`, a field for each."""

    benchmark: str = option(
        "processbench",
        "processbench, prmbench_preview, format_shift, best_of_n, policy, calibration, or your own: pkg.mod:NAME.",
    )
    data_name: str | None = option(
        None, "Name of your own --data in results and tables, with a board of its own (default: the file's)."
    )
    rendering: tuple[str, ...] = option(
        (), "format_shift: rendering, repeatable (default: all; the plain one is always included)."
    )
    subset: tuple[str, ...] = option((), "Subset, repeatable (default: all that the data has).")
    protocol: tuple[str, ...] = option(
        (), "Protocol to show, repeatable, e.g. step_sum/oracle or prefix_sum/fixed:-3 (default: all)."
    )
    name: str | None = option(None, "Name of the run in tables and figures (default: the model's).")
    calibrate_on: str = option("gsm8k", "Subset on which the calibrated threshold is tuned.")
    out: Path = option(Path("runs"), "Folder for <run-id>.json and its scores.")
    force: bool = option(False, "Score again where the same run is stored already, instead of recomputing its metrics.")


@dataclass(frozen=True)
class RolloutConfig(SamplingConfig, LoadConfig):
    """`prmbench rollout`."""

    data: Path | None = option(None, "File or folder: json, jsonl or parquet; or gym:NAME,size=N (reasoning-gym).")
    engine: Literal["auto", "hf", "vllm"] = option(  # type: ignore[assignment]
        "auto", "Engine that samples completions; auto: vllm where it is installed and there is a GPU, else hf."
    )
    tensor_parallel: int = option(1, "Engine vllm: GPUs that share one model.", min=1)
    group_size: int = option(5, "Completions per prompt (IPVRM paper 4.1: five for reward-model data).", min=1)
    temperature: float = option(1.0, "Sampling temperature; 0 = greedy (IPVRM paper 4.1: 1).", min=0)
    top_p: float = option(1.0, "Nucleus sampling; 1 = off.", above=0, max=1)
    subset: tuple[str, ...] = option((), "Subset, repeatable (default: all that the data has).")
    out: Path = option(Path("rollouts.jsonl"), "File for the rollouts, jsonl or parquet, one row per completion.")
    force: bool = option(False, "Replace --out where it exists, and sample again what an interrupted run had sampled.")


Loss = Literal["sft", "ipvrm", "ipvrm_early", "ipvrm_late", "implicit_prm", "dpo_rm", "q_rm", "step_bce", "value_bce"]
Preset = Literal["default", "paper", "release", "miniature"]


@dataclass(frozen=True)
class TrainConfig(LoadConfig):
    """`prmbench train-sft`; an option that is None takes the preset's value (presets.py)."""

    seed: int = option(
        LoadConfig.seed, "Seed of the data order, of new weights and of --validation.", min=0, max=2**32 - 1
    )
    preset: Preset = option(
        "default", "Source of the values of options left out: default, paper, release or miniature."
    )
    learning_rate: float | None = option(None, "Peak learning rate.", above=0)
    batch_size: int | None = option(None, "Sequences or pairs per update, over all processes.", min=1)
    epochs: float | None = option(None, "Passes over the data.", above=0)
    steps: int | None = option(None, "Number of updates; wins over --epochs.", min=1)
    warmup: float | None = option(None, "Share of the updates spent warming up.", min=0, max=1)
    schedule: Literal["cosine", "linear", "constant"] | None = option(None, "Learning rate after the warm-up.")
    optimizer: Literal["adamw", "adamw_8bit", "sgd"] = option(
        "adamw", "AdamW (betas 0.9, 0.999), AdamW with 8-bit moments (bitsandbytes), or plain SGD."
    )
    weight_decay: float = option(0.0, "Weight decay.", min=0)
    max_grad_norm: float = option(1.0, "Gradients are clipped to this norm; 0 = no clipping.", min=0)
    max_tokens: int | None = option(
        None, "Longer rows are left out and counted (default: what the model takes).", min=1
    )
    validation: float = option(0.0, "Share of the prompts held out for validation.", min=0, below=1)
    lora_rank: int = option(0, "Rank of LoRA adapters on all linear layers; 0 = train all weights.", min=0)
    gradient_checkpointing: Literal["auto", "on", "off"] = option(
        "auto", "Recompute activations in the backward pass, less memory for more time: auto does on a GPU."
    )
    strategy: Literal["ddp", "fsdp", "hsdp"] = option(
        "ddp", "Under torchrun: replicate the model, shard it (FSDP2), or shard it within each node only (HSDP)."
    )
    save_every: int = option(0, "Updates between checkpoints; 0 = only at the end and when stopped.", min=0)
    tracker: Literal["none", "wandb", "trackio", "tensorboard"] = option(
        "none", "Also send the numbers of metrics.jsonl to this tracker."
    )
    out: Path = option(
        Path("runs/train"), "Folder for the model, metrics.jsonl and checkpoints (and a reward model's prm.json)."
    )


@dataclass(frozen=True)
class TrainRMConfig(TrainConfig):
    """`prmbench train-rm`."""

    loss: Loss = option("ipvrm", "Objective of the reward model.")
    ref_model: str | None = option(None, "Reference of the log-ratio (default: --model itself).")
    beta: float | None = option(None, "Scale of the log-ratio.", above=0)
    margin: float | None = option(None, "Margin m of IPVRM and Q-RM.", min=0)
    reduction: Literal["sequence", "token"] | None = option(
        None, "Mean per sequence, then over sequences, or over all tokens."
    )
    pairs: Literal["one", "all", "random"] | None = option(
        None,
        "Right-wrong pairs of a prompt: the first (IPVRM paper 4.1), all, or one at random; pointwise losses take "
        "both halves, and --batch-size counts pairs.",
    )


@dataclass(frozen=True)
class ScoreConfig(ModelConfig):
    """`prmbench score`."""

    split: Literal["paragraph", "line", "numbered"] = option(
        "paragraph", "How free text becomes steps: blank lines, line ends, or `Step n` / `n.` headings."
    )
    name: str | None = option(None, "Name of the model, which every line then has as `model` (default: none).")
    out: Path = option(Path("scores.jsonl"), "File for the step scores, one line per solution.")
    force: bool = option(False, "Replace --out where it exists, and score again what an interrupted run had scored.")


@dataclass(frozen=True)
class ServeConfig(ModelConfig):
    """`prmbench serve`."""

    split: Literal["paragraph", "line", "numbered"] = option(
        "paragraph", "How a request's free text becomes steps, where the request has no `split` of its own."
    )
    host: str = option("127.0.0.1", "Address to listen on; any but loopback needs a token, or --no-token.")
    port: int = option(8000, "Port to listen on; 0 = one that is free, named in the line on stderr.", min=0, max=65535)
    token_file: Path | None = option(
        None, "File with the token that every request must bring; else the environment's PRMBENCH_TOKEN, if it is set."
    )
    no_token: bool = option(False, "Let everyone who reaches --host use the model, without a token.")
    batching: Literal["shared", "request"] = option(
        "shared",
        "shared: solutions of several requests share batches; request: each request has batches of its own, and so "
        "the numbers of `score` to the last bit.",
    )
    max_pending: int = option(256, "Requests that may wait or be scored at once; the next is answered 429.", min=1)
    max_body: int = option(4 * 2**20, "Bytes of a request; a larger one is answered 413, like the next three.", min=1)
    max_solutions: int = option(256, "Solutions of a request.", min=1)
    max_steps: int = option(1000, "Steps of a solution.", min=1)
    max_characters: int = option(200_000, "Characters of a solution together with its problem.", min=1)
    timeout: float = option(60.0, "Seconds until a request is answered 504.", above=0, max=86_400)
    drain: float = option(
        30.0,
        "Seconds that requests have to finish after SIGTERM or Ctrl-C; new ones get 503.",
        min=0,
        max=86_400,
    )
    access_log: bool = option(False, "Print a line on stderr for every request.")


def unescape(text: str) -> str:
    r"""Return a text from a shell with the escapes \n, \r, \t and \\ replaced; other backslashes stay, as in \boxed."""
    return re.sub(r"\\([nrt\\])", lambda match: _ESCAPES[match[1]], text)


def escape(text: str) -> str:
    """Return the text that `unescape` turns into this one."""
    for letter, character in reversed(_ESCAPES.items()):  # the backslash first
        text = text.replace(character, f"\\{letter}")
    return text


_ESCAPES = {"n": "\n", "r": "\r", "t": "\t", "\\": "\\"}


def public_name(name: str) -> str:
    """Return a hub id unchanged, and the last part of a local path: results must not tell a machine's paths."""
    if ("/" in name or name in (".", "..")) and reading.exists(Path(name)):
        last_part = Path(name).name  # a link keeps its name: hub caches point to files named by hashes
        return last_part if last_part not in ("", "..") else Path(name).resolve().name
    return name


def to_json(config: Any) -> dict[str, Any]:
    """Return the options as JSON values, without what names a machine or holds a secret.

    Paths are given by their last part and servers by their host. `force` is always False: it moves no number.
    """
    values: dict[str, Any] = {}
    for f in fields(config):
        value: Any = False if f.name == "force" else getattr(config, f.name)
        if isinstance(value, tuple):
            value = list(value)
        if f.name == "base_url" and value:
            value = host_of(value)  # the rest may hold a secret
        if f.name == "server":
            value = [scrub(url) for url in value]
        if isinstance(value, Path):
            value = value.name
        elif f.name in LITERAL_TEXTS:
            value = None if value is None else escape(unescape(value))
        elif isinstance(value, str):
            value = public_name(value)
        values[f.name] = value
    return values


@dataclass(frozen=True)
class InitConfig(CardOptions):
    """`prmbench init`."""

    backend: str = option("auto", "auto (inferred), implicit, endo, value_head, token_cls, tag_lm or critic.")
    ref_model: str | None = option(None, "Reference of the log-ratio (backend implicit).")
    force: bool = option(False, "Replace a prm.json that exists.")


@dataclass(frozen=True, slots=True)
class CompareConfig:
    """`prmbench compare`."""

    protocol: tuple[str, ...] = option((), "Protocol to compare, repeatable (default: all that both runs have).")
    against: str | None = option(None, "Protocol of the second run, where its readout has another name.")
    benchmark: tuple[str, ...] = option(
        (), "Benchmark of your own that runs are on, pkg.mod:NAME, repeatable (installed ones are known)."
    )


@dataclass(frozen=True, slots=True)
class PowerConfig:
    """`prmbench power`."""

    difference: float = option(2.0, "The difference to be found, in points.", above=0, max=100)
    power: float = option(0.8, "Share of studies in which it should be found.", min=0.5, below=1)
    level: float = option(0.05, "Level of the two-sided test.", above=0, max=0.5)
    metric: str | None = option(None, "Metric of the pilot, such as f1 (default: its main number).")
    subset: str | None = option(None, "Subset or average of the pilot (default: that of its main number).")
    protocol: str | None = option(None, "Protocol of the pilot (default: that of its main number).")
    against: str | None = option(None, "Protocol of the second run, where its readout has another name.")
    benchmark: tuple[str, ...] = option(
        (), "Benchmark of your own that runs are on, pkg.mod:NAME, repeatable (installed ones are known)."
    )


@dataclass(frozen=True, slots=True)
class ReportConfig:
    """`prmbench report`."""

    results: Path | None = option(
        None, "Folder with the runs, searched recursively (default: runs, and in a checkout leaderboards/results too)."
    )
    out: Path | None = option(
        None, "Folder for tables, figures and the HTML page (default: RESULTS/report, or leaderboards)."
    )
    data: Path | None = option(
        None, "ProcessBench files or rollouts: gives the page the text (default: none; `hub` loads ProcessBench)."
    )
    check: bool = option(False, "Write nothing; exit 1 if a tracked file would change or a result fails its checks.")
    recompute: bool = option(False, "Recompute every row from the scores.")
    formats: str = option("", "Further formats besides Markdown and SVG, separated by commas: csv, tex, json.")
    benchmark: tuple[str, ...] = option(
        (), "Benchmark of your own that runs are on, pkg.mod:NAME, repeatable (installed ones are known)."
    )


@dataclass(frozen=True, slots=True)
class DemoConfig:
    """`prmbench demo`."""

    world: Literal["miniature", "smollm2"] = option(
        "miniature",
        "miniature: the whole pipeline on a tiny synthetic task; smollm2: a real model on traces shipped or in --data.",
    )
    seeds: int = option(2, "miniature: number of independent repetitions.", min=1)
    first_seed: int = option(0, "miniature: the first seed.", min=0)
    data: Path | None = option(None, "smollm2: ProcessBench file or folder (default: the traces shipped).")
    limit: int | None = option(None, "smollm2: traces per subset (default: all shipped ones, 12 of real data).", min=1)
    out: Path = option(Path("runs/demo"), "Folder for the runs and the report.")


@dataclass(frozen=True, slots=True)
class VerifyConfig:
    """`prmbench verify`."""

    fields: str | None = option(
        None, "Names of the fields, where they are unusual: prompt=question,completion=responses,answer=a.b."
    )
    verifier: Literal["math", "exact"] = option("math", "Verifier of answers: math-verify, or exact match.")
    split: Literal["paragraph", "line", "numbered"] = option(
        "paragraph", "How free text becomes steps: blank lines, line ends, or `Step n` / `n.` headings."
    )
    out: Path = option(Path("verified.jsonl"), "File for the rollouts, jsonl or parquet, one row per completion.")
    force: bool = option(False, "Replace --out where it exists, and verify again what an interrupted run had verified.")


@dataclass(frozen=True, slots=True)
class ConvertConfig:
    """`prmbench convert`."""

    format: Literal["auto", "prm800k", "math_shepherd", "trl"] = option(
        "auto", "Format of the rows: auto (by their fields), prm800k, math_shepherd, trl (stepwise)."
    )
    neutral: Literal["right", "wrong"] = option("right", "prm800k: what a step rated 0 counts as.")
    alternatives: bool = option(
        False, "prm800k: also every rated alternative step, as the last step after those before it."
    )
    limit: int | None = option(None, "Only N solutions, evenly spaced.", min=1)
    strict: bool = option(False, "Refuse files with rows that cannot be read (default: leave them out, and say so).")
    out: Path = option(Path("traces.jsonl"), "File for the labelled solutions, jsonl or parquet.")
    force: bool = option(False, "Replace --out where it exists.")


@dataclass(frozen=True, slots=True)
class ContaminationConfig:
    """`prmbench contamination`."""

    data: Path | None = option(None, "Training file or folder: any rows that have a problem.")
    against: tuple[str, ...] = option((), "Benchmark file or folder, repeatable.")
    ngram: int = option(13, "Words of an n-gram; a shorter problem is one n-gram.", min=1)
    overlap: float = option(
        0.5, "Share of a problem's n-grams in one training problem that counts as a match.", above=0, max=1
    )
    out: Path | None = option(None, "JSON file for all matches (default: none).")
    force: bool = option(False, "Replace --out where it exists.")


@dataclass(frozen=True)
class PublishConfig:
    """Options of `card` and `push`: what is published of a model's results."""

    name: str | None = option(
        None, "Name of the model on the hub (default: push: --repo; card: its name in the results)."
    )
    protocol: tuple[str, ...] = option((), "Protocol to include, repeatable (default: that of each run's main number).")
    all_protocols: bool = option(False, "Include every number of every protocol but the in-sample ones.")
    organization: str | None = option(None, "Who evaluated, for the Every Eval Ever record (default: unknown).")
    relationship: Literal["first_party", "third_party", "collaborative", "other"] = option(
        "other", "Relation of the evaluator to the model's developer, for the Every Eval Ever record."
    )
    license: str | None = option(None, "Licence of what is published, as the hub spells it, e.g. apache-2.0.")
    benchmark: tuple[str, ...] = option(
        (), "Benchmark of your own that runs are on, pkg.mod:NAME, repeatable (installed ones are known)."
    )


@dataclass(frozen=True)
class CardConfig(PublishConfig):
    """`prmbench card`."""

    card_only: bool = option(False, "Write the card alone, without .eval_results and every_eval_ever beside it.")
    out: Path | None = option(
        None, "File for the card, such as README.md; the hub's result files go beside it (default: print the card)."
    )
    force: bool = option(False, "Replace --out and the files beside it where they exist.")


@dataclass(frozen=True)
class PushConfig(PublishConfig):
    """`prmbench push`."""

    repo: str = option("", "Repository on the hub: ORG/NAME.")
    what: tuple[str, ...] = option(
        (), "What to upload: model, card, results or scores, repeatable (default: all that RUN has but the scores)."
    )
    yes: bool = option(False, "Upload; without it the files are listed and nothing is sent.")
    ref_model: str | None = option(
        None, "Hub id of the reference model, for the prm.json that is uploaded (the folder's own is left as it is)."
    )
    private: bool = option(False, "The repository must be private; a new one is made so.")
    revision: str | None = option(None, "Branch to commit to, made if there is none (default: main).")
    create_pr: bool = option(False, "Open a pull request instead of committing to the branch.")
    allow_dirty: bool = option(False, "Also runs of a dirty tree, or without a commit.")
    force: bool = option(False, "Replace files that the repository has with other content.")
