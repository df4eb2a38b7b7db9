"""Nash-MD policy gradient: learning from pairwise preferences instead of rewards."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from polgrad import _checks
from polgrad._dtypes import accumulate
from polgrad._scalars import in_range
from polgrad.ratios import finite

__all__ = ["nash_md"]


def nash_md(
    logp: Float[Array, "B"],
    preference: Float[Array, "B"],
    reference_logratio: Float[Array, "B"],
    *,
    tau: float,
) -> Float[Array, "B"]:
    """Nash-MD-PG: loss for responses judged against those of another policy.

    loss = -sg[preference - 1/2 - tau reference_logratio] logp. The expected gradient is that of
    -(P(policy beats opponent) - tau KL(policy || reference)) with the opponent held fixed; the
    1/2 is a control variate only. The opponent makes the method: samples of
    `distributions.geometric_mixture` of policy and reference for Nash-MD, of the policy itself for
    self-play, of an averaged policy for Nash-EMA.

    Args:
      logp: log-probabilities of whole responses under the current policy, sums over tokens.
      preference: P(response beats the opponent's response), in [0, 1]; or 0 / 1 choices.
      reference_logratio: log(policy / reference) of the response, sums over tokens, in nats; an
        infinite one counts 20 nats.
      tau: strength of the KL to the reference, >= 0 (0.008 in the paper).

    Returns:
      Losses, [B], to be averaged over responses. An empty response (logp = 0) contributes 0,
      and so does logp = -inf, without gradient.

    Raises:
      ValueError: if shapes differ or `tau` is negative.

    References:
      Munos et al., Nash Learning from Human Feedback, 2023 (arXiv:2312.00886).
    """
    in_range("tau", tau, low=0.0)
    _checks.rank("logp", logp, 1, "[B], one value a response (masking.sequence_sum)")
    _checks.same_shape(
        "[B]", logp=logp, preference=preference, reference_logratio=reference_logratio
    )
    logp = accumulate(logp)
    # An answer that the reference excludes pays 20 nats, not infinity.
    advantage = accumulate(preference) - 0.5 - tau * finite(reference_logratio)
    return -jax.lax.stop_gradient(advantage) * jnp.where(jnp.isneginf(logp), 0.0, logp)
