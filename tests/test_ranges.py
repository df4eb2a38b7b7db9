"""A range that a docstring states is checked: a number outside of it raises and is named."""

import dataclasses
import functools
import inspect
import re
import typing

import numpy as np
import pytest

from polgrad import algorithms
from polgrad._annotations import array_annotation
from polgrad.conformance import edges, inputs
from polgrad.contract import Context
from polgrad.training.setup import abstract

PRIMITIVES = {primitive.name: primitive for primitive in edges.examinable()}
NUMBER = r"-?(?:\d+\.?\d*(?:e-?\d+)?|inf)"
# What a number needs beside itself.
OPTIONAL = {
    ("selection.threshold_filter", "share"): ("noise",),
    ("data.preferences.large_margin_pairs", "student_margin"): ("teacher",),
    ("losses.value_loss", "clip"): ("old_values",),
}
SETTINGS = {
    (name, "length"): {"mode": "constant"} for name in ("masking.weights", "masking.reduce")
}


def described(function, heading="Args"):
    """The text of each argument, or attribute, in a docstring."""
    doc = inspect.getdoc(function)
    args = re.search(rf"^{heading}:\n(.*?)(?=^\S|\Z)", doc, re.MULTILINE | re.DOTALL)
    parts = re.split(r"^ {2,4}(\w+): ", args[1] if args else "", flags=re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in zip(parts[1::2], parts[2::2])}


def outside(text):
    """Numbers that the text of an argument excludes."""
    text = text.partition("; None")[0]
    if found := re.search(rf"\bin ([\[(])({NUMBER}), ({NUMBER})([\])])", text):
        opening, low, high, closing = found.groups()
        low, high = float(low), float(high)
        return [low if opening == "(" else low - 0.5, high if closing == ")" else high + 0.5]
    if re.search(r"\bnon-negative\b", text):
        return [-0.5]
    if re.search(r"\bpositive\b", text):
        return [0.0, -0.5]
    if found := re.search(rf", above ({NUMBER})\b", text):
        return [float(found[1]), float(found[1]) - 0.5]
    if found := re.search(rf", at least ({NUMBER})\b", text):
        return [float(found[1]) - 0.5]
    return []


def claims():
    for name, primitive in PRIMITIVES.items():
        texts = described(primitive.function)
        for argument, parameter in inspect.signature(primitive.function).parameters.items():
            # A pair of numbers is checked where its function is tested.
            kinds = {parameter.annotation, *typing.get_args(parameter.annotation)}
            kinds = set() if any("tuple" in str(kind) for kind in kinds) else kinds
            single = array_annotation(parameter.annotation) is None  # not data, as rewards are
            if float in kinds and single and outside(texts.get(argument, "")):
                yield name, argument


@pytest.mark.parametrize(("name", "argument"), list(claims()))
def test_a_number_outside_of_its_stated_range_is_refused(name, argument):
    primitive = PRIMITIVES[name]
    example = inputs.draw(
        primitive, np.random.default_rng(0), optional=OPTIONAL.get((name, argument), ())
    )
    settings = example.settings | SETTINGS.get((name, argument), {})
    settings.pop(argument, None)
    arrays = {k: v for k, v in example.arrays.items() if k != argument}
    call = functools.partial(primitive.function, **arrays, **settings)
    for value in (*outside(described(primitive.function)[argument]), float("nan")):
        with pytest.raises(ValueError, match=argument):
            call(**{argument: value})


def settings_with_ranges():
    for name, found in algorithms.NAMES.items():
        texts = {}
        for base in reversed(found.__mro__[:-1]):
            texts |= described(base, "Attributes")
        for field in dataclasses.fields(found):
            pair = "tuple" in str(field.type)
            if not pair and outside(texts.get(field.name, "")):
                yield pytest.param(name, field.name, texts[field.name], id=f"{name}-{field.name}")


@pytest.mark.parametrize(("name", "field", "text"), list(settings_with_ranges()))
def test_a_setting_outside_of_its_stated_range_is_refused(name, field, text):
    context = Context(group_size=2, max_tokens=4, num_prompts=2, on_policy=False)
    for value in (*outside(text), float("nan")):
        with pytest.raises(ValueError, match=field):
            settings = algorithms.find(name)(**{field: value})
            abstract.check(settings.build(context), context, name)
