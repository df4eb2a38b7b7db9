"""Log-probabilities (or scores) in, unreduced losses out: minimised, never divided by a count.

Policy gradients on tokens (policy_gradient.py)
  reinforce                       score function
  ppo_clip                        clipped ratio; clip-higher, dual clip
  gspo, gspo_token                clipped sequence ratio
  cispo, sapo                     capped, softly gated ratio
The entropy mechanism (entropy_mechanism.py), on tokens that `polgrad.selection` picks
  clip_cov, kl_cov                leave out, or hold, tokens of high covariance
Policy gradients on whole sequences
  topr, topr_weights              REINFORCE on logged data, tapered weights (topr.py)
  f_dpg, f_dpg_pseudo_reward      any f-divergence to a target (f_dpg.py)
  targets                         such targets, their normaliser and baseline (targets.py)
  nash_md                         preferences against an opponent (nash_md.py)
Right and wrong answers to a question
  disco, disco_b                  a ranking of scores (disco.py)
  sequence_score                  what they rank
  kl_hinge, behavior_kl           and the bound that holds the policy near its samples
  nft, nft_prompt_weight          likelihood of both, the wrong ones by an implicit policy (nft.py)
  implicit_negative_policy        that policy, in a table
Preference pairs and rankings (dpo.py)
  dpo, plackett_luce              logistic losses of two, of K answers
  ipo                             squared loss of two answers
  implicit_reward, preference_margin
  unlikelihood                    of tokens to avoid (unlikelihood.py)
Scored pairs and groups (copg.py)
  copg, copg_group                policy gradient off-policy, a partner as the baseline
Self-play on preference pairs (inpo.py)
  inpo, inpo_contrast             mirror descent with a reference, as a regression
  sppo                            multiplicative weights, as a regression
Terms beside the policy's
  kl_penalty                      KL to a reference (kl.py)
  value_loss, td_loss             critics (value.py)
Weights and masks for a sampler that is not quite the policy (correction.py)
  truncated_importance_weights    token or sequence ratios, truncated or masked
  off_policy_sequence_mask        drops bad sequences that the policy has left
"""

from polgrad.losses import targets
from polgrad.losses.copg import copg, copg_group
from polgrad.losses.correction import off_policy_sequence_mask, truncated_importance_weights
from polgrad.losses.disco import behavior_kl, disco, disco_b, kl_hinge, sequence_score
from polgrad.losses.dpo import dpo, implicit_reward, ipo, plackett_luce, preference_margin
from polgrad.losses.entropy_mechanism import clip_cov, kl_cov
from polgrad.losses.f_dpg import f_dpg, f_dpg_pseudo_reward
from polgrad.losses.inpo import inpo, inpo_contrast, sppo
from polgrad.losses.kl import kl_penalty
from polgrad.losses.nash_md import nash_md
from polgrad.losses.nft import implicit_negative_policy, nft, nft_prompt_weight
from polgrad.losses.policy_gradient import cispo, gspo, gspo_token, ppo_clip, reinforce, sapo
from polgrad.losses.topr import (
    baseline_for_fraction,
    effective_positive_fraction,
    topr,
    topr_weights,
)
from polgrad.losses.unlikelihood import unlikelihood
from polgrad.losses.value import td_loss, value_loss

__all__ = [
    "baseline_for_fraction",
    "behavior_kl",
    "cispo",
    "clip_cov",
    "copg",
    "copg_group",
    "disco",
    "disco_b",
    "dpo",
    "effective_positive_fraction",
    "f_dpg",
    "f_dpg_pseudo_reward",
    "gspo",
    "gspo_token",
    "implicit_negative_policy",
    "implicit_reward",
    "inpo",
    "inpo_contrast",
    "ipo",
    "kl_cov",
    "kl_hinge",
    "kl_penalty",
    "nash_md",
    "nft",
    "nft_prompt_weight",
    "off_policy_sequence_mask",
    "plackett_luce",
    "ppo_clip",
    "preference_margin",
    "reinforce",
    "sapo",
    "sequence_score",
    "sppo",
    "targets",
    "td_loss",
    "topr",
    "topr_weights",
    "truncated_importance_weights",
    "unlikelihood",
    "value_loss",
]
