"""NFT: the optimum it has, the policy gradients it equals on-policy, its clip of values alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiled import grad, run, value_and_grad

from polgrad import losses
from polgrad.ratios import bounded

BEHAVIOR = np.array([0.4, 0.3, 0.2, 0.1])
SUCCESS = np.array([0.9, 0.3, 0.1, 0.5])
RATE = 0.52


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


def slope(ratio, *, reward=0.0, rate=0.25, **settings):
    """Derivative of the loss of one token by its log-probability, at ratio to behaviour."""
    rows = jnp.array([reward]), jnp.array([rate])
    behavior = jnp.full((1, 1), -2.0)
    loss = lambda u: losses.nft(u, behavior, *rows, **settings).sum()  # noqa: E731
    return float(grad(loss)(behavior + jnp.log(ratio))[0, 0])


def test_the_population_gradient_vanishes_at_the_policy_of_right_answers(x64):
    assert float(BEHAVIOR @ SUCCESS) == pytest.approx(RATE)
    optimum = BEHAVIOR * SUCCESS / RATE
    np.testing.assert_allclose(optimum, [0.69231, 0.17308, 0.03846, 0.09615], atol=5e-6)

    def population(logits):
        logp = jax.nn.log_softmax(logits)[:, None]
        one, rate = jnp.ones(4), jnp.full(4, RATE)
        # An epsilon this small clips nothing at the optimum, where (1 - p R) / (1 - p) >= 0.2.
        old = jnp.log(BEHAVIOR)[:, None]
        right = losses.nft(logp, old, one, rate, epsilon=1e-3)[:, 0]
        wrong = losses.nft(logp, old, 0 * one, rate, epsilon=1e-3)[:, 0]
        return BEHAVIOR @ (SUCCESS * right + (1 - SUCCESS) * wrong)

    descent = grad(population)
    np.testing.assert_allclose(descent(jnp.log(optimum)), 0.0, atol=1e-12)
    assert np.abs(descent(jnp.log(BEHAVIOR))).max() > 0.05
    assert float(population(jnp.log(optimum))) < float(population(jnp.log(BEHAVIOR)))


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    ("ratio", "epsilon", "by_hand"),
    [
        (0.5, 1.0, -1 / 7),
        (1.0, 1.0, -1 / 3),
        (2.0, 1.0, -2 / 3),
        (2.0, 0.1, -1.0),
        (5.0, 1.0, -5 / 3),
        (5.0, 0.1, -16.667),
    ],
)
def test_the_push_on_a_wrong_token(ratio, epsilon, by_hand):
    # by_hand is the derivative of log max_v; the loss has the opposite sign.
    assert slope(ratio, epsilon=epsilon) == pytest.approx(-by_hand, rel=1e-4)
    half = slope(ratio, epsilon=epsilon, negative_weight=0.5)
    assert half == pytest.approx(-0.5 * by_hand, rel=1e-4)


@pytest.mark.parametrize("ratio", [0.1, 1.0, 7.0])
def test_a_right_token_has_the_slope_of_its_likelihood(ratio):
    assert slope(ratio, reward=1.0) == pytest.approx(-1.0, rel=1e-6)


def test_without_negatives_it_is_rejection_fine_tuning():
    logp = np.random.default_rng(1).normal(-2, 0.5, (4, 3)).astype(np.float32)
    behavior = logp - 0.3
    rewards = np.array([1, 0, 1, 0], np.float32)
    rate = np.full(4, 0.5, np.float32)
    plain = grad(lambda x: losses.nft(x, behavior, rewards, rate, negative_weight=0.0).sum())(logp)
    supervised = grad(lambda x: losses.reinforce(x, rewards[:, None]).sum())(logp)
    np.testing.assert_array_equal(plain, supervised)
    weight = run(losses.nft_prompt_weight, np.array([0.0, 0.5, 1.0], np.float32), like="none")
    np.testing.assert_array_equal(weight, [0.0, 1.0, 0.0])


def test_the_clip_of_values_passes_every_gradient():
    x = jnp.array([-3.0, 0.0, 0.5, 1.0, 2.0])
    value, gradient = value_and_grad(lambda x: bounded(x, low=1.0, high=jnp.inf).sum())(x)
    assert float(value) == 1.0 * 4 + 2.0
    np.testing.assert_array_equal(gradient, 1.0)


def test_rewards_between_the_classes_mix_the_terms():
    logp, old = np.full((1, 2), -1.5, np.float32), np.full((1, 2), -2.0, np.float32)
    rate = np.array([0.3], np.float32)
    wrong, right, between = (
        run(losses.nft, logp, old, np.array([r], np.float32), rate) for r in (0.0, 1.0, 0.25)
    )
    np.testing.assert_allclose(between, 0.25 * right + 0.75 * wrong, rtol=1e-6)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("reward", [0.0, 1.0])
@pytest.mark.parametrize("rate", [0.0, 0.5, 1.0])
def test_edges_are_finite_in_value_and_gradient(reward, rate):
    inf = np.inf
    logp = np.array([[-inf, -inf, -1.0, 0.0, -900.0]], np.float32)
    old = np.array([[-inf, -1.0, -inf, -90.0, 0.0]], np.float32)
    rows = np.array([reward], np.float32), np.array([rate], np.float32)
    for epsilon in (1.0, 1e-3):
        value, gradient = value_and_grad(
            lambda x: losses.nft(x, old, *rows, epsilon=epsilon).sum()  # noqa: B023
        )(logp)
        assert np.isfinite(value) and np.all(np.isfinite(gradient))
        np.testing.assert_array_equal(gradient[0, :3], 0.0)


def test_only_the_current_policy_carries_a_gradient():
    args = [np.array(x, np.float32) for x in ([[-1.0, -2.0]], [[-1.5, -1.0]], [0.5], [0.25])]
    gradients = grad(lambda *x: losses.nft(*x).sum(), argnums=(0, 1, 2, 3))(*args)
    assert np.all(gradients[0] != 0)
    for gradient in gradients[1:]:
        np.testing.assert_array_equal(gradient, 0.0)


def test_bad_arguments_are_named():
    good = [np.zeros((2, 3)), np.zeros((2, 3)), np.zeros(2), np.zeros(2)]
    for index, name in ((1, "behavior_logp"), (2, "rewards"), (3, "success_rate")):
        args = [*good]
        args[index] = np.zeros((2, 2))
        with pytest.raises(ValueError, match=name):
            losses.nft(*args)
    for change, message in (
        ({"epsilon": 0.0}, "epsilon is 0.0"),
        ({"negative_weight": -1.0}, "negative_weight is -1.0"),
    ):
        with pytest.raises(ValueError, match=message):
            losses.nft(*good, **change)
    with pytest.raises(ValueError, match="like is 'ppo'"):
        losses.nft_prompt_weight(0.5, like="ppo")


def test_an_answer_without_a_reward_or_a_rate_is_not_learned_from():
    logp, behavior = np.full((4, 2), -1.0), np.full((4, 2), -1.5)
    rewards, rate = np.array([1.0, np.nan, 0.0, 0.0]), np.array([np.nan, 0.5, np.nan, 0.5])
    loss = lambda x: losses.nft(x, behavior, rewards, rate)  # noqa: E731
    np.testing.assert_array_equal(loss(logp)[:3], 0.0)
    slope = jax.grad(lambda x: loss(x).sum())(jnp.asarray(logp))
    np.testing.assert_array_equal(slope[:3], 0.0)
    assert np.all(slope[3] > 0.0)
    of_rate = jax.grad(lambda p: losses.nft_prompt_weight(p).sum())(jnp.array([0.25, 0.5]))
    np.testing.assert_array_equal(of_rate, 0.0)
    with pytest.raises(ValueError, match="epsilon"):
        losses.nft(logp, behavior, np.ones(4), np.full(4, 0.5), epsilon=1.5)
