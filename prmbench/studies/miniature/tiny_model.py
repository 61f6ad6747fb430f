"""The tokenizer and the untrained language model of the miniature world, as an ordinary transformers folder.

`train-sft` trains the model on arithmetic.sft_examples.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from prmbench.studies.miniature import format_shifts
from prmbench.studies.miniature.arithmetic import MODULUS, OPERATION_COUNTS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PAD, UNKNOWN, USER, ASSISTANT, END = "<pad>", "<unk>", "<|user|>", "<|assistant|>", "<|end|>"
TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
HEADINGS = OPERATION_COUNTS[1] + 2
"""One more than the longest solution needs, so that a policy can write a step too many."""
CONTEXT = 192
"""In tokens; the longest solution in the longest format takes 107."""
_PIECES = r"(?:\n\n)?Step \d+:| ?[^ \n]+"
_PIECES_MARKED = r"(?:\n\n)?Step \d+:|(?:\n\n| )?[^ \n]+"


def tokenizer(extra: Sequence[str] = ()) -> PreTrainedTokenizerFast:
    """Returns a tokenizer whose tokens are words with the space before them, and step headings with their blank line.

    Each text of this world therefore has a single tokenization: decoding and encoding again gives the same tokens.

    Args:
        extra: further tokens, which get the last ids: a word with a blank line before it (late_markers.py).
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    token_ids = {token: i for i, token in enumerate([*vocabulary(), *extra])}
    core = Tokenizer(models.WordLevel(token_ids, unk_token=UNKNOWN))
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
    """Returns all tokens of the plain world, in the order of their ids."""
    styles = [format_shifts.marker(name) for name in (format_shifts.PLAIN, *format_shifts.SHIFTS)]
    headings = ["Step 1:", *(f"\n\nStep {k}:" for k in range(2, HEADINGS + 1))]
    numbers = [str(n) for n in range(MODULUS)]
    positions = [f"#{k}" for k in range(1, OPERATION_COUNTS[1] + 1)]
    words = [f" {word}" for word in (*numbers, *positions, *"+-*=?", "Answer:", *format_shifts.EXTRA_WORDS)]
    return [PAD, UNKNOWN, USER, ASSISTANT, END, *styles, *headings, *words]


def build(folder: Path, seed: int, extra: Sequence[str] = ()) -> Path:
    """Writes an untrained Llama of 2 layers and width 64 with its tokenizer.

    Args:
        folder: where to write it.
        seed: of the initial weights.
        extra: see `tokenizer`.

    Returns:
        `folder`.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    model_tokenizer = tokenizer(extra)
    config = LlamaConfig(
        vocab_size=len(model_tokenizer),
        hidden_size=64,
        intermediate_size=192,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        initializer_range=0.05,
        pad_token_id=model_tokenizer.pad_token_id,
        bos_token_id=None,
        eos_token_id=model_tokenizer.eos_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    model.save_pretrained(folder)
    model_tokenizer.save_pretrained(folder)
    return folder
