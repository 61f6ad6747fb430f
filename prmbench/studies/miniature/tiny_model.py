"""The miniature world's tokenizer and language model, made from nothing: an ordinary transformers folder.

No training here: `train-sft` does that, on arithmetic.examples.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from prmbench.studies.miniature import format_shifts
from prmbench.studies.miniature.arithmetic import LENGTHS, MODULUS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PAD, UNKNOWN, USER, ASSISTANT, END = "<pad>", "<unk>", "<|user|>", "<|assistant|>", "<|end|>"
TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
HEADINGS = LENGTHS[1] + 2
"""One more than the longest solution needs, so that a policy is able to run on too long."""
CONTEXT = 192
"""Tokens; the longest solution in the wordiest format takes 107."""


_PIECES = r"(?:\n\n)?Step \d+:| ?[^ \n]+"
_PIECES_MARKED = r"(?:\n\n)?Step \d+:|(?:\n\n| )?[^ \n]+"


def tokenizer(extra: Sequence[str] = ()) -> PreTrainedTokenizerFast:
    """Words with the blank before them, and a step's heading with its blank line: a token each.

    Texts of this world are therefore cut in one way only: decoding and encoding again gives the same tokens.
    `extra`: further tokens, which get the last ids: a word with a blank line before it (late_markers.py).
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    known = {token: i for i, token in enumerate([*vocabulary(), *extra])}
    core = Tokenizer(models.WordLevel(known, unk_token=UNKNOWN))
    core.pre_tokenizer = pre_tokenizers.Split(Regex(_PIECES_MARKED if extra else _PIECES), "isolated")
    core.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=PAD,
        unk_token=UNKNOWN,
        eos_token=END,
        additional_special_tokens=[USER, ASSISTANT],
        chat_template=TEMPLATE,
        model_max_length=CONTEXT,
        padding_side="right",
        clean_up_tokenization_spaces=False,
    )


def vocabulary() -> list[str]:
    """All tokens of the plain world, in the order of their ids."""
    styles = [format_shifts.marker(name) for name in (format_shifts.PLAIN, *format_shifts.SHIFTS)]
    headings = ["Step 1:", *(f"\n\nStep {k}:" for k in range(2, HEADINGS + 1))]
    numbers = [str(n) for n in range(MODULUS)]
    places = [f"#{k}" for k in range(1, LENGTHS[1] + 1)]
    spoken = [f" {word}" for word in (*numbers, *places, *"+-*=?", "Answer:", *format_shifts.EXTRA_WORDS)]
    return [PAD, UNKNOWN, USER, ASSISTANT, END, *styles, *headings, *spoken]


def build(folder: Path, seed: int, extra: Sequence[str] = ()) -> Path:
    """Writes an untrained Llama of 2 layers and width 64 with its tokenizer; returns the folder."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    words = tokenizer(extra)
    shape = LlamaConfig(
        vocab_size=len(words),
        hidden_size=64,
        intermediate_size=192,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        initializer_range=0.05,
        pad_token_id=words.pad_token_id,
        bos_token_id=None,
        eos_token_id=words.eos_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(shape)
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    return folder
