"""Rows of a training run: accuracies at each validation and the gain, by hand and against numpy; what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from report_runs import manifest
from rl_runs import problems, write_training

from prmbench.core.records import MetricRow, RunManifest, RunResult, ScoredTrace, UserError
from prmbench.core.result_files import pack_scores, scores_path, sha256
from prmbench.metrics import intervals
from prmbench.tasks import compare, judge, pairs, protocol_keys, read_run, resolve_protocols
from prmbench.tasks.metric_rows import resampled

KEYS = ("policy/step:0", "policy/step:5", "policy/step:10", "policy/gain")


def about(scores: list[ScoredTrace], steps: tuple[int, ...] = (0, 5, 10)) -> RunManifest:
    facts = {"task": "distrl", "kind": "outcome", "config": {"validated_at": list(steps), "samples": 8}}
    return manifest(scores, pack_scores(scores), replicates=200, **facts)


def find(rows: tuple[MetricRow, ...], protocol: str, metric: str = "avg@8") -> MetricRow:
    (row,) = [r for r in rows if (r.protocol, r.metric) == (protocol, metric)]
    return row


def test_rows_by_hand() -> None:
    """Two problems: 0.2, 0.4, 0.9 and 0.4, 0.5, 0.5."""
    made = problems([0.0, 0.0, 0.0], count=2)
    scores = [replace(t, values=v) for t, v in zip(made, [(0.2, 0.4, 0.9), (0.4, 0.5, 0.5)], strict=True)]
    rows = judge(about(scores), scores)
    assert tuple(dict.fromkeys(r.protocol for r in rows)) == KEYS == protocol_keys(about(scores))
    assert [find(rows, key).value for key in KEYS] == pytest.approx([0.3, 0.45, 0.7, 0.4])
    assert find(rows, "policy/step:5", "truncated").value == 0.25
    gain = find(rows, "policy/gain")
    assert (gain.lo, gain.hi) == (-1.0, 1.0)  # Student's t with one degree of freedom, cut at what a gain can be
    assert (gain.n, gain.subset) == (2, "validation")


def test_intervals_are_of_problems_and_the_gain_is_paired() -> None:
    rng = np.random.default_rng(0)
    made = problems([0, 0, 0], count=40)
    values = rng.uniform(0, 1, (40, 3))
    scores = [replace(t, values=tuple(map(float, v))) for t, v in zip(made, values, strict=True)]
    rows = judge(about(scores), scores)
    _, weights = resampled(about(scores), "validation", [t.cluster for t in scores])
    for key, one in (("policy/step:10", values[:, 2]), ("policy/gain", values[:, 2] - values[:, 0])):
        replicates = weights[1:] @ one / weights[1:].sum(axis=1)
        row = find(rows, key)
        assert row.value == pytest.approx(one.mean())
        kind: intervals.Kind = "share" if key.startswith("policy/step") else "share_difference"
        assert (row.lo, row.hi) == pytest.approx(intervals.interval(kind, one.mean(), replicates, 40), abs=1e-9)


def test_one_problem_in_two_traces_is_one_problem() -> None:
    scores = problems([0.0, 1.0], count=3)
    scores = [
        replace(t, cluster="a" if i < 2 else "b", values=(0.0, v))
        for i, (t, v) in enumerate(zip(scores, (1.0, 0.0, 0.0), strict=True))
    ]
    assert find(judge(about(scores, (0, 5)), scores), "policy/gain").value == 0.25


def test_a_policy_validated_once_has_no_gain() -> None:
    scores = problems([0.5])
    rows = judge(about(scores, (0,)), scores)
    assert {r.protocol for r in rows} == {"policy/step:0"}


def test_a_problem_without_a_score_is_left_out_and_counted() -> None:
    made = problems([0.5, 0.5])
    scores = [replace(made[0], values=(), also={}, unscored="timeout"), *made[1:]]
    row = find(judge(about(scores, (0, 5)), scores), "policy/step:5")
    assert (row.value, row.n, row.unscored) == (pytest.approx(0.5), 12, 1)


def test_truncation_that_was_not_recorded_is_said() -> None:
    scores = [replace(t, also={}) for t in problems([0.5])]
    row = find(judge(about(scores, (0,)), scores), "policy/step:0", "truncated")
    assert (row.value, row.note) == (None, "not recorded")


def test_two_runs_are_compared_problem_by_problem(tmp_path: Path) -> None:
    a = read_run(write_training(tmp_path, "grpo", [0.4, 0.5, 0.6]))
    b = read_run(write_training(tmp_path, "distrl_ipvrm", [0.4, 0.5, 0.7]))
    asked = pairs(a.result.manifest, b.result.manifest)
    rows = compare((a.result, a.scores), (b.result, b.scores), asked)
    row = find(rows, "policy/step:10 avg@8", "avg@8_difference")
    assert row.value == pytest.approx(0.1)
    assert row.lo > 0  # type: ignore[operator] # alike in every problem
    assert find(rows, "policy/gain avg@8", "avg@8_difference").value == pytest.approx(0.1)


def test_protocols_are_checked(tmp_path: Path) -> None:
    actual = read_run(write_training(tmp_path, "grpo", [0.4, 0.5, 0.6])).result.manifest
    assert resolve_protocols(actual, ["policy/gain"]) == ("policy/gain",)
    with pytest.raises(UserError, match="policy/step:7"):
        resolve_protocols(actual, ["policy/step:7"])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"validated_at": [0, 5, 5]}, "validated_at"),
        ({"validated_at": "0"}, "validated_at"),
        ({"validated_at": []}, "validated_at"),
        ({"samples": None}, "samples"),
        ({"validated_at": [0, 5]}, "each of 2 validations"),
    ],
)
def test_malformed_runs_are_refused(tmp_path: Path, change: dict[str, object], words: str) -> None:
    path = write_training(tmp_path, "grpo", [0.4, 0.5, 0.6])
    told = json.loads(path.read_text())
    told["manifest"]["config"].update(change)
    path.write_text(json.dumps(told))
    with pytest.raises(UserError, match=words):
        read_run(path)


@pytest.mark.parametrize("values", [(0.5, 1.2, 0.5), (0.5, float("nan"), 0.5)])
def test_accuracies_are_shares(tmp_path: Path, values: tuple[float, ...]) -> None:
    path = write_training(tmp_path, "grpo", [0.4, 0.5, 0.6])
    run = read_run(path)
    packed = pack_scores([replace(run.scores[0], values=values), *run.scores[1:]])
    scores_path(path).write_bytes(packed)
    path.write_text(json.dumps(RunResult(replace(run.result.manifest, scores_sha256=sha256(packed)), ()).to_json()))
    with pytest.raises(UserError, match="values must be one number from 0 to 1"):
        read_run(path)
