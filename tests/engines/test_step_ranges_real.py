"""Step ranges on all real solutions at hand, each with one of four kinds of tokenizer."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from token_kinds import KINDS
from transformers import PreTrainedTokenizerBase

from prmbench.core.records import Trace
from prmbench.engines.encoding import Encoded, encode_chat

SUBSETS = {"gsm8k": 400, "math": 1000, "olympiadbench": 1000}
CHATS = {
    "smollm2": (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n",
        "<|im_end|>\n",
    )
}
"""What each kind's chat template writes before and after the solution; `OWN_CHAT` unless listed."""
OWN_CHAT = ("<|user|>\n{}<|end|>\n<|assistant|>\n", "<|end|>\n")


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
    items = list(traces(shared_data, subset).values())
    assert len(items) == SUBSETS[subset]
    for trace in items[sorted(KINDS).index(kind) :: len(KINDS)]:
        encoded = encode_chat(tokenizer, trace)
        assert encoded.unscored == ""
        check_ranges(tokenizer, CHATS.get(kind, OWN_CHAT), trace, encoded)
