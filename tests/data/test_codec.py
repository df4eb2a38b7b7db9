import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from polgrad.data import codec

scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(st.characters())  # lone surrogates included
)
keys = st.integers() | st.text() | st.tuples(st.integers(), st.integers())
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(keys, inner, max_size=3)
        | st.sets(st.integers() | st.text(), max_size=3)
    ),
    max_leaves=12,
)


@settings(max_examples=150, deadline=None)
@given(values)
def test_what_is_read_equals_what_was_written(value):
    back = codec.loads(codec.dumps(value))
    assert back == value and type(back) is type(value)


def test_numpy_values_come_back_as_pythons():
    value = {"n": np.int64(3), "x": np.float32(0.5), "flag": np.bool_(True), "a": np.arange(2)}
    assert codec.loads(codec.dumps(value)) == {"n": 3, "x": 0.5, "flag": True, "a": [0, 1]}


@pytest.mark.parametrize("tag", ["__tuple__", "__set__", "__pairs__"])
def test_a_users_key_may_look_like_a_tag(tag):
    assert codec.loads(codec.dumps({tag: [1, 2]})) == {tag: [1, 2]}


def test_the_text_is_one_line_of_ascii():
    text = codec.dumps({"é\n": "\ud800"})
    assert text.isascii() and "\n" not in text


def test_other_types_are_named():
    with pytest.raises(ValueError, match="type object"):
        codec.dumps([object()])
