"""Nash-MD-PG and Nash-EMA-PG (Munos et al. 2023, arXiv:2312.00886): policy gradient in a game."""

import dataclasses

import jax
import jax.numpy as jnp

from polgrad import _parts, losses, masking
from polgrad._scalars import in_range
from polgrad.algorithms import common
from polgrad.contract import Algorithm, Average, Collect, Context, Initial, Mixture, Samples


@dataclasses.dataclass(frozen=True)
class Mixed:
    """The opponent of Nash-MD: the geometric mixture of the policy and the initial policy.

    Attributes:
      weight: of the initial policy, in [0, 1]; 0 is self-play, 1 is the initial policy alone.
    """

    weight: float = 0.125


@dataclasses.dataclass(frozen=True)
class NashMD:
    """Samples of the policy are preferred, or not, to samples of an opponent.

    The preference is a function of two completions (`rewards.preference`) or, without one, the
    Bradley-Terry probability of two rewards.

    Attributes:
      tau: strength of the KL to the initial policy, non-negative.
      opponent: `Mixed(weight)` for Nash-MD, or `Average(decay)`, the moving average of the policy,
        for Nash-EMA.
      reward_scale: nats of Bradley-Terry logit a unit of reward is worth, positive.
    """

    tau: float = 0.008
    opponent: Mixed | Average = Mixed()
    reward_scale: float = 4.0

    def build(self, context: Context) -> Algorithm:
        """The functions for a run of this size."""
        _parts.check(self)
        in_range("tau", self.tau, low=0.0)
        in_range("reward_scale", self.reward_scale, low=0.0, above=True)
        versus, further = self._opponent()

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
            collect=Collect(Samples(versus=versus)),
            policies={"reference": Initial(), **further},
            reuse=False,
        )

    def _opponent(self) -> tuple[Mixture, dict[str, Average]]:
        """What the opponent's answers are sampled from, and the policies that this names."""
        if isinstance(self.opponent, Mixed):
            return Mixture("reference", self.opponent.weight), {}
        return Mixture("average", 1.0), {"average": self.opponent}
