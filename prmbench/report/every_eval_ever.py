"""Records in the format of Every Eval Ever, version 0.3.0 of its schema: one JSON object for each run.

All numbers are fractions, with the bounds that the schema asks for. Times come from the run, never from a clock, so
that the same run gives the same record.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from prmbench.config import PublishConfig
from prmbench.core.records import MetricRow, RunManifest, RunResult
from prmbench.report.headlines import dataset_name, flattened, floors_of, is_hub_id, lower_is_better, rounded, rule_of
from prmbench.tasks import find_task
from prmbench.tasks.registry import TASKS
from prmbench.tasks.wording import RULES

SCHEMA_VERSION = "0.3.0"
SIGNED_METRICS = ("gain", "f1_drop", "td_outcome_correlation", "calibration_rms")
"""Beginnings of metrics that are differences or correlations, from -1 to 1; others of this package lie in [0, 1]."""
CONFIDENCE = 0.95


def record(config: PublishConfig, result: RunResult, rows: Sequence[MetricRow], recorded_at: int) -> dict[str, Any]:
    """Returns the record of a run.

    Args:
        config: The options of `card` or `push`, which say who evaluated and under which name the model is known.
        result: The run, with its floors.
        rows: The rows to publish; all have a value.
        recorded_at: When the result was recorded, in Unix seconds.
    """
    m = result.manifest
    name = flattened(config.name or m.model)
    return {
        "schema_version": SCHEMA_VERSION,
        "evaluation_id": f"{flattened(dataset_name(m))}/{name}/{recorded_at}/{m.run_id}",
        **({} if m.finished_at is None else {"evaluation_timestamp": str(m.finished_at)}),
        "retrieved_timestamp": str(recorded_at),
        "source_metadata": {
            "source_name": "prmbench",
            "source_type": "evaluation_run",
            "source_organization_name": flattened(config.organization or "unknown"),
            "evaluator_relationship": config.relationship,
        },
        "eval_library": {
            "name": "prmbench",
            "version": flattened(m.packages.get("prmbench", "unknown")),
            "additional_details": _texts({"commit": m.commit, "dirty": m.dirty, "run_id": m.run_id}),
        },
        "model_info": _model(m, name),
        "evaluation_results": [_result(result, row) for row in rows],
    }


def _model(m: RunManifest, name: str) -> dict[str, Any]:
    facts = {
        "deployment_type": "unknown" if m.engine == "openai" else "self_deployed",
        "model_availability": "open_weights" if "/" in m.model and m.revision else "unknown",
        "name_in_results": m.model,
        "revision": m.revision,
        "sha256_of_weights": m.weights,
        "read_by": m.backend,
        "input_format": m.input_format,
        "reference": m.ref_model,
        "trained_from": m.signal,
    }
    engine = {"hf": "transformers"}.get(m.engine, m.engine) or "none"
    return {
        "name": name,
        "id": name,
        **({"developer": name.partition("/")[0]} if "/" in name else {}),
        "inference_engine": {"name": engine, "version": flattened(m.packages.get(engine, "unknown"))},
        "additional_details": _texts(facts),
    }


def _result(result: RunResult, row: MetricRow) -> dict[str, Any]:
    m = result.manifest
    task, dataset = find_task(m.task), flattened(dataset_name(m))
    rule = rule_of(task, row.protocol)
    low, high = _bounds(row)
    is_known = m.task in TASKS
    return {
        "evaluation_result_id": flattened(f"{m.run_id}/{row.subset}/{row.protocol}/{row.metric}"),
        "evaluation_name": f"{dataset}.{flattened(row.subset)}",
        "source_data": _data(m, dataset),
        "metric_config": {
            "evaluation_description": flattened(task.description),
            "metric_id": f"prmbench.{dataset}.{flattened(row.metric)}",
            "metric_name": flattened(row.metric),
            **({"metric_unit": "proportion"} if is_known else {}),
            "lower_is_better": lower_is_better(task, row.metric),
            "score_type": "continuous",
            "min_score": low if is_known else "-Infinity",
            "max_score": high if is_known else "Infinity",
            "additional_details": _texts(
                {
                    "protocol": row.protocol,
                    "threshold_rule": RULES[rule][1] if rule in RULES else rule,
                    "floors": floors_of(row, result.rows) or None,
                }
            ),
        },
        "score_details": {
            "score": rounded(row.value),
            "details": _texts({"n": row.n, "unscored": row.unscored, "note": row.note}),
            "uncertainty": {**_interval(row), "num_samples": row.n, "num_bootstrap_samples": m.replicates},
        },
    }


def _bounds(row: MetricRow) -> tuple[float, float]:
    signed = row.metric.startswith(SIGNED_METRICS) or row.protocol.endswith("/gain")
    return (-1.0 if signed else 0.0), 1.0


def _interval(row: MetricRow) -> dict[str, Any]:
    if row.lo is None or row.hi is None:
        return {}
    method = "bootstrap over problems: score, t or percentile interval, see docs/protocols.md of prmbench"
    limits = {"lower": rounded(row.lo), "upper": rounded(row.hi)}
    return {"confidence_interval": {**limits, "confidence_level": CONFIDENCE, "method": method}}


def _data(m: RunManifest, dataset: str) -> dict[str, Any]:
    facts = _texts({"revision": m.data_revision, "sha256": m.benchmark_hash, "version": m.benchmark_version})
    if is_hub_id(m.data_source):
        hub = {"source_type": "hf_dataset", "hf_repo": flattened(m.data_source), "samples_number": m.n}
        return {"dataset_name": dataset, **hub, "additional_details": facts}
    return {"dataset_name": dataset, "source_type": "other", "additional_details": facts}


def _texts(values: Mapping[str, Any]) -> dict[str, str]:
    """The values as texts, which is what the schema allows among further details; what is unknown is left out."""
    return {
        name: flattened(value) if isinstance(value, str) else json.dumps(value, sort_keys=True)
        for name, value in values.items()
        if value not in (None, "")
    }
