"""Log-probabilities (or scores) in, unreduced losses out: minimised, never divided by a count.

Policy gradients on tokens (policy_gradient.py)
  reinforce                       score function
  ppo_clip                        clipped ratio; clip-higher, dual clip
  gspo, gspo_token                clipped sequence ratio
  cispo, sapo                     capped, softly gated ratio
"""

from polgrad.losses.policy_gradient import cispo, gspo, gspo_token, ppo_clip, reinforce, sapo

__all__ = [
    "cispo",
    "gspo",
    "gspo_token",
    "ppo_clip",
    "reinforce",
    "sapo",
]
