"""Unlikelihood: the loss of pairs by hand, and what of a pair it does not read."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hand_made import Numbers, by_hand, pairs

from polgrad import algorithms
from polgrad.contract import Context, Outputs

HAND_COMPUTED = {
    # -sum log p over the chosen tokens - sum log(1 - p) over the rejected ones, the mean over 2 pairs.
    # Chosen 0.5, 0.4 and 0.3; rejected 0.1 and 0.8, 0.5. The slope of a rejected token is p / (1 - p).
    "unlikelihood": Numbers(
        experience=pairs(),
        prepared={"weights": [1 / 2, 1 / 2, 0]},
        loss=-(math.log(0.2) + math.log(0.9) + math.log(0.3) + math.log(0.2 * 0.5)) / 2,
        gradient=[
            [[-1 / 2, -1 / 2], [0.1 / 0.9 / 2, 0]],
            [[0, -1 / 2], [0.8 / 0.2 / 2, 0.5 / 0.5 / 2]],
            [[0, 0], [0, 0]],
        ],
    ),
}

test_by_hand = by_hand(HAND_COMPUTED)

CONTEXT = Context(group_size=2, max_tokens=3, num_prompts=4, on_policy=False)
PROBABILITIES = jnp.array([[[0.5, 0.25, 0.9], [0.25, 0.75, 0.9]], [[0.5] * 3, [0.5] * 3]])
MASK = jnp.array([[[1.0, 1.0, 0.0], [1.0, 0.0, 0.0]], [[1.0] * 3, [0.0] * 3]])


def loss_of(weight, logp=None, mask=MASK):
    algorithm = algorithms.Unlikelihood(weight=weight).build(CONTEXT)
    rows = {"mask": mask, "prompts": mask, "completions": mask}
    rows |= {name: mask.sum(-1) for name in ("prompt_lengths", "completion_lengths")}
    _, batch, _ = algorithm.prepare((), rows, jax.random.key(0))
    logp = jnp.log(PROBABILITIES) if logp is None else logp
    return algorithm.loss(Outputs(logp), batch)


def test_the_loss_of_a_pair_by_hand():
    """The second pair has an answer without a token, and is no pair."""
    expected = -np.log(0.5) - np.log(0.25) - 0.5 * np.log(1 - 0.25)
    weights = jnp.array([0.0, 0.5])
    found, metrics = jax.vmap(loss_of)(weights)
    np.testing.assert_allclose(found, [-np.log(0.5 * 0.25), expected], rtol=1e-6)
    margin, count = (x[0] for x in metrics["margin"])
    np.testing.assert_allclose(margin / count, np.log(0.5 * 0.25 / 0.25), rtol=1e-6)


def test_the_slopes_are_those_of_the_tokens():
    """-1 for a chosen token, w p / (1 - p) for a rejected one, 0 where the mask is 0."""
    logp = jnp.log(PROBABILITIES)
    slopes = jax.grad(lambda x: loss_of(0.5, x)[0])(logp)
    np.testing.assert_allclose(slopes[0], [[-1, -1, 0], [0.5 * 0.25 / 0.75, 0, 0]], rtol=1e-5)
    np.testing.assert_array_equal(slopes[1], 0)


def test_it_reads_no_initial_policy_and_refuses_a_negative_weight():
    algorithm = algorithms.Unlikelihood().build(CONTEXT)
    assert not algorithm.policies and algorithm.collect.columns == ("chosen", "rejected")
    assert algorithms.Unlikelihood(pairs="samples").build(CONTEXT).samples
    with pytest.raises(ValueError, match="weight is -0.1, expected"):
        algorithms.Unlikelihood(weight=-0.1).build(CONTEXT)
