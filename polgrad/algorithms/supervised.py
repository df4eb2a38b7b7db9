"""Maximum likelihood on demonstrations: the warm start, and a baseline for everything else."""

import dataclasses
from typing import Literal

from polgrad import losses, masking
from polgrad.algorithms import common
from polgrad.contract import Algorithm, Collect, Context


@dataclasses.dataclass(frozen=True)
class Supervised:
    """Cross-entropy of the demonstrated completions.

    Attributes:
      aggregation: how token losses become one number.
    """

    aggregation: Literal["token", "sequence", "sequence_sum"] = "token"

    def build(self, context: Context) -> Algorithm:
        """The functions; the sizes of rollouts do not matter here."""

        def prepare(state, experience, key):
            weights = masking.weights(experience["mask"], mode=self.aggregation)
            return state, common.make_batch(experience, weights), {}

        def loss(outputs, batch):
            return masking.weighted_sum(losses.imitation(outputs.logp), batch["weights"]), {}

        return Algorithm(prepare=prepare, loss=loss, collect=Collect(None, columns=("answer",)))
