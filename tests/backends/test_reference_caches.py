"""Stored log-probabilities of a reference: used when they are this user's, whole, finite and of this very reference."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load, save
from three_traces import TRACES
from train_runs import data, metrics, options, run

from prmbench.backends import load_backend, ref_cache
from prmbench.config import ModelConfig
from prmbench.core import reading
from prmbench.core.records import NonFiniteError, Notice, StepScores, UserError
from prmbench.training import reference as training_cache

ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")


# --- of evaluation ----------------------------------------------------------------------------------------------------


@pytest.fixture
def config(policy: Path, reference: Path, tmp_path: Path) -> ModelConfig:
    return ModelConfig(str(policy), ref_model=str(reference), backend="implicit", ref_cache=tmp_path / "cache")


def scores(config: ModelConfig) -> list[StepScores]:
    return list(load_backend(config).score(TRACES))


def assert_equal_but_for_rounding(found: list[StepScores], wanted: list[StepScores]) -> None:
    """An entry that is computed by itself meets other rows in its batch, which moves the last digits."""
    for new, old in zip(found, wanted, strict=True):
        assert new.values == pytest.approx(old.values, rel=1e-5)
        assert replace(new, values=old.values) == old


LINES: dict[str, Callable[[list[str]], list[str]]] = {
    "a number changed": lambda lines: [lines[0].replace("[-", "[-9", 1), *lines[1:]],
    "no hash": lambda lines: [json.dumps(json.loads(line)[:2]) for line in lines],
    "another key": lambda lines: [json.dumps(["0" * 16, *json.loads(line)[1:]]) for line in lines],
    "NaN": lambda lines: [line.replace("[-", "[NaN, -", 1) for line in lines],
    "a text": lambda lines: [json.dumps([json.loads(line)[0], "abc", "x"]) for line in lines],
    "deep": lambda lines: ["[" * 100_000, *lines[1:]],
    "no JSON": lambda lines: ["\x00", "5", "{}", "null", *lines[1:]],
    "a list of nothing": lambda lines: [json.dumps([json.loads(line)[0], [], "x"]) for line in lines],
}


@pytest.mark.parametrize("harm", LINES)
def test_an_altered_entry_is_computed_again(config: ModelConfig, harm: str) -> None:
    wanted = scores(config)
    assert config.ref_cache is not None
    (file,) = config.ref_cache.glob("*.jsonl")
    lines = [line for line in file.read_text().splitlines() if line]
    file.write_text("\n".join(LINES[harm](lines)) + "\n")
    with pytest.warns(Notice, match="entries not used"):
        assert_equal_but_for_rounding(scores(config), wanted)


def test_entries_of_another_reference_are_not_taken_under_a_false_name(config: ModelConfig, policy: Path) -> None:
    wanted = scores(config)
    other = replace(config, ref_model=str(policy))
    scores(other)
    assert config.ref_cache is not None
    first, second = sorted(config.ref_cache.glob("*.jsonl"))
    one, two = first.read_bytes(), second.read_bytes()
    first.write_bytes(two)
    second.write_bytes(one)
    with pytest.warns(Notice, match="entries not used"):
        assert_equal_but_for_rounding(scores(config), wanted)


def test_an_entry_of_another_length_is_computed_again(config: ModelConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = scores(config)

    def short(folder: Path, name: str, reference: str) -> dict[str, tuple[float, ...]]:
        return {json.loads(line)[0]: (0.0,) * 9 for f in folder.glob("*.jsonl") for line in f.open() if line.strip()}

    monkeypatch.setattr(ref_cache, "_read_entries", short)
    assert scores(config) == wanted


@ROOT
def test_nothing_of_another_user_is_taken(config: ModelConfig) -> None:
    wanted = scores(config)
    assert config.ref_cache is not None
    (file,) = config.ref_cache.glob("*.jsonl")
    os.chown(file, 65534, 65534)
    with pytest.warns(Notice, match="belongs to another user"):
        assert scores(config) == wanted
    os.chown(config.ref_cache, 65534, 65534)
    with pytest.raises(UserError, match=r"--ref-cache .*belongs to another user"):
        load_backend(config)


# --- of training ------------------------------------------------------------------------------------------------------

Table = dict[str, np.ndarray]


def resealed(table: Table) -> Table:
    return {**table, "sha256": np.frombuffer(bytes.fromhex(training_cache._digest(table)), dtype=np.uint8)}


def values(table: Table, change: Callable[[np.ndarray], np.ndarray]) -> Table:
    return {**table, "values": change(table["values"].copy())}


def spoil(row: np.ndarray) -> np.ndarray:
    row[3] = np.nan
    return row


TABLES: dict[str, Callable[[Table], Table]] = {
    "values changed": lambda t: values(t, lambda v: v + np.float32(1)),
    "no hash": lambda t: {name: part for name, part in t.items() if name != "sha256"},
    "no identity": lambda t: {name: part for name, part in t.items() if name != "identity"},
    "another identity": lambda t: resealed({**t, "identity": t["identity"][::-1].copy()}),
    "NaN": lambda t: resealed(values(t, spoil)),
    "other lengths": lambda t: resealed({**t, "lengths": np.roll(t["lengths"], 1)}),
    "too few values": lambda t: resealed(values(t, lambda v: v[:-1].copy())),
    "negative lengths": lambda t: resealed({**t, "lengths": -t["lengths"]}),
    "another precision": lambda t: resealed(values(t, lambda v: v.astype(np.float64))),
    "keys missing": lambda t: resealed({**t, "keys": t["keys"][:-20].copy()}),
}


@pytest.mark.parametrize("harm", [*TABLES, "no file of tensors", "empty"])
def test_an_altered_file_is_computed_again(policy: Path, tmp_path: Path, harm: str) -> None:
    file = data(tmp_path)
    run(options(policy, file, tmp_path / "a", steps=1))
    (cache,) = (tmp_path / "a").glob("reference-*")
    if harm in TABLES:
        cache.write_bytes(save(TABLES[harm](load(cache.read_bytes()))))
    else:
        cache.write_bytes(b"" if harm == "empty" else b"not a cache")
    with pytest.warns(Notice, match=f"{cache.name}: not used"):
        run(options(policy, file, tmp_path / "b", steps=1))
    assert metrics(tmp_path / "b") == metrics(tmp_path / "a")
    assert list((tmp_path / "b").glob("reference-*"))


@pytest.mark.parametrize("owned", ["the file", "the folder"])
def test_no_file_of_another_user_is_taken(
    policy: Path, tmp_path: Path, owned: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = data(tmp_path)
    run(options(policy, file, tmp_path / "a", steps=1))
    (cache,) = (tmp_path / "a").glob("reference-*")
    strange = cache if owned == "the file" else cache.parent
    own = reading.belongs_to_user
    monkeypatch.setattr(reading, "belongs_to_user", lambda path: path != strange and own(path))
    with pytest.warns(Notice, match="is of another user"):
        run(options(policy, file, tmp_path / "b", steps=1))
    assert list((tmp_path / "b").glob("reference-*"))


def test_a_reference_whose_numbers_are_not_finite_is_an_error(
    policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compute = training_cache._compute
    monkeypatch.setattr(training_cache, "_compute", lambda *a: {k: v * np.inf for k, v in compute(*a).items()})
    with pytest.raises(NonFiniteError, match="the reference gives log-probabilities that are not finite"):
        run(options(policy, data(tmp_path), tmp_path / "out", steps=1))
