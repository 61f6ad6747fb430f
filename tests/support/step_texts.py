"""Random prompts and steps, of the pieces that tokenizers treat specially."""

from __future__ import annotations

from hypothesis import strategies as st

PIECES = st.sampled_from(
    (
        *("\\frac{a}{b}", "$x^2$ ", "12", ").", ".", " and", "Step 2: ", "▁", "<0x0A>"),
        *("\n", ".\n", "!\r\n", " ", "  ", "\t", "\u00a0"),
        *("😀", "👩\u200d🔬", "é", "e\u0301", "½", "ﬁ", "答案", "שלום", "∑"),
    )
)
TEXTS = st.lists(PIECES, max_size=8).map("".join)
STEPS = st.lists(st.one_of(TEXTS, st.text(max_size=12)).filter(str.strip), min_size=1, max_size=6)
