"""TRL's trainers as a second oracle, on a tiny model: DPO, Bradley-Terry with a margin, and GRPO's clipped surrogates.

Skipped where TRL is not installed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from conftest import save_model
from torch import Tensor

from prmbench.engines import token_logprobs
from prmbench.objectives import log_ratios, token_surrogate
from prmbench.training.losses import LOSSES

trl = pytest.importorskip("trl")
datasets = pytest.importorskip("datasets")
pytestmark = pytest.mark.slow

PAIRS = [
    {"prompt": f"What is {n} plus 2?", "chosen": f" It is {n + 2}.", "rejected": f" It is, I think, {n * 3}!"}
    for n in range(4)
]
SETTINGS = {"use_cpu": True, "report_to": [], "per_device_train_batch_size": 4, "bf16": False, "disable_tqdm": True}


def from_hidden_states(model: Any, ids: Tensor, attention: Tensor) -> Tensor:
    """[b, t - 1] log-probabilities of the tokens after the first, by token_logprobs.py."""
    states = model.base_model(input_ids=ids, attention_mask=attention).last_hidden_state[:, :-1]
    weight = model.get_output_embeddings().weight
    return token_logprobs.target_logprobs(states.flatten(0, 1), weight, ids[:, 1:].flatten())[0].view(len(ids), -1)


def in_turn(x: Tensor) -> Tensor:
    """TRL stacks the chosen rows on the rejected ones; our pairs are neighbours."""
    return x.unflatten(0, (2, -1)).transpose(0, 1).flatten(0, 1)


@pytest.mark.parametrize("beta", [0.05, 1.0])
def test_dpo(tmp_path: Path, policy: Path, reference: Path, beta: float) -> None:
    trainer = trl.DPOTrainer(
        model=str(policy),
        ref_model=transformers.AutoModelForCausalLM.from_pretrained(reference),
        args=trl.DPOConfig(str(tmp_path), beta=beta, **SETTINGS),
        train_dataset=datasets.Dataset.from_list(PAIRS),
        processing_class=transformers.AutoTokenizer.from_pretrained(policy),
    )
    batch = next(iter(trainer.get_train_dataloader()))
    model, ids, attention = trainer.model.eval(), batch["input_ids"], batch["attention_mask"]
    with torch.no_grad():
        ratios = log_ratios(
            from_hidden_states(model, ids, attention), from_hidden_states(trainer.ref_model.eval(), ids, attention)
        )
    mask = batch["completion_mask"][:, 1:].bool()
    assert mask.sum(1).unique().numel() > 1, "rows of one length would hide a wrong mask"
    theirs = trainer.compute_loss(model, batch)
    ours = LOSSES["dpo_rm"].terms(in_turn(ratios), in_turn(mask), torch.zeros(8), beta, 9.0, "sequence").mean()
    torch.testing.assert_close(ours, theirs.detach(), rtol=1e-5, atol=1e-6)


def test_bradley_terry_with_a_margin(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "scalar", 0, "AutoModelForSequenceClassification", num_labels=1, pad_token_id=0)
    rows = [{**pair, "margin": n / 2} for n, pair in enumerate(PAIRS)]
    trainer = trl.RewardTrainer(
        model=str(folder),
        args=trl.RewardConfig(str(tmp_path), **SETTINGS),
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=transformers.AutoTokenizer.from_pretrained(folder),
    )
    batch = next(iter(trainer.get_train_dataloader()))
    margins = batch["margin"]
    assert margins.unique().numel() == len(PAIRS)
    model = trainer.model.eval()
    with torch.no_grad():
        scores = in_turn(model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits)
    every = torch.ones_like(scores, dtype=torch.bool)
    found = [LOSSES["q_rm"].terms(scores, every, scores, 1.0, float(m), "sequence")[n] for n, m in enumerate(margins)]
    theirs = trainer.compute_loss(model, batch)
    torch.testing.assert_close(torch.stack(found).mean(), theirs.detach(), rtol=1e-5, atol=1e-6)


def test_log_probabilities() -> None:
    from trl.trainer.utils import selective_log_softmax

    torch.manual_seed(0)
    hidden, weight, ids = torch.randn(2, 5, 8), torch.randn(37, 8), torch.randint(37, (2, 5))
    ours, _ = token_logprobs.target_logprobs(hidden.flatten(0, 1), weight, ids.flatten())
    torch.testing.assert_close(ours.view(2, 5), selective_log_softmax(hidden @ weight.T, ids), rtol=1e-5, atol=1e-5)


# --- GRPO: the token branch ------------------------------------------------------------------------------------------

LOW, HIGH, DUAL = 0.2, 0.28, 1.5


def completions(trainer: Any) -> dict[str, Tensor]:
    """Random tokens of four ragged completions, advantages of both signs, old log-probabilities half a nat around."""
    torch.manual_seed(0)
    ids = torch.randint(5, 90, (4, 11))
    mask = torch.arange(7) < torch.tensor([7, 3, 5, 1])[:, None]
    batch = {
        "prompt_ids": ids[:, :4],
        "prompt_mask": torch.ones_like(ids[:, :4]),
        "completion_ids": ids[:, 4:],
        "completion_mask": mask.long(),
        "advantages": torch.randn(4, 7),
        "num_items_in_batch": mask.sum(),
    }
    with torch.no_grad():
        now = from_hidden_states(trainer.model, ids, torch.cat([batch["prompt_mask"], mask], 1))[:, 3:]
    return batch | {"old_per_token_logps": now + 0.5 * torch.randn(4, 7)}


@pytest.mark.parametrize("delta", [None, DUAL])
@pytest.mark.parametrize(("loss_type", "reduction"), [("grpo", "sequence"), ("bnpo", "token")])
def test_grpo(tmp_path: Path, policy: Path, loss_type: str, reduction: Any, delta: float | None) -> None:
    settings = {"loss_type": loss_type, "epsilon": LOW, "epsilon_high": HIGH, "delta": delta, "beta": 0.0}
    trainer = trl.GRPOTrainer(
        model=str(policy),
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        args=trl.GRPOConfig(str(tmp_path), num_generations=2, max_completion_length=7, **settings, **SETTINGS),
        train_dataset=datasets.Dataset.from_list([{"prompt": pair["prompt"]} for pair in PAIRS]),
        processing_class=transformers.AutoTokenizer.from_pretrained(policy),
    )
    trainer.current_gradient_accumulation_steps = 1
    model, batch = trainer.model, completions(trainer)
    theirs = trainer._compute_loss(model, batch)
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
    attention = torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1)
    mask, old, advantages = batch["completion_mask"].bool(), batch["old_per_token_logps"], batch["advantages"]
    new = from_hidden_states(model, ids, attention)[:, 3:]
    terms = token_surrogate(new, old, advantages, mask, LOW, HIGH, delta, reduction)
    ours = terms.sum() / (len(mask) if reduction == "sequence" else mask.sum())
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    assert (((new - old).exp() > DUAL) & (advantages < 0) & mask).any(), "the dual clip would change nothing"
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    for one, two in zip(torch.autograd.grad(ours, weights), torch.autograd.grad(theirs, weights), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-6)
