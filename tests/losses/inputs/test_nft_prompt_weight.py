"""How much a question counts in NFT."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiled import grad

from polgrad import advantages, losses, masking


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    ("like", "right", "wrong", "scale"),
    [("dr_grpo", 0.75, -0.25, "none"), ("grpo", 1.73205, -0.57735, "group")],
)
@pytest.mark.parametrize("epsilon", [1.0, 0.1])
def test_on_policy_it_is_a_policy_gradient(like, right, wrong, scale, epsilon, x64):
    rewards = jnp.array([[1.0, 0, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0], [1, 1, 1, 1]])
    rate = advantages.success_rate(rewards)
    weight = losses.nft_prompt_weight(rate, like=like)
    assert float(weight[0]) == pytest.approx(right, abs=1e-5)
    # -omega p / (1 - p) is what multiplies grad log pi of a wrong answer.
    assert -float(weight[0]) / 3 == pytest.approx(wrong, abs=1e-5)
    logp = jnp.asarray(np.random.default_rng(0).normal(-2, 0.3, (16, 3)))
    mask = np.arange(3) < np.array([3, 1, 2, 3] * 4)[:, None]
    row = lambda x: jnp.repeat(x, 4)  # noqa: E731

    def nft(x):
        loss = losses.nft(x, logp, rewards.reshape(-1), row(rate), epsilon=epsilon)
        return masking.reduce(row(weight)[:, None] * loss, mask, mode="token")

    def policy_gradient(x):
        advantage = advantages.group_relative(rewards, scale=scale, ddof=0, epsilon=0.0)
        return masking.reduce(
            losses.ppo_clip(x, logp, advantage.reshape(-1, 1)), mask, mode="token"
        )

    found, expected = grad(nft)(logp), grad(policy_gradient)(logp)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    # Groups that are all right or all wrong are dropped.
    np.testing.assert_array_equal(found[8:], 0.0)
    assert np.all(found[:8][mask[:8]] != 0)
