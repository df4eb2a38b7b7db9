"""Which prompt comes next, and which sample is kept.

anna_karenina_select            all wrong samples and the first right one (balancing.py)
bandit                          categories as arms of a bandit, paid by |advantage| (bandit.py)
  init, update                    what each category pays: an exponential average
  boltzmann, normalized, epsilon_greedy
  easy_to_hard, reverse, uniform  fixed orders, to compare with
  sample_categories
  category_mean, absolute_advantage, unnormalized, progress
"""

from polgrad.curricula import bandit
from polgrad.curricula.balancing import anna_karenina_select

__all__ = ["anna_karenina_select", "bandit"]
