"""What a run's own metrics say is wrong with it, in a line for the user, each said once."""

import collections
import math
from collections.abc import Mapping

from polgrad.training.config import TrainConfig

COLLAPSE_STEPS, COLLAPSE_SHARE = 5, 0.25
"""Entropy that falls below this share of its value within so many steps has collapsed."""
SILENT_STEPS = 10
"""Steps in a row with a gradient of exactly 0 before a line says so."""


class Watch:
    """Looks at the metrics of each step.

    Args:
      config: the run's settings, all filled in.
    """

    def __init__(self, config: TrainConfig):
        self._config = config
        self._entropies: collections.deque[float] = collections.deque(maxlen=COLLAPSE_STEPS + 1)
        self._without_gradient = self._with_gradient = 0
        self._steps = self._without_reward = self._updates_skipped = 0
        self._said: set[str] = set()
        self._alike, self._reward = False, math.nan
        self._first: int | None = None

    def lines(self, step: int, metrics: Mapping[str, float]) -> list[str]:
        """Warnings that this step gives rise to.

        Args:
          step: its number.
          metrics: its metrics.

        Returns:
          Sentences, each at most once a run.
        """
        self._first = step if self._first is None else self._first
        self._count(metrics)
        found = {
            "length": self._length(metrics),
            "entropy": self._entropy(metrics),
            "gradient": self._gradient(metrics),
            "skipped": self._skipped(metrics),
        }
        new = {kind: text for kind, text in found.items() if text and kind not in self._said}
        self._said |= new.keys()
        return [f"warning: step {step}: {text}" for text in new.values()]

    def _count(self, metrics: Mapping[str, float]) -> None:
        self._steps += 1
        reward = metrics.get("reward_mean", 0.0)
        self._without_reward += math.isnan(reward) and metrics.get("invalid_rewards", 0) > 0
        self._updates_skipped += int(metrics.get("skipped_updates", 0))

    def end(self) -> str | None:
        """Why these steps as a whole have taught nothing, or next to nothing; None where they may have."""
        if not self._steps:
            return None
        update = self._config.update
        updates = self._steps * update.epochs * update.mini_batches
        if self._without_reward == self._steps:
            return (
                f"warning: {self._whole()} learned nothing: every reward was invalid in each of its "
                f"{self._steps} steps; samples.jsonl has the reasons"
            )
        if self._without_gradient and not self._with_gradient:
            return (
                f"warning: {self._whole()} learned nothing: the gradient was exactly 0 in every step"
                f"{self._why()}"
            )
        if 2 * self._updates_skipped > updates:
            return (
                f"warning: {self._updates_skipped} of {updates} updates were skipped because their "
                "loss or gradient was not finite (lower --optimizer.learning-rate, now "
                f"{self._config.optimizer.learning_rate:g})"
            )
        return None

    def _whole(self) -> str:
        """What was watched: a run that goes on was watched by another command before."""
        return "the run" if self._first == 1 else f"the run from step {self._first} on"

    def _length(self, metrics: Mapping[str, float]) -> str | None:
        if metrics.get("stopped") != 0.0:
            return None
        return (
            "no sample ended before the length limit of rollouts.max_tokens "
            f"{self._config.rollouts.max_tokens}; answers may be cut off "
            "(raise --rollouts.max-tokens)"
        )

    def _entropy(self, metrics: Mapping[str, float]) -> str | None:
        entropy = metrics.get("entropy")
        if entropy is None:
            return None
        self._entropies.append(entropy)
        highest = max(self._entropies)
        if not entropy < COLLAPSE_SHARE * highest:
            return None
        steps = len(self._entropies) - 1 - self._entropies.index(highest)
        return (
            f"entropy fell from {highest:.3g} to {entropy:.3g} nats in {steps} "
            f"step{'s' if steps > 1 else ''}; samples become alike (lower "
            f"--optimizer.learning-rate, now {self._config.optimizer.learning_rate:g})"
        )

    def _gradient(self, metrics: Mapping[str, float]) -> str | None:
        silent = metrics.get("gradient_norm") == 0.0
        self._without_gradient = self._without_gradient + 1 if silent else 0
        self._with_gradient += not silent
        self._alike = metrics.get("uniform_groups") == 1.0
        self._reward = metrics.get("reward_mean", math.nan)
        if self._without_gradient < SILENT_STEPS:
            return None
        return f"the gradient was exactly 0 in the last {SILENT_STEPS} steps{self._why()}"

    def _why(self) -> str:
        if not self._alike:
            return ""
        if self._reward > 0:
            return (
                f"; in every group all rewards were equal (mean reward {self._reward:.3g}): harder "
                "problems, or a reward that tells good samples from better ones, help"
            )
        return (
            "; in every group all rewards were equal. The policy must solve some problems sometimes: "
            "a warm start (--warm-start.steps), easier problems, larger groups or a reward for a "
            "part of the answer help"
        )

    def _skipped(self, metrics: Mapping[str, float]) -> str | None:
        skipped = metrics.get("skipped_updates", 0.0)
        if not skipped:
            return None
        return f"{skipped:.0f} updates were skipped because their loss or gradient was not finite"
