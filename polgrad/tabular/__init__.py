"""Exact tables: the ground truth that tests, experiments and `polgrad.conformance` compare with.

Bandits (bandits.py)
  expected_reward, policy_gradient
  kl_regularized_optimum, kl_regularized_value, reward_kl_frontier, Frontier
  forward_kl_gradient, reverse_kl_gradient, log_odds_change
  implicit_negative_policy        what a model of right answers says of wrong ones
Sequences and trees (sequences.py, trees.py)
  sequences.enumerate_sequences, sequences.token_logp
  trees.soft_tree_values          optimal values of a KL-regularised tree
  soft_value_iteration, SoftValues, segment_preference
Preference games (preference.py)
  check_preference, symmetrize_preference, debiased_preference, win_rates, policy_win_rate
  rps_game, dice_game, cycle3_game, cyclic_game, population_game, additive_game
  bradley_terry_game, bradley_terry_fit
Their equilibria (nash.py)
  nash_md_step, self_play_step, regularized_best_response, regularized_nash, duality_gap
  soft_policy_iteration, fictitious_play, spin_step, smoothed_policy, judge_pairs, SelfPlay
Groups of people (populations.py)
  maxmin_policy, maxmin_dual, MaxMin, preference_diversity
What pairs say of a policy (differential_information.py, adversarial.py)
  differential_information, information_entropy, information_entropy_estimate
  posterior_preference, power_law_policy, power_law_residual, optimal_rejected, optimal_chosen
  log_margins, dpo_pg_direction
  adversarial_reward_objective, uncovered_mass
"""

from polgrad.tabular.adversarial import adversarial_reward_objective, uncovered_mass
from polgrad.tabular.bandits import (
    Frontier,
    expected_reward,
    forward_kl_gradient,
    implicit_negative_policy,
    kl_regularized_optimum,
    kl_regularized_value,
    log_odds_change,
    policy_gradient,
    reverse_kl_gradient,
    reward_kl_frontier,
)
from polgrad.tabular.differential_information import (
    differential_information,
    dpo_pg_direction,
    information_entropy,
    information_entropy_estimate,
    log_margins,
    optimal_chosen,
    optimal_rejected,
    posterior_preference,
    power_law_policy,
    power_law_residual,
)
from polgrad.tabular.nash import (
    SelfPlay,
    duality_gap,
    fictitious_play,
    judge_pairs,
    nash_md_step,
    regularized_best_response,
    regularized_nash,
    self_play_step,
    smoothed_policy,
    soft_policy_iteration,
    spin_step,
)
from polgrad.tabular.populations import MaxMin, maxmin_dual, maxmin_policy, preference_diversity
from polgrad.tabular.preference import (
    additive_game,
    bradley_terry_fit,
    bradley_terry_game,
    check_preference,
    cycle3_game,
    cyclic_game,
    debiased_preference,
    dice_game,
    policy_win_rate,
    population_game,
    rps_game,
    symmetrize_preference,
    win_rates,
)
from polgrad.tabular.trees import SoftValues, segment_preference, soft_value_iteration

__all__ = [
    "Frontier",
    "MaxMin",
    "SelfPlay",
    "SoftValues",
    "additive_game",
    "adversarial_reward_objective",
    "bradley_terry_fit",
    "bradley_terry_game",
    "check_preference",
    "cycle3_game",
    "cyclic_game",
    "debiased_preference",
    "dice_game",
    "differential_information",
    "dpo_pg_direction",
    "duality_gap",
    "expected_reward",
    "fictitious_play",
    "forward_kl_gradient",
    "implicit_negative_policy",
    "information_entropy",
    "information_entropy_estimate",
    "judge_pairs",
    "kl_regularized_optimum",
    "kl_regularized_value",
    "log_margins",
    "log_odds_change",
    "maxmin_dual",
    "maxmin_policy",
    "nash_md_step",
    "optimal_chosen",
    "optimal_rejected",
    "policy_gradient",
    "policy_win_rate",
    "population_game",
    "posterior_preference",
    "power_law_policy",
    "power_law_residual",
    "preference_diversity",
    "regularized_best_response",
    "regularized_nash",
    "reverse_kl_gradient",
    "reward_kl_frontier",
    "rps_game",
    "segment_preference",
    "self_play_step",
    "smoothed_policy",
    "soft_policy_iteration",
    "soft_value_iteration",
    "spin_step",
    "symmetrize_preference",
    "uncovered_mass",
    "win_rates",
]
