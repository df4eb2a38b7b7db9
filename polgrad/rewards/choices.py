"""Which letter of a multiple choice does a text answer with?

Models write "The answer is (A).", "A is the correct choice", "A) 12", "It must be C because A and
B are too small". Letters that a text rejects, or names only in a reason, are not its answer. "A"
and "I" are words of English, too: they count where the words around them show a choice.
"""

import re

# Words that may follow a choice "A" or "I". Before any other word, "A" is the article and "I" the
# pronoun.
_AFTER = (
    "because|since|as|for|is|which|rather|instead|and|or|not|but|with|by|so|due|given|if|when|"
    "where|while|whereas|has|fits|matches|seems|must|does|from|in|on|at|over|here"
)
_END = r"(?![\w'’]|-\w)"
_NAME = rf"\(?[A-J]{_END}\)?"
# "A", "A or B", "A, B and C".
_NAMES = rf"{_NAME}(?:(?:\s*,\s*{_NAME}){{0,8}}\s*,?\s+(?:and|or|nor)\s+{_NAME})?"
_NAMES_TWO = rf"{_NAME}(?:\s*,\s*{_NAME}){{0,8}}\s*,?\s+(?:and|or|nor)\s+{_NAME}"
_NOUN = r"(?i:options?|choices?|answers?|statements?)"
_ADVERBS = r"(?:(?i:both|all|clearly|obviously|also|therefore|thus|definitely|far|much)\s+)*"
_BAD = r"(?i:not|wrong|incorrect|false|impossible|too|out|ruled|eliminated|excluded|invalid)\b"
# "not A", "rather than B", "instead of (C) or (D)", "rule out D"; with the "but" of "not A but B".
_OTHERS = re.compile(
    r"(?:\b(?i:not|never|rather than|instead of|unlike|neither|except(?: for)?|"
    r"(?:exclud|eliminat)(?:e|es|ed|ing)|rul(?:e|es|ed|ing) out)|n['’]t)"
    rf"(?:\s+be)?(?:\s+either)?\s+(?:{_NOUN}\s+)?{_NAMES}(?:,?\s+but(?:\s+rather)?\b)?"
)
# "D is impossible", "A and B are too small", "C cannot be".
_REJECTED = re.compile(
    rf"(?<!\bis )(?<!\bbe )(?<!: )(?<!\w)(?:\b{_NOUN}\s+)?"
    rf"(?:(?:{_NAME}\s+(?:is|was|seems|looks)|{_NAMES_TWO}\s+(?:are|were))\s+{_ADVERBS}{_BAD}"
    rf"|{_NAMES}\s*(?:(?:is|are|ca|do|does)n['’]t|cannot|do(?:es)? not|fails?)\b)"
)
# A reason behind a statement, up to the end of its sentence or to what follows from the reason.
_REASON = re.compile(
    r"(?<=[\w)]),?[ ]+(?:because|since|as(?! (?:my|the|our|an?)\b)|whereas|while|although|though)\b"
    r"(?:[^.;\n]|\.(?=\w))*?"
    r"(?=\.(?!\w)|[;\n]|,?[ ](?:so|thus|hence|therefore|but)\b"
    r"|,[ ](?:it|the|we|I|this|that|then|you|only|option|choice)\b|$)"
)
_ALIKE = r"(?:or|/)\s*\(?[A-J](?![\w'’])|(?:and|&)\s*\(?[A-J](?![\w'’])(?!\)?\s+[a-z])"
# The letter of an answer; `other` is there where the text leaves it open: "B or C".
_LETTER = (
    rf"(?P<letter>[B-HJ]|[AI](?![ ]+(?!(?:{_AFTER})\b)[a-z])){_END}"
    rf"(?P<other>\)?\s*,?\s*(?:{_ALIKE}))?"
)
_FILL = (
    r"(?:[\s,:(]|\b(?i:(?:the\s+)?(?:option|choice|letter|statement)|definitely|clearly|probably|"
    r"likely|most|therefore|thus|then|indeed|either|of course|simply|just)\b)*"
)
_PRAISE = (
    r"(?:(?i:clearly|definitely|indeed|therefore|thus|then|the|most|only|likely|probably|my|our|"
    r"final|to be)\s+)*(?i:correct|right(?![-\w])(?! of)|best|answer|choice|option|solution|"
    r"(?<=the )one|accurate|appropriate|suitable|plausible|(?<=must be )true)\b"
)
_GUESS = r"(?i:so|thus|hence|therefore|it is|it['’]s|must be|has to be|think|guess|say)"
# The likeliest first; in each, the last match counts.
_TIERS = tuple(
    tuple(re.compile(pattern, re.MULTILINE) for pattern in tier)
    for tier in (
        # "The answer is (A)", "Answer: A", "answer A", "#### A".
        (
            rf"(?:\b(?i:answers?)\b(?:\s|[^.\n]{{0,40}}?(?:\b(?i:is|are|be)\b|[:=]))|####)"
            rf"{_FILL}{_LETTER}",
        ),
        # "The correct option is A", "A is correct", "I choose A".
        (
            rf"\b(?i:option|choice|alternative|(?:correct|right|best) one)\b"
            rf"[^.\n]{{0,40}}?(?:\b(?i:is|be)\b|[:=]){_FILL}{_LETTER}",
            rf"(?<![\w'’])(?P<letter>[A-J]){_END}(?P<other>(?!))?\)?\s+"
            rf"(?:(?:is|seems|looks|must be|would be|should be|has to be)\s+{_PRAISE}"
            r"|works\b|fits\b|matches\b)",
            r"\b(?i:cho(?:o|)se|pick|select|go(?:ing)? with|went with|opt for|settle on)\b"
            rf"{_FILL}{_LETTER}",
        ),
        # "It must be C", "So A."
        (rf"\b{_GUESS}\b{_FILL}{_LETTER}(?=\)?\s*(?:[.,;:!?]|$|\b(?:because|since|as)\b))",),
        # A line "A", or one that begins "A) 12", "A. because", "A because".
        (
            rf"^[ (]*{_LETTER}(?:[\s).:]*$|\s*[).:,]\s(?!\s*(?:and|or)\b)"
            r"|[ ]+[-–—][ ]|[ ]+(?:because|since)\b)",
        ),
        (r"(?<!\w)\((?P<letter>[A-J])\)(?P<other>(?!))?",),
        (rf"\b(?i:option|choice)\s+\(?{_LETTER}",),
        (
            rf"(?<![\w'’])(?P<letter>[B-HJ]){_END}(?P<other>(?!))?",
            # The end of the text, not of a line.
            rf"(?<![\w'’])(?P<letter>[AI]){_END}(?P<other>(?!))?(?=[\s)]*(?:is\b)?[.!]?\s*\Z)",
        ),
    )
)


def chosen(text: str) -> str | None:
    """The letter that a text answers with.

    Args:
        text: prose without LaTeX's commands and without marks such as "**".

    Returns:
        A letter from A to J; "?" where the text leaves open which ("B or C"); None where the text
        names none.
    """
    text = re.sub(r"\(\s*([A-J])\s*\)", r"(\1)", text)
    named = _OTHERS.sub(" ", text)
    kept = _REJECTED.sub(" ", named)
    said = _REASON.sub(" ", kept)
    forms = [(_TIERS[:1], kept), (_TIERS, said), (_TIERS, kept)]
    # "B is false", where a false statement is asked for.
    if len(set(re.findall(rf"\b[A-J]{_END}", named))) == 1:
        forms.append((_TIERS, named))
    for tiers, form in forms:
        for tier in tiers:
            found = [match for pattern in tier for match in pattern.finditer(form)]
            if found:
                last = max(found, key=lambda match: match.start("letter"))
                return "?" if last["other"] else last["letter"]
    return None


def in_box(text: str) -> str:
    """The letter that a box holds.

    Args:
        text: the box's content, without LaTeX's commands.

    Returns:
        A letter from A to J; "?" for anything but one choice.
    """
    lead = r"(?i:(?:the\s+)?(?:correct\s+)?(?:answer|option|choice)\s*(?:is\b)?\s*:?\s*)?"
    match = re.match(rf"{lead}\(?\s*([A-J])\s*(?:[).:,]|$|\s)", text)
    several = re.match(rf"{lead}\(?\s*[A-J]\s*\)?\s*(?:,|or\b|and\b|/|&)\s*\(?[A-J]\b", text)
    return match[1] if match and not several else "?"
