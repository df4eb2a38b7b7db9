"""Games with known solutions, and what a preference matrix must satisfy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polgrad import tabular
from tests.support.compiled import grad, run

RANDOM = np.random.default_rng(0).uniform(size=(4, 4))


def equilibrium_gap(preference, policy):
    """How much the best answer wins against the policy above 1/2."""
    return float(jnp.max(tabular.win_rates(preference, policy))) - 0.5


ALL = {
    "rps": tabular.rps_game(),
    "rps .2": tabular.rps_game(0.2),
    "dice": tabular.dice_game(),
    "cycle3": tabular.cycle3_game(0.1, 0.2, 0.3),
    "population": tabular.population_game([(0, 1, 2), (1, 2, 0), (2, 0, 1)], (0.5, 0.25, 0.25)),
    "cyclic": tabular.cyclic_game(jnp.array([0.3, -1.0, 0.5, 2.0]), jnp.array([0, 1, 2, 1])),
    "bradley_terry": tabular.bradley_terry_game([0.0, 1.0, -2.0]),
    "additive": tabular.additive_game([0.0, 0.1, 0.2, 0.35]),
    "symmetrised": tabular.symmetrize_preference(RANDOM),
}


@pytest.mark.parametrize("name", ALL)
def test_every_game_is_a_preference_matrix(name):
    np.testing.assert_allclose(np.diag(tabular.check_preference(ALL[name])), 0.5, atol=1e-6)


@pytest.mark.parametrize("game", [tabular.rps_game, tabular.dice_game])
def test_uniform_play_solves_the_cyclic_games(game):
    uniform = jnp.full(3, 1 / 3)
    np.testing.assert_allclose(tabular.win_rates(game(), uniform), 0.5, atol=1e-6)
    assert equilibrium_gap(game(), jnp.array([0.4, 0.3, 0.3])) > 0.005


def test_matrices_by_hand():
    np.testing.assert_allclose(tabular.rps_game(), [[0.5, 1, 0], [0, 0.5, 1], [1, 0, 0.5]])
    np.testing.assert_allclose(
        9 * tabular.dice_game(), [[4.5, 5, 4], [4, 4.5, 5], [5, 4, 4.5]], rtol=1e-6
    )


@pytest.mark.parametrize("margins", [(0.1, 0.2, 0.3), (0.4, 0.05, 0.2)])
def test_cycle_of_three_is_solved_by_its_reversed_margins(margins):
    a, b, c = margins
    solution = jnp.array([c, b, a]) / (a + b + c)
    np.testing.assert_allclose(
        tabular.win_rates(tabular.cycle3_game(*margins), solution), 0.5, atol=1e-6
    )


def test_population_example_of_the_paper():
    epsilon = 0.1
    a, b = 0.5 * (1 / 3 - epsilon), 0.5 * (1 / 3 + epsilon / 2)
    preference = tabular.cycle3_game(a, b, b)
    solution = jnp.array([1 / 3 + epsilon / 2, 1 / 3 + epsilon / 2, 1 / 3 - epsilon])
    np.testing.assert_allclose(tabular.win_rates(preference, solution), 0.5, atol=1e-6)
    np.testing.assert_allclose(preference[1, 0], 2 / 3 - epsilon / 2, rtol=1e-6)


def test_transitive_voters_make_a_cycle():
    preference = tabular.population_game([(0, 1, 2), (1, 2, 0), (2, 0, 1)])
    np.testing.assert_allclose(
        [preference[0, 1], preference[1, 2], preference[2, 0]], 2 / 3, rtol=1e-6
    )


def test_population_weights_and_errors():
    preference = tabular.population_game([(0, 1), (1, 0)], (3.0, 1.0))
    np.testing.assert_allclose(preference[0, 1], 0.75)
    with pytest.raises(ValueError, match="permutation"):
        tabular.population_game([(0, 0)])
    with pytest.raises(ValueError, match="weights"):
        tabular.population_game([(0, 1)], (1.0, 2.0))


def test_a_constrained_reward_optimum_can_lose_to_the_nash_policy():
    # Bradley-Terry with odds 1, 9, 2 under the constraint pi_1 = 2 pi_2: the reward maximiser
    # (2/3, 1/3, 0) loses to (0, 0, 1).
    preference = tabular.bradley_terry_game(jnp.log(jnp.array([1.0, 9.0, 2.0])))
    rate = tabular.policy_win_rate(
        preference, jnp.array([0.0, 0.0, 1.0]), jnp.array([2 / 3, 1 / 3, 0.0])
    )
    np.testing.assert_allclose(rate, 50 / 99, rtol=1e-6)


def test_cyclic_game_by_hand_and_its_ends():
    quality, classes = jnp.array([0.5, 0.0, -0.5, 1.0]), jnp.array([0, 1, 2, 1])
    preference = tabular.cyclic_game(quality, classes, a=1.0, b=2.0)
    by_hand = {(0, 1): 2.5, (1, 2): 2.5, (2, 0): 1.0, (0, 3): 1.5, (3, 1): 1.0}
    for (i, j), logit in by_hand.items():
        np.testing.assert_allclose(preference[i, j], 1 / (1 + np.exp(-logit)), rtol=1e-6)
    np.testing.assert_allclose(
        tabular.cyclic_game(quality, classes, a=3.0, b=0.0),
        tabular.bradley_terry_game(3.0 * quality),
        rtol=1e-6,
    )
    cycle = tabular.cyclic_game(jnp.zeros(3), jnp.arange(3), b=200.0)
    np.testing.assert_allclose(cycle, tabular.rps_game(), atol=1e-6)


@pytest.mark.parametrize("policy", [(0.7, 0.2, 0.1), (0.1, 0.1, 0.8)])
def test_fitted_rewards_are_those_of_a_bradley_terry_game_whoever_drew_the_pairs(policy):
    rewards, policy = jnp.array([0.0, 1.0, -2.0]), jnp.array(policy)
    fitted = run(tabular.bradley_terry_fit, tabular.bradley_terry_game(rewards), policy)
    np.testing.assert_allclose(fitted, rewards - policy @ rewards, atol=1e-4)


def test_fitted_rewards_explain_the_win_rates_and_depend_on_who_drew_the_pairs():
    preference = ALL["cyclic"]
    even, skewed = jnp.full(4, 0.25), jnp.array([0.7, 0.1, 0.1, 0.1])
    fitted = [run(tabular.bradley_terry_fit, preference, p) for p in (even, skewed)]
    for rewards, policy in zip(fitted, (even, skewed)):
        np.testing.assert_allclose(
            tabular.win_rates(tabular.bradley_terry_game(rewards), policy),
            tabular.win_rates(preference, policy),
            rtol=1e-5,
        )

    def likelihood(r):
        return jnp.sum(
            jnp.outer(skewed, skewed) * preference * jnp.log(tabular.bradley_terry_game(r))
        )

    np.testing.assert_allclose(grad(likelihood)(fitted[1]), 0.0, atol=1e-6)
    assert np.abs((fitted[0] - fitted[0][0]) - (fitted[1] - fitted[1][0])).max() > 0.1


def test_win_rates_agree_with_enumeration():
    preference, policy = ALL["cycle3"], jnp.array([0.2, 0.3, 0.5])
    opponent = jnp.array([0.6, 0.1, 0.3])
    by_hand = [
        sum(float(preference[i, j]) * float(opponent[j]) for j in range(3)) for i in range(3)
    ]
    np.testing.assert_allclose(tabular.win_rates(preference, opponent), by_hand, rtol=1e-6)
    np.testing.assert_allclose(
        tabular.policy_win_rate(preference, policy, opponent), np.dot(policy, by_hand), rtol=1e-6
    )
    np.testing.assert_allclose(tabular.policy_win_rate(preference, policy, policy), 0.5, rtol=1e-6)


def test_symmetrising_is_the_identity_on_preferences_and_batches():
    np.testing.assert_allclose(tabular.symmetrize_preference(ALL["dice"]), ALL["dice"], rtol=1e-6)
    batch = jax.jit(tabular.symmetrize_preference)(jnp.stack([RANDOM, RANDOM.T]))
    np.testing.assert_allclose(batch[0], tabular.symmetrize_preference(RANDOM), rtol=1e-6)
    np.testing.assert_allclose(batch[0] + batch[1], 1.0, rtol=1e-6)


@pytest.mark.parametrize(
    "bad, message",
    [
        (np.ones((2, 3)) / 2, "square"),
        (np.array([[0.5, 1.4], [-0.4, 0.5]]), r"\[0, 1\]"),
        (np.array([[0.5, np.nan], [0.5, 0.5]]), r"\[0, 1\]"),
        (np.array([[0.5, 0.7], [0.7, 0.5]]), r"P\[0, 1\] \+ P\[1, 0\] of preference is 1.4"),
    ],
)
def test_bad_matrices_are_named(bad, message):
    with pytest.raises(ValueError, match=message):
        tabular.check_preference(bad)


def test_a_place_that_is_preferred_decides_nothing():
    # sigmoid(gap + bias) for one order, sigmoid(-gap + bias) for the other.
    gap, bias = jnp.array([0.3, -0.2, 0.0, 2.0]), jnp.array([0.0, 1.0, -3.0, 5.0])[:, None]
    both = jax.nn.sigmoid(gap + bias), jax.nn.sigmoid(-gap + bias)
    labels = run(tabular.debiased_preference, *both)
    np.testing.assert_array_equal(labels, [[1.0, 0.0, 0.5, 1.0]] * 4)
    np.testing.assert_array_equal(run(tabular.debiased_preference, *both[::-1]), 1.0 - labels)
    nan = jnp.array([np.nan, 0.3])
    np.testing.assert_array_equal(run(tabular.debiased_preference, nan, nan[::-1]), 0.5)
    slope = grad(lambda x: tabular.debiased_preference(x, both[1]).sum())(both[0])
    np.testing.assert_array_equal(slope, 0.0)
    with pytest.raises(ValueError, match="swapped_preference has shape"):
        tabular.debiased_preference(gap, bias)
