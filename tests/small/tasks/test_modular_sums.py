"""Modular sums: rewards by hand and by enumeration, features that tell what a prompt wants."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polgrad.small import ModularSums

# Prompts 0 and 1 are easy; 2 and 3 want to begin with (3, 1) and (0, 0).
WORLD = ModularSums(
    target=jnp.array([2, 0, 2, 1]),
    prefix=jnp.array([[1, 1], [2, 2], [3, 1], [0, 0]]),
    vocabulary=4,
)


def test_rewards_by_hand():
    tokens = jnp.array([[[1, 1, 0], [3, 3, 0], [1, 1, 1]], [[3, 1, 2], [2, 0, 0], [3, 1, 3]]])
    # 2 mod 4; 6 mod 4 = 2; 3. Then, hard: right; right sum, wrong begin; right begin, wrong sum.
    np.testing.assert_array_equal(WORLD.reward(jnp.array([0, 2]), tokens), [[1, 1, 0], [1, 0, 0]])


def test_chance_of_an_easy_and_of_a_hard_prompt():
    words = jnp.array(list(itertools.product(range(4), repeat=3)))
    rewards = WORLD.reward(WORLD.prompts, jnp.broadcast_to(words, (4, *words.shape)))
    np.testing.assert_allclose(rewards.mean(1), [1 / 4, 1 / 4, 1 / 64, 1 / 64])


def test_features_are_what_the_reward_depends_on():
    features = np.asarray(WORLD.features(WORLD.prompts))
    assert features.shape == (4, WORLD.width)
    np.testing.assert_array_equal(features[0], [0, 0, 1, 0, 0] + [0] * 8)
    np.testing.assert_array_equal(features[2], [0, 0, 1, 0, 1] + [0, 0, 0, 1] + [0, 1, 0, 0])
    np.testing.assert_array_equal(features[3], [0, 1, 0, 0, 1] + [1, 0, 0, 0] + [1, 0, 0, 0])


def test_prompts_are_drawn_without_repetition():
    drawn = np.asarray(WORLD.draw(jax.random.key(0), 3))
    assert len(set(drawn)) == 3 and set(drawn) <= set(range(4))
    assert set(np.asarray(WORLD.draw(jax.random.key(1), 4))) == set(range(4))


def test_halves():
    np.testing.assert_array_equal(WORLD.hard(WORLD.prompts), [False, False, True, True])
    assert [float(x) for x in WORLD.halves(jnp.array([1.0, 3.0, 5.0, 9.0]))] == [2.0, 7.0]


@pytest.mark.parametrize("fixed", [1, 2])
def test_worlds_of_many_seeds_are_one_program(fixed):
    def chance(key):
        world = ModularSums.create(key, prompts=8, fixed=fixed, vocabulary=3)
        words = jnp.array(list(itertools.product(range(3), repeat=4)))
        return world.halves(
            world.reward(world.prompts, jnp.broadcast_to(words, (8, *words.shape))).mean(1)
        )

    easy, hard = jax.jit(jax.vmap(chance))(jax.vmap(jax.random.key)(jnp.arange(5)))
    np.testing.assert_allclose(easy, 1 / 3, rtol=1e-6)
    np.testing.assert_allclose(hard, 3.0 ** -(fixed + 1), rtol=1e-6)
