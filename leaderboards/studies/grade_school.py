"""Writes grade-school word problems with whole-number answers, for policies that solve them sometimes.

python leaderboards/studies/grade_school.py FOLDER    # FOLDER/train.jsonl and FOLDER/validation.jsonl
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

ASK = " Answer with the number only."
STORIES = (
    ("{name} has {a} {things} and buys {b} more. How many {things} does {name} have now?", lambda a, b: a + b),
    ("{name} has {a} {things} and gives {b} of them away. How many {things} are left?", lambda a, b: a - b),
    ("There are {a} boxes with {b} {things} each. How many {things} are there in all?", lambda a, b: a * b),
    ("{name} reads {a} pages on Monday and {b} pages on Tuesday. How many pages is that?", lambda a, b: a + b),
)
NAMES, THINGS = ("Tom", "Mia", "Ana", "Leo", "Ben", "Zoe"), ("apples", "marbles", "pens", "books", "coins")
TRAINING, VALIDATION, SEED = 400, 60, 0


def problems(count: int, seed: int) -> list[dict[str, str]]:
    """Distinct problems; a share of each story."""
    draw = random.Random(seed)
    found: dict[str, str] = {}
    while len(found) < count:
        text, answer = STORIES[len(found) % len(STORIES)]
        a, b = draw.randint(10, 20), draw.randint(2, 9)
        if "boxes" in text:
            a = draw.randint(2, 9)
        asked = text.format(name=draw.choice(NAMES), things=draw.choice(THINGS), a=a, b=b) + ASK
        found.setdefault(asked, str(answer(a, b)))
    return [{"prompt": prompt, "answer": gold, "subset": "grade_school"} for prompt, gold in found.items()]


def main() -> None:
    """Training problems first; the validation ones are others."""
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    rows = problems(TRAINING + VALIDATION, SEED)
    random.Random(SEED).shuffle(rows)
    for name, part in (("train", rows[:TRAINING]), ("validation", rows[TRAINING:])):
        lines = [json.dumps({"id": f"{name}-{i}", **row}) for i, row in enumerate(part)]
        (folder / f"{name}.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


if __name__ == "__main__":
    main()
