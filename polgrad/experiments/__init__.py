"""Experiments: a paper's claim as a check, run over arms and seeds.

`Experiment` says what one is; `at_least`, `at_most` and `verdict` are what its `holds` is made of.
"""

from polgrad.experiments.discovery import Found, find, names
from polgrad.experiments.running import ExperimentError, Run, run
from polgrad.experiments.types import (
    Check,
    Experiment,
    Outcome,
    Paper,
    Results,
    Verdict,
    at_least,
    at_most,
    verdict,
)

__all__ = [
    "Check",
    "Experiment",
    "ExperimentError",
    "Found",
    "Outcome",
    "Paper",
    "Results",
    "Run",
    "Verdict",
    "at_least",
    "at_most",
    "find",
    "names",
    "run",
    "verdict",
]
