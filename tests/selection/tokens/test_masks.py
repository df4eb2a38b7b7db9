import jax.numpy as jnp
import numpy as np
import pytest
from compiled import run

from polgrad import ratios, selection

LOGP = jnp.log(jnp.array([[0.3, 1.0, 2.5, 9.0]]))
BEHAVIOR = jnp.zeros((1, 4))
MASK = jnp.array([[1, 1, 1, 0]])


def test_off_policy_mask_drops_bad_sequences_that_the_policy_has_left():
    drift = jnp.array([0.6, 0.6, 0.4, 0.6, -0.6])
    logp = -drift[:, None] * jnp.ones((5, 2))
    mask = jnp.array([[1, 1], [1, 1], [1, 1], [0, 0], [1, 1]])
    signs = jnp.array([-1.0, 1.0, -1.0, -1.0, -1.0])
    keep = run(selection.off_policy_sequence_mask, logp, jnp.zeros((5, 2)), signs, mask)
    np.testing.assert_array_equal(keep, [False, True, True, True, True])


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="level is 'word'"):
        ratios.truncated_importance_weights(LOGP, BEHAVIOR, MASK, level="word")
    with pytest.raises(ValueError, match="mode is 'clip'"):
        ratios.truncated_importance_weights(LOGP, BEHAVIOR, MASK, mode="clip")
    with pytest.raises(ValueError, match="floor is 3.0"):
        ratios.truncated_importance_weights(LOGP, BEHAVIOR, MASK, floor=3.0)
    with pytest.raises(ValueError, match=r"mask has shape \[4\]"):
        ratios.truncated_importance_weights(LOGP, BEHAVIOR, MASK[0])
    with pytest.raises(ValueError, match=r"advantages has shape \[1, 1\]"):
        selection.off_policy_sequence_mask(LOGP, BEHAVIOR, jnp.ones((1, 1)), MASK)


# --- rejection -----------------------------------------------------------------------------------

# Log ratios x = trainer - sampler; k1 = -x, k2 = x^2 / 2, k3 = exp(x) - 1 - x.
X = np.array([[0.5, -1.0, 0.0, 9.0], [2.0, -1.5, -0.25, 9.0]])
KINDS = {"k1": -X, "k2": X**2 / 2, "k3": np.expm1(X) - X}
LEVELS = {
    "token": lambda s: s,
    "sum": lambda s: s.sum(1, keepdims=True),
    "mean": lambda s: s.mean(1, keepdims=True),
    "max": lambda s: s,
}


@pytest.mark.sampled(4)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("level", LEVELS)
def test_rejection_by_every_statistic_and_level(kind, level):
    mask = np.array([[1, 1, 1, 0]] * 2)
    statistic = LEVELS[level](KINDS[kind][:, :3])
    low, high = -0.3, 1.4
    expected = np.zeros((2, 4), bool)
    inside = (statistic >= low) & (statistic <= high)
    expected[:, :3] = inside.all(1, keepdims=True) if level == "max" else inside
    settings = {"kind": kind, "level": level, "low": low, "high": high}
    kept = run(selection.rejection_mask, X, np.zeros_like(X), mask, **settings)
    np.testing.assert_array_equal(kept, expected)


def test_the_default_band_keeps_ratios_between_a_half_and_two():
    ratios = np.array([[0.501, 0.499, 1.99, 2.01]])
    kept = run(selection.rejection_mask, np.log(ratios), np.zeros((1, 4)), np.ones((1, 4)))
    np.testing.assert_array_equal(kept, [[True, False, True, False]])


RATIOS = np.array([[0.1, 0.6, 1.5, 1000.0]])
SAMPLER = np.zeros((1, 4)), np.ones((1, 4))


def test_by_default_no_function_of_this_file_lets_a_ratio_of_1000_pass():
    x = np.log(RATIOS)
    kept = run(selection.rejection_mask, x, *SAMPLER)
    np.testing.assert_array_equal(kept, [[False, True, True, False]])
    for kind in ("k2", "k3"):
        assert not run(selection.rejection_mask, x, *SAMPLER, kind=kind)[0, 3]
    # A masked weight is the ratio itself: small ratios may stay.
    weights = run(ratios.truncated_importance_weights, x, *SAMPLER, mode="mask")
    np.testing.assert_allclose(weights, [[0.1, 0.6, 1.5, 0.0]], rtol=1e-6)
    weights = run(ratios.truncated_importance_weights, x, *SAMPLER)
    np.testing.assert_allclose(weights, [[0.1, 0.6, 1.5, 2.0]], rtol=1e-6)


def test_the_level_max_rejects_a_sequence_with_one_token_on_either_side():
    agree = np.zeros((1, 4))
    assert np.all(run(selection.rejection_mask, agree, *SAMPLER, level="max"))
    for x in (-3.0, 3.0):
        one = agree + np.array([[0.0, x, 0.0, 0.0]])
        assert not np.any(run(selection.rejection_mask, one, *SAMPLER, level="max"))


def test_the_band_holds_its_ends_and_a_lone_sequence_its_tokens():
    x, zero, one = jnp.array([[0.5, 0.5]]), jnp.zeros((1, 2)), jnp.ones((1, 2))
    keep = lambda low, high: run(selection.rejection_mask, x, zero, one, low=low, high=high)  # noqa: E731
    assert np.all(keep(-0.5, 0.0))
    assert np.all(keep(-1.0, -0.5))
    assert np.all(keep(-0.5, -0.5))
    assert not np.any(keep(-0.4, 0.0))
    assert not np.any(keep(-1.0, -0.6))


@pytest.mark.parametrize("level", LEVELS)
def test_rejection_of_excluded_tokens_and_empty_rows(level):
    inf = np.inf
    logp = np.array([[-inf, -1.0], [-1.0, np.nan], [-1.0, -1.0]])
    behavior = np.array([[-1.0, -1.0], [-1.0, -1.0], [-1.0, -1.0]])
    mask = np.array([[1, 1], [1, 0], [0, 0]])
    kept = run(selection.rejection_mask, logp, behavior, mask, level=level)
    expected = [[False, level == "token"], [True, False], [False, False]]
    np.testing.assert_array_equal(kept, expected)
    # Within a band of 20 nats nothing is too far.
    wide = run(selection.rejection_mask, logp, behavior, mask, level=level, high=20.0)
    np.testing.assert_array_equal(wide, mask != 0)


def test_bad_rejection_arguments_are_named():
    with pytest.raises(ValueError, match="level"):
        selection.rejection_mask(LOGP, BEHAVIOR, MASK, level="sequence")
    with pytest.raises(ValueError, match="kind"):
        selection.rejection_mask(LOGP, BEHAVIOR, MASK, kind="k4")
    with pytest.raises(ValueError, match="high is 1.0, expected at least low = 2"):
        selection.rejection_mask(LOGP, BEHAVIOR, MASK, low=2.0, high=1.0)
    with pytest.raises(ValueError, match="logp"):
        selection.rejection_mask(LOGP[0], BEHAVIOR[0], MASK[0])
    with pytest.raises(ValueError, match="behavior_logp"):
        selection.rejection_mask(LOGP, BEHAVIOR[:, :2], MASK)


# --- at the bounds themselves -----------------------------------------------------------------------


def test_only_bad_sequences_beyond_the_threshold_are_dropped():
    logp, mask = jnp.full((5, 2), -1.0), jnp.ones((5, 2))
    behavior = logp + jnp.array([[0.5], [0.75], [0.75], [0.75], [0.75]])
    signs = jnp.array([-1.0, -1.0, 0.0, 0.5, -0.5])
    kept = run(selection.off_policy_sequence_mask, logp, behavior, signs, mask)
    np.testing.assert_array_equal(kept, [True, False, True, True, False])
