"""Policy gradient of any f-divergence to a target distribution."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from polgrad import _checks
from polgrad._dtypes import accumulate
from polgrad.divergences import FDivergence
from polgrad.losses.inputs import f_dpg_pseudo_reward
from polgrad.ratios import importance_ratio

__all__ = ["f_dpg", "f_dpg_pseudo_reward"]


def f_dpg(
    logp: Float[Array, "B"],
    log_target: Float[Array, "B"],
    *,
    divergence: FDivergence,
    behavior_logp: Float[Array, "B"] | None = None,
    baseline: Float[Array, "..."] | float = 0.0,
    log_ratio_clip: float = 20.0,
) -> Float[Array, "B"]:
    """f-DPG: policy-gradient loss whose expected gradient is that of D_f(policy || target).

    loss = -sg[w (r - baseline)] logp, with the pseudo-reward r = -f'(policy / target) and the
    importance weight w = policy / behavior (1 when on-policy). Gradients flow through the last
    `logp` only; differentiating through r would give another, wrong, gradient.

    With a hard target (log_target = -inf somewhere) `reverse_kl` and `reverse_chi_squared` are
    infinite; the clip then turns the infinite penalty into a large one.

    Args:
      logp: log-probabilities of whole sequences under the current policy, sums over tokens with
        the end token, in nats (no length normalisation).
      log_target: NORMALISED log-probabilities of the same sequences under the target. Minus
        infinity: the target excludes the sequence. Plus infinity or NaN: the normaliser is not
        known yet (`targets.normalize` with an empty partition function); the sample is skipped.
      divergence: a generator from `polgrad.divergences`.
      behavior_logp: log-probabilities under the policy that drew the samples; None on-policy.
      baseline: subtracted from the pseudo-reward, a scalar or one value a sequence, computed
        without the current samples.
      log_ratio_clip: bound on |log(policy / target)| before f', in nats, > 0.

    Returns:
      Losses, [B], to be averaged over sequences. A skipped sample or one with logp = -inf
      contributes 0 and no gradient.

    Raises:
      ValueError: if shapes differ or `log_ratio_clip` is not positive.

    References:
      Go et al., Aligning Language Models with Preferences through f-divergence Minimization,
      2023 (arXiv:2302.08215).
    """
    reward = f_dpg_pseudo_reward(
        logp, log_target, divergence=divergence, log_ratio_clip=log_ratio_clip
    )
    if behavior_logp is None:
        weight = 1.0
    else:
        _checks.same_shape("[B]", logp=logp, behavior_logp=behavior_logp)
        weight = importance_ratio(logp, behavior_logp)
    logp, log_target = accumulate(logp), accumulate(log_target)
    known = ~(jnp.isnan(log_target) | jnp.isposinf(log_target) | jnp.isneginf(logp))
    coefficient = jax.lax.stop_gradient(jnp.where(known, weight * (reward - baseline), 0.0))
    return -coefficient * jnp.where(known, logp, 0.0)
