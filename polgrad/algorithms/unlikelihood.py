"""Likelihood of the preferred answers, unlikelihood of the others: pairs without a reference."""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array

from polgrad import losses, masking
from polgrad._scalars import in_range
from polgrad.algorithms import common
from polgrad.algorithms.pairs import BEST_AND_WORST, PairLoss
from polgrad.contract import Batch, Outputs


@dataclasses.dataclass(frozen=True)
class Unlikelihood(PairLoss):
    r"""Imitation of the chosen answers, and the tokens of the rejected ones avoided.

    Use it as a baseline for `DPO`: it reads the same pairs and no initial policy. With sums over the
    tokens of an answer, the loss of a pair is

    .. math:: -\sum_t \log \pi(\text{chosen}_t) - w \sum_t \log(1 - \pi(\text{rejected}_t)).

    Attributes:
      weight: w, of the rejected answer's tokens, non-negative.

    References:
      Welleck et al., Neural Text Generation with Unlikelihood Training, 2019 (arXiv:1908.04319).
      Rafailov et al., Direct Preference Optimization, 2023 (arXiv:2305.18290), as a baseline.
    """

    weight: float = 1.0

    @classmethod
    def inputs(cls):
        """None of a function: the loss reads each token."""
        return {}

    def roles(self):
        """The two of a pair."""
        return BEST_AND_WORST

    def build(self, context):
        """As `PairLoss.build`; checks the weight too.

        Raises:
          ValueError: if the weight is negative, or as `PairLoss.build`.
        """
        in_range("weight", self.weight, low=0.0)
        return super().build(context)

    def loss(self, outputs: Outputs, batch: Batch) -> tuple[Array, dict]:
        """The sums over the tokens of both answers."""
        mask, weights = batch["mask"], batch["weights"]
        chosen, rejected = outputs.logp[:, 0], outputs.logp[:, 1]
        tokens = [losses.imitation(chosen), self.weight * losses.unlikelihood(rejected)]
        loss = common.sequence_logp(jnp.stack(tokens, axis=1), mask).sum(-1)
        logp = common.sequence_logp(outputs.logp, mask)
        given = {f"{role}_logp": logp[:, i] for i, role in enumerate(BEST_AND_WORST)}
        return masking.weighted_sum(loss, weights), self.metrics(given, weights)
