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

__all__ = [
    "VTrace",
    "difficulty_weight",
    "discounted_returns",
    "dynamic_sampling_filter",
    "gae",
    "group_relative",
    "lambda_returns",
    "leave_one_out",
    "overlong_penalty",
    "regularized_rewards",
    "reinforce_plus_plus",
    "remax",
    "success_rate",
    "vtrace",
    "whiten",
]
