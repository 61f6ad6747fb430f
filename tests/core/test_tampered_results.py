"""Results that somebody altered: each ends in one line that names the file and the field, and the rest is reported."""

from __future__ import annotations

import gzip
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from report_runs import completions, scores_of, task_scores, traces, write, write_task
from rl_runs import lines as step_lines
from rl_runs import write_training
from typer.testing import CliRunner

from prmbench.cli import app
from prmbench.core import result_files
from prmbench.core.result_files import metrics_path, scores_path, sha256
from prmbench.report.load import load
from prmbench.tasks import problem_groups

Json = Any
NAN, INFINITY = float("nan"), float("inf")
LONG = "x" * 10_000_000
FEW: dict[str, Any] = {"replicates": 3}

# --- honest runs, and ways to alter one --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run of each kind of score and task, by a short name; `other` is the one that is never altered."""
    root = tmp_path_factory.mktemp("honest")
    items = traces(4, ("gsm8k", "math"))
    drawn = [replace(t, values=(), tokens=(7,)) for t in task_scores(completions(3, 2))]
    drawn[-1] = replace(drawn[-1], outcome=None, unscored="crash")  # which has a length, and no verdict
    steps = {"prob": {}, "logratio": {"beta": 1.0, "backend": "implicit"}, "verdict": {"backend": "critic"}}
    found = {
        kind: write(root, scores_of(items, kind), folder=kind, run_id=f"run-{kind}", kind=kind, **facts, **FEW)
        for kind, facts in steps.items()
    }
    found["other"] = write(root, scores_of(items, seed=9), folder="other", run_id="run-other", model="other", **FEW)
    found["best_of_n"] = write_task(root, "best_of_n", task_scores(completions(2, 2)), run_id="run-bon", **FEW)
    found["policy"] = write_task(root, "policy", drawn, run_id="run-policy", **FEW)
    watched = step_lines(2, entropy=0.5)
    found["distrl"] = write_training(root, "grpo", [0.1, 0.2], monitors=watched, run_id="run-distrl", **FEW)
    return found


def copied(path: Path, folder: Path) -> Path:
    """The pair (with its metrics, if it has some) in another folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for one in (path, scores_path(path), metrics_path(path)):
        if one.exists():
            shutil.copy(one, folder)
    return folder / path.name


def edit(path: Path, change: Callable[[Json], None]) -> None:
    told = json.loads(path.read_text())
    change(told)
    path.write_text(json.dumps(told))


def edit_lines(path: Path, change: Callable[[list[Json]], None]) -> None:
    """Changes lines of the scores and signs them anew, as somebody would who knows how."""
    found = [json.loads(line) for line in gzip.decompress(scores_path(path).read_bytes()).splitlines()]
    change(found)
    sign(path, gzip.compress("".join(f"{json.dumps(line)}\n" for line in found).encode()))


def sign(path: Path, packed: bytes) -> None:
    scores_path(path).write_bytes(packed)
    edit(path, lambda told: told["manifest"].update(scores_sha256=sha256(packed)))


def put(values: Json, where: str, value: Json) -> None:
    """`a.0.b` = value; DROP takes the key away."""
    *path, last = where.split(".")
    for key in path:
        values = values[int(key)] if isinstance(values, list) else values[key]
    if value is DROP:
        del values[last]
    else:
        values[int(last) if isinstance(values, list) else last] = value


class _Drop:
    def __repr__(self) -> str:
        return "DROP"


DROP = _Drop()


# --- one field at a time -----------------------------------------------------------------------------------------

MANIFEST: list[tuple[str, str, Json]] = [
    *(("prob", "n", value) for value in (-1, 0, 7, "8", 8.0, True, None, NAN, 10**30, DROP)),
    *(("prob", "run_id", value) for value in ("", "../up", "a/b", "a\\b", "a\x00b", "x" * 201, 3, DROP)),
    *(("prob", "model", value) for value in ("", "  ", LONG, 7, None, "\x1b[2Jx", "\u202egnp.exe", DROP)),
    *(("prob", "subsets", value) for value in ([], "gsm8k", ["gsm8k"], ["gsm8k", "gsm8k"], ["gsm8k", "../x"], [1, 2])),
    *(("prob", "kind", value) for value in ("vibes", "outcome", None, DROP)),
    *(("prob", "task", value) for value in ("vibes", "policy", "distrl", ["steps"])),
    *(("prob", "boundary", value) for value in ("fuzzy", 0)),
    *(("prob", "benchmark", value) for value in ("", "x" * 300, {})),
    *(("prob", "seed", value) for value in ("0", 1.5, 10**40)),
    *(("prob", "replicates", value) for value in (-1, 10**9, "3")),
    *(("prob", "schema_version", value) for value in (0, 99, "1", -1, None)),
    *(("prob", "tokens", value) for value in (-1, None, 1.5, 2**60)),
    *(("prob", "seconds", value) for value in (-1.0, NAN, INFINITY, "long")),
    *(("prob", "cost", value) for value in (-0.1, NAN, [1])),
    *(("prob", "native", value) for value in (NAN, INFINITY, 1e300, "0.5")),
    *(("prob", "config", value) for value in (None, [], {"x": LONG}, {"a": [[NAN]]}, {"a": 10**400}, {LONG: 1})),
    *(("prob", "packages", value) for value in ({"python": 3}, ["python"], {"python": LONG})),
    *(("prob", "trained_on", value) for value in ("math", [1], ["x"] * 2000)),
    *(("prob", "request_changes", value) for value in (["\x1b[2J"], "temperature left out", [1], ["x"] * 2000)),
    *(("prob", "extra_protocols", value) for value in (["nonsense"], ["vote/native"], ["as_is/calibrated:"], [7])),
    *(("prob", "calibrate_on", value) for value in ("a@b", "", 1)),
    *(("prob", "commit", value) for value in (7, LONG)),
    *(("prob", "dirty", value) for value in ("no", 0)),
    *(("prob", "series", value) for value in (["more"], ["a", "a"], ["a[b]"])),
    *(("logratio", "beta", value) for value in (0, -1.0, NAN, "ten")),
    *(("policy", "config.temperature", value) for value in ("hot", -1, NAN, DROP)),
    *(("policy", "config.group_size", value) for value in (None, 10**400, True)),
    *(("distrl", "config.validated_at", value) for value in ([], [5, 0], [0, 0], "0", [0, 5, 10], [0.0, 5.0], [-5, 0])),
    *(("distrl", "config.samples", value) for value in (0, -1, "8", None)),
]
ROWS: list[tuple[str, str, Json]] = [
    *(("prob", "0.value", value) for value in (0.999, 1e300, NAN, INFINITY, "high", True, None, [1])),
    *(("prob", "0.lo", value) for value in (NAN, None, 7.0, "low")),
    *(("prob", "0.hi", value) for value in (None, -7.0)),
    *(("prob", "0.n", value) for value in (-1, 99, None, 1.0, 3)),
    *(("prob", "0.unscored", value) for value in (-1, 99, "0", 1)),
    *(("prob", "0.subset", value) for value in ("", "elsewhere", 3, LONG, DROP)),
    *(("prob", "0.protocol", value) for value in ("", "as_is/best", "nonsense", "as_is/oracle\n", "<script>")),
    *(("prob", "0.metric", value) for value in ("", "f2", LONG)),
    *(("prob", "0.note", value) for value in (LONG, None, "a word of praise", "\x1b[1m")),
    *(("best_of_n", "0.value", value) for value in (0.987654, -3)),
    *(("policy", "0.value", value) for value in (0.987654,)),
    *(("distrl", "0.value", value) for value in (0.987654,)),
]
LINES: list[tuple[str, str, Json]] = [
    *(("prob", "0.id", value) for value in ("", 3, None, LONG, "x" * 20_001, "gsm8k-1", DROP)),
    *(("prob", "0.subset", value) for value in ("elsewhere", 3, None, DROP)),
    *(("prob", "0.label", value) for value in (None, -2, 4, 99, 0.0, True, "0", 10**400)),
    *(("prob", "0.steps", value) for value in (0, -1, 3, 10**9, "4", 4.0)),
    *(("prob", "0.outcome", value) for value in (2, -1, 0.5, "1", True)),
    *(("prob", "0.cluster", value) for value in (None, 3, LONG)),
    *(("prob", "0.values", value) for value in ([], [0.5], [0.5] * 5, ["a"] * 4, None, "abcd", {}, [[0.5]] * 4)),
    *(("prob", "0.values", [0.5, 0.5, 0.5, value]) for value in (NAN, INFINITY, -0.1, 1.5, 10**400, None, True)),
    *(("prob", "0.also", value) for value in ({"x": [1.0]}, {"x": [NAN] * 4}, [], {"x": 1}, None)),
    *(("prob", "0.unscored", value) for value in ("made up", None, 0, LONG)),
    *(("prob", "0.finish", value) for value in ("maybe", 3)),
    *(("prob", "0.answer", value) for value in (3, LONG)),
    *(("prob", "0.step_labels", value) for value in ([1.0], [0, 0, 0, 2], [NAN] * 4, ["1"] * 4)),
    *(("logratio", "0.tokens", value) for value in ([], [0, 1, 1, 1], [1, -1, 1, 1], [1] * 5, [1.5] * 4, None)),
    *(("logratio", "0.values", [1.0, 1.0, 1.0, value]) for value in (NAN, 1e300)),
    *(("verdict", "0.verdicts", value) for value in ([], [4], [-2], ["0"], [True], [0.0], [10**400], None)),
    *(("policy", "0.outcome", value) for value in (None, 2)),
    *(("policy", "0.tokens", value) for value in ([-1], ["9"], [10**400])),
    *(("policy", "0.values", value) for value in ([0.5],)),
    *(("best_of_n", "0.label", value) for value in (3, -2)),
    *(("distrl", "0.values", value) for value in ([], [0.5], [0.5, 1.2], [0.5, NAN])),
    *(("distrl", "0.also", value) for value in ({"truncated": [0.5]}, {"truncated": [0.5, 2.0]})),
]
PARTS = {"manifest": MANIFEST, "rows": ROWS, "line": LINES}
CASES = [(part, *case) for part, cases in PARTS.items() for case in cases]


def case_name(value: Json) -> str:
    text = value if isinstance(value, str) else repr(value)
    return ascii(text[:24]).strip("'")


@pytest.mark.parametrize(("part", "run", "field", "value"), CASES, ids=case_name)
def test_an_altered_field(
    part: str, run: str, field: str, value: Json, honest: dict[str, Path], tmp_path: Path
) -> None:
    path = copied(honest[run], tmp_path)
    if part == "line":
        edit_lines(path, lambda found: put(found, field, value))
    else:
        edit(path, lambda told: put(told[part], field, value))
    line = left_out(path, honest["other"])
    named = field.rpartition(".")[2]
    if part == "rows" and "recomputed" not in line:  # a row that cannot be derived is named by all of its key
        named = f"rows.{field}" if "rows." in line else "cannot be derived"
    assert INSTEAD.get((field, repr(value)), named) in line


INSTEAD = {
    ("n", "7"): "rows.2.n is 8, not from 0 to 7",
    ("kind", "'outcome'"): "manifest.task",
    ("schema_version", "0"): "schema version 0",
    ("schema_version", "99"): "schema version 99: this prmbench reads 1 to 1; upgrade",
    ("schema_version", "-1"): "schema version -1",
    ("extra_protocols", "['nonsense']"): "protocol 'nonsense'",
    ("extra_protocols", "['vote/native']"): "protocol vote/native",
    ("extra_protocols", "['as_is/calibrated:']"): "protocol 'as_is/calibrated:'",
    ("series", "['more']"): "also.more is missing",
    ("config.validated_at", "[0, 5, 10]"): "each of 3 validations",
    ("0.lo", "None"): "rows.0.lo",
    ("0.hi", "None"): "rows.0.lo",
    ("0.hi", "-7.0"): "above hi",
    ("0.value", "None"): "beside the value None",
    ("0.id", "'gsm8k-1'"): "1 ids twice",
    ("0.subset", "'elsewhere'"): "elsewhere",
    ("0.steps", "3"): "for each of 3 steps",
    **{("0." + name, repr(LONG)): "a line of it has more than" for name in ("id", "cluster", "unscored", "answer")},
}
"""What a line names where that is not the field itself."""


def left_out(path: Path, other: Path) -> str:
    """The one line that is said of the file; the honest run beside it is listed."""
    kept = copied(other, path.parent / "beside")
    loaded = load(path.parent)
    assert [run.path for run in loaded.listed] == [kept]
    (line,) = loaded.broken
    assert str(path).removesuffix(".json") in line
    assert "\n" not in line
    assert len(line) < 1500
    assert line.isprintable()
    return line


# --- the files themselves ----------------------------------------------------------------------------------------


def gone(path: Path) -> None:
    path.unlink()


def a_link(path: Path) -> None:
    target = path.with_name("elsewhere")
    path.rename(target)
    path.symlink_to(target)


def a_loop(path: Path) -> None:
    path.unlink()
    path.symlink_to(path)


def a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def nothing(path: Path) -> None:
    path.write_bytes(b"")


def noise(path: Path) -> None:
    path.write_bytes(b"\xff\xfe\x00" * 100)


def deep(path: Path) -> None:
    path.write_text('{"manifest": ' + "[" * 100_000)


def a_list(path: Path) -> None:
    path.write_text('[{"manifest": {}, "rows": []}]')


def surrogate(path: Path) -> None:
    path.write_text(path.read_text().replace("org/model", "\\ud800"))


def digits(path: Path) -> None:
    path.write_text(path.read_text().replace('"seed": 0', f'"seed": {"1" * 5000}'))


def huge(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(2**40)  # takes no room on disk


def repacked(text: bytes) -> Callable[[Path], None]:
    def damage(scores: Path) -> None:
        path = scores.with_name(scores.name.removesuffix(result_files.SCORES_SUFFIX) + ".json")
        sign(path, gzip.compress(text))

    return damage


RESULTS = [gone, a_link, a_loop, a_pipe, a_folder, cut, nothing, noise, deep, a_list, surrogate, digits, huge]
SCORES = [gone, a_link, a_loop, a_pipe, a_folder, cut, nothing, noise, huge]
PACKED = {
    "no line": b"",
    "one line without an end": b"{",
    "not JSON": b"hello\n" * 8,
    "null": b"null\n" * 8,
    "a list": b"[]\n" * 8,
    "deep": b"[" * 100_000,
    "bytes": b"\xff\n" * 8,
    "a bomb of one line": b" " * 2**24,
    "a bomb of many": b"{}\n" * 2**20,
    "a bomb of blank lines": b"\n" * 2**22,
}
DAMAGES: list[tuple[str, Callable[[Path], None]]] = [
    *((f"result {damage.__name__}", damage) for damage in RESULTS),
    *((f"scores {damage.__name__}", damage) for damage in SCORES),
    *((f"scores of {name}", repacked(text)) for name, text in PACKED.items()),
]


@pytest.mark.parametrize(("name", "damage"), DAMAGES, ids=[name for name, _ in DAMAGES])
def test_a_damaged_file(name: str, damage: Callable[[Path], None], honest: dict[str, Path], tmp_path: Path) -> None:
    path = copied(honest["prob"], tmp_path)
    damage(scores_path(path) if name.startswith("scores") else path)
    left_out(path, honest["other"])
    for command in (["compare", str(tmp_path / "beside" / "run-other.json"), str(path)], ["card", str(path)]):
        done = CliRunner().invoke(app, command)
        assert done.exit_code == 2, done.output
        (line,) = done.stderr.splitlines()
        assert line.startswith("error: ")
        assert "run-prob" in line
        assert done.stdout == ""


def test_a_file_that_unpacks_to_too_much_is_refused_before_it_is_held(
    honest: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = copied(honest["prob"], tmp_path)
    monkeypatch.setattr(result_files, "MAX_UNPACKED_BYTES", 1500)
    assert "(unpacked, it has more than 1,500 bytes)" in left_out_alone(path)


def test_too_many_completions_of_one_problem(
    honest: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is said of N of them takes longer than anybody waits."""
    monkeypatch.setattr(problem_groups, "MOST_COMPLETIONS", 1)
    path = copied(honest["best_of_n"], tmp_path)
    assert "2 completions of one problem, more than 1" in left_out_alone(path)


def left_out_alone(path: Path) -> str:
    loaded = load(path.parent)
    assert loaded.listed == ()
    (line,) = loaded.broken
    return line


METRICS: list[tuple[str, Json]] = [
    *(("step", value) for value in (None, -1, "1", 1.5, True, 10**400, DROP)),
    *(("alarms", value) for value in ("entropy", 7, [7], [["a"]], {"a": 1})),
    *(("validation", value) for value in (7, "a", [1])),
    *(("entropy", value) for value in (NAN, INFINITY, 10**400, "x" * 2000, [NAN], {"a": {"b": NAN}}, "\x1b[1m")),
]


@pytest.mark.parametrize(("field", "value"), METRICS, ids=case_name)
def test_altered_metrics_of_training(field: str, value: Json, honest: dict[str, Path], tmp_path: Path) -> None:
    path = copied(honest["distrl"], tmp_path)
    found = [json.loads(line) for line in gzip.decompress(metrics_path(path).read_bytes()).splitlines()]
    put(found[1], field, value)
    sign_metrics(path, gzip.compress("".join(f"{json.dumps(line)}\n" for line in found).encode()))
    line = left_out(path, honest["other"])
    assert "run-distrl.metrics.jsonl.gz, line 2: not a record of training steps" in line
    assert field in line


@pytest.mark.parametrize("damage", ["a link", "text", "a list", "a bomb"])
def test_damaged_metrics_of_training(damage: str, honest: dict[str, Path], tmp_path: Path) -> None:
    path = copied(honest["distrl"], tmp_path)
    if damage == "a link":
        a_link(metrics_path(path))
    else:
        sign_metrics(path, {"text": b"x", "a list": gzip.compress(b"[]")}.get(damage, gzip.compress(b" " * 2**24)))
    assert "run-distrl.metrics.jsonl.gz" in left_out(path, honest["other"])


def sign_metrics(path: Path, packed: bytes) -> None:
    metrics_path(path).write_bytes(packed)
    edit(path, lambda told: told["manifest"]["config"].update(metrics_sha256=sha256(packed)))


def test_a_message_stays_a_line_whatever_name_it_holds(honest: dict[str, Path], tmp_path: Path) -> None:
    path = copied(honest["prob"], tmp_path)
    edit(path, lambda told: told["manifest"].update(benchmark="one\nerror: two\ttabs"))
    done = CliRunner().invoke(app, ["compare", str(honest["other"]), str(path)])
    assert (done.exit_code, len(done.stderr.splitlines())) == (2, 1)
    assert "(mini and one error: two tabs)" in done.stderr


# --- several files ------------------------------------------------------------------------------------------------


def test_two_runs_of_one_name_are_both_left_out(honest: dict[str, Path], tmp_path: Path) -> None:
    """Nobody can say which of them is the real one."""
    paths = [copied(honest[name], tmp_path / name) for name in ("prob", "logratio")]
    for path in paths:
        edit(path, lambda told: told["manifest"].update(run_id="same"))
    copied(honest["other"], tmp_path)
    loaded = load(tmp_path)
    assert [run.result.manifest.run_id for run in loaded.listed] == ["run-other"]
    (line,) = loaded.broken
    assert all(str(path) in line for path in paths)


def test_runs_whose_names_differ_in_case_alone_are_two(honest: dict[str, Path], tmp_path: Path) -> None:
    for name, folder in (("run", "one"), ("RUN", "two")):
        path = copied(honest["prob"], tmp_path / folder)
        edit(path, lambda told, name=name: told["manifest"].update(run_id=name))  # type: ignore[misc]
    assert sorted(run.result.manifest.run_id for run in load(tmp_path).listed) == ["RUN", "run"]


def test_scores_without_a_result_and_records_that_are_none(honest: dict[str, Path], tmp_path: Path) -> None:
    path = copied(honest["prob"], tmp_path)
    path.unlink()
    (tmp_path / "tuning.json").write_text('{"settings": []}')
    (tmp_path / "broken.json").write_text("{")
    assert left_out_alone(path).endswith("run-prob.scores.jsonl.gz: its result run-prob.json is missing")


@pytest.fixture(scope="module")
def reported(honest: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, Any]:
    """A folder of an honest run, one from a dirty tree and three bad files; what `report` and `--check` say of it."""
    root = tmp_path_factory.mktemp("reported")
    copied(honest["other"], root / "in")
    dirty = copied(honest["verdict"], root / "in")
    edit(dirty, lambda told: told["manifest"].update(dirty=True))
    praised = copied(honest["prob"], root / "in")
    edit(praised, lambda told: told["rows"][0].update(value=0.98765, lo=0.98, hi=0.99))
    nothing(copied(honest["logratio"], root / "in"))
    noise(scores_path(copied(honest["policy"], root / "in")))
    (root / "leaderboards" / "results").mkdir(parents=True)  # an official one, which refuses dirty runs
    command = ["report", "--results", str(root / "in"), "--out", str(root / "leaderboards")]
    return root, CliRunner().invoke(app, command), CliRunner().invoke(app, [*command, "--check"])


def test_the_rest_of_the_report_is_made(reported: tuple[Path, Any, Any]) -> None:
    root, done, _ = reported
    assert done.exit_code == 1, done.output
    *bad, note, summary = done.stderr.splitlines()
    assert summary.startswith("report: 5 runs in ")
    assert [line.partition(": ")[0] for line in bad] == ["left out"] * 3
    for name in ("run-prob", "run-logratio", "run-policy"):
        assert sum(name in line for line in bad) == 1
    assert note == "note: 4 of 5 runs are not listed: 3 cannot be trusted, 1 scored from a dirty tree"
    assert str(root / "leaderboards" / "mini.md") in done.stdout.splitlines()
    table = (root / "leaderboards" / "mini.md").read_text()
    assert "| other |" in table
    assert "98.8 [" not in table  # nor a number that does not follow from its scores
    assert "98.8 [" not in (root / "leaderboards" / "report.html").read_text()


def test_a_check_names_everything(reported: tuple[Path, Any, Any]) -> None:
    _, _, done = reported
    assert done.exit_code == 1
    assert len(done.stdout.splitlines()) == 4
    assert "would change" not in done.stdout


def test_a_report_without_a_run_says_why(honest: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "leaderboards" / "results").mkdir(parents=True)
    command = ["report", "--results", str(tmp_path), "--out", str(tmp_path / "leaderboards")]
    done = CliRunner().invoke(app, command)
    assert (done.exit_code, done.stderr) == (0, "note: there is no result to report\n")
    for name, facts in (("prob", {"dirty": True}), ("verdict", {"commit": None}), ("logratio", {"commit": None})):
        edit(copied(honest[name], tmp_path), lambda told, facts=facts: told["manifest"].update(facts))  # type: ignore[misc]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0
    reasons = "2 no commit recorded, 1 scored from a dirty tree"
    assert done.stderr.splitlines()[0] == f"note: none of the runs is listed: {reasons}"


@pytest.mark.parametrize("run", ["prob", "best_of_n", "policy", "distrl"])
def test_recomputed_rows_replace_those_that_do_not_follow(run: str, honest: dict[str, Path], tmp_path: Path) -> None:
    """An interval is made of replicates, so nothing less than `--recompute` can tell that it was altered."""
    path = copied(honest[run], tmp_path)
    edit(path, lambda told: told["rows"][0].update(lo=-0.5))
    assert load(tmp_path).problems == ()
    loaded = load(tmp_path, recompute=True)
    (line,) = loaded.differing
    assert ": lo -0.5 is recomputed as " in line
    assert [row.lo for row in loaded.listed[0].result.rows if row.lo == -0.5] == []


@pytest.mark.parametrize(("value", "listed"), [(-0.1, False), (INFINITY, False), (0.001, True)])
def test_what_only_replicates_can_tell(value: float, listed: bool, honest: dict[str, Path], tmp_path: Path) -> None:
    """A detectable difference that may be is taken by the report, but a card is no place for it."""
    path = copied(honest["prob"], tmp_path)
    told = json.loads(path.read_text())
    row = next(row for row in told["rows"] if row["metric"] == "mdd")
    row["value"] = value
    path.write_text(json.dumps(told))
    assert bool(load(tmp_path).listed) == listed
    done = CliRunner().invoke(app, ["card", str(path)])
    assert done.exit_code == 2
    assert ("mdd: value 0.001 is recomputed as" in done.stderr) == listed


# --- anything at all ----------------------------------------------------------------------------------------------

ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=20),
    st.sampled_from([10**400, -(10**19), 1e300, 5e-324, "", "a/b", "gsm8k", "avg[gsm8k,math]", "prob", "vote", [], {}]),
    st.lists(st.one_of(st.floats(), st.integers(), st.none()), max_size=4),
    st.dictionaries(st.text(max_size=5), st.integers(), max_size=3),
)


def places(told: Json, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Paths of all values."""
    pairs = told.items() if isinstance(told, dict) else enumerate(told) if isinstance(told, list) else ()
    for key, value in pairs:
        yield (*path, key)
        yield from places(value, (*path, key))


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_no_change_of_any_value_is_more_than_a_line(data: st.DataObject, honest: dict[str, Path]) -> None:
    """Values of all types anywhere in a pair: it is left out with a line, or is as sound as it was; never a crash."""
    run = data.draw(st.sampled_from(sorted(set(honest) - {"other"})))
    folder = honest[run].parents[1] / "fuzzed"
    shutil.rmtree(folder, ignore_errors=True)
    path = copied(honest[run], folder)

    def change(told: Json) -> None:
        *above, last = data.draw(st.sampled_from(list(places(told))))
        for key in above:
            told = told[key]
        if data.draw(st.booleans()) or isinstance(told, list):
            told[last] = data.draw(ODD)
        else:
            del told[last]

    if data.draw(st.booleans()):
        edit(path, change)
    else:
        edit_lines(path, change)
    loaded = load(folder)
    assert len(loaded.broken) + len(loaded.listed) + len(loaded.refused) == 1
    assert not any("\n" in line for line in loaded.broken)
