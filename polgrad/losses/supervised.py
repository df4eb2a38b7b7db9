"""Likelihood of given answers: by itself and beside a preference loss."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Num

from polgrad import _checks
from polgrad._dtypes import accumulate
from polgrad._scalars import in_range
from polgrad.losses.dpo import dpo
from polgrad.ratios import finite

__all__ = ["imitation", "implicit_value", "rpo", "rpo_average"]


def imitation(
    logp: Float[Array, "*B"], lengths: Num[Array, "*B"] | None = None
) -> Float[Array, "*B"]:
    """The negative log-likelihood of given answers: supervised fine-tuning.

    loss = -logp, or -logp / lengths. The term that keeps the likelihood of good answers up beside
    a preference loss (`rpo`). For the mean over all tokens of a batch, which long answers
    dominate, use `masking.reduce(-token_logp, mask, mode="token")`.

    Args:
      logp: log-probabilities of the answers (sums over tokens) or of tokens, any shape.
      lengths: numbers of tokens, same shape, to average over each answer; None for sums.

    Returns:
      Losses, same shape. An answer of length 0 is divided by 1. A log-probability of minus
      infinity counts -20 nats, an undefined one 0, both without gradient.

    Raises:
      ValueError: if shapes differ.
    """
    loss = -finite(logp)
    if lengths is None:
        return loss
    _checks.same_shape("one length an answer", logp=logp, lengths=lengths)
    return loss / jnp.maximum(accumulate(jax.lax.stop_gradient(lengths)), 1.0)


def rpo(
    chosen_logratio: Float[Array, "B"],
    rejected_logratio: Float[Array, "B"],
    baseline_logp: Float[Array, "B"],
    *,
    beta: float = 0.01,
    adversary_weight: Float[Array, ""] | float = 0.005,
) -> Float[Array, "B"]:
    """RPO: DPO plus imitation, which is DPO against the worst reward that explains the pairs.

    loss = dpo - adversary_weight beta log policy(baseline answer)

    The imitation term is what is left of an adversary that picks the reward: it keeps answers
    that no pair shows from growing, where `dpo` does not care. It is not the "rpo_alpha" of
    iterative reasoning preference optimisation.

    Args:
      chosen_logratio: log(policy / reference) of the preferred answers, sums over tokens, in
        nats. Stop the gradient of the reference when forming it.
      rejected_logratio: the same for the other answers of the pairs.
      baseline_logp: log-probabilities of baseline answers under the policy, SUMS over tokens: of
        the chosen answers in the paper's practice; any distribution that covers good answers.
      beta: strength of the KL to the reference, > 0 (0.01 or 0.05 in the paper).
      adversary_weight: strength of the adversary, >= 0; of the order 1 / sqrt(pairs). The paper
        calls it eta.

    Returns:
      Losses, [B], to be averaged over pairs; `dpo` for adversary_weight = 0. An infinite log ratio
      or log-probability counts +-20 nats, an undefined one 0, both without gradient.

    Raises:
      ValueError: if shapes differ, or `beta` or `adversary_weight` is out of range.

    References:
      Liu et al., Provably Mitigating Overoptimization in RLHF: Your SFT Loss is Implicitly an
      Adversarial Regularizer, 2024 (arXiv:2405.16436).
    """
    in_range("adversary_weight", adversary_weight, low=0.0)
    preference = dpo(chosen_logratio, rejected_logratio, beta=beta)
    _checks.same_shape("[B]", chosen_logratio=chosen_logratio, baseline_logp=baseline_logp)
    return preference + adversary_weight * beta * imitation(baseline_logp)


def rpo_average(
    chosen_logratio: Float[Array, "B"],
    rejected_logratio: Float[Array, "B"],
    baseline_logp: Float[Array, "B"],
    baseline_lengths: Num[Array, "B"],
    *,
    beta: float = 0.5,
    alpha: Float[Array, ""] | float = 0.2,
) -> Float[Array, "B"]:
    """RPO with the imitation term averaged over tokens: the form for short, reasoned answers.

    loss = dpo - alpha / T log policy(baseline answer), NOT multiplied by beta; T tokens

    `rpo` with adversary_weight beta = alpha / T is this loss, so the two numbers differ much: the
    0.005 of `rpo` would be a very weak imitation here.

    Args:
      chosen_logratio: log(policy / reference) of the preferred answers, sums over tokens, in
        nats. Stop the gradient of the reference when forming it.
      rejected_logratio: the same for the other answers of the pairs.
      baseline_logp: log-probabilities of baseline answers under the policy, sums over tokens.
      baseline_lengths: their numbers of tokens T.
      beta: strength of the KL to the reference, > 0.
      alpha: weight of the imitation, >= 0 (eta in the paper, `rpo_alpha` in TRL).

    Returns:
      Losses, [B], to be averaged over pairs. An empty baseline answer contributes 0 to the second
      term. An infinite log ratio or log-probability counts +-20 nats, an undefined one 0, both
      without gradient.

    Raises:
      ValueError: if shapes differ, or `beta` or `alpha` is out of range.

    References:
      Liu et al., Provably Mitigating Overoptimization in RLHF, 2024 (arXiv:2405.16436),
      appendix F.
    """
    in_range("alpha", alpha, low=0.0)
    preference = dpo(chosen_logratio, rejected_logratio, beta=beta)
    _checks.same_shape(
        "[B]",
        chosen_logratio=chosen_logratio,
        baseline_logp=baseline_logp,
        baseline_lengths=baseline_lengths,
    )
    return preference + alpha * imitation(baseline_logp, baseline_lengths)
