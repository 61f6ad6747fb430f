"""The reasoning-gym tasks that may be scored: those whose scorer was reviewed and executes none of its input.

Some scorers pass the model's answer, or a field of the data, to Python's `eval` or to sympy's parser, which evaluates
it, so that a file of prompts or a model's answer could run code.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping
from typing import Any

from prmbench.core.records import UserError

VERSION = "0.1.25"
"""Version of reasoning-gym whose scorers were reviewed; no other is used."""
_COMPARE_TEXT = """
    acre aiw arc_1d base_conversion basic_arithmetic bf binary_alternation caesar_cipher count_bits count_primes
    course_schedule gcd isomorphic_strings largest_island lcm leg_counting letter_counting list_functions mahjong_puzzle
    maze modulo_grid number_filtering number_sequence ransom_note rotate_matrix rotten_oranges simple_equations
    simple_geometry string_manipulation string_splitting string_synthesis syllogism word_sequence_reversal
"""
"""Tasks with the library's default scorer, which compares the answer with the entry's as text."""
_OWN_SCORER = """
    ab advanced_geometry calendar_arithmetic chain_sum circuit_logic color_cube_rotation decimal_arithmetic
    decimal_chain_sum dice emoji_mystery family_relationships fraction_simplification game_of_life
    group_anagrams gsm_symbolic knights_knaves letter_jumble manipulate_matrix mini_sudoku needle_haystack number_format
    palindrome_generation palindrome_partitioning path_star pool_matrix power_function prime_factorization products
    rectangle_count self_reference sentence_reordering shortest_path spell_backward sudoku survo tsumego word_ladder
    word_sorting zebra_puzzles
"""
SAFE = frozenset((_COMPARE_TEXT + _OWN_SCORER).split())
REFUSED = {
    **dict.fromkeys(
        ["binary_matrix", "bitwise_arithmetic", "n_queens", "number_sorting", "spiral_matrix", "string_insertion"],
        "its scorer evaluates the answer or the data as Python",
    ),
    **dict.fromkeys(
        ["countdown", "intermediate_integration", "polynomial_multiplication", "puzzle24", "simple_integration"],
        "its scorer evaluates the answer with sympy's parser",
    ),
    "coin_flip": "its scorer calls the answer 0 right",
    "complex_arithmetic": "its scorer calls the answer NaN right",
    "composite": "its scorer is chosen by the data",
    "game_of_life_halting": "its scorer calls every answer right",
}


def refusal(metadata: Mapping[str, Any]) -> str:
    """Return why an entry is not scored here, or an empty text when it is.

    Args:
        metadata: Metadata of the entry; `source_dataset` is the name of its task.
    """
    name = metadata.get("source_dataset")
    if not isinstance(name, str):
        return "its metadata has no `source_dataset`, the name of a task"
    if name in SAFE:
        return ""
    reason = REFUSED.get(name, "its scorer has not been read for code that runs what it is given")
    return f"task {name[:60]!r}: {reason}"


def check_version() -> None:
    """Raise UserError unless the installed reasoning-gym is the version whose scorers were reviewed."""
    installed = importlib.metadata.version("reasoning-gym")
    if installed != VERSION:
        raise UserError(
            f"verifier gym: reasoning-gym {installed} is installed, and scorers may run code; those of {VERSION} were "
            f"read: pip install reasoning-gym=={VERSION}"
        )
