"""How large a study must be: detectable differences, numbers of units that a difference needs, and their uncertainty.

A unit is what is sampled: a problem, or a seed of training. All use Student's t of n - 1 degrees of freedom, as the
tests of the studies do.
"""

from __future__ import annotations

import math

from scipy import special

MOST_UNITS = 10**9
"""Numbers of units beyond this are not looked for."""


def detectable(deviation: float, n: int, level: float = 0.05, power: float = 0.80) -> float:
    """Returns the smallest true difference that a two-sided test finds with this power.

    It is (t(1 - level / 2) + t(power)) standard errors, the minimum detectable difference of the tables.

    Args:
        deviation: Standard deviation of a unit's difference; the standard error is this over the root of n.
        n: Number of units, at least 2.
        level: Level of the test.
        power: Share of studies in which the difference is found.
    """
    quantiles = special.stdtrit(n - 1, 1 - level / 2) + special.stdtrit(n - 1, power)
    return float(quantiles * deviation / math.sqrt(n))


def needed(deviation: float, difference: float, level: float = 0.05, power: float = 0.80) -> int | None:
    """Returns the smallest number of units, at least 2, at which a true difference is detectable.

    None where even MOST_UNITS would not do. Arguments as in `detectable`; `difference` is above 0.
    """
    low, high = 1, 2
    while detectable(deviation, high, level, power) > difference:
        low, high = high, 2 * high
        if high > MOST_UNITS:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if detectable(deviation, middle, level, power) <= difference else (middle, high)
    return high


def deviation_interval(deviation: float, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Returns the interval of a standard deviation that was estimated from n units: (n - 1) s^2 is chi-square."""
    df, tail = n - 1, (1 - confidence) / 2
    most, least = float(special.chdtri(df, tail)), float(special.chdtri(df, 1 - tail))
    return deviation * math.sqrt(df / most), deviation * math.sqrt(df / least)
