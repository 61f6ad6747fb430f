"""`prmbench train-distrl`: its options, its presets (paper, release, default, miniature) and its arms, with sources.

An arm is a row of values, never a code path. Standard library only; rl/ implements what the values mean.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from prmbench.config import LoadConfig, Preset
from prmbench.config.option_field import option
from prmbench.core.records import UserError

Arm = Literal[
    "grpo",
    "grpo_ipvrm",
    "grpo_implicit_prm",
    "grpo_dpo_rm",
    "distrl_ipvrm",
    "distrl_implicit_prm",
    "distrl_dpo_rm",
    "distrl_ipvrm_frozen",
    "prime",
    "spro",
    "reinforce_q_rm",
    "vineppo",
    "grpo_vps",
]
SELF = "self"
"""As --rm-model: the policy's own log-ratio to the reference is the reward (SPRO)."""


@dataclass(frozen=True)
class DistRLConfig(LoadConfig):
    """`prmbench train-distrl`; an option that is None takes the arm's value, or else the preset's."""

    engine: Literal["auto", "hf", "vllm", "server"] = option(  # type: ignore[assignment]
        "auto",
        "Engine that samples completions: hf (transformers), vllm (in process), server (vLLM servers, --server), or "
        "auto: vllm where it is installed and there is a GPU, else hf.",
    )
    server: tuple[str, ...] = option(
        (), "URL of a vLLM server, repeatable: process r uses server r modulo their number."
    )
    preset: Preset = option(
        "default", "Source of the values of options left out: default, paper, release or miniature."
    )
    arm: Arm = option("distrl_ipvrm", "Named combination of reward, reward model and branches; flags win over it.")
    # Parts of a token's advantage.
    reward: Literal["verifier", "rm", "both"] | None = option(
        None, "Reward: the verifier's outcome, the reward model's process reward, or both."
    )
    gae_weight: float | None = option(None, "Weight of the process advantage beside the outcome's (Eq. 13: 1).", min=0)
    alpha: float | None = option(None, "Weight of the candidate branch, Eq. 14; 0 = none (paper: 0.1).", min=0)
    p_min: float | None = option(
        None, "Candidates are the tokens with pi_old of at least this (Eq. 11: 0.1).", min=0.01, max=1
    )
    credit: Literal["gae", "rloo", "masked_step", "score"] | None = option(
        None, "Process advantage: GAE of the TD errors (Eqs. 26-28), PRIME's, SPRO's, or the token's score itself."
    )
    gamma: float | None = option(None, "Discount of the GAE (paper: 1).", min=0, max=1)
    lam: float | None = option(None, "Lambda of the GAE (the paper does not say; release: 1).", min=0, max=1)
    td_normalize: Literal["group", "batch"] | None = option(
        None,
        "TD errors before the GAE: standardised per prompt (Eqs. 26-27), or centred over the batch (release).",
    )
    whiten: bool | None = option(None, "Whiten the process advantage over the batch (release).")
    zero_terminal: bool | None = option(None, "No TD error and no candidates at a completion's last token (release).")
    # Values of steps, which need no reward model.
    step_values: Literal["none", "continuations", "answer"] | None = option(
        None,
        "Value after each step, whose change is the step's advantage: the share of --continuations that end right "
        "(VinePPO), or the policy's probability of the gold answer (GRPO-VPS, our reading), beside the outcome's.",
    )
    step_weight: float | None = option(
        None, "Weight of the steps' advantage beside the outcome's, with --step-values answer.", above=0
    )
    continuations: int | None = option(
        None, "Completions sampled from each prefix for --step-values continuations.", min=1
    )
    answer_text: str | None = option(
        None,
        "Text that --step-values answer appends to a prefix; {gold} is the gold answer, {step} the next step's number.",
    )
    # The surrogate.
    clip_low: float | None = option(None, "Clip of the probability ratio below 1 (paper: 0.2).", min=0, max=1)
    clip_high: float | None = option(None, "Clip of the probability ratio above 1 (paper: 0.28).", min=0)
    clip_candidates: float | None = option(
        None, "Symmetric clip of the candidates' ratio; 0 = the clips of the token branch.", min=0, max=1
    )
    dual_clip: float | None = option(
        None, "Bound of the loss where the advantage is negative; 0 = none (release: 3).", above=1, off=0
    )
    reduction: Literal["sequence", "token"] | None = option(None, "Mean per sequence (Eq. 12), or over all tokens.")
    candidate_normalize: Literal["length", "mass"] | None = option(
        None, "Candidate branch divided by a sequence's length (Eq. 11), or by the candidates' mass (release)."
    )
    # The reward model, trained online.
    rm_model: str = option("", "Reward model to start from: a folder of train-rm, or `self` (default: --model).")
    rm_loss: Literal["ipvrm", "implicit_prm", "dpo_rm", "q_rm"] | None = option(None, "Objective of the reward model.")
    rm_beta: float | None = option(None, "Scale of the reward model's log-ratio.", above=0)
    rm_margin: float | None = option(None, "Margin of the reward model's loss, where it has one.", min=0)
    rm_learning_rate: float | None = option(
        None, "Learning rate of the reward model (paper: 1e-4 with LoRA; release: 2e-6 without).", min=0
    )
    rm_minibatch: int | None = option(None, "Prompts per update of the reward model; 0 = all of the step's.", min=0)
    rm_update: Literal["online", "frozen"] | None = option(
        None, "Train the reward model on every step's completions, or never."
    )
    reference: Literal["behaviour", "sft"] | None = option(
        None, "Reference of the log-ratio: the policy that sampled the completions (Table 9), or the start of training."
    )
    adb: bool | None = option(
        None, "Offset V(x) = logit of a prompt's accuracy in the reward model's loss (Eq. 15); not dpo_rm."
    )
    dlw: bool | None = option(
        None, "Rare outcomes of a prompt weigh more in the reward model's loss (Eq. 15); not dpo_rm."
    )
    dlw_normalize: bool | None = option(None, "Scale a prompt's weights of --dlw to mean 1 (release).")
    # Completions.
    group_size: int | None = option(None, "Completions per prompt (paper: 4; release: 16).", min=1)
    prompts: int | None = option(None, "Prompts with mixed outcomes that a step trains on (paper: 256).", min=1)
    draw: int | None = option(None, "Prompts sampled at a time to find those with mixed outcomes (paper: 512).", min=1)
    allow_empty: bool = option(False, "Go on even if three steps in a row find no prompt to train on.")
    rounds: int | None = option(
        None, "Maximum number of such draws in a step; the batch is smaller if they do not suffice.", min=1
    )
    truncated: Literal["drop", "mask", "keep"] | None = option(
        None, "A completion cut by length: drop its prompt's group (release), mask its tokens, or keep it."
    )
    max_new_tokens: int = option(2048, "Longest completion (release: 2048).", min=1)
    draw_tokens: int | None = option(
        None, "Tokens that transformers holds while sampling, prompts included (default: by device).", min=1
    )
    verifier: Literal["auto", "math", "exact", "gym"] = option("auto", "Verifier of answers; see rollout.")
    split: Literal["paragraph", "line", "numbered"] = option("paragraph", "How free text becomes steps; see rollout.")
    first_rollouts: Path | None = option(
        None, "Rollouts of the start policy to train on before step 1 (control: GRPO with the RM's rollouts)."
    )
    # Optimisation of the policy.
    steps: int = option(100, "Steps; each samples completions, updates the reward model and then the policy.", min=0)
    learning_rate: float | None = option(
        None, "Learning rate of the policy (paper: 3e-5 with LoRA; release: 2e-5 without).", above=0
    )
    minibatch: int | None = option(None, "Prompts per policy update; 0 = all of the step's.", min=0)
    warmup: int = option(0, "Steps over which both learning rates rise linearly.", min=0)
    optimizer: Literal["adamw", "adamw_8bit", "sgd"] = option(
        "adamw", "AdamW (betas 0.9, 0.999), AdamW with 8-bit moments (bitsandbytes), or plain SGD."
    )
    weight_decay: float = option(0.0, "Weight decay.", min=0)
    max_grad_norm: float = option(1.0, "Gradients are clipped to this norm; 0 = no clipping.", min=0)
    lora_rank: int | None = option(
        None, "Rank of LoRA adapters in policy and reward model (paper: 128); 0 = full.", min=0
    )
    gradient_checkpointing: Literal["auto", "on", "off"] = option(
        "auto", "Recompute activations in the backward pass, less memory for more time: auto does on a GPU."
    )
    strategy: Literal["ddp", "fsdp", "hsdp"] = option(
        "ddp", "Under torchrun: replicate the models, shard them (FSDP2), or shard them within each node only (HSDP)."
    )
    # Validation, checkpoints and logs.
    validation_data: Path | None = option(None, "Prompts on which the policy is validated during training.")
    validate_every: int = option(
        10, "Steps between validations; 0 = only before the first step and after the last.", min=0
    )
    validation_samples: int = option(
        8, "Completions per validation prompt (paper Table 5: 8, temperature 0.6, top-p 0.95).", min=1
    )
    save_every: int = option(10, "Steps between checkpoints; 0 = only at the end and when stopped.", min=0)
    resume: Literal["auto", "never"] = option("auto", "Resume from the newest checkpoint in --out, or refuse to.")
    tracker: Literal["none", "wandb", "trackio", "tensorboard"] = option(
        "none", "Also send the numbers of metrics.jsonl to this tracker."
    )
    out: Path = option(Path("runs/distrl"), "Folder for the policy, the reward model, metrics.jsonl and checkpoints.")


_PAPER: dict[str, Any] = {
    # Section 3.2-3.4, appendix C: n = 4, 512 prompts a batch of which 256 mixed, LoRA 128, 3e-5 and 1e-4, clip 0.2 and
    # 0.28, alpha 0.1, P_min 0.1, beta 10, m 5; Eq. 13 adds the GAE with weight 1; pi_ref = pi_old (Table 9).
    "gae_weight": 1.0,
    "alpha": 0.1,
    "p_min": 0.1,
    "credit": "gae",
    "gamma": 1.0,
    "td_normalize": "group",
    "whiten": False,
    "zero_terminal": False,
    "clip_low": 0.2,
    "clip_high": 0.28,
    "clip_candidates": 0.0,
    "dual_clip": 0.0,
    "reduction": "sequence",
    "candidate_normalize": "length",
    "rm_beta": 10.0,
    "rm_margin": 5.0,
    "rm_update": "online",
    "reference": "behaviour",
    "adb": True,
    "dlw": True,
    "dlw_normalize": False,
    "group_size": 4,
    "prompts": 256,
    "draw": 512,
    "lora_rank": 128,
    "truncated": "keep",
    # Values of steps are not the paper's. Continuations and text are ours.
    "step_values": "none",
    "step_weight": 1.0,
    "continuations": 4,
    "answer_text": "\n\nThe final answer is \\boxed{{gold}}",
    # The paper does not say: lambda as the release; one draw; four policy updates and eight of the reward model a step.
    "lam": 1.0,
    "rounds": 1,
    "minibatch": 64,
    "rm_minibatch": 32,
}
_RELEASE: dict[str, Any] = {
    # The authors' config: n = 16, 1024 prompts of which 512, full parameters, process advantage centred over the batch,
    # whitened and weighted 0.05, no TD at the last token, means over tokens and over candidate mass, dual clip 3,
    # weights of Eq. 15 scaled within the prompt, reward-model updates of 128 sequences, policy updates of 128 prompts.
    # Not as there: its candidates are five at most and hold the token drawn, likely or not; and a step that lacks mixed
    # prompts is filled up with others.
    **_PAPER,
    "gae_weight": 0.05,
    "td_normalize": "batch",
    "whiten": True,
    "zero_terminal": True,
    "clip_candidates": 0.2,
    "dual_clip": 3.0,
    "reduction": "token",
    "candidate_normalize": "mass",
    "dlw_normalize": True,
    "group_size": 16,
    "prompts": 512,
    "draw": 1024,
    "lora_rank": 0,
    "truncated": "drop",
    "minibatch": 128,
    "rm_minibatch": 8,
}
_DEFAULT: dict[str, Any] = {
    # The paper where it is explicit and well-posed, else the release: at long completions Eq. 13 as printed is all
    # process reward (a sum of T standardised terms), so the release's whitening and weight; its truncation rule and
    # dual clip for safety; draws repeated until there are enough mixed prompts.
    **_PAPER,
    "gae_weight": 0.05,
    "whiten": True,
    "zero_terminal": True,
    "dual_clip": 3.0,
    "truncated": "drop",
    "rounds": 3,
}
_MINIATURE: dict[str, Any] = {
    # A policy of 0.1 M parameters and solutions of forty tokens: our choice, made on validation problems
    # (leaderboards/results/miniature_gain/tuning_rl.json).
    **_PAPER,
    "rm_margin": 0.5,
    "answer_text": "\n\nStep {step}: Answer: {gold}",
    "prompts": 16,
    "draw": 24,
    "lora_rank": 0,
    "learning_rate": 3e-4,
    "rm_learning_rate": 3e-4,
    "minibatch": 0,
    "rm_minibatch": 0,
}
PRESETS: dict[Preset, Mapping[str, Any]] = {
    "paper": _PAPER,
    "release": _RELEASE,
    "default": _DEFAULT,
    "miniature": _MINIATURE,
}
RATES: dict[bool, Mapping[str, float]] = {
    True: {"learning_rate": 3e-5, "rm_learning_rate": 1e-4},
    False: {"learning_rate": 2e-5, "rm_learning_rate": 2e-6},
}
"""Learning rates with LoRA (paper, appendix C) and without (authors' config), unless option or preset gives them."""

_VERIFIER: dict[str, Any] = {"reward": "verifier", "gae_weight": 0.0, "alpha": 0.0}
_IPVRM: dict[str, Any] = {"reward": "both", "rm_loss": "ipvrm"}
# beta as in reward-model training (appendix C): it cancels in every normalised advantage, but not in the loss.
_IMPLICIT: dict[str, Any] = {"reward": "both", "rm_loss": "implicit_prm", "rm_beta": 0.05, "rm_margin": 0.0}
_DPO: dict[str, Any] = {"reward": "both", "rm_loss": "dpo_rm", "rm_beta": 0.05, "rm_margin": 0.0}
_NO_CANDIDATES: dict[str, Any] = {"alpha": 0.0}
ARMS: dict[Arm, Mapping[str, Any]] = {
    "grpo": _VERIFIER,
    "grpo_ipvrm": {**_IPVRM, **_NO_CANDIDATES},
    "grpo_implicit_prm": {**_IMPLICIT, **_NO_CANDIDATES},
    "grpo_dpo_rm": {**_DPO, **_NO_CANDIDATES},
    "distrl_ipvrm": _IPVRM,
    "distrl_implicit_prm": _IMPLICIT,
    "distrl_dpo_rm": _DPO,
    "distrl_ipvrm_frozen": {**_IPVRM, "rm_update": "frozen"},
    # PRIME (arXiv 2502.01456): cross-entropy reward model at beta 0.05 against the start policy, leave-one-out returns
    # of process and outcome rewards, whitened.
    "prime": {
        **_IMPLICIT,
        **_NO_CANDIDATES,
        "credit": "rloo",
        "gae_weight": 1.0,
        "whiten": True,
        "zero_terminal": False,
        "reference": "sft",
        "adb": False,
        "dlw": False,
    },
    # SPRO (masked step advantage): the policy's own log-ratio to the start, accumulated, less its group's mean there.
    "spro": {
        "reward": "both",
        "rm_loss": "implicit_prm",
        "rm_model": SELF,
        "rm_update": "frozen",
        "reference": "sft",
        "credit": "masked_step",
        "whiten": False,
        "zero_terminal": False,
        "rm_beta": 0.05,
        "rm_margin": 0.0,
        "gae_weight": 1.0,
        **_NO_CANDIDATES,
    },
    # Reinforce with Q-RM: the scalar head's score of a token is its advantage; one update a step leaves the ratio at 1.
    "reinforce_q_rm": {
        "reward": "rm",
        "rm_loss": "q_rm",
        "rm_beta": 0.2,
        "rm_margin": 2.0,
        "rm_update": "frozen",
        "credit": "score",
        "gae_weight": 1.0,
        "whiten": False,
        "zero_terminal": False,
        "minibatch": 0,
        **_NO_CANDIDATES,
    },
    # VinePPO (arXiv 2410.01679): a step's advantage is the change of its Monte-Carlo value, and the last value is the
    # outcome. Whitened over the batch, ours: values are shares, advantages of the other arms have unit variance.
    "vineppo": {**_VERIFIER, "step_values": "continuations", "whiten": True},
    # GRPO-VPS (arXiv 2604.20659), our reading: GRPO, and the change of the policy's probability of the gold answer.
    "grpo_vps": {**_VERIFIER, "step_values": "answer", "whiten": True},
}
# The best of four settings an arm on two validation seeds: leaderboards/results/miniature_gain/tuning_rl.json.
_BRANCH: dict[str, Any] = {"alpha": 1.0, "gae_weight": 0.0}
TUNED: dict[Arm, Mapping[str, Any]] = {
    "grpo_ipvrm": {"gae_weight": 0.05},
    "grpo_implicit_prm": {"gae_weight": 0.05},
    "grpo_dpo_rm": {"gae_weight": 0.05},
    "distrl_ipvrm": _BRANCH,
    "distrl_implicit_prm": _BRANCH,
    "distrl_dpo_rm": _BRANCH,
    "distrl_ipvrm_frozen": _BRANCH,
    "reinforce_q_rm": {"learning_rate": 1e-4},
}
"""What the preset `miniature` changes in an arm's own values."""


@dataclass(frozen=True, kw_only=True)
class ResolvedDistRL(DistRLConfig):
    """The options once `resolve` has filled them: what an arm or a preset sets is never missing."""

    reward: Literal["verifier", "rm", "both"]
    gae_weight: float
    alpha: float
    p_min: float
    credit: Literal["gae", "rloo", "masked_step", "score"]
    gamma: float
    lam: float
    td_normalize: Literal["group", "batch"]
    whiten: bool
    zero_terminal: bool
    step_values: Literal["none", "continuations", "answer"]
    step_weight: float
    continuations: int
    answer_text: str
    clip_low: float
    clip_high: float
    clip_candidates: float
    dual_clip: float
    reduction: Literal["sequence", "token"]
    candidate_normalize: Literal["length", "mass"]
    rm_beta: float
    rm_margin: float
    rm_learning_rate: float
    rm_minibatch: int
    rm_update: Literal["online", "frozen"]
    reference: Literal["behaviour", "sft"]
    adb: bool
    dlw: bool
    dlw_normalize: bool
    group_size: int
    prompts: int
    draw: int
    rounds: int
    truncated: Literal["drop", "mask", "keep"]
    learning_rate: float
    minibatch: int
    lora_rank: int


def resolve(config: DistRLConfig) -> ResolvedDistRL:
    """Return the config with the arm's value, or else the preset's, wherever an option was left out.

    Raises:
        UserError: Options contradict each other.
    """
    values = {**PRESETS[config.preset], **ARMS[config.arm]}
    if config.preset == "miniature":
        values |= TUNED.get(config.arm, {})
    options = {f.name: getattr(config, f.name) for f in fields(config)}
    user_values = {name: value for name, value in options.items() if value not in (None, "")}
    rank = user_values.get("lora_rank", values["lora_rank"])
    resolved = {**RATES[rank > 0], **values, **user_values}
    _check_consistency(resolved)
    return ResolvedDistRL(**{name: resolved.get(name, value) for name, value in options.items()})


def _check_consistency(values: Mapping[str, Any]) -> None:
    """Raise UserError where resolved options contradict each other."""
    has_process_reward = values["reward"] != "verifier"
    for name in ("alpha", "gae_weight"):
        if values[name] and not has_process_reward:
            flag = name.replace("_", "-")
            raise UserError(f"--{flag} {values[name]:g}: --reward verifier has no process reward; take both, or rm")
    if has_process_reward and not values["alpha"] and not values["gae_weight"]:
        raise UserError(f"--reward {values['reward']}: --alpha and --gae-weight are both 0; raise one of them")
    if values["step_values"] != "none" and has_process_reward:
        raise UserError(
            f"--step-values {values['step_values']}: takes no reward model; give --reward verifier, or another --arm"
        )
    if values["step_values"] == "answer" and "{gold}" not in values["answer_text"]:
        raise UserError(f"--answer-text {values['answer_text']!r}: has no {{gold}}, the place of the gold answer")
    if values.get("rm_model") == SELF and (values["reference"] != "sft" or values["rm_update"] != "frozen"):
        raise UserError("--rm-model self: is 0 against itself; give --reference sft and --rm-update frozen")
    if has_process_reward and not values.get("rm_loss"):
        raise UserError(f"--reward {values['reward']}: no reward model is named; give --rm-loss, or another --arm")
    if values.get("rm_loss") == "q_rm" and (values["alpha"] or values["credit"] != "score"):
        raise UserError("--rm-loss q_rm: scores tokens that were drawn, no others; give --alpha 0 --credit score")
    if values.get("rm_loss") == "q_rm" and values["rm_update"] == "online":
        raise UserError("--rm-loss q_rm: has no online update; give --rm-update frozen")
