"""Curricula in small runs: which arms are drawn, and which signal each arm gets."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from polgrad import algorithms, curricula, small
from polgrad.contract import Curriculum, CurriculumSettings

POLICY = small.FeaturePolicy(
    small.AutoregressiveMLP(1, 2, length=2, width=4), lambda arm: jnp.zeros((len(arm), 1))
)
SCHEDULE = small.Schedule(rollouts=3, questions=60, group=2, points=3)
REWARDS = jnp.array([0.0, 0.5, 2.0])


class Levels:
    """A question is its arm, and every answer to it is worth a fixed reward."""

    arms, size = 3, 3

    def __init__(self, rewards=REWARDS):
        self.rewards = rewards

    def draw(self, key, count, arm=None):
        return jnp.zeros(count, jnp.int32) if arm is None else arm

    def ids(self, questions):
        return questions

    def reward(self, questions, completions, mask):
        return jnp.broadcast_to(self.rewards[questions][:, None], completions.shape[:2])

    def answers(self, questions, columns):
        shape = (questions.shape[0], len(columns), 2)
        return jnp.ones(shape, jnp.int32), jnp.ones(shape, bool)


@dataclasses.dataclass(frozen=True)
class Always:
    """Chooses one arm, and counts the samples of each."""

    arm: int

    def build(self):
        return Curriculum(
            jnp.zeros,
            lambda state, step, noise: jnp.full(noise.shape, self.arm),
            lambda state, arm, signal, valid: state.at[arm].add(1.0),
        )


# Without a baseline the advantage of a sample is its reward.
PLAIN = algorithms.Reinforce(baseline="none")


def run(curriculum, key=None, *, settings=PLAIN, task=None):
    """The state of the curriculum at the end, and the curves."""
    parts = small.program(
        settings,
        policy=POLICY,
        task=task or Levels(),
        schedule=SCHEDULE,
        optimizer=optax.sgd(0.1),
        curriculum=curriculum,
    )
    key = jax.random.key(0) if key is None else key
    points = jnp.arange(parts.points + 1)
    carry, curves = jax.lax.scan(lambda c, p: parts.stretch(c, key, p), parts.init(key), points)
    return carry[0].curriculum, curves


def test_a_curriculum_that_chooses_one_arm_draws_only_it():
    assert isinstance(Always(2), CurriculumSettings)
    counts, curves = jax.jit(lambda: run(Always(2)))()
    np.testing.assert_array_equal(counts, [0, 0, 3 * 60 * 2])
    np.testing.assert_array_equal(curves["arm_mean"][1:], 2.0)
    np.testing.assert_array_equal(curves["reward_mean"][1:], REWARDS[2])


def test_the_values_of_the_bandit_are_those_computed_by_hand():
    """Each rollout draws from all arms, and arm a always pays its reward r: r (1 - 0.75^3)."""
    curriculum = curricula.SEC(curricula.Boltzmann(tau=10.0), alpha=0.25)
    rewards = REWARDS.at[0].set(-1.0)
    state, _ = jax.jit(lambda: run(curriculum, task=Levels(rewards)))()
    np.testing.assert_allclose(state.values, np.array([1.0, 0.5, 2.0]) * (1 - 0.75**3), rtol=1e-6)
    assert state.counts.sum() == 3 * 60 * 2 and state.counts.min() > 60


def test_samples_without_a_reward_pay_nothing():
    curriculum = curricula.SEC(curricula.Boltzmann(tau=10.0))
    task = Levels(REWARDS.at[2].set(jnp.nan))
    state, _ = jax.jit(lambda: run(curriculum, task=task))()
    np.testing.assert_allclose(state.values, [0.0, 0.5 * (1 - 0.5**3), 0.0], rtol=1e-6)
    assert state.counts[2] == 0.0 and state.counts[:2].min() > 60


@pytest.mark.parametrize(
    ("curriculum", "means"),
    [(curricula.EasyToHard(3), [0, 1, 2]), (curricula.Reverse(3), [2, 1, 0])],
)
def test_fixed_orders_go_from_arm_to_arm(curriculum, means):
    _, curves = jax.jit(lambda: run(curriculum))()
    np.testing.assert_array_equal(curves["arm_mean"][1:], means)
    np.testing.assert_array_equal(curves["reward_mean"][1:], REWARDS[jnp.array(means)])


def test_each_choice_goes_to_the_arm_that_pays():
    """After the first payments: shares of 2, 1 and almost 0, or the best arm alone."""
    rewards = jnp.array([0.0, 1.0, 2.0])
    for choice, mean in ((curricula.Normalized(1e-6), 5 / 3), (curricula.EpsilonGreedy(0.0), 2.0)):
        _, curves = jax.jit(lambda c=choice: run(curricula.SEC(c), task=Levels(rewards)))()
        assert abs(curves["arm_mean"][1] - 1.0) < 0.3
        np.testing.assert_allclose(curves["arm_mean"][2:], mean, atol=0.2)


def test_dump_keeps_its_last_payments_and_adds_a_bonus():
    curriculum = curricula.DUMP(tau=1e-3, exploration=0.0, window=4)
    (state, probabilities), curves = jax.jit(lambda: run(curriculum))()
    np.testing.assert_allclose(state.values.mean(1), REWARDS)
    # Without a bonus the best arm is all that is drawn.
    np.testing.assert_array_equal(curves["arm_mean"][2:], 2.0)
    np.testing.assert_array_equal(probabilities, [0.0, 0.0, 1.0])
    assert state.counts.sum() == 3 * 60 * 2
    # With a large one the arm that was visited least comes next: 0 and 1 after many visits of 2.
    _, curves = jax.jit(lambda: run(dataclasses.replace(curriculum, exploration=100.0)))()
    assert len(set(np.asarray(curves["arm_mean"][1:]))) == 3


def test_seeds_and_numbers_are_vmapped():
    def final(tau, key):
        return run(curricula.SEC(curricula.Boltzmann(tau)), key)[1]["arm_mean"]

    keys = jax.random.split(jax.random.key(3), 2)
    taus = jnp.array([0.05, 10.0])
    found = jax.jit(jax.vmap(jax.vmap(final, (None, 0)), (0, None)))(taus, keys)
    alone = jax.jit(functools.partial(final, 0.05))(keys[1])
    np.testing.assert_allclose(found[0, 1], alone, rtol=1e-6)
    assert (found[0, :, 3] > 1.9).all() and (found[1, :, 3] < 1.3).all()
    assert found[0, 0, 1] != found[0, 1, 1]


def test_algorithms_without_advantages_take_a_curriculum_that_reads_none():
    settings = algorithms.Supervised()
    _, curves = jax.jit(lambda: run(curricula.EasyToHard(3), settings=settings))()
    np.testing.assert_array_equal(curves["arm_mean"][1:], [0, 1, 2])


class Flat(Levels):
    arms = property()


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: run(curricula.SEC(), settings=algorithms.CoPG()), "CoPG has none; expected"),
        (lambda: run(curricula.SEC(), settings=algorithms.Supervised()), "Supervised has none"),
        (
            lambda: run(curricula.Uniform(), task=Flat()),
            r"curriculum is Uniform\(\), expected None: task Flat has no",
        ),
        (lambda: curricula.SEC(alpha=1.5), "alpha is 1.5, expected"),
        (lambda: curricula.Boltzmann(tau=0.0), "tau is 0.0, expected"),
        (lambda: curricula.DUMP(window=0), "window is 0, expected"),
        (lambda: curricula.EasyToHard(0), "rollouts is 0, expected"),
    ],
)
def test_what_cannot_run_is_refused(build, words):
    with pytest.raises(ValueError, match=words):
        jax.eval_shape(build)
