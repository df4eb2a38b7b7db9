"""Losses of pairs that the policy itself makes, judged by a reward, a preference model or its own past.

`inpo` and `sppo` regress log-ratios on win rates, `dno` classifies by them: each is a step of learning
in a game of preferences against the previous policy. `xpo` is `dpo` with a bonus for new answers.
`copg` is a policy gradient in which each answer of a scored pair is the other's baseline. For pairs
that a file holds see pairs.py; `sppo` takes one answer at a time and is here because the answers of a
prompt are judged against each other.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from polgrad import _checks
from polgrad._dtypes import accumulate
from polgrad._scalars import in_range
from polgrad._softplus import softplus
from polgrad.losses.pairs import dpo
from polgrad.ratios import finite


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


def dno(
    first_logratio: Float[Array, "B"],
    second_logratio: Float[Array, "B"],
    reward_gap: Float[Array, "B"],
    *,
    inverse_step: Float[Array, ""] | float,
) -> Float[Array, "B"]:
    """DNO: the policy's own preference between two answers, fitted to that of their win rates.

        loss = -p log sigmoid(z) - (1 - p) log sigmoid(-z)
        p = sigmoid(reward_gap),   z = s (first - second),   s = inverse_step

    On pairs of any full-support sampler the one minimiser is the soft policy iteration
    previous exp(win rate / s) / Z (`tabular.soft_policy_iteration` of step 1 / s), for preferences
    that no reward expresses too; the minimum is the entropy of the targets. Repeat with the
    minimiser as the previous policy: the average of the policies tends to the Nash policy, the last
    one may spiral away from it.

    The practical form, pairs of a large gap labelled by their order, is `dpo` with the previous
    policy as the reference and beta = s: a gap of plus infinity.

    Args:
      first_logratio: log(policy / previous) of the one answer, sums over tokens, in nats. Stop
        the gradient of the previous policy when forming it; for DNO with a KL to a reference it
        is the mixture `tabular.smoothed_policy` of the two.
      second_logratio: the same for the other answer.
      reward_gap: win rate of the first answer against the previous policy minus that of the
        second, in [-1, 1] (`ranking.win_rate_labels` of a pool of samples estimates them);
        stopped. Infinities are hard labels.
      inverse_step: s, the reciprocal of the step, > 0: the larger, the closer the policy stays
        (0.05 to 0.1 in the paper, which calls it eta, with hard labels).

    Returns:
      Losses, [B], >= 0, to be averaged over pairs. A pair whose gap is not a number has loss 0;
      an infinite log ratio counts +-20 nats, an undefined one 0, both without gradient.

    Raises:
      ValueError: if shapes differ or `inverse_step` is not positive.

    References:
      Rosset et al., Direct Nash Optimization: Teaching Language Models to Self-Improve with
      General Preferences, 2024 (arXiv:2404.03715), algorithm 1.
    """
    in_range("inverse_step", inverse_step, low=0.0, above=True)
    _checks.rank("first_logratio", first_logratio, 1, "[B], one value an answer")
    _checks.same_shape(
        "[B]",
        first_logratio=first_logratio,
        second_logratio=second_logratio,
        reward_gap=reward_gap,
    )
    gap = accumulate(jax.lax.stop_gradient(reward_gap))
    known = ~jnp.isnan(gap)
    target = jax.nn.sigmoid(jnp.where(known, gap, 0.0))
    margin = inverse_step * (finite(first_logratio) - finite(second_logratio))
    loss = target * softplus(-margin) + (1.0 - target) * softplus(margin)
    return jnp.where(known, loss, 0.0)


def xpo(
    chosen_logratio: Float[Array, "B"],
    rejected_logratio: Float[Array, "B"],
    reference_sample_logp: Float[Array, "B"],
    *,
    beta: float = 0.1,
    alpha: float = 1e-5,
) -> Float[Array, "B"]:
    """XPO: online DPO with a bonus for leaving what the reference would say.

    loss = dpo + alpha log policy(y'), y' drawn from the reference: optimism about answers that
    the data have not shown yet.

    Args:
      chosen_logratio: log(policy / reference) of the preferred answers, sums over tokens, in
        nats. Stop the gradient of the reference when forming it.
      rejected_logratio: the same for the other answers of the pairs.
      reference_sample_logp: log-probabilities under the current policy of answers that the
        REFERENCE drew for the same prompts, sums over tokens.
      beta: strength of the KL to the reference, > 0.
      alpha: strength of the optimism, >= 0.

    Returns:
      Losses, [B], to be averaged over pairs; `dpo` for alpha = 0. An infinite log ratio or
      log-probability counts +-20 nats, an undefined one 0, both without gradient.

    Raises:
      ValueError: if shapes differ, or `beta` or `alpha` is out of range.

    References:
      Xie et al., Exploratory Preference Optimization: Harnessing Implicit Q*-Approximation for
      Sample-Efficient RLHF, 2024 (arXiv:2405.21046).
    """
    in_range("alpha", alpha, low=0.0)
    preference = dpo(chosen_logratio, rejected_logratio, beta=beta)
    _checks.same_shape(
        "[B]", chosen_logratio=chosen_logratio, reference_sample_logp=reference_sample_logp
    )
    return preference + alpha * finite(reference_sample_logp)


def copg(
    first_logratio: Float[Array, "..."],
    second_logratio: Float[Array, "..."],
    first_rewards: Float[Array, "..."],
    second_rewards: Float[Array, "..."],
    *,
    beta: float,
) -> Float[Array, "..."]:
    """CoPG: a policy gradient in which each answer of a pair is the other's baseline.

    loss = beta / 2 D^2 - (first_rewards - second_rewards) D,  D = first_logratio - second_logratio.

    Its gradient is that of -sg[R(first) - R(second)] D with the regularised rewards
    R = reward - beta logratio, and of (beta D - reward difference)^2 / (2 beta), a regression.
    The minimiser is the KL-regularised optimum, reference exp(reward / beta) / Z, whatever drew
    the pairs, as long as the two answers are independent given the prompt and anything the
    reference can say may be drawn. On pairs of the policy itself it is twice the policy gradient.

    Args:
      first_logratio: log(policy / reference) of one answer of each pair, sums over tokens, in
        nats. Stop the gradient of the reference when forming it.
      second_logratio: the same for the other answers.
      first_rewards: scores, in units in which beta is the price of a nat; no gradient flows
        through them. Which answer comes first does not matter; equal scores are legal.
      second_rewards: the same for the other answers.
      beta: strength of the KL to the reference, > 0 (0.06 in the paper for a learned reward).

    Returns:
      Losses, same shape, to be averaged over pairs; 0 where policy = reference, at least
      -(reward difference)^2 / (2 beta). An infinite log ratio counts +-20 nats, an undefined one
      0, both without gradient; a pair with a reward that is not finite contributes 0.

    Raises:
      ValueError: if shapes differ or `beta` is not positive.

    References:
      Flet-Berliac et al., Contrastive Policy Gradient: Aligning LLMs on sequence-level scores in
      a supervised-friendly fashion, 2024 (arXiv:2406.19185).
    """
    _checks.same_shape(
        "one value an answer",
        first_logratio=first_logratio,
        second_logratio=second_logratio,
        first_rewards=first_rewards,
        second_rewards=second_rewards,
    )
    in_range("beta", beta, low=0.0, above=True)
    rewards = accumulate(first_rewards), accumulate(second_rewards)
    scored = jnp.isfinite(rewards[0]) & jnp.isfinite(rewards[1])
    gap = jnp.where(scored, rewards[0], 0.0) - jnp.where(scored, rewards[1], 0.0)
    contrast = jnp.where(scored, finite(first_logratio) - finite(second_logratio), 0.0)
    return 0.5 * beta * jnp.square(contrast) - jax.lax.stop_gradient(gap) * contrast
