"""Which tokens and which samples count: masks, weights and indices; no loss.

Tokens (tokens.py)
  covariance_band, covariance_top   tokens of high covariance, for `clip_cov` and `kl_cov`
  token_covariance                  that covariance
  high_entropy                      tokens at which the policy decides
  rejection_mask                    tokens or sequences whose ratio lies within a band
  off_policy_sequence_mask          all but bad sequences that the policy makes no more
Samples and prompts (samples.py)
  filtered_weights, rank_weights    samples by their rank in the group
  best_and_random, best_and_worst   two of a group
  threshold_filter, power_weights   samples by their reward
  resample, choose                  draws by weight, with and without replacement
  anna_karenina_select              all wrong samples and the first right one
  select_by_score                   the hardest, easiest or middle prompts of a pool
  distillation_mask                 failed samples, from which a teacher can still be learned
What a filter does (analysis.py)
  filtered_policy                   the policy that a filter makes, exactly
  reward_calibration                which filter suits a reward model
"""

from polgrad.selection.analysis import filtered_policy, reward_calibration
from polgrad.selection.samples import (
    anna_karenina_select,
    best_and_random,
    best_and_worst,
    choose,
    distillation_mask,
    filtered_weights,
    power_weights,
    rank_weights,
    resample,
    select_by_score,
    threshold_filter,
)
from polgrad.selection.tokens import (
    covariance_band,
    covariance_top,
    high_entropy,
    off_policy_sequence_mask,
    rejection_mask,
    token_covariance,
)

__all__ = [
    "anna_karenina_select",
    "best_and_random",
    "best_and_worst",
    "choose",
    "covariance_band",
    "covariance_top",
    "distillation_mask",
    "filtered_policy",
    "filtered_weights",
    "high_entropy",
    "off_policy_sequence_mask",
    "power_weights",
    "rank_weights",
    "rejection_mask",
    "resample",
    "reward_calibration",
    "select_by_score",
    "threshold_filter",
    "token_covariance",
]
