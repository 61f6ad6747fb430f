"""Samples completions from a transformers model: rows that finish make room for waiting prompts (continuous batching).

Sampling noise is a hash of (seed, step, token id), so a completion depends neither on its batch nor on the state of a
random generator. transformers' own continuous batching (`generate_batch`) draws all rows from one generator, so that
there a completion depends on its company; hence this loop. generation.py renders prompts and forms batches,
decoding_cache.py holds keys and values.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from prmbench.core.records import UserError
from prmbench.core.token_batches import token_batches
from prmbench.engines import token_logprobs
from prmbench.engines.decoding_cache import FixedCache, GrowingCache, is_plain
from prmbench.engines.generation import OnFinished, SampledTokens, Sampling
from prmbench.engines.loading import head_in_memory

REFILL_FRACTION = 8
"""Waiting rows get places once 1 / REFILL_FRACTION of all places are free: reading their prompts is a pass of its own.
The rows in progress do not wait for that; a free place costs nothing."""
PREFILL_TOKENS = 2**14
"""Padded tokens of prompts that are read in one forward pass."""
MOST_ROWS = 1024
"""Most rows in progress, however much memory is free: each has logits of the whole vocabulary."""
SAMPLED_LOGITS = 2**25
"""Most logits from which tokens are sampled together: noise and sums take some 40 bytes for each."""
SLACK = 64
"""Columns beyond the longest row, so that moving all tokens to the left is needed at most once in so many steps."""
FIRST_SHARE = 4
"""Where memory is short, rows begin with room for 1 / FIRST_SHARE of the longest completion."""
NUCLEUS_CANDIDATES = 256
"""Number of most likely tokens that top-p sorts first; they nearly always contain the nucleus."""
_GOLDEN_GAMMA, _MIX_1, _MIX_2 = -0x61C8864680B583EB, -0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15
"""The constants of splitmix64 (Steele, Lea and Flood 2014), as signed 64-bit numbers."""
Context = tuple[int, ...]


@dataclass(slots=True)
class _Row:
    """A completion that is being sampled, or waits for a place in the cache."""

    index: int
    """Its position among the prompts."""
    prompt: Context
    limit: int
    seed: int
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    start: int = 0
    """Column of its first token in the cache."""

    @property
    def context(self) -> Context:
        """What the model reads before the next token: more than the prompt where the row had to give up its place."""
        return (*self.prompt, *self.ids)

    @property
    def tokens(self) -> SampledTokens:
        return SampledTokens(tuple(self.ids), tuple(self.logprobs))


def decode(
    model: Any,
    prompts: Sequence[Sequence[int]],
    limits: Sequence[int],
    seeds: Sequence[int],
    sampling: Sampling,
    stops: Collection[int],
    cache_tokens: int | None = None,
) -> list[SampledTokens]:
    """Return what `decode_continuously` samples, in the order of the prompts."""
    sampled: dict[int, SampledTokens] = {}
    decode_continuously(model, prompts, limits, seeds, sampling, stops, cache_tokens, sampled.__setitem__)
    return [sampled[i] for i in range(len(prompts))]


@torch.inference_mode()
def decode_continuously(
    model: Any,
    prompts: Sequence[Sequence[int]],
    limits: Sequence[int],
    seeds: Sequence[int],
    sampling: Sampling,
    stops: Collection[int],
    cache_tokens: int | None,
    on_finished: OnFinished,
) -> None:
    """Sample one completion for each prompt; equal prompts share one prefill, and nothing finished is kept.

    Args:
        model: A transformers causal language model.
        prompts: Token ids of each prompt.
        limits: Most tokens of each completion, at least 1.
        seeds: Seed of each completion.
        sampling: Temperature, top-k and top-p; its `max_new_tokens` is not used.
        stops: Token ids that end a completion.
        cache_tokens: Most tokens whose keys and values are in memory, unless one row alone needs more; None = no limit.
        on_finished: Called with the index and the tokens of each completion as soon as it is finished.

    Raises:
        UserError: The model's logits are not finite, or it has no cache of keys and values.
    """
    positions: dict[Context, int] = {}
    rows = [
        _Row(i, tuple(prompt), limit, _to_int64(seed))
        for i, (prompt, limit, seed) in enumerate(zip(prompts, limits, seeds, strict=True))
    ]
    for row in rows:
        positions.setdefault(row.prompt, row.index)
    rows.sort(key=lambda row: positions[row.prompt])
    batch = _Batch(model, deque(rows), cache_tokens)
    del rows  # the batch drops what is finished
    while batch.refill():
        token, logprob = sample_token(batch.logits, batch.keys, batch.steps, sampling)
        for row in batch.advance(token, logprob, stops):
            on_finished(row.index, row.tokens)


class _Batch:
    """The rows that have a place in the cache, what the next step needs of them, and the rows that wait for a place."""

    def __init__(self, model: Any, waiting: deque[_Row], cache_tokens: int | None) -> None:
        self.device = model.device
        self.run = _forward_pass(model)
        self.waiting = waiting
        self.rows: list[_Row] = []
        self.most_columns = max((len(row.prompt) + row.limit for row in waiting), default=0) + SLACK
        config = model.config.get_text_config()
        self.cache = self._make_cache(cache_tokens) if is_plain(config) else self._make_growing_cache(cache_tokens)
        self.read: tuple[list[Context], Any, Tensor] | None = None
        """The next waiting row's context where it was read already, with its cache and logits."""
        self.logits = torch.empty(0, device=self.device)
        """[b, v] float32: logits after the last token of each row."""
        self.keys = self.steps = self.starts = torch.empty(0, dtype=torch.long, device=self.device)
        """[b]: hashed seeds, numbers of sampled tokens, and columns of the first token."""

    def _make_cache(self, tokens: int | None) -> FixedCache:
        """Make room for the longest completion of each row, or, where memory is short, for a share of it at first."""
        needed = min(len(self.waiting), MOST_ROWS) * self.most_columns
        if tokens is None or needed <= tokens:
            return FixedCache(needed, self.most_columns)
        prompt, limit = max(len(row.prompt) for row in self.waiting), max(row.limit for row in self.waiting)
        columns = min(self.most_columns, prompt + limit // FIRST_SHARE + SLACK)
        return FixedCache(max(tokens, self.most_columns), columns)

    def _make_growing_cache(self, tokens: int | None) -> GrowingCache:
        count = min(len(self.waiting), MOST_ROWS)
        return GrowingCache(count if tokens is None else max(1, min(count, tokens // self.most_columns)))

    # --- places ---------------------------------------------------------------------------------------------

    def refill(self) -> bool:
        """Give free places to waiting rows once there are enough of them. Returns whether any row is left."""
        slots = min(self.cache.slots, MOST_ROWS)
        free = min(slots - len(self.rows), len(self.waiting))
        is_due = free >= min(len(self.waiting), max(1, slots // REFILL_FRACTION)) and not self.cache.is_closed
        if free and (is_due or not self.rows):
            self._admit([self.waiting.popleft() for _ in range(free)])
        return bool(self.rows)

    def _admit(self, rows: Sequence[_Row]) -> None:
        """Read the contexts of rows, and append the rows to the batch."""
        by_context: dict[Context, list[_Row]] = {}
        for row in rows:
            by_context.setdefault(row.context, []).append(row)
        if not self.rows:
            self.cache.begin(max(map(len, by_context)), self._longest_waiting())
        logits = [self.logits] if self.rows else []
        for contexts, cache, context_logits in self._read_contexts(list(by_context)):
            sources = [i for i, context in enumerate(contexts) for _ in by_context[context]]
            self.cache.insert(cache, sources)
            logits.append(context_logits[sources])
            for row in (row for context in contexts for row in by_context[context]):
                row.start = self.cache.end - len(row.context)
                self.cache.first = min(self.cache.first, row.start)
                self.rows.append(row)
            self._remember(contexts, cache, context_logits)
        self.logits = torch.cat(logits)
        self._update_tensors()

    def _longest_waiting(self) -> int:
        return max((len(row.prompt) + len(row.ids) for row in self.waiting), default=0)

    def _read_contexts(self, contexts: list[Context]) -> Iterator[tuple[list[Context], Any, Tensor]]:
        """Yield contexts with their keys and values, and their logits [u, v]."""
        if self.read is not None and self.read[0][0] in contexts:
            contexts.remove(self.read[0][0])
            known, self.read = self.read, None
            yield known
        lengths = [len(context) for context in contexts]
        budget = PREFILL_TOKENS if isinstance(self.cache, FixedCache) else sum(lengths) * len(lengths)
        for chosen in token_batches(lengths, budget):
            chunk = [contexts[i] for i in chosen]
            logits, cache = self._prefill(chunk)
            yield chunk, cache, logits

    def _remember(self, contexts: Sequence[Context], cache: Any, logits: Tensor) -> None:
        """Keep what was read of the context of the next waiting row, which got no place with its equals."""
        if not self.waiting or not isinstance(self.cache, FixedCache):
            return
        following = self.waiting[0].context
        if following in contexts:
            i = contexts.index(following)
            cache.batch_select_indices(torch.tensor([i], device=self.device))
            self.read = [following], cache, logits[i : i + 1]

    def _prefill(self, contexts: Sequence[Context]) -> tuple[Tensor, Any]:
        """Read left-padded contexts; return the logits [u, v] after each of them, and the cache."""
        lengths = torch.tensor([len(context) for context in contexts], device=self.device)
        width = max(map(len, contexts))
        input_ids = torch.tensor([(0,) * (width - len(c)) + c for c in contexts], device=self.device)
        positions = torch.arange(width, device=self.device) - (width - lengths[:, None])
        is_padded = any(len(context) < width for context in contexts)
        mask = (positions >= 0).long() if is_padded else None  # attention is faster without a mask
        logits, cache = self.run(input_ids=input_ids, attention_mask=mask, position_ids=positions.clamp(min=0))
        if cache is None:
            raise UserError("this kind of model keeps no keys and values, and is not sampled by the engine hf")
        return logits, cache

    def _update_tensors(self) -> None:
        seeds = torch.tensor([row.seed for row in self.rows], device=self.device)
        self.keys = splitmix64(seeds)
        self.steps = torch.tensor([len(row.ids) for row in self.rows], device=self.device)
        self.starts = torch.tensor([row.start for row in self.rows], device=self.device)

    # --- a step ---------------------------------------------------------------------------------------------

    def advance(self, token: Tensor, logprob: Tensor, stops: Collection[int]) -> list[_Row]:
        """Append a token to every row, and run the model on those that go on. Returns the rows that are finished.

        Raises:
            UserError: A log-probability is not finite.
        """
        going_on: list[int] = []
        finished: list[_Row] = []
        ids, logprobs = torch.stack([token.double(), logprob.double()]).tolist()  # one copy to the host
        for i, (row, id_, value) in enumerate(zip(self.rows, ids, logprobs, strict=True)):
            if not math.isfinite(value):
                raise UserError("the model's logits are NaN or infinite; check its weights, or use --dtype float32")
            row.ids.append(int(id_))
            row.logprobs.append(value)
            if row.ids[-1] in stops or len(row.ids) == row.limit:
                finished.append(row)
            else:
                going_on.append(i)
        self.steps = self.steps + 1
        if finished:
            token = self._keep(going_on, token)
        if self.rows:
            token = self._make_room(token)
            self.logits = self._step(token)
        return finished

    def _keep(self, going_on: Sequence[int], token: Tensor) -> Tensor:
        """Keep some rows, moving the last ones to the free places; return the tokens in the new order."""
        count = len(going_on)
        places = set(range(count)).intersection(going_on)
        movers = iter([i for i in going_on if i >= count])
        order = [place if place in places else next(movers) for place in range(count)]
        self.cache.keep(order)
        self.rows = [self.rows[i] for i in order]
        chosen = torch.tensor(order, dtype=torch.long, device=self.device)
        self.keys, self.steps, self.starts = self.keys[chosen], self.steps[chosen], self.starts[chosen]
        return token[chosen]

    def _make_room(self, token: Tensor) -> Tensor:
        """Let every row have a next column; return the tokens of the rows that still have a place."""
        if not isinstance(self.cache, FixedCache):
            return token
        cache = self.cache
        cache.first = min(row.start for row in self.rows)
        if cache.end < cache.columns:
            return token
        room = min(cache.first, cache.end - self._longest_waiting())
        if room < SLACK and cache.columns < self.most_columns:
            columns = min(self.most_columns, 2 * cache.columns)
            self._give_up(self.rows[cache.tokens // columns :])
            cache.widen(columns)
        else:
            cache.shift(room)
            self.starts = self.starts - room
            for row in self.rows:
                row.start -= room
        return token[: len(self.rows)]

    def _give_up(self, rows: Sequence[_Row]) -> None:
        """Let the last rows wait for a place again; what they have so far will be read like a prompt."""
        if rows:
            count = len(self.rows) - len(rows)
            self.waiting.extendleft(reversed(rows))
            self.rows, self.cache.rows, self.read = self.rows[:count], count, None
            self.keys, self.steps, self.starts = self.keys[:count], self.steps[:count], self.starts[:count]

    def _step(self, token: Tensor) -> Tensor:
        """Run the model on one token of each row; return the logits [b, v]."""
        cache = self.cache
        is_padded = any(row.start != cache.first for row in self.rows)
        columns = torch.arange(cache.first, cache.end + 1, device=self.device)
        logits, _ = self.run(
            input_ids=token[:, None],
            attention_mask=(columns >= self.starts[:, None]).long() if is_padded else None,
            position_ids=(cache.end - self.starts)[:, None],
            past_key_values=cache.for_model,
        )
        cache.end += 1
        return logits


def _forward_pass(model: Any) -> Callable[..., tuple[Tensor, Any]]:
    """Return a function of a forward pass's inputs: float32 logits [b, v] after the last tokens, and the cache.

    In half precision the head sums in float32, as in training: rounded logits would part the sampler from the trainer.
    """
    dtype = token_logprobs.factor_dtype(model.dtype, model.device.type)
    if dtype is None:

        def run(**inputs: Any) -> tuple[Tensor, Any]:
            out = model(**inputs, use_cache=True, logits_to_keep=1)
            return out.logits[:, -1].float(), getattr(out, "past_key_values", None)

        return run
    layer = model.get_output_embeddings()
    softcap = getattr(model.config.get_text_config(), "final_logit_softcapping", None)
    with head_in_memory(layer):
        device = layer.weight.device
        head = token_logprobs.output_head(layer.weight, dtype, getattr(layer, "bias", None), softcap)

    def run_in_half_precision(**inputs: Any) -> tuple[Tensor, Any]:
        out = model.base_model(**inputs, use_cache=True)
        logits = head(out.last_hidden_state[:, -1].to(device))
        return logits.to(model.device), getattr(out, "past_key_values", None)

    return run_in_half_precision


def sample_token(logits: Tensor, keys: Tensor, step: Tensor | int, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """Sample the next token of each row, some rows after others where the vocabulary is large.

    Args:
        logits: [b, v], float32.
        keys: [b], the seeds hashed by `splitmix64`.
        step: Index of the token in its completion; [b], or one number for all rows.
        sampling: Temperature, top-k and top-p.

    Returns:
        Token ids [b] and their log-probabilities [b] before top-k and top-p.
    """
    chunk = max(1, SAMPLED_LOGITS // logits.shape[-1])
    steps = torch.as_tensor(step, device=keys.device).expand(len(logits))
    parts = zip(logits.split(chunk), keys.split(chunk), steps.split(chunk), strict=True)
    tokens, logprobs = zip(*(_sample_rows(*part, sampling) for part in parts), strict=True)
    return torch.cat(tokens), torch.cat(logprobs)


def _sample_rows(logits: Tensor, keys: Tensor, step: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    if sampling.temperature == 0:
        logp = logits.log_softmax(-1)
        token = logp.argmax(-1)
    else:
        logp = (logits / sampling.temperature).log_softmax(-1)
        token = (filter_logprobs(logp, sampling.top_k, sampling.top_p) + gumbel(keys, step, logits.shape[-1])).argmax(
            -1
        )
    return token, logp.gather(-1, token[:, None])[:, 0]


def filter_logprobs(logp: Tensor, top_k: int, top_p: float) -> Tensor:
    """Set log-probabilities [b, v] of tokens outside top-k, then top-p, to -inf; ties at the limit are kept.

    Top-p keeps the most likely tokens up to and including the one with which their total reaches `top_p`.
    """
    if 0 < top_k < logp.shape[-1]:
        logp = logp.masked_fill(logp < logp.topk(top_k).values[:, -1:], -torch.inf).log_softmax(-1)
    if top_p < 1:
        logp = logp.masked_fill(logp < _nucleus_floor(logp, top_p), -torch.inf)
    return logp


def _nucleus_floor(logp: Tensor, top_p: float) -> Tensor:
    """Return the smallest log-probability in the nucleus, [b, 1]."""
    for size in (min(NUCLEUS_CANDIDATES, logp.shape[-1]), logp.shape[-1]):
        top = logp.topk(size).values
        in_nucleus = top.exp().cumsum(-1) - top.exp() < top_p
        if size == logp.shape[-1] or not bool(in_nucleus[:, -1].any()):
            break
    return top.gather(-1, in_nucleus.sum(-1, keepdim=True).clamp(min=1) - 1)


def gumbel(keys: Tensor, step: Tensor | int, vocabulary: int) -> Tensor:
    """Return standard Gumbel noise [b, v] that depends on key, step and token id only.

    argmax(logprobs + noise) is a sample of the distribution.
    """
    tokens = torch.arange(vocabulary, device=keys.device)
    steps = torch.as_tensor(step, device=keys.device)
    bits = splitmix64(splitmix64(keys + steps * _GOLDEN_GAMMA)[:, None] + tokens * _GOLDEN_GAMMA)
    uniform = ((((bits >> 11) & ((1 << 53) - 1)).double() + 0.5) * 2.0**-53).float()
    uniform = uniform.clamp(max=1 - 2**-24)  # a value rounded to 1 would exclude its token
    return -torch.log(-torch.log1p(-uniform))  # exact for small uniforms, which give the largest noise


def splitmix64(x: Tensor) -> Tensor:
    """Apply splitmix64's finaliser to int64 values, whose products wrap around."""
    x = (x ^ _logical_shift(x, 30)) * _MIX_1
    x = (x ^ _logical_shift(x, 27)) * _MIX_2
    return x ^ _logical_shift(x, 31)


def _logical_shift(x: Tensor, bits: int) -> Tensor:
    """Shift right and fill with zeros; torch's own shift copies the sign bit."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _to_int64(number: int) -> int:
    """Return an integer modulo 2^64, mapped to the range of int64."""
    return (number + 2**63) % 2**64 - 2**63
