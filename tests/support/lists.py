"""An algorithm whose rows are lists: the samples of a prompt, ranked by their rewards."""

import dataclasses

import jax.numpy as jnp

from polgrad import losses, masking
from polgrad.algorithms import common
from polgrad.contract import Algorithm, Initial, List


@dataclasses.dataclass(frozen=True)
class Ranked:
    """`losses.listwise_softmax` of the implicit rewards, with the rewards as labels.

    Attributes:
      beta: strength of the KL to the initial policy.
    """

    beta: float = 0.5

    def build(self, context):
        """The functions; a row of the batch is a list of answers."""

        def prepare(state, experience, key):
            lists = {name: common.by_group(x, context.group_size) for name, x in experience.items()}
            valid = common.answered(lists)
            weights = masking.weights(valid.any(-1).astype(jnp.float32), mode="sequence")
            labels = jnp.clip(lists["rewards"], 0.0, 1.0)
            return state, common.make_batch(lists, weights, labels=labels, valid=valid), {}

        def loss(outputs, batch):
            distance = outputs.logp - batch["reference_logp"]
            scores = self.beta * common.sequence_logp(distance, batch["mask"])
            each = losses.listwise_softmax(scores, batch["labels"], valid=batch["valid"])
            return masking.weighted_sum(each, batch["weights"]), {}

        return Algorithm(prepare, loss, unit=List(), policies={"reference": Initial()})
