import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiled import grad, run

from polgrad import losses

# Columns: inside the range; moved away from the target; moved towards it; overshot the target.
VALUES = jnp.array([0.1, 1.0, 1.0, 1.0])
OLD = jnp.zeros(4)
TARGETS = jnp.array([1.0, -1.0, 3.0, 0.1])


def test_plain_value_and_gradient():
    np.testing.assert_allclose(run(losses.value_loss, VALUES, TARGETS), [0.405, 2.0, 2.0, 0.405])
    total = lambda v, t: losses.value_loss(v, t).sum()  # noqa: E731
    by_value, by_target = grad(total, argnums=(0, 1))(VALUES, TARGETS)
    np.testing.assert_allclose(by_value, VALUES - TARGETS)
    np.testing.assert_array_equal(by_target, 0.0)


def test_clip_takes_the_larger_error():
    loss = run(
        lambda v, t, o: losses.value_loss(v, t, old_values=o, clip=0.2), VALUES, TARGETS, OLD
    )
    # Held at 0.2: errors 0.9 (unmoved), 1.2, 2.8, 0.1 against 0.9, 2.0, 2.0, 0.9.
    np.testing.assert_allclose(loss, [0.405, 2.0, 3.92, 0.405], rtol=1e-6)


def test_clip_cuts_the_gradient_only_where_the_held_error_wins():
    """Inside the range both errors are equal; `maximum` would give half of the gradient."""
    total = lambda v: losses.value_loss(v, TARGETS, old_values=OLD, clip=0.2).sum()  # noqa: E731
    np.testing.assert_allclose(grad(total)(VALUES), [-0.9, 2.0, 0.0, 0.9], rtol=1e-6)


def test_td_loss_is_a_semi_gradient_and_ignores_what_follows_the_end():
    values, rewards = jnp.array([1.0, 2.0]), jnp.array([0.5, 0.5])
    discounts, following = jnp.array([0.9, 0.0]), jnp.array([2.0, jnp.nan])
    np.testing.assert_allclose(
        run(losses.td_loss, values, rewards, discounts, following), [0.845, 1.125], rtol=1e-6
    )
    total = lambda v, n: losses.td_loss(v, rewards, discounts, n).sum()  # noqa: E731
    by_value, by_next = grad(total, argnums=(0, 1))(values, following)
    np.testing.assert_allclose(by_value, [-1.3, 1.5], rtol=1e-6)
    np.testing.assert_array_equal(by_next, 0.0)


def test_an_expectile_weighs_the_two_sides():
    loss = run(lambda v, t: losses.expectile_loss(v, t, expectile=0.8), VALUES, TARGETS)
    # Errors 0.9 and 2 above the value count 0.8, errors 2 and 0.9 below it 0.2.
    np.testing.assert_allclose(loss, [0.648, 0.8, 3.2, 0.162], rtol=1e-6)
    seventy = losses.expectile_loss(VALUES, TARGETS, expectile=0.7)
    np.testing.assert_array_equal(losses.expectile_loss(VALUES, TARGETS), seventy)
    total = lambda v, t: losses.expectile_loss(v, t, expectile=0.8).sum()  # noqa: E731
    by_value, by_target = grad(total, argnums=(0, 1))(VALUES, TARGETS)
    np.testing.assert_allclose(by_value, [-1.44, 0.8, -3.2, 0.36], rtol=1e-6)
    np.testing.assert_array_equal(by_target, 0.0)
    half = run(lambda v, t: losses.expectile_loss(v, t, expectile=0.5), VALUES, TARGETS)
    np.testing.assert_allclose(half, losses.value_loss(VALUES, TARGETS), rtol=1e-6)


def expectiles(values, weights, expectile):
    """By bisection: where what lies above pulls as strongly as what lies below, a row each."""
    low, high = values.min(1), values.max(1)
    for _ in range(80):
        middle = (low + high) / 2
        gap = values - middle[:, None]
        pull = (weights * np.where(gap < 0, 1 - expectile, expectile) * gap).sum(1)
        low, high = np.where(pull > 0, middle, low), np.where(pull > 0, high, middle)
    return low


@pytest.mark.sampled(1)
@pytest.mark.parametrize("expectile", [0.5, 0.7, 0.999999])
def test_implicit_q_learning_is_at_rest_at_its_fixed_point(expectile):
    """P-IQL on a random table: both critics and the policy have gradient 0 at the solution."""
    random = np.random.default_rng(0)
    states, actions, discount = 4, 3, 0.8
    rewards = random.standard_normal((states, actions))
    following = random.integers(states, size=(states, actions))
    behavior = random.dirichlet(np.ones(actions), states)
    behavior[0] = [0.5, 0.5, 0.0]  # an action that no data hold, and the best by far
    rewards[0, 2] = 100.0
    q = rewards.copy()
    for _ in range(200):
        data = np.where(behavior > 0, q, q[:, :1])
        values = expectiles(data, behavior, expectile)
        q = rewards + discount * values[following]
    if expectile == 0.5:
        mean = (behavior * rewards).sum(1)
        chain = np.zeros((states, states))
        np.add.at(chain, (np.arange(states)[:, None], following), behavior)
        exact = np.linalg.solve(np.eye(states) - discount * chain, mean)
        np.testing.assert_allclose(values, exact, rtol=1e-9)  # the value of the behaviour itself
    if expectile > 0.9:
        best = np.where(behavior > 0, q, -np.inf).max(1)
        np.testing.assert_allclose(values, best, atol=1e-3)  # optimal on the actions in the data
    ones = np.ones((states, actions))

    def critic(v):
        loss = losses.expectile_loss(v[:, None] * ones, q, expectile=expectile)
        return (behavior * loss).sum()

    def model(q):
        return (behavior * losses.td_loss(q, rewards, discount * ones, values[following])).sum()

    def policy(logits):
        logp = jax.nn.log_softmax(logits)
        loss = losses.reward_weighted(logp, q - values[:, None], beta=1 / 3, clip=(0.0, 1e9))
        return (behavior * loss).sum()

    with jax.enable_x64(True):
        np.testing.assert_allclose(grad(critic)(jnp.asarray(values)), 0.0, atol=1e-9)
        np.testing.assert_allclose(grad(model)(jnp.asarray(q)), 0.0, atol=1e-12)
        tilted = np.log(np.maximum(behavior, 1e-300)) + 3 * np.minimum(q - values[:, None], 20 / 3)
        found = np.asarray(grad(policy)(jnp.asarray(tilted)))
        assert np.abs(found).max() < 1e-9 * np.exp(tilted).sum(1).max()


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match=r"expectile is 1.0, expected a number in \(0, 1\)"):
        losses.expectile_loss(VALUES, TARGETS, expectile=1.0)
    with pytest.raises(ValueError, match=r"targets has shape \[2\]"):
        losses.value_loss(VALUES, jnp.zeros(2))
    with pytest.raises(ValueError, match="old_values is None"):
        losses.value_loss(VALUES, TARGETS, clip=0.2)
    with pytest.raises(ValueError, match="clip is None"):
        losses.value_loss(VALUES, TARGETS, old_values=OLD)
    with pytest.raises(ValueError, match="clip is 0.0"):
        losses.value_loss(VALUES, TARGETS, old_values=OLD, clip=0.0)
    with pytest.raises(ValueError, match=r"next_values has shape \[5\]"):
        losses.td_loss(VALUES, VALUES, VALUES, jnp.zeros(5))


def test_clip_from_below_and_what_is_stopped():
    settings = {"old_values": jnp.zeros(2), "clip": 0.2}
    values, targets = jnp.array([-1.0, -1.0]), jnp.array([1.0, -3.0])
    found = losses.value_loss(values, targets, **settings)
    np.testing.assert_allclose(found, [2.0, 3.92], rtol=1e-6)  # held at -0.2

    def total(values, old, clip):
        return losses.value_loss(values, targets, old_values=old, clip=clip).sum()

    np.testing.assert_array_equal(grad(lambda o: total(values, o, 0.2))(jnp.zeros(2)), 0.0)
    np.testing.assert_allclose(grad(lambda v: total(v, jnp.zeros(2), 0.2))(values), [-2.0, 0.0])


@pytest.mark.parametrize("settings", [{}, {"old_values": np.zeros(3), "clip": 0.2}])
def test_a_target_that_is_not_known_teaches_nothing(settings):
    targets, values = jnp.array([jnp.nan, jnp.inf, 1.0]), jnp.array([3.0, 3.0, 3.0])
    loss = lambda v: losses.value_loss(v, targets, **settings)  # noqa: E731
    np.testing.assert_array_equal(loss(values)[:2], 0.0)
    np.testing.assert_array_equal(grad(lambda v: loss(v).sum())(values)[:2], 0.0)
