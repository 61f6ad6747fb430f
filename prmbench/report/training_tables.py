"""Tables of `train-distrl` runs: how right each policy is before and after its training, and what it gained."""

from __future__ import annotations

from collections.abc import Sequence

from prmbench.core.result_files import Run
from prmbench.report.blocks import PERCENT, SIGNED, Block, blocks, problem, remarks, rows_of, text
from prmbench.report.frame import model_name
from prmbench.report.tables import Grid
from prmbench.tasks import distrl

WORDS = "How right a policy's own completions are before and after it is trained by reinforcement learning."


def grids(runs: Sequence[Run]) -> tuple[Grid, ...]:
    """One table; runs on the same validation problems stand together."""
    found = blocks(runs, problem)
    gains = [row for run in runs for row in run.result.rows if row.protocol == distrl.GAIN]
    return (
        Grid(
            label="distrl-policies",
            title="Policies before and after training",
            caption="Mean accuracy of the sampled completions on the validation problems at the first and the last "
            "validation, percent; gain: after minus before, paired over problems, in percentage points. 95% interval "
            "over problems. Cut: completions that reached the length limit.",
            header=("Problems", "Model", "Run", "Metric", "Before", "After", "Gain", "Cut before", "Cut after"),
            groups=tuple(tuple(_policy(block, run) for run in block.runs) for block in found),
            notes=remarks(gains),
            text_columns=4,
        ),
    )


def _policy(block: Block, run: Run) -> tuple[str, ...]:
    manifest = run.result.manifest
    rows = rows_of(run.result, block.subset)
    accuracy, steps = distrl.metric(manifest), distrl.validated_at(manifest)
    before, after = distrl.step_key(steps[0]), distrl.step_key(steps[-1])
    is_trained = len(steps) > 1
    return (
        *(block.name, model_name(manifest), manifest.run_id, accuracy),
        text(rows.get((before, accuracy)), PERCENT),
        text(rows.get((after, accuracy)) if is_trained else None, PERCENT),
        text(rows.get((distrl.GAIN, accuracy)), SIGNED),
        text(rows.get((before, distrl.TRUNCATED)), interval=False),
        text(rows.get((after, distrl.TRUNCATED)) if is_trained else None, interval=False),
    )
