"""Files that the first version wrote, before its modules moved: they are read, and stopped runs go on."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from cli_calls import call
from paths import SUPPORT

from prmbench import evaluation, tasks
from prmbench.backends import cards
from prmbench.config import EvalConfig, TrainRMConfig
from prmbench.core.packing import pack
from prmbench.core.records import ESTIMATOR_VERSION, Notice, UserError
from prmbench.tasks.rejudge import rejudge
from prmbench.training.train import train


@pytest.fixture
def old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A policy, a reward model trained from it, a run stopped after two of four updates, and a result.

    Written by commit 90d6f15; the archive holds nothing else.
    """
    with tarfile.open(SUPPORT / "old_layout.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_model_card_of_before_says_how_the_model_is_read(old: Path) -> None:
    card = cards.from_folder(old / "finished")
    assert card is not None
    assert (card.backend, card.beta, card.signal) == ("implicit", 10.0, "outcome")


def test_a_result_of_before_is_read_and_its_rows_follow_from_its_scores(old: Path) -> None:
    (path,) = (old / "runs").glob("*[0-9a-f].json")
    with pytest.warns(Notice, match=f"{path.name}: rows by an earlier prmbench's estimators"):
        run = tasks.read_verified(path, resampled=True)
    assert run.is_judged_again
    assert run.result.manifest.estimator_version == ESTIMATOR_VERSION
    assert run.result.rows == tasks.judge(run.result.manifest, run.scores)
    stored = {(row.subset, row.protocol, row.metric): row for row in tasks.read_run(path).result.rows}
    kept = {(row.subset, row.protocol, row.metric): row for row in run.result.rows}
    same = [key for key in stored if "fixed" in key[1] and key[-1] in ("f1", "error_accuracy", "correct_accuracy")]
    assert same
    assert all(kept[key].value == pytest.approx(stored[key].value) for key in same)


def test_a_report_says_that_rows_were_computed_again(old: Path) -> None:
    result = call("report", "--results", "runs", "--out", "page")
    assert (result.exit_code, "note: 1 of 1 runs have rows by an earlier prmbench's" in result.stderr) == (0, True)
    assert rejudge(old / "runs")
    assert "earlier" not in call("report", "--results", "runs", "--out", "page").stderr


def test_packed_runs_are_judged_again_in_their_archive(old: Path) -> None:
    (path,) = (old / "runs").glob("*[0-9a-f].json")
    scores = tasks.read_run(path).scores
    (archive,) = pack(old / "runs")
    assert rejudge(old / "runs") == [archive]
    run = tasks.read_verified(archive / path.name, resampled=True)
    assert (run.is_judged_again, run.scores) == (False, scores)


def test_rows_of_newer_estimators_are_refused_and_old_ones_can_be_written_anew(old: Path) -> None:
    (path,) = (old / "runs").glob("*[0-9a-f].json")
    assert rejudge(old / "runs") == [path]
    run = tasks.read_verified(path, resampled=True)
    assert not run.is_judged_again
    newer = json.loads(path.read_text())
    newer["manifest"]["estimator_version"] = ESTIMATOR_VERSION + 1
    path.write_text(json.dumps(newer))
    with pytest.raises(UserError, match="upgrade prmbench"):
        tasks.read_verified(path)


def test_the_same_command_has_the_run_id_of_before(old: Path) -> None:
    """Whatever moves a score is in the id, and nothing did."""
    (path,) = (old / "runs").glob("*[0-9a-f].json")
    plan = evaluation.dry_run(EvalConfig(model="finished", data=Path("gsm8k.json"), out=Path("runs"), dry_run=True))
    assert plan.run_id == path.stem


def test_a_run_that_was_stopped_before_goes_on(old: Path) -> None:
    record = json.loads((old / "stopped" / "train.json").read_text())
    names = ("loss", "steps", "batch_size", "warmup", "save_every", "preset", "device")
    # The preset has another rate, beta and margin today, as the message about such a run says.
    constants = {name: record["identity"][name] for name in ("learning_rate", "beta", "margin")}
    stored = {name: record["config"][name] for name in names}
    config = TrainRMConfig(model="policy", data=Path("rollouts.jsonl"), out=Path("stopped"), **stored)
    with pytest.raises(UserError, match="another beta, learning_rate, margin; give it the same options"):
        train(config)
    config = replace(config, **constants)
    done: list[int] = []
    progress: Callable[..., None] = lambda step, *_: done.append(step)  # noqa: E731
    train(config, progress)
    assert done == [3, 4]
    assert (old / "stopped" / "model.safetensors").is_file()
    new, whole = (
        [json.loads(line)["loss"] for line in (old / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("stopped", "finished")
    )
    assert new == pytest.approx(whole, rel=1e-3)
