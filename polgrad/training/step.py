"""What a run compiles: scoring a batch and one optimiser update on it, for any policy.

`Programs` lays them, and the state of a run, over a mesh.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from einops import rearrange

from polgrad import divergences, randomness
from polgrad.contract import Algorithm, Batch, Initial, Outputs
from polgrad.rollouts import sampling_weights
from polgrad.training import named_policies
from polgrad.training import scoring as scoring_lib
from polgrad.training.runtime import mesh as mesh_lib
from polgrad.training.scoring import Scoring, one_prompt, score, sharing, split_tree
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
    parts = "(parts rows) ... -> parts rows ..."
    return jax.tree.map(lambda x: rearrange(x[order], parts, parts=count), batch)


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


class Programs:
    """Everything of a run that is compiled, and how its state lies on the mesh.

    Args:
      network: a `policies.Network`.
      algorithm: the functions.
      optimizer: an optax transformation.
      mesh: the devices.
      scoring: settings of the forward pass.
      mini_batches: optimiser updates a pass over a batch.
      micro_batches: parts an update is accumulated from.
      samples: consecutive rows of a rollout that have one prompt.
      share_prompts: read such a prompt once where that is possible (`scoring.sharing`).
      gather: hold the weights whole over `fsdp` while sampling (`sampling_weights.layout`).
      rounded: the sampler rounds the weights itself, from their own type.
      memory: bytes of a device, for `gather="auto"`; None where it is not known.
      track_kl: score rollouts under the initial policy even where the algorithm does not ask.
      seed: addresses the algorithm's first state.
    """

    def __init__(
        self,
        network,
        algorithm: Algorithm,
        optimizer,
        mesh,
        *,
        scoring: Scoring,
        mini_batches: int = 1,
        micro_batches: int = 1,
        samples: int = 1,
        share_prompts: bool = True,
        gather: sampling_weights.Gather = "auto",
        rounded: bool = False,
        memory: float | None = None,
        track_kl: bool = False,
        seed: int = 0,
    ):
        self._network, self._algorithm, self._optimizer = network, algorithm, optimizer
        self._scoring, self._mini, self._micro = scoring, mini_batches, micro_batches
        self._samples, self._share = samples, share_prompts
        self._key = randomness.address(seed, randomness.INIT, 1)
        self.mesh = mesh
        self.policies = named_policies.wanted(algorithm, track_kl=track_kl)
        params = jax.eval_shape(network.init, jax.random.key(0))
        self.param_shardings = mesh_lib.parameter_shardings(network, params, mesh)
        self.state_shardings = TrainState(
            trainable=self.param_shardings,
            frozen={},
            policies=dict.fromkeys(named_policies.moving(self.policies), self.param_shardings),
            optimizer=mesh_lib.optimizer_shardings(optimizer, params, self.param_shardings, mesh),
            algorithm=jax.tree.map(
                lambda _: mesh_lib.replicated(mesh), jax.eval_shape(algorithm.init, self._key)
            ),
            step=mesh_lib.replicated(mesh),
            skipped=mesh_lib.replicated(mesh),
        )
        self._first_state = jax.jit(self._make_state, out_shardings=self.state_shardings)
        shapes = jax.eval_shape(self._make_state, params)
        self.abstract_state = jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
            shapes,
            self.state_shardings,
        )
        self.sampling_params = self._layout(rounded=rounded, gather=gather, memory=memory)
        self.for_sampling = sampling_weights.converter(
            self.abstract_state.params, self.sampling_params
        )
        self.prepare = jax.jit(algorithm.prepare)
        self._observe = jax.jit(functools.partial(observed, algorithm))
        self._moved = jax.jit(
            functools.partial(named_policies.after_updates, self.policies),
            donate_argnums=0,
            out_shardings=self.state_shardings.policies,
        )
        as_held = self._layout(gather="never", memory=None)
        self._holds_as_they_are = sampling_weights.same(self.abstract_state.params, as_held)
        self._held = sampling_weights.converter(self.abstract_state.params, as_held)
        self._one_prompt = jax.jit(one_prompt, static_argnums=1)
        self._shuffle = jax.jit(functools.partial(in_mini_batches, count=self._mini))

    def _layout(self, *, rounded: bool = False, gather: sampling_weights.Gather, memory) -> Any:
        """Types and shardings of weights that are only read."""
        return sampling_weights.layout(
            self.abstract_state.params,
            self._network.logical_axes(),
            self.mesh,
            dtype=None if rounded else jnp.dtype(self._scoring.compute_dtype),
            gather=gather,
            memory=memory,
        )

    def _make_state(self, params: Any) -> TrainState:
        return TrainState(
            trainable=params,
            frozen={},
            policies=named_policies.first(self.policies, params),
            optimizer=self._optimizer.init(params),
            algorithm=self._algorithm.init(self._key),
            step=jnp.zeros((), jnp.int32),
            skipped=jnp.zeros((), jnp.int32),
        )

    def place_params(self, params: Any) -> Any:
        """Parameters on the mesh, each device with its share."""
        return jax.tree.map(mesh_lib.place, params, self.param_shardings)

    def first_state(self, params: Any) -> TrainState:
        """The state before the first step. It owns its buffers: the step overwrites them."""
        return self._first_state(params)

    @property
    def needs_initial(self) -> bool:
        """Whether a run holds the policy that its training started from."""
        return named_policies.uses_initial(self.policies)

    def hold(self, params: Any) -> Any:
        """A copy of parameters that never change again, in the types of the products.

        The matrices are rounded in every product anyway, so that this changes no number.
        """
        if self._holds_as_they_are:
            # The step is given its parameters to overwrite.
            return jax.tree.map(jnp.copy, params)
        return self._held(params)

    def held(self, state: TrainState, initial: Any) -> dict[str, Any]:
        """The parameters of every named policy that is not the sampling policy itself.

        Args:
          state: holds those that change.
          initial: of the policy that training started from; None where none is needed.
        """
        return {
            name: initial
            if isinstance(kind, Initial)
            else assemble(state.frozen, state.policies[name])
            for name, kind in self.policies.items()
            if not named_policies.behaves(kind)
        }

    def complete(self, experience: Batch, params: Any, held: Mapping[str, Any]) -> Batch:
        """Adds `<name>_logp` of every named policy, and `values` where the algorithm needs them."""
        added = {}
        values = self._algorithm.needs.values
        if held or values:
            scorer = self._scorer(self._shared(experience, self._samples, self._mini * self._micro))
        for name, kind in self.policies.items():
            if named_policies.behaves(kind):
                added[f"{name}_logp"] = experience["behavior_logp"]
            else:
                added[f"{name}_logp"] = scorer(held[name], experience).logp
        if values:
            added["values"] = scorer(params, experience).values
        return {**experience, **added}

    def before_rollout(self, state: TrainState, step: int) -> TrainState:
        """The state with the copies of the policy that are due before a rollout."""
        return named_policies.before_rollout(self.policies, state, step)

    def after_updates(self, state: TrainState, metrics: Mapping[str, float]) -> TrainState:
        """The state at the end of a step: averages are moved, and the algorithm sees the metrics."""
        if self._algorithm.observes:
            seen = {name: jnp.float32(value) for name, value in metrics.items()}
            state = state._replace(algorithm=self._observe(state.algorithm, seen))
        if state.policies:
            state = state._replace(policies=self._moved(state.policies, state.trainable))
        return state

    def mini_batches(self, batch: Batch, key) -> list[Batch]:
        """A batch in its optimiser batches, shuffled; the whole of it when there is one."""
        if self._mini == 1:
            return [batch]
        shuffled = self._shuffle(batch, key)
        return [jax.tree.map(lambda x, i=i: x[i], shuffled) for i in range(self._mini)]

    def update(self, state: TrainState, batch: Batch, key, *, packed_rows=None):
        """One optimiser update; the state given is consumed."""
        samples = 1 if packed_rows else self._shared_in_update(batch)
        return self._update(packed_rows, samples)(state, batch, key)

    def selected(self, params: Any, batch: Batch, key) -> Batch:
        """An optimiser batch with what the algorithm selects from it."""
        return self._selection(params, batch, key) if self._algorithm.selects else batch

    def gradient(self, params: Any, batch: Batch, key, *, micro_batches: int, packed_rows=None):
        """The gradient of one micro-batch's rows, after `selected`, in some parts (see `probe`).

        It is computed as an update computes it, and lies on the mesh as the parameters do.
        """
        samples, rest = divmod(self._unshuffled, self._micro)
        if rest or samples == 1 or packed_rows or self._algorithm.selects:
            samples = 1
        else:
            samples = self._shared(batch, samples, micro_batches)
        return self._gradient(micro_batches, packed_rows, samples)(params, batch, key)

    def _shared_in_update(self, batch: Batch) -> int:
        # What a selection makes of the batch is known only inside of the update.
        if self._algorithm.selects:
            return 1
        return self._shared(batch, self._unshuffled, self._micro)

    @property
    def _unshuffled(self) -> int:
        """Consecutive rows of an optimiser batch with one prompt; mini-batches are shuffled rows."""
        return self._samples if self._mini == 1 else 1

    def _shared(self, batch: Batch, samples: int, micro_batches: int) -> int:
        """Consecutive sequences of a micro-batch that are read with their one prompt."""
        samples = self._sharing(batch, samples, micro_batches)
        if samples == 1:
            return 1
        # An algorithm may order its batch as it likes: what it is believed to share is looked at.
        rows = batch["prompt_lengths"].ndim == 1
        whole = samples * micro_batches if rows else samples
        return samples if self._one_prompt(batch, whole) else 1

    def _sharing(self, batch: Batch, samples: int, micro_batches: int) -> int:
        if not self._share:
            return 1
        split = self.mesh.shape["data"] * self.mesh.shape["fsdp"]
        return sharing(self._network, batch, samples, micro_batches, split)

    @functools.cache  # noqa: B019  (a Programs lives as long as its run)
    def _scorer(self, samples: int):
        # Scoring is done whole on rollouts, whose unit is the sequence: parts of the same size.
        scoring = dataclasses.replace(self._scoring, samples=samples)
        return jax.jit(make_scorer(self._network, scoring, micro_batches=self._mini * self._micro))

    @functools.cached_property
    def _selection(self):
        return jax.jit(make_selection(self._network, self._algorithm, self._scoring))

    @functools.cache  # noqa: B019
    def _gradient(self, micro_batches: int, packed_rows, samples: int):
        scoring = dataclasses.replace(self._scoring, packed_rows=packed_rows, samples=samples)
        gradient = make_gradient(
            self._network,
            self._algorithm.without_selection(),
            scoring,
            micro_batches=micro_batches,
        )

        def alone(params, batch, key):
            return gradient(params, batch, key)[1]

        return jax.jit(alone, out_shardings=self.param_shardings)

    @functools.cache  # noqa: B019
    def _update(self, packed_rows, samples: int):
        scoring = dataclasses.replace(self._scoring, packed_rows=packed_rows, samples=samples)
        update = make_update(
            self._network,
            self._algorithm,
            self._optimizer,
            scoring,
            micro_batches=self._micro,
        )
        out = (self.state_shardings, None)
        return jax.jit(update, donate_argnums=0, out_shardings=out)

    def lower_update(self, batch: Batch, key):
        """The update lowered for a batch of these shapes, for its memory and cost analysis."""
        selects = self._algorithm.selects
        samples = 1 if selects else self._sharing(batch, self._unshuffled, self._micro)
        return self._update(None, samples).lower(self.abstract_state, batch, key)

    def lower_scorer(self, params, experience: Batch):
        """The same of scoring an experience."""
        samples = self._sharing(experience, self._samples, self._mini * self._micro)
        return self._scorer(samples).lower(params, experience)
