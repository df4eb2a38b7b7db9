"""How far scores agree: with labels, and with each other."""

import numpy as np
from jaxtyping import Float, Int


def preference_agreement(
    first_scores: Float[np.ndarray, " n"],
    second_scores: Float[np.ndarray, " n"],
    labels: Int[np.ndarray, " n"],
) -> float:
    """Share of pairs that a score judges as the label does, ties included.

    sign(first - second) = label; a tie of the score agrees with a tie of the label alone.

    Args:
      first_scores: of the first answers of n pairs; lengths of the answers give the baseline
        that the longer one wins.
      second_scores: of the second answers.
      labels: 1 where people prefer the first, -1 the second, 0 neither.

    Returns:
      In [0, 1]; 1/2 without a pair. A pair with a score that is not a number counts as missed.

    Raises:
      ValueError: shapes that differ; another label.

    References:
      Chang et al., BLEUBERI, 2025 (arXiv:2505.11080): BLEU agrees with people in 74% of pairs,
      reward models of 8B and 27B parameters in 75 and 76%.
    """
    first, second = np.asarray(first_scores, np.float64), np.asarray(second_scores, np.float64)
    labels = np.asarray(labels)
    if first.ndim != 1 or not first.shape == second.shape == labels.shape:
        raise ValueError(
            f"first_scores has shape {list(first.shape)}, second_scores {list(second.shape)}, "
            f"labels {list(labels.shape)}; expected [n] for all"
        )
    if not np.all(np.isin(labels, (-1, 0, 1))):
        raise ValueError(f"labels has {sorted(set(labels.tolist()))}, expected -1, 0 and 1 alone")
    if not labels.size:
        return 0.5
    judged = np.where(first > second, 1, np.where(first < second, -1, 0))
    known = ~(np.isnan(first) | np.isnan(second))
    return float(np.mean(known & (judged == labels)))


def standardized_mean(scores: Float[np.ndarray, "M n"]) -> Float[np.ndarray, " n"]:
    """Mean of several scores of the same answers, each in its own standard deviations.

        mean over m of (score_m - mean score_m) / std score_m

    Over a whole evaluation set; for rewards of a group, `advantages.group_relative` of each.

    Args:
      scores: M metrics of n answers, [M, n], finite.

    Returns:
      [n]; a metric that does not vary adds 0.

    Raises:
      ValueError: a shape other than [M, n] with M >= 1 and n >= 1.

    References:
      Chang et al., BLEUBERI, 2025 (arXiv:2505.11080): BLEU with a reward model.
    """
    scores = np.asarray(scores, np.float64)
    if scores.ndim != 2 or not scores.size:
        raise ValueError(f"scores has shape {list(scores.shape)}, expected [M, n], not empty")
    centred = scores - scores.mean(axis=1, keepdims=True)
    deviation = scores.std(axis=1, keepdims=True)
    varies = np.ptp(scores, axis=1, keepdims=True) > 0.0
    return np.mean(np.where(varies, centred / np.where(varies, deviation, 1.0), 0.0), axis=0)
