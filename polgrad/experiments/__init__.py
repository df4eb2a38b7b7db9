"""Experiments: a paper's claim as a check, run over arms and seeds.

`Experiment` says what one is; `at_least`, `at_most` and `verdict` are what its `holds` is made of;
`record` shows from inside of an arm how far it is.
"""

from polgrad.experiments.discovery import Found, find, names
from polgrad.experiments.recording import record
from polgrad.experiments.running import ExperimentError, Run, run
from polgrad.experiments.types import (
    Check,
    Experiment,
    HostArm,
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
    "HostArm",
    "Outcome",
    "Paper",
    "Results",
    "Run",
    "Verdict",
    "at_least",
    "at_most",
    "find",
    "names",
    "record",
    "run",
    "verdict",
]
