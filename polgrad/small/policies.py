"""Policies that a small run can train: networks over features, and the networks of `train`."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float, Int, Key

from polgrad.contract import Batch, Needs, Outputs
from polgrad.policies.small import token_statistics
from polgrad.rollouts import Sampling, generate_fixed
from polgrad.training.scoring import Scoring, score


class Mixed(NamedTuple):
    """The other policy of a geometric mixture, and its weight."""

    params: Any
    weight: float


class Policy(Protocol):
    """What a run asks of a policy; all pure functions, to be traced."""

    def init(self, key: Key[Array, ""]) -> Any:
        """Random parameters."""

    def prompts(self, questions: Any) -> Batch:
        """`prompts [Q, ...]` and `prompt_lengths [Q]` of questions."""

    def sample(
        self,
        params: Any,
        prompts: Batch,
        ids: Int[Array, "Q"],
        key: Key[Array, ""],
        *,
        samples: int,
        greedy: bool = False,
        mixed: Mixed | None = None,
    ) -> Batch:
        """Completions of each prompt as the rows of a rollout, prompt after prompt.

        Returns:
          The arrays of `rollouts.Rollout` by name, with N = Q samples rows.
        """

    def forward(self, params: Any, batch: Batch, *, needs: Needs) -> Outputs:
        """The policy's outputs for a batch; the entropy is always there, for the metrics."""


def no_prompts(questions: Any) -> Batch:
    """`Policy.prompts` of a policy that does not see the question."""
    count = jax.tree.leaves(questions)[0].shape[0]
    return {"prompts": jnp.zeros((count, 0)), "prompt_lengths": jnp.zeros(count, jnp.int32)}


def as_rollout(
    prompts: Batch,
    ids: Int[Array, "Q"],
    tokens: Int[Array, "N T"],
    logp: Float[Array, "N T"],
    mask: Float[Array, "N T"] | None = None,
) -> Batch:
    """What `Policy.sample` returns, from the tokens of its samples.

    Args:
      prompts: from `Policy.prompts`.
      ids: of the prompts.
      tokens: of the samples, prompt after prompt.
      logp: their log-probabilities.
      mask: 1 at tokens that count; all of them when left out.
    """
    samples = tokens.shape[0] // ids.shape[0]
    mask = jnp.ones_like(logp) if mask is None else mask.astype(logp.dtype)
    rows = {name: jnp.repeat(x, samples, axis=0) for name, x in prompts.items()}
    return rows | {
        "completions": tokens,
        "completion_lengths": mask.sum(-1).astype(jnp.int32),
        "mask": mask,
        "behavior_logp": logp,
        "stopped": jnp.ones(tokens.shape[0], bool),
        "prompt_ids": jnp.repeat(ids.astype(jnp.uint32), samples),
        "sample_ids": jnp.tile(jnp.arange(samples, dtype=jnp.uint32), ids.shape[0]),
    }


def refuse_values(policy: Policy, needs: Needs) -> None:
    """Refuses an algorithm that needs values, for a policy without a value head.

    Raises:
      ValueError: if values are needed.
    """
    if needs.values:
        raise ValueError(f"a {type(policy).__name__} has no value head; take a NetworkPolicy")


@dataclasses.dataclass(frozen=True)
class FeaturePolicy:
    """A network over feature vectors whose completions all have one length (`policies.small`).

    Attributes:
      network: with `init`, `logits` and `sample`, such as `policies.AutoregressiveMLP`.
      features: questions to feature vectors [Q, F], such as a world's method.
    """

    network: Any
    features: Callable[[Any], Array]

    def init(self, key):
        """Random parameters of the network."""
        return self.network.init(key)

    def prompts(self, questions):
        """The features; there is no other prompt."""
        features = self.features(questions)
        return {
            "prompts": features,
            "prompt_lengths": jnp.full(features.shape[0], features.shape[1]),
        }

    def sample(self, params, prompts, ids, key, *, samples, greedy=False, mixed=None):
        """Completions drawn by their position.

        Raises:
          ValueError: if they are to come from a mixture of two policies.
        """
        if mixed is not None:
            raise ValueError(
                "a FeaturePolicy samples from its own distribution alone, and the algorithm asks for "
                "a mixture; take a TablePolicy, a BigramPolicy or a NetworkPolicy"
            )
        tokens, logp = self.network.sample(
            params, prompts["prompts"], key, samples=samples, greedy=greedy
        )
        return as_rollout(prompts, ids, *(rearrange(x, "q g t -> (q g) t") for x in (tokens, logp)))

    def forward(self, params, batch, *, needs):
        """Log-probabilities and entropies.

        Raises:
          ValueError: if values are needed.
        """
        refuse_values(self, needs)
        tokens, mask = batch["completions"], batch["mask"] > 0
        logits = self.network.logits(params, batch["prompts"], tokens)
        logp, entropy = token_statistics(logits, tokens)
        return Outputs(jnp.where(mask, logp, 0.0), jnp.where(mask, entropy, 0.0))


@dataclasses.dataclass(frozen=True)
class NetworkPolicy:
    """A network of `polgrad train`, sampled and scored as there.

    Attributes:
      network: a `policies.Network`.
      sampling: length, temperature and stop tokens.
      tokens: questions to `(token ids [Q, P], lengths [Q])`.
      compute_dtype: of the network's products.
    """

    network: Any
    sampling: Sampling
    tokens: Callable[[Any], tuple[Array, Array]]
    compute_dtype: Any = jnp.float32

    def init(self, key):
        """Random parameters of the network."""
        return self.network.init(key)

    def prompts(self, questions):
        """The token ids."""
        tokens, lengths = self.tokens(questions)
        return {
            "prompts": tokens.astype(jnp.int32),
            "prompt_lengths": lengths.astype(jnp.int32),
        }

    def sample(self, params, prompts, ids, key, *, samples, greedy=False, mixed=None):
        """`rollouts.generate_fixed`, whose draws are addressed by prompt and sample."""
        sampling = dataclasses.replace(self.sampling, temperature=0.0) if greedy else self.sampling
        rollout = generate_fixed(
            self.network,
            params,
            prompts["prompts"],
            prompts["prompt_lengths"],
            ids.astype(jnp.uint32),
            key,
            sampling=sampling,
            group_size=samples,
            compute_dtype=self.compute_dtype,
            reference_params=mixed.params if mixed else None,
            reference_weight=mixed.weight if mixed else 0.0,
        )
        return rollout._asdict()

    def forward(self, params, batch, *, needs):
        """`training.score`."""
        scoring = Scoring(
            temperature=self.sampling.temperature,
            compute_dtype=self.compute_dtype,
            values=needs.values,
            entropy_gradient=needs.entropy,
        )
        return score(self.network, params, batch, scoring)


def greedy_accuracy(policy: Policy, task: Any, questions: Any) -> Callable[[Any, Array], Array]:
    """`(params, key) -> mean reward` of the most likely completion of each question."""

    def accuracy(params, key):
        rows = policy.sample(
            params, policy.prompts(questions), task.ids(questions), key, samples=1, greedy=True
        )
        tokens, mask = (rows[name][:, None] for name in ("completions", "mask"))
        return task.reward(questions, tokens, mask > 0).mean()

    return accuracy
