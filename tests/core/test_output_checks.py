"""No command writes onto what it reads, onto a device or through a link; what exists is replaced by --force alone."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from cli_calls import call, fine, refused
from odd_files import PATHS, ROW

from prmbench.config import ScoreConfig, TrainRMConfig
from prmbench.core import output_checks, result_files
from prmbench.core.records import UserError


@dataclass(frozen=True)
class Command:
    """A command that writes one file."""

    arguments: Callable[[Path], list[object]]
    """Given the folder of good inputs."""
    suffix: str
    reads: tuple[str, ...]
    """Files of that folder that it reads."""
    force: bool = True
    """Whether it has that option."""


COMMANDS = {
    "score": Command(lambda d: ["score", "--model", "random", "--data", d / "rows.jsonl"], ".jsonl", ("rows.jsonl",)),
    "score of a folder": Command(
        lambda d: ["score", "--model", "random", "--data", d / "many"], ".jsonl", ("many/a.jsonl", "many/b.jsonl")
    ),
    "score with a config": Command(
        lambda d: ["score", "--config", d / "score.toml", "--data", d / "rows.jsonl"], ".jsonl", ("score.toml",)
    ),
    "convert": Command(lambda d: ["convert", d / "trl.jsonl"], ".jsonl", ("trl.jsonl",)),
    "card": Command(lambda d: ["card", d / "run.json"], ".md", ("run.json", "run.scores.jsonl.gz")),
    "contamination": Command(
        lambda d: ["contamination", "--data", d / "rows.jsonl", "--against", d / "many"],
        ".json",
        ("rows.jsonl", "many/a.jsonl"),
    ),
    "rollout": Command(
        lambda d: [
            *("rollout", "--model", d / "model", "--data", d / "prompts.jsonl", "--template", d / "t.jinja"),
            *("--max-new-tokens", 2, "--group-size", 1),
        ],
        ".jsonl",
        ("prompts.jsonl", "t.jinja", "model/config.json", "model/model.safetensors"),
        force=False,
    ),
}
CASES = [(name, read) for name, command in COMMANDS.items() for read in command.reads]


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory, policy: Path) -> Path:
    """Inputs that every command takes."""
    folder = tmp_path_factory.mktemp("good")
    row = json.dumps(ROW) + "\n"
    (folder / "many").mkdir()
    (folder / "rows.jsonl").write_text(row)
    for name in ("a", "b"):
        (folder / "many" / f"{name}.jsonl").write_text(row.replace('"id": "a"', f'"id": "{name}"'))
    (folder / "trl.jsonl").write_text(json.dumps({"prompt": "p", "completions": ["a", "b"], "labels": [True, False]}))
    (folder / "prompts.jsonl").write_text(json.dumps({"id": "p", "prompt": "What is 1 plus 1?", "answer": "2"}))
    (folder / "score.toml").write_text('model = "random"\n')
    (folder / "t.jinja").write_text("{% for m in messages %}{{ m['content'] }}\n{% endfor %}")
    (folder / "model").symlink_to(policy)
    fine("eval", "--model", "random", "--data", folder / "rows.jsonl", "--out", folder / "runs")
    (run,) = (folder / "runs").glob("*.json")
    run.rename(folder / "run.json")
    result_files.scores_path(run).rename(folder / "run.scores.jsonl.gz")
    return folder


def aliases(path: Path, folder: Path, suffix: str) -> list[Path]:
    """Other names of the same file."""
    hard, soft = folder / f"hard{suffix}", folder / f"soft{suffix}"
    os.link(path.resolve(), hard)
    soft.symlink_to(path)
    return [path.parent / ".." / path.parent.name / path.name, hard, soft]


@pytest.mark.parametrize(("name", "read"), CASES)
def test_what_is_read_is_not_written_over(good: Path, tmp_path: Path, name: str, read: str) -> None:
    command, source = COMMANDS[name], good / read
    before = source.read_bytes()
    for out in aliases(source, tmp_path, command.suffix):
        for more in ([], ["--force"]) if command.force else ([],):
            line = refused(*command.arguments(good), "--out", out, *more)
            assert "is a file that is read" in line or "is a link" in line or "written as .jsonl" in line
            assert source.read_bytes() == before


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("kind", [*PATHS, "the null device", "a link to a file"])
def test_nothing_is_written_to_odd_places(good: Path, tmp_path: Path, name: str, kind: str) -> None:
    command = COMMANDS[name]
    target = tmp_path / f"target{command.suffix}"
    target.write_text("precious")
    if kind == "the null device":
        out = Path("/dev/null")
    elif kind == "a link to a file":
        out = tmp_path / f"link{command.suffix}"
        out.symlink_to(target)
    else:
        out = PATHS[kind](tmp_path / f"out{command.suffix}")
    for more in ([], ["--force"]) if command.force else ([],):
        refused(*command.arguments(good), "--out", out, *more)
    assert target.read_text() == "precious"
    assert not list(tmp_path.glob("*.journal"))


@pytest.mark.parametrize("name", COMMANDS)
def test_what_exists_is_replaced_by_force_alone(good: Path, tmp_path: Path, name: str) -> None:
    command, out = COMMANDS[name], tmp_path / f"out{COMMANDS[name].suffix}"
    out.write_text("mine")
    line = refused(*command.arguments(good), "--out", out)
    assert f"--out {out}: exists" in line
    assert out.read_text() == "mine"
    if command.force:
        assert "--force" in line
        fine(*command.arguments(good), "--out", out, "--force")
        assert "mine" not in out.read_text()
        refused(*command.arguments(good), "--out", out)  # it exists again


def test_the_summary_of_rollouts_is_guarded_as_the_rollouts_are(good: Path, tmp_path: Path) -> None:
    command, out = COMMANDS["rollout"], tmp_path / "out.jsonl"
    beside = tmp_path / "out.jsonl.json"
    beside.write_text('{"notes": "mine"}')
    assert f"--out {beside}: exists" in refused(*command.arguments(good), "--out", out)
    beside.unlink()
    beside.symlink_to(good / "rows.jsonl")
    assert "is a link" in refused(*command.arguments(good), "--out", out)
    assert not out.exists()


def test_the_texts_of_a_critic_are_guarded_as_the_scores_are(good: Path, tmp_path: Path) -> None:
    texts = tmp_path / "out.critiques.jsonl"
    texts.write_text("mine")
    common = ("score", "--data", good / "rows.jsonl", "--out", tmp_path / "out.jsonl", "--critic-tokens", 4)
    line = refused(*common, "--model", good / "model", "--backend", "critic")
    assert f"--out {texts}: exists" in line
    fine("score", "--model", "random", "--data", good / "rows.jsonl", "--out", tmp_path / "out.jsonl")  # says nothing
    assert texts.read_text() == "mine"


# --- folders --------------------------------------------------------------------------------------------------------


FOLDERS = [("eval", kind) for kind in PATHS if kind != "a folder"]
FOLDERS += [(name, kind) for name in ("train-rm", "report", "demo") for kind in ("a pipe", "a link to itself")]


@pytest.mark.parametrize(("name", "kind"), FOLDERS)
def test_folders_in_odd_places(good: Path, tmp_path: Path, name: str, kind: str) -> None:
    out = PATHS[kind](tmp_path / "out")
    arguments = {
        "eval": ("eval", "--model", "random", "--data", good / "rows.jsonl"),
        "train-rm": ("train-rm", "--model", good / "model", "--data", good / "rows.jsonl", "--steps", 1),
        "report": ("report", "--results", good),
        "demo": ("demo", "--seeds", 1),
    }[name]
    refused(*arguments, "--out", out)


def test_a_report_writes_over_nothing_it_reads(good: Path, tmp_path: Path) -> None:
    fine("eval", "--model", "random", "--data", good / "rows.jsonl", "--out", tmp_path / "runs")
    (result,) = (path for path in (tmp_path / "runs").glob("*.json"))
    data = tmp_path / "report" / f"{json.loads(result.read_text())['manifest']['benchmark']}.json"
    data.parent.mkdir()
    data.write_text(json.dumps([ROW]))
    common = ("--results", tmp_path / "runs", "--out", tmp_path / "report", "--data", data)
    line = refused("report", *common, "--formats", "json")
    assert f"--out {data}: is a file that is read" in line
    assert json.loads(data.read_text()) == [ROW]


def test_a_run_is_not_judged_through_a_link(good: Path, tmp_path: Path) -> None:
    common = ("eval", "--model", "random", "--data", good / "rows.jsonl", "--out", tmp_path / "runs")
    fine(*common)
    (run,) = (tmp_path / "runs").glob("*.json")
    run.rename(tmp_path / "elsewhere")
    run.symlink_to(tmp_path / "elsewhere")
    before = run.read_bytes()
    assert "is a link" in refused(*common, "--protocol", "as_is/fixed:0.5")
    assert run.read_bytes() == before


@pytest.mark.parametrize("own", ["", "adapter", "rm", "weights", "checkpoints/00000001"])
@pytest.mark.parametrize("option", ["model", "ref_model", "rm_model", "data", "validation_data", "first_rollouts"])
def test_training_overwrites_no_folder_that_it_reads(tmp_path: Path, own: str, option: str) -> None:
    class Options:
        pass

    config = Options()
    read = tmp_path / own
    read.mkdir(parents=True, exist_ok=True)
    setattr(config, option, str(read))
    with pytest.raises(UserError, match=r"--out .*(overwrite|is a folder that this command reads)"):
        output_checks.check_training(tmp_path, config)


@pytest.mark.parametrize("name", ["train.json", "metrics.jsonl", "model.safetensors", "tokenizer.json", "prm.json"])
def test_training_overwrites_no_file_that_it_reads(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("x")
    os.link(tmp_path / name, tmp_path / "data.jsonl")
    config = TrainRMConfig(model="org/model", data=tmp_path / "data.jsonl", out=tmp_path)
    with pytest.raises(UserError, match="is a file that is read"):
        output_checks.check_training(tmp_path, config)
    (tmp_path / name).unlink()
    output_checks.check_training(tmp_path, config)  # data beside the model is nothing unusual


@pytest.mark.parametrize(("file", "field"), list(output_checks.POINTERS.items()))
def test_the_model_that_a_model_points_to_is_read_too(tmp_path: Path, file: str, field: str) -> None:
    for name in ("base", "tuned"):
        (tmp_path / name).mkdir()
    (tmp_path / "base" / "config.json").write_text("{}")
    (tmp_path / "tuned" / file).write_text(json.dumps({field: "../base"}))
    config = ScoreConfig(model=str(tmp_path / "tuned"))
    with pytest.raises(UserError, match="is a file that is read"):
        output_checks.check_outputs([tmp_path / "base" / "config.json"], config, force=True)


# --- scores that are there already ----------------------------------------------------------------------------------


def test_a_reuse_of_scores_is_said_and_force_scores_anew(good: Path, tmp_path: Path) -> None:
    common = ("eval", "--model", "random", "--data", good / "rows.jsonl", "--out", tmp_path / "runs")
    assert "note:" not in call(*common).stderr
    again = call(*common)
    assert again.exit_code == 0
    (line,) = [line for line in again.stderr.splitlines() if line.startswith("note:")]
    assert "its stored scores are judged again; --force" in line
    (run,) = (tmp_path / "runs").glob("*.json")
    first = result_files.scores_path(run).stat().st_ino
    whole = run.read_text()
    forced = call(*common, "--force")
    assert "note:" not in forced.stderr
    assert result_files.scores_path(run).stat().st_ino != first
    assert json.loads(run.read_text())["rows"] == json.loads(whole)["rows"]
    assert '"force": false' in run.read_text()  # the option says nothing of the result


@pytest.mark.parametrize("force", [False, True])
def test_what_an_interrupted_run_left_is_said_or_forgotten(good: Path, tmp_path: Path, force: bool) -> None:
    common = ("score", "--model", "random", "--data", good / "rows.jsonl", "--out", tmp_path / "out.jsonl")
    fine(*common)
    right = (tmp_path / "out.jsonl").read_text()
    plan = json.loads(fine("eval", "--model", "random", "--data", good / "rows.jsonl", "--dry-run", "--json"))
    assert plan["batches"] == 1
    stale = dict.fromkeys(("commit", "dirty")) | {"batch": 0, "process": 0, "seconds": 0.0}
    row = {**json.loads(right), "values": [0.5, 0.25], "label": None, "outcome": None, "cluster": "c"}

    def interrupted(*_: object, **__: object) -> None:
        raise UserError("stopped")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("prmbench.evaluation.unlabelled.scoring.collect", interrupted)
        refused(*common, "--force")
    (journal,) = tmp_path.glob("*.journal")
    (journal / "0.jsonl").write_text(json.dumps({**stale, "scores": [row]}) + "\n")
    (tmp_path / "out.jsonl").unlink()
    result = call(*common, *(["--force"] if force else []))
    assert result.exit_code == 0
    assert ("1 of 1 batches were done before" in result.stderr) != force
    assert ((tmp_path / "out.jsonl").read_text() == right) == force
