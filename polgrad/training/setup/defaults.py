"""Settings that a user leaves out, chosen by the kind of policy and of data.

A small policy that is trained from nothing takes large steps on short texts. Pretrained weights
take rates a hundred times smaller: at 1e-3 a few updates destroy them.
"""

import dataclasses
from typing import Any, NamedTuple

from polgrad.contract import Algorithm, Pair
from polgrad.training.config import TrainConfig

LARGE = 1_000_000_000
"""Parameters from which the smaller of two learning rates is taken."""

SMALL_POLICY = {
    "rollouts.prompts": 64,
    "optimizer.learning_rate": 1e-3,
    "optimizer.schedule": "constant",
    "optimizer.warmup": 0,
    "warm_start.optimizer.learning_rate": 1e-3,
    "warm_start.optimizer.warmup": 0,
}
TOKENS = {"small": 8, "pretrained": 256}
"""Longest completion that a policy samples."""

# Below a billion parameters, and from there on: the rates of the users of TRL and verl.
RATES = {"rollouts": (1e-5, 1e-6), "pairs": (1e-5, 1e-6), "demonstrations": (2e-5, 1e-5)}
WARMUP = 0.05
"""Share of the updates over which the rate of a pretrained policy rises."""


def kind_of(algorithm: Algorithm) -> str:
    """What an algorithm learns from: `"rollouts"`, `"pairs"` or `"demonstrations"`."""
    if algorithm.samples:
        return "rollouts"
    return "pairs" if isinstance(algorithm.unit, Pair) else "demonstrations"


class Chosen(NamedTuple):
    """Settings with what was left out filled in, and the line that names it."""

    config: TrainConfig
    line: str | None


def choose(
    config: TrainConfig, algorithm: Algorithm, *, parameters: int, context: int, longest: int | None
) -> Chosen:
    """Fills in what the user left out.

    Args:
      config: the settings as given.
      algorithm: what it learns from decides the rates.
      parameters: how many parameters the policy has.
      context: longest sequence of the policy, in tokens.
      longest: tokens of the longest completion in the data, for algorithms that read completions.

    Returns:
      The settings with batch, completion length, learning rates and schedules filled in, and a line
      for the user; None where nothing was left out.
    """
    pretrained = config.policy != "small"
    wanted = (
        _pretrained(config, kind_of(algorithm), parameters) if pretrained else dict(SMALL_POLICY)
    )
    wanted["rollouts.max_tokens"] = longest or _tokens(pretrained, context)
    taken = {name: value for name, value in wanted.items() if _get(config, name) is None}
    for name, value in taken.items():
        config = _set(config, name, value)
    # A warm start that is not asked for needs no words.
    said = {k: v for k, v in taken.items() if config.warm_start.steps or "warm_start" not in k}
    if not said:
        return Chosen(config, None)
    kind = f"pretrained weights of {parameters:,} parameters" if pretrained else "a small policy"
    flags = ", ".join(f"--{_flag(name)} {value}" for name, value in said.items())
    return Chosen(config, f"defaults for {kind}: {flags}")


def _tokens(pretrained: bool, context: int) -> int:
    if not pretrained:
        return TOKENS["small"]
    # A short context leaves half of it to the prompt.
    return max(1, min(TOKENS["pretrained"], context // 2))


def _pretrained(config: TrainConfig, kind: str, parameters: int) -> dict[str, Any]:
    rates = {name: pair[parameters >= LARGE] for name, pair in RATES.items()}
    updates = config.steps * config.update.epochs * config.update.mini_batches
    return {
        "rollouts.prompts": 16 if kind == "rollouts" else 32,
        "optimizer.learning_rate": rates[kind],
        "optimizer.schedule": "linear",
        "optimizer.warmup": max(1, round(WARMUP * updates)),
        "warm_start.optimizer.learning_rate": rates["demonstrations"],
        "warm_start.optimizer.warmup": max(1, round(WARMUP * config.warm_start.steps)),
    }


def _flag(name: str) -> str:
    return name.replace("_", "-")


def _get(settings: Any, name: str) -> Any:
    for part in name.split("."):
        settings = getattr(settings, part)
    return settings


def _set(settings: Any, name: str, value: Any) -> Any:
    first, dot, rest = name.partition(".")
    return dataclasses.replace(
        settings, **{first: _set(getattr(settings, first), rest, value) if dot else value}
    )
