"""One step of DistRL on plain logits, a sequence at a time, with loops for sums: what the trainer must come to.

Takes the completions that a run has drawn; whole probability tables stand in memory, so tiny vocabularies only.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from torch import Tensor
from torch.nn.functional import softplus

from prmbench.config.distrl_options import DistRLConfig


@dataclass(frozen=True)
class Said:
    ids: Tensor
    start: int
    group: int
    outcome: float
    masked: bool

    @property
    def tokens(self) -> Tensor:
        return self.ids[self.start :]


@dataclass(frozen=True)
class Step:
    """What a step leaves."""

    policy: dict[str, Tensor]
    rm: dict[str, Tensor]
    rm_loss: float
    loss: float
    sigma: float
    rm_right: float


def load(folder: Path) -> torch.nn.Module:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model.train()


def drawn(out: Path) -> list[Said]:
    """The completions of the last step of a run."""
    _, *told = [json.loads(line) for line in (out / "drawn" / "0.jsonl").read_text().splitlines()]
    return [
        Said(torch.tensor(r["ids"]), r["start"], r["group"], float(r["rollout"]["outcome"]), r["masked"]) for r in told
    ]


def table(model: torch.nn.Module, row: Said) -> Tensor:
    """[T, V] log-probabilities at each place of the completion."""
    return model(input_ids=row.ids[None]).logits[0, row.start - 1 : -1].log_softmax(-1)


def tables(model: torch.nn.Module, rows: Sequence[Said]) -> list[Tensor]:
    with torch.no_grad():
        return [table(model, row) for row in rows]


def at(whole: Tensor, row: Said) -> Tensor:
    return whole.gather(1, row.tokens[:, None])[:, 0]


def step(policy: Path, rm: Path, start: Path, out: Path, config: DistRLConfig) -> Step:
    """From the models before a step and its completions to the models after it, by plain gradient descent."""
    rows, model, judge = drawn(out), load(policy), load(rm)
    old = tables(model, rows)
    reference = old if config.reference == "behaviour" else tables(load(start), rows)
    rm_loss, right = _rm_step(judge, rows, reference, config)
    td = [config.rm_beta * (a - b) for a, b in zip(tables(judge, rows), reference, strict=True)]
    advantages, scale = _advantages(rows, td, config)
    losses = []
    most = max(row.group for row in rows) + 1
    size = config.minibatch or most
    for first in range(0, most, size):
        chosen = [i for i, row in enumerate(rows) if first <= row.group < first + size]
        loss = _policy_loss(model, rows, old, td, (advantages, scale), chosen, config)
        losses.append(loss.item())
        _descend(model, loss, config.learning_rate)
    found = {name: p.detach() for name, p in model.named_parameters()}
    rm_found = {name: p.detach() for name, p in judge.named_parameters()}
    return Step(found, rm_found, rm_loss, sum(losses) / len(losses), scale, right)


def _descend(model: torch.nn.Module, loss: Tensor, rate: float | None) -> None:
    model.zero_grad()
    loss.backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.sub_(rate * parameter.grad)


def mu_of(rows: Sequence[Said], group: int) -> float:
    found = [row.outcome for row in rows if row.group == group]
    return sum(found) / len(found)


def _rm_step(
    judge: torch.nn.Module, rows: Sequence[Said], reference: Sequence[Tensor], config: DistRLConfig
) -> tuple[float, float]:
    """Eq. 15 on all rows at once: (loss, share of right verdicts before the update)."""
    total, right, chosen = torch.zeros(()), 0, [i for i, row in enumerate(rows) if not row.masked]
    for i in chosen:
        row, mu = rows[i], mu_of(rows, rows[i].group)
        value = config.rm_beta * (at(table(judge, row), row) - at(reference[i], row))
        so_far = value.cumsum(0) / torch.arange(1, len(value) + 1)
        v = so_far + (math.log(mu / (1 - mu)) if config.adb else 0.0)
        margin = config.rm_margin
        terms = softplus(margin - v) if row.outcome == 1 else softplus(margin + v)
        weight = 1 - mu if row.outcome == 1 else mu
        if config.dlw_normalize:
            same = [1 - mu if r.outcome == 1 else mu for r in rows if r.group == row.group]
            weight *= len(same) / sum(same)
        total = total + terms.mean() * (weight if config.dlw else 1.0) / len(chosen)
        right += (value.mean().item() > 0) == (row.outcome == 1)
    if config.rm_update == "online":
        _descend(judge, total, config.rm_learning_rate)
    return total.item(), right / len(chosen)


def _advantages(rows: Sequence[Said], td: Sequence[Tensor], config: DistRLConfig) -> tuple[list[Tensor], float]:
    """Eqs. 24-29 and 13: ([T] of every row, sigma_V)."""
    own = [at(t, row).clone() for t, row in zip(td, rows, strict=True)]
    learning = [i for i, row in enumerate(rows) if not row.masked]
    if config.zero_terminal:
        for t in own:
            t[-1] = 0.0
    sigma = torch.cat([own[i].cumsum(0) for i in learning]).std(unbiased=False).item()
    scaled = [t / sigma for t in own]
    ready = {}
    for i in learning:
        same = [j for j in learning if rows[j].group == rows[i].group or config.td_normalize == "batch"]
        every = torch.cat([scaled[j] for j in same])
        spread = every.std(unbiased=False) if config.td_normalize == "group" else 1.0
        ready[i] = (scaled[i] - every.mean()) / spread
    process = {i: _gae(ready[i], config.gamma * config.lam) for i in learning}
    if config.whiten:
        every = torch.cat(list(process.values()))
        process = {i: (p - every.mean()) / every.std() for i, p in process.items()}
    found = []
    for i, row in enumerate(rows):
        if row.masked:
            found.append(torch.zeros(len(row.tokens)))
            continue
        mu = mu_of(rows, row.group)
        found.append(config.gae_weight * process[i] + (row.outcome - mu) / math.sqrt(mu * (1 - mu)))
    return found, sigma


def _gae(td: Tensor, discount: float) -> Tensor:
    n = len(td)
    return torch.stack([sum((discount ** (j - i) * td[j] for j in range(i, n)), torch.zeros(())) for i in range(n)])


def _policy_loss(
    model: torch.nn.Module,
    rows: Sequence[Said],
    old: Sequence[Tensor],
    td: Sequence[Tensor],
    given: tuple[Sequence[Tensor], float],
    chosen: Sequence[int],
    config: DistRLConfig,
) -> Tensor:
    """Eqs. 11, 12 and 14 over the rows chosen."""
    advantages, sigma = given
    token, candidate = torch.zeros(()), torch.zeros(())
    tokens, mass = 0, 0.0
    for i in chosen:
        row, ratio = rows[i], (table(model, rows[i]) - old[i]).exp()
        if row.masked:
            continue
        share = 1 / len(row.tokens) if config.reduction == "sequence" else 1.0
        clip = (config.clip_low, config.clip_high)
        token = token + share * _clipped(at(ratio, row), advantages[i], clip, config.dual_clip).sum()
        kept = old[i].exp() >= config.p_min
        if config.zero_terminal:
            kept[-1] = False
        clip = (config.clip_candidates,) * 2 if config.clip_candidates else clip
        share = 1 / len(row.tokens) if config.candidate_normalize == "length" else 1.0
        terms = old[i].exp() * _clipped(ratio, td[i] / sigma, clip, config.dual_clip)
        candidate = candidate + share * terms[kept].sum()
        tokens, mass = tokens + len(row.tokens), mass + old[i].exp()[kept].sum().item()
    token = token / (len(chosen) if config.reduction == "sequence" else tokens)
    candidate = candidate / (len(chosen) if config.candidate_normalize == "length" else mass)
    return token + config.alpha * candidate


def _clipped(ratio: Tensor, advantage: Tensor, clip: Sequence[float], dual: float | None) -> Tensor:
    loss = -torch.minimum(ratio * advantage, ratio.clamp(1 - clip[0], 1 + clip[1]) * advantage)
    return torch.where(advantage < 0, torch.minimum(loss, -dual * advantage), loss) if dual else loss
