"""Rewards that compare a completion's text with references: BLEU, ROUGE-L and their mean.

Each is `reward(prompt, completion, example, **parameters)`, free of any model. The references are
`metadata["references"]` of the example, a list of texts (in a data file: a field `references`),
or else its `answer` alone. For token ids inside of a compiled program there is
`polgrad.rewards.bleu`.
"""

import functools
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from polgrad.rewards.score import Score

_SMOOTHING = ("add-one", "none")
_REFERENCE_LENGTH = ("shortest", "closest")


class BleuComponents(NamedTuple):
    """What a sentence BLEU is made of.

    Attributes:
        precisions: of the n-grams, n = 1..max_order, smoothed.
        brevity_penalty: in [0, 1].
    """

    precisions: tuple[float, ...]
    brevity_penalty: float

    @property
    def mean_precision(self) -> float:
        """Geometric mean of the precisions: BLEU without its brevity penalty."""
        if not all(self.precisions):
            return 0.0
        return math.exp(sum(map(math.log, self.precisions)) / len(self.precisions))

    @property
    def score(self) -> float:
        """Sentence BLEU, in [0, 1]."""
        return self.brevity_penalty * self.mean_precision


def bleu_components(
    hypothesis: str,
    references: Sequence[str],
    *,
    smoothing: str = "add-one",
    reference_length: str = "shortest",
    max_order: int = 4,
) -> BleuComponents:
    """Precisions and brevity penalty of one text; tokens are sacrebleu's 13a, cases differ.

    With c tokens, M_n clipped matches of n-grams and P_n = max(c - n + 1, 0):

        precision_n = (M_n + 1) / (P_n + 1)        "add-one", for all n
        precision_n = M_n / P_n, 0 for P_n = 0     "none"
        brevity_penalty = 1 if c > l else exp(1 - l / c)

    Args:
        hypothesis: the text to score.
        references: at least one text that holds a token.
        smoothing: "add-one" or "none".
        reference_length: l is the length of the "shortest" reference, or of the one "closest" to
            c, the shorter of two.
        max_order: longest n-grams, at least 1.

    Returns:
        The components; a hypothesis without a token has brevity penalty 0.

    Raises:
        ValueError: an unknown name; no reference; an empty one; max_order below 1.

    References:
        Papineni et al., BLEU: a method for automatic evaluation of machine translation, 2002.
        Lin and Och, ORANGE, 2004: the smoothing, there for n > 1.
        Chang et al., BLEUBERI, 2025 (arXiv:2505.11080): for all n, shortest reference.
    """
    _check("smoothing", smoothing, _SMOOTHING)
    _check("reference_length", reference_length, _REFERENCE_LENGTH)
    if max_order < 1:
        raise ValueError(f"max_order is {max_order}, expected at least 1")
    scorer = _scorer(max_order)
    lengths = [len(scorer.tokenizer(text.rstrip()).split()) for text in references]
    if not lengths or not min(lengths):
        raise ValueError("references must hold at least one text, and none without a token")
    counted = scorer.sentence_score(hypothesis, list(references))
    pairs = zip(counted.counts, counted.totals, strict=True)
    if smoothing == "add-one":
        precisions = tuple((matched + 1) / (possible + 1) for matched, possible in pairs)
    else:
        precisions = tuple(matched / max(possible, 1) for matched, possible in pairs)
    length = min(lengths) if reference_length == "shortest" else counted.ref_len
    return BleuComponents(precisions, _brevity_penalty(counted.sys_len, length))


def rouge_l_f1(hypothesis: str, references: Sequence[str]) -> float:
    """ROUGE-L: F1 of the longest common subsequence, the best over the references.

    P = LCS / c, R = LCS / l, F1 = 2 P R / (P + R). Tokens are runs of letters and digits, in
    lower case, as in the package rouge_score without its stemmer.

    Args:
        hypothesis: the text to score.
        references: texts.

    Returns:
        In [0, 1]; 0 without a common token.

    References:
        Lin, ROUGE: a package for automatic evaluation of summaries, 2004.
    """
    given, best = _words(hypothesis), 0.0
    for reference in references:
        wanted = _words(reference)
        common = _longest_common_subsequence(given, wanted)
        # 2 P R / (P + R) with P = common / c and R = common / l.
        best = max(best, 2.0 * common / max(len(given) + len(wanted), 1))
    return best


def bleu(
    prompt: str,
    completion: str,
    example: Mapping[str, Any],
    *,
    smoothing: str = "add-one",
    reference_length: str = "shortest",
    brevity: bool = True,
    max_order: int = 4,
    tag: str | None = None,
) -> Score:
    """Sentence BLEU of the completion against the example's references.

    Where there is no verifier, smoothed BLEU against good references agrees with human
    preferences about as well as large reward models.

    Args:
        prompt: not used.
        completion: the policy's text; without a token it scores 0.
        example: holds `metadata["references"]`, or `answer`.
        smoothing: as in `bleu_components`.
        reference_length: as in `bleu_components`. A very short reference invites short answers.
        brevity: whether short completions are penalised.
        max_order: longest n-grams.
        tag: score only what stands in the last `<tag>...</tag>` of the completion; a completion
            without it scores 0. None scores the whole.

    Returns:
        Value in [0, 1]; invalid where the example has no reference, or an empty one.

    Raises:
        ValueError: an unknown name; max_order below 1.

    References:
        Chang et al., BLEUBERI: BLEU is a surprisingly effective reward for instruction
        following, 2025 (arXiv:2505.11080).
    """
    del prompt
    given = _given(completion, example, tag)
    if isinstance(given, Score):
        return given
    text, references = given
    parts = bleu_components(
        text,
        references,
        smoothing=smoothing,
        reference_length=reference_length,
        max_order=max_order,
    )
    # Without a token every smoothed precision is 1, and only the penalty says so.
    return Score(parts.score if brevity or not parts.brevity_penalty else parts.mean_precision)


def rouge_l(
    prompt: str, completion: str, example: Mapping[str, Any], *, tag: str | None = None
) -> Score:
    """ROUGE-L F1 of the completion, the best over the example's references.

    Args:
        prompt: not used.
        completion: the policy's text.
        example: holds `metadata["references"]`, or `answer`.
        tag: as in `bleu`.

    Returns:
        Value in [0, 1]; invalid where the example has no reference, or an empty one.

    References:
        Lin, ROUGE: a package for automatic evaluation of summaries, 2004.
    """
    del prompt
    given = _given(completion, example, tag)
    if isinstance(given, Score):
        return given
    text, references = given
    return Score(rouge_l_f1(text, references))


def bleu_rouge(
    prompt: str, completion: str, example: Mapping[str, Any], *, tag: str | None = None
) -> Score:
    """Harmonic mean of `bleu` (with its defaults) and `rouge_l`: 2 a b / (a + b), 0 if both are 0.

    Args:
        prompt: not used.
        completion: the policy's text.
        example: holds `metadata["references"]`, or `answer`.
        tag: as in `bleu`.

    Returns:
        Value in [0, 1]; invalid where the example has no reference, or an empty one.

    References:
        Chang et al., BLEUBERI, 2025 (arXiv:2505.11080).
    """
    first = bleu(prompt, completion, example, tag=tag)
    second = rouge_l(prompt, completion, example, tag=tag)
    if not first.valid:
        return first
    total = first.value + second.value
    value = 2.0 * first.value * second.value / total if total > 0.0 else 0.0
    return Score(value, True, first.reason)


@functools.lru_cache(maxsize=8)
def _scorer(max_order: int):
    from sacrebleu.metrics import BLEU

    # Only its tokens and counts are used; effective_order keeps it from warning.
    return BLEU(
        tokenize="13a", smooth_method="none", max_ngram_order=max_order, effective_order=True
    )


# Importing sacrebleu must not count against the deadline of the first sample.
bleu.warm_up = bleu_rouge.warm_up = functools.partial(_scorer, 4)


def _brevity_penalty(length: int, wanted: int) -> float:
    if not length:
        return 0.0
    return min(1.0, math.exp(1.0 - wanted / length))


def _given(
    completion: str, example: Mapping[str, Any], tag: str | None
) -> tuple[str, list[str]] | Score:
    """The text to score and its references, or the verdict where there is nothing to compare."""
    references = example.get("metadata", {}).get("references")
    if references is None:
        references = [example["answer"]] if "answer" in example else []
    if isinstance(references, str) or not references:
        return Score(0.0, False, f"references are {references!r:.80}, expected a list of texts")
    empty = [i for i, text in enumerate(references) if not text.strip()]
    if empty:
        return Score(0.0, False, f"reference {empty[0]} is empty")
    if tag is None:
        return completion, list(references)
    found = re.findall(f"<{re.escape(tag)}>(.*?)</{re.escape(tag)}>", completion, re.DOTALL)
    return (found[-1], list(references)) if found else Score(0.0, True, f"no <{tag}> there")


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+", text.lower())


def _longest_common_subsequence(first: list[str], second: list[str]) -> int:
    """Length of it, by dynamic programming over rows."""
    row = [0] * (len(second) + 1)
    for word in first:
        above = row
        row = [0]
        for j, other in enumerate(second):
            row.append(above[j] + 1 if word == other else max(above[j + 1], row[j]))
    return row[-1]


def _check(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} is {value!r}, expected one of {', '.join(map(repr, allowed))}")
