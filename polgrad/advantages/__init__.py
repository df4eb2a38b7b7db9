"""Rewards (and values) in, advantages out: pure functions of arrays.

Along time (returns.py)                     From a group or a batch (groups.py)
  discounted_returns   sums of rewards        group_relative        GRPO, Dr. GRPO, batch std
  lambda_returns       TD(lambda) targets     leave_one_out         RLOO
  gae                  GAE                    remax                 greedy baseline
  vtrace               IMPALA, off-policy     reinforce_plus_plus   whitened token returns
                                              whiten                unit variance over a batch
                                              success_rate, difficulty_weight
                                              above_worst   no push downwards
Further baselines (baselines.py)
  opo, gpg             weighted by length; scaled up for groups that teach nothing
  pass_at_k            what a sample adds to the best of its group
  gdpo                 several rewards, each normalised
  batch_baseline       REINFORCE's mean of the batch
  moving_average_baseline   a mean of earlier batches (`polgrad.running`)
  effective_positive_fraction, baseline_for_fraction   what a baseline does to data of +-1
Before they become advantages (shaping.py)
  overlong_penalty, overlong_filter, dynamic_sampling_filter   DAPO
  regularized_rewards                         the KL to a reference as a price
  structured_reward                           a part for the form, a part for the answer
Rewards of tokens (token_rewards.py)
  place_at_last, missing_eos_reward           a score at the last token
  kl_token_rewards, kl_shaped_rewards         the price of the KL, PPO's reward in RLHF
  dpo_token_rewards, rto_rewards              a preference-trained policy as a dense reward
  teacher_log_ratio, distillation_advantages  a teacher as a dense reward
  delay_to_last, delay_to_delimiters, shape_to_zero   the same sum, paid elsewhere
"""

from polgrad.advantages.baselines import (
    baseline_for_fraction,
    batch_baseline,
    effective_positive_fraction,
    gdpo,
    gpg,
    moving_average_baseline,
    opo,
    pass_at_k,
)
from polgrad.advantages.groups import (
    above_worst,
    difficulty_weight,
    group_relative,
    leave_one_out,
    reinforce_plus_plus,
    remax,
    success_rate,
    whiten,
)
from polgrad.advantages.returns import VTrace, discounted_returns, gae, lambda_returns, vtrace
from polgrad.advantages.shaping import (
    dynamic_sampling_filter,
    overlong_filter,
    overlong_penalty,
    regularized_rewards,
    structured_reward,
)
from polgrad.advantages.token_rewards import (
    delay_to_delimiters,
    delay_to_last,
    distillation_advantages,
    dpo_token_rewards,
    kl_shaped_rewards,
    kl_token_rewards,
    missing_eos_reward,
    place_at_last,
    rto_rewards,
    shape_to_zero,
    teacher_log_ratio,
)

__all__ = [
    "VTrace",
    "above_worst",
    "baseline_for_fraction",
    "batch_baseline",
    "delay_to_delimiters",
    "delay_to_last",
    "difficulty_weight",
    "discounted_returns",
    "distillation_advantages",
    "dpo_token_rewards",
    "dynamic_sampling_filter",
    "effective_positive_fraction",
    "gae",
    "gdpo",
    "gpg",
    "group_relative",
    "kl_shaped_rewards",
    "kl_token_rewards",
    "lambda_returns",
    "leave_one_out",
    "missing_eos_reward",
    "moving_average_baseline",
    "opo",
    "overlong_filter",
    "overlong_penalty",
    "pass_at_k",
    "place_at_last",
    "regularized_rewards",
    "reinforce_plus_plus",
    "remax",
    "rto_rewards",
    "shape_to_zero",
    "structured_reward",
    "success_rate",
    "teacher_log_ratio",
    "vtrace",
    "whiten",
]
