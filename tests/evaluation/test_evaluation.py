"""Runs: killed and resumed, split over processes, judged again, refused. Scores files must agree byte for byte."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from conftest import ROWS, save_model
from forked import Child, prmbench
from paths import ROOT, SUPPORT
from small_disk import run_with_small_disk

from prmbench import data, evaluation, tasks
from prmbench.backends import Facts, load_backend
from prmbench.backends.plugin_source import source_hash
from prmbench.config import EvalConfig, ModelConfig, ScoreConfig
from prmbench.core import batch_jobs, provenance, result_files
from prmbench.core.records import SCORING_VERSION, ScoredTrace, StepScores, Trace, UserError
from prmbench.core.result_files import Run
from prmbench.evaluation import scoring

PAUSE = "TEST_EVALUATE_PAUSE"
BUDGET = 160
"""Tokens a batch: here some batches hold one trace and some hold several, padded."""


class PowerCutError(Exception):
    """Ends a run as no handler expects."""


class Watched:
    """EndoRM that counts its batches, can be slow, and can be cut off. Its numbers come from a real forward pass."""

    batches = 0
    cut_after: int | None = None

    def __init__(self, config: ModelConfig) -> None:
        self.inner = load_backend(replace(config, backend="endo"))
        self.facts = replace(self.inner.facts, backend="")
        self.cost = self.inner.cost
        Watched.batches = 0

    def score(self, traces: Sequence[Trace]) -> Iterator[StepScores]:
        if Watched.batches == Watched.cut_after:
            raise PowerCutError
        Watched.batches += 1
        time.sleep(float(os.environ.get(PAUSE, "0")))
        yield from self.inner.score(traces)


@pytest.fixture(autouse=True)
def _no_power_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Watched, "cut_after", None)


@pytest.fixture
def config(policy: Path, benchmark_folder: Path, tmp_path: Path) -> EvalConfig:
    own = {"backend": "test_evaluation:Watched", "batch_tokens": BUDGET}
    return EvalConfig(model=str(policy), data=benchmark_folder, out=tmp_path / "out", **own)  # type: ignore[arg-type]


def run(config: EvalConfig) -> Run:
    result = evaluation.evaluate(config)
    assert result is not None
    return result


def packed(run: Run) -> bytes:
    return result_files.scores_path(run.path).read_bytes()


def command(config: EvalConfig) -> list[str]:
    """The same run on the command line."""
    flags = {"model": config.model, "data": config.data, "out": config.out, "backend": config.backend}
    return ["eval", "--quiet", f"--batch-tokens={config.batch_tokens}", *(f"--{k}={v}" for k, v in flags.items())]


def journal_lines(out: Path) -> int:
    return sum(path.read_bytes().count(b"\n") for path in out.glob("*.journal/*.jsonl"))


def killed(config: EvalConfig, number: signal.Signals, lines: int) -> Child:
    """Starts the run as a process of its own and sends it a signal once its journal has `lines` lines."""
    with Child(prmbench, *command(config), **{PAUSE: "0.4"}) as process:
        process.wait_for(lambda: journal_lines(config.out) >= lines)
        process.send(number)
        process.wait(60)
    return process


def cut(config: EvalConfig, batches: int, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Ends a run in this process after some batches; returns its journal's only file."""
    monkeypatch.setattr(Watched, "cut_after", batches)
    with pytest.raises(PowerCutError):
        evaluation.evaluate(config)
    monkeypatch.setattr(Watched, "cut_after", None)
    (path,) = config.out.glob("*.journal/*.jsonl")
    assert path.read_text().count("\n") == batches
    return path


# --- resuming --------------------------------------------------------------------------------------------------


def test_resume_after_kill_9_gives_the_same_bytes(config: EvalConfig, tmp_path: Path) -> None:
    uninterrupted = run(replace(config, out=tmp_path / "whole"))
    total = Watched.batches
    assert total > 6
    process = killed(config, signal.SIGKILL, 3)
    assert process.poll() == -signal.SIGKILL
    assert list(config.out.glob("*.json")) == list(config.out.glob("*.gz")) == []
    journalled = journal_lines(config.out)
    resumed = run(config)
    assert Watched.batches == total - journalled < total
    assert packed(resumed) == packed(uninterrupted)
    assert resumed.result.rows == uninterrupted.result.rows
    assert resumed.path.name == uninterrupted.path.name
    assert sorted(p.name for p in config.out.iterdir()) == [
        f"{uninterrupted.path.stem}.json",
        f"{uninterrupted.path.stem}.scores.jsonl.gz",
    ]


def test_resume_after_sigterm(config: EvalConfig, tmp_path: Path) -> None:
    process = killed(config, signal.SIGTERM, 2)
    assert process.poll() == 143
    assert "the same command goes on" in process.stderr.splitlines()[-1]  # before it there may be progress
    assert "Traceback" not in process.stderr
    assert process.stdout == ""
    assert packed(run(config)) == packed(run(replace(config, out=tmp_path / "whole")))


@pytest.mark.parametrize("left", [0, 1, 40, -1])
def test_resume_after_a_torn_line(
    config: EvalConfig, tmp_path: Path, left: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last line breaks off after `left` characters (-1: only its newline is missing); its batch is scored again."""
    journal = cut(config, 3, monkeypatch)
    first, second, third = journal.read_text().splitlines()
    journal.write_text(f"{first}\n{second}\n{third[:left] if left >= 0 else third}")
    resumed = run(config)
    usable_lines = 3 if left == -1 else 2
    batches = Watched.batches
    uninterrupted = run(replace(config, out=tmp_path / "whole"))
    assert packed(resumed) == packed(uninterrupted)
    assert batches == Watched.batches - usable_lines
    assert not list(config.out.glob("*.journal"))


def test_a_torn_line_does_not_spoil_the_next_one(tmp_path: Path) -> None:
    """Killed, resumed and killed again: what the second sitting wrote must still be read."""
    journal = result_files.Journal(tmp_path / "x.journal", {"run_id": "x"})
    journal.append(0, {"batch": 0, "scores": []})
    path = tmp_path / "x.journal" / "0.jsonl"
    path.write_text(path.read_text() + '{"batch": 1, "sco')
    journal.append(0, {"batch": 2, "scores": []})
    assert sorted(result_files.Journal(tmp_path / "x.journal", {"run_id": "x"}).completed_batches()) == [0, 2]


def test_resume_with_another_number_of_processes(
    config: EvalConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batches count, not who scored them: here process 1 of an earlier sitting left a file of its own."""
    journal = cut(config, 5, monkeypatch)
    lines = journal.read_text().splitlines(keepends=True)
    journal.write_text("".join(lines[::2]))
    journal.with_name("1.jsonl").write_text("".join(lines[1::2]))
    resumed = run(config)
    batches = Watched.batches
    assert packed(resumed) == packed(run(replace(config, out=tmp_path / "whole")))
    assert batches == Watched.batches - 5


def test_a_run_begun_by_another_scoring_version_is_refused(config: EvalConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    head = cut(config, 2, monkeypatch).with_name("run.json")
    identity = json.loads(head.read_text())
    assert identity["scoring_version"] == SCORING_VERSION
    head.write_text(json.dumps({**identity, "scoring_version": SCORING_VERSION - 1}))
    with pytest.raises(UserError, match="begun with another scoring_version"):
        evaluation.evaluate(config)
    assert journal_lines(config.out) == 2


def test_a_run_finished_by_another_scoring_version_is_refused(config: EvalConfig) -> None:
    path = run(config).path
    result = json.loads(path.read_text())
    result["manifest"]["scoring_version"] -= 1
    path.write_text(json.dumps(result))
    with pytest.raises(UserError, match="another version of the code"):
        evaluation.evaluate(config)


def test_a_finished_run_is_judged_again_not_scored_again(config: EvalConfig) -> None:
    first = run(config)
    before = {path.name: path.read_bytes() for path in config.out.iterdir()}
    again = run(config)
    assert Watched.batches == 0
    assert (again.result, again.scores) == (first.result, first.scores)
    assert {path.name: path.read_bytes() for path in config.out.iterdir()} == before


def test_altered_scores_are_noticed(config: EvalConfig) -> None:
    source = result_files.scores_path(run(config).path)
    source.write_bytes(result_files.pack_scores([]))
    with pytest.raises(UserError, match="SHA-256"):
        evaluation.evaluate(config)
    source.unlink()
    with pytest.raises(UserError, match="needs its scores beside it"):
        evaluation.evaluate(config)


def test_two_processes_give_the_bytes_of_one(config: EvalConfig, tmp_path: Path) -> None:
    single_process = run(config)
    apart = replace(config, out=tmp_path / "apart")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--rdzv-backend=c10d"]
    path = os.pathsep.join(map(str, (ROOT, ROOT / "tests", SUPPORT, Path(__file__).parent)))
    process = subprocess.run(
        [*torchrun, "--rdzv-endpoint=localhost:0", "-m", "prmbench", *command(apart)],
        env={**os.environ, "PYTHONPATH": path, PAUSE: "0.1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    assert (apart.out / result_files.scores_path(single_process.path).name).read_bytes() == packed(single_process)
    two, one = tasks.read_run(apart.out / single_process.path.name).result, single_process.result
    assert two.rows == one.rows
    assert two.manifest.seconds < 0.1 * Watched.batches  # each process scored a share: the pauses overlapped
    assert sorted(p.name for p in apart.out.iterdir()) == sorted(p.name for p in config.out.iterdir())


# --- the batch plan ----------------------------------------------------------------------------------------------


class Sized:
    """Costs that the traces say themselves."""

    facts = Facts("value", "none")

    def cost(self, trace: Trace) -> int:
        return int(trace.prompt)

    def score(self, traces: Sequence[Trace]) -> Iterator[StepScores]:
        yield from (StepScores(t.id, (1.0,)) for t in traces)


def sized(*costs: int) -> list[Trace]:
    return [Trace(f"t{n}", str(cost), ("s",)) for n, cost in enumerate(costs)]


def test_the_plan_by_hand() -> None:
    """Budget 12, longest first: 20 | 6 6 | 5 4 | 3 3 1 | what costs nothing. (5, 4, 3 would be padded to 15.)"""
    plan = scoring.make_plan("r", Sized(), sized(3, 6, 0, 20, 5, 6, 4, 0, 1, 3), 12)
    assert plan.batches == ((3,), (1, 5), (4, 6), (0, 9, 8), (2, 7))
    assert plan.costs == (3, 6, 0, 20, 5, 6, 4, 0, 1, 3)
    assert plan.tokens == 48


def test_the_plan_depends_on_the_traces_not_on_their_order() -> None:
    traces = sized(*(n * 7919 % 23 for n in range(60)))
    for budget in (1, 30, None):
        plans = [
            scoring.make_plan("r", Sized(), order, budget)
            for order in (traces, traces[::-1], traces[30:] + traces[:30])
        ]
        orders = (traces, traces[::-1], traces[30:] + traces[:30])
        named = [
            [[order[i].id for i in batch] for batch in plan.batches] for plan, order in zip(plans, orders, strict=True)
        ]
        assert named[0] == named[1] == named[2]
        assert sorted(i for batch in plans[0].batches for i in batch) == list(range(60))


def test_scores_do_not_depend_on_the_batch_size(config: EvalConfig, tmp_path: Path) -> None:
    one, many = (run(replace(config, batch_tokens=n, out=tmp_path / str(n))) for n in (1, 4000))
    assert len(one.scores) == len(many.scores) == 24
    for a, b in zip(one.scores, many.scores, strict=True):
        assert (a.id, a.tokens) == (b.id, b.tokens)
        assert a.values == pytest.approx(b.values, rel=1e-5, abs=1e-4)


# --- run ids ---------------------------------------------------------------------------------------------------


def planned(config: EvalConfig, **changed: Any) -> str:
    return evaluation.dry_run(replace(config, dry_run=True, **changed)).run_id


def test_the_run_id_follows_what_moves_a_number(
    policy: Path, reference: Path, benchmark_folder: Path, tmp_path: Path
) -> None:
    own_files = {"ref_model": str(reference), "data": benchmark_folder, "out": tmp_path / "out"}
    config = EvalConfig(str(policy), backend="implicit", **own_files)  # type: ignore[arg-type]
    own = planned(config)
    assert own.startswith("policy-")
    other = save_model(tmp_path / "other" / "policy", 7)
    other_reference = save_model(tmp_path / "other" / "reference", 8)
    template = tmp_path / "own.jinja"
    template.write_text("{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}")
    moved: list[dict[str, Any]] = [
        {"model": str(other)},
        {"ref_model": str(other_reference)},
        {"backend": "endo", "ref_model": None},
        {"backend": "endo", "ref_model": None, "decay": 0.9},
        {"template": "plain"},
        {"template": str(template)},
        {"dtype": "bfloat16"},
        {"boundary": "release"},
        {"subset": ("math",)},
        {"limit": 3},
        {"revision": "v2"},
        {"batch_tokens": 64},
    ]
    ids = [planned(config, **change) for change in moved]
    assert len({own, *ids}) == 1 + len(moved)

    copied = tmp_path / "elsewhere"
    for folder in (policy, reference, benchmark_folder):
        shutil.copytree(folder, copied / folder.name)
    kept: list[dict[str, Any]] = [
        {"out": tmp_path / "another"},
        {"protocol": ("step_sum/fixed:1",)},
        {"seed": 1},
        {"calibrate_on": "math"},
        {"batch_tokens": 256},
        {"device": "cpu"},
        {"dtype": "float32"},
        {"subset": ("math", "gsm8k")},
        {"limit": 12},
        {"data": copied / benchmark_folder.name},
        {"model": str(copied / policy.name)},
        {"ref_model": str(copied / reference.name)},
    ]
    assert {planned(config, **change) for change in kept} == {own}
    assert not (tmp_path / "out").exists()

    row = json.loads((copied / benchmark_folder.name / "gsm8k.json").read_text())
    row[1]["label"] = 0
    (copied / benchmark_folder.name / "gsm8k.json").write_text(json.dumps(row))
    assert planned(config, data=copied / benchmark_folder.name) != own
    assert run(config).result.manifest.run_id == own


def test_the_manifest_says_where_numbers_come_from_and_names_no_machine(
    policy: Path, reference: Path, benchmark_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own.jinja").write_text("{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}")
    config = EvalConfig(
        str(policy),
        ref_model=str(reference),
        backend="implicit",
        template=str(tmp_path / "own.jinja"),
        data=benchmark_folder,
        out=tmp_path / "out",
    )
    facts = run(config).result.manifest
    text = "".join(path.read_text() for path in config.out.glob("*.json"))
    for path in (tmp_path, policy.parent, Path.cwd(), Path.home(), Path(sys.prefix)):
        assert str(path) not in text
    assert not [line for line in text.splitlines() if '"/' in line]
    assert (facts.model, facts.ref_model, facts.data_source) == ("policy", "reference", "bench")
    assert facts.config["template"] == "own.jinja"
    assert set(facts.config) == set(asdict(config))
    loaded = data.load("processbench", benchmark_folder)
    assert facts.tokens == sum(load_backend(config).cost(t) for t in loaded.traces)
    assert facts.seconds > 0
    assert facts.n == 24
    assert facts.packages["torch"]
    assert facts.weights
    assert facts.ref_weights != facts.weights
    assert (facts.dtype, facts.engine, facts.device) == ("float32", "hf", "cpu")
    monkeypatch.chdir(policy)
    assert run(replace(config, model=".")).result.manifest.run_id == facts.run_id


def test_sittings_add_up() -> None:
    now, dirty = provenance.code_state()

    def entry(process: int, seconds: float, commit: str | None = now, dirty: bool | None = dirty) -> dict[str, Any]:
        return {"process": process, "seconds": seconds, "commit": commit, "dirty": dirty, "memory_gib": seconds / 4}

    facts = batch_jobs.manifest_fields([entry(0, 1.0), entry(1, 2.5), entry(0, 2.0)])
    told = {"commit": now, "commits": (), "dirty": dirty, "memory_gib": 0.625}
    assert facts == {**told, "seconds": 3.0}  # processes work side by side
    facts = batch_jobs.manifest_fields([entry(0, 1.0, "older", True), entry(0, 1.0)])
    assert (facts["commit"], facts["commits"], facts["dirty"]) == (now, ("older", now), True)
    facts = batch_jobs.manifest_fields([entry(0, 1.0, None, None), entry(0, 1.0)])
    assert (facts["commit"], facts["dirty"]) == (None, None)  # one batch of unknown code, and the whole is


# --- protocols asked for ---------------------------------------------------------------------------------------


def test_a_protocol_of_the_users_own_is_kept(config: EvalConfig) -> None:
    key = "step_sum/fixed:-12.5"
    with_protocols = run(replace(config, protocol=(key, "logprob.step_mean/fixed:-6", "step_sum/oracle")))
    assert with_protocols.result.manifest.extra_protocols == ("logprob.step_mean/fixed:-6", key)
    read = tasks.read_run(with_protocols.path)
    assert tasks.judge(read.result.manifest, read.scores) == read.result.rows == with_protocols.result.rows
    rows = [r for r in read.result.rows if r.protocol == key]
    by_hand = {
        s.id: next((i for i, v in enumerate(s.values) if v < -12.5), -1) == s.label
        for s in read.scores
        if s.subset == "gsm8k"
    }
    wrong = [by_hand[s.id] for s in read.scores if s.subset == "gsm8k" and s.label != -1]
    (accuracy,) = [r.value for r in rows if (r.subset, r.metric) == ("gsm8k", "error_accuracy")]
    assert accuracy == pytest.approx(sum(wrong) / len(wrong), abs=1e-12)
    again = run(replace(config, protocol=("step_mean/fixed:0",)))
    assert set(again.result.manifest.extra_protocols) == {
        *with_protocols.result.manifest.extra_protocols,
        "step_mean/fixed:0",
    }
    assert Watched.batches == 0


@pytest.mark.parametrize(
    ("protocol", "says"),
    [
        ("as_is/oracle", "has logratio scores"),
        ("other.step_sum/oracle", "no series 'other'"),
        ("step_sum/oracle@release", "--boundary exact"),
        ("step_sum/native", "no label of its own"),
        ("step_sum", "expected"),
        ("step_sum/fixed", "needs its number"),
    ],
)
def test_a_protocol_that_does_not_fit_is_refused_before_the_scoring(
    config: EvalConfig, protocol: str, says: str
) -> None:
    with pytest.raises(UserError, match=says):
        evaluation.evaluate(replace(config, protocol=(protocol,)))
    assert Watched.batches == 0
    assert not list(config.out.glob("*.json*"))


# --- places that cannot be written -------------------------------------------------------------------------------


def test_two_processes_of_one_number_never_score_one_run(tmp_path: Path) -> None:
    journal = result_files.Journal(tmp_path / "r.journal", {"run_id": "r"})
    with journal.lock(0):
        with pytest.raises(UserError, match="another process is scoring"), journal.lock(0):
            pass
        with journal.lock(1):  # another rank of the same run
            pass
    with journal.lock(0):  # and when the first has ended
        pass


def test_paths_may_be_texts_in_python(benchmark_folder: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "runs")
    found = evaluation.evaluate(EvalConfig("random", data=str(benchmark_folder), out=out))  # type: ignore[arg-type]
    assert found is not None
    assert found.path.parent == Path(out)


def test_score_never_overwrites_what_it_reads(tmp_path: Path) -> None:
    mine = tmp_path / "mine.jsonl"
    mine.write_text('{"problem": "p", "steps": ["a"]}\n')
    with pytest.raises(UserError, match="is a file that is read"):
        evaluation.score(ScoreConfig("random", data=mine, out=mine))
    assert mine.read_text() == '{"problem": "p", "steps": ["a"]}\n'


def test_score_writes_the_name_of_the_model_where_there_is_one(tmp_path: Path) -> None:
    data, lines = tmp_path / "mine.jsonl", {}
    data.write_text(json.dumps({"problem": "1 + 1?", "steps": ["2"]}) + "\n")
    for name in (None, "my PRM"):
        path = evaluation.score(
            ScoreConfig(model="step-length", data=data, out=tmp_path / "s.jsonl", name=name, force=True)
        )
        assert path is not None
        lines[name] = json.loads(path.read_text())
    assert "model" not in lines[None]
    assert lines["my PRM"] == {**lines[None], "model": "my PRM"}


def test_an_edited_backend_is_scored_afresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = tmp_path / "own_backend_of_mine.py"
    module.write_text("X = 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    before = source_hash("own_backend_of_mine:X")
    module.write_text("X = 2\n")
    assert source_hash("own_backend_of_mine:X") != before


def test_other_judging_options_judge_the_stored_scores_again(config: EvalConfig) -> None:
    first = evaluation.evaluate(config)
    assert Watched.batches > 0
    again = evaluation.evaluate(replace(config, seed=5, calibrate_on="math"))
    assert first is not None
    assert again is not None
    assert Watched.batches == 0  # of the second run
    assert (again.result.manifest.seed, again.result.manifest.calibrate_on) == (5, "math")
    assert again.scores == first.scores
    assert {r.protocol for r in again.result.rows} >= {"step_sum/calibrated:math"}
    assert again.result.rows != first.result.rows


def test_a_file_in_the_way_of_out(config: EvalConfig, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UserError, match=r"is a file; name a folder|cannot write"):
            evaluation.evaluate(replace(config, out=out))
    assert Watched.batches == 0
    assert (tmp_path / "file").read_text() == "mine"
    with pytest.raises(UserError, match="is a folder"):
        evaluation.score(ScoreConfig("random", data=config.data, out=tmp_path))


@pytest.mark.parametrize(("size", "found"), [(600, "journal"), (5000, "result")])
def test_a_full_disk_leaves_nothing_half_written(tmp_path: Path, size: int, found: str) -> None:
    """No file may grow beyond `size`: first the journal does not fit, then only the result does not."""
    (tmp_path / "gsm8k.json").write_text(json.dumps(ROWS[:12]))
    flags = ["eval", "--model=random", "--data", str(tmp_path / "gsm8k.json"), "--out", str(tmp_path / "out")]
    done = run_with_small_disk(size, *flags)
    assert done.returncode == 2, done.stderr
    line = done.stderr.splitlines()[-1]  # before it there may be progress
    assert line.startswith("error: cannot write")
    assert (".jsonl" in line) == (found == "journal")
    assert list((tmp_path / "out").glob("*.json")) == []
    assert [p.name for p in (tmp_path / "out").iterdir() if p.name.startswith(".tmp")] == []
    finished = run(EvalConfig("random", data=tmp_path / "gsm8k.json", out=tmp_path / "out"))
    assert packed(finished) == packed(run(EvalConfig("random", data=tmp_path / "gsm8k.json", out=tmp_path / "whole")))


# --- files of a run ------------------------------------------------------------------------------------------------


def test_scores_survive_the_file_and_hold_no_text(config: EvalConfig) -> None:
    found = run(config)
    text = "\n".join(json.dumps(s.to_json()) for s in tasks.read_run(found.path).scores)
    assert "We add" not in text
    assert "plus" not in text
    assert [s.id for s in found.scores] == sorted(row["id"] for row in ROWS)
    clusters = {s.id: s.cluster for s in found.scores}
    assert clusters["gsm8k-0"] == clusters["gsm8k-1"] == clusters["math-0"] != clusters["gsm8k-2"]
    for s in found.scores:
        assert len(s.values) == len(s.tokens) == s.steps == len(s.also["logprob"])


def test_packed_scores_do_not_depend_on_order_or_time(config: EvalConfig) -> None:
    scores = run(config).scores
    packed_now = result_files.pack_scores(scores)
    assert packed_now == result_files.pack_scores(scores[::-1])
    assert packed_now[4:8] == b"\0\0\0\0"  # gzip's time stamp
    assert result_files.unpack_scores(packed_now, Path("x")) == scores


@pytest.mark.parametrize(
    "content", ["{", "[]", "{}", '{"manifest": [], "rows": []}', '{"manifest": {"schema_version": 99}, "rows": []}']
)
def test_results_that_are_not_results(tmp_path: Path, content: str) -> None:
    path = tmp_path / "run.json"
    path.write_text(content)
    with pytest.raises(UserError) as caught:
        tasks.read_run(path)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="cannot be read"):
        tasks.read_run(tmp_path / "missing.json")


def test_scores_that_are_not_scores(tmp_path: Path) -> None:
    for raw in (b"", b"text", result_files.pack_scores([])[:-3]):
        if raw:
            with pytest.raises(UserError, match="not a scores file"):
                result_files.unpack_scores(raw, tmp_path / "x")
    kept = ScoredTrace("a", "s", -1, 1, "c", 2, values=(0.1 + 0.2, -1e-30), tokens=(1, 2))
    (read,) = result_files.unpack_scores(result_files.pack_scores([kept]), tmp_path / "x")
    assert read.values == (0.3, -1e-30)  # nine digits: what float32 can tell apart


# --- solutions without labels ------------------------------------------------------------------------------------


def test_score_keeps_the_users_order_and_resumes(
    config: EvalConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"id": f"r{9 - n}", "problem": f"Number {n}?", "steps": ["It is so. " * n, "Yes."]} for n in range(1, 9)]
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(rows))
    own = ScoreConfig(
        config.model, backend=config.backend, batch_tokens=64, data=path, out=tmp_path / "a" / "steps.jsonl"
    )
    monkeypatch.setattr(Watched, "cut_after", 3)
    with pytest.raises(PowerCutError):
        evaluation.score(own)
    monkeypatch.setattr(Watched, "cut_after", None)
    assert not own.out.exists()
    assert evaluation.score(own) == own.out
    batches = Watched.batches
    whole = evaluation.score(replace(own, out=tmp_path / "b" / "steps.jsonl"))
    assert whole is not None
    assert own.out.read_bytes() == whole.read_bytes()
    assert batches == Watched.batches - 3
    lines = [json.loads(line) for line in own.out.read_text().splitlines()]
    assert [line["id"] for line in lines] == [row["id"] for row in rows]
    assert all(len(line["values"]) == len(line["tokens"]) == 2 for line in lines)
    assert not {"label", "outcome", "cluster"} & set(lines[0])
    assert [p.name for p in own.out.parent.iterdir()] == ["steps.jsonl"]


@pytest.mark.parametrize(
    ("changed", "says"),
    [({"data": None}, "--data is missing"), ({"limit": -1}, "--limit is -1"), ({"model": ""}, "--model is missing")],
)
def test_score_refuses(tmp_path: Path, changed: dict[str, Any], says: str) -> None:
    (tmp_path / "mine.json").write_text(json.dumps([{"problem": "P", "steps": ["s"]}]))
    own = ScoreConfig("random", data=tmp_path / "mine.json", out=tmp_path / "steps.jsonl")
    with pytest.raises(UserError, match=says):
        evaluation.score(replace(own, **changed))
    (tmp_path / "mine.json").write_text("[]")
    with pytest.raises(UserError, match="holds no solution"):
        evaluation.score(own)


# --- options that name what is not there -----------------------------------------------------------------------------


@pytest.mark.parametrize("benchmark", ["processbench", "best_of_n", "calibration", "format_shift"])
def test_calibrate_on_names_a_subset_that_there_is(tmp_path: Path, benchmark: str) -> None:
    rows = [{**row, "answer": "1", "outcome": n % 2, "group": f"g{n // 2}"} for n, row in enumerate(ROWS[12:16])]
    (tmp_path / "math.json").write_text(json.dumps(rows))
    config = EvalConfig("random", benchmark=benchmark, data=tmp_path / "math.json", out=tmp_path / "runs")
    with pytest.raises(UserError, match=r"^--calibrate-on nowhere: the data has subsets .*"):
        evaluation.evaluate(replace(config, calibrate_on="nowhere"))
    assert not list((tmp_path / "runs").glob("*.json"))
    run(replace(config, calibrate_on="math" if benchmark != "best_of_n" else "gsm8k"))
    run(config)  # gsm8k, everybody's choice, need not be there
    with pytest.raises(UserError, match="--calibrate-on nowhere"):
        evaluation.evaluate(replace(config, calibrate_on="nowhere"))  # nor when scores are only judged again


def test_a_very_long_name_of_a_model_is_cut_in_file_names(tmp_path: Path) -> None:
    model = save_model(tmp_path / ("m" * 250), 0)
    (tmp_path / "gsm8k.json").write_text(json.dumps(ROWS[:4]))
    found = run(EvalConfig(str(model), backend="endo", data=tmp_path / "gsm8k.json", out=tmp_path / "runs"))
    assert found.result.manifest.model == "m" * 250
    assert found.path.name.startswith("m" * 100)
