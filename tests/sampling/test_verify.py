"""`prmbench verify`: outcomes on completions from elsewhere, and the commands that read the file it writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from cli_calls import call, fine, refused

from prmbench.config import VerifyConfig
from prmbench.core.records import UserError
from prmbench.data import rollouts
from prmbench.sampling import verify
from prmbench.verification import verifiers

ROWS: list[dict[str, Any]] = [
    {
        "question": "What is 2+2?",
        "responses": ["So \\boxed{4}.", "We add.\n\nSo \\boxed{5}.", "I do not know."],
        "answer": "4",
    },
    {"question": "What is 3+3?", "responses": ["So \\boxed{6.0}.", "So \\boxed{7}."], "answer": 6},
]


def write(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_every_completion_gets_its_own_outcome(tmp_path: Path) -> None:
    out = tmp_path / "v.jsonl"
    counts = json.loads(fine("verify", write(tmp_path / "c.jsonl", *ROWS), "--out", out, "--json"))
    rows = rollouts.read(out)
    assert [(r.prompt, r.outcome) for r in rows] == [
        *(("What is 2+2?", outcome) for outcome in (1, 0, 0)),
        *(("What is 3+3?", outcome) for outcome in (1, 0)),
    ]
    assert rows[1].steps == ("We add.", "So \\boxed{5}.")
    assert [r.answer for r in rows[:3]] == ["4", "5", ""]
    assert len({r.group for r in rows}) == 2
    assert {r.subset for r in rows} == {"c"}
    expected = {"rows": 2, "prompts": 2, "completions": 5, "right": 2, "wrong": 3, "unverified": 0, "left_out": {}}
    assert {name: counts[name] for name in expected} == expected
    assert counts["verdicts"] == {"no answer": 1, "right": 2, "wrong": 2}
    assert not (tmp_path / "v.jsonl.journal").exists()


def test_what_it_writes_is_what_the_others_read(tmp_path: Path) -> None:
    out = tmp_path / "v.parquet"
    fine("verify", write(tmp_path / "c.jsonl", *ROWS), "--out", out, "--verifier", "exact", "--quiet")
    judged = ("--model", "step-length", "--data", out, "--out", tmp_path / "runs", "--json")
    for benchmark in ("best_of_n", "calibration"):
        assert json.loads(fine("eval", *judged, "--benchmark", benchmark))["manifest"]["n"] == 5
    fine("score", "--model", "random", "--data", out, "--out", tmp_path / "scores.jsonl")


def test_rows_that_are_left_out_or_unverified_are_counted_and_named(tmp_path: Path) -> None:
    path = write(
        tmp_path / "c.jsonl",
        *ROWS,
        {"question": "Q?", "responses": ["a", 5], "answer": "1"},
        {"question": "No gold?", "response": "a"},
    )
    result = call("verify", path, "--out", tmp_path / "v.jsonl", "--json")
    counts = json.loads(result.stdout)
    assert (counts["completions"], counts["unverified"], counts["left_out"]) == (6, 1, {"row that cannot be read": 1})
    assert counts["verdicts"]["no gold"] == 1
    assert f"{path} line 4: has no reference answer" in counts["examples"]
    assert f"{path} line 3: field 'responses', entry 2 is 5" in result.stderr
    assert "there is no reference answer in 1 of 4 rows, which makes them unverified" in result.stderr
    assert f"{path} line 4" in result.stderr


def test_a_line_that_is_no_object_is_one_of_them(tmp_path: Path) -> None:
    path = write(tmp_path / "c.jsonl", ROWS[0])
    path.write_text(f"{path.read_text()}{{broken\n7\n")
    result = call("verify", path, "--out", tmp_path / "v.jsonl", "--verifier", "exact", "--json")
    counts = json.loads(result.stdout)
    assert (counts["rows"], counts["left_out"]) == (3, {"row that cannot be read": 2})
    assert [example.split(": ")[0] for example in counts["examples"]] == [f"{path} line 2", f"{path} line 3"]


def test_a_verifier_that_fails_says_wrong_of_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fate = iter(["timeout", "crash", "right", "wrong", "no answer"])
    monkeypatch.setattr(verifiers.Verifier, "check", lambda _, claims: [verifiers.Verdict(next(fate)) for _ in claims])
    counts = verify.verify(VerifyConfig(out=tmp_path / "v.jsonl"), write(tmp_path / "c.jsonl", *ROWS))
    assert counts is not None
    assert (counts.right, counts.wrong, counts.unverified) == (1, 2, 2)
    assert [r.outcome for r in rollouts.read(tmp_path / "v.jsonl")] == [None, None, 1, 0, 0]


def test_outcomes_that_rows_had_are_replaced_and_differences_counted(tmp_path: Path) -> None:
    row = {"question": "What is 1+1?", "responses": ["\\boxed{2}", "\\boxed{3}", "\\boxed{2}"], "answer": "2"}
    path = write(tmp_path / "c.jsonl", {**row, "correct": [False, False, None]})
    counts = verify.verify(VerifyConfig(out=tmp_path / "v.jsonl", verifier="exact"), path)
    assert counts is not None
    assert (counts.right, counts.wrong, counts.changed) == (2, 1, 1)


def test_an_interrupted_run_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "BATCH", 2)
    config, path = VerifyConfig(out=tmp_path / "v.jsonl", verifier="exact"), write(tmp_path / "c.jsonl", *ROWS)
    checked: list[int] = []
    check = verifiers.Verifier.check

    def checks_until(stop: int) -> Any:
        def stopping(self: verifiers.Verifier, claims: Any) -> Any:
            if len(checked) == stop:
                raise KeyboardInterrupt
            checked.append(len(claims))
            return check(self, claims)

        return stopping

    monkeypatch.setattr(verifiers.Verifier, "check", checks_until(1))
    with pytest.raises(KeyboardInterrupt):
        verify.verify(config, path)
    assert not config.out.exists()
    monkeypatch.setattr(verifiers.Verifier, "check", checks_until(9))
    with pytest.warns(UserWarning, match="1 of 3 batches were done before"):
        verify.verify(config, path)
    assert checked == [2, 2, 1]
    assert [r.outcome for r in rollouts.read(config.out)] == [1, 0, 0, 1, 0]
    other = write(tmp_path / "other.jsonl", *ROWS[1:])
    monkeypatch.setattr(verifiers.Verifier, "check", checks_until(len(checked)))
    with pytest.raises(KeyboardInterrupt):
        verify.verify(VerifyConfig(out=tmp_path / "w.jsonl"), other)
    with pytest.raises(UserError, match="begun with another claims"):
        verify.verify(VerifyConfig(out=tmp_path / "w.jsonl"), path)


def test_ids_of_rows_are_kept_where_they_tell_completions_apart(tmp_path: Path) -> None:
    config = VerifyConfig(out=tmp_path / "v.jsonl", verifier="exact", force=True)
    apart = [{"id": f"s{n}", "question": "Q?", "response": "1", "answer": "1"} for n in range(2)]
    verify.verify(config, write(tmp_path / "c.jsonl", *apart))
    assert [r.id for r in rollouts.read(config.out)] == ["s0", "s1"]
    verify.verify(config, write(tmp_path / "c.jsonl", *[{**row, "id": "problem"} for row in apart]))
    ids = [r.id for r in rollouts.read(config.out)]
    assert len(set(ids)) == 2
    assert "problem" not in ids


def test_fields_names_what_is_unusual(tmp_path: Path) -> None:
    path = write(tmp_path / "c.jsonl", {"q": "Q?", "text": "1", "meta": {"right": 1}})
    out = tmp_path / "v.jsonl"
    assert "--fields prompt=...,completion=...,answer=...: the row has q, text, meta" in refused(
        "verify", path, "--out", out
    )
    fine("verify", path, "--out", out, "--verifier", "exact", "--fields", "prompt=q,completion=text,answer=meta.right")
    assert [r.outcome for r in rollouts.read(out)] == [1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--out", "v.txt"), "rollouts are written as .jsonl or .parquet"),
        (("--out", "c.jsonl"), "c.jsonl"),
        (("--out", "there.jsonl"), "exists; name another file, or pass --force"),
        (
            ("--fields", "completion=nowhere"),
            "no row has the field 'nowhere'; the rows have question, responses, answer",
        ),
        (("--verifier", "gym"), "--verifier"),
    ],
)
def test_mistakes_are_one_line_and_write_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    path = write(tmp_path / "c.jsonl", *ROWS)
    (tmp_path / "there.jsonl").touch()
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    assert message in refused("verify", path, *arguments)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_a_file_without_any_reference_answer_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "c.jsonl", {"question": "Q?", "response": "1"}, {"question": "R?", "response": "1"})
    line = refused("verify", path, "--out", tmp_path / "v.jsonl")
    assert f"{path} line 1: has no reference answer, nor has any other row; name it: --fields answer=..." in line
    assert [p.name for p in tmp_path.iterdir()] == ["c.jsonl"]


def test_a_reference_answer_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    unreadable = {"question": "Q?", "responses": ["\\boxed{4}", "5"], "answer": "the first four letters"}
    path = write(tmp_path / "c.jsonl", *ROWS, unreadable)
    result = call("verify", path, "--out", tmp_path / "v.jsonl", "--json")
    assert json.loads(result.stdout)["unverified"] == 2
    assert f"cannot read the reference answer of 2 of 7 completions, which makes them unverified: {path} line 3" in (
        result.stderr
    )


def test_a_system_message_is_left_out_and_said(tmp_path: Path) -> None:
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Q?"}]
    path = write(tmp_path / "c.jsonl", {"prompt": chat, "completion": "1", "answer": "1"})
    result = call("verify", path, "--out", tmp_path / "v.jsonl", "--verifier", "exact")
    assert "1 of 1 rows have a system message" in result.stderr
    assert rollouts.read(tmp_path / "v.jsonl")[0].prompt == "Q?"
