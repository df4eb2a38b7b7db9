"""Rewards (and values) in, advantages out: pure functions of arrays.

Along time (returns.py)                     From a group or a batch (groups.py)
  discounted_returns   sums of rewards        group_relative        GRPO, Dr. GRPO, batch std
  lambda_returns       TD(lambda) targets     leave_one_out         RLOO
  gae                  GAE                    remax                 greedy baseline
  vtrace               IMPALA, off-policy     reinforce_plus_plus   whitened token returns
                                              whiten                unit variance over a batch
                                              success_rate, difficulty_weight
Before they become advantages (shaping.py)
  overlong_penalty, dynamic_sampling_filter   DAPO
  regularized_rewards                         the KL to a reference as a price
Rewards of tokens (token_rewards.py)
  place_at_last, missing_eos_reward           a score at the last token
  kl_token_rewards, kl_shaped_rewards         the price of the KL, PPO's reward in RLHF
  dpo_token_rewards, rto_rewards              a preference-trained policy as a dense reward
  delay_to_last, delay_to_delimiters, shape_to_zero   the same sum, paid elsewhere
"""

from polgrad.advantages.groups import (
    difficulty_weight,
    group_relative,
    leave_one_out,
    reinforce_plus_plus,
    remax,
    success_rate,
    whiten,
)
from polgrad.advantages.returns import (
    VTrace,
    discounted_returns,
    gae,
    lambda_returns,
    vtrace,
)
from polgrad.advantages.shaping import (
    dynamic_sampling_filter,
    overlong_penalty,
    regularized_rewards,
)
from polgrad.advantages.token_rewards import (
    delay_to_delimiters,
    delay_to_last,
    dpo_token_rewards,
    kl_shaped_rewards,
    kl_token_rewards,
    missing_eos_reward,
    place_at_last,
    rto_rewards,
    shape_to_zero,
)

__all__ = [
    "VTrace",
    "delay_to_delimiters",
    "delay_to_last",
    "difficulty_weight",
    "discounted_returns",
    "dpo_token_rewards",
    "dynamic_sampling_filter",
    "gae",
    "group_relative",
    "kl_shaped_rewards",
    "kl_token_rewards",
    "lambda_returns",
    "leave_one_out",
    "missing_eos_reward",
    "overlong_penalty",
    "place_at_last",
    "regularized_rewards",
    "reinforce_plus_plus",
    "remax",
    "rto_rewards",
    "shape_to_zero",
    "success_rate",
    "vtrace",
    "whiten",
]
