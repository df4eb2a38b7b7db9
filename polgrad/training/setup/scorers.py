"""What scores the samples of a run, and the held-out problems."""

from typing import Any

from polgrad import data
from polgrad.contract import Algorithm
from polgrad.rewards import compose, verifiers
from polgrad.rewards.compose import RewardSpec
from polgrad.rewards.pool import RewardFailure, RewardPool
from polgrad.training.config import Rewards, TrainConfig
from polgrad.training.setup import run_files

VERIFIERS = "polgrad.rewards.verifiers"


def task_specs(config: TrainConfig, source: data.Source) -> tuple[RewardSpec, ...]:
    """What scores held-out problems.

    A task of reasoning-gym has a scorer of its own. The answers of a file are compared by the one
    reward that compares answers, where the run has one, and else exactly.
    """
    if "answer" not in source[0]:
        return ()
    if not run_files.is_file(config.task):
        return (RewardSpec(target=f"{VERIFIERS}:reasoning_gym_score"),)
    compared = [f"{VERIFIERS}:{name}" for name in verifiers.READS_ANSWERS]
    chosen = [target for target in config.rewards.functions if target in compared]
    return (RewardSpec(target=chosen[0] if len(chosen) == 1 else f"{VERIFIERS}:exact_match"),)


def find_specs(
    config: TrainConfig, algorithm: Algorithm, train: data.Source
) -> tuple[tuple[RewardSpec, ...], tuple[RewardSpec, ...]]:
    """What scores the samples of training, and what scores held-out problems."""
    task = task_specs(config, train)
    specs = tuple(RewardSpec(target=f) for f in config.rewards.functions) or task
    if config.rewards.preference:
        specs = (RewardSpec(target=config.rewards.preference),)
    if algorithm.samples and not specs:
        pairs = ", or take --algorithm dpo, which learns from pairs" if "chosen" in train[0] else ""
        raise ValueError(
            f"task {config.task} has no answers to check against; give --rewards.functions{pairs}"
        )
    return specs, task


def check_rewards(settings: Rewards, specs: tuple[RewardSpec, ...]) -> None:
    """Every reward is there and can be called; people's own is imported in a process of its own."""
    theirs = []
    for spec in specs:
        if spec.target.partition(".")[0] == "polgrad":
            compose.resolve(spec.target)
        else:
            theirs.append(spec)
    if not theirs:
        return
    try:
        with RewardPool(theirs, **worker_settings(settings)) as pool:
            pool.wait_ready()
    except RewardFailure as error:
        raise ValueError(str(error)) from None


def worker_settings(settings: Rewards) -> dict[str, Any]:
    """What the settings of a run say of a reward's process, as keywords of `RewardPool`."""
    return {
        "timeout": settings.timeout,
        "memory": None if settings.memory is None else settings.memory * 2**20,
        "environment": settings.environment,
    }
