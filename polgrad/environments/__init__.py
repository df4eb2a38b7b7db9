"""Worlds small enough to live inside one compiled program: tasks that no package has, and gymnax.

Addition                        two-digit addition, for warm starts and logged data (addition.py)
CipherLadder                    levels of difficulty, each resting on the easier ones (cipher.py)
ModularSums                     easy prompts that burn the entropy that hard ones need
                                (modular_sums.py)
gymnax_worlds.make              control worlds of gymnax, which it imports only then
PeakBandit, length_rewards      a peak of reward far from the reference, or under it (peaks.py)
"""

from polgrad.environments.addition import Addition
from polgrad.environments.cipher import CipherLadder
from polgrad.environments.modular_sums import ModularSums
from polgrad.environments.peaks import PeakBandit, length_rewards

__all__ = [
    "Addition",
    "CipherLadder",
    "ModularSums",
    "PeakBandit",
    "length_rewards",
]
