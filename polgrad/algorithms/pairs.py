"""Losses of pairs of answers: DPO (Rafailov et al. 2023, arXiv:2305.18290) and its kin.

Each class has the keyword-only numbers of a function in `polgrad.losses` as its settings. The pairs
come from the columns of a data file, or are the best and the worst sample of each prompt.
"""

import dataclasses
import inspect
import re
from collections.abc import Callable
from typing import ClassVar, Literal

import jax.numpy as jnp
from jaxtyping import Array

from polgrad import losses, masking
from polgrad.algorithms import common
from polgrad.algorithms.from_loss import settings_of
from polgrad.algorithms.whole import splits
from polgrad.contract import Algorithm, Batch, Collect, Context, Initial, Outputs, Pair

BEST_AND_WORST = ("chosen", "rejected")
_INPUT = re.compile(r"(\w+?)_(logratio|reference_logp|logp|lengths)")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairLoss:
    """A loss of pairs; a subclass gives `function`, whose array arguments tell what it reads.

    Of the answer in a role, `chosen` say, a function may take `chosen_logratio`, the log-ratio to
    the initial policy; `chosen_logp` and `chosen_reference_logp`, the log-probabilities under the
    policy and the initial policy; and `chosen_lengths`, in tokens.

    Attributes:
      pairs: `"data"` reads the answers from the columns of the data that are named as the roles;
        `"samples"` samples answers to each prompt and pairs the best with the worst (online DPO,
        Guo et al. 2024, arXiv:2402.04792).
    """

    function: ClassVar[Callable]
    average: ClassVar[bool] = False
    """Whether `<role>_logp` is a mean over tokens, and not a sum."""
    whole: ClassVar[bool] = False
    """Whether the loss couples the pairs of a batch, so that it is no sum over pairs."""

    pairs: Literal["data", "samples"] = "data"

    @classmethod
    def inputs(cls) -> dict[str, tuple[str, str]]:
        """The function's array arguments: by name the role and what is read of its answer."""
        names = inspect.signature(cls.function).parameters
        found = {name: _INPUT.fullmatch(name) for name in names}
        return {name: (match[1], match[2]) for name, match in found.items() if match}

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
        kinds = {kind for _, kind in self.inputs().values()}
        needs_reference = bool(kinds & {"logratio", "reference_logp"})
        algorithm = Algorithm(
            prepare=lambda state, experience, key: (state, *self.prepare(experience, context)),
            loss=self.loss,
            unit=Pair(self.roles()),
            collect=Collect() if self.pairs == "samples" else Collect(None, columns=self.roles()),
            policies={"reference": Initial()} if needs_reference else {},
            reuse=self.pairs == "data",
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
            tokens = outputs.logp if kind == "logp" else batch["reference_logp"]
        if self.average:
            return masking.masked_mean(tokens[:, place], mask, axis=-1)
        return masking.sequence_sum(tokens[:, place], mask)


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
LinearMargin = _of("LinearMargin", losses.linear_margin)
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
      beta: strength of the KL to the initial policy, positive.
      label_smoothing: probability that a label is wrong, in [0, 0.5].
    """

    pairs: Literal["data", "samples"] = dataclasses.field(default="samples", kw_only=True)
