"""A small policy and a small value function of vector observations, as two separate networks."""

import math
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key, Num

from polgrad._scalars import in_range
from polgrad.distributions import token_statistics

__all__ = ["ActorCritic"]

_ACTIVATIONS = {"tanh": jnp.tanh, "relu": jax.nn.relu}


class ActorCritic(nnx.Module):
    """An MLP for the policy and one for the value, of the same hidden widths.

        h = act(... act(W_1 o + b_1) ...)
        discrete:    pi(a | o) = softmax(W h + b)[a]
        continuous:  pi(a | o) = Normal(W h + b, exp(log_std)^2), independent dimensions

    Weights start orthogonal with gain sqrt(2), 0.01 for the policy's last layer and 1 for the
    value's, biases and log_std at 0 (Huang et al., The 37 implementation details of PPO, 2022).
    A network is a tree of arrays: `jax.grad` and `optax` take it as it is.

    Args:
      key: of the first weights.
      observation_size: O.
      actions: number of discrete actions A, or None for a continuous policy.
      action_size: dimensions D of a continuous action, or None for a discrete policy.
      hidden: widths of the hidden layers.
      activation: of the hidden layers.

    Raises:
      ValueError: both or none of actions and action_size, a size below 1, an unknown activation.
    """

    def __init__(
        self,
        key: Key[Array, ""],
        observation_size: int,
        actions: int | None = None,
        action_size: int | None = None,
        hidden: tuple[int, ...] = (64, 64),
        activation: Literal["tanh", "relu"] = "tanh",
    ):
        if (actions is None) == (action_size is None):
            raise ValueError(
                f"actions is {actions} and action_size {action_size}, expected exactly one of them"
            )
        outputs = action_size if actions is None else actions
        in_range("observation_size", observation_size, low=1)
        in_range("actions or action_size", outputs, low=1)
        if not hidden or min(hidden) < 1:
            raise ValueError(f"hidden is {hidden}, expected at least one width, all positive")
        if activation not in _ACTIVATIONS:
            raise ValueError(
                f"activation is {activation!r}, expected one of {', '.join(_ACTIVATIONS)}"
            )
        rngs = nnx.Rngs(key)
        widths = (observation_size, *hidden)
        self.policy = MLP(rngs, (*widths, outputs), 0.01, activation)
        self.value = MLP(rngs, (*widths, 1), 1.0, activation)
        self.log_std = nnx.Param(jnp.zeros(action_size)) if actions is None else None

    def sample(self, observations: Float[Array, "*B O"], key: Key[Array, ""]) -> Num[Array, "..."]:
        """Random actions: whole numbers [...], or [..., D]."""
        outputs = self.policy(observations)
        if self.log_std is None:
            return jax.random.categorical(key, outputs)
        return outputs + jnp.exp(self.log_std[...]) * jax.random.normal(key, outputs.shape)

    def mode(self, observations: Float[Array, "*B O"]) -> Num[Array, "..."]:
        """The most likely actions: whole numbers [...], or means [..., D]."""
        outputs = self.policy(observations)
        return jnp.argmax(outputs, axis=-1) if self.log_std is None else outputs

    def statistics(
        self, observations: Float[Array, "*B O"], actions: Num[Array, "..."]
    ) -> tuple[Float[Array, "*B"], Float[Array, "*B"]]:
        """Log-probability (or density) of given actions, and entropy, in nats, both [...].

        The density is that of the action as sampled, before a world clips it into its bounds.
        """
        outputs = self.policy(observations)
        if self.log_std is None:
            return token_statistics(outputs, actions)
        log_std = self.log_std[...]
        logp = jax.scipy.stats.norm.logpdf(actions, outputs, jnp.exp(log_std)).sum(-1)
        entropy = jnp.sum(log_std + 0.5 * math.log(2 * math.pi * math.e))
        return logp, jnp.broadcast_to(entropy, logp.shape)

    def values(self, observations: Float[Array, "*B O"]) -> Float[Array, "*B"]:
        """The value of each observation, [...]."""
        return self.value(observations)[..., 0]


class MLP(nnx.Module):
    """Linear layers with an activation between them.

    Args:
      rngs: of the first weights.
      widths: of the input, of each hidden layer, and of the output.
      gain: of the last layer's weights.
      activation: of the hidden layers.
    """

    def __init__(self, rngs: nnx.Rngs, widths: tuple[int, ...], gain: float, activation: str):
        gains = [math.sqrt(2.0)] * (len(widths) - 2) + [gain]
        self.layers = nnx.List(
            nnx.Linear(rows, columns, kernel_init=_orthogonal(scale), rngs=rngs)
            for rows, columns, scale in zip(widths, widths[1:], gains)
        )
        self.activation = activation

    def __call__(self, x: Float[Array, "*B I"]) -> Float[Array, "*B J"]:
        """The last layer's outputs."""
        *hidden, last = self.layers
        for layer in hidden:
            x = _ACTIVATIONS[self.activation](layer(x))
        return last(x)


def _orthogonal(gain: float):
    """nnx's orthogonal initialiser, which under `vmap` makes one matrix after the other.

    On a CPU of few cores, a QR decomposition of several matrices at once may never end.
    """

    def initialize(key, shape, dtype, **_):
        one = jax.custom_batching.sequential_vmap(
            lambda key: nnx.initializers.orthogonal(gain)(key, shape, dtype)
        )
        return one(key)

    return initialize
