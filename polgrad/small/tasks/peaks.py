"""Bandits with one peak of reward: is it where the reference is, or where it hardly ever goes?

Tajwar et al. (2024, arXiv:2404.14367) tell apart what fresh samples, repeated use of samples and
a negative gradient are good for with these: tuning methods agree where the peak lies under the
reference and differ where it does not.
"""

import dataclasses
import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Num

__all__ = ["PeakBandit", "length_rewards"]


@dataclasses.dataclass(frozen=True)
class PeakBandit:
    """Actions in a row, rewarded by their distance from a peak, and a skewed reference.

    With `length` above 1 an answer is a word of tokens and its reward the mean over them.

    Attributes:
      bins: number of actions, or tokens.
      length: tokens of an answer; 1 for a bandit, 10 for the paper's token bandit.
      peak: the best action; 70 is far from the reference, 20 under it.
      width: of the peak, in actions.
      location: of the reference, before it is squashed.
      scale: of the reference, before it is squashed.
    """

    bins: int = 100
    length: int = 1
    peak: float = 70.0
    width: float = 10.0
    location: float = -0.7
    scale: float = 0.4

    @property
    def log_reference(self) -> Float[np.ndarray, "A"]:
        """Log-probabilities of the actions under tanh of a Cauchy variable, in equal bins.

        The tails of a Cauchy distribution are heavy: the outermost bins are likely.
        """
        edges = np.linspace(-1.0, 1.0, self.bins + 1)
        inner = (np.arctanh(edges[1:-1]) - self.location) / self.scale
        below = np.concatenate([[0.0], 0.5 + np.arctan(inner) / math.pi, [1.0]])
        return np.log(np.diff(below))

    @property
    def action_rewards(self) -> Float[np.ndarray, "A"]:
        """Reward of each action: exp(-((action - peak) / width)^2)."""
        return np.exp(-(((np.arange(self.bins) - self.peak) / self.width) ** 2))

    def reward(self, answers: Int[Array, "*B T"]) -> Float[Array, "*B"]:
        """Mean over the tokens of the rewards of the actions, in [0, 1]."""
        return jnp.mean(jnp.asarray(self.action_rewards)[answers], axis=-1)


def length_rewards(lengths: Num[Array, "..."], *, target: float = 0.0) -> Float[Array, "..."]:
    """Reward of a length of text: minus its distance from a target.

    With target 0 the shortest answer is best, which preference data of ordinary answers hardly
    show; with their mode as the target (203 tokens in the paper) all methods do about as well.

    Args:
      lengths: in tokens, any shape.
      target: the best length, >= 0.

    Returns:
      Rewards, same shape, <= 0.

    References:
      Tajwar et al., 2024 (arXiv:2404.14367), section 4.
    """
    return -jnp.abs(jnp.asarray(lengths, jnp.float32) - target)
