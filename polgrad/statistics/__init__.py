"""Figures over seeds, and what a reward costs in KL: numpy alone, no jax.

Intervals and comparisons (intervals.py)
  wilson_interval, bootstrap_interval, interquartile_mean, pass_at_k
  compare, Comparison, probability_of_improvement, seeds_needed
  main_effects, MainEffect        of the factors of an ablation
  fit_power_law, PowerLaw         scaling laws
frontiers                         reward against KL: pareto_front, at_kl, area, peak, best_of_n (frontiers.py)
"""

from polgrad.statistics import frontiers
from polgrad.statistics.intervals import (
    Comparison,
    MainEffect,
    PowerLaw,
    bootstrap_interval,
    compare,
    fit_power_law,
    interquartile_mean,
    main_effects,
    pass_at_k,
    probability_of_improvement,
    seeds_needed,
    wilson_interval,
)

__all__ = [
    "Comparison",
    "MainEffect",
    "PowerLaw",
    "bootstrap_interval",
    "compare",
    "fit_power_law",
    "frontiers",
    "interquartile_mean",
    "main_effects",
    "pass_at_k",
    "probability_of_improvement",
    "seeds_needed",
    "wilson_interval",
]
