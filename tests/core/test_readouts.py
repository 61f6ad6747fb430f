"""Which readout stands for a run."""

from __future__ import annotations

from prmbench.core.records import DEFAULT_READOUTS, READOUTS


def test_every_kind_with_readouts_has_a_default_among_them() -> None:
    assert set(DEFAULT_READOUTS) == {kind for kind, readouts in READOUTS.items() if readouts}
    assert all(readout in READOUTS[kind] for kind, readout in DEFAULT_READOUTS.items())
