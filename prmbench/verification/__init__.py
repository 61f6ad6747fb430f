r"""What a completion's final answer is, and whether it is the gold one.

From text to verdict: answer_region.py (the region and its boxes) -> extraction.py (what is announced) -> symbols.py and
latex.py (one plain spelling) -> forms.py, definitions.py, quantities.py, numbers.py (its shape) -> grading.py and
scalars.py (equality), spelling.py (one spelling for votes). Only expressions.py and
solution_sets.py reach sympy. All of it runs in the worker processes of verifiers.py.
"""
