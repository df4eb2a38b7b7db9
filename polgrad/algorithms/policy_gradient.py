"""What all policy gradients on sampled answers share: an advantage, a surrogate, terms, filters."""

import dataclasses
import inspect

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from polgrad import _parts, advantages
from polgrad.algorithms import common, estimators, surrogates
from polgrad.algorithms.estimators import Estimator
from polgrad.algorithms.surrogates import SequenceSurrogate, Surrogate, TokenSurrogate
from polgrad.algorithms.terms import KL, Entropy, OverlongPenalty, RewardKL, TruncatedWeights
from polgrad.contract import Algorithm, Batch, Context, Needs, Outputs


@dataclasses.dataclass(frozen=True)
class OnSamples:
    """A loss on sampled answers with one reward each: what all policy gradients here share.

    Attributes:
      kl: a KL to a reference policy, as a term of the loss or subtracted from the reward.
      entropy: a bonus for the policy's entropy.
      drop_uniform_groups: mask the groups whose rewards are all equal (DAPO's filter). The filter
        reads the rewards before any penalty.
      mask_truncated: mask the samples that reached max_tokens without an end token.
      overlong: a penalty on the reward of long answers.
      sampler_correction: importance weights between the trainer and the sampler, for on-policy runs.
    """

    kl: KL | RewardKL | None = None
    entropy: Entropy | None = None
    drop_uniform_groups: bool = False
    mask_truncated: bool = False
    overlong: OverlongPenalty | None = None
    sampler_correction: TruncatedWeights | None = None

    @property
    def estimator(self) -> Estimator:
        """What makes advantages of rewards: these settings themselves, or one of their parts."""
        return self

    @property
    def objective(self) -> Surrogate:
        """What makes losses of advantages: these settings themselves, or one of their parts."""
        return self

    # --- the functions of the contract ----------------------------------------------------------

    def build(self, context: Context) -> Algorithm:
        """The functions for a run of this size.

        Raises:
          ValueError: if every gradient would be 0 by construction, or if a method takes other
            arguments or returns no array.
        """
        self.check_parts()
        estimator, objective = self.estimator, self.objective
        if not estimator.of_tokens:
            common.check_arguments(estimator, estimators.ARGUMENTS)
        elif objective.of_answers:
            raise ValueError(
                f"{type(estimator).__name__} has an advantage for each token, and "
                f"{type(objective).__name__} takes one for each answer"
            )
        common.check_arguments(objective, surrogates.ARGUMENTS)
        if estimator.group_statistics or self.drop_uniform_groups:
            common.need_group(estimator, context, 2)

        def prepare(state, experience, key):
            return state, *self.prepare(experience, context)

        def loss(outputs, batch):
            return self.loss(outputs, batch, context)

        def select(outputs, batch, key):
            behavior = common.behavior_logp(outputs, batch, context.on_policy)
            return objective.select(outputs, batch, behavior, key)

        algorithm = Algorithm(
            prepare=prepare,
            loss=loss,
            policies={"reference": self.kl.reference} if self.kl else {},
            needs=Needs(entropy=self.entropy is not None),
            reuse=self.corrects(),
            warnings=self.warnings(context),
        )
        return algorithm._replace(select=select) if objective.selects else algorithm

    def check_parts(self) -> None:
        """Checks that each field of parts holds one of them.

        Raises:
          ValueError: a field that holds something else.
        """
        _parts.check(self)

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
        rewards = experience["rewards"]
        if self.overlong is not None:
            rewards = self.overlong.of_answers(rewards, experience, context.max_tokens)
        found = self.advantages_of if not self.estimator.of_tokens else self.advantages_of_tokens
        batch = common.make_batch(
            experience,
            self.objective.weights(mask, context),
            advantages=found(rewards, experience, mask, context),
        )
        return batch, {"uniform_groups": uniform.mean()}

    def advantages_of(
        self,
        rewards: Float[Array, "B"],
        experience: Batch,
        mask: Float[Array, "B T"],
        context: Context,
    ) -> Float[Array, "B 1"] | Float[Array, "B"]:
        """One advantage a sample, from its group; the KL of the whole answer in the reward."""
        if isinstance(self.kl, RewardKL):
            rewards = self.kl.of_answers(rewards, experience, experience["mask"])
        rewards, valid = (
            common.by_group(x, context.group_size) for x in (rewards, experience["valid"])
        )
        found = self.estimator.advantages(rewards, valid)
        common.check_returned(
            self.estimator, "advantages", found, rewards.shape, "one number a sample"
        )
        return self.objective.shaped(found.reshape(-1, 1))

    def advantages_of_tokens(
        self,
        rewards: Float[Array, "B"],
        experience: Batch,
        mask: Float[Array, "B T"],
        context: Context,
    ) -> Float[Array, "B T"]:
        """Advantages of the tokens: the reward of the answer, less the KL of each later token."""
        rewards = advantages.place_at_last(rewards, mask)
        if isinstance(self.kl, RewardKL):
            rewards += self.kl.of_tokens(experience, mask)
        return self.estimator.token_advantages(rewards, mask)

    def loss(self, outputs: Outputs, batch: Batch, context: Context) -> tuple[Array, dict]:
        """Surrogate, KL and entropy terms, weighted."""
        behavior = common.behavior_logp(outputs, batch, context.on_policy)
        objective, mask = self.objective, batch["mask"]
        loss, terms = objective.batch_loss(outputs, batch, behavior), []
        if self.sampler_correction is not None and context.on_policy:
            loss *= objective.correction(
                self.sampler_correction, outputs.logp, batch["sampler_logp"], mask
            )
        if isinstance(self.kl, KL):
            terms.append(self.kl.term(outputs, batch, context.on_policy))
        if self.entropy is not None:
            terms.append(self.entropy.term(outputs))
        return objective.total(loss, terms, batch), objective.metrics(outputs, batch, behavior)

    # --- what is said before a run --------------------------------------------------------------

    def corrects(self) -> bool:
        """Whether the surrogate depends on the behaviour policy, so that it may reuse samples.

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
            given = self.objective.shaped(jnp.full(shifts.shape, advantage))
            loss = self.objective.surrogate(x, logp + shifts, given, jnp.ones_like(logp))
            # These sizes are none of the run's: a wrong shape is told with those of a batch.
            common.check_returned(self.objective, "surrogate", loss, None, "an array of losses")
            return loss.sum()

        slopes = jax.grad(total)(logp)
        # Rows of one program may differ in the last bit.
        return bool((jnp.abs(slopes[1:] - slopes[:1]) > 1e-5).any())

    def warnings(self, context: Context) -> tuple[str, ...]:
        """Settings without effect in this run, and gradients with a known bias, as sentences."""
        inert = self.objective.inert()
        if self.objective is not self:
            inert = tuple(f"surrogate.{name}" for name in inert)
        found = [*common.inert_on_policy(inert)] if context.on_policy else []
        if not context.on_policy and self.sampler_correction is not None:
            why = ": the importance ratio corrects" if self.corrects() else ""
            found.append(f"sampler_correction has no effect off-policy{why}")
        if self.kl is not None:
            found += self.kl.warnings(context)
        return tuple(found)


@dataclasses.dataclass(frozen=True)
class PolicyGradient(OnSamples):
    """A policy gradient composed of an advantage and a surrogate, each chosen by name.

    Use it to try combinations that no paper has named: `PolicyGradient(advantage=LeaveOneOut(),
    surrogate=CISPO(cap_high=4.0))`. The named algorithms are such combinations with their paper's
    defaults.

    Attributes:
      advantage: how rewards become advantages, from `algorithms.estimators`.
      surrogate: the loss of tokens or answers, from `algorithms.surrogates`. It decides how losses
        are weighted.
    """

    advantage: (
        estimators.GroupRelative
        | estimators.LeaveOneOut
        | estimators.Baseline
        | estimators.WhitenedReturns
    ) = estimators.GroupRelative()
    surrogate: (
        surrogates.PPOClip
        | surrogates.LogLikelihood
        | surrogates.CISPO
        | surrogates.GSPO
        | surrogates.SAPO
        | surrogates.ClipCov
        | surrogates.KLCov
        | surrogates.LUSPO
        | surrogates.GMPO
        | surrogates.PPOClipSequence
    ) = surrogates.PPOClip()

    def check_parts(self):
        """Parts of your own may stand where the named ones do; a whole algorithm may not."""
        _parts.check(self, own={"advantage": Estimator, "surrogate": Surrogate})
        for name in ("advantage", "surrogate"):
            part = getattr(self, name)
            if isinstance(part, OnSamples):
                kind = type(part).__name__
                raise ValueError(
                    f"{name} is the algorithm {kind}, expected a part: algorithms.surrogates.{kind}"
                    if name == "surrogate"
                    else f"{name} is the algorithm {kind}, expected a part of algorithms.estimators"
                )

    def __init_subclass__(cls, **settings):
        super().__init_subclass__(**settings)
        methods = [n for n in ("advantages", "surrogate") if inspect.isfunction(vars(cls).get(n))]
        if methods:
            raise TypeError(
                f"{cls.__name__} has the method {methods[0]}, which PolicyGradient would not call; "
                "derive it from algorithms.TokenPolicyGradient, or from GroupRelative"
            )

    @property
    def estimator(self):
        """The part."""
        return self.advantage

    @property
    def objective(self):
        """The part."""
        return self.surrogate


@dataclasses.dataclass(frozen=True)
class TokenPolicyGradient(OnSamples, TokenSurrogate, Estimator):
    """The base of a policy gradient of your own with a token loss.

    A subclass gives `advantages` (rewards of the groups to advantages) and `surrogate` (the token
    loss), and adds the settings that these two read. Use `GroupRelative` as the base of a loss of
    your own that keeps GRPO's advantage.
    """


@dataclasses.dataclass(frozen=True)
class GroupRelative(OnSamples, estimators.GroupRelative, TokenSurrogate):
    """A policy gradient with GRPO's advantage: rewards less the mean of their group, scaled.

    Use it as the base of a token loss of your own: give `surrogate` and the settings that it reads.
    """


@dataclasses.dataclass(frozen=True)
class SequencePolicyGradient(OnSamples, estimators.GroupRelative, SequenceSurrogate):
    """The base of a loss of whole answers of your own, with GRPO's advantage.

    A subclass gives `surrogate`, which takes advantages [B] and returns one loss an answer; each
    answer counts the same. The KL and the entropy, if any, are means over the answer's tokens.
    """
