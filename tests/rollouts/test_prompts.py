import numpy as np
import pytest

from polgrad.rollouts import pad_prompts


def test_pads_to_a_multiple_of_the_bucket():
    tokens, lengths = pad_prompts([[5, 6, 7], [8], [1, 2, 3, 4, 5]], bucket=4, max_length=100)
    assert tokens.shape == (3, 8) and tokens.dtype == np.int32 and lengths.dtype == np.int32
    np.testing.assert_array_equal(lengths, [3, 1, 5])
    np.testing.assert_array_equal(tokens[0], [5, 6, 7, 0, 0, 0, 0, 0])
    np.testing.assert_array_equal(tokens[2], [1, 2, 3, 4, 5, 0, 0, 0])


def test_width_is_exact_at_a_multiple_and_never_above_max_length():
    assert pad_prompts([[1] * 8], bucket=4, max_length=100)[0].shape == (1, 8)
    assert pad_prompts([[1] * 9], bucket=4, max_length=10)[0].shape == (1, 10)
    assert pad_prompts([[1] * 9], bucket=1, max_length=10)[0].shape == (1, 9)


@pytest.mark.parametrize(
    ("prompts", "bucket", "message"),
    [
        ([[1]] * 3 + [[1] * 900], 16, "prompt 3 has 900 tokens, more than the 512 allowed"),
        ([[1], []], 16, "prompt 1 has no tokens"),
        ([], 16, "prompts is empty"),
        ([[1]], 0, "bucket is 0"),
    ],
)
def test_bad_prompts_are_named(prompts, bucket, message):
    with pytest.raises(ValueError, match=message):
        pad_prompts(prompts, bucket=bucket, max_length=512)
