"""What surrogates share, and what the rank of their losses decides."""

import dataclasses
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from polgrad import masking
from polgrad.algorithms import common
from polgrad.algorithms.terms import TruncatedWeights
from polgrad.contract import Batch, Context, Outputs

Aggregation = Literal["sequence", "token", "sequence_sum", "constant"]

ARGUMENTS = {
    "surrogate": ("logp", "behavior_logp", "advantages", "mask"),
    "clipped": ("logp", "behavior_logp", "advantages", "mask"),
}
"""What the methods that a user may write are called with."""


class Surrogate:
    """What losses of tokens and losses of answers share. A subclass gives `surrogate`."""

    ratio_settings: ClassVar[tuple[str, ...]] = ()
    """Settings that act on the ratio alone: without effect where the ratio is exactly 1."""
    selects: ClassVar[bool] = False
    """Whether `select` chooses tokens before each update, which costs a forward pass."""
    of_answers: ClassVar[bool] = False
    """Whether the loss has one number an answer, and not one a token."""

    def surrogate(
        self,
        logp: Float[Array, "B T"],
        behavior_logp: Float[Array, "B T"],
        advantages: Float[Array, "B T"] | Float[Array, "B 1"] | Float[Array, "B"],
        mask: Float[Array, "B T"],
    ) -> Float[Array, "B T"] | Float[Array, "B"]:
        """The loss of each token, or of each answer."""
        raise NotImplementedError(
            f"{type(self).__name__} has no method surrogate(logp, behavior_logp, advantages, mask)"
        )

    def clipped(
        self,
        logp: Float[Array, "B T"],
        behavior_logp: Float[Array, "B T"],
        advantages: Float[Array, "B T"] | Float[Array, "B 1"],
        mask: Float[Array, "B T"],
    ) -> Bool[Array, "B T"] | None:
        """The tokens whose gradient the surrogate sets to 0; None for one without a clip."""
        return None

    def select(
        self, outputs: Outputs, batch: Batch, behavior_logp: Float[Array, "B T"], key: Array
    ) -> Batch:
        """The batch with the tokens that are selected, on the whole of it before each update."""
        return batch

    def batch_loss(
        self, outputs: Outputs, batch: Batch, behavior_logp: Float[Array, "B T"]
    ) -> Array:
        """The surrogate on a batch; a subclass whose surrogate reads more of it overrides this."""
        loss = self.surrogate(outputs.logp, behavior_logp, batch["advantages"], batch["mask"])
        wanted = batch["weights"].shape
        each = "one loss an answer" if self.of_answers else "one loss a token"
        common.check_returned(self, "surrogate", loss, wanted, each)
        return loss

    def metrics(self, outputs: Outputs, batch: Batch, behavior_logp: Float[Array, "B T"]) -> dict:
        """`clip_fraction`: the share of tokens whose gradient the surrogate sets to 0."""
        mask = batch["mask"]
        logp = jax.lax.stop_gradient(outputs.logp)
        clipped = self.clipped(logp, behavior_logp, batch["advantages"], mask)
        if clipped is None:
            return {}
        return {"clip_fraction": ((clipped * mask).sum(), mask.sum())}

    def inert(self) -> tuple[str, ...]:
        """The settings without effect where the ratio is 1 that a user must have meant to act."""
        return common.changed(self, self.ratio_settings)

    # --- what the rank of the loss decides ------------------------------------------------------

    def weights(self, mask: Float[Array, "B T"], context: Context) -> Array:
        """The weight of each loss in the sum."""
        raise self._without_rank()

    def total(self, loss: Array, terms: list[Array], batch: Batch) -> Float[Array, ""]:
        """The weighted sum of the surrogate and of further terms, which have a number a token."""
        raise self._without_rank()

    def correction(self, weights: TruncatedWeights, logp: Array, sampler_logp: Array, mask: Array):
        """What the sampler's correction multiplies the loss by."""
        raise self._without_rank()

    def shaped(self, advantages: Float[Array, "B 1"]) -> Array:
        """Advantages as `surrogate` takes them."""
        raise self._without_rank()

    def _without_rank(self) -> NotImplementedError:
        return NotImplementedError(
            f"{type(self).__name__} is derived from Surrogate alone; derive it from TokenSurrogate or "
            "SequenceSurrogate, which say whether its loss is one of tokens or of answers"
        )


@dataclasses.dataclass(frozen=True)
class TokenSurrogate(Surrogate):
    """A loss of tokens: `surrogate` takes advantages [B, 1] or [B, T] and returns [B, T].

    Attributes:
      aggregation: how token losses become one number (see `masking.weights`).
    """

    aggregation: Aggregation = "sequence"

    def weights(self, mask, context):
        """`masking.weights` of the tokens."""
        length = context.max_tokens if self.aggregation == "constant" else None
        return masking.weights(mask, mode=self.aggregation, length=length)

    def total(self, loss, terms, batch):
        """All terms are weighted as the token loss is."""
        return masking.weighted_sum(sum(terms, loss), batch["weights"])

    def correction(self, weights, logp, sampler_logp, mask):
        """One weight a token."""
        return weights.of_tokens(logp, sampler_logp, mask)

    def shaped(self, advantages):
        """One number a sample, for all its tokens."""
        return advantages


class SequenceSurrogate(Surrogate):
    """A loss of whole answers, each of which counts the same.

    `surrogate` takes advantages [B] and returns [B]. The KL and the entropy, if any, are means over
    the answer's tokens.
    """

    of_answers: ClassVar[bool] = True

    def weights(self, mask, context):
        """`masking.weights` of the answers that have a token that counts."""
        return masking.weights(jnp.asarray((mask != 0).any(-1), mask.dtype), mode="sequence")

    def total(self, loss, terms, batch):
        """The loss of each answer, and the mean of each further term over its tokens."""
        means = [masking.masked_mean(term, batch["mask"], axis=-1) for term in terms]
        return masking.weighted_sum(sum(means, loss), batch["weights"])

    def correction(self, weights, logp, sampler_logp, mask):
        """One weight an answer."""
        return weights.of_answers(logp, sampler_logp, mask)

    def shaped(self, advantages):
        """One number an answer."""
        return advantages[:, 0]
