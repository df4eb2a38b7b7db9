"""Log-probabilities (or scores) in, unreduced losses out: minimised, never divided by a count.

Policy gradients on tokens (policy_gradient.py)
  reinforce                       score function
  ppo_clip                        clipped ratio; clip-higher, dual clip
  gspo, gspo_token                clipped sequence ratio
  cispo, sapo                     capped, softly gated ratio
The entropy mechanism (entropy_mechanism.py), on tokens that `polgrad.selection` picks
  clip_cov, kl_cov                leave out, or hold, tokens of high covariance
Terms beside the policy's
  kl_penalty                      KL to a reference (kl.py)
  value_loss, td_loss             critics (value.py)
Weights and masks for a sampler that is not quite the policy (correction.py)
  truncated_importance_weights    token or sequence ratios, truncated or masked
  off_policy_sequence_mask        drops bad sequences that the policy has left
"""

from polgrad.losses.correction import off_policy_sequence_mask, truncated_importance_weights
from polgrad.losses.entropy_mechanism import clip_cov, kl_cov
from polgrad.losses.kl import kl_penalty
from polgrad.losses.policy_gradient import cispo, gspo, gspo_token, ppo_clip, reinforce, sapo
from polgrad.losses.value import td_loss, value_loss

__all__ = [
    "cispo",
    "clip_cov",
    "gspo",
    "gspo_token",
    "kl_cov",
    "kl_penalty",
    "off_policy_sequence_mask",
    "ppo_clip",
    "reinforce",
    "sapo",
    "td_loss",
    "truncated_importance_weights",
    "value_loss",
]
