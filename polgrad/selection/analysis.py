"""What a filter of samples amounts to: the policy that it makes, and which filter suits a reward model."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from polgrad import _checks
from polgrad._dtypes import accumulate
from polgrad._scalars import in_range
from polgrad.advantages import batch_baseline


def filtered_policy(
    probabilities: Float[Array, "A"], rewards: Float[Array, "A"], weights: Float[Array, "N"]
) -> Float[Array, "A"]:
    """The filtered policy of a bandit, exactly.

        mu(a) = sum_i w_i P(a is the sample of rank i among N draws of pi)
              = pi(a) / M sum_i w_i [P(Bin(N, U) < i) - P(Bin(N, U + M) < i)]

    U is the policy's mass on better actions, M on those of the same reward (a included): rank i
    falls among them if fewer than i draws are better, and at least i are better or equal.

    Args:
      probabilities: pi, [A], summing to 1.
      rewards: of the actions, [A].
      weights: of the ranks, best first, [N] (`selection.rank_weights`), summing to 1.

    Returns:
      mu, [A], summing to 1; 0 where pi is.

    Raises:
      ValueError: if shapes do not match.

    References:
      Zhang et al., 2024 (arXiv:2409.06957).
    """
    _checks.rank("probabilities", probabilities, 1, "[A]")
    _checks.same_shape("[A]", probabilities=probabilities, rewards=rewards)
    _checks.rank("weights", weights, 1, "[N], one a rank")
    pi, weights = accumulate(probabilities), accumulate(weights)
    better = jnp.sum(jnp.where(rewards[None] > rewards[:, None], pi, 0.0), axis=-1)
    level = jnp.sum(jnp.where(rewards[None] == rewards[:, None], pi, 0.0), axis=-1)
    n = weights.shape[0]
    # P(Bin < i) summed over the ranks is the mean of what the ranks above the count weigh.
    tail = jnp.cumsum(weights[::-1])[::-1]
    draws = jnp.arange(n)
    choices = jnp.asarray([math.comb(n, int(j)) for j in range(n)], pi.dtype)

    def kept(p):
        p = jnp.clip(p, 0.0, 1.0)[:, None]
        return jnp.sum(choices * p**draws * (1.0 - p) ** (n - draws) * tail, axis=-1)

    return pi / jnp.where(level > 0, level, 1.0) * (kept(better) - kept(better + level))


def reward_calibration(
    rewards: Float[Array, "N"],
    scores: Float[Array, "N"],
    *,
    groups: int = 15,
    valid: Bool[Array, "N"] | None = None,
) -> Float[Array, ""]:
    """How well a straight line of the reward explains the true score: R^2 over groups of rewards.

        groups of equal size by reward;  1 - sum_g (s_g - a R_g - b)^2 / sum_g (s_g - mean s)^2

    with group means R_g, s_g and the least-squares line. Taken on the samples that a filter
    keeps, it says beforehand which filter suits a reward model.

    Args:
      rewards: of samples of a policy, [N].
      scores: what the samples are really worth, such as the share of tests passed, [N].
      groups: number of groups, at least 1. Samples of equal reward share a group; with fewer
        samples than groups each is its own.
      valid: samples that a filter keeps; None for all. Those that are not finite never count.

    Returns:
      A scalar, at most 1, stopped; 0 where the scores of the groups do not vary.

    Raises:
      ValueError: shapes that differ; groups below 1.

    References:
      Zhang et al., 2024 (arXiv:2409.06957), section 4.
    """
    _checks.rank("rewards", rewards, 1, "[N], one a sample")
    _checks.same_shape("[N]", rewards=rewards, scores=scores)
    in_range("groups", groups, low=1)
    rewards, scores = jax.lax.stop_gradient((accumulate(rewards), accumulate(scores)))
    present = jnp.isfinite(rewards) & jnp.isfinite(scores)
    if valid is not None:
        _checks.same_shape("[N]", rewards=rewards, valid=valid)
        present &= jnp.asarray(valid) != 0
    ordered = jnp.sort(jnp.where(present, rewards, jnp.inf))
    below, n = jnp.searchsorted(ordered, rewards), jnp.sum(present)
    group = jnp.where(present, below * groups // jnp.maximum(n, 1), groups)
    # `batch_baseline` centres equal numbers to exactly 0, whatever the rounding of their mean.
    x, s = (batch_baseline(v, valid=present) for v in (rewards, scores))
    sums = jnp.stack([x, s, present.astype(x.dtype)], axis=-1)
    total = jax.ops.segment_sum(sums, group, num_segments=groups)
    filled = total[:, 2] > 0
    x, s = total[:, :2].T / jnp.maximum(total[:, 2], 1.0)
    x, s = (batch_baseline(v, valid=filled) for v in (x, s))
    spread = jnp.sum(x * x) * jnp.sum(s * s)
    return jnp.square(jnp.sum(x * s)) / jnp.where(spread > 0, spread, 1.0)
