"""BLEU and ROUGE-L of texts: the paper's numbers, sacrebleu, what a reward does with bad input."""

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sacrebleu.metrics import BLEU

from polgrad.rewards import compose, text_metrics
from polgrad.rewards.text_metrics import bleu_components, rouge_l_f1

CAT = "the cat sat on the mat"
ON = "the cat is on the mat"
THERE = "there is a cat on the mat"
REWARDS = ("bleu", "rouge_l", "bleu_rouge")


def value(function, completion, references=(CAT,), **parameters):
    example = {"answer": "", "metadata": {"references": list(references)}}
    score = compose.as_score(function("", completion, example, **parameters))
    return score.value if score.valid else score.reason


@pytest.mark.parametrize(
    ("text", "references", "precisions", "penalty", "score"),
    [
        (CAT, [CAT], (1, 1, 1, 1), 1.0, 1.0),
        ("the cat", [CAT], (1, 1, 1, 1), math.exp(-2), 0.135335),
        ("the the the the the the", [CAT], (3 / 7, 1 / 6, 1 / 5, 1 / 4), 1.0, 0.244462),
        (ON, [CAT], (6 / 7, 4 / 6, 2 / 5, 1 / 4), 1.0, 0.488923),
        (ON, [CAT, THERE], (1, 4 / 6, 2 / 5, 1 / 4), 1.0, 0.508133),
        ("the", [CAT], (1, 1, 1, 1), math.exp(-5), 0.006738),
        ("dog", [CAT], (1 / 2, 1, 1, 1), math.exp(-5), 0.005666),
    ],
)
def test_bleu_by_hand(text, references, precisions, penalty, score):
    parts = bleu_components(text, references)
    assert parts.precisions == pytest.approx(precisions, rel=1e-12)
    assert parts.brevity_penalty == pytest.approx(penalty, rel=1e-12)
    assert parts.score == pytest.approx(score, abs=1e-6)
    assert value(text_metrics.bleu, text, references) == pytest.approx(score, abs=1e-6)
    assert parts.score == pytest.approx(penalty * math.prod(precisions) ** 0.25)


def test_without_smoothing_one_missing_order_is_zero():
    parts = bleu_components(ON, [CAT], smoothing="none")
    assert parts.precisions == pytest.approx((5 / 6, 3 / 5, 1 / 4, 0))
    assert parts.score == 0.0
    two = bleu_components(ON, [CAT], smoothing="none", max_order=2)
    assert two.score == pytest.approx(math.sqrt(5 / 6 * 3 / 5))
    short = bleu_components("the cat", [CAT], smoothing="none")
    assert short.precisions == (1, 1, 0, 0) and short.score == 0.0
    assert value(text_metrics.bleu, ON, smoothing="none") == 0.0
    assert value(text_metrics.bleu, ON, smoothing="none", max_order=2) == pytest.approx(two.score)


def test_the_length_that_counts():
    # Lengths 2, 4 and 6 against a text of 5: the shortest, or 4, the shorter of the closest two.
    references = ["the cat", "the cat is on", "the cat is on a mat"]
    text = "the cat is on the"
    assert bleu_components(text, references).brevity_penalty == 1.0
    closest = bleu_components(text, references[::-1], reference_length="closest")
    assert closest.brevity_penalty == 1.0
    longer = bleu_components(text, ["the cat is on the mat again", CAT], reference_length="closest")
    assert longer.brevity_penalty == pytest.approx(math.exp(1 - 6 / 5))
    score = value(text_metrics.bleu, text, [CAT, THERE], reference_length="closest")
    assert score == pytest.approx(
        bleu_components(text, [CAT, THERE], reference_length="closest").score
    )
    lengths = {"shortest": 1.0, "closest": math.exp(1 - 7 / 6)}
    for name, penalty in lengths.items():
        parts = bleu_components(ON, ["on the mat", THERE], reference_length=name)
        assert parts.brevity_penalty == pytest.approx(penalty)


def test_the_parts_of_the_ablations():
    parts = bleu_components("the cat", [CAT])
    assert parts.mean_precision == 1.0
    assert value(text_metrics.bleu, "the cat", brevity=False) == 1.0
    assert value(text_metrics.bleu, ON, brevity=False) == pytest.approx(0.488923, abs=1e-6)
    # An empty text has nothing to be precise in.
    for empty in ("", " \n", "<skipped>"):
        assert value(text_metrics.bleu, empty, brevity=False) == 0.0
        assert value(text_metrics.bleu, empty) == 0.0


words = st.lists(st.sampled_from("abcd"), max_size=7).map(" ".join)
some = st.lists(words.filter(bool), min_size=1, max_size=3)


@given(words, some)
def test_unsmoothed_it_is_sacrebleu(text, references):
    theirs = BLEU(tokenize="none", smooth_method="none").sentence_score(text, references)
    ours = bleu_components(text, references, smoothing="none", reference_length="closest")
    assert 100 * ours.score == pytest.approx(theirs.score, abs=1e-9)
    # From the second order on, the smoothing is sacrebleu's too.
    smoothed = BLEU(tokenize="none", smooth_method="add-k").sentence_score(text, references)
    if any(smoothed.counts) and text:
        parts = bleu_components(text, references)
        assert [100 * p for p in parts.precisions[1:]] == pytest.approx(smoothed.precisions[1:])


@given(words, some, words.filter(bool))
def test_more_references_never_hurt_and_their_order_is_free(text, references, another):
    score = bleu_components(text, references).score
    for order in itertools.permutations(references):
        assert bleu_components(text, order).score == score
    if len(another.split()) >= min(len(r.split()) for r in references):
        assert bleu_components(text, [*references, another]).score >= score


@given(words, some)
def test_names_of_the_words_do_not_matter(text, references):
    renamed = str.maketrans("abcd", "dabc")
    others = [r.translate(renamed) for r in references]
    assert bleu_components(text.translate(renamed), others) == bleu_components(text, references)
    assert rouge_l_f1(text.translate(renamed), others) == rouge_l_f1(text, references)


def test_tokens_are_those_of_mteval():
    assert bleu_components("Hello, world!", ["Hello , world !"]).score == 1.0
    assert bleu_components("1,000.5 &amp; more", ["1,000.5 & more"]).score == 1.0
    assert bleu_components("The cat", ["the cat"]).precisions[0] == pytest.approx(2 / 3)
    assert bleu_components("the cat ", ["the\ncat"]).score == 1.0


@pytest.mark.parametrize(
    ("text", "references", "score"),
    [
        (ON, [CAT], 0.833333),
        ("the cat", [CAT], 0.5),
        (CAT, ["dog", CAT], 1.0),
        ("dog", [CAT], 0.0),
        ("", [CAT], 0.0),
        ("!", ["?"], 0.0),
        ("The CAT.", ["the_cat"], 1.0),
        ("mat the cat", [CAT], 2 * 2 / 9),
        ("a b a c", ["b a a c"], 0.75),
    ],
)
def test_rouge_l_by_hand(text, references, score):
    assert rouge_l_f1(text, references) == pytest.approx(score, abs=1e-6)
    assert value(text_metrics.rouge_l, text, references) == pytest.approx(score, abs=1e-6)


def slow_common_subsequence(first, second):
    chosen = itertools.chain.from_iterable(
        itertools.combinations(first, n) for n in range(len(first), -1, -1)
    )
    for candidate in chosen:
        rest = iter(second)
        if all(word in rest for word in candidate):
            return len(candidate)
    return 0


@given(words, words)
def test_rouge_l_against_all_subsequences(text, reference):
    first, second = text.split(), reference.split()
    common = slow_common_subsequence(first, second)
    expected = 0.0
    if common:
        precision, recall = common / len(first), common / len(second)
        expected = 2 * precision * recall / (precision + recall)
    assert rouge_l_f1(text, [reference]) == pytest.approx(expected)


def test_the_harmonic_mean():
    a, b = 0.488923, 5 / 6
    assert value(text_metrics.bleu_rouge, ON) == pytest.approx(2 * a * b / (a + b), abs=1e-6)
    assert value(text_metrics.bleu_rouge, CAT) == 1.0
    assert value(text_metrics.bleu_rouge, "") == 0.0


@pytest.mark.parametrize("name", REWARDS)
def test_only_what_stands_in_the_tag_is_scored(name):
    function = getattr(text_metrics, name)
    text = f"<answer>no</answer> so <answer>{CAT}</answer> and more"
    assert value(function, text, tag="answer") == 1.0
    assert value(function, "<answer>the cat\nsat on the mat</answer>", tag="answer") == 1.0
    assert value(function, CAT, tag="answer") == 0.0
    missing = function("", CAT, {"answer": CAT}, tag="answer")
    assert missing.valid and "<answer>" in missing.reason
    assert value(function, text) < 1.0


@pytest.mark.parametrize("name", REWARDS)
def test_where_the_references_are(name):
    function = getattr(text_metrics, name)
    assert compose.as_score(function("", CAT, {"answer": CAT})).value == 1.0
    assert compose.as_score(function("", CAT, {"answer": CAT, "metadata": {}})).value == 1.0
    assert value(function, CAT, []) == "references are [], expected a list of texts"
    assert value(function, CAT, [CAT, " "]) == "reference 1 is empty"
    text = function("", CAT, {"answer": CAT, "metadata": {"references": CAT}})
    assert not text.valid and "expected a list" in text.reason
    assert not function("", CAT, {"prompt": ""}).valid


def test_as_a_reward_by_name():
    target = "polgrad.rewards.text_metrics:bleu"
    reward = compose.compose([compose.RewardSpec(target, 2.0, {"smoothing": "none"})])
    assert reward("", CAT, {"answer": CAT}).value == 2.0
    wrong = compose.compose([compose.RewardSpec(target, 1.0, {"smoothing": "some"})])
    assert "smoothing is 'some'" in wrong("", CAT, {"answer": CAT}).reason


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="smoothing is 'x', expected one of 'add-one', 'none'"):
        bleu_components(CAT, [CAT], smoothing="x")
    with pytest.raises(ValueError, match="reference_length is 'x'"):
        bleu_components(CAT, [CAT], reference_length="x")
    with pytest.raises(ValueError, match="max_order is 0"):
        bleu_components(CAT, [CAT], max_order=0)
    assert bleu_components(CAT, [CAT], max_order=1).precisions == (1.0,)
    for references in ([], [""], [CAT, ""]):
        with pytest.raises(ValueError, match="references must hold"):
            bleu_components(CAT, references)
