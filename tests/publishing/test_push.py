"""`prmbench push`: it uploads what it lists, and nothing that must not leave this machine; the hub's refusals."""

from __future__ import annotations

import gzip
import hashlib
import itertools
import json
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import cli_calls
import huggingface_hub
import numpy as np
import pytest
import report_runs
import yaml
from fake_hub import TOKEN, FakeHub, Repository, fake_hub
from huggingface_hub import DatasetCard, ModelCard, hf_api
from safetensors.numpy import save_file

from prmbench.core import packing, provenance
from prmbench.core.records import UserError
from prmbench.core.result_files import scores_path, unpack_scores
from prmbench.publishing import content_checks, upload
from prmbench.publishing.plan import PushFile

HUB_RUN = {"benchmark": "processbench", "data_source": "Qwen/ProcessBench", "data_revision": "d" * 40}
COMMIT = f"https://huggingface.co/org/name/commit/{'2' * 40}"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with fake_hub(monkeypatch) as server:
        yield server


def run_of(root: Path, **facts: Any) -> Path:
    scores = report_runs.scores_of(report_runs.traces(3, ("gsm8k",)))
    return report_runs.write(root / "runs", scores, **{"native": 0.5, "rules": ("native",), "replicates": 20, **facts})


def model_folder(root: Path, **record: Any) -> Path:
    """A trained model's folder as training leaves it, with files that are no part of the model."""
    folder = root / "trained"
    (folder / "checkpoints" / "3").mkdir(parents=True)
    save_file({"weight": np.zeros(3, np.float32)}, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps({"model_type": "qwen2", "hidden_size": 8}))
    (folder / "tokenizer.json").write_text(json.dumps({"model": {"vocab": {"/home/": 1, "/": 2}}}))
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{{ messages }}/v1"}))
    prm = {"backend": "implicit", "ref_model": "org/ref", "commit": "c" * 40, "dirty": False} | record
    (folder / "prm.json").write_text(json.dumps(prm))
    for name in ("train.json", "metrics.jsonl", ".env", "notes.txt", "checkpoints/3/model.safetensors"):
        (folder / name).write_text(f"from {folder}, with {TOKEN}")
    return folder


MODEL = ["config.json", "model.safetensors", "prm.json", "tokenizer.json", "tokenizer_config.json"]
RESULTS = [".eval_results/processbench.yaml", "README.md", "every_eval_ever/0123456789ab.json"]


def push(*arguments: object) -> dict[str, Any]:
    """What `push --json` says."""
    values: dict[str, Any] = json.loads(cli_calls.fine("push", "--repo", "me/mine", "--json", *arguments))
    return values


def paths(plan: dict[str, Any]) -> list[str]:
    return [file["path"] for file in plan["files"]]


# --- what goes where ------------------------------------------------------------------------------------------


def test_without_yes_the_files_are_listed_and_nothing_is_asked(tmp_path: Path, hub: FakeHub) -> None:
    folder = model_folder(tmp_path)
    run = run_of(tmp_path, weights=provenance.weights_hash(folder), **HUB_RUN)
    text = cli_calls.fine("push", folder, run, "--repo", "me/mine", "--revision", "v2")
    head, *files, total, left_out, end = text.splitlines()
    assert head == "as one commit to model me/mine, branch v2:"
    assert [line.split()[0] for line in files] == sorted([*MODEL, *RESULTS])
    assert f"{(folder / 'model.safetensors').stat().st_size} B  {folder}/model.safetensors" in text
    assert total.startswith("in all 8 files, ")
    assert left_out == "not uploaded: .env, checkpoints/, metrics.jsonl, notes.txt, train.json"
    assert end == "nothing was uploaded; pass --yes to do it"
    assert hub.asked == []


def test_yes_uploads_what_was_listed_as_one_commit(tmp_path: Path, hub: FakeHub) -> None:
    folder = model_folder(tmp_path)
    run = run_of(tmp_path, weights=provenance.weights_hash(folder), **HUB_RUN)
    listed = push(folder, run, "--private")
    assert (listed["uploaded"], listed["url"]) == (False, None)
    done = push(folder, run, "--private", "--yes")
    assert done == {**listed, "uploaded": True, "url": COMMIT}
    repository = hub.repositories["models/me/mine"]
    assert repository.private
    assert repository.commits == ["Add model, card and results with prmbench"]
    uploaded = repository.branches["main"]
    assert {name: len(content) for name, content in uploaded.items()} == {f["path"]: f["bytes"] for f in done["files"]}
    assert uploaded["model.safetensors"] == (folder / "model.safetensors").read_bytes()
    assert ModelCard(uploaded["README.md"].decode()).data.model_name == "me/mine"
    (entry,) = yaml.safe_load(uploaded[".eval_results/processbench.yaml"])
    assert entry["dataset"] == {"id": "Qwen/ProcessBench", "task_id": "processbench", "revision": "d" * 40}
    assert hub.tokens <= {f"Bearer {TOKEN}", ""}
    for content in uploaded.values():
        assert str(tmp_path).encode() not in content


PARTS: dict[str, tuple[list[str], list[str]]] = {
    "a model": (["model"], MODEL),
    "a card": (["card"], ["README.md"]),
    "results": (["results"], [RESULTS[0], RESULTS[2]]),
    "two parts": (["card", "model"], sorted([*MODEL, "README.md"])),
    "two parts by a comma": (["card,results"], RESULTS),
    "scores": (["scores"], ["0123456789ab.json", "0123456789ab.scores.jsonl.gz", "README.md"]),
}


@pytest.mark.parametrize("case", PARTS)
def test_what_is_uploaded(tmp_path: Path, hub: FakeHub, case: str) -> None:
    parts, expected = PARTS[case]
    folder = model_folder(tmp_path)
    run = run_of(tmp_path, weights=provenance.weights_hash(folder), **HUB_RUN)
    plan = push(folder, run, *(word for part in parts for word in ("--what", part)), "--yes")
    assert paths(plan) == expected
    assert plan["repo_type"] == ("dataset" if parts == ["scores"] else "model")
    assert list(hub.repositories) == [f"{plan['repo_type']}s/me/mine"]


def test_scores_can_be_read_again_from_the_data_set(tmp_path: Path, hub: FakeHub) -> None:
    runs = [run_of(tmp_path, run_id=name, seed=seed) for seed, name in enumerate(("one", "two"))]
    packing.pack(tmp_path / "runs")
    (archive,) = (tmp_path / "runs").rglob("*.tar.xz")
    assert not any(run.exists() for run in runs)
    push(archive, "--what", "scores", "--yes", "--license", "mit")
    files = hub.repositories["datasets/me/mine"].branches["main"]
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    for name in ("one", "two"):
        assert cli_calls.fine("card", tmp_path / f"{name}.json")  # which recomputes every number
        assert unpack_scores(files[f"{name}.scores.jsonl.gz"], name)
    data = DatasetCard(files["README.md"].decode()).data.to_dict()
    assert data["license"] == "mit"
    assert data["configs"] == [{"config_name": n, "data_files": f"{n}.scores.jsonl.gz"} for n in ("one", "two")]


def test_a_card_that_is_in_the_folder_goes_with_the_model(tmp_path: Path, hub: FakeHub) -> None:
    folder = model_folder(tmp_path)
    run = run_of(tmp_path, weights=provenance.weights_hash(folder), **HUB_RUN)
    cli_calls.fine("card", run, "--out", folder / "README.md")
    assert paths(push(folder)) == sorted([*MODEL, *RESULTS])
    (folder / "README.md").write_text("# My own words\n")
    push(folder, "--yes")
    assert hub.repositories["models/me/mine"].branches["main"]["README.md"] == b"# My own words\n"


def test_a_pull_request_to_a_repository_of_others(tmp_path: Path, hub: FakeHub) -> None:
    hub.repositories["models/me/mine"] = Repository(branches={"main": {"README.md": b"theirs"}})
    assert push(run_of(tmp_path), "--create-pr", "--yes")["url"].endswith("/discussions/1")
    repository = hub.repositories["models/me/mine"]
    assert repository.branches["main"] == {"README.md": b"theirs"}
    assert "README.md" in repository.pull_requests[0]
    assert "POST repos/create" not in hub.asked


def test_a_branch_is_made_where_it_is_missing(tmp_path: Path, hub: FakeHub) -> None:
    push(run_of(tmp_path), "--revision", "v2", "--yes")
    branches = hub.repositories["models/me/mine"].branches
    assert "README.md" in branches["v2"]
    assert branches["main"] == {}


def test_the_same_command_again_changes_nothing_and_another_content_needs_force(tmp_path: Path, hub: FakeHub) -> None:
    run = run_of(tmp_path, **HUB_RUN)
    push(run, "--yes")
    push(run, "--yes")
    files = hub.repositories["models/me/mine"].branches["main"]
    files["README.md"] = b"# Written by hand\n"
    line = cli_calls.call("push", run, "--repo", "me/mine", "--yes", "--quiet")
    assert line.exit_code == 2
    assert "me/mine has another README.md on main; pass --force to replace it, or --create-pr" in line.stderr
    assert files["README.md"] == b"# Written by hand\n"
    push(run, "--yes", "--force")
    assert files["README.md"] != b"# Written by hand\n"


def test_a_large_file_is_compared_by_its_sha256(tmp_path: Path, hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = model_folder(tmp_path)
    weights = folder / "model.safetensors"
    size, digest = weights.stat().st_size, "0" * 64
    info = hf_api.RepoFile(
        path="model.safetensors", size=size, oid="x", lfs={"size": size, "oid": digest, "pointerSize": 1}
    )
    assert not upload._is_same(PushFile("model.safetensors", size, "", weights), info)
    info.lfs.sha256 = hashlib.sha256(weights.read_bytes()).hexdigest()
    assert upload._is_same(PushFile("model.safetensors", size, "", weights), info)


# --- what must not leave --------------------------------------------------------------------------------------

SECRETS = (
    "sk-" + "a1B2" * 8,
    "hf_" + "Ab3" * 12,
    "AKIA" + "ABCD1234" * 2,
    "ghp_" + "a1" * 18,
    "-----BEGIN RSA PRIVATE KEY-----",
)
CARRIERS = {
    "config.json": lambda text: json.dumps({"model_type": "x", "note": text}, indent=1),
    "prm.json": lambda text: json.dumps({"backend": "implicit", "note": text}),
    "tokenizer_config.json": lambda text: json.dumps({"chat_template": f"use {text} here"}),
    "tokenizer.json": lambda text: json.dumps({"added_tokens": [text]}),
    "chat_template.jinja": lambda text: f"{{# {text} #}}",
    "README.md": lambda text: f"# A model\n\n{text}\n",
}
"""A file of a model's folder, and how a text may stand in it."""


def refused(*arguments: object) -> str:
    return cli_calls.refused("push", *arguments, "--repo", "me/mine", "--yes")


RANDOM = "a1B2c3D4e5f6A7b8C9d0"
KEYS_BY_FORM = (
    f"eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.{RANDOM}",
    *(f"{prefix}{RANDOM * 2}" for prefix in ("glpat-", "gsk_", "r8_", "nvapi-", "xai-", "pplx-", "npm_", "api_org_")),
    *(f"{prefix}{RANDOM}" for prefix in ("sk_live_", "ya29.", "GOCSPX-", "xoxe-")),
    "ASIA" + "ABCD1234" * 2,
    f"hooks.slack.com/services/T0/B0/{RANDOM}",
)
"""Keys of other services, each known by its form."""
NAMED_SECRETS = (
    '{"password": "hunter2hunter2"}',
    '{"api_key": "correct-horse-battery"}',
    f'{{"token":"{RANDOM}"}}',
    f'"accessToken" : "{RANDOM}"',
    f'"tokens": ["{RANDOM}"]',
    '"token": "550e8400-e29b-41d4-a716-446655440000"',
    "password = 'hunter2!'",
    "db_password: hunter2!  # change it",
    "api_key: ab12cd34ef56",
    "client_secret: aB3$dd99",
    "aws_secret_access_key = wJalrXUtnFEMI/K7MDENG/bPxRfiCY",
    f"WANDB_API_KEY={RANDOM}",
    f"export COMET_API_KEY={RANDOM} && python train.py",
    f"prmbench eval --api-key {RANDOM}",
    f"'passwd' => '{RANDOM}'",
)
"""Values that only the name beside them shows to be secret."""


def passes(name: str, text: str) -> bool:
    try:
        content_checks.check(name, text, None)
    except UserError:
        return False
    return True


@pytest.mark.parametrize("carrier", CARRIERS)
def test_a_key_of_any_service_is_refused_however_it_is_written(carrier: str) -> None:
    named = NAMED_SECRETS if carrier in {"config.json", "prm.json", "README.md"} else ()
    texts = [
        text for secret in (*KEYS_BY_FORM, *named) for text in (secret, f"a line\n{secret}", json.dumps({"x": secret}))
    ]
    assert [text for text in texts if passes(carrier, CARRIERS[carrier](text))] == []
    escaped = f"\\u0068{TOKEN.removeprefix('h')}"
    assert not passes(carrier, f'{{"note": "{escaped}"}}')


@pytest.mark.parametrize("carrier", CARRIERS)
def test_a_secret_is_refused_and_not_repeated(carrier: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "wandb-0123456789")
    addresses: tuple[str, ...] = ("https://me:pass123@host/x", "https://host/x?token=abcdefgh", "wandb-0123456789")
    for secret in (
        *SECRETS,
        TOKEN,
        "tok3n-of-mine",
        *addresses * (carrier != "tokenizer.json"),
    ):  # a vocabulary may hold pieces
        with pytest.raises(UserError, match=f"{carrier}, line .*looks like a key") as refusal:
            content_checks.check(carrier, CARRIERS[carrier](secret), token="tok3n-of-mine")
        assert secret not in str(refusal.value)


def test_a_secret_in_a_file_is_refused_before_anything_is_sent(tmp_path: Path, hub: FakeHub) -> None:
    folder = model_folder(tmp_path)
    (folder / "config.json").write_text(CARRIERS["config.json"](TOKEN))
    assert "config.json, line 3: holds what looks like a key or a password; take it out" in refused(folder)
    assert hub.asked == []


def test_a_secret_in_the_head_of_the_weights(tmp_path: Path, hub: FakeHub) -> None:
    folder = model_folder(tmp_path)
    save_file({"w": np.zeros(1)}, folder / "model.safetensors", metadata={"note": SECRETS[0]})
    assert "model.safetensors, line 2: holds what looks like a key" in refused(folder)


LOCAL_PATHS = (
    *(f"/{top}/ann/base" for top in ("home", "Users", "root", "tmp", "mnt", "work", "scratch")),
    *(
        f"/{top}/ann/base"
        for top in ("data", "gpfs", "fsx", "nfs", "opt", "srv", "lustre", "media", "Volumes", "project")
    ),
    *("C:\\\\Users\\\\ann", "C:/User" + "s/ann", "D:/models/base"),
    *(r"C:\Users\ann", r"E:\daten\base", r"\\host\share\base"),
    *("file:///data/ann", "path=/data/ann/base", "host:/hom" + "e/ann", "/mnt/a", "/data/a/b"),
)


@pytest.mark.parametrize("carrier", [name for name in CARRIERS if name != "tokenizer.json"])
def test_a_path_of_this_machine_is_refused(carrier: str) -> None:
    for path in (*LOCAL_PATHS, str(Path.home()), str(Path.cwd())):
        with pytest.raises(UserError, match=f"{carrier}: names .*, a path of this machine; put a hub id there"):
            content_checks.check(carrier, CARRIERS[carrier](f"see {path} for more"), None)


def test_a_path_in_a_file_is_refused_before_anything_is_sent(tmp_path: Path, hub: FakeHub) -> None:
    folder = model_folder(tmp_path)
    (folder / "README.md").write_text(f"trained in {folder}")
    assert "README.md: names /" in refused(folder)
    assert hub.asked == []


@pytest.mark.parametrize("value", ["/data/models/base", "./base", "../base", "~/base", "base"])
def test_a_reference_that_is_a_folder_here_is_refused(tmp_path: Path, hub: FakeHub, value: str) -> None:
    folder = model_folder(tmp_path, ref_model=value)
    (folder / "base").mkdir()
    assert f"prm.json: names {value} (ref_model)" in refused(folder)


def test_the_hub_id_of_a_reference_that_is_a_folder_here(tmp_path: Path, hub: FakeHub) -> None:
    folder = model_folder(tmp_path, ref_model="../base")
    before = (folder / "prm.json").read_bytes()
    assert "--ref-model ORG/NAME replaces it" in refused(folder)
    push(folder, "--ref-model", "me/base", "--yes")
    uploaded = json.loads(hub.repositories["models/me/mine"].branches["main"]["prm.json"])
    assert uploaded == {**json.loads(before), "ref_model": "me/base"}
    assert (folder / "prm.json").read_bytes() == before
    assert "names ./base (ref_model)" in refused(folder, "--ref-model", "./base")


def test_a_model_without_a_reference_gets_none(tmp_path: Path) -> None:
    assert "names no reference; drop the option" in refused(
        model_folder(tmp_path, ref_model=None), "--ref-model", "a/b"
    )


def test_words_that_only_resemble_paths_pass(tmp_path: Path) -> None:
    folder = model_folder(tmp_path, note="see https://example.org/home/ann and org/name, and/or /v1")
    assert paths(push(folder)) == MODEL


FORMULAS = (
    *(r"$\data/opt$", r"$\frac{a}{b}/opt/20$", r"(n)/opt/(2)", "ALG/opt/20", r"f:\R\to\R", r"D:\Omega\rightarrow\R"),
    *(r"x &= 1 \\\alpha\beta", r"\\sin\theta", r"x \\y\leq 3", r"\/ b", "|x|/data/ab", "1:/2", "and/or", "s/data/xy"),
)
NO_SECRETS = (
    *('"eos_token": "<|endoftext|>"', '"pad_token": "reserved_special_token_0"', '"num_tokens": 1234567890123456'),
    *(
        "password: must have digits",
        "The token: consists of letters",
        "api_key: config.api_key",
        "password: str = field()",
    ),
    *('api_key=os.environ["KEY"]', 'api_key="$OPENAI_API_KEY"', "OPENAI_API_KEY=...", '"api_key": "{{ api_key }}"'),
    *(
        "sk-learn",
        f"commit {'c0ffee12' * 5}",
        f'"scores_sha256": "{"ab12" * 16}"',
        '"tokens": [1, 2], "token_ids": "x"',
    ),
    *(
        '"api_key": "your-key-here"',
        '"token": "Qwen/Qwen2.5-Math"',
        "https://example.org/data/models",
        "per token 12345678",
    ),
)


@pytest.mark.parametrize("carrier", CARRIERS)
def test_formulas_hashes_and_names_of_tokens_pass(carrier: str) -> None:
    texts = [f"see {text}" for text in (*FORMULAS, *NO_SECRETS)]
    assert [text for text in texts if not passes(carrier, CARRIERS[carrier](text))] == []


def test_committed_runs_pass() -> None:
    """Of each archive the first run with its scores: what a push of them would upload."""
    archives = sorted(Path("leaderboards/results").rglob("*.tar.xz"))
    assert archives
    for path in archives:
        with tarfile.open(path) as archive:
            for member in itertools.islice(archive, 2):
                stream = archive.extractfile(member)
                assert stream is not None
                content = stream.read()
                text = gzip.decompress(content) if member.name.endswith(".gz") else content
                content_checks.check(
                    member.name, text.decode()[:200_000] if ".jsonl" in member.name else text.decode(), None
                )


def test_a_path_among_the_ids_of_a_run_is_refused(tmp_path: Path) -> None:
    scores = [
        replace(t, id=f"{LOCAL_PATHS[0]}/{t.id}") for t in report_runs.scores_of(report_runs.traces(3, ("gsm8k",)))
    ]
    run = report_runs.write(tmp_path, scores, native=0.5, rules=("native",), replicates=5)
    assert f"scores.jsonl.gz: names {LOCAL_PATHS[0].removesuffix('/base')}" in refused(run, "--what", "scores")


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "every_eval_ever/x.json"])
def test_a_link_out_of_the_folder_is_refused(tmp_path: Path, hub: FakeHub, name: str) -> None:
    folder, outside = model_folder(tmp_path), tmp_path / "outside.json"
    outside.write_text("{}")
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(outside)
    assert f"{name}: is a link that leads out of {folder}" in refused(folder)
    assert hub.asked == []


def test_a_folder_that_is_a_link_is_followed_as_its_members_are_not(tmp_path: Path) -> None:
    folder = model_folder(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "x.json").write_text("{}")
    (folder / "every_eval_ever").symlink_to(tmp_path / "elsewhere")
    assert "leads out of" in refused(folder)
    (folder / "every_eval_ever").unlink()
    (tmp_path / "short").symlink_to(folder)
    assert paths(push(tmp_path / "short")) == MODEL


DIRTY: dict[str, tuple[dict[str, Any], str]] = {
    "a dirty tree": ({"dirty": True}, "scored from a dirty tree"),
    "no commit": ({"commit": None, "dirty": None}, "no commit recorded"),
    "unknown": ({"dirty": None}, "not known whether the tree was clean"),
}


@pytest.mark.parametrize("case", DIRTY)
@pytest.mark.parametrize("what", ["card", "results", "scores"])
def test_dirty_runs_need_a_flag(tmp_path: Path, hub: FakeHub, case: str, what: str) -> None:
    facts, reason = DIRTY[case]
    run = run_of(tmp_path, **facts)
    assert f"{reason}; run it again from a clean commit, or pass --allow-dirty" in refused(run, "--what", what)
    assert hub.asked == []
    push(run, "--what", what, "--allow-dirty", "--yes")
    assert hub.repositories


@pytest.mark.parametrize("record", [{"dirty": True}, {"dirty": None, "commit": None}, {"commit": None}])
def test_a_model_that_was_trained_from_a_dirty_tree_needs_a_flag(tmp_path: Path, record: dict[str, Any]) -> None:
    folder = model_folder(tmp_path, **record)
    assert "pass --allow-dirty to push it as it is" in refused(folder)
    assert paths(push(folder, "--allow-dirty")) == MODEL


def test_results_of_other_weights_do_not_go_with_a_model(tmp_path: Path) -> None:
    folder = model_folder(tmp_path)
    assert "is a result of other weights than those of" in refused(folder, run_of(tmp_path, weights="0" * 64))


def test_an_altered_result_is_not_uploaded(tmp_path: Path, hub: FakeHub) -> None:
    run = run_of(tmp_path)
    values = json.loads(run.read_text())
    next(row for row in values["rows"] if row["metric"] == "f1")["value"] = 0.97531
    run.write_text(json.dumps(values))
    for what in ("card", "scores"):
        assert "is recomputed as" in refused(run, "--what", what)
    assert hub.asked == []


# --- mistakes -------------------------------------------------------------------------------------------------


def mistakes(root: Path) -> dict[str, tuple[list[object], str]]:
    folder, run = model_folder(root), run_of(root)
    empty, half = root / "empty", root / "half"
    empty.mkdir()
    half.mkdir()
    (half / "config.json").write_text("{}")
    other = root / "other"
    other.symlink_to(folder)
    return {
        "no repository": ([run], "--repo is missing: name the repository, ORG/NAME"),
        "no owner": ([run, "--repo", "mine"], "--repo mine: name the user or organisation too: ORG/mine"),
        "an address": ([run, "--repo", "https://huggingface.co/me/x"], "is no ORG/NAME"),
        "no run": ([root / "absent.json", "--repo", "me/x"], "absent.json: no such file or folder"),
        "an empty folder": ([empty, "--repo", "me/x"], "holds no model and no results; name a trained model's folder"),
        "no weights": ([half, "--repo", "me/x"], "has no weights; is the training finished?"),
        "two models": ([folder, other, "--repo", "me/x"], "are two models; a repository holds one"),
        "an unknown part": ([run, "--repo", "me/x", "--what", "all"], "--what all: choose from model, card, results"),
        "a model of a run": ([run, "--repo", "me/x", "--what", "model"], "name a trained model's folder as well"),
        "scores of a model": (
            [folder, "--repo", "me/x", "--what", "scores"],
            "name the <run-id>.json of a run as well",
        ),
        "scores and a card": (
            [run, "--repo", "me/x", "--what", "scores,card"],
            "--what scores: goes into a data set of its own",
        ),
        "an empty branch": ([run, "--repo", "me/x", "--revision", ""], "--revision is empty; name a branch"),
    }


def test_mistakes_are_one_line_before_anything_is_sent(tmp_path: Path, hub: FakeHub) -> None:
    for case, (arguments, message) in mistakes(tmp_path).items():
        assert message in cli_calls.refused("push", *arguments, "--yes"), case
    assert hub.asked == []


# --- the hub's refusals ---------------------------------------------------------------------------------------

FAULTS: dict[str, tuple[str, int, int, str]] = {
    "a bad token": ("repos/create", 401, 2, "the hub does not accept the token"),
    "no right to create": ("repos/create", 403, 2, "the token may not write to me/mine"),
    "no right to commit": ("models/me/mine/commit", 403, 2, "use one that may, or --create-pr"),
    "gone": ("models/me/mine/commit", 404, 2, "me/mine or its branch main is not there, or not for this token"),
    "a limit": ("repos/create", 429, 75, "the hub is busy, status 429"),
    "a fault": ("repos/create", 500, 75, "give the same command again later"),
    "unavailable": ("models/me/mine/commit", 503, 75, "the hub is busy, status 503"),
    "changed meanwhile": ("models/me/mine/commit", 412, 75, "me/mine changed while this ran"),
    "a bad request": ("models/me/mine/commit", 400, 2, "the hub refuses, status 400"),
}


@pytest.mark.parametrize("case", FAULTS)
def test_a_refusal_is_one_line_with_its_exit_code(tmp_path: Path, hub: FakeHub, case: str) -> None:
    start, status, code, message = FAULTS[case]
    hub.faults[start] = status
    run = run_of(tmp_path)
    done = cli_calls.call("push", run, "--repo", "me/mine", "--yes", "--quiet")
    (line,) = done.stderr.splitlines()
    assert done.exit_code == code, line
    assert message in line
    assert TOKEN not in line + done.stdout
    assert not any(repository.commits for repository in hub.repositories.values())
    hub.faults.clear()
    push(run, "--yes")  # the same command goes through later
    assert hub.repositories["models/me/mine"].commits == ["Add card and results with prmbench"]


def test_a_hub_that_cannot_be_reached(tmp_path: Path, hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    done = cli_calls.call("push", run_of(tmp_path), "--repo", "me/mine", "--yes", "--quiet")
    assert done.exit_code == 75
    assert "push: the hub cannot be reached (" in done.stderr


def test_offline_mode(tmp_path: Path, hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    line = cli_calls.call("push", run_of(tmp_path), "--repo", "me/mine", "--yes", "--quiet").stderr
    assert "HF_HUB_OFFLINE is set, so the hub may not be asked; unset it" in line


def test_no_token(tmp_path: Path, hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    done = cli_calls.call("push", run_of(tmp_path), "--repo", "me/mine", "--yes", "--quiet")
    assert done.exit_code == 2
    assert "there is no token for the hub; run `hf auth login`, or set HF_TOKEN" in done.stderr
    assert hub.asked == []
    cli_calls.fine("push", run_of(tmp_path), "--repo", "me/mine")  # a list needs none


def test_a_token_that_cannot_be_read(tmp_path: Path, hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> str:
        raise PermissionError("the file may not be read")

    monkeypatch.setattr("huggingface_hub.get_token", fail)
    assert "the hub's token cannot be read (the file may not be read); run `hf auth login`" in refused(run_of(tmp_path))


def test_private_is_not_public(tmp_path: Path, hub: FakeHub) -> None:
    hub.repositories["models/me/mine"] = Repository(private=False)
    done = cli_calls.call("push", run_of(tmp_path), "--repo", "me/mine", "--yes", "--private", "--quiet")
    assert done.exit_code == 2
    assert "--private: me/mine is public" in done.stderr
    assert not hub.repositories["models/me/mine"].commits


def test_uploaded_scores_are_the_runs(tmp_path: Path, hub: FakeHub) -> None:
    run = run_of(tmp_path)
    push(run, "--what", "scores", "--yes")
    files = hub.repositories["datasets/me/mine"].branches["main"]
    assert gzip.decompress(files["0123456789ab.scores.jsonl.gz"]) == gzip.decompress(scores_path(run).read_bytes())
    assert json.loads(files["0123456789ab.json"]) == json.loads(run.read_text())
