"""The names of the backends and of the baselines."""

from __future__ import annotations

BACKENDS = {
    "implicit": "prmbench.backends.implicit:load",
    "endo": "prmbench.backends.endo:load",
    "value_head": "prmbench.backends.value_head:load",
    "token_cls": "prmbench.backends.token_cls:load",
    "tag_lm": "prmbench.backends.tag_lm:load",
    "critic": "prmbench.backends.critic:load",
    "baseline": "prmbench.backends.baseline:load",
}
"""The backends' loaders, as strings so that nothing is imported before it is used."""
BASELINES = ("random", "step-length", "all-right", "position-only", "outcome-oracle", "gold")
