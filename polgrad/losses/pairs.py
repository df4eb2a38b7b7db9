"""Losses of a pair of answers with a reference policy, for pairs that a file holds: [B].

Every function but `aot` takes two log-ratios log(policy / reference) of whole answers, the chosen one
first.

* `dpo`, `ipo`, `hinge`, `robust_dpo`, `exo`, `exponential_margin`, `linear_margin` and `discopop` see
  the pair through z = beta (chosen - rejected) alone: a term of the prompt cancels, and the
  likelihoods of both answers may fall together.
* `nca`, `bco`, `apo_zero` and `apo_down` compare each answer with the reference, so that a shift of
  both log-ratios changes them.
* `rpo` and `rpo_average` add imitation of an answer.
* `aot` compares the margins of the whole batch by their ranks: call it on the whole batch, before
  any split into micro-batches or shards.

With log-probabilities in place of log-ratios each is its form with a uniform reference. A mixture is
a sum: MPO (Wang et al. 2024, arXiv:2411.10442) is 0.8 `dpo` + 0.2 `bco` + `imitation`. Pairs that the
policy makes are in pairs_online.py, losses without a reference in reference_free.py, single labelled
answers in labels.py.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Num

from polgrad import _checks
from polgrad._dtypes import accumulate
from polgrad._scalars import in_range
from polgrad._softplus import log_sigmoid, softplus
from polgrad.losses.supervised import imitation
from polgrad.ratios import bounded, finite


def dpo(
    chosen_logratio: Float[Array, "B"],
    rejected_logratio: Float[Array, "B"],
    *,
    beta: float = 0.1,
    label_smoothing: float = 0.0,
) -> Float[Array, "B"]:
    """DPO: logistic loss on the difference of log-ratios of a chosen and a rejected answer.

    loss = -(1 - s) log sigmoid(z) - s log sigmoid(-z), z = beta (chosen - rejected), with s the
    label smoothing (conservative DPO). Its minimiser under Bradley-Terry labels is the
    KL-regularised optimum, reference exp(reward / beta) / Z. Length-normalised DPO is the same on
    means over tokens in place of sums, with a larger beta.

    Args:
      chosen_logratio: log(policy / reference) of the preferred answers, sums over tokens, in
        nats. Stop the gradient of the reference when forming it.
      rejected_logratio: the same for the other answers of the pairs.
      beta: strength of the KL to the reference, > 0 (0.1 in the paper, 0.5 for summaries).
      label_smoothing: probability that a label is wrong, in [0, 0.5].

    Returns:
      Losses, [B], >= 0, to be averaged over pairs; log 2 where policy = reference. An infinite
      log ratio counts +-20 nats, an undefined one 0, both without gradient.

    Raises:
      ValueError: if shapes differ, or `beta` or `label_smoothing` is out of range.

    References:
      Rafailov et al., Direct Preference Optimization: Your Language Model is Secretly a Reward
      Model, 2023 (arXiv:2305.18290). Mitchell, A note on DPO with noisy preferences, 2023.
    """
    chosen, rejected = finite_pair(chosen_logratio, rejected_logratio, beta)
    in_range("label_smoothing", label_smoothing, low=0.0, high=0.5)
    margin = beta * (chosen - rejected)
    # softplus(z) = softplus(-z) + z: one logarithm serves both labels.
    return softplus(-margin) + label_smoothing * margin


def ipo(
    chosen_logratio: Float[Array, "B"], rejected_logratio: Float[Array, "B"], *, beta: float = 0.1
) -> Float[Array, "B"]:
    """IPO: the difference of log-ratios of two answers, regressed on a constant.

    loss = (chosen - rejected - 1 / (2 beta))^2. Where `dpo` drives the margin of a pair that is
    always labelled one way to infinity, this one stops it at 1 / (2 beta). Its minimiser is
    reference exp(P(y beats data policy) / beta) / Z: it depends on who drew the pairs.

    Args:
      chosen_logratio: log(policy / reference) of the preferred answers, sums over tokens, in
        nats. Stop the gradient of the reference when forming it.
      rejected_logratio: the same for the other answers of the pairs.
      beta: strength of the KL to the reference, > 0 (tau in the paper).

    Returns:
      Losses, [B], >= 0, to be averaged over pairs. An infinite log ratio counts +-20 nats, an
      undefined one 0, both without gradient.

    Raises:
      ValueError: if shapes differ or `beta` is not positive.

    References:
      Azar et al., A General Theoretical Paradigm to Understand Learning from Human Preferences,
      2023 (arXiv:2310.12036).
    """
    chosen, rejected = finite_pair(chosen_logratio, rejected_logratio, beta)
    return jnp.square(chosen - rejected - 0.5 / beta)


def hinge(
    chosen_logratio: Float[Array, "B"], rejected_logratio: Float[Array, "B"], *, beta: float = 0.05
) -> Float[Array, "B"]:
    """The hinge loss of RSO (SLiC with normalised likelihoods): a margin of one is enough.

    loss = max(0, 1 - z), z = beta (chosen - rejected). For pairs whose margin should be reached
    and then left alone.

    Args:
      chosen_logratio: log(policy / reference) of the preferred answers, sums over tokens, in
        nats. Stop the gradient of the reference when forming it.
      rejected_logratio: the same for the other answers of the pairs.
      beta: strength of the KL to the reference, > 0 (gamma in the paper).

    Returns:
      Losses, [B], >= 0, to be averaged over pairs; exactly 0 without gradient for z >= 1. An
      infinite log ratio counts +-20 nats, an undefined one 0, both without gradient.

    Raises:
      ValueError: if shapes differ or `beta` is not positive.

    References:
      Liu et al., Statistical Rejection Sampling Improves Preference Optimization, 2023
      (arXiv:2309.06657).
    """
    margin = beta * _margin(chosen_logratio, rejected_logratio, beta)
    return jnp.where(margin < 1.0, 1.0 - margin, 0.0)


def robust_dpo(
    chosen_logratio: Float[Array, "B"],
    rejected_logratio: Float[Array, "B"],
    *,
    beta: float = 0.1,
    flip_rate: Float[Array, "B"] | float = 0.1,
    max_margin: float | None = None,
) -> Float[Array, "B"]:
    """Robust DPO: unbiased for `dpo` on clean labels when labels are flipped at a known rate.

    loss = [(1 - e) l(z) - e l(-z)] / (1 - 2 e) = l(z) - e / (1 - 2 e) z

    with l(z) = -log sigmoid(z), z = beta (chosen - rejected) and e the flip rate. Label smoothing
    adds e z instead: it shrinks the margin once more. The loss has NO LOWER BOUND: each pair
    keeps pushing however large its margin, so that a policy which can separate the data runs
    away unless training stops early or `max_margin` holds it. Losses below 0 are normal.

    Args:
      chosen_logratio: log(policy / reference) of the answers that the label prefers, sums over
        tokens, in nats. Stop the gradient of the reference when forming it.
      rejected_logratio: the same for the other answers of the pairs.
      beta: strength of the KL to the reference, > 0.
      flip_rate: probability that a label is reversed, in [0, 0.5); one number, or one a pair.
        The variance grows like 1 / (1 - 2 flip_rate)^2; rather under- than overstate it.
      max_margin: largest z: a pair of a larger margin counts this one, without gradient. None for
        no limit (the paper), about 10 in practice. A pair in the wrong order keeps its gradient.

    Returns:
      Losses, [B], to be averaged over pairs; `dpo` itself for flip rate 0. An infinite log ratio
      counts +-20 nats, an undefined one 0, both without gradient.

    Raises:
      ValueError: if shapes differ, or `beta`, `flip_rate` or `max_margin` is out of range.

    References:
      Ray Chowdhury et al., Provably Robust DPO: Aligning Language Models with Noisy Feedback,
      2024 (arXiv:2403.00409).
    """
    in_range("flip_rate", flip_rate, low=0.0, high=0.5, below=True)
    margin = beta * _margin(chosen_logratio, rejected_logratio, beta)
    if max_margin is not None:
        in_range("max_margin", max_margin, low=0.0, above=True)
        margin = jnp.where(margin > max_margin, max_margin, margin)
    return softplus(-margin) - flip_rate / (1.0 - 2.0 * flip_rate) * margin


def exo(
    chosen_logratio: Float[Array, "B"],
    rejected_logratio: Float[Array, "B"],
    *,
    beta: float = 0.1,
    epsilon: float = 1e-3,
) -> Float[Array, "B"]:
    """EXO: the REVERSE KL between the policy's preference and the smoothed label.

    loss = KL([q, 1 - q] || [1 - epsilon, epsilon]), q = sigmoid(beta (chosen - rejected))

    where `dpo` with label smoothing epsilon has the forward KL. It seeks a mode: for a pair
    labelled one way with probability p, z = (2 p - 1) log((1 - epsilon) / epsilon).

    Args:
      chosen_logratio: log(policy / reference) of the preferred answers, sums over tokens, in
        nats. Stop the gradient of the reference when forming it.
      rejected_logratio: the same for the other answers of the pairs.
      beta: strength of the KL to the reference, > 0.
      epsilon: smoothing of the label, in (0, 0.5]; without it the loss would be infinite.

    Returns:
      Losses, [B], >= 0 up to rounding, at most log(1 / epsilon), to be averaged over pairs. An
      infinite log ratio counts +-20 nats, an undefined one 0, both without gradient.

    Raises:
      ValueError: if shapes differ, or `beta` or `epsilon` is out of range.

    References:
      Ji et al., Towards Efficient Exact Optimization of Language Model Alignment, 2024
      (arXiv:2402.00856).
    """
    in_range("epsilon", epsilon, low=0.0, high=0.5, above=True)
    margin = beta * _margin(chosen_logratio, rejected_logratio, beta)
    # log(1 - q) = log q - z: one logarithm serves both.
    q, log_q = jax.nn.sigmoid(margin), log_sigmoid(margin)
    right = q * (log_q - jnp.log1p(-epsilon))
    return right + jax.nn.sigmoid(-margin) * (log_q - margin - jnp.log(epsilon))


def exponential_margin(
    chosen_logratio: Float[Array, "B"], rejected_logratio: Float[Array, "B"], *, beta: float = 0.1
) -> Float[Array, "B"]:
    """The exponential loss of the margin: as boosting has it, led by the worst pairs.

    loss = exp(-z), z = beta (chosen - rejected). Its minimiser for noisy pairs has half the
    margin of `dpo`, z = log(p / (1 - p)) / 2. One of the losses of SPIN and GPO.

    Args:
      chosen_logratio: log(policy / reference) of the preferred answers, sums over tokens, in
        nats. Stop the gradient of the reference when forming it.
      rejected_logratio: the same for the other answers of the pairs.
      beta: strength of the KL to the reference, > 0.

    Returns:
      Losses, [B], > 0, to be averaged over pairs; 1 where policy = reference. Margins z beyond
      +-20 count +-20, with the slope that they have there. An infinite log ratio counts +-20
      nats, an undefined one 0, both without gradient.

    Raises:
      ValueError: if shapes differ or `beta` is not positive.

    References:
      Chen et al., Self-Play Fine-Tuning Converts Weak Language Models to Strong Language Models,
      2024 (arXiv:2401.01335). Tang et al., Generalized Preference Optimization, 2024
      (arXiv:2402.05749).
    """
    return jnp.exp(-bounded(beta * _margin(chosen_logratio, rejected_logratio, beta)))


def linear_margin(
    chosen_logratio: Float[Array, "B"], rejected_logratio: Float[Array, "B"], *, beta: float = 0.1
) -> Float[Array, "B"]:
    """The margin itself: every pair has the same gradient, which never vanishes.

    loss = 1 - z, z = beta (chosen - rejected). NO LOWER BOUND: an integral probability metric
    when the policy's class is bounded, otherwise stop early. At the reference its gradient is
    twice that of `dpo`.

    Args:
      chosen_logratio: log(policy / reference) of the preferred answers, sums over tokens, in
        nats. Stop the gradient of the reference when forming it.
      rejected_logratio: the same for the other answers of the pairs.
      beta: strength of the KL to the reference, > 0.

    Returns:
      Losses, [B], to be averaged over pairs; 1 where policy = reference. An infinite log ratio
      counts +-20 nats, an undefined one 0, both without gradient.

    Raises:
      ValueError: if shapes differ or `beta` is not positive.

    References:
      Chen et al., Self-Play Fine-Tuning, 2024 (arXiv:2401.01335), equation 4.3.
    """
    return 1.0 - beta * _margin(chosen_logratio, rejected_logratio, beta)


def discopop(
    chosen_logratio: Float[Array, "B"],
    rejected_logratio: Float[Array, "B"],
    *,
    beta: float = 0.05,
    tau: float = 0.05,
) -> Float[Array, "B"]:
    """DiscoPOP, a loss found by a language model: logistic for z < 0, exponential for z > 0.

    loss = (1 - m) l(z) + m exp(-z), m = sigmoid(z / tau), z = beta (chosen - rejected)

    with l(z) = -log sigmoid(z). The blend m is differentiated too. Not convex: the loss RISES
    from about 0.7 to 1 where z crosses 0, so small steps may stall in the dip before it.

    Args:
      chosen_logratio: log(policy / reference) of the preferred answers, sums over tokens, in
        nats. Stop the gradient of the reference when forming it.
      rejected_logratio: the same for the other answers of the pairs.
      beta: strength of the KL to the reference, > 0.
      tau: width of the blend, in units of z, > 0.

    Returns:
      Losses, [B], >= 0, to be averaged over pairs; (1 + log 2) / 2 where policy = reference.
      Margins z beyond +-20 count +-20 in the exponential part, with the slope that they have
      there. An infinite log ratio counts +-20 nats, an undefined one 0, both without gradient.

    Raises:
      ValueError: if shapes differ, or `beta` or `tau` is not positive.

    References:
      Lu et al., Discovering Preference Optimization Algorithms with and for Large Language
      Models, 2024 (arXiv:2406.08414).
    """
    in_range("tau", tau, low=0.0, above=True)
    margin = beta * _margin(chosen_logratio, rejected_logratio, beta)
    near = bounded(margin)
    # m exp(-z) in one exponent: at z << 0 the factors are 0 and infinity.
    exponential = jnp.exp(log_sigmoid(near / tau) - near)
    return jax.nn.sigmoid(-margin / tau) * softplus(-margin) + exponential


def _margin(chosen_logratio: Array, rejected_logratio: Array, beta: float) -> Array:
    """The difference of two checked log-ratios, finite."""
    chosen, rejected = finite_pair(chosen_logratio, rejected_logratio, beta)
    return chosen - rejected


def nca(
    chosen_logratio: Float[Array, "B"], rejected_logratio: Float[Array, "B"], *, beta: float = 0.01
) -> Float[Array, "B"]:
    """NCA: noise-contrastive alignment of a pair, which keeps the chosen likelihood up.

    loss = l(r_w) + l(-r_w) / 2 + l(-r_l) / 2, l(x) = -log sigmoid(x), r = beta log-ratio: both
    answers also stand for noise. An answer chosen with frequency c has sigmoid(r) = c / (c + 1/2)
    at the minimum.

    Args:
      chosen_logratio: log(policy / reference) of the preferred answers, sums over tokens, in
        nats. Stop the gradient of the reference when forming it.
      rejected_logratio: the same for the other answers of the pairs.
      beta: strength of the KL to the reference, > 0.

    Returns:
      Losses, [B], > 0, to be averaged over pairs; 2 log 2 where policy = reference. An infinite
      log ratio counts +-20 nats, an undefined one 0, both without gradient.

    Raises:
      ValueError: if shapes differ or `beta` is not positive.

    References:
      Chen et al., Noise Contrastive Alignment of Language Models with Explicit Rewards, 2024
      (arXiv:2402.05369).
    """
    chosen, rejected = _rewards(chosen_logratio, rejected_logratio, beta)
    # l(-r) = l(r) + r: two logarithms serve all three terms.
    return 1.5 * softplus(-chosen) + 0.5 * (chosen + softplus(rejected))


def bco(
    chosen_logratio: Float[Array, "B"],
    rejected_logratio: Float[Array, "B"],
    *,
    beta: float = 0.01,
    reward_shift: Float[Array, ""] | float = 0.0,
) -> Float[Array, "B"]:
    """BCO on pairs: a classifier of chosen and rejected answers whose logit is the reward.

    loss = l(r_w - delta) + l(-(r_l - delta)), l(x) = -log sigmoid(x), r = beta log-ratio. An
    answer chosen with frequency c has sigmoid(r - delta) = c at the minimum.

    Args:
      chosen_logratio: log(policy / reference) of the preferred answers, sums over tokens, in
        nats. Stop the gradient of the reference when forming it.
      rejected_logratio: the same for the other answers of the pairs.
      beta: strength of the KL to the reference, > 0.
      reward_shift: delta, the mean of beta log-ratio over chosen and rejected answers so far;
        no gradient flows through it.

    Returns:
      Losses, [B], > 0, to be averaged over pairs; 2 log 2 where policy = reference without a
      shift. An infinite log ratio counts +-20 nats, an undefined one 0, both without gradient.

    Raises:
      ValueError: if shapes differ or `beta` is not positive.

    References:
      Jung et al., Binary Classifier Optimization for Large Language Model Alignment, 2024
      (arXiv:2404.04656).
    """
    chosen, rejected = _rewards(chosen_logratio, rejected_logratio, beta)
    shift = jax.lax.stop_gradient(accumulate(reward_shift))
    return softplus(shift - chosen) + softplus(rejected - shift)


def apo_zero(
    chosen_logratio: Float[Array, "B"], rejected_logratio: Float[Array, "B"], *, beta: float = 0.1
) -> Float[Array, "B"]:
    """APO-zero: the chosen answer up, the rejected one down; for answers better than the model's.

    loss = 1 - sigmoid(r_w) + sigmoid(r_l), r = beta log-ratio. It saturates: outliers have hardly
    any gradient.

    Args:
      chosen_logratio: log(policy / reference) of the preferred answers, sums over tokens, in
        nats. Stop the gradient of the reference when forming it.
      rejected_logratio: the same for the other answers of the pairs.
      beta: strength of the KL to the reference, > 0.

    Returns:
      Losses, [B], in [0, 2], to be averaged over pairs; 1 where policy = reference. An infinite
      log ratio counts +-20 nats, an undefined one 0, both without gradient.

    Raises:
      ValueError: if shapes differ or `beta` is not positive.

    References:
      D'Oosterlinck et al., Anchored Preference Optimization and Contrastive Revisions, 2024
      (arXiv:2408.06266).
    """
    chosen, rejected = _rewards(chosen_logratio, rejected_logratio, beta)
    return jax.nn.sigmoid(-chosen) + jax.nn.sigmoid(rejected)


def apo_down(
    chosen_logratio: Float[Array, "B"], rejected_logratio: Float[Array, "B"], *, beta: float = 0.1
) -> Float[Array, "B"]:
    """APO-down: both answers down, the rejected one more; for a model better than its data.

    loss = sigmoid(r_w) + 1 - sigmoid(r_w - r_l), r = beta log-ratio. At the reference the chosen
    answer has no gradient; it is pushed down once the rejected one has fallen.

    Args:
      chosen_logratio: log(policy / reference) of the preferred answers, sums over tokens, in
        nats. Stop the gradient of the reference when forming it.
      rejected_logratio: the same for the other answers of the pairs.
      beta: strength of the KL to the reference, > 0.

    Returns:
      Losses, [B], in [0, 2], to be averaged over pairs; 1 where policy = reference. An infinite
      log ratio counts +-20 nats, an undefined one 0, both without gradient.

    Raises:
      ValueError: if shapes differ or `beta` is not positive.

    References:
      D'Oosterlinck et al., Anchored Preference Optimization and Contrastive Revisions, 2024
      (arXiv:2408.06266).
    """
    chosen, rejected = _rewards(chosen_logratio, rejected_logratio, beta)
    return jax.nn.sigmoid(chosen) + jax.nn.sigmoid(rejected - chosen)


def _rewards(chosen_logratio: Array, rejected_logratio: Array, beta: float) -> tuple[Array, Array]:
    """Implicit rewards of both answers."""
    chosen, rejected = finite_pair(chosen_logratio, rejected_logratio, beta)
    return beta * chosen, beta * rejected


def aot(
    chosen_logp: Float[Array, "B"],
    rejected_logp: Float[Array, "B"],
    chosen_reference_logp: Float[Array, "B"],
    rejected_reference_logp: Float[Array, "B"],
    *,
    beta: float = 0.01,
    label_smoothing: float = 0.0,
    valid: Bool[Array, "B"] | None = None,
) -> Float[Array, "B"]:
    """AOT: the policy's margins are to exceed the reference's quantile by quantile.

    loss_i = dpo of z_i = beta (m_i - reference margin of the same rank as m_i)

    with m = log policy(chosen) - log policy(rejected): first-order stochastic dominance over the
    reference, in place of `dpo`'s comparison pair by pair. With one pair it is `dpo`.

    Args:
      chosen_logp: log-probabilities of the preferred answers under the policy, sums over tokens.
      rejected_logp: the same of the other answers of the pairs.
      chosen_reference_logp: under the reference; no gradient flows through it.
      rejected_reference_logp: under the reference; no gradient flows through it.
      beta: strength of the KL to the reference, > 0.
      label_smoothing: probability that a label is wrong, in [0, 0.5].
      valid: False for pairs that only fill the batch; they take no rank. None for no such pair.

    Returns:
      Losses, [B], >= 0, in the order of the pairs, to be averaged over the valid ones; 0 for
      others. An infinite margin counts +-20 nats, an undefined one 0, both without gradient.

    Raises:
      ValueError: if shapes differ, or `beta` or `label_smoothing` is out of range.

    References:
      Melnyk et al., Distributional Preference Alignment of LLMs via Optimal Transport, 2024
      (arXiv:2406.05882).
    """
    _checks.rank("chosen_logp", chosen_logp, 1, "[B], one value an answer")
    _checks.same_shape(
        "[B]",
        chosen_logp=chosen_logp,
        rejected_logp=rejected_logp,
        chosen_reference_logp=chosen_reference_logp,
        rejected_reference_logp=rejected_reference_logp,
    )
    policy = finite(chosen_logp) - finite(rejected_logp)
    reference = finite(chosen_reference_logp) - finite(rejected_reference_logp)
    return by_rank(policy, jax.lax.stop_gradient(reference), beta, label_smoothing, valid)


def by_rank(upper: Array, lower: Array, beta, label_smoothing, valid) -> Array:
    """`dpo` of each upper value and the lower value of its rank; invalid ones rank last."""
    if valid is None:
        valid = jnp.ones(upper.shape, bool)
    _checks.shape("valid", valid, upper.shape, "[B]")
    valid = jnp.asarray(valid) != 0
    last = lambda x: jnp.argsort(jnp.where(valid, x, jnp.inf))  # noqa: E731
    rank = jnp.argsort(last(upper))
    partner = lower[last(lower)][rank]
    return jnp.where(
        valid,
        dpo(upper, partner, beta=beta, label_smoothing=label_smoothing),
        0.0,
    )


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


def finite_pair(
    chosen_logratio: Array, rejected_logratio: Array, beta: float
) -> tuple[Array, Array]:
    """Both log-ratios, checked to be [B] and made finite; `beta` is checked to be positive."""
    _checks.rank("chosen_logratio", chosen_logratio, 1, "[B], one value an answer")
    _checks.same_shape("[B]", chosen_logratio=chosen_logratio, rejected_logratio=rejected_logratio)
    in_range("beta", beta, low=0.0, above=True)
    return finite(chosen_logratio), finite(rejected_logratio)
