"""Which problems of a benchmark are in training data: the same text, or many of its n-grams in one training problem.

Pure functions of problems' texts; reading files is data/problems.py's business.
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

NGRAM, OVERLAP = 13, 0.5
SHORTEST = 8
"""A problem of fewer words matches as a whole text only: so few words in a row are in many problems."""
_AT_ONCE = 500
"""Problems that are looked up together, which bounds the memory."""
_ODD = np.uint64(0x9E3779B97F4A7C15)

_LATEX_NOISE = re.compile(
    r"\\(?:left|right|displaystyle|textstyle|quad|qquad)(?![a-zA-Z])|\\(?:begin|end)\{(?:align|equation|displaymath)\*?\}"
    r"|\\[,;:!>\[\]() ]|\\\\|[$~&]"
)
_LATEX_SAME = ((re.compile(r"\\[dt]frac(?![a-zA-Z])"), r"\\frac"), (re.compile(r"\\[lc]?dots(?![a-zA-Z])"), "..."))
_FREE_SPACE = re.compile(r"(?<![^\W_]) | (?![^\W_])")
"""A space that does not part two letters or digits."""
_WORD = re.compile(r"\d+|[^\W\d_]+")


@dataclass(frozen=True, slots=True)
class Match:
    """Two problems that are the same, or nearly."""

    problem: int
    """Index among the benchmark's problems."""
    other: int
    """Index among those it was held against."""
    kind: Literal["exact", "overlap"]
    share: float
    """Of the problem's n-grams that the other one has; 1 for equal texts."""


# --- what counts as the same ------------------------------------------------------------------------------


def normalised(text: str) -> str:
    r"""The text without what does not change the question.

    Unicode NFKC, lower case; dollar signs, LaTeX spaces and delimiters, alignment marks, \left and \right go; \dfrac
    and \tfrac become \frac, all dots `...`.
    """
    text = unicodedata.normalize("NFKC", text)
    for pattern, same in _LATEX_SAME:
        text = pattern.sub(same, text)
    return " ".join(_LATEX_NOISE.sub(" ", text).casefold().split())


def canonical(normal: str) -> str:
    """The key of an exact match: spaces only between two letters or digits, no full stop at the end."""
    return _FREE_SPACE.sub("", normal).rstrip(".")


def words(normal: str) -> tuple[str, ...]:
    """Runs of letters and runs of digits, names of LaTeX commands among them; signs are dropped."""
    return tuple(map(sys.intern, _WORD.findall(normal)))


@dataclass(frozen=True, slots=True)
class Text:
    """A problem as it is compared."""

    key: str
    """Canonical text."""
    words: tuple[str, ...]


def text(raw: str) -> Text:
    """A problem's text, prepared for comparisons."""
    normal = normalised(raw)
    return Text(canonical(normal), words(normal))


# --- matches ------------------------------------------------------------------------------------------------


def exact(problems: Sequence[Text], others: Sequence[Text]) -> list[Match]:
    """Every pair of equal canonical texts, in the order of the problems."""
    at: defaultdict[str, list[int]] = defaultdict(list)
    for j, other in enumerate(others):
        at[other.key].append(j)
    return [Match(i, j, "exact", 1.0) for i, problem in enumerate(problems) for j in at.get(problem.key, ())]


def too_short(problem: Text, ngram: int = NGRAM) -> bool:
    """Whether a problem has too few words for an overlap to say anything."""
    return len(problem.words) < min(SHORTEST, ngram)


def overlaps(
    problems: Sequence[Text], others: Sequence[Text], ngram: int = NGRAM, least: float = OVERLAP
) -> list[Match]:
    """Every pair in which one other problem has at least the share `least` of the problem's distinct n-grams.

    A problem of fewer than `ngram` words is one n-gram; of those that are too short there is none. An index of hashed
    n-grams finds the pairs, and the n-grams themselves are compared in the pairs found.
    """
    said = [() if too_short(problem, ngram) else problem.words for problem in problems]
    sizes = [min(ngram, len(found)) for found in said]
    codes = {word: code for code, word in enumerate(sorted({word for found in said for word in found}))}
    indexes = [_index(said, sizes, n, codes) for n in sorted(set(sizes) - {0})]
    found: list[Match] = []
    for start in range(0, len(others), _AT_ONCE):
        chunk = [other.words for other in others[start : start + _AT_ONCE]]
        flat = _flat(chunk, codes)
        for index in indexes:
            for i, j in _candidates(index, flat, least):
                share = _share(said[i], chunk[j], index.n)
                found += [Match(i, start + j, "overlap", share)] if share >= least else []
    return sorted(found, key=lambda match: (match.problem, match.other))


def matches(
    problems: Sequence[Text], others: Sequence[Text], ngram: int = NGRAM, least: float = OVERLAP
) -> list[Match]:
    """Equal texts, then overlapping ones that are not equal."""
    same = exact(problems, others)
    known = {(match.problem, match.other) for match in same}
    near = overlaps(problems, others, ngram, least)
    return same + [match for match in near if (match.problem, match.other) not in known]


def twins(problems: Sequence[Text], ngram: int = NGRAM, least: float = OVERLAP) -> list[Match]:
    """Matches of the problems among themselves: each pair once, the earlier problem first, its larger share."""
    pairs: dict[tuple[int, int], Match] = {}
    for match in matches(problems, problems, ngram, least):
        i, j = sorted((match.problem, match.other))
        known = pairs.get((i, j))
        if i != j and (known is None or known.share < match.share):
            pairs[i, j] = Match(i, j, match.kind, match.share)
    return [pairs[key] for key in sorted(pairs)]


# --- the index ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Index:
    """Which problems have which n-gram."""

    n: int
    hashes: Hashes
    """[g], sorted: one an n-gram."""
    first: Ints
    """[g + 1]: the problems of n-gram k are `members[first[k] : first[k + 1]]`."""
    members: Ints
    grams: Ints
    """[problems]: distinct n-grams of each problem."""


def _index(said: Sequence[Sequence[str]], sizes: Sequence[int], n: int, codes: Mapping[str, int]) -> _Index:
    """Of the problems whose n-grams have n words."""
    mine = [found if size == n else [] for found, size in zip(said, sizes, strict=True)]
    hashes, owners = _hashed(_flat(mine, codes), n)
    pairs = np.unique(np.stack([hashes, owners.astype(np.uint64)]), axis=1)  # sorted by hash, then by problem
    known, first = np.unique(pairs[0], return_index=True)
    members = pairs[1].astype(np.int64)
    ends = np.append(first, len(members)).astype(np.int64)
    return _Index(n, known, ends, members, np.bincount(members, minlength=len(said)))


@dataclass(frozen=True, slots=True)
class _Flat:
    """Texts as one array of word codes, [t]."""

    codes: Hashes
    """Mixed."""
    owner: Ints
    """Which text each word is of."""
    unknown: Ints
    """[t + 1]: words without a code before each place."""


def _flat(said: Sequence[Sequence[str]], codes: Mapping[str, int]) -> _Flat:
    flat = np.array([codes.get(word, -1) for found in said for word in found], dtype=np.int64)
    owner = np.repeat(np.arange(len(said)), [len(found) for found in said])
    return _Flat(_mixed(flat.astype(np.uint64)), owner, np.append(0, np.cumsum(flat < 0)))


def _hashed(flat: _Flat, n: int) -> tuple[Hashes, Ints]:
    """(hashes of all n-grams, the text that each is of); n-grams with a word that has no code are left out."""
    starts = np.arange(max(len(flat.codes) - n + 1, 0))
    whole = flat.owner[starts] == flat.owner[starts + n - 1]
    starts = starts[whole & (flat.unknown[starts + n] == flat.unknown[starts])]
    hashes = np.zeros(len(starts), np.uint64)
    for k in range(n):  # a polynomial in an odd base, modulo 2**64
        hashes = hashes * _ODD + flat.codes[starts + k]
    return hashes, flat.owner[starts]


def _mixed(codes: Hashes) -> Hashes:
    """Every bit of the result depends on every bit of the code, so that neighbouring codes hash apart."""
    for shift in (30, 27, 31):
        codes = (codes ^ (codes >> np.uint64(shift))) * _ODD + np.uint64(1)
    return codes


def _candidates(index: _Index, flat: _Flat, least: float) -> list[tuple[int, int]]:
    """(problem, text) pairs whose hashes reach the share."""
    hashes, owners = _hashed(flat, index.n)
    at = np.searchsorted(index.hashes, hashes).clip(max=len(index.hashes) - 1)
    hit = index.hashes[at] == hashes
    grams = len(index.hashes)
    once = np.unique(owners[hit] * grams + at[hit])  # an n-gram counts once, however often a text says it
    owner, gram = once // grams, once % grams
    times = index.first[gram + 1] - index.first[gram]
    inside = np.arange(times.sum()) - np.repeat(times.cumsum() - times, times)
    problem = index.members[np.repeat(index.first[gram], times) + inside]
    pairs, shared = np.unique(np.repeat(owner, times) * len(index.grams) + problem, return_counts=True)
    problem, owner = pairs % len(index.grams), pairs // len(index.grams)
    enough = shared >= least * index.grams[problem] - 1e-9
    return list(zip(problem[enough].tolist(), owner[enough].tolist(), strict=True))


def _share(problem: Sequence[str], other: Sequence[str], n: int) -> float:
    """Of the problem's distinct n-grams, those that the other one has."""
    mine, its = ({tuple(found[k : k + n]) for k in range(len(found) - n + 1)} for found in (problem, other))
    return len(mine & its) / len(mine)
