"""Workflows, hooks, make targets and tool settings: what they name exists, and the checks they promise are run."""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import entry_points, packages_distributions
from pathlib import Path
from typing import Any

import pytest
from test_docs import prmbench_arguments, refusal_of

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
HOOKS = ROOT / ".pre-commit-config.yaml"
FOLDERS = r"(?<![\w./-])(?:\.ci|\.github|benchmarks|docs|leaderboards|prmbench|tests)/[\w./*-]*"
JUDGING = ("prmbench.report", "prmbench.studies.reporting")
"""What `prmbench report` runs, except for what only `prmbench card` does."""
CARD_MODULES = ("prmbench.report.model_card", "prmbench.report.hub_results")


def yaml_of(path: Path) -> dict[Any, Any]:
    yaml = pytest.importorskip("yaml")
    content: dict[Any, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return content


def triggers(workflow: Path) -> dict[str, Any]:
    """The events that start a workflow, with their filters. YAML reads the key `on` as true."""
    return {event: filters or {} for event, filters in yaml_of(workflow)[True].items()}


def shell_lines(workflow: Path) -> list[str]:
    """Every command line that a workflow runs."""
    steps = [step for job in yaml_of(workflow)["jobs"].values() for step in job["steps"]]
    return [line.strip() for step in steps for line in step.get("run", "").splitlines()]


def makefile_lines() -> list[str]:
    """The command lines of all make targets, without variables in front of programs."""
    text = (ROOT / "Makefile").read_text(encoding="utf-8").replace("\\\n", " ")
    return [line.strip().lstrip("@").replace("$(BIN)/", "") for line in text.splitlines() if line.startswith("\t")]


def hooks() -> list[dict[str, Any]]:
    return [hook for repo in yaml_of(HOOKS)["repos"] for hook in repo["hooks"]]


def recipe_lines() -> Iterator[tuple[str, str]]:
    """(where it stands, a command line)."""
    for workflow in WORKFLOWS:
        yield from ((workflow.name, line) for line in shell_lines(workflow))
    yield from (("Makefile", line) for line in makefile_lines())
    yield from ((HOOKS.name, hook["entry"]) for hook in hooks() if "entry" in hook)
    yield from ((".ci/run", line) for line in (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines())


def judging_modules() -> set[str]:
    """The modules that `prmbench report` may import, and what these import, third parties included."""
    grimp = pytest.importorskip("grimp")
    graph = grimp.build_graph("prmbench", include_external_packages=True, cache_dir=None)
    own = {module for module in graph.modules if module.startswith(JUDGING) and module not in CARD_MODULES}
    return own.union(*(graph.find_upstream_modules(module) for module in own))


def test_path_filters_match_something() -> None:
    """A workflow whose filter matches nothing never runs."""
    for workflow in WORKFLOWS:
        for filters in triggers(workflow).values():
            for pattern in filters.get("paths", ()):
                assert any(ROOT.glob(pattern.removesuffix("/**"))), f"{workflow.name}: {pattern}"


def test_every_pull_request_recomputes_the_leaderboards() -> None:
    running = [w for w in WORKFLOWS if "prmbench report --recompute --check" in shell_lines(w)]
    assert running, "no workflow computes the leaderboards again"
    assert all(triggers(workflow)["pull_request"] == {} for workflow in running), "a filter may skip it"


def test_every_pull_request_runs_all_checks() -> None:
    running = [w for w in WORKFLOWS if ".ci/run" in shell_lines(w) and triggers(w).get("pull_request") == {}]
    assert running
    assert "make test" in (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    targets = (ROOT / "Makefile").read_text(encoding="utf-8").split("\ntest: ")[1].split("\n\n")[0]
    for tool in ("ruff check", "ruff format --check", "mypy", "lint-imports", "-m pytest", "prmbench report --check"):
        assert tool in targets, f"make test does not run {tool}"


def test_the_leaderboards_workflow_installs_what_judging_imports() -> None:
    (workflow,) = (w for w in WORKFLOWS if w.name == "leaderboards.yml")
    (line,) = (line for line in shell_lines(workflow) if line.startswith("pip install -c"))
    installed = {name.lower() for name in line.split()[4:]}
    external = {name.split(".")[0] for name in judging_modules() if not name.startswith("prmbench")}
    distributions = packages_distributions()
    needed = {
        name: {distribution.lower().replace("_", "-") for distribution in distributions[name]}
        for name in external - sys.stdlib_module_names
    }
    carried = {"markupsafe"}  # jinja2 brings it
    assert [name for name, names in needed.items() if not names & (installed | carried)] == []
    assert "torch" not in installed


def test_the_environment_of_vllm_has_every_dependency() -> None:
    """The package is installed there without them, since vLLM pins some; a new one must be named."""
    recipe = (ROOT / "Makefile").read_text(encoding="utf-8").partition(".venv-vllm/.stamp:")[2].partition("touch $@")[0]
    brought_by_vllm = {"huggingface-hub", "torch", "numpy", "safetensors", "jinja2", "pydantic"}
    needed = {re.split("[<>=!]", dependency)[0] for dependency in PROJECT["project"]["dependencies"]}
    assert needed - brought_by_vllm <= set(re.findall(r"[\w-]+", recipe))


def test_the_report_hook_watches_everything_that_judging_imports() -> None:
    (pattern,) = (hook["files"] for hook in hooks() if hook["id"] == "report-check")
    for module in judging_modules():
        if module.startswith("prmbench."):
            assert re.match(pattern, module.replace(".", "/") + "/"), f"{module} is not watched"
    for folder in re.search(r"prmbench/\((.*?)\)", pattern)[1].split("|"):  # type: ignore[index]
        assert (ROOT / "prmbench" / folder).is_dir(), folder


def test_hooks_watch_files_that_exist() -> None:
    paths = [str(path.relative_to(ROOT)) for path in ROOT.glob("*")] + [
        "prmbench/__init__.py",
        "leaderboards/README.md",
    ]
    for hook in hooks():
        assert any(re.match(hook.get("files", ""), path) for path in paths), hook["id"]


def test_hooks_run_tools_that_are_installed() -> None:
    scripts = {script.name for script in entry_points(group="console_scripts")} | {"ruff"}
    for hook in hooks():
        if hook.get("language") == "system":
            assert hook["entry"].split()[0].removeprefix(".venv/bin/") in scripts


def test_recipes_call_prmbench_with_options_that_exist() -> None:
    calls = 0
    for place, line in recipe_lines():
        arguments = prmbench_arguments(re.sub(r"^\S*/bin/(?=prmbench )", "", re.sub(r"\$\(if .*\)", "", line)))
        if arguments and not arguments[0].startswith("-"):
            calls += 1
            refusal = refusal_of(arguments)
            assert refusal is None, f"{place}: {line}: {refusal}"
    assert calls >= 6


def test_recipes_name_files_that_exist() -> None:
    missing = [
        (place, path)
        for place, line in recipe_lines()
        for path in re.findall(FOLDERS, line)
        if not any(ROOT.glob(path.rstrip("/")))
    ]
    assert missing == []


def test_recipes_choose_tests_by_markers_that_exist() -> None:
    markers = {marker.split(":")[0] for marker in PROJECT["tool"]["pytest"]["ini_options"]["markers"]}
    pages = [(page.name, line) for page in ROOT.glob("*.md") for line in page.read_text("utf-8").splitlines()]
    for place, line in [*recipe_lines(), *pages]:
        for quoted, plain in re.findall(r'pytest.* -m (?:"([^"]+)"|(\w+))', line):
            names = set(re.findall(r"\w+", quoted or plain)) - {"not", "and", "or"}
            assert names <= markers, f"{place}: {line}"


def test_a_marker_expression_leaves_out_vllm_and_gpu_tests() -> None:
    """`-m` replaces the default of pyproject.toml, so that it must say these itself."""
    for workflow in WORKFLOWS:
        for line in shell_lines(workflow):
            if "pytest -m" in line:
                assert "not gpu" in line, line
                assert "not vllm" in line, line


def test_environment_variables_that_pages_and_recipes_name_are_read_somewhere() -> None:
    pages = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *WORKFLOWS, ROOT / "Makefile", ROOT / ".ci" / "run"]
    named = {name for page in pages for name in re.findall(r"PRMBENCH_\w+", page.read_text(encoding="utf-8"))}
    code = [*(ROOT / "prmbench").rglob("*.py"), *(ROOT / "tests").rglob("*.py")]
    read = {name for path in code if path != Path(__file__) for name in re.findall(r"PRMBENCH_\w+", path.read_text())}
    assert named <= read


def test_types_are_checked_strictly_in_all_of_the_package() -> None:
    settings = PROJECT["tool"]["mypy"]
    assert settings["strict"] is True
    assert settings["packages"] == ["prmbench"]


def test_exceptions_from_strict_types_name_modules_that_exist() -> None:
    for override in PROJECT["tool"]["mypy"]["overrides"]:
        for pattern in override["module"]:
            if pattern.startswith("prmbench."):
                path = ROOT / pattern.removesuffix(".*").replace(".", "/")
                assert path.is_dir() if pattern.endswith(".*") else path.with_suffix(".py").is_file(), pattern


def test_linter_settings_name_files_that_exist() -> None:
    for pattern in PROJECT["tool"]["ruff"]["lint"]["per-file-ignores"]:
        assert any(ROOT.glob(pattern)), pattern


@pytest.mark.parametrize("contract", PROJECT["tool"]["importlinter"]["contracts"], ids=lambda c: c["name"])
def test_import_contracts_name_modules_that_exist(contract: dict[str, Any]) -> None:
    named = list(contract.get("source_modules", []))
    for container in contract.get("containers", []):
        for layer in contract["layers"]:
            named += [f"{container}.{name.strip(' ()')}" for name in layer.split("|")]
    for module in named:
        path = ROOT / module.replace(".", "/")
        assert path.is_dir() or path.with_suffix(".py").is_file(), module
