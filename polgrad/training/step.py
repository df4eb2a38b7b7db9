"""The compiled parts of a run: scoring a batch, and one optimiser update on it."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from polgrad import divergences
from polgrad.contract import Algorithm, Batch, Outputs
from polgrad.training import named_policies
from polgrad.training import scoring as scoring_lib
from polgrad.training.scoring import Scoring, score, split_tree
from polgrad.training.state import TrainState, assemble

Forward = Callable[[Any, Batch], Outputs]
"""A policy's outputs for a batch, `(params, batch) -> Outputs`; always with the entropy."""


def make_scorer(network, scoring: Scoring, *, micro_batches: int = 1) -> Forward:
    """A function `(params, batch) -> Outputs` that needs the memory of one micro-batch only."""
    return scorer_of(forward_of(network, scoring), micro_batches=micro_batches)


def forward_of(network, scoring: Scoring) -> Forward:
    """`scoring.score` of a network with these settings."""
    return lambda params, batch: score(network, params, batch, scoring)


def scorer_of(forward: Forward, *, micro_batches: int = 1) -> Forward:
    """The same function, computed a micro-batch at a time."""
    if micro_batches == 1:
        return lambda params, batch: forward(params, _sequences(batch))

    def scorer(params, batch):
        parts = split_tree(_sequences(batch), micro_batches)
        outputs = jax.lax.map(lambda part: forward(params, part), parts)
        return jax.tree.map(scoring_lib.join_micro, outputs)

    return scorer


def _sequences(batch: Batch) -> Batch:
    keys = (*scoring_lib.SEQUENCE_KEYS, *scoring_lib.PACKING_KEYS)
    return {k: batch[k] for k in keys if k in batch}


def make_selection(
    network, algorithm: Algorithm, scoring: Scoring, *, micro_batches: int = 1
) -> Callable[[Any, Batch, Any], Batch]:
    """A function `(params, batch, key) -> batch` that selects from a whole optimiser batch."""
    return selection_of(forward_of(network, scoring), algorithm, micro_batches=micro_batches)


def selection_of(
    forward: Forward, algorithm: Algorithm, *, micro_batches: int = 1
) -> Callable[[Any, Batch, Any], Batch]:
    """`make_selection` of any policy."""
    if not algorithm.selects:
        return lambda params, batch, key: batch
    scorer = scorer_of(forward, micro_batches=micro_batches)

    def selection(params, batch, key):
        outputs = jax.lax.stop_gradient(scorer(params, batch))
        return algorithm.select(_asked_for(outputs, algorithm), batch, key)

    return selection


def make_gradient(
    network, algorithm: Algorithm, scoring: Scoring, *, micro_batches: int = 1
) -> Callable:
    """A function `(params, batch, key, frozen=None) -> (loss, gradient, metrics)` on a whole batch.

    The gradient is that of `params`; `frozen` are the parameters that are not trained. The batch
    is walked in micro-batches; their losses and gradients add up, because the weights hold the
    divisor of the whole batch.
    """
    return gradient_of(forward_of(network, scoring), algorithm, micro_batches=micro_batches)


def gradient_of(forward: Forward, algorithm: Algorithm, *, micro_batches: int = 1) -> Callable:
    """`make_gradient` of any policy."""
    selection = selection_of(forward, algorithm, micro_batches=micro_batches)

    def objective(params, part, frozen):
        outputs = forward(assemble(frozen, params), part)
        loss, metrics = algorithm.loss(_asked_for(outputs, algorithm), part)
        return loss, {
            **_policy_metrics(algorithm, outputs, part),
            **metrics,
            **_parity(outputs, part),
        }

    def gradient(params, batch, key, frozen=None):
        frozen = {} if frozen is None else frozen
        parts = split_tree(selection(assemble(frozen, params), batch, key), micro_batches)
        value_and_grad = jax.value_and_grad(objective, has_aux=True)

        def body(total, part):
            (loss, metrics), grads = value_and_grad(params, part, frozen)
            return jax.tree.map(jnp.add, total, (loss, grads, _sums(metrics))), _peaks(metrics)

        first = jax.tree.map(lambda x: x[0], parts)
        (loss, metrics), grads = jax.eval_shape(value_and_grad, params, first, frozen)
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), (loss, grads, _sums(metrics)))
        (loss, grads, sums), peaks = jax.lax.scan(body, zeros, parts)
        means = {k: total / jnp.maximum(count, 1e-12) for k, (total, count) in sums.items()}
        return loss, grads, {**means, **{k: v.max() for k, v in peaks.items()}}

    return gradient


def in_mini_batches(batch: Batch, key: Any, count: int) -> Batch:
    """A batch in its optimiser batches, `[count, B / count, ...]`: units in random order.

    Weights are multiplied by the number of mini-batches: each then is an unbiased estimate of the
    whole batch's loss, whatever tokens fall into it.
    """
    size = batch["weights"].shape[0]
    order = jax.random.permutation(key, size)
    batch = {**batch, "weights": batch["weights"] * count}
    return jax.tree.map(lambda x: x[order].reshape(count, size // count, *x.shape[1:]), batch)


def observed(algorithm: Algorithm, state: Any, metrics: Mapping[str, jax.Array]) -> Any:
    """The algorithm's state after a step; the old one where the new one would not be finite.

    A skipped update, or a rollout without a reward, has metrics that are no numbers.
    """
    new = algorithm.observe(state, metrics)
    floats = [x for x in jax.tree.leaves(new) if jnp.issubdtype(jnp.result_type(x), jnp.inexact)]
    finite = jnp.stack([jnp.isfinite(x).all() for x in floats]).all() if floats else True
    return jax.tree.map(lambda n, o: jnp.where(finite, n, o), new, state)


def _asked_for(outputs: Outputs, algorithm: Algorithm) -> Outputs:
    """The outputs that the algorithm needs; the loop's metrics need the entropy in any case.

    An entropy that was not asked for has no gradient: a loss that uses it must fail, not train
    without the term.
    """
    return outputs if algorithm.needs.entropy else outputs._replace(entropy=None)


def _policy_metrics(algorithm: Algorithm, outputs: Outputs, batch: Batch) -> dict:
    """`entropy`, and `kl_<name>` of each named policy: means over the batch's tokens."""
    mask = batch["mask"]
    count = mask.sum()
    metrics = {"entropy": (jax.lax.stop_gradient((outputs.entropy * mask).sum()), count)}
    for name in sorted({*algorithm.policies, named_policies.REFERENCE}):
        if f"{name}_logp" not in batch:
            continue
        kl = divergences.kl_estimate(outputs.logp, batch[f"{name}_logp"], kind="k3")
        metrics[f"kl_{name}"] = (jnp.where(mask > 0, kl, 0.0).sum(), count)
    return metrics


def _sums(metrics) -> dict:
    return {k: v for k, v in metrics.items() if isinstance(v, tuple)}


def _peaks(metrics) -> dict:
    return {k: v for k, v in metrics.items() if not isinstance(v, tuple)}


def _parity(outputs: Outputs, batch: Batch) -> dict:
    """How far the trainer's log-probabilities are from the sampler's: the largest gap."""
    if "sampler_logp" not in batch:
        return {}
    gap = jnp.abs(outputs.logp - batch["sampler_logp"])
    return {"parity_gap": jax.lax.stop_gradient(jnp.where(batch["mask"] > 0, gap, 0.0).max())}


def make_update(
    network,
    algorithm: Algorithm,
    optimizer: optax.GradientTransformation,
    scoring: Scoring,
    *,
    micro_batches: int = 1,
) -> Callable[[TrainState, Batch, Any], tuple[TrainState, dict]]:
    """One optimiser update, `(state, batch, key) -> (state, metrics)`.

    A loss or gradient that is not finite leaves parameters and optimiser as they were and
    raises `skipped` by one; any other update sets it to 0.
    """
    return update_of(
        forward_of(network, scoring), algorithm, optimizer, micro_batches=micro_batches
    )


def update_of(
    forward: Forward,
    algorithm: Algorithm,
    optimizer: optax.GradientTransformation,
    *,
    micro_batches: int = 1,
) -> Callable[[TrainState, Batch, Any], tuple[TrainState, dict]]:
    """`make_update` of any policy."""
    gradient = gradient_of(forward, algorithm, micro_batches=micro_batches)

    def update(state, batch, key):
        loss, grads, metrics = gradient(state.trainable, batch, key, state.frozen)
        norm = optax.global_norm(grads)
        finite = jnp.isfinite(loss) & jnp.isfinite(norm)
        updates, moments = optimizer.update(grads, state.optimizer, state.trainable)
        trainable = optax.apply_updates(state.trainable, updates)

        def keep(new, old):
            return jax.tree.map(lambda n, o: jnp.where(finite, n, o), new, old)

        state = state._replace(
            trainable=keep(trainable, state.trainable),
            optimizer=keep(moments, state.optimizer),
            skipped=jnp.where(finite, 0, state.skipped + 1),
        )
        return state, {**metrics, "loss": loss, "gradient_norm": norm}

    return update
