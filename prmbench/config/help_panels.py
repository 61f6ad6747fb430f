"""What `--help` shows of an option beside its text: the panel it stands in, and the value that a preset gives it.

A new option needs one entry in `PANELS`. Standard library only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from prmbench.config import Loss, Preset, TrainConfig, TrainRMConfig, distrl_options, presets, unused_options
from prmbench.config.distrl_options import DistRLConfig

PANELS: dict[str, tuple[str, ...]] = {
    "Model": (
        *("model", "revision", "trust_remote_code", "template", "backend", "ref_model", "ref_revision", "ref_cache"),
        *("boundary", "decay", "separator", "tag", "positive_class"),
    ),
    "Data": (
        *("data", "benchmark", "subset", "limit", "split", "rendering", "calibrate_on", "fields", "data_name"),
        *("validation", "validation_data", "first_rollouts", "format", "neutral", "alternatives", "strict"),
        *("ngram", "overlap", "against", "world", "seeds", "first_seed", "rl_seeds", "results", "worlds", "part"),
        *("tuning", "earlier"),
    ),
    "Hardware": (
        *("engine", "device", "dtype", "kernels", "compile", "batch_tokens", "tensor_parallel", "strategy"),
        *("gradient_checkpointing",),
    ),
    "Critic": (
        *("critic", "votes", "critic_temperature", "critic_top_p", "critic_top_k", "critic_tokens"),
        *("input_price", "output_price", "max_cost"),
    ),
    "Server": (
        *(
            "base_url",
            "requests",
            "rate",
            "server",
            "host",
            "port",
            "token_file",
            "no_token",
            "batching",
            "max_pending",
        ),
        *("max_body", "max_solutions", "max_steps", "max_characters", "timeout", "drain", "access_log"),
    ),
    "Sampling": (
        *("group_size", "temperature", "top_p", "top_k", "max_new_tokens", "verifier", "prompts", "draw", "rounds"),
        *("draw_tokens", "truncated", "allow_empty"),
    ),
    "Reward and advantage": (
        *("arm", "reward", "gae_weight", "alpha", "p_min", "credit", "gamma", "lam", "td_normalize", "whiten"),
        *("zero_terminal", "step_values", "step_weight", "continuations", "answer_text"),
    ),
    "Reward model": (
        *("rm_model", "rm_loss", "rm_beta", "rm_margin", "rm_learning_rate", "rm_minibatch", "rm_update"),
        *("reference", "adb", "dlw", "dlw_normalize"),
    ),
    "Training": (
        *("preset", "loss", "beta", "margin", "pairs", "reduction", "learning_rate", "batch_size", "minibatch"),
        *("epochs", "steps", "warmup", "schedule", "optimizer", "weight_decay", "max_grad_norm", "max_tokens"),
        *(
            "lora_rank",
            "candidate_normalize",
            "clip_low",
            "clip_high",
            "clip_candidates",
            "dual_clip",
            "validate_every",
        ),
        *("validation_samples", "save_every", "resume"),
        *("trials", "further_trials", "max_trials"),
    ),
    "Output": (
        *(
            "out",
            "name",
            "force",
            "protocol",
            "seed",
            "dry_run",
            "check",
            "recompute",
            "formats",
            "license",
            "organization",
        ),
        *("difference", "power", "level", "metric"),
        *("relationship", "all_protocols", "card_only", "repo", "what", "yes", "private", "create_pr", "allow_dirty"),
        *("tracker", "json", "quiet"),
    ),
}
"""The panels of `--help` in their order, each with its options in theirs."""
TITLES = {("EvalConfig", "Sampling"): "Sampling (only --benchmark policy)"}
"""Titles of panels that one command, named by its config, has under another name."""
UNUSED: dict[str, tuple[str, ...]] = {
    "RolloutConfig": ("trust_remote_code",),
    "ServeConfig": (
        "base_url",
        "requests",
        "rate",
        "input_price",
        "output_price",
        "max_cost",
        "ref_cache",
        *unused_options.DATA,
    ),
    "TrainConfig": ("engine",),
    "TrainRMConfig": ("engine",),
}
"""Options that a command inherits and that do nothing there, by its config; they are accepted and not shown."""
OTHER = "Options"
"""Panel of an option that `PANELS` lacks, and of those of every command."""


def panel(config: type[Any], name: str) -> str:
    """Return the title of the panel in which a command shows an option.

    Args:
        config: The command's dataclass.
        name: Field of it, or `json` or `quiet`.
    """
    title = next((title for title, names in PANELS.items() if name in names), OTHER)
    return TITLES.get((config.__name__, title), title)


def position(name: str) -> int:
    """Return where an option stands among all options; one without a panel comes last."""
    order = [option for names in PANELS.values() for option in names]
    return order.index(name) if name in order else len(order)


def is_shown(config: type[Any], name: str) -> bool:
    """Return whether `--help` of the command shows the option."""
    return name not in UNUSED.get(config.__name__, ())


def preset_default(config: type[Any], name: str) -> str:
    """Return the values that presets give an option which is None otherwise; empty where no preset has it.

    First the value that a command without further options uses, then where another preset, loss or arm differs:
    `5e-07; loss step_bce, value_bce: 1e-05; preset miniature: 0.000677`.
    """
    if getattr(config, name, None) is not None:
        return ""
    values = _loss_defaults(config, name) if issubclass(config, TrainConfig) else {}
    if issubclass(config, DistRLConfig):
        values = _arm_defaults(name)
    return "; ".join(f"{where}: {value}" if where else value for where, value in values.items())


def _loss_defaults(config: type[TrainConfig], name: str) -> dict[str, str]:
    """Return the values of an option of `train-sft` or `train-rm` by where they hold; the empty key is the default."""
    if name not in {f.name for f in fields(presets.Values)}:
        return {}
    loss, preset = presets.loss_of(config()), config.preset
    losses = [loss, *(other for other in presets.PAPER if other not in (loss, "sft"))]

    def value(preset: Preset, loss: Loss) -> str:
        return _text(getattr(presets.PRESETS[preset][loss], name), "every completion" if name == "pairs" else "none")

    by_loss = {other: value(preset, other) for other in (losses if issubclass(config, TrainRMConfig) else [loss])}
    by_preset = {other: value(other, loss) for other in presets.PRESETS}
    return {"": by_loss[loss], **_differing("loss", by_loss, loss), **_differing("preset", by_preset, preset)}


def _arm_defaults(name: str) -> dict[str, str]:
    """Return the values of an option of `train-distrl` by where they hold; the empty key is the default."""
    arm, preset = DistRLConfig.arm, DistRLConfig.preset
    resolved = {other: distrl_options.resolve(DistRLConfig(arm=other)) for other in distrl_options.ARMS}
    by_arm = {other: _text(getattr(config, name)) for other, config in resolved.items()}
    by_preset = {
        other: _text(getattr(distrl_options.resolve(DistRLConfig(preset=other)), name))
        for other in distrl_options.PRESETS
    }
    if {*by_arm.values(), *by_preset.values()} == {"none"}:
        return {}
    return {"": by_arm[arm], **_differing("arm", by_arm, arm), **_differing("preset", by_preset, preset)}


def _differing(kind: str, values: Mapping[Any, str], default: str) -> dict[str, str]:
    """Return the values that differ from that of `default`, by the names that share each: `loss dpo_rm, q_rm`."""
    names: dict[str, list[str]] = {}
    for name, value in values.items():
        if value != values[default]:
            names.setdefault(value, []).append(name)
    return {f"{kind} {', '.join(sharing)}": value for value, sharing in names.items()}


def _text(value: Any, missing: str = "none") -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    if value in (None, ""):
        return missing
    return f"{value:g}" if isinstance(value, float) else str(value)
