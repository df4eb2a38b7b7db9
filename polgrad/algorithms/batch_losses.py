"""Any loss of a whole batch, made usable in micro-batches and on several devices.

A loss that compares all rows of a batch (a hinge on the batch's mean, a sort of its margins, a
whitening) is not a sum over rows: computed in parts its gradient is another one.
"""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array

from polgrad.contract import Algorithm, Batch, Outputs

Loss = Callable[[Outputs, Batch], tuple[Array, Mapping[str, tuple[Array, Array]]]]
Select = Callable[[Outputs, Batch, Array], Batch]

_SLOPE, _VALUE, _METRIC = "slope_of_", "share_of_loss", "share_of_metric_"


def whole_batch(loss: Loss, *, select: Select | None = None) -> tuple[Select, Loss]:
    r"""Splits a loss of the whole batch into `Algorithm.select` and an `Algorithm.loss` that adds up.

    Use it for a loss that is no weighted sum over rows. `select` computes the slopes
    :math:`g = \partial L / \partial\, \text{outputs}` once on the whole optimiser batch, and the
    new loss is the linear function

    .. math:: L + \sum g \cdot (\text{outputs} - \mathrm{stop}(\text{outputs})),

    which has the value and the gradient of L however the batch is split. It costs one more forward
    pass. It is exact to first order only: the second derivative of the new loss is another one.

    Args:
      loss: `(outputs, batch) -> (number, {name: (sum, count)})`, differentiable, on a whole
        optimiser batch. A weighted sum over rows works as well, but needs no `whole_batch`.
      select: another `Algorithm.select`, applied before.

    Returns:
      `(select, loss)`, for `Algorithm(..., select=select, loss=loss)`.

    Raises:
      ValueError: when traced, if the loss is not one number.
    """

    def whole_select(outputs: Outputs, batch: Batch, key: Array) -> Batch:
        if select is not None:
            batch = select(outputs, batch, key)

        def value(outputs):
            total, metrics = loss(outputs, batch)
            if jnp.shape(total) != ():
                raise ValueError(
                    f"the loss of a whole batch has shape {list(jnp.shape(total))}, expected []"
                )
            return total, metrics

        (total, metrics), slopes = jax.value_and_grad(value, has_aux=True)(outputs)
        rows = batch["weights"].shape[0]

        def share(x):
            return jnp.full((rows,), x / rows)

        added = {_VALUE: share(total)}
        for name, slope in slopes._asdict().items():
            if slope is not None:
                added[_SLOPE + name] = slope
        for name, (amount, count) in metrics.items():
            added[_METRIC + name] = jnp.stack([share(amount), share(count)], axis=-1)
        return {**batch, **added}

    def linear_loss(outputs: Outputs, batch: Batch):
        total = batch[_VALUE].sum()
        for name, x in outputs._asdict().items():
            if x is not None:
                # A token that the policy excludes has no slope, and minus infinity no difference.
                finite = jnp.where(jnp.isfinite(x), x, 0.0)
                moved = finite - jax.lax.stop_gradient(finite)
                total += (jax.lax.stop_gradient(batch[_SLOPE + name]) * moved).sum()
        metrics = {
            name.removeprefix(_METRIC): (x[:, 0].sum(), x[:, 1].sum())
            for name, x in batch.items()
            if name.startswith(_METRIC)
        }
        return total, metrics

    return whole_select, linear_loss


def splits(algorithm: Algorithm) -> Algorithm:
    """An algorithm whose loss is one of the whole batch, as one whose loss adds up over rows.

    Args:
      algorithm: with a `loss` for `whole_batch`; its `select` is applied before.

    Returns:
      The same with `select` and `loss` replaced.
    """
    before = algorithm.select if algorithm.selects else None
    select, loss = whole_batch(algorithm.loss, select=before)
    return algorithm._replace(select=select, loss=loss)
