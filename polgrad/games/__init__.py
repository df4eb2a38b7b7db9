"""Exact tabular objects: the ground truth that tests and experiments compare with."""

from polgrad.games.bandits import (
    Frontier,
    expected_reward,
    kl_regularized_optimum,
    kl_regularized_value,
    policy_gradient,
    reward_kl_frontier,
)
from polgrad.games.nash_md import (
    duality_gap,
    nash_md_step,
    regularized_best_response,
    regularized_nash,
    self_play_step,
)
from polgrad.games.preference import (
    additive_game,
    bradley_terry_fit,
    bradley_terry_game,
    check_preference,
    cycle3_game,
    cyclic_game,
    dice_game,
    policy_win_rate,
    population_game,
    rps_game,
    symmetrize_preference,
    win_rates,
)

__all__ = [
    "Frontier",
    "additive_game",
    "bradley_terry_fit",
    "bradley_terry_game",
    "check_preference",
    "cycle3_game",
    "cyclic_game",
    "dice_game",
    "duality_gap",
    "expected_reward",
    "kl_regularized_optimum",
    "kl_regularized_value",
    "nash_md_step",
    "policy_gradient",
    "policy_win_rate",
    "population_game",
    "regularized_best_response",
    "regularized_nash",
    "reward_kl_frontier",
    "rps_game",
    "self_play_step",
    "symmetrize_preference",
    "win_rates",
]
