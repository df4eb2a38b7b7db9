"""No-regret learning against oneself, as regressions of log-ratios on preferences."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from polgrad import _checks
from polgrad._dtypes import accumulate
from polgrad._scalars import in_range
from polgrad.ratios import finite

__all__ = ["inpo", "inpo_contrast", "sppo"]


def inpo(
    contrast: Float[Array, "B"],
    preference: Float[Array, "B"] | None = None,
    *,
    inverse_step: Float[Array, ""] | float,
) -> Float[Array, "B"]:
    """INPO: regression whose minimiser is one step of mirror descent in a preference game.

    loss = (contrast - (preference - 1/2) / s)^2, and (contrast - 1 / (2 s))^2 for pairs that are
    ordered by a label, with s = `inverse_step`. Both have the gradient of the loss with the exact
    target (P(w beats previous) - P(l beats previous)) / s, PROVIDED that both answers are drawn
    from the previous policy; for pairs from another policy the step is against that policy. Repeat
    with the minimiser as the new previous policy: the last iterate tends to the Nash policy of
    the KL-regularised game.

    Minimise to near convergence, from the previous policy. With tau = s it is online `ipo`; so is
    the first iteration, where the previous policy is the reference (`beta` = s).

    Args:
      contrast: of pairs of answers, from `inpo_contrast` with the same `inverse_step`.
      preference: P(first answer beats second), in [0, 1], for pairs in any order: the soft label,
        of lower variance. By default the first answer is the one that a label preferred.
      inverse_step: s, the reciprocal of the step of mirror descent, > 0 (0.005 in the paper, which
        calls it eta: the target is 100 nats).

    Returns:
      Losses, [B], >= 0, to be averaged over pairs. A pair of equal answers has no gradient; an
      infinite contrast counts +-20 nats, an undefined one 0, both without gradient.

    Raises:
      ValueError: if shapes differ or `inverse_step` is not positive.

    References:
      Zhang et al., Iterative Nash Policy Optimization: Aligning LLMs with General Preferences via
      No-Regret Learning, 2024 (arXiv:2407.00617).
    """
    in_range("inverse_step", inverse_step, low=0.0, above=True)
    _checks.rank("contrast", contrast, 1, "[B], one value a pair")
    if preference is None:
        return jnp.square(finite(contrast) - 0.5 / inverse_step)
    _checks.same_shape("[B]", contrast=contrast, preference=preference)
    target = (jax.lax.stop_gradient(accumulate(preference)) - 0.5) / inverse_step
    return jnp.square(finite(contrast) - target)


def sppo(
    logratio: Float[Array, "B"], win_rate: Float[Array, "B"], *, eta: Float[Array, ""] | float
) -> Float[Array, "B"]:
    """SPPO: each answer's log-ratio regressed on its win rate against the previous policy.

    loss = (log policy / previous - eta (win_rate - 1/2))^2: multiplicative weights of step eta
    with the normaliser taken as exp(eta / 2). Unlike `inpo` it looks at one answer at a time, and
    it has no KL to a reference. The loss of a pair ("SPPO-hard") is
    sppo(chosen, 1) + sppo(rejected, 0).

    Args:
      logratio: log(policy / previous) of the answers, sums over tokens, in nats. Stop the
        gradient of the previous policy when forming it.
      win_rate: estimates of P(answer beats previous policy), in [0, 1]; one 0 / 1 comparison
        with a sample of the previous policy will do.
      eta: step, > 0 (1e3 in the paper; TRL's beta for this loss is 1 / eta).

    Returns:
      Losses, [B], >= 0, to be averaged over answers. An infinite log ratio counts +-20 nats, an
      undefined one 0, both without gradient.

    Raises:
      ValueError: if shapes differ or `eta` is not positive.

    References:
      Wu et al., Self-Play Preference Optimization for Language Model Alignment, 2024
      (arXiv:2405.00675).
    """
    in_range("eta", eta, low=0.0, above=True)
    _checks.rank("logratio", logratio, 1, "[B], one value an answer")
    _checks.same_shape("[B]", logratio=logratio, win_rate=win_rate)
    target = eta * (jax.lax.stop_gradient(accumulate(win_rate)) - 0.5)
    return jnp.square(finite(logratio) - target)
