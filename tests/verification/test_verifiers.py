"""The verifier: what is right, what is not an answer, and that nothing hangs or takes others along."""

from __future__ import annotations

import inspect
import os
import re
import signal
import time
from pathlib import Path

import pytest

from prmbench.core.records import UserError
from prmbench.verification import gym_tasks, verifiers
from prmbench.verification.verifiers import Claim, Stopped, Verdict, Verifier

pytest.importorskip("math_verify", reason="needs math-verify (extra verify)")

LIMIT = 1.0
MOST = 2 * (LIMIT + verifiers.GRACE_SECONDS) + 5.0
"""Twice the limit, and some seconds for a new worker on a busy machine."""


@pytest.fixture(scope="module")
def verifier() -> Verifier:
    with Verifier(workers=1, limit=LIMIT) as pool:
        assert pool.check([Claim("\\boxed{1}", "1")]) == [Verdict("right", "1")]  # what follows measures no start
        yield pool


@pytest.mark.parametrize(
    ("text", "gold", "verdict", "answer"),
    [
        ("So it is \\boxed{142}.", "142.0", "right", "142"),
        ("It is $142.0$ in all.", "142", "right", "142"),
        ("Hence\n\nAnswer: $ m = 2021 $", "2021", "right", "2021"),
        ("\\boxed{\\frac{1}{2}}", "0.5", "right", "1/2"),
        ("\\boxed{0.5}", "\\frac12", "right", "1/2"),
        ("Answer: 1/2", "0.5", "right", "1/2"),
        ("First $\\boxed{3}$.\n\nNo: it is $\\boxed{4}$", "4", "right", "4"),
        ("First \\boxed{3}, then \\boxed{4}", "4", "right", "4"),
        ("\\boxed{(3, \\frac{\\pi}{2})}", "\\left( 3, \\frac{\\pi}{2} \\right)", "right", "(3, pi/2)"),
        ("\\boxed{x=3}", "3", "right", "3"),
        ("\\boxed{141}", "142", "wrong", "141"),
        ("\\boxed{-3}", "3", "wrong", "-3"),
        ("I cannot tell.", "3", "no answer", ""),
        ("   ", "3", "no answer", ""),
        ("\\boxed{3}", " ", "no gold", ""),
    ],
)
def test_math(verifier: Verifier, text: str, gold: str, verdict: str, answer: str) -> None:
    assert verifier.check([Claim(text, gold)]) == [Verdict(verdict, answer)]


@pytest.mark.parametrize(
    ("verdict", "outcome"),
    [("right", 1), ("wrong", 0), ("no answer", 0), ("timeout", None), ("crash", None), ("too long", None)],
)
def test_outcomes(verdict: str, outcome: int | None) -> None:
    assert Verdict(verdict).outcome == outcome


HOSTILE = {
    "power tower of 20,000 characters": "\\boxed{" + "9^{" * 6666 + "9" + "}" * 6667,
    "9^9^9^9": "\\boxed{9^{9^{9^9}}}",
    "9^9^9^9 without LaTeX": "the answer is 9^9^9^9",
    "double factorial": "\\boxed{100000!!}",
    "endless sum": "\\boxed{\\sum_{k=1}^{10^{10}} \\frac{1}{k^3}}",
    "open braces": "\\boxed{" + "{" * 9000,
    "closing braces": "\\boxed{7" + "}" * 9000,
    "parentheses": "\\boxed{" + "(" * 5000 + ")" * 5000 + "}",
    "boxes in boxes": "\\boxed{" * 6000,
    "dollars": "$" * 20_000,
    "null bytes": "\x00" * 100 + "\\boxed{\x00}",
    "half characters": "\ud800\udfff \\boxed{\ud83d}",
    "too long": "9" * (verifiers.MAX_CHARACTERS + 1),
    "a long box": "\\boxed{" + "9+" * 20_000 + "9}",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_text_returns_and_harms_nobody(verifier: Verifier, name: str) -> None:
    begun = time.monotonic()
    fresh = time.time_ns()  # no claim checked before
    bad, good, wrong = verifier.check(
        [Claim(HOSTILE[name], "2"), Claim(f"{fresh} \\boxed{{2}}", "2"), Claim(f"{fresh} \\boxed{{3}}", "2")]
    )
    assert time.monotonic() - begun < MOST
    assert bad.outcome != 1
    assert (good.verdict, wrong.verdict) == ("right", "wrong")


@pytest.mark.slow
def test_what_takes_too_long_is_a_timeout_and_remembered(verifier: Verifier) -> None:
    claim = Claim(HOSTILE["9^9^9^9"], "17")
    assert verifier.check([claim, claim]) == [Verdict("timeout")] * 2
    begun = time.monotonic()
    assert verifier.check([claim]) == [Verdict("timeout")]
    assert time.monotonic() - begun < LIMIT / 2


def test_a_check_that_nobody_waits_for_ends_early_and_the_verifier_goes_on() -> None:
    asked: list[int] = []
    claims = [Claim(f"\\boxed{{{i}.0}}", f"{i}") for i in range(6)]
    with Verifier(workers=1, limit=LIMIT) as verifier:
        with pytest.raises(Stopped):
            verifier.check(claims, lambda: asked.append(1) or len(asked) > 3)  # type: ignore[func-returns-value]
        assert len(asked) == 4
        assert [v.verdict for v in verifier.check(claims)] == ["right"] * 6


@pytest.mark.slow
def test_a_worker_that_cannot_interrupt_itself_is_killed() -> None:
    """Stopped from outside, it does not see its own alarm: only the parent's deadline helps."""
    with Verifier(workers=1, limit=LIMIT) as verifier:
        verifier.check([Claim("\\boxed{1}", "1")])
        stopped = verifier._workers[0].process
        os.kill(stopped.pid, signal.SIGSTOP)
        begun = time.monotonic()
        verdicts = verifier.check([Claim("\\boxed{2}", "2"), Claim("\\boxed{3}", "3")])
        assert [v.verdict for v in verdicts] == ["timeout", "right"]
        assert LIMIT < time.monotonic() - begun < MOST
        assert stopped.poll() == -signal.SIGKILL


def test_a_worker_killed_at_work_is_a_crash_and_replaced() -> None:
    import threading

    with Verifier(workers=1, limit=10.0) as verifier:
        verifier.check([Claim("\\boxed{1}", "1")])
        pid = verifier._workers[0].process.pid
        threading.Timer(0.3, os.kill, (pid, signal.SIGKILL)).start()
        verdicts = verifier.check([Claim(HOSTILE["9^9^9^9"], "2"), Claim("\\boxed{3}", "3")])
        assert [v.verdict for v in verdicts] == ["crash", "right"]
        assert [w.process.pid for w in verifier._workers] != [pid]


def test_a_worker_killed_while_idle_costs_no_verdict() -> None:
    with Verifier(workers=1) as verifier:
        verifier.check([Claim("\\boxed{1}", "1")])
        process = verifier._workers[0].process
        process.kill()
        process.wait()
        assert verifier.check([Claim("\\boxed{2}", "2")]) == [Verdict("right", "2")]


def test_memory_is_bounded() -> None:
    with Verifier(workers=1, memory_gib=1.5) as verifier:
        verifier.check([Claim("\\boxed{1}", "1")])
        limits = Path(f"/proc/{verifier._workers[0].process.pid}/limits")
        if not limits.exists():
            pytest.skip("needs /proc")
        line = next(line for line in limits.read_text().splitlines() if line.startswith("Max address space"))
        assert line.split()[3] == str(int(1.5 * 2**30))


def test_a_worker_that_does_not_start_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verifiers.sys, "executable", "/bin/false")
    with Verifier(workers=1) as verifier, pytest.raises(UserError, match=r"worker math` shows why"):
        verifier.check([Claim("\\boxed{1}", "1")])


def test_an_interrupted_check_leaves_no_late_replies() -> None:
    def interrupt(_number: int, _frame: object) -> None:
        raise KeyboardInterrupt

    with Verifier(workers=1) as verifier:
        verifier.check([Claim("\\boxed{1}", "1")])
        before = signal.signal(signal.SIGALRM, interrupt)
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.3)
            with pytest.raises(KeyboardInterrupt):
                verifier.check([Claim(HOSTILE["9^9^9^9"], "5")])
        finally:
            signal.signal(signal.SIGALRM, before)
        assert verifier.check([Claim("\\boxed{2}", "2")]) == [Verdict("right", "2")]


def test_close_ends_the_processes() -> None:
    with Verifier(workers=2) as verifier:
        verifier.check([Claim(f"\\boxed{{{n}}}", "1") for n in range(8)])
        processes = [worker.process for worker in verifier._workers]
        assert len(processes) == 2
    assert all(process.poll() is not None for process in processes)


def test_order_and_cache_with_many_claims() -> None:
    claims = [Claim(f"\\boxed{{{n % 7}}}", str(n % 3)) for n in range(100)]
    with Verifier(workers=2) as verifier:
        verdicts = verifier.check(claims)
    assert [v.verdict for v in verdicts] == ["right" if n % 7 == n % 3 else "wrong" for n in range(100)]
    assert [v.answer for v in verdicts] == [str(n % 7) for n in range(100)]
    assert len(verifier._verdicts) == 21


# --- exact match ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("7 + 5 = 12\n\nAnswer: 3", "3"),
        ("The answer is 12, clearly", "12, clearly"),
        ("**Final answer:** $x$", "$x$"),
        ("ans 3", "3"),
        ("Answer: 1\nno, wait.\nAnswer: 2\nDone.", "2"),
        ("\\boxed{\\frac{1}{2}} Answer: 3", "\\frac{1}{2}"),
        ("\\boxed{1} \\boxed{2", ""),
        ("<think>Answer: 4</think>Answer: 5", "5"),
        ("<think>Answer: 4", ""),
        ("\\boxed{a}{b}} \\boxed {c}", "c"),
        ("<answer>1 2\n3 4</answer> \\boxed{5}", "1 2\n3 4"),
        ("<answer>\\boxed{5}</answer>", "5"),
        ("It is 5.\nOr 6.", ""),
        ("The transit takes 3 hours.", ""),
        ("", ""),
    ],
)
def test_final_answer(text: str, answer: str) -> None:
    assert verifiers.final_answer(text) == answer


def test_a_single_line_may_be_the_answer() -> None:
    assert verifiers.answer_or_line(" -4 ") == "-4"
    assert verifiers.answer_or_line("It is -4.\nYes.") == ""


@pytest.mark.parametrize(
    "text", ["\\boxed{" * 7000, "answer" + " " * 49_000, "<answer>" * 6000, "\\boxed" + " " * 49_000]
)
def test_extraction_is_quick_on_any_text(text: str) -> None:
    begun = time.process_time()
    verifiers.final_answer(text)
    assert time.process_time() - begun < 2.0


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("142.0", "142"),
        ("1,000.50", "1000.5"),
        ("-0", "0"),
        ("+007", "7"),
        (".5", "0.5"),
        ("$C$.", "c"),
        ("a  b", "A b"),
    ],
)
def test_exact_match_ignores_spelling(one: str, other: str) -> None:
    verdicts = Verifier().check([Claim(f"Answer: {one}", other, "exact")])
    assert verdicts == [Verdict("right", verifiers.normalise_answer(other))]


@pytest.mark.parametrize(
    ("one", "other"),
    [("-3", "3"), ("3.01", "3.1"), ("10", "100"), ("1 2", "12"), ("v1.0", "v1"), ("1,2", "12"), ("1,2,3", "123")],
)
def test_exact_match_tells_apart(one: str, other: str) -> None:
    assert Verifier().check([Claim(f"Answer: {one}", other, "exact")])[0].verdict == "wrong"


@pytest.mark.parametrize("said", ["The answer is: 12", "So the answer is = 12", "The answer is: **12**.", "Answer: 12"])
def test_exact_match_reads_announcements(said: str) -> None:
    verdict = Verifier().check([Claim(f"Some work.\n{said}", "12", "exact")])[0]
    assert (verdict.verdict, verdict.answer) == ("right", "12")


def test_exact_match_without_answer_or_gold() -> None:
    verdicts = Verifier().check([Claim("a\nb", "3", "exact"), Claim("Answer: 3", "", "exact")])
    assert [v.verdict for v in verdicts] == ["no answer", "no gold"]


# --- reasoning-gym ----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_gym_scorers() -> None:
    gym = pytest.importorskip("reasoning_gym", reason="needs reasoning-gym (extra verify)")
    entries = [gym.create_dataset(name, size=1, seed=1)[0] for name in ("chain_sum", "word_sorting")]
    with Verifier(workers=1, limit=20.0) as verifier:
        claims = [Claim(f"<answer>{e['answer']}</answer>", e["answer"], "gym", e) for e in entries]
        claims += [Claim("Answer: 999999", e["answer"], "gym", e) for e in entries]
        claims += [Claim("well\nno", "1", "gym", entries[0]), Claim("Answer: 1", "1", "gym", {"metadata": {}})]
        claims += [Claim("\\boxed{4}", "4")]  # a kind that the workers do not know yet
        verdicts = verifier.check(claims)
    assert [v.verdict for v in verdicts] == ["right", "right", "wrong", "wrong", "no answer", "crash", "right"]
    assert verdicts[0].answer == entries[0]["answer"]


def test_every_gym_task_is_either_read_or_refused_with_a_reason() -> None:
    factory = pytest.importorskip("reasoning_gym.factory", reason="needs reasoning-gym (extra verify)")
    assert set(factory.DATASETS) >= gym_tasks.SAFE
    assert not gym_tasks.SAFE & set(gym_tasks.REFUSED)
    for name in set(factory.DATASETS) - gym_tasks.SAFE:
        assert "scorer" in gym_tasks.refusal({"source_dataset": name})


def test_no_safe_scorer_evaluates_anything() -> None:
    """The words in its source and in its module's helpers; the list itself was read by people."""
    factory = pytest.importorskip("reasoning_gym.factory", reason="needs reasoning-gym (extra verify)")
    evaluates = re.compile(r"\b(?:eval|exec|compile|parse_expr|sympify|literal_eval|pickle|subprocess|__import__)\b")
    for name in gym_tasks.SAFE:
        scorer = factory.DATASETS[name][0].score_answer
        assert evaluates.search(inspect.getsource(scorer)) is None, name


def test_scorers_of_another_version_are_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("reasoning_gym", reason="needs reasoning-gym (extra verify)")
    monkeypatch.setattr(gym_tasks, "VERSION", "0.0.1")
    with pytest.raises(UserError, match=r"were read: pip install reasoning-gym==0\.0\.1"):
        verifiers.check_installed("gym")


@pytest.mark.slow
def test_no_scorer_calls_an_answer_right_that_is_none() -> None:
    """NaN compares with nothing, and so passes where a scorer looks for a difference."""
    gym = pytest.importorskip("reasoning_gym", reason="needs reasoning-gym (extra verify)")
    entries = [gym.create_dataset(name, size=1, seed=1)[0] for name in sorted(gym_tasks.SAFE)]
    answers = ("nan", "nanj", "inf", "[]", "{}", "null", "()", "None")
    claims = [Claim(f"<answer>{a}</answer>", str(e["answer"]), "gym", e) for e in entries for a in answers]
    with Verifier(workers=2, limit=20.0) as verifier:
        verdicts = verifier.check(claims)
    assert [c.text for c, v in zip(claims, verdicts, strict=True) if v.outcome == 1 and c.gold not in c.text] == []


# --- attacks --------------------------------------------------------------------------------------------------

GYM_ATTACKS = {
    "bitwise_arithmetic": {"problem": "__import__('pathlib').Path({path!r}).touch()"},
    "number_sorting": {},
    "binary_matrix": {},
    "n_queens": {"valid_answers": []},
    "string_insertion": {},
    "spiral_matrix": {},
    "countdown": {"numbers": [1], "target": 1},
    "puzzle24": {"numbers": [1]},
    "simple_integration": {"variable": "x", "integrand": "x"},
    "polynomial_multiplication": {},
    "composite": {"source_dataset_name": "n_queens"},
    "no such task": {},
}


@pytest.mark.parametrize("task", GYM_ATTACKS)
def test_a_row_does_not_run_code(task: str, tmp_path: Path) -> None:
    """Neither from the data nor from the model's answer, whatever the row claims to be."""
    path = str(tmp_path / "attacked")
    code = f"__import__('pathlib').Path({path!r}).touch()"
    fields = {k: v.format(path=path) if isinstance(v, str) else v for k, v in GYM_ATTACKS[task].items()}
    entry = {"question": "", "answer": code, "metadata": {"source_dataset": task, **fields}}
    with Verifier(workers=1) as verifier:
        assert verifier.check([Claim(f"<answer>{code}</answer>", code, "gym", entry)]) == [Verdict("crash")]
    assert not Path(path).exists()


def test_a_worker_sees_nothing_of_its_surroundings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for module in ("argparse", "sympy", "sitecustomize", "math_verify", "json"):
        (tmp_path / f"{module}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    with Verifier(workers=1) as verifier:
        assert verifier.check([Claim("\\boxed{1}", "1")]) == [Verdict("right", "1")]
        pid = verifier._workers[0].process.pid
        environment = Path(f"/proc/{pid}/environ")
        if environment.exists():
            assert environment.read_bytes().split(b"\0")[:-1] == [
                f"{k}={v}".encode() for k, v in verifiers.ENVIRONMENT.items()
            ]
            limits = Path(f"/proc/{pid}/limits").read_text()
            assert re.search(r"Max file size\s+0\s", limits)
        assert os.getpgid(pid) == pid != os.getpgid(0)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "reply",
    [
        b"",
        b"right",
        b"{",
        b"[" * 2000,
        b"[]\n",
        b"null\n",
        b'{"verdict": "right"}\n',
        b'{"verdict": "right", "token": "another"}\n',
        b'{"verdict": "right", "token": null}\n',
        b'{"token": "token", "verdict": "right"}',
        b'{"token": "token"}\n',
        b'{"token": "token", "verdict": "marvellous"}\n',
        b'{"token": "token", "verdict": ["right"]}\n',
        b'{"token": "token", "verdict": "right", "answer": 3}\n',
        b"\xff\xfe\n",
    ],
)
def test_a_reply_that_is_no_verdict_is_a_crash(reply: bytes) -> None:
    assert verifiers._verdict(verifiers._parse_reply(reply, "token")) == Verdict("crash")


def test_a_genuine_reply_is_read() -> None:
    reply = b'{"token": "token", "verdict": "right", "answer": "3"}\n'
    assert verifiers._verdict(verifiers._parse_reply(reply, "token")) == Verdict("right", "3")


def test_processes_that_a_worker_started_are_killed_with_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    note = tmp_path / "pid"
    start = f"import subprocess; open({str(note)!r}, 'w').write(str(subprocess.Popen(['sleep', '600']).pid))\n"
    monkeypatch.setattr(verifiers, "_WORKER_CODE", start + verifiers._WORKER_CODE)
    with Verifier(workers=1) as verifier:
        verifier.check([Claim("\\boxed{1}", "1")])
        child = int(note.read_text())
        os.kill(child, 0)
    deadline = time.monotonic() + 10
    while Path(f"/proc/{child}").exists() and "Z" not in Path(f"/proc/{child}/stat").read_text().split()[2]:
        assert time.monotonic() < deadline
        time.sleep(0.05)


# --- bad input --------------------------------------------------------------------------------------------


def test_an_unknown_verifier_is_named() -> None:
    with pytest.raises(UserError, match="'sympy': choose from math, exact, gym"):
        verifiers.check_installed("sympy")


# --- real data --------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_every_published_answer_is_right_for_itself(shared_data: Path) -> None:
    pandas = pytest.importorskip("pandas")
    table = pandas.read_parquet(shared_data / "policy_eval" / "math_benchmarks.parquet")
    golds = [row["ground_truth"] for row in table["reward_model"]]
    with Verifier(workers=2, limit=10.0) as verifier:
        verdicts = verifier.check([Claim(f"Therefore \\boxed{{{gold}}}.", gold) for gold in golds])
    assert len(golds) == 1620
    assert {v.verdict for v in verdicts} == {"right"}
