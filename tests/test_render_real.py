"""Step ranges on real solutions, and the authors' recorded step rewards on a real pair of models."""

from __future__ import annotations

import copy
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from token_kinds import KINDS, SMOLLM2, smollm2, smollm2_folder
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from prmbench.engines.render import Encoded, encode_chat
from prmbench.schema import Trace

SUBSETS = {"gsm8k": 400, "math": 1000, "olympiadbench": 1000}
GOLDEN = Path(os.environ.get("PRMBENCH_GOLDEN", Path(__file__).parent / "golden"))
CHATS = {
    "smollm2": (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n",
        "<|im_end|>\n",
    )
}
"""What each kind's chat template writes before and after the solution; `OWN_CHAT` unless listed."""
OWN_CHAT = ("<|user|>\n{}<|end|>\n<|assistant|>\n", "<|end|>\n")
TOLERANCE = 1e-6
"""In reward units, that is a thousandth of a nat; a wrong attention mask shows at 1e-4."""


def traces(shared_data: Path, subset: str) -> dict[str, Trace]:
    rows = json.loads((shared_data / "processbench" / f"{subset}.json").read_text(encoding="utf-8"))
    return {row["id"]: Trace(row["id"], row["problem"], tuple(row["steps"])) for row in rows}


def check_ranges(tokenizer: PreTrainedTokenizerBase, chat: tuple[str, str], trace: Trace, encoded: Encoded) -> None:
    """No step's token reaches into the next step; every token of a step touches it or the gap that closes it."""
    opening = chat[0].format(trace.prompt)
    parts = [f"Step {i + 1}: {step}" for i, step in enumerate(trace.steps)]
    edges = len(opening) + np.cumsum([0] + [len(part) + 2 for part in parts])  # where each step's text begins
    edges[-1] -= 2  # nothing follows the last step but the end of turn
    text = opening + "\n\n".join(parts) + chat[1]
    again = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    begins, ends = np.array(again["offset_mapping"]).T
    assert list(encoded.ids) == again["input_ids"]
    assert len(encoded.ends) == len(trace.steps)
    for k, (first, last) in enumerate(encoded.spans):
        assert first < last
        assert ends[first:last].max() <= edges[k + 1]
        assert ends[first:last].min() > edges[k]
    assert ends[: encoded.start].max() <= edges[0]
    assert begins[encoded.ends[-1] :].min() >= edges[-1]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("subset", SUBSETS)
def test_every_real_trace_is_scored(shared_data: Path, subset: str, kind: str) -> None:
    tokenizer = KINDS[kind]()
    items = traces(shared_data, subset)
    assert len(items) == SUBSETS[subset]
    for trace in items.values():
        encoded = encode_chat(tokenizer, trace)
        assert encoded.unscored == ""
        check_ranges(tokenizer, CHATS.get(kind, OWN_CHAT), trace, encoded)


@pytest.fixture(scope="module")
def pair() -> tuple[PreTrainedModel, PreTrainedModel]:
    """Reference = SmolLM2 in float32; reward model = the same weights with seeded noise (the recording's recipe)."""
    ref = AutoModelForCausalLM.from_pretrained(str(smollm2_folder()), gguf_file=SMOLLM2, dtype=torch.float32).eval()
    model = copy.deepcopy(ref)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for _, weight in sorted(model.named_parameters()):
            weight.add_(torch.randn(weight.shape, generator=generator) * 0.02 * weight.std())
    return model, ref


@torch.no_grad()
def logprobs(model: PreTrainedModel, encoded: Encoded) -> torch.Tensor:
    """Log-probability of token t at index t; token 0 has none and gets 0. The full softmax, nothing clever."""
    ids = torch.tensor([encoded.ids])
    mask = torch.ones_like(ids)
    mask[0, list(encoded.masked)] = 0
    logits = model(input_ids=ids, attention_mask=mask).logits[0, :-1]
    chosen = logits.log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
    return torch.cat([torch.zeros(1), chosen]).double()


@pytest.mark.slow
@pytest.mark.real_model
@pytest.mark.parametrize("subset", ["gsm8k", "math"])
def test_release_boundary_gives_the_authors_step_rewards(
    shared_data: Path, pair: tuple[PreTrainedModel, PreTrainedModel], subset: str
) -> None:
    recording = GOLDEN / f"processbench_scores_{subset}.json"
    if not recording.is_file():
        pytest.skip(f"no {recording.name} in the folder PRMBENCH_GOLDEN names")
    golden = json.loads(recording.read_text(encoding="utf-8"))
    items = traces(shared_data, subset)
    assert golden["scores"]
    for row in golden["scores"]:
        encoded = encode_chat(smollm2(), items[row["id"]], boundary="release")
        ratio = logprobs(pair[0], encoded) - logprobs(pair[1], encoded)
        rewards = golden["coef"] * np.cumsum([ratio[begin:end].sum().item() for begin, end in encoded.spans])
        assert rewards == pytest.approx(row["reward"], rel=0, abs=TOLERANCE)
        # The mean's error shrinks with the count, so that its tolerance must, too.
        counts = np.cumsum(encoded.counts)
        assert counts.tolist() == [round(a / b) for a, b in zip(row["reward"], row["avg_reward"], strict=True)]
        assert rewards / counts * counts[0] == pytest.approx(
            np.array(row["avg_reward"]) * counts[0], rel=0, abs=TOLERANCE
        )
