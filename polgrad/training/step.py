"""The compiled parts of a run: scoring a batch, and one optimiser update on it."""

from collections.abc import Callable
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


def make_scorer(
    network, scoring: Scoring, *, micro_batches: int = 1
) -> Callable[[Any, Batch], Outputs]:
    """A function `(params, batch) -> Outputs` that needs the memory of one micro-batch only."""

    def scorer(params, batch):
        parts = split_tree(_sequences(batch), micro_batches)
        outputs = jax.lax.map(lambda part: score(network, params, part, scoring), parts)
        return jax.tree.map(scoring_lib.join_micro, outputs)

    return scorer


def _sequences(batch: Batch) -> Batch:
    keys = (*scoring_lib.SEQUENCE_KEYS, *scoring_lib.PACKING_KEYS)
    return {k: batch[k] for k in keys if k in batch}


def make_selection(
    network, algorithm: Algorithm, scoring: Scoring, *, micro_batches: int = 1
) -> Callable[[Any, Batch, Any], Batch]:
    """A function `(params, batch, key) -> batch` that selects from a whole optimiser batch."""
    if not algorithm.selects:
        return lambda params, batch, key: batch
    scorer = make_scorer(network, scoring, micro_batches=micro_batches)

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
    selection = make_selection(network, algorithm, scoring, micro_batches=micro_batches)

    def objective(params, part, frozen):
        outputs = score(network, assemble(frozen, params), part, scoring)
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
    gradient = make_gradient(network, algorithm, scoring, micro_batches=micro_batches)

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
