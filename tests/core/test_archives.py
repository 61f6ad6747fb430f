"""Packed runs: read as loose ones are, packed and unpacked without a change, and refused when they were altered."""

from __future__ import annotations

import gzip
import io
import json
import lzma
import shutil
import struct
import tarfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from report_runs import CLEAN, completions, task_scores, write_four, write_task
from rl_runs import lines as step_lines
from rl_runs import write_training
from typer.testing import CliRunner

from prmbench.cli import app
from prmbench.core import archives, packing
from prmbench.core.records import UserError
from prmbench.report import report
from prmbench.report.load import load
from prmbench.report.training_runs import read_metrics
from prmbench.tasks import read_run, read_runs


@pytest.fixture(scope="module")
def loose(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("loose") / "results"
    write_four(root / "mini")
    write_task(root, "best_of_n", task_scores(completions(2, 2)), run_id="run-bon", replicates=3)
    write_training(root, "grpo", [0.1, 0.2], monitors=step_lines(2, entropy=0.5), run_id="run-distrl", replicates=3)
    return root


@pytest.fixture(scope="module")
def packed(loose: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("packed") / "results"
    shutil.copytree(loose, root)
    packing.pack(root)
    return root


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_packing_leaves_one_archive_a_task_and_nothing_else(packed: Path) -> None:
    assert list(files(packed)) == ["best_of_n.tar.xz", "distrl.tar.xz", "steps.tar.xz"]


def test_packed_runs_are_read_as_loose_ones(loose: Path, packed: Path) -> None:
    before, after = ({r.result.manifest.run_id: r for r in read_runs(root)} for root in (loose, packed))
    assert before.keys() == after.keys()
    for name, run in before.items():
        assert after[name].result.rows == run.result.rows
        assert after[name].scores == run.scores
        assert read_metrics(after[name].path, after[name].result.manifest) == read_metrics(
            run.path, run.result.manifest
        )


@pytest.mark.usefixtures("blank_figures")
def test_unpacked_runs_are_the_files_that_were_packed(loose: Path, packed: Path, tmp_path: Path) -> None:
    shutil.copytree(packed, tmp_path / "r")
    packing.unpack(tmp_path / "r")
    before, after = ({Path(name).name: raw for name, raw in files(root).items()} for root in (loose, tmp_path / "r"))
    assert before.keys() == after.keys()
    # The report of all three is the same.
    report(loose, tmp_path / "out")
    assert report(packed, tmp_path / "out", check=True, recompute=True) == CLEAN
    assert report(tmp_path / "r", tmp_path / "out", check=True) == CLEAN


def test_metrics_are_compressed_with_the_archive_alone(packed: Path, tmp_path: Path) -> None:
    """Gzip without compression in it, so that xz finds what the runs have in common; loose ones are compressed."""
    name = "run-distrl.metrics.jsonl.gz"
    stored = archives.members(packed / "distrl.tar.xz")[name]
    assert len(stored) > len(gzip.decompress(stored))
    shutil.copytree(packed, tmp_path / "r")
    packing.unpack(tmp_path / "r")
    assert len((tmp_path / "r" / name).read_bytes()) < len(stored)


def test_metrics_are_rounded_to_what_a_float32_has(tmp_path: Path) -> None:
    monitors = [
        {**line, "loss": -1 / 3, "tokens": 123456789.0, "validation": {"accuracy": 2e-9 / 3}} for line in step_lines(2)
    ]
    write_training(tmp_path, "grpo", [0.1, 0.2], monitors=monitors, run_id="run-distrl", replicates=3)
    packing.pack(tmp_path)
    (run,) = read_runs(tmp_path)
    rounded = [{**line, "loss": -0.3333333, "validation": {"accuracy": 6.666667e-10}} for line in monitors]
    assert list(read_metrics(run.path, run.result.manifest)) == rounded


def test_a_run_of_no_training_step_is_packed_and_unpacked(tmp_path: Path) -> None:
    write_training(tmp_path, "grpo", [0.1], monitors=[], run_id="run-distrl", replicates=3)
    packing.pack(tmp_path)
    assert not list(tmp_path.rglob("*.metrics.jsonl.gz"))
    packing.unpack(tmp_path)
    (run,) = read_runs(tmp_path)
    assert read_metrics(run.path, run.result.manifest) == ()
    (metrics,) = tmp_path.rglob("*.metrics.jsonl.gz")
    assert gzip.decompress(metrics.read_bytes()) == b""


def test_altered_metrics_are_not_packed(loose: Path, tmp_path: Path) -> None:
    shutil.copytree(loose, tmp_path / "r")
    (metrics,) = (tmp_path / "r").rglob("*.metrics.jsonl.gz")
    metrics.write_bytes(gzip.compress(gzip.decompress(metrics.read_bytes()).replace(b"0.5", b"0.6")))
    with pytest.raises(UserError, match=r"metrics.jsonl.gz: its SHA-256 is not the one in"):
        packing.pack(tmp_path / "r")
    assert metrics.exists()
    assert not (tmp_path / "r" / "distrl.tar.xz").exists()


def test_altered_metrics_are_not_unpacked(packed: Path, tmp_path: Path) -> None:
    archive = tmp_path / "distrl.tar.xz"
    members = dict(archives.members(packed / archive.name))
    (name,) = (name for name in members if name.endswith(".metrics.jsonl.gz"))
    altered = gzip.compress(gzip.decompress(members[name]).replace(b"0.5", b"0.6"), 0, mtime=0)
    archives.write(archive, {**members, name: altered})
    with pytest.raises(UserError, match=r"metrics.jsonl.gz: its SHA-256 is not the one in"):
        packing.unpack(tmp_path)
    assert archive.exists()


def test_packing_adds_to_an_archive(packed: Path, tmp_path: Path) -> None:
    shutil.copytree(packed, tmp_path / "r")
    write_task(tmp_path / "r", "best_of_n", task_scores(completions(2, 2), seed=4), run_id="run-more", replicates=3)
    packing.pack(tmp_path / "r")
    assert {"run-bon.json", "run-more.json"} <= archives.members(tmp_path / "r" / "best_of_n.tar.xz").keys()
    with pytest.raises(UserError, match="has no loose runs"):
        packing.pack(tmp_path / "r")


def test_the_command_packs_and_says_what_it_cannot(
    loose: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(loose, tmp_path / "r")
    assert packing.main([str(tmp_path / "r")]) == 0
    assert packing.main([str(tmp_path / "r")]) == 2
    assert "has no loose runs" in capsys.readouterr().err
    assert packing.main(["--unpack", str(tmp_path / "r")]) == 0
    assert not archives.find_archives(tmp_path / "r")


def test_packed_runs_can_be_compared(packed: Path) -> None:
    a, b = (str(packed / "steps.tar.xz" / f"{letter * 12}.json") for letter in "ad")
    done = CliRunner().invoke(app, ["compare", a, b, "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.output)["rows"]


def test_a_folder_of_loose_runs_may_be_named_like_an_archive(loose: Path, tmp_path: Path) -> None:
    shutil.copytree(loose, tmp_path / "r" / "old.tar.xz")
    assert len(read_runs(tmp_path / "r")) == len(read_runs(loose))


# --- altered archives -------------------------------------------------------------------------------------------

Members = dict[str, bytes]
FIRST = "a" * 12


def changed(name: str, change: Callable[[bytes], bytes]) -> Callable[[Members], None]:
    def alter(members: Members) -> None:
        members[name] = change(members[name])

    return alter


def dropped(name: str) -> Callable[[Members], None]:
    return lambda members: members.pop(name) and None


ALTERED = {
    "a score": (changed(f"{FIRST}.values.jsonl", lambda raw: raw.replace(b"0.", b"0.1", 1)), "SHA-256 is not the one"),
    "no scores": (dropped(f"{FIRST}.scores.jsonl"), "no such member"),
    "no values": (dropped(f"{FIRST}.values.jsonl"), "no such member"),
    "a value less": (changed(f"{FIRST}.values.jsonl", lambda raw: raw[: raw.rindex(b"[")]), "lines of scores and"),
    "no result": (dropped(f"{FIRST}.json"), f"{FIRST}.scores.jsonl: its result {FIRST}.json is missing"),
    "a row": (changed(f"{FIRST}.json", lambda raw: raw.replace(b'"value": 0.', b'"value": 0.1', 1)), "is recomputed"),
    "a field": (changed(f"{FIRST}.json", lambda raw: raw.replace(b'"seed": 0', b'"seed": "0"')), "manifest.seed"),
    "no JSON": (changed(f"{FIRST}.json", lambda raw: raw[:99]), "not a prmbench result"),
    "a long line": (
        changed(f"{FIRST}.values.jsonl", lambda raw: b"[" + b" " * 2**21 + raw[1:]),
        "a line of its scores has more than",
    ),
}


@pytest.mark.parametrize("name", ALTERED)
def test_an_altered_member_is_named_and_the_others_are_listed(name: str, packed: Path, tmp_path: Path) -> None:
    alter, words = ALTERED[name]
    shutil.copytree(packed, tmp_path / "r")
    archive = tmp_path / "r" / "steps.tar.xz"
    members = dict(archives.members(archive))
    alter(members)
    archives.write(archive, members)
    loaded = load(tmp_path / "r")
    assert any(words in line and FIRST in line and str(archive) in line for line in loaded.broken), loaded.broken
    assert len(loaded.listed) == 5


@pytest.mark.usefixtures("blank_figures")
def test_the_check_of_an_altered_archive_fails(packed: Path, tmp_path: Path) -> None:
    shutil.copytree(packed, tmp_path / "r")
    archive = tmp_path / "r" / "steps.tar.xz"
    members = dict(archives.members(archive))
    results, out = ["--results", str(tmp_path / "r")], ["--out", str(tmp_path / "o")]
    assert CliRunner().invoke(app, ["report", *results, *out]).exit_code == 0
    assert CliRunner().invoke(app, ["report", *results, *out, "--check"]).exit_code == 0
    ALTERED["a row"][0](members)
    archives.write(archive, members)
    assert CliRunner().invoke(app, ["report", *results, *out, "--check"]).exit_code == 1


def tar(members: Mapping[str, bytes], **facts: object) -> bytes:
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w") as file:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            for key, value in facts.items():
                setattr(info, key, value)
            file.addfile(info, io.BytesIO(content))
    return plain.getvalue()


def huge_dictionary() -> bytes:
    """An xz file whose header asks for 4 GiB."""
    raw = bytearray(lzma.compress(b"x" * 99))
    header = bytearray(raw[12 : 12 + (raw[12] + 1) * 4])
    header[header.index(b"\x21\x01") + 2] = 40  # the size of the dictionary in LZMA2's properties
    header[-4:] = struct.pack("<I", zlib.crc32(bytes(header[:-4])))
    raw[12 : 12 + len(header)] = header
    return bytes(raw)


DAMAGED = {
    "empty": b"",
    "text": b"no archive",
    "cut": lzma.compress(tar({"a.json": b"{}" * 999}))[:-20],
    "no tar": lzma.compress(b"no tar" * 999),
    "something behind": lzma.compress(tar({"a.json": b"{}"})) + b"more",
    "a cut tar": lzma.compress(tar({"a.json": b"{}" * 9999})[:999]),
    "a path": lzma.compress(tar({"../a.json": b"{}"})),
    "an absolute path": lzma.compress(tar({"/a.json": b"{}"})),
    "a link": lzma.compress(tar({"a.json": b""}, type=tarfile.SYMTYPE, linkname="/etc/passwd")),
    "a device": lzma.compress(tar({"a.json": b""}, type=tarfile.CHRTYPE)),
    "a folder": lzma.compress(tar({"a.json": b""}, type=tarfile.DIRTYPE)),
    "a name twice": lzma.compress(tar({"a.json": b"{}"})[:1024] + tar({"a.json": b"{}"})),
    "a huge dictionary": huge_dictionary(),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_archive_is_named_and_the_others_are_read(name: str, packed: Path, tmp_path: Path) -> None:
    shutil.copytree(packed, tmp_path / "r")
    archive = tmp_path / "r" / "bad.tar.xz"
    archive.write_bytes(DAMAGED[name])
    (line,) = load(tmp_path / "r").broken
    assert line.startswith(str(archive))
    with pytest.raises(UserError, match=r"bad\.tar\.xz"):
        read_runs(tmp_path / "r")


def test_an_archive_that_unpacks_to_too_much_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "MAX_UNPACKED_BYTES", 2**20)
    (tmp_path / "big.tar.xz").write_bytes(lzma.compress(bytes(2**24)))
    with pytest.raises(UserError, match="unpacked, it has more than 1,048,576 bytes"):
        archives.members(tmp_path / "big.tar.xz")


def test_a_link_to_an_archive_is_refused(packed: Path, tmp_path: Path) -> None:
    (tmp_path / "steps.tar.xz").symlink_to(packed / "steps.tar.xz")
    assert any("it is a link" in line for line in load(tmp_path).broken)
    with pytest.raises(UserError, match="it is a link"):
        read_run(tmp_path / "steps.tar.xz" / f"{FIRST}.json")


def test_a_run_that_is_loose_and_packed_is_left_out(loose: Path, packed: Path, tmp_path: Path) -> None:
    shutil.copytree(packed, tmp_path / "r")
    shutil.copytree(loose / "best_of_n", tmp_path / "r" / "again")
    assert any("run-bon" in line and "lies in 2 places" in line for line in load(tmp_path / "r").broken)


def test_a_changed_archive_is_read_again(packed: Path, tmp_path: Path) -> None:
    archive = tmp_path / "a.tar.xz"
    archives.write(archive, {"a.json": b"1"})
    assert archives.members(archive) == {"a.json": b"1"}
    archives.write(archive, {"a.json": b"2"})
    assert archives.members(archive) == {"a.json": b"2"}
