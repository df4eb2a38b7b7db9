"""Policies so small that every completion can be listed: exact sums beside sampled learning.

Their worlds have no prompts: a question may carry what a reward reads, and the policy sees none of
it. Sampled runs of them can be measured exactly, as sums over all completions.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Array, Float, Int, Num

from polgrad import distributions
from polgrad.contract import Outputs
from polgrad.distributions import geometric_mixture, token_statistics
from polgrad.small import bigrams
from polgrad.small.policies import as_rollout, check_tokens, no_prompts, refuse_values
from polgrad.tabular.sequences import Sequences, enumerate_sequences, token_logp


@dataclasses.dataclass(frozen=True, eq=False)
class TablePolicy:
    """Any policy over a list of completions: a softmax of logits for each prefix.

    Use it for games and bandits whose figures are sums over all completions. The parameters are one
    array, `[prefixes, V]`.

    Attributes:
      sequences: the completions, as `tabular.sequences.enumerate_sequences` lists them.
    """

    sequences: Sequences

    @classmethod
    def create(cls, vocabulary: int, length: int, *, end: int | None = None) -> "TablePolicy":
        """A policy over all completions of some length.

        Args:
          vocabulary: number of tokens.
          length: tokens of a completion at most; 1 makes a bandit.
          end: the token that ends a completion early; None for completions of equal length.
        """
        return cls(enumerate_sequences(vocabulary, length, end=end))

    def init(self, key):
        """Logits of standard deviation 1."""
        return jax.random.normal(key, (self.sequences.prefixes, self.sequences.vocabulary))

    def prompts(self, questions):
        """Prompts without a token."""
        return no_prompts(questions)

    def logp(self, params: Float[Array, "P V"]) -> Float[Array, "N"]:
        """Log-probabilities of all completions, in nats."""
        return token_logp(self.sequences, params).sum(-1)

    @property
    def vocabulary(self) -> int:
        """Number of tokens."""
        return self.sequences.vocabulary

    def numbers(
        self, completions: Int[Array, "*S T"], mask: Num[Array, "*S T"] | None = None
    ) -> Int[Array, "*S"]:
        """Which of the listed completions each one is, from 0.

        Tokens behind the end of a completion are not looked at.

        Args:
          completions: tokens in 0..V-1.
          mask: where it is 0, a token may be any number; without it, all tokens are in 0..V-1.

        Raises:
          ValueError: if a token is out of range. The values of traced arrays are not checked.
        """
        tokens, length = self.sequences.tokens, self.sequences.tokens.shape[1]
        check_tokens("completions", completions, mask, self.vocabulary)
        completions = jnp.asarray(completions)
        if mask is not None:
            completions = jnp.where(mask > 0, completions, 0)
        words = completions @ self.vocabulary ** np.arange(length)[::-1]
        if len(tokens) == self.vocabulary**length:
            return words  # All words are there, in their order.
        # Words that differ behind the end alone follow each other: they are one completion.
        alike = self.vocabulary ** (length - self.sequences.mask.sum(1).astype(int))
        return jnp.asarray(np.repeat(np.arange(len(tokens), dtype=np.int32), alike))[words]

    def sample(self, params, prompts, ids, key, *, samples, greedy=False, mixed=None):
        """Completions drawn by their position, each with one random number."""
        policy = _mixture(params, mixed)
        probabilities = jnp.exp(self.logp(_most_likely(policy) if greedy else policy))
        count = prompts["prompt_lengths"].shape[0]
        uniforms = jax.random.uniform(key, (count * samples, 1))
        drawn = jnp.sum(uniforms >= jnp.cumsum(probabilities)[:-1], axis=-1)
        of_all = self.sequences.tokens, self.sequences.mask, token_logp(self.sequences, policy)
        tokens, mask, logp = (jnp.asarray(x)[drawn] for x in of_all)
        return as_rollout(prompts, ids, tokens.astype(jnp.int32), logp, mask)

    def forward(self, params, batch, *, needs):
        """Log-probabilities and entropies.

        Raises:
          ValueError: if values are needed.
        """
        refuse_values(self, needs)
        # Of an index: on a CPU faster than products with one-hot rows, its gradient too.
        numbers = self.numbers(batch["completions"], batch["mask"])
        entropy = distributions.entropy(params)[self.sequences.prefix]
        tokens = token_logp(self.sequences, params)
        mask = batch["mask"] > 0
        return Outputs(*(jnp.where(mask, x[numbers], 0.0) for x in (tokens, entropy)))


@dataclasses.dataclass(frozen=True)
class BigramPolicy:
    """A policy whose tokens depend on their place and on the token before (`bigrams`).

    Use it where a target is to be out of reach. The parameters are `bigrams.Bigrams`;
    `bigrams.every_logp` sums over all completions.

    Attributes:
      vocabulary: V, number of tokens.
      length: T, tokens of every completion.
    """

    vocabulary: int
    length: int

    def init(self, key):
        """Logits of standard deviation 1."""
        size = self.vocabulary
        rows = jax.random.normal(key, (1 + (self.length - 1) * size, size))
        following = rearrange(rows[1:], "(steps before) after -> steps before after", before=size)
        return bigrams.Bigrams(rows[0], following)

    def prompts(self, questions):
        """Prompts without a token."""
        return no_prompts(questions)

    def sample(self, params, prompts, ids, key, *, samples, greedy=False, mixed=None):
        """Completions drawn by their position, token by token."""
        policy = _mixture(params, mixed)
        count = prompts["prompt_lengths"].shape[0] * samples
        uniforms = jax.random.uniform(key, (count, self.length))
        chances = jax.tree.map(_most_likely, policy) if greedy else policy
        tokens = bigrams.sample(chances, uniforms)
        logp, _ = token_statistics(bigrams.token_logits(policy, tokens), tokens)
        return as_rollout(prompts, ids, tokens, logp)

    def forward(self, params, batch, *, needs):
        """Log-probabilities and entropies.

        Raises:
          ValueError: if values are needed.
        """
        refuse_values(self, needs)
        completions, mask = batch["completions"], batch["mask"] > 0
        logits = bigrams.token_logits(params, completions)
        logp, entropy = token_statistics(logits, completions)
        return Outputs(jnp.where(mask, logp, 0.0), jnp.where(mask, entropy, 0.0))


def _mixture(params: Any, mixed: Any) -> Any:
    """The logits of the geometric mixture of two policies at each token."""
    if mixed is None:
        return params
    mix = functools.partial(geometric_mixture, reference_weight=mixed.weight)
    return jax.tree.map(mix, params, mixed.params)


def _most_likely(logits: Float[Array, "*S V"]) -> Float[Array, "*S V"]:
    """Logits of the policy that always takes the most likely token."""
    best = jnp.argmax(logits, axis=-1, keepdims=True)
    return jnp.where(jnp.arange(logits.shape[-1]) == best, 0.0, -jnp.inf)
