import jax.numpy as jnp
import numpy as np
import pytest
from compiled import grad, run

from polgrad import losses

LOGP = jnp.log(jnp.array([[0.3, 1.0, 2.5, 9.0]]))
BEHAVIOR = jnp.zeros((1, 4))
MASK = jnp.array([[1, 1, 1, 0]])


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [0.3, 1.0, 2.0, 0.0]),
        ({"floor": 0.5}, [0.5, 1.0, 2.0, 0.0]),
        ({"mode": "mask", "floor": 0.5}, [0.0, 1.0, 0.0, 0.0]),
        ({"level": "sequence"}, [0.75, 0.75, 0.75, 0.0]),
        ({"level": "sequence", "cap": 0.5}, [0.5, 0.5, 0.5, 0.0]),
        ({"level": "sequence", "mode": "mask", "cap": 0.5}, [0.0, 0.0, 0.0, 0.0]),
    ],
)
def test_hand_numbers(settings, expected):
    weights = run(losses.truncated_importance_weights, LOGP, BEHAVIOR, MASK, **settings)
    np.testing.assert_allclose(weights, [expected], rtol=1e-6)


@pytest.mark.parametrize("level", ["token", "sequence"])
def test_weights_are_stopped_and_total(level):
    logp = jnp.array([[-np.inf, -1.0, -1.0, jnp.nan], [-1.0, -np.inf, -np.inf, -1.0]])
    behavior = jnp.array([[-1.0, -1.0, -1.0, -1.0], [-1.0, -np.inf, -1.0, -np.inf]])
    mask = jnp.array([[1, 1, 1, 0], [1, 1, 0, 1]])
    weigh = lambda x, b: losses.truncated_importance_weights(x, b, mask, level=level)  # noqa: E731
    expected = {
        "token": [[0.0, 1.0, 1.0, 0.0], [1.0, 1.0, 0.0, 2.0]],
        "sequence": [[0.0, 0.0, 0.0, 0.0], [2.0, 2.0, 0.0, 2.0]],
    }[level]
    np.testing.assert_array_equal(run(weigh, logp, behavior), expected)
    for gradient in grad(lambda *x: weigh(*x).sum(), argnums=(0, 1))(logp, behavior):
        np.testing.assert_array_equal(gradient, 0.0)


def test_off_policy_mask_drops_bad_sequences_that_the_policy_has_left():
    drift = jnp.array([0.6, 0.6, 0.4, 0.6, -0.6])
    logp = -drift[:, None] * jnp.ones((5, 2))
    mask = jnp.array([[1, 1], [1, 1], [1, 1], [0, 0], [1, 1]])
    signs = jnp.array([-1.0, 1.0, -1.0, -1.0, -1.0])
    keep = run(losses.off_policy_sequence_mask, logp, jnp.zeros((5, 2)), signs, mask)
    np.testing.assert_array_equal(keep, [False, True, True, True, True])


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="level is 'word'"):
        losses.truncated_importance_weights(LOGP, BEHAVIOR, MASK, level="word")
    with pytest.raises(ValueError, match="mode is 'clip'"):
        losses.truncated_importance_weights(LOGP, BEHAVIOR, MASK, mode="clip")
    with pytest.raises(ValueError, match="floor is 3.0"):
        losses.truncated_importance_weights(LOGP, BEHAVIOR, MASK, floor=3.0)
    with pytest.raises(ValueError, match=r"mask has shape \[4\]"):
        losses.truncated_importance_weights(LOGP, BEHAVIOR, MASK[0])
    with pytest.raises(ValueError, match=r"advantages has shape \[1, 1\]"):
        losses.off_policy_sequence_mask(LOGP, BEHAVIOR, jnp.ones((1, 1)), MASK)
