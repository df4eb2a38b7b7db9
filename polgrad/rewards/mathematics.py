"""Is a mathematical answer the one that is wanted? Parsing by math-verify, the rest is here.

math-verify reads LaTeX well where it is given one expression. Which part of a text is the answer,
and what kind of answer it is, is decided here; how exactly values must agree, in `equality`.
"""

import functools
import re
from fractions import Fraction
from typing import Any

from polgrad.rewards import choices, numerals
from polgrad.rewards.equality import Answer, quietly, same

_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
# "The answer is", "Answer:", "**Final answer:**", GSM8K's "####".
_CUE = re.compile(r"(?i)\banswer\b[^.\n$\\]{0,40}?(?:\bis\b|:|=)(?:\*\*)?\s*:?|####")
_TAG = re.compile(r"(?i)<(/?)answer>")
# Commands that change the look of what follows.
_LOOK = re.compile(
    r"\\(?:textbf|textit|textrm|text|mathrm|mathbf|mathit|mbox|operatorname)(?![a-zA-Z])\s*"
)
_SPAN = re.compile(
    r"\$\$(?P<a>.+?)\$\$|\\\[(?P<b>.+?)\\\]|\\\((?P<c>.+?)\\\)|"
    r"(?<![\\\d])\$(?=\S)(?P<d>(?:\\\$|[^$\n])+?)(?<![\\\s])\$(?!\d)",
    re.DOTALL,
)
# "(2, 3)", "[0, 1)", "2 and 3", "-1, 0 and 1".
_SEVERAL = re.compile(
    r"[\[(][^()\[\]]*,[^()\[\]]*[\])]|-?\d+(?:[./]\d+)?(?:,?\s*(?:,|and|or)\s*-?\d+(?:[./]\d+)?)+"
)
_CLAUSE_END = re.compile(
    r",?\s+(?=(?:because|since|as|which|so|where|when|for|if|but|not|rather than|instead of|"
    r"whereas|although|though|unlike)\b)|\.(?=\s|$)"
)
# What may stand between the parts of one answer: "$3$ and $4$", "\boxed{3}, \boxed{4}".
_JOINED = re.compile(r"[\s$]*(?:,|;|,?\s*and|,?\s*or)[\s$]*")
_CHOICE = re.compile(r"\(?\s*([A-J])\s*\)?\.?")
_RATIO = re.compile(r"(\d+(?:\s*:\s*\d+)+)\s*(?:([ap])\.?\s*m\.?)?", re.IGNORECASE)
_BASE = re.compile(r"([0-9A-Za-z]+)_\{?(\d+)\}?")
_WORD = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{2,}")
_AS_TEXT = re.compile(_LOOK.pattern + r"\{[^{}\d]*[a-zA-Z]{2}[^{}\d]*\}")
# Symbols that people type, as LaTeX.
_SYMBOLS = {
    "\u2212": "-",
    "\\$": "",
    "$": "",
    "**": "^",
    "∞": r"\infty ",
    r"\varnothing": r"\emptyset ",
    "≤": r"\le ",
    "≥": r"\ge ",
    "½": r"\frac{1}{2}",
    "¼": r"\frac{1}{4}",
    "¾": r"\frac{3}{4}",
    "×": r"\times ",
}
# Words that belong to mathematics: functions without a backslash, and what joins two answers.
_NAMES = re.compile(
    "sin|cos|tan|cot|sec|csc|log|ln|exp|sqrt|pi|max|min|gcd|lcm|mod|inf|frac|or|and"
)
# Powers of powers of powers, which nothing evaluates in a lifetime.
_TOWER = re.compile(r"(?:(?:\^|\*\*)\s*[{(]*\s*[-\w.\\]+\s*){3,}")
_VERDICTS = ("yes", "no", "true", "false")
_NOT = re.compile(r"(?i)\b(?:not|never|no|isn|aren|doesn)\b|n't\b")

# Answers are short; the library's time grows with the square of a text, or worse.
_LONGEST = 300


class Unreadable(ValueError):
    """An answer that cannot be compared with anything."""


@functools.lru_cache(maxsize=4096)
def read_gold(answer: str) -> Answer:
    """The answer of an example.

    Args:
        answer: as it stands in MATH, GSM8K, AIME or a multiple-choice set, with or without
            `$...$` and `\\boxed`; of a GSM8K solution what follows "####".

    Returns:
        The answer.

    Raises:
        Unreadable: no answer of a kind that can be compared; says why.
    """
    text = _clean(_unwrapped(answer))
    if not text:
        raise Unreadable(f"answer {answer!r:.80} cannot be read as mathematics: it is empty")
    gold = _read(text)
    if gold is None:
        raise Unreadable(f"answer {answer!r:.80} cannot be read as mathematics")
    if not same(gold, gold):
        raise Unreadable(
            f"answer {answer!r:.80} cannot be read as mathematics: it does not equal itself"
        )
    return gold


def is_answer(completion: str, gold: Answer) -> bool | None:
    """Whether a completion ends with the wanted answer.

    The answer of a completion is, of these, the first that is there: what its last `\\boxed` or
    `\\fbox` holds; what follows the last "answer is", "answer:" or "####"; its last `$...$`; its
    last line; its last number or expression.

    Args:
        completion: the policy's text.
        gold: of `read_gold`.

    Returns:
        The verdict; None where the completion holds no answer.
    """
    completion = _TAG.sub(lambda tag: "\n" if tag[1] else "\nAnswer: ", completion)
    if gold.kind in ("choice", "text"):
        return _BY_WORDS[gold.kind](completion, gold)
    for candidate in candidates(completion, gold.kind == "expression"):
        given = _read(_clean(candidate))
        if given is not None and given.kind not in ("text", "choice"):
            return same(gold, given)
    return False if _boxes(completion) else None


def candidates(completion: str, lists: bool = False) -> list[str]:
    """Texts that may be the completion's answer, the likeliest first.

    Args:
        completion: the policy's text.
        lists: in prose, look for "(2, 3)" and "2 and 3" before a single number.

    Returns:
        The texts, as they are written.
    """
    if boxed := _boxes(completion):
        return [boxed]
    found = []
    cues = list(_CUE.finditer(completion))
    if cues:
        found += _parts_of(_clause(completion[cues[-1].end() :]), lists)
    found += _parts_of(completion.strip(), lists)
    return found


def _clause(text: str) -> str:
    """What is said first: up to the end of the line, the sentence, or a reason."""
    line = text.strip().split("\n")[0]
    return _CLAUSE_END.split(line)[0] or line


def _parts_of(text: str, lists: bool) -> list[str]:
    """A text's last span of mathematics; else its last line; else its last expression."""
    if spans := _last_group(text, [(m.start(), m.end(), _inner(m)) for m in _SPAN.finditer(text)]):
        return [spans]
    line = text.rstrip().rpartition("\n")[2].strip().strip("*").strip().rstrip(".").strip("*")
    several = [match[0] for match in _SEVERAL.finditer(line[-_LONGEST:])][-1:] if lists else []
    return [line, *several, *_last_expressions(text)]


def _inner(match: re.Match) -> str:
    return next(group for group in match.groups() if group is not None)


def _boxes(text: str) -> str:
    """What the last box holds, and the boxes that are joined to it by "," or "and"."""
    found = []
    for match in list(_BOX.finditer(text))[-20:]:
        depth, place = 1, match.end()
        while place < len(text) and depth:
            depth += {"{": 1, "}": -1}.get(text[place], 0) if text[place - 1] != "\\" else 0
            place += 1
        if not depth and not (found and place <= found[-1][1]):
            found.append((match.start(), place, text[match.end() : place - 1]))
    return _last_group(text, found)


def _last_group(text: str, found: list[tuple[int, int, str]]) -> str:
    """The last of the spans, with those before it that only a separator parts from it."""
    if not found:
        return ""
    group = [found[-1]]
    for span in reversed(found[:-1]):
        if not _JOINED.fullmatch(text[span[1] : group[0][0]]):
            break
        group.insert(0, span)
    return ", ".join(content for _, _, content in group)


def _last_expressions(text: str) -> list[str]:
    """The last number or expression of prose, as math-verify finds them."""
    import math_verify as library

    plain = [library.ExprExtractionConfig(), library.LatexExtractionConfig()]
    times = [match[0] for match in _RATIO.finditer(text[-_LONGEST:])][-1:]
    found = quietly(library.parse, text[-_LONGEST:], plain, parsing_timeout=None)
    # The second entry is the text that the first was parsed from.
    return [*times, *(entry for entry in found or () if isinstance(entry, str))]


def _unwrapped(text: str) -> str:
    """An answer without its delimiters, its box, and the solution before "####"."""
    text = text.rpartition("####")[2].strip()
    if boxed := _boxes(text):
        return boxed
    match = _SPAN.fullmatch(text.rstrip("."))
    return _inner(match) if match else text


def _clean(text: str) -> str:
    """LaTeX that looks otherwise and means the same."""
    text = text.strip().strip("$").strip()
    text = re.sub(r"\\(?:left|right|displaystyle|,|;|!|:|quad|qquad)(?![a-zA-Z])", " ", text)
    for symbol, latex in _SYMBOLS.items():
        text = text.replace(symbol, latex)
    text = re.sub(r"√\s*(?:\(([^()]*)\)|(\d+|[a-z]))", r"\\sqrt{\1\2}", text)
    text = re.sub(r"(?<![\\a-zA-Z])pi(?![a-zA-Z])", r"\\pi ", text)
    text = re.sub(r"(?<=\d)(?:\{,\}|,\s?)(?=\d{3}(?!\d))(?<!\(\d,)", ",", text)
    text = re.sub(r"\^\s*\{?\s*(?:\\text\s*\{\s*o\s*\}|\\circ|\u00b0)\s*\}?", r"^\\circ ", text)
    text = re.sub(r"(?<!\d)\.(?=\d)", "0.", text)
    text = re.sub(r"(?<!\d)(\d*)\.(\d*)\\overline\s*\{(\d+)\}", _repeating, text)
    # A mixed number, which before a percent sign would lose its whole part.
    text = re.sub(
        r"(?<![\d.}])(\d+)\s*\\[dt]?frac\s*(?:\{(\d+)\}\s*\{(\d+)\}|(\d)(\d))",
        _mixed,
        text,
    )
    return text.strip().rstrip(".").strip()


def _mixed(match: re.Match) -> str:
    """`1\\frac{4}{5}` as the fraction 9/5."""
    whole, above, below = int(match[1]), match[2] or match[4], match[3] or match[5]
    return rf"\frac{{{whole * int(below) + int(above)}}}{{{below}}}"


def _repeating(match: re.Match) -> str:
    """`0.1\\overline{6}` as the fraction 15/90."""
    whole, fixed, repeated = match.groups()
    above = int(f"{whole}{fixed}{repeated}") - int(f"{whole}{fixed}" or "0")
    return rf"\frac{{{above}}}{{{'9' * len(repeated)}{'0' * len(fixed)}}}"


def _plain_words(text: str) -> str:
    """A text as words: without `\\text{}`, punctuation and case."""
    text = _LOOK.sub("", text)
    return " ".join(re.sub(r"[^\w'+-]+", " ", text).casefold().split())


def _choice(text: str) -> str | None:
    """The letter of a choice such as "B", "(C)", `\\text{(D)}`; None for anything else."""
    text = _LOOK.sub("", text)
    match = _CHOICE.fullmatch(re.sub(r"[{}*\s]", "", text))
    return match[1] if match else None


def _read(text: str) -> Answer | None:
    """A cleaned text as an answer; None where it is none."""
    if len(text) > _LONGEST and not text.isdigit():
        return None
    if letter := _choice(text):
        return Answer("choice", letter, text)
    bare = re.sub(r"[{}]", "", _LOOK.sub("", text)).strip()
    if match := _RATIO.fullmatch(bare):
        numbers = tuple(int(part) for part in match[1].split(":"))
        return Answer("ratio", (numbers, (match[2] or "").lower()), text)
    match = _BASE.fullmatch(_LOOK.sub("", text).replace(" ", ""))
    if match and match[1].isalnum() and match[1][0].isdigit():
        return Answer("base", (match[1].lower(), int(match[2])), text)
    value = numerals.only(text) if not re.search(r"[%=]|percent", text) else ""
    if isinstance(value, Fraction):
        return Answer("number", value, text)
    words = _words(text)
    if re.fullmatch(_AS_TEXT, text) or (words and not re.search(r"[\d\\^=]", text)):
        return Answer("text", _plain_words(text), text)
    if len(words) > 2 or _TOWER.search(text):  # prose with numbers in it
        return None
    expression = _parse(text)
    return None if expression is None else Answer("expression", expression, text)


def _words(text: str) -> list[str]:
    """The words of a text, without those in `\\text{}` and the names of functions."""
    outside = re.sub(_LOOK.pattern + r"\{[^{}]*\}", " ", text)
    return [word for word in _WORD.findall(outside) if not _NAMES.fullmatch(word)]


@functools.lru_cache(maxsize=4096)
def _parse(text: str) -> Any:
    """math-verify's expression for one piece of LaTeX, or None."""
    import math_verify as library
    import sympy

    found = quietly(
        library.parse, f"\\boxed{{{text}}}", [library.LatexExtractionConfig()], parsing_timeout=None
    )
    expressions = [entry for entry in found or () if not isinstance(entry, str)]
    if not expressions or expressions[0] in (sympy.nan, sympy.zoo):
        return None
    # Units are left out, and sometimes numbers with them: of "3 cm by 4 cm" the 3 remains.
    read = next(entry for entry in found if isinstance(entry, str))
    unit_power = re.sub(r"\}\s*\^\s*\{?[23]\}?", "}", text)
    if re.sub(r"\D", "", unit_power) != re.sub(r"\D", "", read):
        return None
    return expressions[0]


def _is_choice(completion: str, gold: Answer) -> bool | None:
    """Whether the choice that a completion names is the gold one."""
    given = _chosen(completion)
    return None if given is None else given == gold.value


def _chosen(completion: str) -> str | None:
    """The letter that a completion ends on: boxed, or what `choices.chosen` finds."""
    if boxed := _boxes(completion):
        return choices.in_box(re.sub(r"[{}*]", " ", _LOOK.sub(" ", boxed)).strip())
    marks = r"\\[\[\]()]|[{}$*\[\]`\"“”]"
    return choices.chosen(re.sub(marks, " ", _LOOK.sub(" ", completion)))


def _is_text(completion: str, gold: Answer) -> bool | None:
    """Whether a completion ends with the gold words."""
    if boxed := _boxes(completion):
        return _plain_words(boxed) == gold.value
    cues = list(_CUE.finditer(completion))
    tails = [_clause(completion[cues[-1].end() :])] if cues else []
    spans = [_inner(match) for match in _SPAN.finditer(completion)][-1:]
    for text in (*tails, *spans, completion):
        if _plain_words(text) == gold.value:
            return True
    sentence = re.split(r"(?<=[.!?])\s+|\n", completion.strip())[-1]
    words = _plain_words(sentence)
    if not words:
        return None
    if gold.value in _VERDICTS and words.split()[0] in _VERDICTS:  # "Yes, it is."
        return words.split()[0] == gold.value
    before = words.removesuffix(gold.value)
    return before != words and before.endswith(" ") and not _NOT.search(before)


_BY_WORDS = {"choice": _is_choice, "text": _is_text}
