"""Numbers as people write them in answers, and their exact values."""

import re
from decimal import Decimal
from fractions import Fraction
from typing import NamedTuple

_INTEGER = r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)"
_UNSIGNED = rf"(?:{_INTEGER}(?:\.[0-9]+)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?"
_CURRENCY = r"\\?[$€£¥₹]\s?"
# A sign counts only where no operand stands before it: "5-3" and "5 - 3" hold 5 and 3, "it is - 3"
# holds minus 3. Between a sign and its number may stand a blank or a currency sign.
_SIGN = (
    rf"(?<![\w.)])[-+](?=(?:{_CURRENCY})?[.0-9\\])"
    rf"|(?<![0-9).] )(?<!\b[a-zA-Z] )(?<![\w.)])[-+] (?=(?:{_CURRENCY})?[.0-9\\])"
)
_NUMERAL = re.compile(
    rf"(?P<sign>{_SIGN})?(?:{_CURRENCY})?(?P<inner>(?<=[$€£¥₹ ])[-+])?"
    rf"(?:\\[dt]?frac\s*\{{\s*(?P<over>-?{_UNSIGNED})\s*\}}\s*\{{\s*(?P<under>{_UNSIGNED})\s*\}}"
    rf"|\\[dt]?frac\s?(?P<upper>[0-9])(?P<lower>[0-9])"
    rf"|(?:(?P<whole>{_INTEGER})\s+)?(?P<top>{_UNSIGNED})\s?/\s?(?P<bottom>{_UNSIGNED})"
    rf"|(?P<number>{_UNSIGNED}))"
)
# What makes a numeral a part of something else: a time, a ratio, a power, a date, a version.
# Of "5-3" both numbers count; of "2024-05-06" none.
_GOES_ON = re.compile(
    r"(?:(?:\s?(?:\^|\*\*)\s?|:|\.|\s?/\s?)[({\\]*-?[0-9]+(?:[.,][0-9]+)*[)}]*)+"
    r"|(?:-[0-9]+){2,}"
)
_IS_INDEX = re.compile(r"[\^_]\s?[({]?-?$")
# Of ten to the power of a larger one there is no exact value that fits in memory.
_LARGEST_EXPONENT = 10_000
_SCALE = re.compile(r"\s*(thousand|million|billion|trillion)\b", re.IGNORECASE)
_SCALES = {"thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
# Signs for "minus" beside the one on keyboards, and LaTeX's thousands' comma.
_SPELLINGS = {"\u2212": "-", "\ufe63": "-", "\uff0d": "-", "{,}": ","}
# What may stand around the one number of an answer.
_AROUND = re.compile(
    r"\b(?:k?m|cm|mi|miles?|ft|feet|meters?|gal|lbs?|k?g|m?L|dollars|cents)/(?:s|sec|min|h|hr|hour|day|lb|kg|gal|L)\b|"
    r"\\(?:text|mathrm|textbf|boxed|fbox)(?![a-z])|\^\s*\{?\s*\\circ\s*\}?|\\?%|\\[ ,;!]|[{}$°()]"
)


class Numeral(NamedTuple):
    """A number in a text.

    Args:
        value: its value; None where it is a part of something else, such as a time or a power.
        text: as it is written.
    """

    value: Fraction | None
    text: str


def _plain(text: str) -> str:
    for spelling, plain in _SPELLINGS.items():
        text = text.replace(spelling, plain)
    return text


def _value(text: str) -> Fraction | None:
    _, _, exponent = text.lower().partition("e")
    if len(exponent) > 6 or abs(int(exponent or 0)) > _LARGEST_EXPONENT:
        return None
    return Fraction(Decimal(text.replace(",", "")))  # of any number of digits


def _ratio(top: str, bottom: str) -> Fraction | None:
    above, below = _value(top), _value(bottom)
    return above / below if above is not None and below else None


def find(text: str) -> list[Numeral]:
    """The numbers of a text, in order.

    Integers, decimals, exponents ("1e3"), thousands' commas, fractions ("3/4", "1 1/2",
    `\\frac{3}{4}`), each with a sign, also before a blank or a currency sign, and U+2212 for minus.

    Args:
        text: any text.

    Returns:
        The numbers.
    """
    text = _plain(text)
    found, place = [], 0
    while match := _NUMERAL.search(text, place):
        part = match.groupdict()
        if part["number"] is not None:
            value = _value(part["number"])
        elif part["over"] is not None:
            value = _ratio(part["over"], part["under"])
        elif part["upper"] is not None:
            value = _ratio(part["upper"], part["lower"])
        else:
            value = _ratio(part["top"], part["bottom"])
            if part["whole"] is not None and value is not None:
                value += _value(part["whole"])
        if value is not None and (part["sign"] or part["inner"] or "")[:1] == "-":
            value = -value
        place = match.end()
        if value is not None and (scale := _SCALE.match(text, place)):
            value, place = value * _SCALES[scale[1].lower()], scale.end()
        if rest := _GOES_ON.match(text, place):
            value, place = None, rest.end()
        elif _IS_INDEX.search(text[max(0, match.start() - 4) : match.start()]):
            value = None
        found.append(Numeral(value, text[match.start() : place]))
    return found


def only(text: str) -> Fraction | str:
    """The value of an answer that is one number.

    Args:
        text: an answer such as "72", "$1,200", "-3/4", "18 apples", "x = 5"; of a GSM8K solution
            what follows "####".

    Returns:
        The value; or, as text, why there is none.
    """
    told = text.rpartition("####")[2]
    found = find(told)
    if not found:
        return f"answer {text!r:.80} holds no number"
    rest = _AROUND.sub(" ", _plain(told).replace(found[0].text, " ", 1))
    is_term = re.search(r"[0-9][a-cijkn-rx-z](?![a-z])", told, re.IGNORECASE)  # 2x, 3i
    if (
        len(found) > 1
        or found[0].value is None
        or is_term
        or re.search(r"[\\^_*/<>\[\]√π±!]", rest)
    ):
        return f"answer {text!r:.80} is not one number"
    return found[0].value
