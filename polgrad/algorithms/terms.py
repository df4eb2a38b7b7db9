"""Terms that an algorithm may add to its loss or its rewards: KL, entropy, length, correction.

Each is a part: a field of an algorithm's settings holds one, or None where the term is off.
"""

import dataclasses
from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Float

from polgrad import _checks, advantages, losses, masking, ratios
from polgrad._scalars import in_range
from polgrad.contract import Batch, Context, Initial, NamedPolicy, Outputs, Previous


@dataclasses.dataclass(frozen=True)
class KL:
    """KL to a reference policy as a term of the loss, one number a token.

    Use `gradient="k3"` to reproduce GRPO's paper, TRL and verl, and `"k2"` for the gradient of the
    KL that is meant.

    Attributes:
      coefficient: strength of the KL, non-negative.
      gradient: `"k2"` has on-policy the gradient of KL(policy || reference); `"k3"` has that of
        KL(reference || policy).
      reference: the policy that the KL is to.
    """

    coefficient: float = 0.04
    gradient: Literal["k2", "k3"] = "k2"
    reference: NamedPolicy = Initial()

    def __post_init__(self):
        in_range("coefficient", self.coefficient, low=0.0)
        _checks.choice("gradient", self.gradient, ("k2", "k3"))

    def term(self, outputs: Outputs, batch: Batch, on_policy: bool) -> Float[Array, "B T"]:
        """What is added to the loss of each token."""
        return self.coefficient * losses.kl_penalty(
            outputs.logp,
            batch["reference_logp"],
            gradient=self.gradient,
            behavior_logp=None if on_policy else batch["behavior_logp"],
        )

    def warnings(self, context: Context) -> tuple[str, ...]:
        """Sentences on the gradient of the other direction, and on one that is 0."""
        found = []
        if self.reference == Previous(1) and context.on_policy:
            found.append(
                "kl has no effect: the reference is the sampling policy, and with one update a "
                "rollout the gradient of the KL to it is 0"
            )
        elif self.gradient == "k3":
            found.append(
                "kl.gradient k3: on-policy the gradient of this term is that of "
                "KL(reference || policy); k2 has the gradient of KL(policy || reference)"
            )
        return tuple(found)


@dataclasses.dataclass(frozen=True)
class RewardKL:
    """KL to a reference policy, subtracted from the reward with the estimator k1.

    Use it as PPO, RLOO and REINFORCE++ do. The log-ratio is that of the sampling policy to the
    reference policy, so that the term has no gradient of its own.

    Attributes:
      coefficient: strength of the KL, non-negative.
      reference: the policy that the KL is to.
    """

    coefficient: float = 0.05
    reference: NamedPolicy = Initial()

    def __post_init__(self):
        in_range("coefficient", self.coefficient, low=0.0)

    def warnings(self, context: Context) -> tuple[str, ...]:
        """A sentence on a log-ratio that is always 0."""
        if self.reference != Previous(1):
            return ()
        return ("kl has no effect: the reference is the sampling policy, whose log-ratio is 0",)

    def of_answers(
        self, rewards: Float[Array, "B"], experience: Batch, mask: Float[Array, "B T"]
    ) -> Float[Array, "B"]:
        """Rewards of whole answers, less the sum over the answer's tokens."""
        distance = experience["behavior_logp"] - experience["reference_logp"]
        distance = masking.sequence_sum(distance, mask)
        return advantages.regularized_rewards(rewards, distance, beta=self.coefficient)

    def of_tokens(self, experience: Batch, mask: Float[Array, "B T"]) -> Float[Array, "B T"]:
        """What is added to the reward of each token."""
        return advantages.kl_token_rewards(
            experience["behavior_logp"], experience["reference_logp"], mask, beta=self.coefficient
        )


@dataclasses.dataclass(frozen=True)
class Entropy:
    """A bonus for the entropy of the distribution at each token, as a term of the loss.

    Attributes:
      coefficient: strength of the bonus, non-negative.
    """

    coefficient: float = 0.01

    def __post_init__(self):
        in_range("coefficient", self.coefficient, low=0.0)

    def term(self, outputs: Outputs) -> Float[Array, "B T"]:
        """What is added to the loss of each token."""
        return -self.coefficient * outputs.entropy


@dataclasses.dataclass(frozen=True)
class OverlongPenalty:
    """DAPO's penalty on the reward of long answers (Yu et al. 2025, arXiv:2503.14476).

    Attributes:
      buffer: last tokens before max_tokens over which the penalty grows from 0 to 1; None takes a
        fifth of max_tokens.
    """

    buffer: int | None = None

    def __post_init__(self):
        if self.buffer is not None:
            in_range("buffer", self.buffer, low=1)

    def of_answers(
        self, rewards: Float[Array, "B"], experience: Batch, max_tokens: int
    ) -> Float[Array, "B"]:
        """The rewards with the penalty."""
        buffer = max(1, max_tokens // 5) if self.buffer is None else self.buffer
        return rewards + advantages.overlong_penalty(
            experience["completion_lengths"], max_length=max_tokens, buffer=buffer
        )


@dataclasses.dataclass(frozen=True)
class TruncatedWeights:
    """Truncated importance weights between the trainer and the sampler, for on-policy runs.

    Use it where the sampler computes in another precision than the trainer. Off-policy the ratio
    itself corrects.

    Attributes:
      cap: largest weight, above 0.
    """

    cap: float = 2.0

    def __post_init__(self):
        in_range("cap", self.cap, low=0.0, above=True)

    def of_tokens(
        self, logp: Float[Array, "B T"], sampler_logp: Float[Array, "B T"], mask: Array
    ) -> Float[Array, "B T"]:
        """One weight a token."""
        return ratios.truncated_importance_weights(logp, sampler_logp, mask, cap=self.cap)

    def of_answers(
        self, logp: Float[Array, "B T"], sampler_logp: Float[Array, "B T"], mask: Array
    ) -> Float[Array, "B"]:
        """One weight an answer: the truncated product over its tokens."""
        weights = ratios.truncated_importance_weights(
            logp, sampler_logp, mask, cap=self.cap, level="sequence"
        )
        return jnp.max(weights, axis=-1)  # 0 at masked tokens
