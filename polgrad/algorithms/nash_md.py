"""Nash-MD-PG (Munos et al. 2023, arXiv:2312.00886): policy gradient against a mixture opponent."""

import dataclasses

import jax
import jax.numpy as jnp

from polgrad import losses, masking
from polgrad._scalars import in_range
from polgrad.algorithms import common
from polgrad.contract import Algorithm, Collect, Context, Initial, Mixture, Samples


@dataclasses.dataclass(frozen=True)
class NashMD:
    """Samples of the policy are preferred, or not, to samples of the geometric mixture.

    The preference is a function of two completions (`rewards.preference`) or, without one, the
    Bradley-Terry probability of two rewards.

    Attributes:
      tau: strength of the KL to the initial policy, non-negative.
      mixture: weight of the initial policy in the opponent, in [0, 1]; 0 is self-play.
      reward_scale: nats of Bradley-Terry logit a unit of reward is worth, positive.
    """

    tau: float = 0.008
    mixture: float = 0.125
    reward_scale: float = 4.0

    def build(self, context: Context) -> Algorithm:
        """The functions for a run of this size."""
        in_range("tau", self.tau, low=0.0)
        in_range("mixture", self.mixture, low=0.0, high=1.0)
        in_range("reward_scale", self.reward_scale, low=0.0, above=True)

        def prepare(state, experience, key):
            valid = common.answered(experience)
            if "preferences" in experience:
                preference = experience["preferences"]
            else:
                margin = experience["rewards"] - experience["opponent_rewards"]
                preference = jax.nn.sigmoid(self.reward_scale * margin)
            preference = jnp.where(valid, preference, 0.5)
            weights = masking.weights(valid.astype(jnp.float32), mode="sequence")
            batch = common.make_batch(experience, weights, preference=preference)
            return state, batch, {"preference": preference.mean()}

        def loss(outputs, batch):
            logp = common.sequence_logp(outputs.logp, batch["mask"])
            reference = common.sequence_logp(batch["reference_logp"], batch["mask"])
            loss = losses.nash_md(logp, batch["preference"], logp - reference, tau=self.tau)
            return masking.weighted_sum(loss, batch["weights"]), {}

        return Algorithm(
            prepare=prepare,
            loss=loss,
            collect=Collect(Samples(versus=Mixture("reference", self.mixture))),
            policies={"reference": Initial()},
            reuse=False,
        )
