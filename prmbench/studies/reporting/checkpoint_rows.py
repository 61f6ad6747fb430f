"""Runs of all tasks -> one row per checkpoint: step F1, best-of-N gain, calibration, RL gain, cost.

Rows of the miniature are joined by method, seed and panel, others by the hash or revision of their weights. Tables and
correlations are made of the rows in checkpoint_tables.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from prmbench.core.records import EvalProtocol, RunManifest
from prmbench.core.result_files import Run
from prmbench.report.blocks import group_size
from prmbench.report.frame import columns, frame, members, model_name
from prmbench.report.verdicts import HEADLINE
from prmbench.studies.reporting.nested_seeds import Runs, difference
from prmbench.studies.reporting.policy_runs import BASE, RLStudy, rl_study
from prmbench.studies.reporting.probe_models import PANEL_OF, PROBE, name
from prmbench.studies.reporting.reward_model_runs import (
    PAPER,
    PROCESS,
    SHIFTS,
    STUDY,
    BySeed,
    Study,
    own,
    seed_of,
    study,
)
from prmbench.tasks.format_shift import PLAIN, base_and_rendering

F1 = ("F1 onpolicy", "F1 injected", "F1 shifts", "own F1 onpolicy", "oracle F1 onpolicy", "oracle F1 injected")
"""Of the miniature: process level but for `own`, which is read by the value that picks among N; calibrated but for the
last two."""
CALIBRATION = ("ECE", "ECE Platt", "AUC")
GAINS, RL_GAINS = "best-of-N gain", ("RL gain", "over GRPO")
COST = ("tokens", "seconds", "tokens a step", "s / 1,000 steps", "GiB", "cost")
KINDS = ("steps", "validity", "format_shift", "best_of_n", "calibration", "distrl")
"""Tasks that say something about a reward model; a checkpoint joins at least two of them."""
HEADLINES = {"validity": ("prmscore", "PRMScore"), "format_shift": ("f1_drop", "F1 lost in other formats")}
HONEST = ("calibrated", "native", "fixed", "cross_validated")
"""Threshold rules that may stand for a run, the first that it has."""
BEST_OF, OWN_VALUE = "best_of_n", ("prefix_mean", "prefix_sum", "as_is", "vote")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """One reward model and all that its runs say of it."""

    model: str
    panel: str
    """Of the miniature: `plain` or `marker`; else empty."""
    seed: int | None
    """Of its world in the miniature; None elsewhere."""
    weights: str
    """Hash of its files, or the revision; `unknown` where neither was recorded."""
    kinds: tuple[str, ...]
    """The tasks that it has numbers of."""
    runs: tuple[Run, ...]
    numbers: Mapping[str, float]
    """Column -> fraction, count or number of that name; what does not exist is absent."""

    @property
    def world(self) -> str:
        """What its rivals share with it: policy, prompts, judged traces."""
        return f"{self.panel} seed {self.seed}"

    @property
    def probe(self) -> bool:
        """Trained on other completions than its world's own."""
        return PROBE.fullmatch(self.model) is not None

    @property
    def paper(self) -> bool:
        """Trained with the paper's own constants."""
        return self.model.endswith(PAPER)

    @property
    def tuned(self) -> bool:
        """Trained with this world's constants on its completions."""
        return not (self.probe or self.paper)


def checkpoints(runs: Sequence[Run]) -> tuple[Checkpoint, ...]:
    """Of the miniature by method and seed, then the others by name; empty unless some row joins two kinds of runs.

    Baselines have no weights and no row; policies are no reward models.
    """
    trained = [run for run in runs if run.result.manifest.task == "distrl"]
    scored = [run for run in runs if run.result.manifest.task in KINDS and _is_model(run.result.manifest)]
    inside = [run for run in scored if run.result.manifest.benchmark == STUDY]
    outside = [run for run in scored if run.result.manifest.benchmark != STUDY]
    found = (*_studied(inside, trained), *_others(outside, trained))
    return found if any(len(row.kinds) > 1 for row in found) else ()


def _is_model(manifest: RunManifest) -> bool:
    return manifest.backend != "baseline" and manifest.task != "distrl"


# --- the miniature ----------------------------------------------------------------------------------------------


def _studied(runs: Sequence[Run], trained: Sequence[Run]) -> Iterator[Checkpoint]:
    by_key: dict[tuple[str, int, str], list[Run]] = {}
    for run in study(runs).runs:
        m = run.result.manifest
        by_key.setdefault((m.model, seed_of(m), m.weights or ""), []).append(run)
    gains = _gains_by_start(trained)
    for (method, seed, _), mine in by_key.items():
        columns = _study_columns(study(mine), method)
        numbers = {column: values[seed] for column, values in columns.items() if seed in values}
        policies = {run.result.manifest.ref_weights for run in mine} - {None}
        for policy in policies:
            numbers |= gains.get((method, seed, str(policy)), {})
        yield _row(method, _panel(method), seed, mine, numbers)


def _panel(method: str) -> str:
    """Models that know a marker have a policy of their own."""
    return "marker" if "_marker" in method else "plain"


def _study_columns(models: Study, method: str) -> dict[str, BySeed]:
    """Column -> seed -> number."""
    plain, injected, own_value = ("onpolicy",), ("injected",), own(method)
    how = {
        F1[0]: (PROCESS, plain, "calibrated"),
        F1[1]: (PROCESS, injected, "calibrated"),
        F1[2]: (PROCESS, SHIFTS, "calibrated"),
        F1[3]: (own_value, plain, "calibrated"),
        F1[4]: (PROCESS, plain, "oracle"),
        F1[5]: (PROCESS, injected, "oracle"),
    }
    found = {column: models.f1(method, *given) for column, given in how.items()}
    sizes = models.group_sizes()
    if sizes:
        found[f"best of {sizes[-1]}"] = models.best_of(method, sizes=sizes[-1:])
        found[f"{GAINS} @{sizes[-1]}"] = models.best_of(method, "gain", sizes[-1:])
        found[f"{GAINS} mean"] = models.best_of(method, "gain")
    readout, subsets = models.chosen("calibration", method, own_value), models.subsets("calibration")
    for column, rules, metric in zip(CALIBRATION, ("as read", "platt", "as read"), ("ece", "ece", "auc"), strict=True):
        named = ("sigmoid", "identity") if rules == "as read" else (rules,)
        known = [models.by_seed("calibration", method, (readout, rule, metric), subsets) for rule in named]
        found[column] = next((values for values in known if values), {})
    return found


def _gains_by_start(trained: Sequence[Run]) -> dict[tuple[str, int, str], dict[str, float]]:
    """(Method, SFT seed, hash of the policy) -> RL gains of DistRL's default arm that starts from that reward model.

    The policy's hash tells one world from another of the same seed. A run that several benchmarks hold counts once.
    """
    found: dict[tuple[str, int, str], dict[str, dict[int, float]]] = {}
    for told, panel, arm in _arms(trained):
        runs = {t.seeds: t.run.result.manifest for t in told.of(panel, arm)}
        method = _reward_model(runs.values(), panel, arm)
        for column, gains in zip(RL_GAINS, _gains(told, panel, arm) if method else (), strict=False):
            for (sft, rl), values in gains.items():
                known = found.setdefault((method, sft, runs[sft, rl].weights or ""), {})
                known.setdefault(column, {}).setdefault(rl, fmean(values.values()))
    return {key: {column: fmean(v.values()) for column, v in columns.items()} for key, columns in found.items()}


def _arms(trained: Sequence[Run]) -> Iterator[tuple[RLStudy, str, str]]:
    """(All runs of a benchmark, panel, arm)."""
    for benchmark in sorted({run.result.manifest.benchmark for run in trained}):
        told = rl_study(run for run in trained if run.result.manifest.benchmark == benchmark)
        yield from ((told, panel, arm) for panel in told.panels for arm in told.arms(panel))


def _reward_model(manifests: Iterable[RunManifest], panel: str, arm: str) -> str:
    """The miniature's method that a default DistRL arm starts from; empty for other arms and other data."""
    method = name(arm.removeprefix("distrl_"), PANEL_OF.get(panel, ""))
    named = {str(m.config.get("rm_model") or "") for m in manifests}
    return method if panel in PANEL_OF and named == {method} else ""


def _gains(told: RLStudy, panel: str, arm: str) -> tuple[Runs, Runs]:
    """Accuracy after minus before training; and after training minus GRPO's, paired by problem."""
    over = difference(told.accuracy(panel, arm, -1), told.accuracy(panel, BASE, -1))
    gain = {seeds: values for seeds, values in told.gain(panel, arm).items() if values}
    return gain, over


# --- other models -----------------------------------------------------------------------------------------------


def _others(runs: Sequence[Run], trained: Sequence[Run]) -> Iterator[Checkpoint]:
    by_key: dict[tuple[str, str, str, str], list[Run]] = {}
    for run in sorted(runs, key=lambda r: (model_name(r.result.manifest), r.result.manifest.run_id)):
        by_key.setdefault(_identity(run.result.manifest), []).append(run)
    for key, mine in by_key.items():
        largest = _largest(mine)
        numbers: dict[str, float] = {}
        for run in largest:
            numbers |= _numbers(run)
        yield _row(model_name(mine[0].result.manifest), "", None, largest, numbers | _rl_gain(key[0], trained))


def _identity(manifest: RunManifest) -> tuple[str, str, str, str]:
    """The same weights, read the same way (of one model, critics give verdicts or scores), against one reference."""
    weights = manifest.weights or f"{manifest.model}@{manifest.revision}"
    reference = manifest.ref_weights or f"{manifest.ref_model}@{manifest.ref_revision}"
    return weights, manifest.backend, manifest.kind, reference


def _largest(runs: Sequence[Run]) -> list[Run]:
    """Of several runs of a benchmark (other input, a limit) the one with most traces."""
    found: dict[tuple[str, str], Run] = {}
    for run in runs:
        m = run.result.manifest
        known = found.get((m.task, m.benchmark))
        if known is None or m.n > known.result.manifest.n:
            found[m.task, m.benchmark] = run
    return [found[key] for key in sorted(found)]


def _numbers(run: Run) -> dict[str, float]:
    """What a run adds to its checkpoint's row, named by its benchmark."""
    m = run.result.manifest
    if m.task == "steps":
        return dict(_f1_numbers(run))
    if m.task == BEST_OF:
        return _picked(run)
    if m.task == "calibration":
        return _calibrated(run)
    return dict(_headlines(run))


def _f1_numbers(run: Run) -> Iterator[tuple[str, float]]:
    """F1 by threshold rule: headline readout, the average over most subsets or the only one."""
    wide = columns(frame([run]))
    order = [c for c in wide if c.startswith("avg[")] + list(wide)
    for row in sorted(run.result.rows, key=lambda r: order.index(r.subset), reverse=True):  # the widest stays
        if row.metric == "f1" and row.value is not None and not row.protocol.startswith("floor/"):
            protocol = EvalProtocol.parse(row.protocol)
            if (protocol.readout, protocol.series) == (HEADLINE[run.result.manifest.kind], ""):
                yield f"{run.result.manifest.benchmark} F1, {protocol.threshold}", row.value


def _picked(run: Run) -> dict[str, float]:
    """Picking by the last step's value, the mean over the subsets."""
    values: dict[int, list[float]] = {}
    best: dict[int, list[float]] = {}
    readout = _own_readout(run, "last", "mean")
    for row in run.result.rows:
        n = group_size(row.metric)
        if n and row.protocol == readout and row.value is not None and "[" not in row.subset:
            kept = values if row.metric.startswith("gain@") else best if row.metric.startswith("best_of@") else {}
            kept.setdefault(n, []).append(row.value)
    if not values or not best:
        return {}
    top = max(values)
    means = [fmean(values[n]) for n in sorted(values)]
    return {f"best of {top}": fmean(best[top]), f"{GAINS} @{top}": means[-1], f"{GAINS} mean": fmean(means)}


def _calibrated(run: Run) -> dict[str, float]:
    found: dict[str, float] = {}
    for column, rules, metric in zip(CALIBRATION, ("as read", "platt", "as read"), ("ece", "ece", "auc"), strict=True):
        wanted = _own_readout(run, *(("sigmoid", "identity") if rules == "as read" else (rules,)))
        values = [
            r.value for r in run.result.rows if (r.protocol, r.metric) == (wanted, metric) and "[" not in r.subset
        ]
        known = [v for v in values if v is not None]
        if known:
            found[column] = fmean(known)
    return found


def _own_readout(run: Run, *rules: str) -> str:
    """The protocol of the first readout of a model's own value that the run has, under the first rule that it has."""
    have = {row.protocol for row in run.result.rows}
    keys = (f"{readout}/{rule}" for readout in OWN_VALUE for rule in rules)
    return next((key for key in keys if key in have), "")


def _headlines(run: Run) -> Iterator[tuple[str, float]]:
    """PRMScore, or the drop of F1 in other formats: widest subset, headline readout, never the oracle's threshold."""
    metric, column = HEADLINES[run.result.manifest.task]
    readout = HEADLINE[run.result.manifest.kind]
    have = {
        (row.subset, row.protocol): row.value
        for row in run.result.rows
        if row.metric == metric and not (metric == "f1_drop" and _is_plain(row.subset))
    }
    subset = max((s for s, _ in have), key=lambda s: (s.count(","), s.startswith("micro[")), default="")
    for (where, key), value in sorted(have.items(), key=lambda item: _rule_rank(item[0][1])):
        honest = key.startswith(f"{readout}/") and "/oracle" not in key
        if where == subset and honest and value is not None:
            yield column, value
            return


def _is_plain(subset: str) -> bool:
    """Traces as they are, which lose nothing to themselves."""
    return all(base_and_rendering(name)[1] == PLAIN for name in members(subset))


def _rule_rank(key: str) -> tuple[int, str]:
    rule = key.partition("/")[2].partition(":")[0]
    return HONEST.index(rule) if rule in HONEST else len(HONEST), key


def _rl_gain(weights: str, trained: Sequence[Run]) -> dict[str, float]:
    """Of DistRL runs that say by hash which reward model they started from."""
    mine = [run for run in trained if run.result.manifest.config.get("rm_weights") == weights]
    told = rl_study(mine)
    gains = [fmean(v.values()) for p in told.panels for arm in told.arms(p) for v in told.gain(p, arm).values()]
    return {RL_GAINS[0]: fmean(gains)} if gains else {}


# --- any checkpoint ---------------------------------------------------------------------------------------------


def _row(model: str, panel: str, seed: int | None, runs: Sequence[Run], numbers: Mapping[str, float]) -> Checkpoint:
    manifests = [run.result.manifest for run in runs]
    kinds = {m.task for m in manifests} | ({"distrl"} if RL_GAINS[0] in numbers else set())
    weights = sorted({m.weights or m.revision or "unknown" for m in manifests})
    told = tuple(kind for kind in KINDS if kind in kinds)
    return Checkpoint(model, panel, seed, " ".join(weights), told, tuple(runs), {**numbers, **_cost(runs)})


def _cost(runs: Iterable[Run]) -> dict[str, float]:
    """Over all of a checkpoint's runs; a step counts where its trace was scored."""
    timed = [run for run in runs if run.result.manifest.seconds > 0 and run.result.manifest.tokens > 0]
    steps = sum(trace.steps for run in timed for trace in run.scores if not trace.unscored)
    manifests = [run.result.manifest for run in timed]
    if not steps:
        return {}
    tokens, seconds = sum(m.tokens for m in manifests), sum(m.seconds for m in manifests)
    memory = [m.memory_gib for m in manifests if m.memory_gib is not None]
    paid = [m.cost for m in manifests if m.cost is not None]
    found = dict(zip(COST, (float(tokens), seconds, tokens / steps, 1000 * seconds / steps), strict=False))
    return found | ({COST[4]: max(memory)} if memory else {}) | ({COST[5]: sum(paid)} if paid else {})
