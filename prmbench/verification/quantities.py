r"""Separates a number or expression from the units, currency, percent signs and nouns next to it.

A unit is compared only with a unit: `10 cm` is 10, and `0.1 m`, but not `10 m`; `10\%` is 10. Nouns are compared only
with nouns: `13 apples` is 13, but not `13 pears`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

from prmbench.verification.latex import ALSO_UNITS, FUNCTIONS
from prmbench.verification.numbers import Number, read_number
from prmbench.verification.units import Unit, meanings, ratio, read_units

UNITS = frozenset(
    """
    nm um mm cm dm m km in inch inches ft foot feet yd yard yards mi mile miles mil mg g gm gram grams kg kilogram
    kilograms lb lbs pound pounds oz ounce ounces ton tons tonne tonnes ms s sec secs second seconds min mins minute
    minutes h hr hrs hour hours d day days wk week weeks month months yr yrs year years century centuries ml cl dl l
    L liter liters litre litres gal gallon gallons pint pints quart quarts cup cups cc cu sq ha hectare hectares
    acre acres are Hz kHz MHz GHz N kN Pa kPa MPa bar atm J kJ MJ eV keV MeV W kW MW V mV kV A mA Ohm ohm ohms F C K
    T mol M erg ergs dyne dynes cal kcal rad radian radians deg degree degrees mph kmh kmph kph fps bit bits byte
    bytes kb mb gb cent cents dollar dollars euro euros rupee rupees yen yuan usd eur gbp inr rs rmb cny unit units
    square cubic squared cubed per and percent point points angstrom angstroms parsec parsecs pc Mpc kpc ly AU au Jy
    mag
    """.split()
)
"""Names of units. Single letters count only after a space or inside a text command."""
_SCALES = {"dozen": 12, "hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
"""Words after a number that multiply it."""
_SCALE = re.compile(rf"\b(?:{'|'.join(_SCALES)})s?\b")
_OPERATIONS = frozenset(
    "squared cubed factorial choose plus minus times over halves thirds fourths fifths sixths sevenths eighths ninths"
    " tenths hundredths thousandths".split()
)
"""Words that change the value of the number before them."""
_VERBS = frozenset("is are was not no isn".split())
"""Words that mark a sentence about the number before them."""
_NUMERALS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen"
    " eighteen nineteen twenty"
).split()
_CURRENCY = re.compile(r"(?i)^(?:\\text\s*\{\s*)?(?:usd|us|eur|gbp|inr|rs\.?|rmb|cny)(?:\s*\})?\s*(?=[-\d\\])")
_TEXT_UNIT = r"\\text\s*\{[^{}]*\}\s*(?:\^\s*(?:\{\s*-?\d+\s*\}|-?\d))?"
_BARE_UNIT = r"(?:[kM]?\\Omega|\\mu\s*[A-Za-z]+|[A-Za-z\\][A-Za-z.']*)(?:\s*\^\s*(?:\{\s*-?\d+\s*\}|-?\d))?"
_TAIL = re.compile(rf"(\s*[/*-]|\s*\\cdot|,?\s)?\s*({_TEXT_UNIT}|{_BARE_UNIT})$")
_PART = r"(\d+(?:\.\d+)?)\s*([A-Za-z]+)\.?"
_PARTS, _SUM = re.compile(_PART), re.compile(rf"{_PART}(?:\s+{_PART}){{1,3}}")
MAX_WORDS = 8
"""A number with more words after it is a sentence."""
_TEXT = re.compile(r"\\text\s*\{([^{}]*)\}")


@dataclass(frozen=True, slots=True)
class Quantity:
    """The parts of a scalar answer."""

    core: str
    """The number or expression, as plain LaTeX."""
    number: Number | None
    """The core as a number; None where it is another expression."""
    noun: str = ""
    """Words after the core that are not units, in lower case."""
    percent: bool = False
    units: tuple[Unit, ...] = ()
    """What the unit beside the core may mean; empty without one."""


def read_quantity(text: str) -> Quantity:
    r"""Return the parts of a scalar: `12\text{ cm}^2` has the core `12`, `72 marbles` has a noun."""
    numeral = _TEXT.sub(r"\1", text).strip().lower()
    if numeral in _NUMERALS:
        text = str(_NUMERALS.index(numeral))
    text = _sum_of_units(text)
    currency = _CURRENCY.match(text.strip())
    core, percent = _without_percent(text.strip()[currency.end() if currency else 0 :])
    full_core, words = core, list[str]()
    for _ in range(MAX_WORDS):
        match = _TAIL.search(core)
        if match is None or match.start() == 0 or not _may_be_unit_or_noun(match[2], match[1] or ""):
            break
        words.insert(0, match[2])
        core = core[: match.start()].rstrip()
    beside = full_core[len(core) :]
    core, inner_percent = _without_percent(core)
    number = read_number(core)
    if words and number is None and (_is_incomplete(core) or not all(map(_is_unit, words))):
        return Quantity(full_core, read_number(full_core), "", percent)
    names = re.findall(r"[^\W\d_]+", " ".join(_TEXT.sub(r"\1", word) for word in words))
    if names and (names[0].lower() in _OPERATIONS or not _VERBS.isdisjoint(map(str.lower, names))):
        return Quantity(full_core, None, "", percent)
    if number is not None and names and (scale := _SCALES.get(names[0].lower().removesuffix("s"))):
        number, names = number.times(Fraction(scale)), names[1:]
        core = f"{core} \\cdot {scale}"
    units = read_units(_SCALE.sub("", beside)) or (read_units(currency[0]) if currency else ())
    noun = " ".join(name.lower() for name in names if name not in UNITS and name.lower() not in UNITS)
    return Quantity(core, number, noun, percent or inner_percent, units)


def _sum_of_units(text: str) -> str:
    """Return `1 hour 30 minutes` as `90 minutes`; a text that is no such sum unchanged."""
    parts = _PARTS.findall(_TEXT.sub(r" \1 ", text)) if _SUM.fullmatch(_TEXT.sub(r" \1 ", text).strip()) else []
    factors = [ratio(read_units(name), read_units(parts[-1][1])) for _, name in parts]
    exact = [factor[0] for factor in factors if factor is not None and factor[1] == 0]
    if len(exact) < len(parts) or exact != sorted(exact, reverse=True) or len(set(exact)) < len(exact) or not parts:
        return text
    total = sum(Fraction(number) * factor for (number, _), factor in zip(parts, exact, strict=True))
    return f"{total} {parts[-1][1]}"


def _without_percent(core: str) -> tuple[str, bool]:
    return core.removesuffix("\\%").rstrip(), core.endswith("\\%")


def _may_be_unit_or_noun(word: str, gap: str) -> bool:
    """Whether a trailing word may be a unit or a noun and is not a factor: `12 m`, but not `12m` or `12 x`."""
    if "\\Omega" in word or word.startswith("\\mu"):
        return bool(gap) and ("\\Omega" in word or word.removeprefix("\\mu").strip() in UNITS)
    if word.startswith("\\"):
        return word.startswith("\\text")
    name = re.split(r"[^A-Za-z']", word)[0]
    if (name in FUNCTIONS and name not in ALSO_UNITS) or name == "pi":
        return False
    if name in UNITS or name.lower() in UNITS or meanings(name):
        return len(name) > 1 or bool(gap)
    return len(name) > 2 and bool(gap)


def _is_unit(word: str) -> bool:
    return word.startswith(("\\text", "\\mu")) or "\\Omega" in word or re.split(r"[^A-Za-z']", word)[0] in UNITS


def _is_incomplete(core: str) -> bool:
    """Whether the core ends with an operator that needs an operand, or inside a group."""
    operator = re.search(r"[-+*/^_=<>({\[,:]$|\\(?:times|cdot|div|pm|mp|frac|sqrt|le|ge|in|cup|cap)$", core)
    return not core or operator is not None or core.count("{") != core.count("}")
