"""DisCO (Li et al. 2025, arXiv:2505.12366): right answers ranked over wrong ones, within a KL."""

import dataclasses
from typing import Literal

import jax.numpy as jnp

from polgrad import losses, masking
from polgrad._scalars import in_range
from polgrad.algorithms import common
from polgrad.algorithms.whole import whole_batch
from polgrad.contract import Algorithm, Context, Group


@dataclasses.dataclass(frozen=True)
class DisCO:
    """Discriminative constrained optimisation; rewards are 0 or 1.

    Attributes:
      score: of an answer: mean log-probability, or mean ratio to the sampler's.
      tau: temperature over wrong answers, positive; 10 for `log_l`, 1 for `l_ratio`.
      beta: strength of the penalty on the KL of the sampler's policy to the current one,
        non-negative.
      delta: the KL, in nats a token, below which the penalty is 0, non-negative.
    """

    score: Literal["log_l", "l_ratio"] = "log_l"
    tau: float = 10.0
    beta: float = 1e3
    delta: float = 1e-4

    def build(self, context: Context) -> Algorithm:
        """The functions for a run of this size; a row of the batch is a group."""
        common.need_group(self, context, 2)
        in_range("beta", self.beta, low=0.0)
        in_range("delta", self.delta, low=0.0)

        def prepare(state, experience, key):
            size = context.group_size
            samples = experience["valid"].shape[0]
            groups = {
                name: x.reshape(-1, size, *x.shape[1:])
                for name, x in experience.items()
                if x.shape[:1] == (samples,)
            }
            valid = common.answered(groups)
            # As in the paper a question whose answers are all alike counts in the mean, with 0.
            weights = masking.weights(jnp.ones(samples // size), mode="sequence")
            batch = common.make_batch(groups, weights, rewards=groups["rewards"], valid=valid)
            return state, batch, {}

        def loss(outputs, batch):
            flat = lambda x: x.reshape(-1, x.shape[-1])  # noqa: E731
            behavior = common.behavior_logp(outputs, batch, context.on_policy)
            scores = losses.sequence_score(
                flat(outputs.logp), flat(behavior), flat(batch["mask"]), kind=self.score
            ).reshape(batch["valid"].shape)
            rank = losses.disco(scores, batch["rewards"], tau=self.tau, valid=batch["valid"])
            counted = batch["mask"] * batch["valid"][..., None]
            kl = losses.behavior_kl(outputs.logp, behavior)
            mean = masking.masked_mean(kl, counted)
            total = masking.weighted_sum(rank, batch["weights"])
            total += losses.kl_hinge(mean, beta=self.beta, delta=self.delta)
            return total, {"behavior_kl": ((kl * counted).sum(), counted.sum())}

        # The hinge looks at the mean over the whole batch.
        select, loss = whole_batch(loss)
        inert = common.changed(self, ("beta", "delta"))
        return Algorithm(
            prepare=prepare,
            loss=loss,
            select=select,
            unit=Group(),
            warnings=common.inert_on_policy(inert) if context.on_policy else (),
        )
