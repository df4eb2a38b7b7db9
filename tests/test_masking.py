import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiled import run, value_and_grad
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from polgrad import losses, masking

MODES = [("token", None), ("sequence", None), ("sequence_sum", None), ("constant", 4)]
LOSS = jnp.array([[1.0, 1.0, 1.0, 1.0], [3.0, 3.0, 9.0, 9.0]])
MASK = jnp.array([[1, 1, 1, 1], [1, 1, 0, 0]])


@pytest.mark.parametrize(
    ("mode", "length", "expected"),
    [
        ("token", None, 10 / 6),
        ("sequence", None, 2.0),
        ("sequence_sum", None, 5.0),
        ("constant", 4, 1.25),
    ],
)
def test_hand_numbers(mode, length, expected):
    assert run(masking.reduce, LOSS, MASK, mode=mode, length=length) == pytest.approx(expected)


def by_loop(mask, mode, length):
    """The definition, written as loops."""
    counts = [sum(row) for row in mask]
    rows = sum(n > 0 for n in counts)
    out = np.zeros(mask.shape)
    for b, row in enumerate(mask):
        for t, m in enumerate(row):
            if m:
                divisor = {
                    "token": sum(counts),
                    "sequence": rows * counts[b],
                    "sequence_sum": rows,
                    "constant": len(mask) * (length or 0),
                }[mode]
                out[b, t] = 1 / divisor
    return out


@pytest.mark.parametrize(("mode", "length"), MODES)
@given(mask=hnp.arrays(bool, (4, 5), elements=st.booleans()))
def test_weights_equal_the_definition_and_do_not_see_row_order(mode, length, mask):
    weights = run(masking.weights, mask, mode=mode, length=length)
    np.testing.assert_allclose(weights, by_loop(mask, mode, length), rtol=1e-6)
    np.testing.assert_array_equal(
        run(masking.weights, mask[::-1], mode=mode, length=length), weights[::-1]
    )
    np.testing.assert_array_equal(
        run(masking.weights, mask * 7.5, mode=mode, length=length),
        weights,
        "any non-zero counts as 1",
    )


@given(
    mask=hnp.arrays(bool, (4, 5), elements=st.booleans()),
    padding=st.integers(0, 2),
)
def test_padding_columns_and_empty_rows_change_nothing(mask, padding):
    wide = np.pad(mask, ((0, padding), (0, padding)))
    for mode in ("token", "sequence", "sequence_sum"):
        whole = np.asarray(run(masking.weights, wide, mode=mode))
        np.testing.assert_allclose(whole[:4, :5], run(masking.weights, mask, mode=mode), rtol=1e-6)
        assert whole.sum() == pytest.approx(np.asarray(run(masking.weights, mask, mode=mode)).sum())


def test_rank_one_masks_average_over_valid_sequences():
    mask = np.array([1, 0, 1, 1])
    for mode in ("token", "sequence", "sequence_sum"):
        np.testing.assert_allclose(run(masking.weights, mask, mode=mode), mask / 3, rtol=1e-6)
    np.testing.assert_allclose(masking.weights(mask, mode="constant", length=2), mask / 8)


@pytest.mark.parametrize(("mode", "length"), MODES)
def test_an_empty_batch_weighs_nothing(mode, length):
    empty = np.zeros((2, 3))
    np.testing.assert_array_equal(run(masking.weights, empty, mode=mode, length=length), 0.0)
    nan = jnp.full((2, 3), jnp.nan)
    assert run(masking.reduce, nan, empty, mode=mode, length=length) == 0.0


@pytest.mark.parametrize(("mode", "length"), MODES)
def test_nan_under_the_mask_reaches_neither_value_nor_gradient(mode, length):
    poisoned = jnp.where(MASK > 0, LOSS, jnp.nan)
    reduce = lambda x: masking.reduce(x, MASK, mode=mode, length=length)  # noqa: E731
    value, gradient = value_and_grad(reduce)(poisoned)
    expected, slope = value_and_grad(reduce)(LOSS)
    assert value == expected
    np.testing.assert_array_equal(gradient, slope)


@pytest.mark.parametrize(("mode", "length"), MODES)
def test_micro_batches_with_global_weights_add_up_to_the_whole(mode, length):
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        mask = (np.arange(6) < rng.integers(0, 7, size=8)[:, None]).astype(float)
        logp, behavior = rng.normal(-2, 1, size=(2, 8, 6))
        advantages = rng.normal(size=(8, 1))
        weights = run(masking.weights, mask, mode=mode, length=length)

        @jax.jit
        def gradient(logp, behavior, advantages, weights):
            def total(x):
                return masking.weighted_sum(losses.ppo_clip(x, behavior, advantages), weights)

            return jax.grad(total)(logp)

        whole = gradient(logp, behavior, advantages, weights)
        parts = [
            gradient(*(x[rows] for x in (logp, behavior, advantages, weights)))
            for rows in np.split(np.arange(8), 4)
        ]
        assert np.abs(whole).max() > 1e-3
        np.testing.assert_allclose(np.concatenate(parts), whole, atol=1e-15)


def test_weights_keep_the_precision_of_the_loss():
    with jax.enable_x64(True):
        value = masking.reduce(jnp.ones((1, 3)) / 3, jnp.ones((1, 3), jnp.float32), mode="token")
        assert value.dtype == jnp.float64 and abs(value - 1 / 3) < 1e-15
    assert masking.weights(jnp.ones((1, 3), jnp.bfloat16), mode="token").dtype == jnp.float32


def test_sequence_sum_and_masked_mean():
    x = jnp.array([[1.0, 2.0, jnp.nan], [4.0, jnp.nan, 6.0], [jnp.nan] * 3])
    mask = jnp.array([[1, 1, 0], [1, 0, 1], [0, 0, 0]])
    np.testing.assert_array_equal(masking.sequence_sum(x, mask), [3.0, 10.0, 0.0])
    assert masking.masked_mean(x, mask) == 13 / 4
    np.testing.assert_array_equal(masking.masked_mean(x, mask, axis=1), [1.5, 5.0, 0.0])


def test_one_term_is_its_own_mean_and_a_constant_may_be_below_one():
    alone = jnp.array([[3.0, jnp.nan]])
    assert masking.masked_mean(alone, jnp.array([[1, 0]])) == 3.0
    np.testing.assert_array_equal(
        masking.weights(jnp.array([[1, 0]]), mode="constant", length=0.5), [[2.0, 0.0]]
    )


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="mode is 'mean', expected one of 'token'"):
        masking.weights(MASK, mode="mean")
    with pytest.raises(ValueError, match="length is None"):
        masking.weights(MASK, mode="constant")
    with pytest.raises(ValueError, match="length is 4"):
        masking.weights(MASK, mode="token", length=4)
    with pytest.raises(ValueError, match="length is 0"):
        masking.weights(MASK, mode="constant", length=0)
    with pytest.raises(ValueError, match=r"mask has shape \[\]"):
        masking.weights(jnp.array(1.0), mode="token")
    with pytest.raises(ValueError, match=r"mask has shape \[2\].*\[2, 4\], the shape of loss"):
        masking.reduce(LOSS, jnp.ones(2), mode="token")
    with pytest.raises(ValueError, match=r"x has shape \[4\], expected rank 2"):
        masking.sequence_sum(LOSS[0], MASK[0])
