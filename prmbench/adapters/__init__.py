"""Step rewards for trainers: TRL, verl, OpenRLHF, SkyRL, slime and prime-rl, each in a short module of its name.

`open_prm` loads a reward model, `Prm.step_rewards` gives values and token positions, `probe_hacks` shows what
degenerate completions would earn. No trainer is imported before it is used.
"""

from prmbench.adapters.reward_hacks import Hack, probe_hacks
from prmbench.adapters.step_rewards import Guard, Prm, StepRewards, open_prm

__all__ = ["Guard", "Hack", "Prm", "StepRewards", "open_prm", "probe_hacks"]
