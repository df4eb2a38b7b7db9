"""Preference pairs made of other preference pairs: flipped, and relabelled for every score.

Pure functions of arrays, or of trees of arrays whose leading axis are the pairs, that run inside
of a compiled step too. This module alone of the package needs jax, and loads on first use.
"""

from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from polgrad import _checks
from polgrad._dtypes import accumulate
from polgrad._scalars import in_range

__all__ = [
    "GoalPairs",
    "encode_goal",
    "goal_conditioned_preference",
    "goal_reward",
    "goal_token",
    "reward_augment",
]

Tree = TypeVar("Tree")


class GoalPairs(NamedTuple):
    """Pairs for a policy that is told which score to aim at.

    Attributes:
      prompt: whatever came with the pairs, twice.
      goal: the score to aim at: the chosen answer's own.
      chosen: the answer of that score.
      rejected: the other one.
      weights: 1, or 0 for a pair to leave out.
    """

    prompt: Tree
    goal: Float[Array, "2*N"]
    chosen: Tree
    rejected: Tree
    weights: Float[Array, "2*N"]


def reward_augment(
    prompt: Tree,
    chosen: Tree,
    rejected: Tree,
    chosen_rewards: Float[Array, "N"],
    rejected_rewards: Float[Array, "N"],
    *,
    drop_ties: bool = True,
    swap: bool = True,
) -> GoalPairs:
    """Relabels every scored pair twice, once for each of its scores (reward-augmented DPO).

        (goal = chosen reward:   chosen over rejected)
        (goal = rejected reward: rejected over chosen)

    Each answer is the chosen one at its own score, so good rejected answers are not unlearned,
    and the top score can be asked for. Any pair loss applies unchanged, with a policy AND a
    reference that see the goal with the prompt (`encode_goal`, `goal_token`). Compare with DPO
    at equal gradient steps: there are twice as many pairs.

    Args:
      prompt: a tree of arrays with N rows.
      chosen: the preferred answers, a tree of arrays with N rows.
      rejected: the other answers, a tree like `chosen`.
      chosen_rewards: their scores on a known scale.
      rejected_rewards: the scores of the others.
      drop_ties: whether pairs of equal scores, whose two copies contradict each other, get
        weight 0.
      swap: whether the answers change places in the second half; False is an ablation.

    Returns:
      `GoalPairs` of 2N rows: the N pairs at the chosen rewards, then the N at the rejected ones.
      Pairs with a score that is not finite have weight 0 and goal 0.

    Raises:
      ValueError: rewards that are not [N] both.

    References:
      Zhang et al., Reward-Augmented Data Enhances Direct Preference Alignment of LLMs, 2024
      (arXiv:2410.08067).
    """
    _checks.rank("chosen_rewards", chosen_rewards, 1, "[N], one a pair")
    _checks.same_shape("[N]", chosen_rewards=chosen_rewards, rejected_rewards=rejected_rewards)
    high, low = accumulate(chosen_rewards), accumulate(rejected_rewards)
    usable = jnp.isfinite(high) & jnp.isfinite(low)
    kept = usable & (high != low) if drop_ties else usable
    goal = jnp.where(jnp.tile(usable, 2), jnp.concatenate([high, low]), 0.0)
    first, second = (rejected, chosen) if swap else (chosen, rejected)
    return GoalPairs(
        prompt=_stack(prompt, prompt),
        goal=goal,
        chosen=_stack(chosen, first),
        rejected=_stack(rejected, second),
        weights=jnp.tile(kept.astype(goal.dtype), 2),
    )


def goal_reward(rewards: Float[Array, "*B"], goal: Float[Array, "*B"]) -> Float[Array, "*B"]:
    """How well an answer meets a goal: -(goal - reward)^2.

    Args:
      rewards: scores of the answers, any shape.
      goal: scores asked for, broadcastable.

    Returns:
      Rewards <= 0, 0 at the goal.

    References:
      Zhang et al., Reward-Augmented Data, 2024 (arXiv:2410.08067).
    """
    return -jnp.square(accumulate(goal) - accumulate(rewards))


def goal_conditioned_preference(
    first_rewards: Float[Array, "*B"],
    second_rewards: Float[Array, "*B"],
    goal: Float[Array, "*B"],
) -> Float[Array, "*B"]:
    """Which of two answers comes closer to the goal.

    Args:
      first_rewards: scores of the first answers, any shape.
      second_rewards: scores of the second answers, same shape.
      goal: scores asked for, broadcastable. Any goal will do, not only the answers' own scores.

    Returns:
      1 for the first, -1 for the second, 0 for a tie or a score that is not a number.

    Raises:
      ValueError: rewards of different shapes.

    References:
      Zhang et al., Reward-Augmented Data, 2024 (arXiv:2410.08067).
    """
    _checks.same_shape("...", first_rewards=first_rewards, second_rewards=second_rewards)
    goal = accumulate(goal)
    first, second = (jnp.abs(goal - accumulate(x)) for x in (first_rewards, second_rewards))
    return (first < second).astype(first.dtype) - (first > second)


def encode_goal(
    goal: Float[Array, "*B"], centers: Float[Array, "M"], *, width: float
) -> Float[Array, "*B M"]:
    """Normalised radial basis functions of a score: features that neighbouring scores share.

        feature_m ~ exp(-(goal - center_m)^2 / (2 width^2)),   summing to 1

    They must multiply the features of the answer, as the sign of what helps changes with the
    goal; a linear code of the goal extrapolates too far from pairs of a small gap.

    Args:
      goal: scores asked for, any shape; cut to the range of the centers.
      centers: scores spread over the scale.
      width: in units of the score, > 0; about the distance of the centers.

    Returns:
      Features in [0, 1], [..., M]. A goal that is not a number is the lowest center.

    Raises:
      ValueError: centers that are not [M] with M >= 1; a width that is not positive.

    References:
      Zhang et al., Reward-Augmented Data, 2024 (arXiv:2410.08067), whose goals are words.
    """
    in_range("width", width, low=0.0, above=True)
    _checks.rank("centers", centers, 1, "[M]")
    if not jnp.size(centers):
        raise ValueError("centers has shape [0], expected at least one")
    centers, goal = accumulate(centers), accumulate(goal)
    low, high = jnp.min(centers), jnp.max(centers)
    goal = jnp.where(jnp.isnan(goal), low, jnp.clip(goal, low, high))
    distance = (goal[..., None] - centers) / width
    return jax.nn.softmax(-0.5 * jnp.square(distance), axis=-1)


def goal_token(
    goal: Float[Array, "*B"], *, low: int, high: int, offset: int = 0
) -> Int[Array, "*B"]:
    """The token that stands for a score: the nearest whole number of a scale.

    Args:
      goal: scores asked for, any shape; cut to the scale.
      low: the scale's lowest score.
      high: its highest score.
      offset: id of the token for `low`.

    Returns:
      Token ids in offset..offset + high - low, same shape; halves go to the even score, a goal
      that is not a number to `low`.

    Raises:
      ValueError: a scale without a score.
    """
    in_range("high", high, low=low, low_name="low")
    score = jnp.where(jnp.isnan(goal), low, jnp.clip(accumulate(goal), low, high))
    return jnp.round(score).astype(jnp.int32) - low + offset


def _stack(first, second):
    """Rows of the one tree, then those of the other."""
    return jax.tree.map(lambda a, b: jnp.concatenate([a, b]), first, second)
