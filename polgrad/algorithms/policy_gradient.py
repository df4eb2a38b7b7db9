"""What all policy gradients on sampled answers share: rewards, masks, weights, KL and entropy."""

import dataclasses
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from polgrad import _checks, advantages, losses, masking
from polgrad._scalars import in_range
from polgrad.algorithms import common
from polgrad.contract import Algorithm, Batch, Context, Initial, Needs, Outputs

Aggregation = Literal["sequence", "token", "sequence_sum", "constant"]


ARGUMENTS = {
    "advantages": ("rewards", "valid"),
    "surrogate": ("logp", "behavior_logp", "advantages", "mask"),
    "clipped": ("logp", "behavior_logp", "advantages", "mask"),
}
"""What the methods that a user may write are called with."""


@dataclasses.dataclass(frozen=True)
class OnSamples:
    """A loss on sampled answers with one reward each: what losses of tokens and of answers share.

    Attributes:
      reference_kl: strength of the KL to the initial policy, non-negative; 0 switches the KL off.
      reference_kl_form: `"k2"` adds a loss whose on-policy gradient is that of the KL of the policy
        to the initial policy; `"k3"` adds the loss of the GRPO paper, TRL and verl, whose on-policy
        gradient is that of the KL in the other direction; `"reward"` subtracts the log ratio (k1)
        from the reward, as PPO, RLOO and REINFORCE++ do.
      entropy_coefficient: strength of an entropy bonus, non-negative; 0 switches the bonus off.
      drop_uniform_groups: mask the groups whose rewards are all equal (DAPO's filter). The filter
        reads the rewards before any penalty.
      mask_truncated: mask the samples that reached max_tokens without an end token.
      overlong_buffer: last tokens before max_tokens over which a penalty on the reward grows from 0
        to 1; 0 switches the penalty off, None takes a fifth of max_tokens.
      sampler_correction: cap of the truncated importance weight between trainer and sampler,
        non-negative, for on-policy runs; 0 switches the weight off (off-policy the ratio itself corrects).
    """

    # A subclass changes these where they differ from the default.
    group_statistics: ClassVar[bool] = False
    """Whether the advantage is 0 by construction for a group of one sample."""
    ratio_settings: ClassVar[tuple[str, ...]] = ()
    """Settings that act on the ratio alone: without effect where the ratio is exactly 1."""

    reference_kl: float = 0.0
    reference_kl_form: Literal["k2", "k3", "reward"] = "k2"
    entropy_coefficient: float = 0.0
    drop_uniform_groups: bool = False
    mask_truncated: bool = False
    overlong_buffer: int | None = 0
    sampler_correction: float = 0.0

    def advantages(
        self, rewards: Float[Array, "P G"], valid: Bool[Array, "P G"]
    ) -> Float[Array, "P G"]:
        """Rewards of the groups to advantages."""
        raise NotImplementedError(f"{type(self).__name__} has no method advantages(rewards, valid)")

    def surrogate(
        self,
        logp: Float[Array, "B T"],
        behavior_logp: Float[Array, "B T"],
        advantages: Float[Array, "B T"] | Float[Array, "B 1"],
        mask: Float[Array, "B T"],
    ) -> Float[Array, "B T"]:
        """The loss of each token, or of each answer."""
        raise NotImplementedError(
            f"{type(self).__name__} has no method surrogate(logp, behavior_logp, advantages, mask)"
        )

    def weights(self, mask: Float[Array, "B T"], context: Context) -> Array:
        """The weight of each loss in the sum; of the shape of the surrogate."""
        raise NotImplementedError(f"{type(self).__name__} has no method weights(mask, context)")

    def total(self, loss: Array, terms: list[Array], batch: Batch) -> Float[Array, ""]:
        """The weighted sum of the surrogate and of further terms, which have a number a token."""
        raise NotImplementedError(f"{type(self).__name__} has no method total(loss, terms, batch)")

    def clipped(
        self,
        logp: Float[Array, "B T"],
        behavior_logp: Float[Array, "B T"],
        advantages: Float[Array, "B T"] | Float[Array, "B 1"],
        mask: Float[Array, "B T"],
    ) -> Bool[Array, "B T"] | None:
        """The tokens whose gradient the surrogate sets to 0; None for one without a clip."""
        return None

    # --- the functions of the contract ----------------------------------------------------------

    def build(self, context: Context) -> Algorithm:
        """The functions for a run of this size.

        Raises:
          ValueError: if every gradient would be 0 by construction, or if a method takes other
            arguments or returns no array.
        """
        common.check_arguments(self, ARGUMENTS)
        self.check()
        if self.group_statistics or self.drop_uniform_groups:
            common.need_group(self, context, 2)

        def prepare(state, experience, key):
            return state, *self.prepare(experience, context)

        def loss(outputs, batch):
            return self.loss(outputs, batch, context)

        return Algorithm(
            prepare=prepare,
            loss=loss,
            policies={"reference": Initial()} if common.is_on(self.reference_kl) else {},
            needs=Needs(entropy=common.is_on(self.entropy_coefficient)),
            reuse=self.corrects(),
            warnings=self.warnings(context),
        )

    def check(self) -> None:
        """Checks the settings that no loss and no advantage checks.

        Raises:
          ValueError: a number out of its range, an unknown choice.
        """
        _checks.choice("reference_kl_form", self.reference_kl_form, ("k2", "k3", "reward"))
        for name in ("reference_kl", "entropy_coefficient", "sampler_correction"):
            in_range(name, getattr(self, name), low=0.0)

    def prepare(self, experience: Batch, context: Context) -> tuple[Batch, dict]:
        """Advantages and weights, both from the whole rollout."""
        mask = common.counted(experience)
        uniform = ~advantages.dynamic_sampling_filter(
            common.by_group(experience["rewards"], context.group_size),
            valid=common.by_group(experience["valid"], context.group_size),
        )
        if self.drop_uniform_groups:
            mask *= jnp.repeat(~uniform, context.group_size)[:, None]
        if self.mask_truncated:
            mask *= advantages.overlong_filter(mask, experience["stopped"])
        batch = common.make_batch(
            experience,
            self.weights(mask, context),
            advantages=self.token_advantages(experience, mask, context),
        )
        return batch, {"uniform_groups": uniform.mean()}

    def token_advantages(
        self, experience: Batch, mask: Float[Array, "B T"], context: Context
    ) -> Float[Array, "B T"] | Float[Array, "B 1"]:
        """One advantage a sample, from its group; the KL of the whole answer in the reward."""
        rewards = self.shaped_rewards(experience, context)
        if self._kl_in("reward"):
            distance = experience["behavior_logp"] - experience["reference_logp"]
            distance = masking.sequence_sum(distance, experience["mask"])
            rewards = advantages.regularized_rewards(rewards, distance, beta=self.reference_kl)
        rewards, valid = (
            common.by_group(x, context.group_size) for x in (rewards, experience["valid"])
        )
        found = self.advantages(rewards, valid)
        common.check_returned(self, "advantages", found, rewards.shape, "one number a sample")
        return self.shaped_advantages(found.reshape(-1, 1))

    def shaped_advantages(self, advantages: Float[Array, "B 1"]) -> Array:
        """Advantages as `surrogate` takes them."""
        return advantages

    def shaped_rewards(self, experience: Batch, context: Context) -> Float[Array, "B"]:
        """The rewards with the penalty of overlong answers."""
        buffer = self.overlong_buffer
        if buffer is None:
            buffer = max(1, context.max_tokens // 5)
        if not common.is_on(buffer):
            return experience["rewards"]
        lengths = experience["completion_lengths"]
        return experience["rewards"] + advantages.overlong_penalty(
            lengths, max_length=context.max_tokens, buffer=buffer
        )

    def batch_loss(
        self, outputs: Outputs, batch: Batch, behavior_logp: Float[Array, "B T"]
    ) -> Array:
        """The surrogate on a batch; a subclass whose surrogate reads more of it overrides this."""
        loss = self.surrogate(outputs.logp, behavior_logp, batch["advantages"], batch["mask"])
        wanted = batch["weights"].shape
        each = "one loss a token" if len(wanted) == 2 else "one loss an answer"
        common.check_returned(self, "surrogate", loss, wanted, each)
        return loss

    def loss(self, outputs: Outputs, batch: Batch, context: Context) -> tuple[Array, dict]:
        """Surrogate, KL and entropy terms, weighted."""
        behavior = common.behavior_logp(outputs, batch, context.on_policy)
        mask = batch["mask"]
        loss, terms = self.batch_loss(outputs, batch, behavior), []
        if common.is_on(self.sampler_correction) and context.on_policy:
            loss *= self.correction(outputs.logp, batch["sampler_logp"], mask)
        if self._kl_in("k2", "k3"):
            penalty = losses.kl_penalty(
                outputs.logp,
                batch["reference_logp"],
                gradient=self.reference_kl_form,
                behavior_logp=None if context.on_policy else batch["behavior_logp"],
            )
            terms.append(self.reference_kl * penalty)
        if common.is_on(self.entropy_coefficient):
            terms.append(-self.entropy_coefficient * outputs.entropy)
        return self.total(loss, terms, batch), self.metrics(outputs, batch, behavior)

    def metrics(self, outputs: Outputs, batch: Batch, behavior_logp: Float[Array, "B T"]) -> dict:
        """`clip_fraction`: the share of tokens whose gradient the surrogate sets to 0."""
        mask = batch["mask"]
        logp = jax.lax.stop_gradient(outputs.logp)
        clipped = self.clipped(logp, behavior_logp, batch["advantages"], mask)
        if clipped is None:
            return {}
        return {"clip_fraction": ((clipped * mask).sum(), mask.sum())}

    # --- what is said before a run --------------------------------------------------------------

    def corrects(self) -> bool:
        """Whether the token loss depends on the behaviour policy, so that it may reuse samples.

        The gradient of the surrogate is compared at five behaviour log-probabilities. REINFORCE, or
        a loss that stops its own log-probability in place of the sampler's, gives the same at all.
        """
        try:
            # Also inside of `jax.jit`, where a constant would be traced.
            with jax.ensure_compile_time_eval():
                return any(self._slopes_differ(sign) for sign in (1.0, -1.0))
        except jax.errors.TracerBoolConversionError:
            return True  # A setting is traced: its value, and so the gradient, is not known here.

    def _slopes_differ(self, advantage: float) -> bool:
        """Whether answers that differ only in the behaviour's log-probabilities have other slopes."""
        shifts = jnp.array([[0.0], [0.1], [-0.1], [1.0], [-1.0]])
        logp = jnp.tile(jnp.log(jnp.array([[0.2, 0.3, 0.25, 0.4]])), (len(shifts), 1))

        def total(x):
            advantages = self.shaped_advantages(jnp.full(shifts.shape, advantage))
            loss = self.surrogate(x, logp + shifts, advantages, jnp.ones_like(logp))
            # These sizes are none of the run's: a wrong shape is told with those of a batch.
            common.check_returned(self, "surrogate", loss, None, "an array of losses")
            return loss.sum()

        slopes = jax.grad(total)(logp)
        # Rows of one program may differ in the last bit.
        return bool((jnp.abs(slopes[1:] - slopes[:1]) > 1e-5).any())

    def inert(self) -> tuple[str, ...]:
        """The settings without effect where the ratio is 1 that a user must have meant to act."""
        return common.changed(self, self.ratio_settings)

    def warnings(self, context: Context) -> tuple[str, ...]:
        """Settings without effect in this run, and gradients with a known bias, as sentences."""
        found = [*common.inert_on_policy(self.inert())] if context.on_policy else []
        if not context.on_policy and common.is_on(self.sampler_correction):
            found.append(
                "sampler_correction has no effect off-policy: the importance ratio corrects"
            )
        if self._kl_in("k3"):
            found.append(
                "reference_kl_form k3: on-policy the gradient of this term is that of "
                "KL(initial || policy); k2 has the gradient of KL(policy || initial)"
            )
        return tuple(found)

    def _kl_in(self, *forms: str) -> bool:
        return common.is_on(self.reference_kl) and self.reference_kl_form in forms


@dataclasses.dataclass(frozen=True)
class PolicyGradient(OnSamples):
    """A token loss on sampled answers with one reward each; the base of GRPO, RLOO and their kin.

    A subclass gives `advantages` (rewards of the groups to advantages) and `surrogate` (the token
    loss), its own or that of `GroupRelative` and `RatioClip`, and adds the settings that these two
    read. Use `GroupRelative` as the base of a loss of your own that keeps GRPO's advantage.

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

    def correction(self, logp, sampler_logp, mask):
        """`losses.truncated_importance_weights`, one a token."""
        return losses.truncated_importance_weights(
            logp, sampler_logp, mask, cap=self.sampler_correction
        )


@dataclasses.dataclass(frozen=True)
class GroupAdvantage(OnSamples):
    """GRPO's advantage: rewards less the mean of their group, scaled.

    Attributes:
      scale: divide the centred rewards by the deviation of the `group`, the `batch`, or nothing.
    """

    group_statistics: ClassVar[bool] = True

    scale: Literal["group", "batch", "none"] = "group"

    def advantages(self, rewards, valid):
        """`advantages.group_relative` of the groups."""
        return advantages.group_relative(rewards, scale=self.scale, valid=valid)


@dataclasses.dataclass(frozen=True)
class SequencePolicyGradient(GroupAdvantage):
    """A loss of whole answers with GRPO's advantage; each answer counts the same.

    A subclass gives `surrogate`, which takes advantages [B] and returns one loss an answer. The KL
    and the entropy, if any, are means over the answer's tokens.
    """

    def weights(self, mask, context):
        """`masking.weights` of the answers that have a token that counts."""
        return masking.weights(jnp.asarray((mask != 0).any(-1), mask.dtype), mode="sequence")

    def total(self, loss, terms, batch):
        """The loss of each answer, and the mean of each further term over its tokens."""
        means = [masking.masked_mean(term, batch["mask"], axis=-1) for term in terms]
        return masking.weighted_sum(sum(means, loss), batch["weights"])

    def correction(self, logp, sampler_logp, mask):
        """One weight an answer: the truncated product over its tokens."""
        weights = losses.truncated_importance_weights(
            logp, sampler_logp, mask, cap=self.sampler_correction, level="sequence"
        )
        return weights.max(-1)  # 0 at masked tokens

    def shaped_advantages(self, advantages):
        """One number an answer."""
        return advantages[:, 0]


@dataclasses.dataclass(frozen=True)
class RatioClip(PolicyGradient):
    """A policy gradient with PPO's clipped token loss (Schulman et al. 2017, arXiv:1707.06347).

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
class GroupRelative(GroupAdvantage, PolicyGradient):
    """A policy gradient with GRPO's advantage: rewards less the mean of their group, scaled.

    Use it as the base of a token loss of your own: give `surrogate` and the settings that it reads.
    """
