"""Named thresholds on a run's metrics, which warn of failures before they show in the accuracy.

The thresholds are rules of thumb of our own; an alarm does not stop a run.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

PATIENCE = 3
"""Default number of steps in a row that a metric must be beyond its threshold."""


@dataclass(frozen=True, slots=True)
class Alarm:
    """A metric, its thresholds, and the failure that they indicate."""

    metric: str
    means: str
    below: float = -math.inf
    above: float = math.inf
    relative: bool = False
    """Whether the thresholds are multiples of the metric's first value."""
    patience: int = PATIENCE

    def beyond(self, value: float, first: float) -> bool:
        """Returns whether a value is beyond a threshold; `first` is the metric's first value."""
        unit = first if self.relative else 1.0
        return value < self.below * unit or value > self.above * unit


ALARMS: dict[str, Alarm] = {
    "rm_collapse": Alarm("rm_accuracy", "the reward model hardly knows right from wrong", below=0.55),
    "rm_overconfident": Alarm("rm_gap", "the reward model's probabilities are far off", below=-0.25, above=0.25),
    "entropy_collapse": Alarm("entropy", "the policy stops exploring", below=0.2, relative=True),
    "entropy_explosion": Alarm("entropy", "the policy falls apart", above=3, relative=True),
    "policy_jump": Alarm("kl_old", "a step changes the policy more than clipping is good for", above=0.1),
    "clipping": Alarm("clip_fraction", "much of an update is clipped; lower --learning-rate", above=0.3),
    "process_dominates": Alarm(
        "gae_outcome_ratio", "the process reward drowns the outcome; lower --gae-weight", above=3
    ),
    "nothing_to_train_on": Alarm("groups", "no prompt of the step could be trained on", below=1, patience=1),
    "few_mixed": Alarm("mixed", "prompts are too easy or too hard to teach anything", below=0.05),
    "truncation": Alarm("truncated", "completions are cut; raise --max-new-tokens", above=0.3),
    "length_drift": Alarm("length", "completions are half or twice as long", below=0.5, above=2, relative=True),
    "step_drift": Alarm("step_count", "solutions have half or twice the steps", below=0.5, above=2, relative=True),
    "unverified": Alarm("unverified", "the verifier fails too often", above=0.05),
    "td_misleads": Alarm("td_outcome_correlation", "process rewards favour wrong completions", below=0),
    "stale_sampler": Alarm("mismatch_rms", "the sampler's weights drift from the policy's", above=0.1),
    "importance": Alarm("ess", "importance weights leave half of the tokens", below=0.5),
    "skipped": Alarm("skipped", "an update that was not finite was left out", above=0, patience=1),
}


def alarms(history: Sequence[Mapping[str, Any]]) -> list[str]:
    """Returns the names of the alarms that the last steps set off; steps without the metric do not count."""
    return [name for name, alarm in ALARMS.items() if _fires(alarm, history)]


def _fires(alarm: Alarm, history: Sequence[Mapping[str, Any]]) -> bool:
    values = [float(step[alarm.metric]) for step in history if step.get(alarm.metric) is not None]
    if len(values) < alarm.patience:
        return False
    return all(alarm.beyond(value, values[0]) for value in values[-alarm.patience :])
