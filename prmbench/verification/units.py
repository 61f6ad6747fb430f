r"""Reads the unit beside a number, so that `5000 m` equals `5 km`.

The common units of length, area, volume, mass, time, angle, temperature, money, and of mechanics and electricity.
A word that is none of them is no unit here, and is never compared.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction

Dimension = frozenset[tuple[str, int]]
"""Base units with their powers, those of zero left out: a speed is {("m", 1), ("s", -1)}."""


@dataclass(frozen=True, slots=True)
class Unit:
    """A unit as a multiple of base units."""

    dimension: Dimension
    factor: Fraction = Fraction(1)
    pi_power: int = 0
    """Power of pi in the factor, which a degree has: pi/180 radians."""

    def times(self, other: Unit, power: int) -> Unit:
        """Return the product of this unit with a power of another one."""
        powers = dict(self.dimension)
        for base, exponent in other.dimension:
            powers[base] = powers.get(base, 0) + exponent * power
        dimension = frozenset((base, exponent) for base, exponent in powers.items() if exponent)
        return Unit(dimension, self.factor * other.factor**power, self.pi_power + other.pi_power * power)

    @property
    def bases(self) -> frozenset[str]:
        """The base units in the numerator."""
        return frozenset(base for base, power in self.dimension if power > 0)


_ONE = Unit(frozenset())
_DEFINITIONS = {
    "m": """nm:1e-9 um:1e-6 mm:1e-3 cm:1e-2 dm:1e-1 m:1 km:1000 in:.0254 ft:.3048 yd:.9144 mi:1609.344
        nanometer:1e-9 micrometer:1e-6 micron:1e-6 millimeter:1e-3 centimeter:1e-2 decimeter:1e-1 meter:1
        kilometer:1000 inch:.0254 foot:.3048 yard:.9144 mile:1609.344 angstrom:1e-10""",
    "kg": """mg:1e-6 g:1e-3 gm:1e-3 kg:1 lb:.45359237 oz:.028349523125 milligram:1e-6 gram:1e-3 kilogram:1 kilo:1
        pound:.45359237 ounce:.028349523125 ton:1000 ton:907.18474 tonne:1000""",
    "s": """ms:1e-3 s:1 sec:1 second:1 millisecond:1e-3 min:60 minute:60 h:3600 hr:3600 hour:3600 day:86400 d:86400
        week:604800 wk:604800""",
    "month": "month:1 year:12 yr:12 decade:120 century:1200",
    "m3": """ml:1e-6 mL:1e-6 cl:1e-5 dl:1e-4 l:1e-3 L:1e-3 milliliter:1e-6 centiliter:1e-5 deciliter:1e-4 liter:1e-3
        kiloliter:1 cc:1e-6 gal:.003785411784 gallon:.003785411784 quart:.000946352946 pint:.000473176473
        cup:.0002365882365 tablespoon:.00001478676478125 teaspoon:.00000492892159375 ounce:.0000295735295625
        oz:.0000295735295625""",
    "m2": "ha:10000 hectare:10000 acre:4046.8564224",
    "usd": "dollar:1 usd:1 USD:1 cent:.01",
    "eur": "euro:1 eur:1 EUR:1 cent:.01",
    "gbp": "gbp:1 GBP:1 pound:1 pence:.01",
    "inr": "rupee:1 rs:1 Rs:1 inr:1 INR:1",
    "jpy": "yen:1",
    "cny": "yuan:1 rmb:1 RMB:1 cny:1 CNY:1",
    "rad": "rad:1 radian:1",
    "celsius": "degC:1 C:1 celsius:1",
    "fahrenheit": "degF:1 F:1 fahrenheit:1",
    "K": "K:1 kelvin:1",
    "A": "mA:1e-3 A:1 amp:1 ampere:1",
    "mol": "mol:1 mole:1",
    "rev": "revolution:1",
}
"""Base unit -> names with their multiples of it. Plurals are read too; a name in two rows has both meanings."""
_DERIVED: Mapping[str, Mapping[str, int]] = {
    "N newton": {"kg": 1, "m": 1, "s": -2},
    "Pa pascal": {"kg": 1, "m": -1, "s": -2},
    "J joule": {"kg": 1, "m": 2, "s": -2},
    "W watt": {"kg": 1, "m": 2, "s": -3},
    "V volt": {"kg": 1, "m": 2, "s": -3, "A": -1},
    "ohm Ohm": {"kg": 1, "m": 2, "s": -3, "A": -2},
    "Hz hertz": {"s": -1},
}
"""Names -> powers of base units."""
_MULTIPLES: Mapping[str, tuple[str, int | Fraction]] = {
    "kN": ("N", 1000), "kPa": ("Pa", 1000), "MPa": ("Pa", 10**6), "kJ": ("J", 1000), "MJ": ("J", 10**6),
    "kW": ("W", 1000), "MW": ("W", 10**6), "mV": ("V", Fraction(1, 1000)), "kV": ("V", 1000),
    "kohm": ("ohm", 1000), "Mohm": ("ohm", 10**6), "kHz": ("Hz", 1000), "MHz": ("Hz", 10**6), "GHz": ("Hz", 10**9),
}  # fmt: skip
_SPEEDS = {"mph": ("mi", "h"), "kmph": ("km", "h"), "kmh": ("km", "h"), "kph": ("km", "h"), "fps": ("ft", "s")}
_MONEY = frozenset(["usd", "eur", "gbp", "inr", "jpy", "cny"])
_PREFIXES = {"square": 2, "sq": 2, "cubic": 3, "cu": 3}
_SUFFIXES = {"squared": 2, "cubed": 3}
_TOKEN = re.compile(r"[^\W\d_]+|\^\s*\{?\s*(-?\d)\s*\}?(?!\d)|\S")
_PIECE = re.compile(
    r"\s*(?:\\text\s*\{[^{}]*\}|\\(?:mu|Omega)(?![A-Za-z])|\^\s*(?:\{\s*(?:-?\d+|\\circ)\s*\}|-?\d+|\\circ)|[°/·*]"
    r"|(?!in\s+[\w$\\])[A-Za-zµμ]+)"
)
"""Matches a part of a unit; `in` before another word is no inch."""
MAX_PIECES = 8
_SPELLINGS = (
    (re.compile(r"\\text\s*\{([^{}]*)\}"), r" \1 "),
    (re.compile(r"\^\s*(?:\{\s*\\circ\s*\}|\\circ(?![A-Za-z]))|°"), " degrees "),
    (re.compile(r"\\Omega(?![A-Za-z])"), "ohm "),
    (re.compile(r"\\mu\s*(?=[A-Za-z])|[µμ]"), "u"),
    (re.compile(r"\\(?:cdot|times)(?![A-Za-z])"), "*"),
    (re.compile(r"(?i)\bdegrees?\s+(?:c|celsius)\b"), "degC"),
    (re.compile(r"(?i)\bdegrees?\s+(?:f|fahrenheit)\b"), "degF"),
)


def _meanings() -> dict[str, tuple[Unit, ...]]:
    """Return what each name of a unit may mean."""
    meanings: dict[str, tuple[Unit, ...]] = {}
    for base, definitions in _DEFINITIONS.items():
        name, power = (base[0], int(base[1])) if base in ("m2", "m3") else (base, 1)
        for definition in definitions.split():
            unit_name, _, factor = definition.partition(":")
            unit = Unit(frozenset([(name, power)]), Fraction(factor))
            meanings[unit_name] = (*meanings.get(unit_name, ()), unit)
    for names, powers in _DERIVED.items():
        meanings |= dict.fromkeys(names.split(), (Unit(frozenset(powers.items())),))
    for unit_name, (of, multiple) in _MULTIPLES.items():
        meanings[unit_name] = tuple(Unit(unit.dimension, unit.factor * multiple) for unit in meanings[of])
    for unit_name, (distance, time) in _SPEEDS.items():
        meanings[unit_name] = (meanings[distance][0].times(meanings[time][0], -1),)
    degree = Unit(frozenset([("rad", 1)]), Fraction(1, 180), 1)
    for unit_name in ("deg", "degree"):  # also of a temperature, which the text may leave out
        meanings[unit_name] = (degree, *meanings["C"], *meanings["F"])
    return meanings


_MEANINGS = _meanings()
_IRREGULAR = {"feet": "foot", "inches": "inch", "centuries": "century", "hertz": "hertz", "celsius": "celsius"}


def meanings(name: str) -> tuple[Unit, ...]:
    """Return what the name of a unit may mean: `oz` is a mass and a volume; empty where it is no unit's."""
    for spelling in (name, name.lower()) if len(name) > 1 else (name,):
        singular = _IRREGULAR.get(spelling, spelling)
        for candidate in (singular, singular.removesuffix("s") if len(singular) > 2 else singular):
            respelled = re.sub(r"metre$", "meter", re.sub(r"litre$", "liter", candidate))
            if respelled in _MEANINGS:
                return _MEANINGS[respelled]
    return ()


def read_units(text: str) -> tuple[Unit, ...]:
    r"""Return what the words after a number may mean as a unit; empty where they begin with none.

    Args:
        text: Such as `\text{ cm}^2`, `km/h`, `square feet`, `dollars per hour`.
    """
    for pattern, replacement in _SPELLINGS:
        text = pattern.sub(replacement, text)
    units: tuple[Unit, ...] = ()
    last: tuple[Unit, ...] = ()
    sign, prefix = 1, 1
    for token in _TOKEN.finditer(text):
        word = token[0]
        power = int(token[1]) if token[1] else _SUFFIXES.get(word)
        if power is not None and last:
            units = _product(units, last, sign * (power - 1))
        elif word in ("/", "per") and units:
            sign, last = -1, ()
        elif word.lower() in _PREFIXES:
            prefix = _PREFIXES[word.lower()]
        elif word in "*.-·,":
            sign = 1
        elif word == "in" and units:  # `5 cm in total`
            break
        elif last := meanings(word):
            if units and not all(unit.dimension for unit in _product(units, last, sign * prefix)):
                break  # `8 hours per day` are hours
            units = _product(units or (_ONE,), last, sign * prefix)
            prefix = 1
        else:
            break
    return units


def unit_before_other_words(text: str) -> str:
    r"""Return the unit with which a text begins, as it is written: ` km/h` of ` km/h on average`; empty without one."""
    end, best, units = 0, 0, tuple[Unit, ...]()
    for _ in range(MAX_PIECES):
        piece = _PIECE.match(text, end)
        if piece is None:
            break
        end = piece.end()
        longer = read_units(text[:end])
        if longer != units:
            best, units = end, longer
    return text[:best]


def _product(units: Iterable[Unit], others: Iterable[Unit], power: int) -> tuple[Unit, ...]:
    """Return the products of all meanings of one unit with a power of all meanings of another."""
    return tuple(dict.fromkeys(unit.times(other, power) for unit in units for other in others))


def ratio(units: Iterable[Unit], others: Iterable[Unit]) -> tuple[Fraction, int] | None:
    """Return how many of the second unit the first one is; None where they measure different things.

    An amount of money for something equals that amount: `5 dollars per hour` and `5 dollars`.

    Returns:
        The rational factor, and the power of pi beside it.
    """
    pairs = [(unit, other) for unit in units for other in others]
    for unit, other in pairs:
        if unit.dimension == other.dimension:
            return unit.factor / other.factor, unit.pi_power - other.pi_power
    for unit, other in pairs:
        rates = [len(one.dimension) > 1 for one in (unit, other)]
        if unit.bases == other.bases and unit.bases <= _MONEY and rates.count(True) == 1:
            return (Fraction(1), 0)
    return None
