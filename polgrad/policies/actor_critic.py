"""A small policy and a small value function of vector observations, as two separate networks.

Kept apart on purpose: on a CPU two [N, 64] @ [64, 64] products and their gradients take a third
of the time of one product with a block-diagonal [128, 128] matrix, and an unroll needs the policy
alone.
"""

import dataclasses
import math
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, Num

from polgrad._scalars import in_range
from polgrad.distributions import token_statistics
from polgrad.policies.network import Params

__all__ = ["ActorCritic"]

_ACTIVATIONS = {"tanh": jnp.tanh, "relu": jax.nn.relu}


@dataclasses.dataclass(frozen=True)
class ActorCritic:
    """An MLP for the policy and one for the value, of the same hidden widths.

        h = act(... act(W_1 o + b_1) ...)
        discrete:    pi(a | o) = softmax(W h + b)[a]
        continuous:  pi(a | o) = Normal(W h + b, exp(log_std)^2), independent dimensions

    Weights start orthogonal with gain sqrt(2), 0.01 for the policy's last layer and 1 for the
    value's, biases and log_std at 0 (Huang et al., The 37 implementation details of PPO, 2022).

    Attributes:
      observation_size: O.
      actions: number of discrete actions A, or None for a continuous policy.
      action_size: dimensions D of a continuous action, or None for a discrete policy.
      hidden: widths of the hidden layers.
      activation: of the hidden layers.
    """

    observation_size: int
    actions: int | None = None
    action_size: int | None = None
    hidden: tuple[int, ...] = (64, 64)
    activation: Literal["tanh", "relu"] = "tanh"

    def __post_init__(self):
        if (self.actions is None) == (self.action_size is None):
            raise ValueError(
                f"actions is {self.actions} and action_size {self.action_size}, expected exactly "
                "one of them"
            )
        in_range("observation_size", self.observation_size, low=1)
        in_range("actions or action_size", self._outputs, low=1)
        if not self.hidden or min(self.hidden) < 1:
            raise ValueError(f"hidden is {self.hidden}, expected at least one width, all positive")
        if self.activation not in _ACTIVATIONS:
            raise ValueError(
                f"activation is {self.activation!r}, expected one of {', '.join(_ACTIVATIONS)}"
            )

    @property
    def _outputs(self) -> int:
        return self.action_size if self.actions is None else self.actions

    def init(self, key: Key[Array, ""]) -> Params:
        """Random parameters: `{"policy": layers, "value": layers}`, and "log_std" if continuous."""
        policy, value = jax.random.split(key)
        params = {
            "policy": self._layers(policy, self._outputs, 0.01),
            "value": self._layers(value, 1, 1.0),
        }
        if self.actions is None:
            params["log_std"] = jnp.zeros(self.action_size)
        return params

    def noise(self, key: Key[Array, ""]) -> Float[Array, "*D"]:
        """What one action is drawn with: a uniform number, or D standard normal ones."""
        if self.actions is None:
            return jax.random.normal(key, (self.action_size,))
        return jax.random.uniform(key)

    def act(
        self, params: Params, observations: Float[Array, "*B O"], noise: Float[Array, "..."]
    ) -> Num[Array, "..."]:
        """Samples actions with noise drawn ahead.

        Args:
          params: from `init`.
          observations: [..., O].
          noise: from `noise`, one for each observation.

        Returns:
          Whole numbers [...] by the inverse of the cumulative distribution, or [..., D].
        """
        outputs = self._tower(params["policy"], observations, product=_few_rows)
        if self.actions is None:
            return outputs + jnp.exp(params["log_std"]) * noise
        below = jnp.cumsum(jax.nn.softmax(outputs), axis=-1)[..., :-1] <= noise[..., None]
        return jnp.sum(below, axis=-1, dtype=jnp.int32)

    def mode(self, params: Params, observations: Float[Array, "*B O"]) -> Num[Array, "..."]:
        """The most likely actions: whole numbers [...], or means [..., D]."""
        outputs = self._tower(params["policy"], observations)
        return outputs if self.actions is None else jnp.argmax(outputs, axis=-1).astype(jnp.int32)

    def statistics(
        self, params: Params, observations: Float[Array, "*B O"], actions: Num[Array, "..."]
    ) -> tuple[Float[Array, "*B"], Float[Array, "*B"]]:
        """Log-probability (or density) of given actions, and entropy, in nats, both [...].

        The density is that of the action as sampled, before a world clips it into its bounds.
        """
        outputs = self._tower(params["policy"], observations)
        if self.actions is not None:
            return token_statistics(outputs, actions)
        log_std = params["log_std"]
        scaled = (actions - outputs) * jnp.exp(-log_std)
        constant = 0.5 * math.log(2 * math.pi)
        logp = -jnp.sum(0.5 * jnp.square(scaled) + log_std + constant, axis=-1)
        entropy = jnp.sum(log_std + constant + 0.5)
        return logp, jnp.broadcast_to(entropy, logp.shape)

    def values(self, params: Params, observations: Float[Array, "*B O"]) -> Float[Array, "*B"]:
        """The value of each observation, [...]."""
        return self._tower(params["value"], observations)[..., 0]

    def _layers(self, key: Array, outputs: int, gain: float) -> list[dict[str, Array]]:
        sizes = (self.observation_size, *self.hidden, outputs)
        gains = [math.sqrt(2.0)] * len(self.hidden) + [gain]
        keys = jax.random.split(key, len(gains))
        return [
            {"weight": scale * _orthogonal(k, *shape), "bias": jnp.zeros(shape[1])}
            for k, scale, shape in zip(keys, gains, zip(sizes, sizes[1:]))
        ]

    def _tower(self, layers: list[dict[str, Array]], x: Array, *, product=jnp.matmul) -> Array:
        *hidden, last = layers
        for layer in hidden:
            x = _ACTIVATIONS[self.activation](product(x, layer["weight"]) + layer["bias"])
        return product(x, last["weight"]) + last["bias"]


def _few_rows(x: Array, weight: Array) -> Array:
    """x @ weight inside an unroll, where a narrow product of few rows costs no more than its call.

    As a sum it is fused with its neighbours: a fifth less time of a step of CartPole.
    """
    if min(weight.shape) > 8:
        return x @ weight
    return jnp.sum(x[..., None] * weight, axis=-2)


def _orthogonal(key: Array, rows: int, columns: int) -> Float[Array, "rows columns"]:
    """Uniformly random orthonormal rows or columns, whichever are fewer: Gram-Schmidt, twice.

    Not `jax.nn.initializers.orthogonal`: under `vmap` its QR decompositions wait on the threads
    of a CPU for one another, and with few cores a program of many seeds may never end.
    """
    size, count = max(rows, columns), min(rows, columns)

    def orthogonalize(j, basis):
        vector = basis[:, j]
        before = jnp.where(jnp.arange(count) < j, basis, 0.0)
        for _ in range(2):  # the second time removes what rounding left
            vector = vector - before @ (vector @ before)
        return basis.at[:, j].set(vector / jnp.linalg.norm(vector))

    basis = jax.lax.fori_loop(0, count, orthogonalize, jax.random.normal(key, (size, count)))
    return basis if rows >= columns else basis.T
