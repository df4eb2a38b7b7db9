"""What a preference says about two policies: differential information, and DPO as its decoder.

The normalised likelihood ratio q of two policies is the information that turns the one into the
other: policy ~ reference q. Preferences between samples of two policies carry the information
that separates these; where it is a power of that between reference and target, the log-ratio
reward of DPO is the only one whose perfect fit is the target.
"""

from typing import TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from polgrad import _checks, distributions
from polgrad._dtypes import accumulate
from polgrad._scalars import in_range
from polgrad.ratios import log_ratio

__all__ = [
    "differential_information",
    "dpo_pg_direction",
    "information_entropy",
    "information_entropy_estimate",
    "log_margins",
    "optimal_chosen",
    "optimal_rejected",
    "posterior_preference",
    "power_law_policy",
    "power_law_residual",
]

Params = TypeVar("Params")


def differential_information(
    log_policy: Float[Array, "... A"], log_reference: Float[Array, "... A"]
) -> Float[Array, "... A"]:
    """Log-probabilities of the information that turns the reference into the policy.

        q ~ policy / reference,   so that policy ~ reference q

    Args:
      log_policy: log-probabilities, [..., A], normalised or not.
      log_reference: log-probabilities, [..., A]; stopped.

    Returns:
      log q, normalised, [..., A]; minus infinity where the policy has no mass. Log ratios are
      clamped to +-20 nats. Uniform for equal policies, and where the policy has no mass at all.

    Raises:
      ValueError: shapes that differ.

    References:
      Won et al., Differential Information: An Information-Theoretic Perspective on Preference
      Optimization, 2025 (arXiv:2505.23761), definition 3.1.
    """
    _checks.same_shape("[..., A]", log_policy=log_policy, log_reference=log_reference)
    outside = jnp.isneginf(accumulate(log_policy))
    return _normalized(jnp.where(outside, -jnp.inf, log_ratio(log_policy, log_reference)))


def information_entropy(
    log_policy: Float[Array, "... A"], log_reference: Float[Array, "... A"]
) -> Float[Array, "..."]:
    """Entropy of `differential_information`, in nats.

    Low where the update concentrates on few answers (reinforcement), near log A where it spreads
    mass (smoothing): the square of the reference has the reference's own entropy.

    Args:
      log_policy: log-probabilities, [..., A].
      log_reference: log-probabilities, [..., A]; stopped.

    Returns:
      Entropies in [0, log A], [...].

    Raises:
      ValueError: shapes that differ.

    References:
      Won et al., Differential Information, 2025 (arXiv:2505.23761), section 4.
    """
    return distributions.entropy(differential_information(log_policy, log_reference))


def information_entropy_estimate(
    logp: Float[Array, "... K"],
    reference_logp: Float[Array, "... K"],
    behavior_logp: Float[Array, "... K"],
    *,
    valid: Bool[Array, "... K"] | None = None,
) -> Float[Array, "..."]:
    """Entropy of the differential information of two policies over sequences, from samples.

        log Z - sum_k w_k log rho_k,   rho = policy / reference,   w ~ rho / behavior,
        Z = mean_k rho_k / behavior_k

    Self-normalised importance sampling. log Z is of the order of the log of the number of
    sequences: only differences between models on the same prompts mean something.

    Args:
      logp: log-probabilities of K samples under the policy, [..., K], sums over tokens.
      reference_logp: the same under the reference.
      behavior_logp: the same under the policy that drew them.
      valid: False for samples to leave out; those with an undefined ratio are left out too.

    Returns:
      Estimates in nats, [...], stopped; 0 without a sample of positive weight.

    Raises:
      ValueError: shapes that differ.

    References:
      Won et al., Differential Information, 2025 (arXiv:2505.23761): 32 samples a prompt.
    """
    arrays = {"logp": logp, "reference_logp": reference_logp, "behavior_logp": behavior_logp}
    _checks.same_shape("[..., K]", **arrays)
    logp, reference, behavior = (
        accumulate(jax.lax.stop_gradient(x)) for x in (logp, reference_logp, behavior_logp)
    )
    known = jnp.isfinite(reference) & jnp.isfinite(behavior) & (logp < jnp.inf)
    if valid is not None:
        _checks.same_shape("[..., K]", logp=logp, valid=valid)
        known &= jnp.asarray(valid) != 0
    positive = known & (logp > -jnp.inf)
    ratio = jnp.where(positive, logp, 0.0) - jnp.where(positive, reference, 0.0)
    some = jnp.any(positive, axis=-1, keepdims=True)
    logits = jnp.where(positive, ratio - behavior, -jnp.inf)
    logits = jnp.where(some, logits, 0.0)
    count = jnp.maximum(jnp.sum(known, axis=-1), 1)
    log_mean = jax.nn.logsumexp(logits, axis=-1) - jnp.log(count)
    entropy = log_mean - jnp.sum(jax.nn.softmax(logits, axis=-1) * ratio, axis=-1)
    return jnp.where(some[..., 0], entropy, 0.0)


def posterior_preference(
    log_chosen: Float[Array, "... A"], log_rejected: Float[Array, "... A"]
) -> Float[Array, "... A A"]:
    """P(the first of two answers is the chosen one), by Bayes' rule.

        chosen(a) rejected(b) / (chosen(a) rejected(b) + chosen(b) rejected(a))

    for a pair of which one is a sample of the chosen policy and the other of the rejected one:
    Bradley-Terry with the reward log(chosen / rejected).

    Args:
      log_chosen: log-probabilities of the policy that chosen answers come from, [..., A].
      log_rejected: of the policy that rejected answers come from, [..., A]; stopped.

    Returns:
      Preferences, [..., A, A], 1/2 on the diagonal. Log ratios are clamped to +-20 nats.

    Raises:
      ValueError: shapes that differ.

    References:
      Won et al., Differential Information, 2025 (arXiv:2505.23761), theorem 3.1.
    """
    _checks.same_shape("[..., A]", log_chosen=log_chosen, log_rejected=log_rejected)
    reward = log_ratio(log_chosen, log_rejected)
    return jax.nn.sigmoid(reward[..., :, None] - reward[..., None, :])


def power_law_policy(
    log_reference: Float[Array, "... A"],
    log_target: Float[Array, "... A"],
    *,
    exponent: float,
) -> Float[Array, "... A"]:
    """The policy that goes from the reference towards the target, and on: reference ratio^t / Z.

        policy ~ reference (target / reference)^exponent

    0 is the reference, 1 the target, negative numbers lead away from it.

    Args:
      log_reference: log-probabilities, [..., A].
      log_target: log-probabilities, [..., A].
      exponent: t, any finite number.

    Returns:
      Normalised log-probabilities, [..., A]; minus infinity outside of the reference's support,
      uniform where that is empty. Log ratios of target and reference are clamped to +-20 nats.

    Raises:
      ValueError: shapes that differ; an exponent that is not finite.

    References:
      Won et al., Differential Information, 2025 (arXiv:2505.23761).
    """
    in_range("exponent", exponent, low=-1e6, high=1e6)
    _checks.same_shape("[..., A]", log_reference=log_reference, log_target=log_target)
    return _normalized(accumulate(log_reference) + exponent * log_ratio(log_target, log_reference))


def optimal_rejected(
    log_reference: Float[Array, "... A"], log_target: Float[Array, "... A"], *, beta: float
) -> Float[Array, "... A"]:
    """Where to draw rejected answers if chosen ones come from the reference.

        rejected ~ reference (reference / target)^beta

    The optimum of DPO with this beta is then the target.

    Args:
      log_reference: log-probabilities, [..., A].
      log_target: log-probabilities of the policy that DPO is to find, [..., A].
      beta: of DPO, > 0.

    Returns:
      Normalised log-probabilities, [..., A]; as `power_law_policy` at the edges.

    Raises:
      ValueError: shapes that differ; `beta` not positive.

    References:
      Won et al., Differential Information, 2025 (arXiv:2505.23761), section 3.
    """
    in_range("beta", beta, low=0.0, above=True)
    return power_law_policy(log_reference, log_target, exponent=-beta)


def optimal_chosen(
    log_reference: Float[Array, "... A"], log_target: Float[Array, "... A"], *, beta: float
) -> Float[Array, "... A"]:
    """Where to draw chosen answers if rejected ones come from the reference.

        chosen ~ reference (target / reference)^beta

    The optimum of DPO with this beta is then the target; for beta = 1 chosen answers are the
    target's own.

    Args:
      log_reference: log-probabilities, [..., A].
      log_target: log-probabilities of the policy that DPO is to find, [..., A].
      beta: of DPO, > 0.

    Returns:
      Normalised log-probabilities, [..., A]; as `power_law_policy` at the edges.

    Raises:
      ValueError: shapes that differ; `beta` not positive.

    References:
      Won et al., Differential Information, 2025 (arXiv:2505.23761), section 3.
    """
    in_range("beta", beta, low=0.0, above=True)
    return power_law_policy(log_reference, log_target, exponent=beta)


def log_margins(logp: Float[Array, "... A"]) -> Float[Array, "... A A"]:
    """log policy(a) - log policy(b) for all pairs of answers.

    Args:
      logp: log-probabilities, [..., A].

    Returns:
      Margins in nats, [..., A, A], clamped to +-20, 0 for two answers without mass. Stopped.

    References:
      Won et al., Differential Information, 2025 (arXiv:2505.23761): policies that preferences
      teach are ordered by their margins.
    """
    logp = jax.lax.stop_gradient(logp)
    return log_ratio(logp[..., :, None], logp[..., None, :])


def power_law_residual(
    log_reference: Float[Array, "... A"],
    log_target: Float[Array, "... A"],
    log_rejected: Float[Array, "... A"],
    *,
    beta: float,
) -> Float[Array, "... A A"]:
    """How far a rejected sampler is from `optimal_rejected`, pair by pair.

        (M_reference - M_rejected) - beta (M_target - M_reference),   M = `log_margins`

    Args:
      log_reference: log-probabilities of the reference, which chosen answers come from.
      log_target: log-probabilities of the target.
      log_rejected: log-probabilities of the policy that rejected answers come from.
      beta: of DPO, > 0.

    Returns:
      Residuals in nats, [..., A, A], stopped; 0 for all pairs exactly where the preferences
      carry the differential information from reference to target.

    Raises:
      ValueError: shapes that differ; `beta` not positive.

    References:
      Won et al., Differential Information, 2025 (arXiv:2505.23761), theorem 3.3.
    """
    in_range("beta", beta, low=0.0, above=True)
    _checks.same_shape(
        "[..., A]", log_reference=log_reference, log_target=log_target, log_rejected=log_rejected
    )
    reference, target, rejected = (
        log_margins(x) for x in (log_reference, log_target, log_rejected)
    )
    return (reference - rejected) - beta * (target - reference)


def dpo_pg_direction(
    chosen_gradient: Params, rejected_gradient: Params, coefficient: Float[Array, ""] | float
) -> Params:
    """DPO's step for a pair, projected so that the chosen answer never gets less likely.

    Of the directions d with <d, g_chosen> >= 0 and <d, g_rejected> <= 0, the one nearest to
    DPO's coefficient (g_chosen - g_rejected). At most one of the two bounds binds: the component
    along that gradient is removed.

    Args:
      chosen_gradient: gradient of log policy(chosen answer), any tree of arrays.
      rejected_gradient: gradient of log policy(rejected answer), the same tree.
      coefficient: of the pair, beta sigmoid(-beta margin) in DPO, >= 0.

    Returns:
      Direction of ASCENT, a tree like the gradients.

    References:
      Won et al., Differential Information, 2025 (arXiv:2505.23761): "DPO-PG".
    """
    direction = jax.tree.map(lambda w, r: coefficient * (w - r), chosen_gradient, rejected_gradient)
    direction = _without(direction, chosen_gradient, -1.0)
    return _without(direction, rejected_gradient, 1.0)


def _without(direction, gradient, sign):
    """The direction, less its component along the gradient where that has the given sign."""
    inner, square = _inner(direction, gradient), _inner(gradient, gradient)
    wrong = (sign * inner > 0.0) & (square > 0.0)
    share = jnp.where(wrong, inner / jnp.where(square > 0.0, square, 1.0), 0.0)
    return jax.tree.map(lambda d, g: (d - share * g).astype(d.dtype), direction, gradient)


def _inner(first, second):
    products = jax.tree.map(lambda a, b: jnp.sum(accumulate(a) * accumulate(b)), first, second)
    return sum(jax.tree.leaves(products), start=jnp.zeros(()))


def _normalized(logits):
    """Log-softmax; uniform where nothing is possible."""
    empty = jnp.all(jnp.isneginf(logits), axis=-1, keepdims=True)
    return jax.nn.log_softmax(jnp.where(empty, 0.0, logits), axis=-1)
