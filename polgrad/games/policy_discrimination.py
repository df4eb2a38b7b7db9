"""What a reward model that tells policies apart learns, exactly, in a table of answers."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from polgrad import _checks

__all__ = ["policy_discrimination"]


def policy_discrimination(policies: Float[Array, "P A"]) -> Float[Array, "A A A"]:
    """P(which of two answers comes from the policy that the reference answer comes from).

    Two different policies are drawn; the first gives a reference r and the one answer, the
    second the other answer. For a pair {a, b}

        preference[r, a, b] = J(r, a, b) / (J(r, a, b) + J(r, b, a))
        J(r, a, b) = sum_{i != j} policy_i(r) policy_i(a) policy_j(b)

    The log-odds of this are what r(reference, a) - r(reference, b) tends to when pre-trained
    with `losses.bradley_terry`, if some score expresses it (with two answers it always does).
    They are NOT those of the product of marginals: the reference tells which policy was drawn.

    Args:
      policies: probabilities of the answers under each policy of the pool, [P, A], P >= 2.

    Returns:
      Preferences, [A, A, A], for each reference answer a matrix with P + P^T = 1; 1/2 where a
      triple never occurs, and everywhere for equal policies.

    Raises:
      ValueError: fewer than two policies.

    References:
      Dou et al., Pre-Trained Policy Discriminators are General Reward Models, 2025
      (arXiv:2507.05197), section 3.
    """
    _checks.rank("policies", policies, 2, "[P, A]")
    if jnp.shape(policies)[0] < 2:
        raise ValueError(
            f"policies has shape {list(jnp.shape(policies))}, expected P of at least 2"
        )
    others = jnp.sum(policies, axis=0) - policies
    triples = jnp.einsum("ir,ia,ib->rab", policies, policies, others)
    both = triples + jnp.swapaxes(triples, -1, -2)
    return jnp.where(both > 0.0, triples / jnp.where(both > 0.0, both, 1.0), 0.5)
