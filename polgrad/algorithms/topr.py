"""TOPR (Le Roux et al. 2025, arXiv:2503.14286): REINFORCE with tapered importance weights."""

import dataclasses

import jax.numpy as jnp

from polgrad import losses, masking
from polgrad._scalars import in_range
from polgrad.algorithms import common
from polgrad.contract import Algorithm, Context


@dataclasses.dataclass(frozen=True)
class TOPR:
    """Tapered off-policy REINFORCE on whole sequences.

    Attributes:
      baseline: subtracted from the reward; the sign that is left decides the class.
      scale: multiplies what is left, above 0, so that rewards 0 and 1 with baseline 0.5 become -1 and 1.
      positive: lower and upper limit of the ratio where the reward is positive.
      negative: the same where it is negative.
    """

    baseline: float = 0.5
    scale: float = 2.0
    positive: tuple[float, float] = (1.0, 1.0)
    negative: tuple[float, float] = (0.0, 1.0)

    def build(self, context: Context) -> Algorithm:
        """The functions for a run of this size."""
        in_range("scale", self.scale, low=0.0, above=True)

        def prepare(state, experience, key):
            valid = common.answered(experience)
            weights = masking.weights(valid.astype(jnp.float32), mode="sequence")
            signed = self.scale * (experience["rewards"] - self.baseline)
            signed = jnp.where(valid, signed, 0.0)
            return state, common.make_batch(experience, weights, signed_rewards=signed), {}

        def loss(outputs, batch):
            behavior = common.behavior_logp(outputs, batch, context.on_policy)
            logp = common.sequence_logp(outputs.logp, batch["mask"])
            behavior = common.sequence_logp(behavior, batch["mask"])
            limits = {"positive": self.positive, "negative": self.negative}
            loss = losses.topr(logp, behavior, batch["signed_rewards"], **limits)
            weight = losses.topr_weights(logp, behavior, batch["signed_rewards"], **limits)
            metrics = {
                "importance_weight": (weight.sum(), jnp.asarray(float(weight.size))),
            }
            return masking.weighted_sum(loss, batch["weights"]), metrics

        return Algorithm(
            prepare=prepare,
            loss=loss,
            warnings=self._inert() if context.on_policy else (),
        )

    def _inert(self) -> tuple[str, ...]:
        """What is said of limits that leave a ratio of 1 as it is."""
        limits = {"positive": self.positive, "negative": self.negative}
        names = tuple(name for name, pair in limits.items() if common.holds_one(pair))
        same = f"; TOPR is then REINFORCE with baseline {self.baseline}" if len(names) == 2 else ""
        return common.inert_on_policy(names, same)
