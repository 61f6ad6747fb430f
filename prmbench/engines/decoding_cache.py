"""Keys and values of the rows that decoding.py samples: memory allocated once, into which every step writes a column.

transformers' DynamicCache copies everything at every step to append one column, and its StaticCache has one length for
all rows and cannot take in new ones. Here all rows share the current column, so a row's tokens are contiguous and end
there; columns before a row's first token are masked, as in a left-padded batch. Hence transformers makes the masks
itself, sliding windows included, and a finished row's place is free for a new one at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import (
    Cache,
    CacheLayerMixin,
    DynamicCache,
    DynamicLayer,
    DynamicSlidingWindowLayer,
)


class FixedCache(Cache):
    """Memory for a fixed number of tokens, seen as `slots` rows of `columns` tokens; the first `rows` are in use.

    Their tokens are in the columns from `first` to before `end`.
    """

    layers: list[Any]
    is_closed = False
    """Whether rows can only be inserted when there are none."""

    def __init__(self, tokens: int, columns: int) -> None:
        """Make an empty cache; the first `insert` knows the shapes and allocates the memory.

        Args:
            tokens: Tokens of all rows together, at least `columns`.
            columns: Tokens of a row.
        """
        super().__init__(layers=[])
        self.tokens = tokens
        self.columns = columns
        self.rows = self.first = self.end = 0

    @property
    def slots(self) -> int:
        """The most rows that fit."""
        return self.tokens // self.columns

    @property
    def for_model(self) -> Cache:
        """What the model takes as `past_key_values`."""
        return self

    def begin(self, longest: int, longest_later: int) -> None:
        """Let the first tokens after the contexts of an empty cache's rows be in one column, for later rows, too."""
        self.first, self.end = 0, max(longest, longest_later)

    def insert(self, source: Cache, source_rows: Sequence[int]) -> None:
        """Append rows of a prefilled cache, whose last tokens come to stand in the last column before `end`."""
        prefilled_layers: list[Any] = source.layers
        if not self.layers:
            self.layers = [_FixedLayer(self) for _ in prefilled_layers]
        chosen = torch.tensor(source_rows, device=prefilled_layers[0].keys.device)  # one copy for all layers
        for layer, prefilled in zip(self.layers, prefilled_layers, strict=True):
            layer.insert(prefilled.keys, prefilled.values, chosen)
        self.rows += len(source_rows)

    def keep(self, kept: Sequence[int]) -> None:
        """Keep some of the rows, which come to stand in this order at the front; only those that move are copied."""
        moves = [(to, at) for to, at in enumerate(kept) if to != at]
        if moves:
            to, at = torch.tensor(moves, device=self.layers[0].keys.device).T
            for layer in self.layers:
                layer.copy_rows(at, to)
        self.rows = len(kept)

    def shift(self, columns: int) -> None:
        """Move all tokens to the left, so that there is room at the end."""
        for layer in self.layers:
            layer.shift(columns)
        self.first, self.end = self.first - columns, self.end - columns

    def widen(self, columns: int) -> None:
        """Give every row more columns, in the same memory; so there are fewer slots, and `rows` must fit into them."""
        before, self.columns = self.columns, columns
        for layer in self.layers:
            layer.widen(before)


class GrowingCache:
    """The model's own cache, for layers other than attention over all tokens or a sliding window.

    It takes new rows only when it is empty, and is copied at every step.
    """

    is_closed = True

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self.rows = self.first = self.end = 0
        self.for_model: Any = None

    def begin(self, longest: int, longest_later: int) -> None:
        """Begin with rows of so many columns; `longest_later` is of rows that come when these are finished."""
        self.end = longest

    def insert(self, source: Cache, source_rows: Sequence[int]) -> None:
        """Take over the rows of a prefilled cache."""
        self.for_model = source
        self.for_model.reorder_cache(torch.tensor(source_rows))
        self.rows = len(source_rows)

    def keep(self, kept: Sequence[int]) -> None:
        """Keep some of the rows, in this order."""
        if kept and list(kept) != list(range(self.rows)):
            self.for_model.reorder_cache(torch.tensor(kept))
        self.rows = len(kept)


def is_plain(config: Any) -> bool:
    """Return whether `FixedCache` can hold a model's cache: attention over all tokens or a sliding window only."""
    layers = DynamicCache(config=config).layers
    return (
        bool(layers)
        and all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers)
        and "chunked_attention" not in (getattr(config, "layer_types", None) or ())
    )


class _FixedLayer(CacheLayerMixin):
    """Keys and values [slots, heads, columns, width] of one layer."""

    def __init__(self, cache: FixedCache) -> None:
        super().__init__()
        self.cache = cache
        self.memory: dict[str, Tensor] = {}

    @property
    def both(self) -> tuple[Tensor, Tensor]:
        """The keys and the values."""
        assert self.keys is not None
        assert self.values is not None
        return self.keys, self.values

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Allocate zeros: a masked column weighs 0, which gives NaN with memory that happens to hold NaN."""
        cache = self.cache
        for name, states in (("keys", key_states), ("values", value_states)):
            _, heads, _, width = states.shape
            self.memory[name] = states.new_zeros(cache.tokens * heads * width)
            setattr(self, name, _as_rows(self.memory[name], heads, cache.columns, width))
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Write a column of each row; return the columns that are in use."""
        cache = self.cache
        after = cache.end + key_states.shape[2]
        for memory, states in zip(self.both, (key_states, value_states), strict=True):
            memory[: cache.rows, :, cache.end : after] = states
        keys, values = (memory[: cache.rows, :, cache.first : after] for memory in self.both)
        return keys, values

    def get_seq_length(self) -> int:
        """Return the number of columns in use."""
        return self.cache.end - self.cache.first

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return how many columns attention sees after an update, and that the first has index 0."""
        return self.get_seq_length() + query_length, 0

    def get_max_length(self) -> int:
        """Return the columns of a row."""
        return self.cache.columns

    def insert(self, keys: Tensor, values: Tensor, source_rows: Tensor) -> None:
        if not self.is_initialized:
            self.lazy_initialization(keys, values)
        cache = self.cache
        places = slice(cache.rows, cache.rows + len(source_rows))
        source_rows = source_rows.to(keys.device)
        for memory, states in zip(self.both, (keys, values), strict=True):
            # A sliding window's prefill keeps its last tokens only; those before are masked. Left padding is cut.
            count = min(states.shape[2], cache.end)
            memory[places, :, cache.end - count : cache.end] = states[source_rows, :, states.shape[2] - count :]

    def copy_rows(self, at: Tensor, to: Tensor) -> None:
        used = slice(self.cache.first, self.cache.end)
        for memory in self.both:
            memory[to.to(memory.device), :, used] = memory[at.to(memory.device), :, used]

    def shift(self, columns: int) -> None:
        cache = self.cache
        for memory in self.both:
            for row in memory[: cache.rows]:  # row by row, since source and target overlap
                row[:, cache.first - columns : cache.end - columns] = row[:, cache.first : cache.end].clone()

    def widen(self, before: int) -> None:
        cache = self.cache
        for name in ("keys", "values"):
            narrow = getattr(self, name)
            _, heads, _, width = narrow.shape
            wide = _as_rows(self.memory[name], heads, cache.columns, width)
            for row in reversed(range(cache.rows)):  # a row's new place lies behind the old places of those before it
                wide[row, :, :before] = narrow[row].clone()
            setattr(self, name, wide)


def _as_rows(flat: Tensor, heads: int, columns: int, width: int) -> Tensor:
    """Return memory as rows [slots, heads, columns, width]; what is left at its end is unused."""
    slots = len(flat) // (heads * columns * width)
    return flat[: slots * heads * columns * width].view(slots, heads, columns, width)
