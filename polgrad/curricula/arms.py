"""Curricula as settings: which arms of a task, such as levels of difficulty, a rollout draws from.

    small.run(key, algorithms.GRPO(), curriculum=curricula.SEC(alpha=0.5), ...)

Each class builds a `contract.Curriculum` from the functions of `bandit` and `windows`.
"""

import dataclasses
import math

from jaxtyping import Array, Float

from polgrad._scalars import in_range
from polgrad.contract import Curriculum
from polgrad.curricula import bandit, windows

__all__ = [
    "DUMP",
    "SEC",
    "Boltzmann",
    "EasyToHard",
    "EpsilonGreedy",
    "Normalized",
    "Reverse",
    "Uniform",
]


# --- parts: how a bandit chooses by its values -------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Boltzmann:
    """Probabilities proportional to exp(value / tau), `bandit.boltzmann`.

    Attributes:
      tau: temperature in units of the values, positive.
    """

    tau: float = 0.2

    def __post_init__(self):
        in_range("tau", self.tau, low=0.0, above=True)

    def probabilities(self, values: Float[Array, "C"]) -> Float[Array, "C"]:
        """Of the arms."""
        return bandit.boltzmann(values, tau=self.tau)


@dataclasses.dataclass(frozen=True)
class Normalized:
    """Probabilities proportional to the values, `bandit.normalized`.

    Attributes:
      floor: least weight of an arm, positive.
    """

    floor: float = 0.01

    def __post_init__(self):
        in_range("floor", self.floor, low=0.0, above=True)

    def probabilities(self, values: Float[Array, "C"]) -> Float[Array, "C"]:
        """Of the arms."""
        return bandit.normalized(values, floor=self.floor)


@dataclasses.dataclass(frozen=True)
class EpsilonGreedy:
    """Mostly the arm with the highest value, `bandit.epsilon_greedy`.

    Attributes:
      epsilon: share of random choices, in [0, 1].
    """

    epsilon: float = 0.1

    def __post_init__(self):
        in_range("epsilon", self.epsilon, low=0.0, high=1.0)

    def probabilities(self, values: Float[Array, "C"]) -> Float[Array, "C"]:
        """Of the arms."""
        return bandit.epsilon_greedy(values, epsilon=self.epsilon)


# --- curricula that learn from the advantages ------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class SEC:
    """A self-evolving curriculum (Chen et al. 2025, arXiv:2505.14970).

    The reward of an arm in a rollout is the mean of |advantage| over the arm's samples. The value of
    an arm is an exponential average of its rewards. Questions are drawn from the arms by their values.

    Attributes:
      choice: probabilities of the arms from their values.
      alpha: step of the values, in [0, 1]; 1 keeps the last reward alone.
      decay_unseen: whether an arm without samples in a rollout has the reward 0; if not, its value stays.
    """

    choice: Boltzmann | Normalized | EpsilonGreedy = Boltzmann()
    alpha: float = 0.5
    decay_unseen: bool = False

    def __post_init__(self):
        in_range("alpha", self.alpha, low=0.0, high=1.0)

    def build(self) -> Curriculum:
        """The functions; the state is a `bandit.BanditState`."""

        def choose(state, step, noise):
            return bandit.sample_categories(self.choice.probabilities(state.values), noise)

        def update(state, arm, signal, valid):
            paid = bandit.category_mean(signal, arm, categories=state.values.shape[0], valid=valid)
            return bandit.update(
                state, paid.mean, paid.count, alpha=self.alpha, decay_unseen=self.decay_unseen
            )

        return Curriculum(bandit.init, choose, update)


@dataclasses.dataclass(frozen=True)
class DUMP:
    """Recent payments, and a bonus for rare visits (Wang et al. 2025, arXiv:2504.09710).

    The score of an arm is the mean of its last payments, |advantage| of the samples, plus the bonus
    of an upper confidence bound. Each sample is one visit.

    Attributes:
      tau: temperature of the choice in units of the payments, positive.
      exploration: size of the bonus in units of the payments, non-negative.
      window: payments of an arm that count, at least 1; a whole number, never traced.
    """

    tau: float = 0.1
    exploration: float = math.sqrt(2.0)
    window: int = 300

    def __post_init__(self):
        in_range("tau", self.tau, low=0.0, above=True)
        in_range("exploration", self.exploration, low=0.0)
        in_range("window", self.window, low=1)

    def build(self) -> Curriculum:
        """The functions; the state is `(windows.Windows, probabilities of the next rollout)`."""

        def init(arms):
            return windows.init(arms, window=self.window), bandit.uniform(arms)

        def choose(state, step, noise):
            return bandit.sample_categories(state[1], noise)

        def update(state, arm, signal, valid):
            return windows.update(
                state[0], signal, arm, tau=self.tau, exploration=self.exploration, valid=valid
            )

        return Curriculum(init, choose, update)


# --- orders that are fixed before the run -----------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Uniform:
    """Every arm with the same probability, in every rollout."""

    def build(self) -> Curriculum:
        """The functions; they serve algorithms without advantages too."""
        return _fixed(lambda step, arms: bandit.uniform(arms))


@dataclasses.dataclass(frozen=True)
class EasyToHard:
    """One arm after the other, each for an equal share of the rollouts, `bandit.easy_to_hard`.

    Attributes:
      rollouts: length of the order, at least 1; the last arm follows from there on.
    """

    rollouts: int

    def __post_init__(self):
        in_range("rollouts", self.rollouts, low=1)

    def build(self) -> Curriculum:
        """The functions; they serve algorithms without advantages too."""
        return _fixed(
            lambda step, arms: bandit.easy_to_hard(step, steps=self.rollouts, categories=arms)
        )


@dataclasses.dataclass(frozen=True)
class Reverse:
    """The order of `EasyToHard` from the last arm down, `bandit.reverse`.

    Attributes:
      rollouts: length of the order, at least 1; the first arm follows from there on.
    """

    rollouts: int

    def __post_init__(self):
        in_range("rollouts", self.rollouts, low=1)

    def build(self) -> Curriculum:
        """The functions; they serve algorithms without advantages too."""
        return _fixed(lambda step, arms: bandit.reverse(step, steps=self.rollouts, categories=arms))


def _fixed(probabilities) -> Curriculum:
    """A curriculum of `(step, arms) -> probabilities`; its state tells how many arms there are."""

    def choose(state, step, noise):
        return bandit.sample_categories(probabilities(step, state.shape[0]), noise)

    return Curriculum(bandit.uniform, choose)
