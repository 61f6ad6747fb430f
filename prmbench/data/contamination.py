"""Finds benchmark problems in training data, by equal text or by the n-grams that they share with a training problem.

Pure functions of the problems' texts; problems.py reads the files and writes the report.
"""

from __future__ import annotations

import re
import sys
import unicodedata
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]
Ints = NDArray[np.int64]

NGRAM, MIN_OVERLAP = 13, 0.5
MIN_WORDS = 8
"""Shorter problems (in words) match by equal text only, since many problems share so short a sequence of words."""
_CHUNK_SIZE = 500
"""How many training problems are looked up at once, which bounds the memory."""
_HASH_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)

_LATEX_NOISE = re.compile(
    r"\\(?:left|right|displaystyle|textstyle|quad|qquad)(?![a-zA-Z])|\\(?:begin|end)\{(?:align|equation|displaymath)\*?\}"
    r"|\\[,;:!>\[\]() ]|\\\\|[$~&]"
)
_LATEX_SYNONYMS = ((re.compile(r"\\[dt]frac(?![a-zA-Z])"), r"\\frac"), (re.compile(r"\\[lc]?dots(?![a-zA-Z])"), "..."))
_REMOVABLE_SPACE = re.compile(r"(?<![^\W_]) | (?![^\W_])")
"""A space that does not separate two letters or digits."""
_WORD = re.compile(r"\d+|[^\W\d_]+")


@dataclass(frozen=True, slots=True)
class Match:
    """A pair of equal or overlapping problems."""

    problem: int
    """Index of the benchmark's problem."""
    other: int
    """Index of the problem that it was compared with."""
    kind: Literal["exact", "overlap"]
    share: float
    """Share of the problem's n-grams that the other one has, in (0, 1]; 1 for equal texts."""


# --- normalisation ------------------------------------------------------------------------------


def normalise(text: str) -> str:
    r"""Return a text without differences that do not change the question.

    Applies Unicode NFKC and lower case; removes dollar signs, LaTeX spaces and delimiters, alignment marks, \left and
    \right; writes \dfrac and \tfrac as \frac, and all dots as `...`.
    """
    text = unicodedata.normalize("NFKC", text)
    for pattern, replacement in _LATEX_SYNONYMS:
        text = pattern.sub(replacement, text)
    return " ".join(_LATEX_NOISE.sub(" ", text).casefold().split())


def canonical_key(normal: str) -> str:
    """Return the key of exact matches: spaces between two letters or digits only, and no full stop at the end."""
    return _REMOVABLE_SPACE.sub("", normal).rstrip(".")


def tokenize(normal: str) -> tuple[str, ...]:
    """Return the runs of letters and of digits, including the names of LaTeX commands; other signs are dropped."""
    return tuple(map(sys.intern, _WORD.findall(normal)))


@dataclass(frozen=True, slots=True)
class ComparisonText:
    """A problem prepared for comparison."""

    key: str
    """Canonical text."""
    words: tuple[str, ...]


def prepare_text(raw: str) -> ComparisonText:
    """Return a problem's text, prepared for comparison."""
    normal = normalise(raw)
    return ComparisonText(canonical_key(normal), tokenize(normal))


# --- matches ------------------------------------------------------------------------------------------------


def exact_matches(problems: Sequence[ComparisonText], others: Sequence[ComparisonText]) -> list[Match]:
    """Return every pair of equal canonical texts, in the order of the problems."""
    indices: defaultdict[str, list[int]] = defaultdict(list)
    for j, other in enumerate(others):
        indices[other.key].append(j)
    return [Match(i, j, "exact", 1.0) for i, problem in enumerate(problems) for j in indices.get(problem.key, ())]


def too_short(problem: ComparisonText, ngram: int = NGRAM) -> bool:
    """Return whether a problem has too few words for an overlap to be evidence."""
    return len(problem.words) < min(MIN_WORDS, ngram)


def overlapping_matches(
    problems: Sequence[ComparisonText],
    others: Sequence[ComparisonText],
    ngram: int = NGRAM,
    min_share: float = MIN_OVERLAP,
) -> list[Match]:
    """Return every pair in which the other problem has at least a given share of the problem's distinct n-grams.

    An index of hashed n-grams finds candidate pairs; then the n-grams themselves are compared.

    Args:
        problems: The benchmark's problems. One of fewer than `ngram` words is a single n-gram; one that is `too_short`
            matches nothing.
        others: The problems to compare with.
        ngram: Length of an n-gram in words.
        min_share: Smallest share, in (0, 1].

    Returns:
        Matches sorted by problem, then by other problem.
    """
    word_lists = [() if too_short(problem, ngram) else problem.words for problem in problems]
    sizes = [min(ngram, len(words)) for words in word_lists]
    codes = {word: code for code, word in enumerate(sorted({word for words in word_lists for word in words}))}
    indexes = [_build_index(word_lists, sizes, n, codes) for n in sorted(set(sizes) - {0})]
    results: list[Match] = []
    for start in range(0, len(others), _CHUNK_SIZE):
        chunk = [other.words for other in others[start : start + _CHUNK_SIZE]]
        flat = _concatenate(chunk, codes)
        for index in indexes:
            for i, j in _candidate_pairs(index, flat, min_share):
                share = _shared_ngrams(word_lists[i], chunk[j], index.n)
                results += [Match(i, start + j, "overlap", share)] if share >= min_share else []
    return sorted(results, key=lambda match: (match.problem, match.other))


def find_matches(
    problems: Sequence[ComparisonText],
    others: Sequence[ComparisonText],
    ngram: int = NGRAM,
    min_share: float = MIN_OVERLAP,
) -> list[Match]:
    """Return the exact matches, then the overlaps of texts that are not equal."""
    equal = exact_matches(problems, others)
    equal_pairs = {(match.problem, match.other) for match in equal}
    overlapping = overlapping_matches(problems, others, ngram, min_share)
    return equal + [match for match in overlapping if (match.problem, match.other) not in equal_pairs]


def matches_within(
    problems: Sequence[ComparisonText], ngram: int = NGRAM, min_share: float = MIN_OVERLAP
) -> list[Match]:
    """Return the matches within one set: each pair once, earlier problem first, with the larger of its two shares."""
    pairs: dict[tuple[int, int], Match] = {}
    for match in find_matches(problems, problems, ngram, min_share):
        i, j = sorted((match.problem, match.other))
        previous = pairs.get((i, j))
        if i != j and (previous is None or previous.share < match.share):
            pairs[i, j] = Match(i, j, match.kind, match.share)
    return [pairs[key] for key in sorted(pairs)]


# --- the index ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Index:
    """An inverted index from n-gram to problems."""

    n: int
    hashes: Hashes
    """Hash of each distinct n-gram, sorted; shape [g]."""
    first: Ints
    """The problems with n-gram k are `members[first[k] : first[k + 1]]`; shape [g + 1]."""
    members: Ints
    grams: Ints
    """Number of distinct n-grams of each problem; shape [problems]."""


def _build_index(word_lists: Sequence[Sequence[str]], sizes: Sequence[int], n: int, codes: Mapping[str, int]) -> _Index:
    """Return the index of those problems whose n-grams have n words."""
    selected = [words if size == n else [] for words, size in zip(word_lists, sizes, strict=True)]
    hashes, owners = _ngram_hashes(_concatenate(selected, codes), n)
    pairs = np.unique(np.stack([hashes, owners.astype(np.uint64)]), axis=1)  # sorted by hash, then by problem
    distinct, first = np.unique(pairs[0], return_index=True)
    members = pairs[1].astype(np.int64)
    ends = np.append(first, len(members)).astype(np.int64)
    return _Index(n, distinct, ends, members, np.bincount(members, minlength=len(word_lists)))


@dataclass(frozen=True, slots=True)
class _Concatenated:
    """Texts as one array of word codes, of shape [t]."""

    codes: Hashes
    """Code of each word, mixed by `_mix_bits`."""
    owner: Ints
    """Index of the text that each word belongs to."""
    unknown: Ints
    """Number of words without a code before each position; shape [t + 1]."""


def _concatenate(word_lists: Sequence[Sequence[str]], codes: Mapping[str, int]) -> _Concatenated:
    flat = np.array([codes.get(word, -1) for words in word_lists for word in words], dtype=np.int64)
    owner = np.repeat(np.arange(len(word_lists)), [len(words) for words in word_lists])
    return _Concatenated(_mix_bits(flat.astype(np.uint64)), owner, np.append(0, np.cumsum(flat < 0)))


def _ngram_hashes(flat: _Concatenated, n: int) -> tuple[Hashes, Ints]:
    """Return the hash and the text of every n-gram without unknown words."""
    starts = np.arange(max(len(flat.codes) - n + 1, 0))
    within_one_text = flat.owner[starts] == flat.owner[starts + n - 1]
    starts = starts[within_one_text & (flat.unknown[starts + n] == flat.unknown[starts])]
    hashes = np.zeros(len(starts), np.uint64)
    for k in range(n):  # a polynomial in an odd base, modulo 2**64
        hashes = hashes * _HASH_MULTIPLIER + flat.codes[starts + k]
    return hashes, flat.owner[starts]


def _mix_bits(codes: Hashes) -> Hashes:
    """Return hashes in which every bit depends on every bit of the code, so that neighbours do not collide."""
    for shift in (30, 27, 31):
        codes = (codes ^ (codes >> np.uint64(shift))) * _HASH_MULTIPLIER + np.uint64(1)
    return codes


def _candidate_pairs(index: _Index, flat: _Concatenated, min_share: float) -> list[tuple[int, int]]:
    """Return the (problem, text) pairs that share enough n-gram hashes."""
    hashes, owners = _ngram_hashes(flat, index.n)
    positions = np.searchsorted(index.hashes, hashes).clip(max=len(index.hashes) - 1)
    hit = index.hashes[positions] == hashes
    grams = len(index.hashes)
    occurring = np.unique(owners[hit] * grams + positions[hit])  # a repeated n-gram counts once
    owner, gram = occurring // grams, occurring % grams
    times = index.first[gram + 1] - index.first[gram]
    inside = np.arange(times.sum()) - np.repeat(times.cumsum() - times, times)
    problem = index.members[np.repeat(index.first[gram], times) + inside]
    pairs, shared = np.unique(np.repeat(owner, times) * len(index.grams) + problem, return_counts=True)
    problem, owner = pairs % len(index.grams), pairs // len(index.grams)
    enough = shared >= min_share * index.grams[problem] - 1e-9
    return list(zip(problem[enough].tolist(), owner[enough].tolist(), strict=True))


def _shared_ngrams(problem: Sequence[str], other: Sequence[str], n: int) -> float:
    """Return the share of the problem's distinct n-grams that the other one has."""
    ours, theirs = ({tuple(words[k : k + n]) for k in range(len(words) - n + 1)} for words in (problem, other))
    return len(ours & theirs) / len(ours)
