"""Where a package of an extra is missing, every command that needs it names the extra in one line."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Callable
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from prmbench.backends import load_backend
from prmbench.config import ModelConfig, TrainConfig
from prmbench.core.extras import EXTRAS
from prmbench.core.records import UserError
from prmbench.data import gym
from prmbench.engines import hf, kernels
from prmbench.engines.vllm import open_vllm
from prmbench.training import run_setup
from prmbench.verification import verifiers

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def _adapter(folder: Path) -> object:
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "org/base"}')
    return hf.load(str(folder), "lm", hf.Placement("cpu", "float32"))


def _gguf(folder: Path) -> object:
    (folder / "m.gguf").touch()
    return hf.pretrained_source(str(folder / "m.gguf"))


def _critic(_: Path) -> object:
    return load_backend(ModelConfig(model="m", backend="critic", engine="openai", base_url="http://localhost/v1"))


NEEDS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "a LoRA folder": ("peft", _adapter),
    "LoRA training": ("peft", lambda _: run_setup.model_setup(TrainConfig(lora_rank=4, device="cpu"))),
    "8-bit Adam": (
        "bitsandbytes",
        lambda _: run_setup.model_setup(TrainConfig(optimizer="adamw_8bit", device="cpu")),
    ),
    "several GPUs": ("accelerate", lambda folder: hf.load(str(folder), "lm", hf.Placement("balanced", "float32"))),
    "a GGUF file": ("gguf", _gguf),
    "grading mathematics": ("math_verify", lambda _: verifiers.check_installed("math")),
    "grading reasoning-gym": ("reasoning_gym", lambda _: verifiers.check_installed("gym")),
    "prompts of reasoning-gym": ("reasoning_gym", lambda _: gym.prompts("gym:basic_arithmetic,size=1")),
    "Liger's kernels": ("liger_kernel", lambda _: kernels.apply_liger(None, "cuda:0")),
    "the engine vllm": ("vllm", lambda _: open_vllm("m", None, hf.Placement("cpu", "float32"))),
    "the engine openai": ("openai", _critic),
    "its HTTP library": ("httpx2", _critic),
}
"""What a user may do -> the module that is missing, and the call that needs it."""
ELSEWHERE = {"latex2sympy2_extended", "fastapi", "uvicorn"}
"""The first comes with math-verify and is imported by the same workers; the others are tested with the server."""


@pytest.mark.parametrize("case", NEEDS)
def test_a_missing_package_is_one_line_that_names_its_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    module, call = NEEDS[case]
    for name in [n for n in sys.modules if n.startswith(("prmbench.engines.openai", "prmbench.engines.http_bodies"))]:
        monkeypatch.delitem(sys.modules, name)  # else it is not imported again
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError) as refusal:
        call(tmp_path)
    assert f"pip install 'prmbench[{EXTRAS[module]}]'" in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_every_module_of_an_extra_is_tried() -> None:
    assert {module for module, _ in NEEDS.values()} | ELSEWHERE == set(EXTRAS)


def imported_modules() -> set[str]:
    """The top-level modules that any file of the package imports, outside of type checking."""
    names: set[str] = set()
    for path in (ROOT / "prmbench").rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        skipped = {
            id(n)
            for b in ast.walk(tree)
            if isinstance(b, ast.If) and "TYPE_CHECKING" in ast.dump(b.test)
            for n in ast.walk(b)
        }
        for node in ast.walk(tree):
            if id(node) in skipped:
                continue
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names.add(node.module.split(".")[0])
    return names - set(sys.stdlib_module_names) - {"prmbench"}


def distributions(requirements: list[str]) -> set[str]:
    return {re.split(r"[\[<>=!;~ ]", line)[0].lower().replace("_", "-") for line in requirements}


def test_every_import_is_a_dependency_or_named_with_its_extra() -> None:
    brought = {
        "h11": "uvicorn",
        "starlette": "fastapi",
        "markupsafe": "jinja2",
        "sympy": "torch",
        "tokenizers": "transformers",
    }
    known = distributions(PROJECT["dependencies"])
    owners = packages_distributions()
    unknown = {
        name
        for name in imported_modules() - set(EXTRAS)
        if brought.get(name) not in known | set(EXTRAS) and not known & distributions(list(owners.get(name, [name])))
    }
    assert unknown == set()


def test_an_extra_installs_the_modules_that_name_it() -> None:
    extras = PROJECT["optional-dependencies"]
    for module, extra in EXTRAS.items():
        if module != "latex2sympy2_extended":  # which math-verify brings
            assert module.replace("_", "-") in distributions(extras[extra]), module
