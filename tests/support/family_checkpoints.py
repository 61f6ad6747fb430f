"""Tiny checkpoints of every family's architecture and tokenizer kind, and a slow computation of each one's scores.

One trace at a time, and one forward pass a step where the authors have one; transformers only, no code of ours.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from safetensors.torch import load_file
from token_kinds import TEMPLATE, byte_bpe, sentencepiece_bpe
from tokenizers import processors
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from prmbench.backends import cards
from prmbench.core.records import Trace

TAG = cards.MODELS["peiyi9979/math-shepherd-mistral-7b-prm"].tag or ""
TURNS = "{{ bos_token }}{% for m in messages %}<|{{ m['role'] }}|>\n\n{{ m['content'] | trim }}<|end|>{% endfor %}"
"""As Llama 3 lays turns out: the tail after an answer is that answer and one end-of-turn token."""
QWEN_CODE = """
from torch import nn
from transformers import Qwen2Config, Qwen2Model, Qwen2PreTrainedModel
from transformers.modeling_outputs import TokenClassifierOutput


class Prm(Qwen2PreTrainedModel):
    config_class = Qwen2Config

    def __init__(self, config):
        super().__init__(config)
        self.model = Qwen2Model(config)
        self.score = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 2))
        self.post_init()

    def forward(self, input_ids=None, attention_mask=None, use_cache=None):
        states = self.model(input_ids=input_ids, attention_mask=attention_mask, use_cache=use_cache)
        return TokenClassifierOutput(logits=self.score(states.last_hidden_state))
"""
"""A head of two layers, which no Auto class has: Qwen's checkpoints bring code for it."""


# --- checkpoints ---


def mistral_tokens() -> PreTrainedTokenizerFast:
    """SentencePiece with Math-Shepherd's tag and verdicts behind blanks, and a beginning of sequence of its own."""
    tokenizer = copy.deepcopy(sentencepiece_bpe(TAG, "+", "-"))
    single = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", tokenizer.bos_token_id)])
    tokenizer.backend_tokenizer.post_processor = single
    tokenizer.chat_template = None
    return tokenizer


def llama_tokens() -> PreTrainedTokenizerFast:
    """Byte-level, with turns as Llama 3 has them."""
    tokenizer = copy.deepcopy(byte_bpe())
    tokenizer.chat_template = TURNS
    return tokenizer


def qwen_tokens() -> PreTrainedTokenizerFast:
    """Byte-level, without a beginning of sequence."""
    return PreTrainedTokenizerFast(
        tokenizer_object=copy.deepcopy(byte_bpe().backend_tokenizer),
        eos_token="<|end|>",
        pad_token="<pad>",
        chat_template=TEMPLATE,
    )


def save(folder: Path, model: str, tokenizer: PreTrainedTokenizerBase, seed: int = 0, **card: object) -> Path:
    """A random `model` (a class of transformers) of 2 layers with its tokenizer and prm.json."""
    shape = model.partition("For")[0] + "Config"
    torch.manual_seed(seed)
    config = getattr(transformers, shape)(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=8192,
        initializer_range=0.4,
        num_labels=2,
    )
    getattr(transformers, model)(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "prm.json").write_text(json.dumps(card))
    return folder


def row_of(name: str) -> dict[str, Any]:
    """A row of cards.py as a prm.json would hold it."""
    known = {k: v for k, v in asdict(cards.MODELS[name]).items() if v not in (None, (), "", False)}
    return {k: v for k, v in known.items() if k not in ("model", "ref_model")}


# --- slow computations ---


def logits_of(folder: Path, ids: Sequence[int], auto: str = "AutoModelForCausalLM") -> torch.Tensor:
    """[T, c], in float64."""
    own_code = (folder / "modeling_prm.py").exists()
    model = getattr(transformers, auto).from_pretrained(str(folder), trust_remote_code=own_code).eval()
    with torch.no_grad():
        return model(input_ids=torch.tensor([list(ids)])).logits[0].double()


def by_shepherd(folder: Path, trace: Trace) -> list[float]:
    """The text up to each tag pushed through the model again; the ids as the model card finds them."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(folder))
    good, bad = tokenizer.encode("+ -")[1:]
    text, scores = trace.prompt + " ", []
    for number, step in enumerate(trace.steps, 1):
        text += f"Step {number}: {step.strip()} {TAG}"
        ids = tokenizer.encode(text)
        assert ids[-1] == tokenizer.encode(TAG)[-1]
        scores.append(float(logits_of(folder, ids)[-1, [good, bad]].softmax(0)[0]))
        text += "\n"
    return scores


def by_rlhflow(folder: Path, trace: Trace, joint: str = "\n\n") -> tuple[list[float], list[float], list[float]]:
    """The conversation up to each step, rendered and read again, at the third position from the end."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(folder))
    messages: list[dict[str, str]] = []
    two, full, greedy = [], [], []
    for number, step in enumerate(trace.steps):
        messages.append({"role": "user", "content": step if number else trace.prompt + joint + step})
        messages.append({"role": "assistant", "content": "+"})
        ids = tokenizer.apply_chat_template(messages, return_dict=False)
        logits = logits_of(folder, ids)[-3]
        plus, minus = tokenizer.encode("+")[-1], tokenizer.encode("-")[-1]
        two.append(float(logits[[plus, minus]].softmax(0)[0]))
        full.append(float(logits.softmax(0)[plus]))
        greedy.append(float(logits.argmax() == plus))
    return two, full, greedy


def by_skywork(folder: Path, trace: Trace) -> list[float]:
    """Flags on every line break of the joined solution; then, for each step, the score of the last one that it has."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(folder))
    ids = tokenizer.encode((tokenizer.bos_token or "") + trace.prompt + "\n")
    flags = [False] * len(ids)
    for piece in "\n".join(trace.steps).split("\n"):
        more = [*(tokenizer.encode(piece) if piece else []), tokenizer.encode("\n")[-1]]
        ids += more
        flags += [False] * (len(more) - 1) + [True]
    weights = load_file(folder / "model.safetensors")
    model = transformers.AutoModelForCausalLM.from_pretrained(str(folder)).eval()
    with torch.no_grad():
        states = model(input_ids=torch.tensor([ids]), output_hidden_states=True).hidden_states[-1][0].double()
    values = states @ weights["v_head.summary.weight"][0].double() + weights["v_head.summary.bias"].double()
    scores = [float(torch.sigmoid(values[i])) for i, flag in enumerate(flags) if flag]
    lines = np.cumsum([step.count("\n") + 1 for step in trace.steps])
    return [scores[line - 1] for line in lines]


def by_separator(folder: Path, trace: Trace) -> list[float]:
    """Ids put end to end, the separator apart; class 1 at every separator."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(folder))
    ids = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    ids += tokenizer.encode(trace.prompt, add_special_tokens=False)
    at = []
    for step in trace.steps:
        ids += tokenizer.encode(step, add_special_tokens=False)
        ids += tokenizer.encode("\n\n", add_special_tokens=False)
        at.append(len(ids) - 1)
    logits = logits_of(folder, ids, "AutoModelForTokenClassification")
    return [float(logits[i].softmax(0)[1]) for i in at]


def by_qwen(folder: Path, trace: Trace) -> list[float]:
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(folder))
    system = "Please reason step by step, and put your final answer within \\boxed{}."
    answer = "<extra_0>".join(trace.steps) + "<extra_0>"
    turns = (("system", system), ("user", trace.prompt), ("assistant", answer))
    messages = [{"role": role, "content": content} for role, content in turns]
    ids = tokenizer.apply_chat_template(messages, return_dict=False)
    mark = tokenizer.encode("<extra_0>")[0]
    logits = logits_of(folder, ids, "AutoModel")
    return [float(logits[i].softmax(0)[1]) for i, token in enumerate(ids) if token == mark]


def by_eurus(folder: Path, trace: Trace) -> list[float]:
    """The response's log-ratio up to each step's end, as one text, less that of the steps before."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(folder))
    parts = [f"Step {number}: {step}" for number, step in enumerate(trace.steps, 1)]
    opening = f"<|user|>\n{trace.prompt}<|end|>\n<|assistant|>\n"
    ids = tokenizer.encode(opening + "\n\n".join(parts) + "<|end|>\n")
    start = len(tokenizer.encode(opening))
    # Byte-level pieces never cross from the gap into the next header, so that a prefix has the whole text's ids.
    prefixes = ["\n\n".join(parts[:k]) + ("\n\n" if k < len(parts) else "") for k in range(1, len(parts) + 1)]
    ends = [len(tokenizer.encode(opening + prefix)) for prefix in prefixes]
    logp, ref = (logits_of(f, ids).log_softmax(-1) for f in (folder, folder.parent / "reference"))
    ratios = [0.0] + [float(logp[t - 1, ids[t]] - ref[t - 1, ids[t]]) for t in range(1, len(ids))]
    return [sum(ratios[begin:end]) for begin, end in zip([start, *ends], ends, strict=False)]
