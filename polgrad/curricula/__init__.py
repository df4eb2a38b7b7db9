"""Which prompt comes next, and which sample is kept.

anna_karenina_select            all wrong samples and the first right one (balancing.py)
select_by_score                 the hardest, easiest or middle prompts of a pool (by_score.py)
replay_order                    a recorded stream, in order or shuffled in windows (replay.py)
Starts inside of recorded answers (resets.py)
  prefix_lengths, reset_prompts, forced_tokens, join_prefix
  reset_states                    of simulators
Pairs and triples of a prompt's samples (pairs.py)
  large_margin_pairs              all that lie far enough apart
  knockout_pair                   best and worst by a tournament
  reference_triples, policy_pairs for a reward model that compares with a reference
  mix_replay                      a few pairs of earlier iterations
  judge_scores                    labels of a noisy judge
sample_segments                 windows of trajectories, to be compared (segments.py)
bandit                          categories as arms of a bandit, paid by |advantage| (bandit.py)
  init, update                    what each category pays: an exponential average
  boltzmann, normalized, epsilon_greedy
  easy_to_hard, reverse, uniform  fixed orders, to compare with
  sample_categories
  category_mean, absolute_advantage, unnormalized, progress
windows                         the same with recent payments and a bonus for rare visits (windows.py)
  init, push, mean, ucb_scores, update
Curricula as settings, for `small.run` (arms.py)
  SEC, DUMP                       the two bandits, `bandit` and `windows`
  Boltzmann, Normalized, EpsilonGreedy
                                  how SEC chooses by its values
  Uniform, EasyToHard, Reverse    fixed orders
filtration                      samples whose reward can be trusted, by their rank (filtration.py)
  rank_weights, filtered_weights
  best_and_random, best_and_worst, threshold_filter, power_weights, resample, choose
filtered_policy                 the policy that this amounts to, exactly (filter_analysis.py)
reward_calibration              which filter suits a reward model
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
from polgrad.data.preferences import (
    Segments,
    judge_scores,
    knockout_pair,
    large_margin_pairs,
    mix_replay,
    replay_order,
    sample_segments,
)
from polgrad.reward_models.policy_discrimination import Triple, policy_pairs, reference_triples
from polgrad.rollouts.resets import (
    ForcedTokens,
    JoinedAnswers,
    ResetPrompts,
    forced_tokens,
    join_prefix,
    prefix_lengths,
    reset_prompts,
    reset_states,
)
from polgrad.selection.analysis import filtered_policy, reward_calibration
from polgrad.selection.samples import anna_karenina_select, select_by_score

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
