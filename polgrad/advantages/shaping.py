"""What happens to rewards before they become advantages: penalties of length and KL, group filters."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Num

from polgrad import _checks
from polgrad._dtypes import accumulate
from polgrad._scalars import in_range
from polgrad.ratios import finite

__all__ = [
    "dynamic_sampling_filter",
    "overlong_filter",
    "overlong_penalty",
    "regularized_rewards",
    "structured_reward",
]


def regularized_rewards(
    rewards: Float[Array, "..."], logratio: Float[Array, "..."], *, beta: float
) -> Float[Array, "..."]:
    """The reward less the price of its sample's distance from the reference.

        reward - beta log(policy / reference)

    Its expectation under the policy is the KL-regularised objective E[reward] - beta KL.

    Args:
      rewards: one a sample, any shape.
      logratio: log(policy / reference) of the same samples, sums over tokens, in nats.
      beta: strength of the KL, non-negative.

    Returns:
      Same shape, float32 or wider, without gradient. An infinite log ratio counts +-20 nats, an
      undefined one 0.

    Raises:
      ValueError: shapes that differ; beta below 0.

    References:
      Ziegler et al., Fine-Tuning Language Models from Human Preferences, 2019
        (arXiv:1909.08593), equation 2.
    """
    _checks.same_shape("one value a sample", rewards=rewards, logratio=logratio)
    in_range("beta", beta, low=0.0)
    return jax.lax.stop_gradient(accumulate(rewards) - beta * finite(logratio))


def overlong_penalty(
    lengths: Num[Array, "..."], *, max_length: float, buffer: float
) -> Float[Array, "..."]:
    """DAPO's soft punishment of overlong completions, to be added to the reward.

        0                                    n <= max_length - buffer
        ((max_length - buffer) - n) / buffer    up to n = max_length
        -1                                   beyond

    Args:
      lengths: completion lengths in tokens, any shape.
      max_length: longest wanted completion, in tokens, at least 1.
      buffer: tokens over which the penalty grows to 1, in 1..max_length.

    Returns:
      Penalties in [-1, 0], same shape, float32 or wider.

    Raises:
      ValueError: max_length below 1; buffer not within 1..max_length.

    References:
      Yu et al., DAPO, 2025 (arXiv:2503.14476), equation 13.
    """
    in_range("max_length", max_length, low=1.0)
    in_range("buffer", buffer, low=1.0, high=max_length, high_name="max_length")
    return jnp.clip((max_length - buffer - accumulate(lengths)) / buffer, -1.0, 0.0)


def overlong_filter(
    mask: Num[Array, "B T"] | Bool[Array, "B T"], stopped: Bool[Array, "B"]
) -> Bool[Array, "B T"]:
    """Overlong filtering: masks the completions that were cut off before their end token.

    Whether such a completion would have been right is not known; its reward says only that it
    was long. Mask before `masking.weights`, so that the divisor leaves it out too.

    Args:
      mask: 1 where a token counts, [B, T].
      stopped: whether a completion ends with its stop token (`Rollout.stopped`), [B].

    Returns:
      True for the tokens that count, [B, T]; False in the rows that did not stop.

    Raises:
      ValueError: shapes that do not match.

    References:
      Yu et al., DAPO, 2025 (arXiv:2503.14476), section 3.4.
    """
    _checks.rank("mask", mask, 2, "[B, T]")
    _checks.shape("stopped", stopped, (np.shape(mask)[0],), "[B]")
    return (jnp.asarray(mask) != 0) & (jnp.asarray(stopped)[:, None] != 0)


def structured_reward(
    well_formed: Bool[Array, "..."],
    parsed: Bool[Array, "..."],
    correct: Bool[Array, "..."],
) -> Float[Array, "..."]:
    """A rule-based reward with a part for the form and a part for the answer.

        form    1 if well-formed, else -1
        answer  2 if correct, -1.5 if wrong, -2 if there is none that can be parsed

    For puzzles whose completions hold their thoughts and their answer in tags.

    Args:
      well_formed: whether the completion has the required form, any shape.
      parsed: whether an answer could be read from it, same shape.
      correct: whether that answer is right, same shape; ignored where not parsed.

    Returns:
      The sum of both parts, same shape, float32, between -3 and 3.

    Raises:
      ValueError: shapes that differ.

    References:
      Wang et al., DUMP, 2025 (arXiv:2504.09710), section 4.1.
    """
    _checks.same_shape("...", well_formed=well_formed, parsed=parsed, correct=correct)
    well_formed, parsed, correct = (jnp.asarray(x) != 0 for x in (well_formed, parsed, correct))
    form = jnp.where(well_formed, 1.0, -1.0)
    return form + jnp.where(parsed, jnp.where(correct, 2.0, -1.5), -2.0)


def dynamic_sampling_filter(
    metric: Float[Array, "... G"], *, valid: Bool[Array, "... G"] | None = None
) -> Bool[Array, "..."]:
    """Tells which groups DAPO's dynamic sampling keeps: those whose metric is not all equal.

    A group whose samples are all right or all wrong has group-relative advantage 0 and only
    dilutes the batch.

    Args:
      metric: what must vary, usually accuracy or the reward, [..., G].
      valid: True where the metric exists, same shape; None for all. Entries that are not finite
        are invalid in any case.

    Returns:
      True for the groups to keep, [...]; False with fewer than two valid samples.

    Raises:
      ValueError: shapes that differ; rank 0 or 1.

    References:
      Yu et al., DAPO, 2025 (arXiv:2503.14476).
    """
    metric = accumulate(metric)
    _checks.groups("metric", metric)
    present = jnp.isfinite(metric)
    if valid is not None:
        _checks.same_shape("[..., G]", metric=metric, valid=valid)
        present &= jnp.asarray(valid) != 0
    largest = jnp.max(jnp.where(present, metric, -jnp.inf), axis=-1, initial=-jnp.inf)
    smallest = jnp.min(jnp.where(present, metric, jnp.inf), axis=-1, initial=jnp.inf)
    return largest > smallest
