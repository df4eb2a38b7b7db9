"""A policy against the worst reward that explains its preference data, in a table."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from polgrad import _checks
from polgrad._scalars import in_range
from polgrad._softplus import softplus
from polgrad.tabular.bandits import kl_regularized_value

__all__ = ["adversarial_reward_objective", "uncovered_mass"]


def adversarial_reward_objective(
    rewards: Float[Array, "... A"],
    log_reference: Float[Array, "... A"],
    baseline: Float[Array, "... A"],
    preferred: Float[Array, "... A A"],
    *,
    beta: float,
    adversary_weight: float,
) -> Float[Array, "..."]:
    """What the adversary of RPO minimises: the best policy's gain, and the misfit to the pairs.

        adversary_weight (beta log sum reference exp(r / beta) - E_baseline[r])
          + sum_ij preferred_ij softplus(r_j - r_i)

    Convex in the rewards and blind to a constant added to all. Its minimiser r gives the policy
    reference exp(r / beta) / Z (`kl_regularized_optimum`) that minimises `losses.rpo`: the
    imitation there is all that is left of the adversary.

    Args:
      rewards: of each action, [..., A].
      log_reference: normalised log-probabilities of the reference, [..., A].
      baseline: probabilities of the policy that answers are compared with, [..., A].
      preferred: weight of the pairs in which i was preferred to j, [..., A, A].
      beta: strength of the KL, > 0.
      adversary_weight: strength of the adversary, >= 0; eta in the paper.

    Returns:
      The objective, [...].

    Raises:
      ValueError: shapes that do not match; numbers out of range.

    References:
      Liu et al., Provably Mitigating Overoptimization in RLHF, 2024 (arXiv:2405.16436),
      equation 3.2 and theorem 5.6.
    """
    in_range("beta", beta, low=0.0, above=True)
    in_range("adversary_weight", adversary_weight, low=0.0)
    _checks.same_shape("[..., A]", rewards=rewards, log_reference=log_reference, baseline=baseline)
    shape = jnp.shape(rewards)
    _checks.shape("preferred", preferred, (*shape, shape[-1]), "[..., A, A]")
    rewards = jnp.asarray(rewards)
    gain = kl_regularized_value(log_reference, rewards, beta=beta)
    gain -= jnp.sum(jnp.asarray(baseline) * rewards, axis=-1)
    misfit = softplus(rewards[..., None, :] - rewards[..., :, None])
    return adversary_weight * gain + jnp.sum(jnp.asarray(preferred) * misfit, axis=(-2, -1))


def uncovered_mass(
    log_policy: Float[Array, "... A"], covered: Bool[Array, "... A"]
) -> Float[Array, "..."]:
    """How much a policy says that its data never showed: where overoptimisation goes.

        sum of policy over actions that no pair holds

    Args:
      log_policy: normalised log-probabilities, [..., A].
      covered: which actions the data hold, [..., A].

    Returns:
      Probabilities, [...].

    Raises:
      ValueError: shapes that differ.

    References:
      Liu et al., Provably Mitigating Overoptimization in RLHF, 2024 (arXiv:2405.16436).
    """
    _checks.same_shape("[..., A]", log_policy=log_policy, covered=covered)
    return jnp.sum(jnp.where(jnp.asarray(covered) != 0, 0.0, jnp.exp(log_policy)), axis=-1)
