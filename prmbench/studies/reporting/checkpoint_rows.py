"""Joins the runs of all tasks into one row per checkpoint: step F1, best-of-N gain, calibration, RL gain, cost.

Runs of the miniature are joined by method, seed and panel, others by the hash or revision of their weights. Tables and
correlations of the rows are in checkpoint_tables.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean

from prmbench.core.records import DEFAULT_READOUTS, EvalProtocol, RunManifest
from prmbench.core.result_files import Run
from prmbench.report.frame import columns, frame
from prmbench.studies.reporting.nested_seeds import RunValues, difference
from prmbench.studies.reporting.policy_runs import BASE_ARM, RLStudy, gather_rl_study
from prmbench.studies.reporting.probe_models import PANEL_OF, PROBE, name
from prmbench.studies.reporting.reward_model_runs import (
    BENCHMARK,
    PAPER_SUFFIX,
    PROCESS_READOUTS,
    SHIFTS,
    BySeed,
    Study,
    chance,
    gather_study,
    own_readouts,
    seed_of,
)
from prmbench.tasks.blocks import group_size
from prmbench.tasks.format_shift import PLAIN, base_and_rendering
from prmbench.tasks.wording import members, run_name

F1_COLUMNS = ("F1 onpolicy", "F1 injected", "F1 shifts", "own F1 onpolicy", "oracle F1 onpolicy", "oracle F1 injected")
"""F1 columns of the miniature. `own`: read by the value that picks among N; else process level. `oracle`: tuned on the
judged traces; else on val."""
F1_SETTINGS: Mapping[str, tuple[Sequence[str], tuple[str, ...], str]] = {
    F1_COLUMNS[0]: (PROCESS_READOUTS, ("onpolicy",), "calibrated"),
    F1_COLUMNS[1]: (PROCESS_READOUTS, ("injected",), "calibrated"),
    F1_COLUMNS[4]: (PROCESS_READOUTS, ("onpolicy",), "oracle"),
    F1_COLUMNS[5]: (PROCESS_READOUTS, ("injected",), "oracle"),
}
"""Columns of a single subset -> readouts, the subset, and the threshold rule."""
Z95 = 1.959964
"""Half the width of a 95% normal interval, in standard errors."""
CALIBRATION_COLUMNS = ("ECE", "ECE Platt", "AUC")
BEST_OF_N_GAIN, RL_GAIN_COLUMNS = "best-of-N gain", ("RL gain", "over GRPO")
COST_COLUMNS = ("tokens", "seconds", "tokens a step", "s / 1,000 steps", "GiB", "cost")
KINDS = ("steps", "validity", "format_shift", "best_of_n", "calibration", "distrl")
"""Tasks that measure a reward model. The joined table exists when some checkpoint has runs of two of them."""
MAIN_METRICS = {"validity": ("prmscore", "PRMScore"), "format_shift": ("f1_drop", "F1 lost in other formats")}
HONEST_RULES = ("calibrated", "native", "fixed", "cross_validated")
"""Threshold rules in order of preference; a run is represented by the first that it has."""
BEST_OF, OWN_VALUE_READOUTS = "best_of_n", ("prefix_mean", "prefix_sum", "as_is", "vote")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """One reward model with the numbers of all its runs."""

    model: str
    panel: str
    """`plain` or `marker` in the miniature; else empty."""
    seed: int | None
    """Seed of its world in the miniature; None elsewhere."""
    weights: str
    """Hash of its weights, or the revision; `unknown` where neither was recorded."""
    kinds: tuple[str, ...]
    """Tasks that it has numbers of."""
    runs: tuple[Run, ...]
    numbers: Mapping[str, float]
    """Column -> value; columns without a value are absent."""
    chance: float | None = None
    """F1 of random scores on the on-policy traces of the miniature."""
    errors: Mapping[str, float] = field(default_factory=dict)
    """Column -> squared standard error over its problems, from the interval of the run."""
    gains: Mapping[str, Mapping[int, Mapping[str, float]]] = field(default_factory=dict)
    """Column of RL_GAIN_COLUMNS -> RL seed -> problem -> value."""

    @property
    def world(self) -> str:
        """The world; its checkpoints share policy, prompts and judged traces."""
        return f"{self.panel} seed {self.seed}"

    @property
    def probe(self) -> bool:
        """Whether it was trained on other completions than its world's own."""
        return PROBE.fullmatch(self.model) is not None

    @property
    def paper(self) -> bool:
        """Whether it was trained with the paper's own constants."""
        return self.model.endswith(PAPER_SUFFIX)

    @property
    def tuned(self) -> bool:
        """Whether it was trained with the tuned constants on its world's completions."""
        return not (self.probe or self.paper)


def checkpoints(runs: Sequence[Run]) -> tuple[Checkpoint, ...]:
    """Returns the checkpoints of the miniature by method and seed, then the others by name.

    Empty unless some checkpoint has runs of two tasks. Baselines, which have no weights, and policies have no row.
    """
    trained = [run for run in runs if run.result.manifest.task == "distrl"]
    scored = [run for run in runs if run.result.manifest.task in KINDS and _is_reward_model(run.result.manifest)]
    miniature = [run for run in scored if run.result.manifest.benchmark == BENCHMARK]
    others = [run for run in scored if run.result.manifest.benchmark != BENCHMARK]
    rows = (*_miniature_checkpoints(miniature, trained), *_other_checkpoints(others, trained))
    return rows if any(len(row.kinds) > 1 for row in rows) else ()


def _is_reward_model(manifest: RunManifest) -> bool:
    return manifest.backend != "baseline" and manifest.task != "distrl"


# --- the miniature ----------------------------------------------------------------------------------------------


def _miniature_checkpoints(runs: Sequence[Run], trained: Sequence[Run]) -> Iterator[Checkpoint]:
    by_key: dict[tuple[str, int, str], list[Run]] = {}
    for run in gather_study(runs).runs:
        m = run.result.manifest
        by_key.setdefault((m.model, seed_of(m), m.weights or ""), []).append(run)
    gains = _gains_by_start(trained)
    for (method, seed, _), own_runs in by_key.items():
        models = gather_study(own_runs)
        columns = _study_columns(models, method)
        numbers = {column: values[seed] for column, values in columns.items() if seed in values}
        own_gains: dict[str, dict[int, Mapping[str, float]]] = {}
        for policy in {run.result.manifest.ref_weights for run in own_runs} - {None}:
            own_gains |= gains.get((method, seed, str(policy)), {})
        numbers |= {column: fmean(fmean(v.values()) for v in by_seed.values()) for column, by_seed in own_gains.items()}
        floor = models.by_seed("steps", method, chance(), ("onpolicy",))
        row = _row(method, _panel(method), seed, own_runs, numbers)
        yield replace(row, chance=floor.get(seed), errors=_squared_errors(own_runs), gains=own_gains)


def _squared_errors(runs: Sequence[Run]) -> dict[str, float]:
    """Returns the squared standard errors of F1 columns of a single subset, from the 95% intervals over problems."""
    errors: dict[str, float] = {}
    for column, (readouts, (subset, *more), rule) in F1_SETTINGS.items():
        for run in runs:
            bounds = {
                row.protocol: (row.lo, row.hi)
                for row in run.result.rows
                if run.result.manifest.task == "steps" and (row.subset, row.metric) == (subset, "f1") and not more
            }
            protocols = [p for readout in readouts for p in bounds if p.split(":")[0] == f"{readout}/{rule}"]
            lo, hi = bounds[protocols[0]] if protocols else (None, None)
            if lo is not None and hi is not None:
                errors[column] = ((hi - lo) / (2 * Z95)) ** 2
    return errors


def _panel(method: str) -> str:
    """Returns the method's panel. Marked worlds have policies of their own, so their models are in another panel."""
    return "marker" if "_marker" in method else "plain"


def _study_columns(models: Study, method: str) -> dict[str, BySeed]:
    """Returns a method's values by column and seed."""
    plain, own_value = ("onpolicy",), own_readouts(method)
    f1_settings = {
        **F1_SETTINGS,
        F1_COLUMNS[2]: (PROCESS_READOUTS, SHIFTS, "calibrated"),
        F1_COLUMNS[3]: (own_value, plain, "calibrated"),
    }
    columns = {column: models.f1(method, *setting) for column, setting in f1_settings.items()}
    sizes = models.group_sizes()
    if sizes:
        columns[f"best of {sizes[-1]}"] = models.best_of(method, sizes=sizes[-1:])
        columns[f"{BEST_OF_N_GAIN} @{sizes[-1]}"] = models.best_of(method, "gain", sizes[-1:])
        columns[f"{BEST_OF_N_GAIN} mean"] = models.best_of(method, "gain")
    readout, subsets = models.first_readout("calibration", method, own_value), models.subsets("calibration")
    for column, rules, metric in zip(
        CALIBRATION_COLUMNS, ("as read", "platt", "as read"), ("ece", "ece", "auc"), strict=True
    ):
        rule_names = ("sigmoid", "identity") if rules == "as read" else (rules,)
        by_rule = [models.by_seed("calibration", method, (readout, rule, metric), subsets) for rule in rule_names]
        columns[column] = next((values for values in by_rule if values), {})
    return columns


def _gains_by_start(
    trained: Sequence[Run],
) -> dict[tuple[str, int, str], dict[str, dict[int, Mapping[str, float]]]]:
    """Returns RL gains of DistRL's default arm by the (method, SFT seed, policy hash) of its reward model.

    They are by column, RL seed and problem. The policy's hash distinguishes worlds of the same seed. A run that is in
    several benchmarks counts once.
    """
    gains_by_rl_seed: dict[tuple[str, int, str], dict[str, dict[int, Mapping[str, float]]]] = {}
    for rl, panel, arm in _arms(trained):
        runs = {t.seeds: t.run.result.manifest for t in rl.of(panel, arm)}
        method = _reward_model(runs.values(), panel, arm)
        for column, gains in zip(RL_GAIN_COLUMNS, _gains(rl, panel, arm) if method else (), strict=False):
            for (sft_seed, rl_seed), values in gains.items():
                key = method, sft_seed, runs[sft_seed, rl_seed].weights or ""
                of_column = gains_by_rl_seed.setdefault(key, {}).setdefault(column, {})
                of_column.setdefault(rl_seed, values)
    return gains_by_rl_seed


def _arms(trained: Sequence[Run]) -> Iterator[tuple[RLStudy, str, str]]:
    """Yields (RL runs of a benchmark, panel, arm)."""
    for benchmark in sorted({run.result.manifest.benchmark for run in trained}):
        rl = gather_rl_study(run for run in trained if run.result.manifest.benchmark == benchmark)
        yield from ((rl, panel, arm) for panel in rl.panels for arm in rl.arms(panel))


def _reward_model(manifests: Iterable[RunManifest], panel: str, arm: str) -> str:
    """Returns the miniature's method that a default DistRL arm starts from; empty for other arms and other data."""
    method = name(arm.removeprefix("distrl_"), PANEL_OF.get(panel, ""))
    recorded = {str(m.config.get("rm_model") or "") for m in manifests}
    return method if panel in PANEL_OF and recorded == {method} else ""


def _gains(rl: RLStudy, panel: str, arm: str) -> tuple[RunValues, RunValues]:
    """Returns accuracy after minus before training, and after training minus GRPO's; paired by problem."""
    over_grpo = difference(rl.accuracy(panel, arm, -1), rl.accuracy(panel, BASE_ARM, -1))
    gain = {seeds: values for seeds, values in rl.gain(panel, arm).items() if values}
    return gain, over_grpo


# --- other models -----------------------------------------------------------------------------------------------


def _other_checkpoints(runs: Sequence[Run], trained: Sequence[Run]) -> Iterator[Checkpoint]:
    by_key: dict[tuple[str, str, str, str], list[Run]] = {}
    for run in sorted(runs, key=lambda r: (run_name(r), r.result.manifest.run_id)):
        by_key.setdefault(_identity(run.result.manifest), []).append(run)
    for key, own_runs in by_key.items():
        largest = _largest_runs(own_runs)
        numbers: dict[str, float] = {}
        for run in largest:
            numbers |= _numbers(run)
        yield _row(run_name(own_runs[0]), "", None, largest, numbers | _rl_gain(key[0], trained))


def _identity(manifest: RunManifest) -> tuple[str, str, str, str]:
    """Returns what runs of one checkpoint share: weights, backend, kind of score and reference model.

    A critic gives verdicts or scores, so one model can be two checkpoints.
    """
    weights = manifest.weights or f"{manifest.model}@{manifest.revision}"
    reference = manifest.ref_weights or f"{manifest.ref_model}@{manifest.ref_revision}"
    return weights, manifest.backend, manifest.kind, reference


def _largest_runs(runs: Sequence[Run]) -> list[Run]:
    """Returns, of each benchmark, the run with most traces: others have another input format or a limit."""
    largest: dict[tuple[str, str], Run] = {}
    for run in runs:
        m = run.result.manifest
        previous = largest.get((m.task, m.benchmark))
        if previous is None or m.n > previous.result.manifest.n:
            largest[m.task, m.benchmark] = run
    return [largest[key] for key in sorted(largest)]


def _numbers(run: Run) -> dict[str, float]:
    """Returns the values that a run adds to its checkpoint's row, by column."""
    m = run.result.manifest
    if m.task == "steps":
        return dict(_f1_numbers(run))
    if m.task == BEST_OF:
        return _best_of_n_numbers(run)
    if m.task == "calibration":
        return _calibration_numbers(run)
    return dict(_headline_numbers(run))


def _f1_numbers(run: Run) -> Iterator[tuple[str, float]]:
    """Yields F1 by threshold rule, for the headline readout: the average over most subsets, or the only subset."""
    subsets = columns(frame([run]))
    order = [c for c in subsets if c.startswith("avg[")] + list(subsets)
    # The average over most subsets comes last and replaces the others.
    for row in sorted(run.result.rows, key=lambda r: order.index(r.subset), reverse=True):
        if row.metric == "f1" and row.value is not None and not row.protocol.startswith("floor/"):
            protocol = EvalProtocol.parse(row.protocol)
            if (protocol.readout, protocol.series) == (DEFAULT_READOUTS[run.result.manifest.kind], ""):
                yield f"{run.result.manifest.benchmark} F1, {protocol.threshold}", row.value


def _best_of_n_numbers(run: Run) -> dict[str, float]:
    """Returns best-of-N numbers by the last step's value, means over the subsets."""
    gains: dict[int, list[float]] = {}
    best: dict[int, list[float]] = {}
    readout = _own_readout(run, "last", "mean")
    for row in run.result.rows:
        n = group_size(row.metric)
        if n and row.protocol == readout and row.value is not None and "[" not in row.subset:
            if row.metric.startswith("gain@"):
                gains.setdefault(n, []).append(row.value)
            elif row.metric.startswith("best_of@"):
                best.setdefault(n, []).append(row.value)
    if not gains or not best:
        return {}
    largest = max(gains)
    means = [fmean(gains[n]) for n in sorted(gains)]
    return {
        f"best of {largest}": fmean(best[largest]),
        f"{BEST_OF_N_GAIN} @{largest}": means[-1],
        f"{BEST_OF_N_GAIN} mean": fmean(means),
    }


def _calibration_numbers(run: Run) -> dict[str, float]:
    numbers: dict[str, float] = {}
    for column, rules, metric in zip(
        CALIBRATION_COLUMNS, ("as read", "platt", "as read"), ("ece", "ece", "auc"), strict=True
    ):
        protocol = _own_readout(run, *(("sigmoid", "identity") if rules == "as read" else (rules,)))
        values = [
            r.value for r in run.result.rows if (r.protocol, r.metric) == (protocol, metric) and "[" not in r.subset
        ]
        scored = [v for v in values if v is not None]
        if scored:
            numbers[column] = fmean(scored)
    return numbers


def _own_readout(run: Run, *rules: str) -> str:
    """Returns the protocol of the run's first readout in OWN_VALUE under the first of the rules that it has."""
    available = {row.protocol for row in run.result.rows}
    protocols = (f"{readout}/{rule}" for readout in OWN_VALUE_READOUTS for rule in rules)
    return next((protocol for protocol in protocols if protocol in available), "")


def _headline_numbers(run: Run) -> Iterator[tuple[str, float]]:
    """Yields PRMScore, or the drop of F1 in other formats: widest subset, headline readout, no oracle threshold."""
    metric, column = MAIN_METRICS[run.result.manifest.task]
    readout = DEFAULT_READOUTS[run.result.manifest.kind]
    values = {
        (row.subset, row.protocol): row.value
        for row in run.result.rows
        if row.metric == metric and not (metric == "f1_drop" and _is_plain(row.subset))
    }
    subset = max((s for s, _ in values), key=lambda s: (s.count(","), s.startswith("micro[")), default="")
    for (row_subset, protocol), value in sorted(values.items(), key=lambda item: _rule_rank(item[0][1])):
        is_honest = protocol.startswith(f"{readout}/") and "/oracle" not in protocol
        if row_subset == subset and is_honest and value is not None:
            yield column, value
            return


def _is_plain(subset: str) -> bool:
    """Whether all members of a subset are in the original format, whose drop is 0 by definition."""
    return all(base_and_rendering(name)[1] == PLAIN for name in members(subset))


def _rule_rank(protocol: str) -> tuple[int, str]:
    rule = protocol.partition("/")[2].partition(":")[0]
    return HONEST_RULES.index(rule) if rule in HONEST_RULES else len(HONEST_RULES), protocol


def _rl_gain(weights: str, trained: Sequence[Run]) -> dict[str, float]:
    """Returns the mean RL gain of the DistRL runs that recorded these weights as their reward model's."""
    own_runs = [run for run in trained if run.result.manifest.config.get("rm_weights") == weights]
    rl = gather_rl_study(own_runs)
    gains = [fmean(v.values()) for p in rl.panels for arm in rl.arms(p) for v in rl.gain(p, arm).values()]
    return {RL_GAIN_COLUMNS[0]: fmean(gains)} if gains else {}


# --- any checkpoint ---------------------------------------------------------------------------------------------


def _row(model: str, panel: str, seed: int | None, runs: Sequence[Run], numbers: Mapping[str, float]) -> Checkpoint:
    manifests = [run.result.manifest for run in runs]
    kinds = {m.task for m in manifests} | ({"distrl"} if RL_GAIN_COLUMNS[0] in numbers else set())
    weights = sorted({m.weights or m.revision or "unknown" for m in manifests})
    ordered_kinds = tuple(kind for kind in KINDS if kind in kinds)
    return Checkpoint(model, panel, seed, " ".join(weights), ordered_kinds, tuple(runs), {**numbers, **_cost(runs)})


def _cost(runs: Iterable[Run]) -> dict[str, float]:
    """Returns the cost over all of a checkpoint's runs; steps of unscored traces do not count."""
    timed = [run for run in runs if run.result.manifest.seconds > 0 and run.result.manifest.tokens > 0]
    steps = sum(trace.steps for run in timed for trace in run.scores if not trace.unscored)
    manifests = [run.result.manifest for run in timed]
    if not steps:
        return {}
    tokens, seconds = sum(m.tokens for m in manifests), sum(m.seconds for m in manifests)
    memory = [m.memory_gib for m in manifests if m.memory_gib is not None]
    costs = [m.cost for m in manifests if m.cost is not None]
    numbers = dict(zip(COST_COLUMNS, (float(tokens), seconds, tokens / steps, 1000 * seconds / steps), strict=False))
    return (
        numbers | ({COST_COLUMNS[4]: max(memory)} if memory else {}) | ({COST_COLUMNS[5]: sum(costs)} if costs else {})
    )
