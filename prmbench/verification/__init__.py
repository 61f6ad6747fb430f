r"""Extracts the final answer of a completion and compares it with the reference answer.

The stages, in order: answer_region.py (region and boxes), extraction.py (the announced answer), unicode_latex.py and
latex.py (plain LaTeX), forms.py, definitions.py, quantities.py and numbers.py (structure), grading.py and scalars.py
(equality), canonical.py (one string for all equal answers, for majority votes). Only expressions.py and
solution_sets.py import sympy. All stages run in the worker processes that verifiers.py starts.
"""
