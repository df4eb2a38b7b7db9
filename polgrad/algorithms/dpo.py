"""DPO (Rafailov et al. 2023, arXiv:2305.18290), on given pairs or on pairs made of samples."""

import dataclasses

import jax.numpy as jnp

from polgrad import losses, masking
from polgrad.algorithms import common
from polgrad.contract import Algorithm, Collect, Context, Initial, Pair


@dataclasses.dataclass(frozen=True)
class DPO:
    """Direct preference optimisation on pairs from a file with `chosen` and `rejected`.

    Attributes:
      beta: strength of the KL to the initial policy, positive.
      label_smoothing: share of labels believed to be flipped, in [0, 0.5].
    """

    beta: float = 0.1
    label_smoothing: float = 0.0

    def build(self, context: Context) -> Algorithm:
        """The four functions; batches are `[B, 2, ...]`, chosen before rejected."""

        def prepare(state, experience, key):
            # Both answers must have a token that counts.
            answered = (experience["mask"] != 0).any(-1).all(-1)
            weights = masking.weights(answered.astype(jnp.float32), mode="sequence")
            return state, common.make_batch(experience, weights), {}

        return Algorithm(
            prepare=prepare,
            loss=self.loss,
            unit=Pair(),
            collect=Collect(None, columns=Pair().roles),
            policies={"reference": Initial()},
        )

    def loss(self, outputs, batch):
        """The pair loss on whole-sequence log-ratios."""
        ratio = common.sequence_logp(outputs.logp - batch["reference_logp"], batch["mask"])
        chosen, rejected = ratio[:, 0], ratio[:, 1]
        smoothing = self.label_smoothing
        loss = losses.dpo(chosen, rejected, beta=self.beta, label_smoothing=smoothing)
        weights = batch["weights"]
        metrics = {
            "margin": ((weights * self.beta * (chosen - rejected)).sum(), weights.sum()),
            "pair_accuracy": ((weights * (chosen > rejected)).sum(), weights.sum()),
        }
        return masking.weighted_sum(loss, weights), metrics


@dataclasses.dataclass(frozen=True)
class OnlineDPO(DPO):
    """DPO on the best and the worst sample of each group (Guo et al. 2024, arXiv:2402.04792)."""

    def build(self, context: Context) -> Algorithm:
        """The four functions; groups whose rewards are all equal make no pair."""
        common.need_group(self, context, 2)

        def prepare(state, experience, key):
            size = context.group_size
            rewards = common.by_group(experience["rewards"], size)
            valid = common.by_group(experience["valid"], size)
            best = jnp.argmax(jnp.where(valid, rewards, -jnp.inf), axis=1)
            worst = jnp.argmin(jnp.where(valid, rewards, jnp.inf), axis=1)
            pick = jnp.stack([best, worst], axis=1)
            rows = jnp.arange(len(pick))[:, None] * size + pick
            pairs = {k: x[rows] for k, x in experience.items() if x.shape[:1] == (rewards.size,)}
            gap = jnp.diff(jnp.take_along_axis(rewards, pick, axis=1), axis=1)[:, 0]
            usable = (valid.sum(1) >= 2) & (gap < 0)
            usable &= (pairs["mask"] != 0).any(-1).all(-1)
            weights = masking.weights(usable.astype(jnp.float32), mode="sequence")
            return state, common.make_batch(pairs, weights), {"pairs": usable.mean()}

        return Algorithm(
            prepare=prepare, loss=self.loss, unit=Pair(), policies={"reference": Initial()}
        )
