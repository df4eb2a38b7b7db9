"""Which prompt comes next.

Curricula as settings, for `small.run` (arms.py)
  SEC, DUMP                       the two bandits below
  Boltzmann, Normalized, EpsilonGreedy
                                  how SEC chooses by its values
  Uniform, EasyToHard, Reverse    fixed orders
bandit                          categories as arms of a bandit, paid by |advantage| (bandit.py)
  init, update                    what each category pays: an exponential average
  boltzmann, normalized, epsilon_greedy
  easy_to_hard, reverse, uniform  fixed orders, to compare with
  sample_categories
  category_mean, absolute_advantage, unnormalized, progress
windows                         the same with recent payments and a bonus for rare visits (windows.py)
  init, push, mean, ucb_scores, update

Which sample is kept is in `polgrad.selection`, pairs of samples in `polgrad.data.preferences`, starts
inside of recorded answers in `polgrad.rollouts.resets`.
"""

from polgrad.curricula import bandit, windows
from polgrad.curricula.arms import (
    DUMP,
    SEC,
    Boltzmann,
    EasyToHard,
    EpsilonGreedy,
    Normalized,
    Reverse,
    Uniform,
)

__all__ = [
    "DUMP",
    "SEC",
    "Boltzmann",
    "EasyToHard",
    "EpsilonGreedy",
    "Normalized",
    "Reverse",
    "Uniform",
    "bandit",
    "windows",
]
