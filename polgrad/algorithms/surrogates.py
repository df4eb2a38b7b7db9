"""Surrogates: log-probabilities and advantages in, one loss for each token or answer out.

Each is a part of `algorithms.PolicyGradient`, and a base of the algorithms that use it.
"""

import dataclasses
import inspect
from collections.abc import Callable
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from polgrad import losses, masking
from polgrad.algorithms import common
from polgrad.algorithms.from_loss import settings_of
from polgrad.algorithms.terms import TruncatedWeights
from polgrad.contract import Batch, Context, Outputs
from polgrad.ratios import importance_ratio, log_ratio

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
        raise NotImplementedError

    def total(self, loss: Array, terms: list[Array], batch: Batch) -> Float[Array, ""]:
        """The weighted sum of the surrogate and of further terms, which have a number a token."""
        raise NotImplementedError

    def correction(self, weights: TruncatedWeights, logp: Array, sampler_logp: Array, mask: Array):
        """What the sampler's correction multiplies the loss by."""
        raise NotImplementedError

    def shaped(self, advantages: Float[Array, "B 1"]) -> Array:
        """Advantages as `surrogate` takes them."""
        raise NotImplementedError


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


# --- losses of tokens -------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class LogLikelihood(TokenSurrogate):
    """REINFORCE's loss, which has no importance ratio (Williams 1992; `losses.reinforce`).

    Attributes:
      aggregation: how token losses become one number (see `masking.weights`).
    """

    aggregation: Aggregation = "sequence_sum"

    def surrogate(self, logp, behavior_logp, advantages, mask):
        """The token loss."""
        return losses.reinforce(logp, advantages)


@dataclasses.dataclass(frozen=True)
class PPOClip(TokenSurrogate):
    """PPO's clipped token loss (Schulman et al. 2017, arXiv:1707.06347; `losses.ppo_clip`).

    Attributes:
      clip_low: ratios below 1 - clip_low are clipped; in [0, 1].
      clip_high: ratios above 1 + clip_high are clipped; non-negative.
      dual_clip: bound on the loss of negative advantages, in units of -A; above 1. None for no
        bound.
    """

    ratio_settings: ClassVar[tuple[str, ...]] = ("clip_low", "clip_high", "dual_clip")

    clip_low: float = 0.2
    clip_high: float = 0.2
    dual_clip: float | None = None

    def surrogate(self, logp, behavior_logp, advantages, mask):
        """PPO's clipped token loss."""
        return losses.ppo_clip(logp, behavior_logp, advantages, **common.clips(self))

    def clipped(self, logp, behavior_logp, advantages, mask):
        """The tokens whose gradient PPO's clip or the dual clip sets to 0."""
        return common.ppo_clipped(logp, behavior_logp, advantages, **common.clips(self))


@dataclasses.dataclass(frozen=True)
class GSPO(TokenSurrogate):
    """One clipped ratio for all tokens of a sequence (Zheng et al. 2025, arXiv:2507.18071).

    Attributes:
      clip_low: length-normalised sequence ratios below 1 - clip_low are clipped; in [0, 1].
      clip_high: length-normalised sequence ratios above 1 + clip_high are clipped;
        non-negative.
    """

    ratio_settings: ClassVar[tuple[str, ...]] = ("clip_low", "clip_high")

    clip_low: float = 3e-4
    clip_high: float = 4e-4

    def surrogate(self, logp, behavior_logp, advantages, mask):
        """The token form; with one advantage a sequence it equals the sequence form."""
        return losses.gspo_token(
            logp, behavior_logp, advantages, mask, clip_low=self.clip_low, clip_high=self.clip_high
        )

    def clipped(self, logp, behavior_logp, advantages, mask):
        """The tokens of the sequences whose ratio is outside the range on the gaining side."""
        mean = masking.masked_mean(log_ratio(logp, behavior_logp), mask, axis=-1)
        ratio = jnp.exp(mean)[:, None]
        outside = common.outside(
            ratio, advantages, clip_low=self.clip_low, clip_high=self.clip_high
        )
        return jnp.broadcast_to(outside, logp.shape)


@dataclasses.dataclass(frozen=True)
class CISPO(TokenSurrogate):
    """REINFORCE weighted by a capped, stopped ratio (MiniMax 2025, arXiv:2506.13585).

    Attributes:
      aggregation: how token losses become one number (see `masking.weights`).
      cap_low: smallest ratio that a token is weighted with, non-negative.
      cap_high: largest ratio that a token is weighted with.
    """

    aggregation: Aggregation = "token"
    cap_low: float = 0.0
    cap_high: float = 5.0

    def surrogate(self, logp, behavior_logp, advantages, mask):
        """The token loss."""
        return losses.cispo(
            logp, behavior_logp, advantages, cap_low=self.cap_low, cap_high=self.cap_high
        )

    def inert(self):
        """The caps that were changed, unless they exclude a ratio of 1."""
        caps = common.changed(self, ("cap_low", "cap_high"))
        return caps if common.holds_one((self.cap_low, self.cap_high)) else ()

    def metrics(self, outputs, batch, behavior_logp):
        """`capped_fraction`: the share of tokens whose ratio the caps change."""
        ratio, mask = importance_ratio(outputs.logp, behavior_logp), batch["mask"]
        capped = (ratio < self.cap_low) | (ratio > self.cap_high)
        return {"capped_fraction": ((capped * mask).sum(), mask.sum())}


@dataclasses.dataclass(frozen=True)
class SAPO(TokenSurrogate):
    """A soft gate in place of the clip (Gao et al. 2025, arXiv:2511.20347).

    Attributes:
      tau_positive: steepness of the gate where the advantage is above 0; positive.
      tau_negative: steepness of the gate where the advantage is below 0; positive.
    """

    ratio_settings: ClassVar[tuple[str, ...]] = ("tau_positive", "tau_negative")

    tau_positive: float = 1.0
    tau_negative: float = 1.05

    def surrogate(self, logp, behavior_logp, advantages, mask):
        """The token loss."""
        return losses.sapo(
            logp,
            behavior_logp,
            advantages,
            tau_positive=self.tau_positive,
            tau_negative=self.tau_negative,
        )


# --- losses of answers ------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class SequenceLoss(SequenceSurrogate):
    """A loss `(logp, behavior_logp, advantages, mask) -> [B]`; a subclass gives `function`."""

    function: ClassVar[Callable]

    def surrogate(self, logp, behavior_logp, advantages, mask):
        """The function with its settings."""
        names = inspect.signature(type(self).function).parameters
        fields = [f.name for f in dataclasses.fields(self) if f.name in names]
        settings = {name: getattr(self, name) for name in fields}
        return type(self).function(logp, behavior_logp, advantages, mask, **settings)


def _of(name: str, function: Callable) -> type:
    clips = ("clip_low", "clip_high")
    return settings_of(function, name, SequenceLoss, depth=2, ratio_settings=clips)


LUSPO = _of("LUSPO", losses.luspo)
GMPO = _of("GMPO", losses.gmpo)
PPOClipSequence = _of("PPOClipSequence", losses.ppo_clip_sequence)
