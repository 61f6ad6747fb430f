"""Shapes of the models that benchmarks and predictions are about: random weights serve, and no file is needed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Shape:
    """Sizes of a decoder with gated MLPs and grouped heads, from the model's config.json."""

    kind: str
    """`model_type` of transformers."""
    vocabulary: int
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_width: int
    tied: bool
    """Whether the output head is the embedding."""

    def config(self) -> Any:
        """Return transformers' config."""
        import transformers

        return transformers.AutoConfig.for_model(
            self.kind,
            vocab_size=self.vocabulary,
            hidden_size=self.hidden,
            intermediate_size=self.intermediate,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            head_dim=self.head_width,
            tie_word_embeddings=self.tied,
            max_position_embeddings=8192,
            bos_token_id=None,
            eos_token_id=None,
            pad_token_id=None,
        )


SHAPES = {
    "0.6B": Shape("qwen3", 151936, 1024, 3072, 28, 16, 8, 128, tied=True),  # Qwen3-0.6B
    "1.5B": Shape("qwen2", 151936, 1536, 8960, 28, 12, 2, 128, tied=True),  # Qwen2.5-1.5B
    "7B": Shape("qwen2", 152064, 3584, 18944, 28, 28, 4, 128, tied=False),  # Qwen2.5-7B
    "72B": Shape("qwen2", 152064, 8192, 29568, 80, 64, 8, 128, tied=False),  # Qwen2.5-72B
}
TOY = Shape("qwen2", 160, 32, 48, 2, 4, 2, 8, tied=True)
"""Large enough for the words of the miniature world, whose tokenizer the steps of training take."""
