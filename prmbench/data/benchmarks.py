"""Benchmarks: a row each, which names its task and its reader. A new one is a row here and a reader beside it.

One from outside is such a row, too: `--benchmark pkg.mod:NAME`, or an entry point of the group `prmbench.benchmarks`.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from prmbench.core.plugins import check_arguments, import_named
from prmbench.core.records import Trace, UserError
from prmbench.data import prmbench_preview, processbench, renderings, rollout_traces, selection
from prmbench.tasks import Task, add_task, find_task, installed_benchmarks, load_entry

FromHub = Callable[[Sequence[str], str | None], tuple[list[Trace], str | None]]
"""(subsets, revision) -> traces, and the revision that they are of."""
Limit = Callable[[Sequence[Trace], int | None], list[Trace]]
"""Keeps so many traces of a subset, or so many prompts with all of theirs."""


def limit_solutions(traces: Sequence[Trace], limit: int | None) -> list[Trace]:
    """Keeps `limit` traces at even distances, of both sorts where there are both: with an error and without."""
    return selection.spread(traces, limit, lambda trace: selection.classes_of(trace.first_error, None))


@dataclass(frozen=True, slots=True)
class Reader:
    """Where a benchmark's traces come from."""

    from_files: Callable[..., list[Trace]]
    """Reads a file or a folder. The second argument says how free text becomes steps: see `--split`."""
    from_hub: FromHub | None = None
    """Downloads them; None: --data is needed."""
    limit: Limit = limit_solutions
    takes_fields: bool = False
    """Whether `from_files` takes a third argument, the names that `--fields` gives."""


ROLLOUTS = Reader(rollout_traces.from_files, limit=rollout_traces.select_prompts, takes_fields=True)
"""Completions, as `prmbench rollout` and `prmbench verify` write them."""
PROCESSBENCH = Reader(
    lambda path, _, fields=None: processbench.from_files(path, fields),
    processbench.from_hub,
    takes_fields=True,
)
PRMBENCH_PREVIEW = Reader(lambda path, _: prmbench_preview.from_files(path), prmbench_preview.from_hub)


@dataclass(frozen=True, slots=True)
class Benchmark:
    """A benchmark by name; `version` moves when its meaning here does."""

    name: str
    version: int
    task: Task
    reader: Reader
    hub_id: str = ""
    """Empty: there is nothing to download, --data is needed."""
    revision: str | None = None
    """Hub revision to load; None = the newest, resolved and recorded at run time."""
    subsets: tuple[str, ...] = ()
    """In table order; those that are not named follow by name."""
    is_official: Callable[[Sequence[Trace]], bool] | None = None
    """Whether traces read from files are those published under the name; others are filed under a name of their own.

    None: whatever `--data` holds is this benchmark.
    """
    doubt: Callable[[Sequence[Trace]], str] | None = None
    """Why traces read from files with the published ids are not certain to be those published; empty: nothing."""
    render: Callable[[Sequence[Trace], Sequence[str]], list[Trace]] | None = None
    """Adds the traces in other formats, those named or all; None: a benchmark without formats."""


BENCHMARKS = {
    row.name: row
    for row in (
        Benchmark(
            "processbench",
            1,
            find_task("steps"),
            PROCESSBENCH,
            hub_id=processbench.HUB_ID,
            subsets=processbench.SUBSETS,
            is_official=processbench.is_official,
            doubt=processbench.doubt,
        ),
        Benchmark(
            "prmbench_preview",
            2,  # 2: a step that is only a number is a step
            find_task("validity"),
            PRMBENCH_PREVIEW,
            hub_id=prmbench_preview.HUB_ID,
            subsets=prmbench_preview.SUBSETS,
            is_official=prmbench_preview.is_official,
            doubt=prmbench_preview.doubt,
        ),
        Benchmark(
            "format_shift",
            1,
            find_task("format_shift"),
            PROCESSBENCH,
            hub_id=processbench.HUB_ID,
            subsets=processbench.SUBSETS,
            is_official=processbench.is_official,
            doubt=processbench.doubt,
            render=renderings.render_traces,
        ),
        Benchmark("best_of_n", 1, find_task("best_of_n"), ROLLOUTS),
        Benchmark("policy", 1, find_task("policy"), ROLLOUTS),
        Benchmark("calibration", 1, find_task("calibration"), ROLLOUTS),
    )
}
"""Those of this package."""


def find_benchmark(name: str) -> Benchmark:
    """Returns a benchmark of this package, of an installed one, or of the caller's (`pkg.mod:NAME`).

    Its task is known from then on. Raises UserError when there is none, or it is no benchmark.
    """
    if name in BENCHMARKS:
        return BENCHMARKS[name]
    installed = {entry.name: entry for entry in installed_benchmarks()}
    if ":" in name:
        row = import_named(name, "--benchmark")
    elif name in installed:
        row = load_entry(installed[name])
    else:
        known = (*BENCHMARKS, *installed)
        near = difflib.get_close_matches(name, known, 1)
        hint = f"did you mean {near[0]}?" if near else f"choose from {', '.join(known)}, or name your own: pkg.mod:NAME"
        raise UserError(f"--benchmark {name}: {hint}")
    if not isinstance(row, Benchmark):
        raise UserError(f"--benchmark {name}: is a {type(row).__name__}, not a prmbench.data.benchmarks.Benchmark")
    if row.name in BENCHMARKS:
        raise UserError(f"--benchmark {name}: is called {row.name}, as one of prmbench's own; give it another name")
    _check_functions(row, name)
    add_task(row.task)
    return row


def _check_functions(row: Benchmark, name: str) -> None:
    """Raise UserError where a function of a plugin's benchmark or task does not take what it is called with."""
    calls: list[tuple[str, Callable[..., object], tuple[str, ...]]] = [
        ("from_files", row.reader.from_files, ("path", "split")),
        ("judge", row.task.judge, ("manifest", "scores")),
        ("protocols", row.task.protocols, ("manifest",)),
        ("check_data", row.task.check_data, ("traces", "source")),
    ]
    if row.reader.takes_fields:
        calls.append(("from_files", row.reader.from_files, ("path", "split", "fields")))
    for role, function, arguments in calls:
        check_arguments(function, arguments, f"--benchmark {name}: {role}")
