"""Losses of pairs of answers: DPO (Rafailov et al. 2023, arXiv:2305.18290) and its kin.

Each class has the keyword-only numbers of a function in `polgrad.losses` as its settings. The pairs
come from the columns of a data file, or are the best and the worst sample of each prompt. Nothing
in these losses asks who wrote the pairs, so that a rollout may serve several updates.
"""

import dataclasses
import inspect
import re
from collections.abc import Callable
from typing import ClassVar, Literal

import jax.numpy as jnp
from jaxtyping import Array

from polgrad import _parts, losses, masking
from polgrad.algorithms import common
from polgrad.algorithms.batch_losses import splits
from polgrad.algorithms.from_loss import settings_of
from polgrad.contract import (
    Algorithm,
    Batch,
    Collect,
    Context,
    Initial,
    NamedPolicy,
    Outputs,
    Pair,
    Previous,
)

BEST_AND_WORST = ("chosen", "rejected")
_INPUT = re.compile(r"(\w+?)_(logratio|reference_logp|previous_logp|logp|lengths)")
_OF_REFERENCE = {"logratio", "reference_logp"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairLoss:
    """A loss of pairs; a subclass gives `function`, whose array arguments tell what it reads.

    Of the answer in a role, `chosen` say, a function may take `chosen_logratio`, the log-ratio to
    the reference; `chosen_logp`, `chosen_reference_logp` and `chosen_previous_logp`, the
    log-probabilities under the policy, the reference and the policy that sampled the rollout; and
    `chosen_lengths`, in tokens.

    Attributes:
      reference: of a loss that reads one: the policy that training started from, `Initial()`; a
        copy of the policy that is made anew every few rollouts, `Previous(every)`; or the moving
        average of the policy, `Average(decay)` (the hard and the soft update of TR-DPO, Gorbatovski
        et al. 2024, arXiv:2404.09656). `Previous(every=1)`, the sampling policy, needs samples.
      pairs: `"data"` reads the answers from the columns of the data that are named as the roles;
        `"samples"` samples answers to each prompt and pairs the best with the worst (online DPO,
        Guo et al. 2024, arXiv:2402.04792).
    """

    function: ClassVar[Callable]
    average: ClassVar[bool] = False
    """Whether `<role>_logp` is a mean over tokens, and not a sum."""
    of_two: ClassVar[bool] = False
    """Whether the method's theory has a pair of two independent samples."""
    whole: ClassVar[bool] = False
    """Whether the loss couples the pairs of a batch, so that it is no sum over pairs."""
    reference: ClassVar[NamedPolicy] = Initial()

    pairs: Literal["data", "samples"] = "data"

    @classmethod
    def inputs(cls) -> dict[str, tuple[str, str]]:
        """The function's array arguments: by name the role and what is read of its answer."""
        return _inputs(cls.function)

    @staticmethod
    def further_settings(function: Callable) -> list[tuple]:
        """The field `reference`, for a function that reads one (see `settings_of`)."""
        if not _OF_REFERENCE & {kind for _, kind in _inputs(function).values()}:
            return []
        default = dataclasses.field(default=Initial(), kw_only=True)
        return [("reference", NamedPolicy, default)]

    def roles(self) -> tuple[str, ...]:
        """The answers of a row, in their order."""
        return tuple(dict.fromkeys(role for role, _ in self.inputs().values()))

    def place(self, role: str) -> int:
        """Which of a row's answers has a role."""
        return self.roles().index(role)

    def build(self, context: Context) -> Algorithm:
        """The functions; a row of the batch holds one answer for each role.

        Raises:
          ValueError: if pairs are to be made of samples, and there is no second sample, or the
            loss reads a third answer.
        """
        _parts.check(self)
        algorithm = Algorithm(
            prepare=lambda state, experience, key: (state, *self.prepare(experience, context)),
            loss=self.loss,
            unit=Pair(self.roles()),
            collect=Collect() if self.pairs == "samples" else Collect(None, columns=self.roles()),
            policies=self._policies(),
            warnings=self.warnings(context),
        )
        if self.pairs == "samples":
            common.need_group(self, context, 2)
            if set(self.roles()) != set(BEST_AND_WORST):
                third = "; or set third to 'chosen'" if hasattr(self, "third") else ""
                raise ValueError(
                    f"pairs is 'samples', expected 'data': {type(self).__name__} reads the answers "
                    f"{', '.join(self.roles())}, and samples make chosen and rejected{third}"
                )
        return splits(algorithm) if self.whole else algorithm

    def warnings(self, context: Context) -> tuple[str, ...]:
        """A sentence on groups in which the best and the worst are no two independent samples."""
        if not (self.of_two and self.pairs == "samples" and context.group_size > 2):
            return ()
        return (
            f"{type(self).__name__} makes one step of mirror descent with two samples of a prompt; the "
            f"best and the worst of {context.group_size} samples make another, smaller one, and the "
            "samples between them are not used",
        )

    def _policies(self) -> dict[str, NamedPolicy]:
        """The policies besides the trained one that the function reads."""
        kinds = {kind for _, kind in self.inputs().values()}
        found = {"reference": self.reference} if kinds & _OF_REFERENCE else {}
        return found | ({"previous": Previous(every=1)} if "previous_logp" in kinds else {})

    def prepare(self, experience: Batch, context: Context) -> tuple[Batch, dict]:
        """The pairs and their weights."""
        metrics = {}
        usable = jnp.array(True)
        if self.pairs == "samples":
            experience, usable = best_and_worst(experience, context.group_size)
            order = jnp.array([BEST_AND_WORST.index(role) for role in self.roles()])
            experience = {name: x[:, order] for name, x in experience.items()}
            metrics = {"pairs": usable.mean()}
        # Every answer must have a token that counts.
        usable &= (experience["mask"] != 0).any(-1).all(-1)
        weights = masking.weights(usable.astype(jnp.float32), mode="sequence")
        return common.make_batch(experience, weights), metrics

    def loss(self, outputs: Outputs, batch: Batch) -> tuple[Array, dict]:
        """The function on the sums, or means, over each answer's tokens."""
        weights = batch["weights"]
        given = {name: self._input(outputs, batch, *of) for name, of in self.inputs().items()}
        names = inspect.signature(type(self).function).parameters
        settings = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        settings = {name: value for name, value in settings.items() if name in names}
        if "valid" in names:
            settings["valid"] = weights > 0
        loss = type(self).function(**given, **settings)
        return masking.weighted_sum(loss, weights), self.metrics(given, weights)

    def metrics(self, given: dict[str, Array], weights: Array) -> dict:
        """`margin` and `pair_accuracy` of the log-ratios, or else of the log-probabilities."""
        for kind in ("logratio", "logp"):
            names = [f"{role}_{kind}" for role in BEST_AND_WORST]
            if all(name in given for name in names):
                chosen, rejected = (given[name] for name in names)
                return {
                    "margin": ((weights * (chosen - rejected)).sum(), weights.sum()),
                    "pair_accuracy": ((weights * (chosen > rejected)).sum(), weights.sum()),
                }
        return {}

    def _input(self, outputs: Outputs, batch: Batch, role: str, kind: str) -> Array:
        """What is read of the answer in a role, one number a row."""
        place = self.place(role)
        mask = batch["mask"][:, place]
        if kind == "lengths":
            return mask.sum(-1)
        if kind == "logratio":
            tokens = outputs.logp - batch["reference_logp"]
        else:
            tokens = outputs.logp if kind == "logp" else batch[kind]
        if self.average:
            return masking.masked_mean(tokens[:, place], mask, axis=-1)
        return masking.sequence_sum(tokens[:, place], mask)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Linear(PairLoss):
    """A loss whose gradient is the same whatever the reference is: there is nothing to set."""

    @staticmethod
    def further_settings(function):
        """None."""
        return []


@dataclasses.dataclass(frozen=True, kw_only=True)
class TripleLoss(PairLoss):
    """A loss of pairs that imitates a third answer.

    Attributes:
      third: `"chosen"` imitates the chosen answer; `"data"` reads the third answer from the column
        that is named as its role.
    """

    third: Literal["chosen", "data"] = "chosen"

    def roles(self):
        """All three, or the two of a pair."""
        return super().roles()[: 3 if self.third == "data" else 2]

    def place(self, role):
        """The chosen answer's place for the third role, where the two are one answer."""
        return super().place(role) if role in self.roles() else 0


def _inputs(function: Callable) -> dict[str, tuple[str, str]]:
    found = {name: _INPUT.fullmatch(name) for name in inspect.signature(function).parameters}
    return {name: (match[1], match[2]) for name, match in found.items() if match}


def best_and_worst(experience: Batch, group_size: int) -> tuple[Batch, Array]:
    """The best and the worst valid sample of each prompt.

    Args:
      experience: of a rollout.
      group_size: samples of each prompt.

    Returns:
      `(pairs, usable)`: the arrays with leading axes [P, 2], the best first, and True where the
      two have different rewards [P].
    """
    rewards = common.by_group(experience["rewards"], group_size)
    valid = common.by_group(experience["valid"], group_size)
    best = jnp.argmax(jnp.where(valid, rewards, -jnp.inf), axis=1)
    worst = jnp.argmin(jnp.where(valid, rewards, jnp.inf), axis=1)
    pick = jnp.stack([best, worst], axis=1)
    rows = jnp.arange(len(pick))[:, None] * group_size + pick
    pairs = {k: x[rows] for k, x in experience.items()}
    gap = jnp.diff(jnp.take_along_axis(rewards, pick, axis=1), axis=1)[:, 0]
    return pairs, (valid.sum(1) >= 2) & (gap < 0)


def _of(name: str, function: Callable, base: type = PairLoss, **attributes) -> type:
    return settings_of(function, name, base, depth=2, **attributes)


DPO = _of("DPO", losses.dpo)
IPO = _of("IPO", losses.ipo)
Hinge = _of("Hinge", losses.hinge)
EXO = _of("EXO", losses.exo)
DiscoPOP = _of("DiscoPOP", losses.discopop)
ExponentialMargin = _of("ExponentialMargin", losses.exponential_margin)
LinearMargin = _of("LinearMargin", losses.linear_margin, _Linear)
RobustDPO = _of("RobustDPO", losses.robust_dpo)
NCA = _of("NCA", losses.nca)
APOZero = _of("APOZero", losses.apo_zero)
APODown = _of("APODown", losses.apo_down)
AOT = _of("AOT", losses.aot, whole=True)
RPO = _of("RPO", losses.rpo, TripleLoss)
SimPO = _of("SimPO", losses.simpo, average=True)
AlphaPO = _of("AlphaPO", losses.alphapo, average=True)
ORPO = _of("ORPO", losses.orpo, average=True)
CPO = _of("CPO", losses.cpo)
SLiC = _of("SLiC", losses.slic, TripleLoss)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _GoldAnswer(TripleLoss):
    third: Literal["chosen", "data"] = "data"


TPO = _of("TPO", losses.tpo, _GoldAnswer)


@dataclasses.dataclass(frozen=True)
class OnlineDPO(DPO):
    """DPO on the best and the worst sample of each prompt (Guo et al. 2024, arXiv:2402.04792).

    The loss is `losses.dpo`. Prompts whose samples all have the same reward make no pair.

    Attributes:
      pairs: as in `DPO`; `"samples"` by default.
      reference: as in `DPO`.
      beta: strength of the KL to the reference, positive.
      label_smoothing: probability that a label is wrong, in [0, 0.5].
    """

    pairs: Literal["data", "samples"] = dataclasses.field(default="samples", kw_only=True)


@dataclasses.dataclass(frozen=True)
class SPPO(PairLoss):
    """SPPO: each answer of a pair, with the one comparison that it was in as its win rate.

    The loss is `losses.sppo(chosen, 1) + losses.sppo(rejected, 0)`, "SPPO-hard". Of two samples the
    one with the larger reward is preferred. Take two samples of a prompt: among more, the best and
    the worst are no pair of independent samples.

    Attributes:
      pairs: as in `DPO`; `"samples"` by default.
      reference: as in `DPO`; the sampling policy, `Previous(every=1)`, by default.
      eta: step of the multiplicative weights, positive; nats of log-ratio between an answer that
        always wins and one that always loses.

    References:
      Wu et al., Self-Play Preference Optimization for Language Model Alignment, 2024
      (arXiv:2405.00675).
    """

    of_two: ClassVar[bool] = True

    pairs: Literal["data", "samples"] = dataclasses.field(default="samples", kw_only=True)
    reference: NamedPolicy = dataclasses.field(default=Previous(every=1), kw_only=True)
    eta: float = 1000.0

    @staticmethod
    def function(chosen_logratio, rejected_logratio, *, eta):
        """The sum of the losses of the two answers."""
        won = losses.sppo(chosen_logratio, jnp.ones_like(chosen_logratio), eta=eta)
        return won + losses.sppo(rejected_logratio, jnp.zeros_like(rejected_logratio), eta=eta)


@dataclasses.dataclass(frozen=True)
class INPO(PairLoss):
    """INPO: mirror descent in a preference game, by regression on pairs of samples.

    The loss is `losses.inpo` of `losses.inpo_contrast`. With two samples of a prompt, of which the
    one with the larger reward is preferred, its minimiser is one step of mirror descent from the
    policy that sampled the rollout: take many updates a rollout. Of more samples the best and the
    worst are taken, as in the paper's runs, which makes a smaller step. With tau = inverse_step it
    is online IPO.

    Attributes:
      inverse_step: reciprocal of the step of mirror descent, positive.
      tau: strength of the KL to the reference, in [0, inverse_step].
      reference: as in `DPO`.

    References:
      Zhang et al., Iterative Nash Policy Optimization: Aligning LLMs with General Preferences via
      No-Regret Learning, 2024 (arXiv:2407.00617).
    """

    # No setting: pairs of the data have no policy that sampled them.
    pairs: ClassVar[Literal["data", "samples"]] = "samples"
    of_two: ClassVar[bool] = True

    inverse_step: float = 0.005
    tau: float = 0.005 / 3
    reference: NamedPolicy = dataclasses.field(default=Initial(), kw_only=True)

    @staticmethod
    def function(
        chosen_logp,
        rejected_logp,
        chosen_reference_logp,
        rejected_reference_logp,
        chosen_previous_logp,
        rejected_previous_logp,
        *,
        inverse_step,
        tau,
    ):
        """`losses.inpo` of the contrast of a pair."""
        contrast = losses.inpo_contrast(
            chosen_logp,
            rejected_logp,
            chosen_reference_logp,
            rejected_reference_logp,
            chosen_previous_logp,
            rejected_previous_logp,
            inverse_step=inverse_step,
            tau=tau,
        )
        return losses.inpo(contrast, inverse_step=inverse_step)
