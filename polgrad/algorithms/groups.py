"""Losses of the samples of a prompt, taken together: contrasts, rankings, the best of n.

Each class has the keyword-only numbers of a function in `polgrad.losses` as its settings. Samples
without a reward count as invalid. A row of the batch is the group of one prompt.
"""

import dataclasses
import inspect
from collections.abc import Callable
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array

from polgrad import losses, masking
from polgrad.algorithms import common
from polgrad.algorithms.from_loss import settings_of
from polgrad.contract import Algorithm, Batch, Context, Group, Initial, Outputs


@dataclasses.dataclass(frozen=True, kw_only=True)
class GroupLoss:
    """A loss of groups of samples with rewards; a subclass gives `function`.

    The function may take `logp` and `behavior_logp`, sums over each sample's tokens; `logratio`,
    the log-ratio to the initial policy; `rewards` and `valid`; all [..., G]. It returns a loss for each sample or for each group.
    """

    function: ClassVar[Callable]
    corrects: ClassVar[bool] = False
    """Whether the loss may be used on the samples of an earlier policy."""
    ratio_settings: ClassVar[tuple[str, ...]] = ()
    """Settings that act on the ratio alone: without effect where the ratio is exactly 1."""

    def build(self, context: Context) -> Algorithm:
        """The functions for a run of this size.

        Raises:
          ValueError: if a group has fewer than two samples.
        """
        common.need_group(self, context, 2)
        size = context.group_size

        def prepare(state, experience, key):
            groups = {name: common.by_group(x, size) for name, x in experience.items()}
            valid = common.answered(groups)
            counted = valid if self._of_samples(size) else valid.any(-1)
            weights = masking.weights(counted.reshape(-1).astype(jnp.float32), mode="sequence")
            weights = weights.reshape(counted.shape)
            rewards = groups["rewards"]
            return state, common.make_batch(groups, weights, rewards=rewards, valid=valid), {}

        return Algorithm(
            prepare=prepare,
            loss=lambda outputs, batch: self.loss(outputs, batch, context),
            unit=Group(),
            policies={"reference": Initial()} if "logratio" in self._names() else {},
            reuse=self.reuses(),
            warnings=common.inert_on_policy(common.changed(self, self.ratio_settings))
            if context.on_policy
            else (),
        )

    def loss(self, outputs: Outputs, batch: Batch, context: Context) -> tuple[Array, dict]:
        """The function on the sums over each sample's tokens."""
        mask, names = batch["mask"], self._names()
        behavior = common.behavior_logp(outputs, batch, context.on_policy)
        given = {"rewards": batch["rewards"], "valid": batch["valid"]}
        given["logp"] = common.sequence_logp(outputs.logp, mask)
        given["behavior_logp"] = common.sequence_logp(behavior, mask)
        if "logratio" in names:
            given["logratio"] = common.sequence_logp(outputs.logp - batch["reference_logp"], mask)
        given = {name: x for name, x in given.items() if name in names}
        loss = type(self).function(**given, **self._settings())
        return masking.weighted_sum(loss, batch["weights"]), {}

    def reuses(self) -> bool:
        """Whether a rollout may serve several updates."""
        return self.corrects

    def _names(self) -> set[str]:
        return set(inspect.signature(type(self).function).parameters)

    def _settings(self) -> dict:
        names = self._names()
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name in names}

    def _of_samples(self, size: int) -> bool:
        """Whether the function returns one number a sample, and not one a group."""
        numbers = jax.ShapeDtypeStruct((1, size), jnp.float32)
        arrays = dict.fromkeys(("logp", "behavior_logp", "logratio", "rewards"), numbers)
        arrays["valid"] = jax.ShapeDtypeStruct((1, size), bool)
        given = {name: x for name, x in arrays.items() if name in self._names()}
        shape = jax.eval_shape(
            lambda **given: type(self).function(**given, **self._settings()), **given
        )
        return len(shape.shape) == 2


CoPG = settings_of(losses.copg_group, "CoPG", GroupLoss, defaults={"beta": 0.1}, corrects=True)
P3OV1 = settings_of(losses.p3o_v1, "P3OV1", GroupLoss, corrects=True, ratio_settings=("clip",))
P3OV2 = settings_of(
    losses.p3o_v2,
    "P3OV2",
    GroupLoss,
    corrects=True,
    ratio_settings=("clip", "clip_logits"),
)
PairwisePolicyGradient = settings_of(
    losses.pairwise_policy_gradient, "PairwisePolicyGradient", GroupLoss, corrects=True
)
BestOfN = settings_of(
    losses.best_of_n,
    "BestOfN",
    GroupLoss,
    choices={"negative": ("none", "worst", "sum", "mean")},
)
RewardWeighted = settings_of(
    losses.reward_weighted,
    "RewardWeighted",
    GroupLoss,
    choices={"weight": ("exponential", "sigmoid", "softmax")},
)
