"""Whole runs of an algorithm on a small policy and a small task, in one compiled program.

    settings = algorithms.GRPO(clip_high=0.28)
    run = functools.partial(
        small.run, settings=settings, policy=policy, task=task, schedule=schedule,
        optimizer=optax.adam(1e-3), evaluate=evaluate,
    )
    params, curves = jax.jit(jax.vmap(run))(jax.random.split(jax.random.key(0), 16))

The settings are those of `polgrad train`, and so are the algorithm, its mini-batches, its named
policies and its update: what is found here is found of the object that users train. A small policy
draws its samples by their position in the batch where that is faster, and not by prompt and sample.

The samples of another policy are a `Log`; demonstrations and ready pairs are `Answers`.
"""

from polgrad.small import bigrams
from polgrad.small.data import Answers, Log, imitate
from polgrad.small.networks import AutoregressiveMLP, FactorizedMLP, PositionTable
from polgrad.small.policies import (
    FeaturePolicy,
    NetworkPolicy,
    Policy,
    Probe,
    probe,
)
from polgrad.small.running import Program, Schedule, pick, program, run
from polgrad.small.tables import BigramPolicy, TablePolicy
from polgrad.small.tasks import (
    Addition,
    CipherLadder,
    Listed,
    ModularSums,
    OneQuestion,
    PeakBandit,
    Task,
    length_rewards,
)

__all__ = [
    "Addition",
    "Answers",
    "AutoregressiveMLP",
    "BigramPolicy",
    "CipherLadder",
    "FactorizedMLP",
    "FeaturePolicy",
    "Listed",
    "Log",
    "ModularSums",
    "NetworkPolicy",
    "OneQuestion",
    "PeakBandit",
    "Policy",
    "PositionTable",
    "Probe",
    "Program",
    "Schedule",
    "TablePolicy",
    "Task",
    "bigrams",
    "imitate",
    "length_rewards",
    "pick",
    "probe",
    "program",
    "run",
]
