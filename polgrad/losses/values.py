"""Losses of a value function (a critic): one number a step."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from polgrad import _checks
from polgrad._dtypes import accumulate
from polgrad._scalars import in_range


def value_loss(
    values: Float[Array, "..."],
    targets: Float[Array, "..."],
    *,
    old_values: Float[Array, "..."] | None = None,
    clip: float | None = None,
) -> Float[Array, "..."]:
    """Half the squared error to given targets, optionally with PPO's value clip.

        loss = (V - target)^2 / 2
        with clip = c:  max of that and (clip(V, V_old - c, V_old + c) - target)^2 / 2

    The clipped error only wins where V has moved by more than c and away from the target's side;
    there the gradient is 0.

    Args:
      values: current values, any shape.
      targets: returns, TD(lambda) or GAE targets (advantage + value before whitening), same
        shape; stopped.
      old_values: values at collection, same shape; stopped; given exactly with `clip`.
      clip: largest trusted change, in units of the return, positive; None for no clip.

    Returns:
      Losses, same shape, float32 or wider; 0 where the target is NaN or infinite.

    Raises:
      ValueError: shapes that differ; one of old_values and clip without the other; clip not
        positive.

    References:
      Schulman et al., Proximal policy optimization algorithms, 2017 (arXiv:1707.06347).
      Engstrom et al., Implementation matters in deep RL, 2020 (arXiv:2005.12729): the clip.
    """
    _checks.same_shape("one target a value", values=values, targets=targets)
    if (old_values is None) != (clip is None):
        missing = "old_values" if old_values is None else "clip"
        raise ValueError(f"{missing} is None, expected both old_values and clip or neither")
    values = accumulate(values)
    targets = accumulate(jax.lax.stop_gradient(targets))
    known = jnp.isfinite(targets)
    targets = jnp.where(known, targets, 0.0)
    plain = jnp.where(known, 0.5 * jnp.square(values - targets), 0.0)
    if clip is None:
        return plain
    in_range("clip", clip, low=0.0, above=True)
    _checks.same_shape("one old value a value", values=values, old_values=old_values)
    old = accumulate(jax.lax.stop_gradient(old_values))
    held = jnp.clip(jax.lax.stop_gradient(values), old - clip, old + clip)
    bound = 0.5 * jnp.square(held - targets)
    # Inside the range both are equal: `where` keeps the whole gradient, `maximum` half of it.
    return jnp.where(known & (bound > plain), bound, plain)


def td_loss(
    values: Float[Array, "..."],
    rewards: Float[Array, "..."],
    discounts: Float[Array, "..."],
    next_values: Float[Array, "..."],
) -> Float[Array, "..."]:
    """Half the squared one-step temporal difference, with a stopped target (semi-gradient).

        loss = (V(s_t) - (r_t + discount_t V(s_{t+1})))^2 / 2

    Args:
      values: value of each state, any shape.
      rewards: reward of each step, same shape.
      discounts: gamma (1 - terminated), in [0, 1], same shape.
      next_values: value of the true next state (at a time limit, of the state before the reset),
        same shape; stopped.

    Returns:
      Losses, same shape, float32 or wider; 0 where the reward is NaN.

    Raises:
      ValueError: shapes that differ.

    References:
      Sutton, Learning to predict by the methods of temporal differences, 1988.
    """
    _checks.same_shape(
        "one a state", values=values, rewards=rewards, discounts=discounts, next_values=next_values
    )
    discounts, future = accumulate(discounts), accumulate(next_values)
    # A terminal state's value may be anything, NaN included.
    future = jnp.where(discounts != 0, future, 0.0)
    return value_loss(values, accumulate(rewards) + discounts * future)


def expectile_loss(
    values: Float[Array, "..."], targets: Float[Array, "..."], *, expectile: float = 0.7
) -> Float[Array, "..."]:
    """Squared error that weighs targets above the value more: implicit Q-learning's critic.

        loss = |expectile - 1[target < V]| (target - V)^2

    0.5 is `value_loss`, whose minimum over actions a of a state is the mean of Q(s, a); towards 1
    the minimum tends to the largest Q among the actions that the data hold, without asking Q
    about any other. Implicit Q-learning is this with targets Q(s, a) of a target network,
    `td_loss` of Q towards r + discount V(s'), and `reward_weighted` of the data's actions with
    advantages Q - V; P-IQL the same with a reward learned by `bradley_terry` from segments.

    Args:
      values: V(s), any shape.
      targets: Q(s, a) of the action in the data, same shape; stopped.
      expectile: in (0, 1); 0.7 in both papers' locomotion tasks.

    Returns:
      Losses, same shape, float32 or wider; 0 where the target is NaN or infinite.

    Raises:
      ValueError: shapes that differ; expectile not inside (0, 1).

    References:
      Newey and Powell, Asymmetric least squares estimation and testing, 1987. Kostrikov, Nair and
      Levine, Offline reinforcement learning with implicit Q-learning, 2021 (arXiv:2110.06169).
      Hejna et al., Contrastive Preference Learning, 2023 (arXiv:2310.13639): P-IQL, its baseline.
    """
    in_range("expectile", expectile, low=0.0, high=1.0, above=True, below=True)
    below = jnp.asarray(targets) < jnp.asarray(values)
    return 2.0 * jnp.where(below, 1.0 - expectile, expectile) * value_loss(values, targets)


def implicit_value(logits: Float[Array, "... V"], *, beta: float = 1.0) -> Float[Array, "..."]:
    """The value of a state that a softmax policy implies: its logits read as Q / beta.

    V = beta log sum_a exp(logits_a). With Q = beta logits the advantage Q - V is beta log policy,
    so the advantages of an answer's tokens sum to beta log policy(answer): what
    `implicit_reward` measures against a reference. Likelihood does not determine V (a softmax
    ignores a shift of its logits); only the network's shape does: a diagnostic.

    Args:
      logits: unnormalised log-probabilities; minus infinity excludes an action.
      beta: temperature, > 0.

    Returns:
      Values, without the last axis; 0 where every action is excluded.

    Raises:
      ValueError: if `beta` is not positive.

    References:
      Wang et al., Implicit Reward as the Bridge, 2025 (arXiv:2507.00018).
    """
    in_range("beta", beta, low=0.0, above=True)
    logits = accumulate(logits)
    empty = jnp.all(jnp.isneginf(logits), axis=-1, keepdims=True)
    total = jax.nn.logsumexp(jnp.where(empty, 0.0, logits), axis=-1)
    return beta * jnp.where(empty[..., 0], 0.0, total)
