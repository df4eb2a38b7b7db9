"""RLOO with two named policies that move and a controller, for `benchmarks/resume.py`."""

import dataclasses

import jax.numpy as jnp

from polgrad import algorithms, masking
from polgrad.contract import Average


@dataclasses.dataclass(frozen=True)
class Controlled(algorithms.RLOO):
    """The reward loses a KL to the average policy, whose strength follows the KL that is measured.

    Attributes:
      target: of the KL, in nats a token.
      decay: of the average.
    """

    target: float = 0.01
    decay: float = 0.9

    def build(self, context):
        """RLOO's functions with a state, the strength, and one more policy."""
        base = super().build(context)

        def prepare(strength, experience, key):
            distance = experience["behavior_logp"] - experience["mean_logp"]
            distance = masking.sequence_sum(distance, experience["mask"])
            rewards = experience["rewards"] - strength * distance
            _, batch, metrics = base.prepare((), {**experience, "rewards": rewards}, key)
            return strength, batch, {**metrics, "strength": strength}

        def observe(strength, metrics):
            return strength * jnp.where(metrics["kl_mean"] > self.target, 1.1, 0.95)

        return base._replace(
            init=lambda key: jnp.float32(0.1),
            prepare=prepare,
            observe=observe,
            policies={**base.policies, "mean": Average(self.decay)},
        )
