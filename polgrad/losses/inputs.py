"""What losses are fed with: scores, weights, reference points. None of these is a loss itself.

* In place of a log-ratio or a sum of log-probabilities: `implicit_reward`, `preference_margin`,
  `f_dpo_score`, `desensitized_logp`, `log_odds`, `segment_score`, `sequence_score`, `inpo_contrast`,
  `f_dpg_pseudo_reward`.
* Weights that a loss is multiplied with: `wpo_weight`, `density_weight`, `nft_prompt_weight`,
  `topr_weights`; `vespo_weights` is beside its loss in sequences.py.
* What an answer is compared with: `kto_reference_point`.

Masks and weights from importance ratios alone are in `polgrad.ratios`; running means in
`polgrad.running`; places and labels of lists in ranking.py.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Num

from polgrad import _checks
from polgrad._dtypes import accumulate
from polgrad._scalars import in_range, limits
from polgrad.divergences import FDivergence
from polgrad.masking import masked_mean, sequence_sum
from polgrad.ratios import (
    LIMIT,
    bounded,
    finite,
    importance_ratio,
)


def implicit_reward(
    logp: Float[Array, "..."], reference_logp: Float[Array, "..."], *, beta: float = 0.1
) -> Float[Array, "..."]:
    """The reward that a policy is optimal for: beta (log policy - log reference).

    Defined up to a function of the prompt; only differences at one prompt mean something.

    Args:
      logp: log-probabilities of whole answers under the policy, in nats.
      reference_logp: the same under the reference; no gradient flows through it.
      beta: strength of the KL to the reference, > 0.

    Returns:
      Rewards, same shape. Infinite log ratios count +-20 nats, undefined ones 0.

    Raises:
      ValueError: if `beta` is not positive.

    References:
      Rafailov et al., Direct Preference Optimization, 2023 (arXiv:2305.18290), section 5.
    """
    in_range("beta", beta, low=0.0, above=True)
    return beta * finite(accumulate(logp) - jax.lax.stop_gradient(accumulate(reference_logp)))


def preference_margin(
    chosen_logp: Float[Array, "B"],
    rejected_logp: Float[Array, "B"],
    chosen_reference_logp: Float[Array, "B"],
    rejected_reference_logp: Float[Array, "B"],
) -> Float[Array, "B"]:
    """How much more than the reference the policy prefers the chosen answer, in nats.

    (log policy - log reference)(chosen) - (log policy - log reference)(rejected); without beta.
    `dpo` depends on its log-ratios through this alone. As accuracy count margin > 0: the tie of
    an untrained policy is a failure.

    Args:
      chosen_logp: log-probabilities of the chosen answers under the policy, sums over tokens.
      rejected_logp: the same of the rejected answers.
      chosen_reference_logp: under the reference; no gradient flows through it.
      rejected_reference_logp: under the reference; no gradient flows through it.

    Returns:
      Margins, [B].
    """
    chosen = implicit_reward(chosen_logp, chosen_reference_logp, beta=1.0)
    return chosen - implicit_reward(rejected_logp, rejected_reference_logp, beta=1.0)


def f_dpo_score(
    logratio: Float[Array, "..."], *, divergence: FDivergence, clip: float = 40.0
) -> Float[Array, "..."]:
    """f-DPO: what takes the log-ratio's place in a pair loss for another divergence.

        score = f'(policy / reference),   the divergence D_f(policy || reference)

    reverse KL: log-ratio + 1, so that `dpo` of the scores is `dpo`; forward KL: -reference /
    policy; Jensen-Shannon: log sigmoid(log-ratio) + log 2. Constants cancel in a pair.

    Args:
      logratio: log(policy / reference) of answers, sums over tokens, in nats, any shape.
      divergence: a generator from `polgrad.divergences`.
      clip: bound on |log-ratio| before f', > 0 and at most 80.

    Returns:
      Scores, same shape, float32 or wider; beyond the bound without gradient.

    Raises:
      ValueError: if `clip` is out of range.

    References:
      Wang et al., Beyond Reverse KL: Generalizing Direct Preference Optimization with Diverse
      Divergence Constraints, 2023 (arXiv:2309.16240).
    """
    in_range("clip", clip, low=0.0, high=80.0, above=True)
    ratio = accumulate(logratio)
    undefined = jnp.isnan(ratio)
    inside = jnp.abs(ratio) <= clip
    edge = jnp.where(undefined, 0.0, jnp.sign(ratio) * clip)
    return divergence.f_prime_log(jnp.where(inside, ratio, edge))


def desensitized_logp(
    logp: Float[Array, "B T"],
    mask: Num[Array, "B T"] | Bool[Array, "B T"],
    common_length: Num[Array, "B"],
    *,
    alpha: float = 0.5,
) -> Float[Array, "B"]:
    """LD-DPO: log-probability of an answer whose surplus tokens count less.

        sum of logp over the first common_length tokens + alpha times that over the others

    In a pair of different lengths the longer answer's surplus alone decides much of the margin;
    alpha = 1 is the plain sum, alpha = 0 compares equal lengths.

    Args:
      logp: log-probabilities of the tokens, in nats, [B, T].
      mask: 1 where a token counts, [B, T].
      common_length: tokens of the shorter answer of the pair, [B]; stopped.
      alpha: weight of the surplus, in [0, 1].

    Returns:
      [B], float32 or wider; 0 for a row without a valid token. Minus infinity counts -20 nats,
      without gradient.

    Raises:
      ValueError: if shapes differ or `alpha` is out of range.

    References:
      Liu et al., Length Desensitization in Direct Preference Optimization, 2024
      (arXiv:2409.06411).
    """
    _checks.rank("logp", logp, 2, "[B, T]")
    _checks.same_shape("[B, T]", logp=logp, mask=mask)
    _checks.shape("common_length", common_length, np.shape(logp)[:1], "[B]")
    in_range("alpha", alpha, low=0.0, high=1.0)
    valid = jnp.asarray(mask) != 0
    place = jnp.cumsum(valid, axis=-1)
    weight = jnp.where(place <= jnp.asarray(common_length)[:, None], 1.0, alpha)
    return jnp.sum(jnp.where(valid, weight * finite(logp), 0.0), axis=-1)


def wpo_weight(
    logp: Float[Array, "B T"],
    logits: Float[Array, "B T V"],
    mask: Num[Array, "B T"] | Bool[Array, "B T"],
) -> Float[Array, "B"]:
    """WPO: how on-policy an answer of an offline pair is; multiplies the pair's loss.

        weight = exp(mean over tokens of [log pi(y_t) - log sum_v pi(v)^2])

    1 on average for a token that the policy itself would sample. The weight of a pair is the
    product of its two, at most 1: `jnp.minimum(w_chosen * w_rejected, 1.0)`.

    Args:
      logp: log-probabilities of the answer's tokens under the current policy, in nats, [B, T];
        stopped.
      logits: of the current policy at these tokens, [B, T, V]; stopped. Chunk over B where
        they are large.
      mask: 1 where a token counts, [B, T].

    Returns:
      Weights > 0, [B], without gradient; 1 for a row without a valid token. A token of
      probability 0 counts -20 nats.

    Raises:
      ValueError: if shapes differ.

    References:
      Zhou et al., WPO: Enhancing RLHF with Weighted Preference Optimization, 2024
      (arXiv:2406.11827).
    """
    _checks.rank("logp", logp, 2, "[B, T]")
    _checks.same_shape("[B, T]", logp=logp, mask=mask)
    _checks.rank("logits", logits, 3, "[B, T, V]")
    _checks.shape("logits", logits, (*np.shape(logp), np.shape(logits)[-1]), "[B, T, V]")
    logp, logits = jax.lax.stop_gradient((finite(logp), accumulate(logits)))
    collision = jax.nn.logsumexp(2.0 * jax.nn.log_softmax(logits, axis=-1), axis=-1)
    return jnp.exp(masked_mean(logp - collision, mask, axis=-1))


def log_odds(logp: Float[Array, "*B"]) -> Float[Array, "*B"]:
    """log(p / (1 - p)) from log p, without cancellation.

    Args:
      logp: log-probabilities, <= 0, any shape.

    Returns:
      Log-odds, same shape, float32 or wider. A probability above 1 - exp(-20) counts 20 and has
      the slope exp(20) of that probability; one of 0 counts -20, without gradient.
    """
    safe = bounded(finite(logp), low=-jnp.inf, high=-math.exp(-LIMIT))
    # log(1 - p) may lose digits for small p, where it is nothing next to log p.
    return safe - jnp.log(-jnp.expm1(safe))


def segment_score(
    logp: Float[Array, "B T"],
    mask: Num[Array, "B T"] | Bool[Array, "B T"],
    *,
    alpha: float = 0.1,
    discount: float = 1.0,
) -> Float[Array, "B"]:
    """The discounted advantage of a segment that its log-probabilities imply.

    S = alpha sum_t discount^t log policy(a_t | s_t): under maximum entropy the optimal advantage
    IS alpha log policy. Log-ratios to a reference in place of `logp` give CPL-KL.

    Args:
      logp: log-probabilities of the actions, or log-ratios, in nats, [B, T].
      mask: 1 where a step counts, [B, T].
      alpha: temperature, > 0; about one over a few steps, because steps add up.
      discount: per step, in [0, 1].

    Returns:
      Scores, [B]; 0 for a segment without a valid step. An infinite log-probability counts +-20
      nats, an undefined one 0, both without gradient.

    Raises:
      ValueError: if shapes differ, or `alpha` or `discount` is out of range.

    References:
      Hejna et al., Contrastive Preference Learning: Learning from Human Feedback without RL, 2023
      (arXiv:2310.13639).
    """
    in_range("alpha", alpha, low=0.0, above=True)
    in_range("discount", discount, low=0.0, high=1.0)
    _checks.rank("logp", logp, 2, "[B, T]")
    _checks.same_shape("[B, T]", logp=logp, mask=mask)
    logp = finite(logp)
    steps = jnp.arange(logp.shape[1], dtype=logp.dtype)
    return alpha * sequence_sum(discount**steps * logp, mask)


def sequence_score(
    logp: Float[Array, "B T"],
    behavior_logp: Float[Array, "B T"],
    mask: Num[Array, "B T"] | Bool[Array, "B T"],
    *,
    kind: str = "log_l",
) -> Float[Array, "B"]:
    """DisCO's unclipped score of an answer, the same for right and wrong ones.

        "log_l"    mean over valid tokens of log pi
        "l_ratio"  mean over valid tokens of the ratio pi / behavior

    On-policy both have the same gradient.

    Args:
      logp: log-probabilities under the current policy, in nats, [B, T].
      behavior_logp: log-probabilities under the policy that sampled, [B, T]; stopped, and unused
        by "log_l".
      mask: 1 where a token counts, [B, T].
      kind: "log_l" or "l_ratio".

    Returns:
      Scores [B], float32 or wider; 0 for a row without a valid token (leave it out with `valid`
      of `disco`). A token that the policy excludes counts 0 in "log_l" and has ratio 0 in
      "l_ratio", both without gradient.

    Raises:
      ValueError: shapes that do not match; unknown kind.

    References:
      Li et al., DisCO: Reinforcing Large Reasoning Models with Discriminative Constrained
      Optimization, 2025 (arXiv:2505.12366).
    """
    _checks.choice("kind", kind, _KINDS)
    _checks.rank("logp", logp, 2, "[B, T]")
    _checks.same_shape("[B, T]", logp=logp, behavior_logp=behavior_logp, mask=mask)
    if kind == "log_l":
        logp = accumulate(logp)
        tokens = jnp.where(logp == -jnp.inf, 0.0, logp)
    else:
        tokens = importance_ratio(logp, behavior_logp)
    return masked_mean(tokens, mask, axis=-1)


_KINDS = ("log_l", "l_ratio")


def inpo_contrast(
    chosen_logp: Float[Array, "B"],
    rejected_logp: Float[Array, "B"],
    chosen_reference_logp: Float[Array, "B"],
    rejected_reference_logp: Float[Array, "B"],
    chosen_previous_logp: Float[Array, "B"],
    rejected_previous_logp: Float[Array, "B"],
    *,
    inverse_step: Float[Array, ""] | float,
    tau: Float[Array, ""] | float,
) -> Float[Array, "B"]:
    """How much more the policy prefers the chosen answer than its two anchors do, in nats.

    h = log policy(w) / policy(l) - (tau / s) log reference(w) / reference(l)
        - (1 - tau / s) log previous(w) / previous(l)

    with s = `inverse_step`: the average of two `preference_margin`s. With tau = s the previous
    policy does not occur, with tau = 0 the reference does not. The mirror-descent step
    `tabular.self_play_step` of step eta = 1 / s has h = (P(w beats previous) - P(l beats previous)) /
    s.

    Args:
      chosen_logp: log-probabilities of the preferred answers under the policy, SUMS over tokens;
        averages over tokens would be another method.
      rejected_logp: the same of the other answers of the pairs.
      chosen_reference_logp: under the reference; no gradient flows through it.
      rejected_reference_logp: under the reference.
      chosen_previous_logp: under the policy of the last iteration, which also drew the pairs; no
        gradient flows through it.
      rejected_previous_logp: under the policy of the last iteration.
      inverse_step: s, the reciprocal of the step of mirror descent, > 0 (0.005 in the paper, which
        calls it eta).
      tau: strength of the KL to the reference, in [0, inverse_step] (a third of it in the paper).

    Returns:
      Contrasts, [B], for `inpo`; their sign changes when the answers swap. Infinite log ratios
      count +-20 nats, undefined ones 0, both without gradient.

    Raises:
      ValueError: if shapes differ, `inverse_step` is not positive or `tau` lies outside
        [0, inverse_step].

    References:
      Zhang et al., Iterative Nash Policy Optimization, 2024 (arXiv:2407.00617), equation 6.
    """
    in_range("inverse_step", inverse_step, low=0.0, above=True)
    in_range("tau", tau, low=0.0, high=inverse_step, high_name="inverse_step")
    _checks.rank("chosen_logp", chosen_logp, 1, "[B], one value an answer")
    _checks.same_shape(
        "[B]",
        chosen_logp=chosen_logp,
        rejected_logp=rejected_logp,
        chosen_reference_logp=chosen_reference_logp,
        rejected_reference_logp=rejected_reference_logp,
        chosen_previous_logp=chosen_previous_logp,
        rejected_previous_logp=rejected_previous_logp,
    )
    pair = chosen_logp, rejected_logp
    to_reference = preference_margin(*pair, chosen_reference_logp, rejected_reference_logp)
    to_previous = preference_margin(*pair, chosen_previous_logp, rejected_previous_logp)
    weight = tau / inverse_step
    return weight * to_reference + (1.0 - weight) * to_previous


def f_dpg_pseudo_reward(
    logp: Float[Array, "B"],
    log_target: Float[Array, "B"],
    *,
    divergence: FDivergence,
    log_ratio_clip: float = 20.0,
) -> Float[Array, "B"]:
    """The reward that f-DPG follows: r = -f'(policy / target).

    Needed beside the loss for the running baseline (`running.window`) and for metrics.

    Args:
      logp: log-probabilities of whole sequences under the current policy, in nats.
      log_target: normalised log-probabilities of the same sequences under the target.
      divergence: a generator from `polgrad.divergences`.
      log_ratio_clip: bound on |log(policy / target)| before f', in nats, > 0.

    Returns:
      Pseudo-rewards, same shape, without gradient. Where both log-probabilities are minus
      infinity the log ratio counts as 0.

    Raises:
      ValueError: if shapes differ or `log_ratio_clip` is not positive.
    """
    in_range("log_ratio_clip", log_ratio_clip, low=0.0, above=True)
    _checks.rank("logp", logp, 1, "[B], one value a sequence (masking.sequence_sum)")
    _checks.same_shape("[B]", logp=logp, log_target=log_target)
    logp, log_target = jax.lax.stop_gradient((accumulate(logp), accumulate(log_target)))
    log_t = jnp.where(logp == log_target, 0.0, logp - log_target)  # -inf - -inf
    return -divergence.f_prime_log(jnp.clip(log_t, -log_ratio_clip, log_ratio_clip))


def nft_prompt_weight(
    success_rate: Float[Array, "..."], *, like: str = "dr_grpo"
) -> Float[Array, "..."]:
    """How much a question counts in `nft`: what makes it equal to a policy gradient on-policy.

        like "dr_grpo":  1 - p                  (the paper's default)
        like "grpo":     sqrt((1 - p) / p)      (standard deviation with ddof = 0)
        like "none":     1

    Args:
      success_rate: p of each question's whole group, in [0, 1].
      like: one of the three above.

    Returns:
      Weights >= 0, same shape, without gradient; 0 where all answers are right or all wrong.

    Raises:
      ValueError: unknown name.

    References:
      Chen et al., NFT, 2025 (arXiv:2505.18116).
    """
    _checks.choice("like", like, ("dr_grpo", "grpo", "none"))
    p = jax.lax.stop_gradient(accumulate(success_rate))
    mixed = (p > 0.0) & (p < 1.0)
    p = jnp.where(mixed, p, 0.5)
    weight = {"dr_grpo": 1.0 - p, "grpo": jnp.sqrt((1.0 - p) / p), "none": jnp.ones_like(p)}[like]
    return jnp.where(mixed, weight, 0.0)


def topr_weights(
    logp: Float[Array, "B"],
    behavior_logp: Float[Array, "B"],
    rewards: Float[Array, "B"],
    *,
    positive: tuple[float, float] = (1.0, 1.0),
    negative: tuple[float, float] = (0.0, 1.0),
) -> Float[Array, "B"]:
    """Importance ratios truncated to one interval for positive and another for negative rewards.

    weight = clip(policy / behavior, *positive) where reward > 0, clip(.., *negative) where
    reward < 0, and 0 where reward = 0. The intervals name the method:

      supervised on positives  (1, 1) (0, 0)      naive off-policy REINFORCE  (1, 1) (1, 1)
      full importance weights  (0, inf) (0, inf)  truncated importance        (0, 1) (0, 1)
      TOPR                     (1, 1) (0, 1)

    Args:
      logp: log-probabilities of whole sequences under the current policy, in nats.
      behavior_logp: the same under the policy that drew them.
      rewards: rewards, minus a baseline if there is one; the sign decides the class.
      positive: (low, high) limits of the ratio for positive rewards, 0 <= low <= high.
      negative: the same for negative rewards.

    Returns:
      Weights, [B], >= 0, without gradient. The log ratio is cut before the exponential, so that
      +-800 nats give exactly the limits; an infinite upper limit is in effect exp(20).

    Raises:
      ValueError: if shapes differ or a pair of limits is not 0 <= low <= high.

    References:
      Le Roux et al., Tapered Off-Policy REINFORCE, 2025 (arXiv:2503.14286), table 1.
    """
    limits("positive", positive)
    limits("negative", negative)
    _checks.rank("logp", logp, 1, "[B], one value a sequence (masking.sequence_sum)")
    _checks.same_shape("[B]", logp=logp, behavior_logp=behavior_logp, rewards=rewards)
    logp, behavior_logp, rewards = jax.lax.stop_gradient(
        tuple(map(accumulate, (logp, behavior_logp, rewards)))
    )
    difference = jnp.where(logp == behavior_logp, 0.0, logp - behavior_logp)
    up = _truncated_ratio(difference, *positive)
    down = _truncated_ratio(difference, *negative)
    return jnp.where(rewards > 0.0, up, jnp.where(rewards < 0.0, down, 0.0))


def _truncated_ratio(log_ratio: Array, low: float, high: float) -> Array:
    """exp(log_ratio) within [low, high], cut before the exponential: +-800 nats are harmless."""
    return jnp.clip(jnp.exp(jnp.minimum(log_ratio, LIMIT)), low, high)


def kto_reference_point(
    mismatched_logratio: Float[Array, "B"], *, valid: Bool[Array, "B"] | None = None
) -> Float[Array, ""]:
    """What an answer is compared with in `kto`: an estimate of KL(policy || reference).

    z0 = max(0, mean of log(policy / reference) over mismatched answers)

    with answers paired with the prompts of others, for example `jnp.roll(answers, 1, axis=0)`. A
    statistic of the batch: compute it on the whole one, before any split.

    Args:
      mismatched_logratio: log(policy / reference) of mismatched answers, sums over tokens.
      valid: False for rows that only fill the batch; None for none.

    Returns:
      The reference point in nats, >= 0, a scalar without gradient; 0 without a valid row.

    Raises:
      ValueError: if shapes differ.

    References:
      Ethayarajh et al., KTO: Model Alignment as Prospect Theoretic Optimization, 2024
      (arXiv:2402.01306).
    """
    _checks.rank("mismatched_logratio", mismatched_logratio, 1, "[B], one value an answer")
    ratios = jax.lax.stop_gradient(finite(mismatched_logratio))
    valid = jnp.ones(ratios.shape, bool) if valid is None else valid
    return jnp.maximum(masked_mean(ratios, valid), 0.0)


def density_weight(
    desirable_probability: Float[Array, "*B"], *, low: float = 0.5, high: float = 10.0
) -> Float[Array, "*B"]:
    """How much an undesirable answer counts where prompts of the two kinds differ.

        weight = clip(p / (1 - p), low, high), p = P(the prompt comes from the desirable data)

    p is what a classifier of prompts says; the ratio carries undesirable answers over to the
    prompts of desirable ones.

    Args:
      desirable_probability: p, in [0, 1], any shape.
      low: smallest weight, >= 0.
      high: largest weight, >= low.

    Returns:
      Weights in [low, high], same shape, without gradient; `high` for p = 1.

    Raises:
      ValueError: if a bound is out of range.

    References:
      Jung et al., Binary Classifier Optimization, 2024 (arXiv:2404.04656), section 3.3.
    """
    in_range("low", low, low=0.0)
    in_range("high", high, low=low, low_name="low")
    p = jax.lax.stop_gradient(accumulate(desirable_probability))
    return jnp.clip(p / jnp.maximum(1.0 - p, _TINY), low, high)


_TINY = 1e-30
