"""Exact expectations on policies small enough to enumerate every completion.

A tabular autoregressive softmax policy: one row of logits for each prefix. With length 1 and no
end token it is a categorical policy. Nothing is sampled: the expected gradient of an estimator is
the sum over all groups of completions, weighted by their (stopped) probability.
"""

import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np


class TabularPolicy:
    """All completions of at most `length` tokens; token `end`, if given, ends one early."""

    def __init__(self, vocabulary: int, length: int, end: int | None = None):
        self.vocabulary, self.length = vocabulary, length
        completions = []
        for word in itertools.product(range(vocabulary), repeat=length):
            stop = word.index(end) + 1 if end in word else length
            if all(token == 0 for token in word[stop:]):  # one representative of each completion
                completions.append((word, stop))
        self.tokens = np.array([word for word, _ in completions])  # [N, T]
        self.lengths = np.array([stop for _, stop in completions])  # [N]
        self.mask = (np.arange(length) < self.lengths[:, None]).astype(np.float32)
        # The number of a prefix in base `vocabulary` is its row in the table.
        prefix = np.zeros_like(self.tokens)
        for t in range(1, length):
            prefix[:, t] = prefix[:, t - 1] * vocabulary + self.tokens[:, t - 1]
        self.prefix = prefix
        self.size = len(completions)

    def init(self, seed: int, scale: float = 1.0) -> np.ndarray:
        """Random logits [T, prefixes, V], float64."""
        shape = (self.length, self.vocabulary ** (self.length - 1), self.vocabulary)
        return scale * np.random.default_rng(seed).normal(size=shape)

    def token_logp(self, logits) -> jax.Array:
        """[N, T]: log-probability of each token of each completion, 0 after its end."""
        table = jax.nn.log_softmax(logits)
        chosen = table[np.arange(self.length), self.prefix, self.tokens]
        return jnp.where(self.mask > 0, chosen, 0.0)

    def sequence_logp(self, logits) -> jax.Array:
        """[N]: log-probability of each completion."""
        return self.token_logp(logits).sum(-1)


def objective_gradient(policy: TabularPolicy, logits, returns) -> jax.Array:
    """Gradient of the expected return sum_y pi(y) R(y)."""
    value = lambda z: jnp.exp(policy.sequence_logp(z)) @ jnp.asarray(returns)  # noqa: E731
    return jax.jit(jax.grad(value))(logits)


def expected_gradient(
    policy: TabularPolicy,
    logits,
    loss: Callable[[jax.Array, jax.Array], jax.Array],
    *,
    group_size: int = 1,
    behavior_logits=None,
) -> jax.Array:
    """Expected gradient of `loss(token_logp [G, T], index [G]) -> scalar` over i.i.d. groups.

    `index` says which completions the group holds (rows of `policy.tokens` and `policy.mask`).
    The group is drawn from `behavior_logits`, by default from the policy itself.
    """
    groups = np.array(list(itertools.product(range(policy.size), repeat=group_size)))  # [M, G]

    def expected_loss(z):
        logp = policy.token_logp(z)
        sampler = policy.sequence_logp(z if behavior_logits is None else behavior_logits)
        probability = jax.lax.stop_gradient(jnp.exp(sampler[groups].sum(-1)))  # [M]
        return probability @ jax.vmap(lambda index: loss(logp[index], index))(groups)

    return jax.jit(jax.grad(expected_loss))(logits)
