"""DisCO (Li et al. 2025, arXiv:2505.12366): right answers ranked over wrong ones, within a KL."""

import dataclasses
from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from polgrad import _parts, losses, masking
from polgrad._scalars import in_range
from polgrad.algorithms import common
from polgrad.algorithms.batch_losses import whole_batch
from polgrad.contract import Algorithm, Batch, Context, Group, Outputs


@dataclasses.dataclass(frozen=True)
class KLBound:
    """A penalty on the KL of the sampler's policy to the current one (`losses.kl_hinge`).

    The KL is the mean over all tokens of the optimiser batch, so that the loss is one of the whole
    batch.

    Attributes:
      beta: strength of the penalty, non-negative.
      delta: the KL, in nats a token, below which the penalty is 0, non-negative.
    """

    beta: float = 1e3
    delta: float = 1e-4

    def __post_init__(self):
        in_range("beta", self.beta, low=0.0)
        in_range("delta", self.delta, low=0.0)


@dataclasses.dataclass(frozen=True)
class Discriminative:
    """A ranking of right over wrong answers to a prompt; rewards are 0 or 1.

    A subclass gives `rank`. The samples of a rollout may serve several updates: an answer is right
    or wrong whoever wrote it. The bound keeps the policy near the one that sampled.

    Attributes:
      score: of an answer: mean log-probability, or mean ratio to the sampler's.
      bound: a penalty that keeps the policy near the sampler's.
    """

    score: Literal["log_l", "l_ratio"] = "log_l"
    bound: KLBound | None = KLBound()

    def rank(
        self, scores: Float[Array, "P G"], rewards: Float[Array, "P G"], valid: Bool[Array, "P G"]
    ) -> Float[Array, "P"]:
        """The loss of each question."""
        raise NotImplementedError(f"{type(self).__name__} has no method rank")

    def build(self, context: Context) -> Algorithm:
        """The functions for a run of this size; a row of the batch is a group."""
        _parts.check(self)
        common.need_group(self, context, 2)

        def loss(outputs, batch):
            return self.loss(outputs, batch, context)

        inert = common.changed(self, ("bound",)) if self.bound is not None else ()
        algorithm = Algorithm(
            prepare=lambda state, experience, key: (state, self.prepare(experience, context), {}),
            loss=loss,
            unit=Group(),
            warnings=common.inert_on_policy(inert) if context.on_policy else (),
        )
        if self.bound is None:
            return algorithm
        # The hinge looks at the mean over the whole batch.
        select, loss = whole_batch(loss)
        return algorithm._replace(select=select, loss=loss)

    def prepare(self, experience: Batch, context: Context) -> Batch:
        """The groups, with a weight for each question."""
        groups = {name: common.by_group(x, context.group_size) for name, x in experience.items()}
        valid = common.answered(groups)
        # As in the paper a question whose answers are all alike counts in the mean, with 0.
        weights = masking.weights(jnp.ones(valid.shape[0]), mode="sequence")
        return common.make_batch(groups, weights, rewards=groups["rewards"], valid=valid)

    def loss(self, outputs: Outputs, batch: Batch, context: Context) -> tuple[Array, dict]:
        """The mean of the questions' losses, and the penalty of the bound."""
        flat = lambda x: x.reshape(-1, x.shape[-1])  # noqa: E731
        behavior = common.behavior_logp(outputs, batch, context.on_policy)
        scores = losses.sequence_score(
            flat(outputs.logp), flat(behavior), flat(batch["mask"]), kind=self.score
        ).reshape(batch["valid"].shape)
        rank = self.rank(scores, batch["rewards"], batch["valid"])
        total = masking.weighted_sum(rank, batch["weights"])
        counted = batch["mask"] * batch["valid"][..., None]
        kl = losses.behavior_kl(outputs.logp, behavior)
        if self.bound is not None:
            mean = masking.masked_mean(kl, counted)
            total += losses.kl_hinge(mean, beta=self.bound.beta, delta=self.bound.delta)
        return total, {"behavior_kl": ((kl * counted).sum(), counted.sum())}


@dataclasses.dataclass(frozen=True)
class DisCO(Discriminative):
    """Discriminative constrained optimisation: wrong answers of a high score weigh most.

    Attributes:
      tau: temperature over wrong answers, positive; 10 for `log_l`, 1 for `l_ratio`.
    """

    tau: float = 10.0

    def rank(self, scores, rewards, valid):
        """`losses.disco`."""
        return losses.disco(scores, rewards, tau=self.tau, valid=valid)


@dataclasses.dataclass(frozen=True)
class DisCOB(Discriminative):
    """DisCO-b: the mean over pairs of a right and a wrong answer.

    Attributes:
      surrogate: of the gap between the two scores.
    """

    surrogate: Literal["identity", "logistic", "hinge", "squared_hinge"] = "identity"

    def rank(self, scores, rewards, valid):
        """`losses.disco_b`."""
        return losses.disco_b(scores, rewards, surrogate=self.surrogate, valid=valid)
