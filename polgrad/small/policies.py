"""Policies that a small run can train: networks over features, and the networks of `train`."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Array, Float, Int, Key

from polgrad.contract import Batch, Needs, Outputs
from polgrad.distributions import token_statistics
from polgrad.masking import masked_mean
from polgrad.rollouts import Sampling, generate_fixed
from polgrad.training.scoring import Scoring, score


class OtherPolicy(NamedTuple):
    """The policy that samples are mixed with, by its parameters, and its weight in the mixture."""

    params: Any
    weight: float


class Policy(Protocol):
    """What a run asks of a policy; all pure functions, to be traced.

    A policy may say how many tokens it has, as `vocabulary`: ready answers and logged samples are
    then held against it.
    """

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
        mixed: OtherPolicy | None = None,
    ) -> Batch:
        """Completions of each prompt as the rows of a rollout, prompt after prompt.

        Returns:
          The arrays of `rollouts.Rollout` by name, with N = Q samples rows.
        """

    def forward(self, params: Any, batch: Batch, *, needs: Needs) -> Outputs:
        """The policy's outputs for a batch; the entropy is always there, for the metrics."""


def rollout_of(prompts: Batch, ids: Int[Array, "Q"], samples: Batch) -> Batch:
    """The rows of a rollout, prompt after prompt, from samples by prompt.

    Args:
      prompts: of Q questions, as `Policy.prompts` gives them.
      ids: of the questions.
      samples: by name `completions`, `mask`, `behavior_logp`, all [Q, G, T], and `stopped` [Q, G].

    Returns:
      The arrays of `rollouts.Rollout` by name, with N = Q G rows.
    """
    count, group, _ = samples["completions"].shape
    rows = {name: jnp.repeat(x, group, axis=0) for name, x in prompts.items()}
    rows |= {name: rearrange(x, "q g ... -> (q g) ...") for name, x in samples.items()}
    return rows | {
        "completion_lengths": rows["mask"].sum(-1),
        "mask": rows["mask"].astype(jnp.float32),
        "prompt_ids": jnp.repeat(ids.astype(jnp.uint32), group),
        "sample_ids": jnp.tile(jnp.arange(group, dtype=jnp.uint32), count),
    }


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
    mask = jnp.ones_like(logp) if mask is None else mask
    by_prompt = lambda x: rearrange(x, "(q g) t -> q g t", q=ids.shape[0])  # noqa: E731
    found = {"completions": tokens, "mask": mask, "behavior_logp": logp}
    found = {name: by_prompt(x) for name, x in found.items()}
    return rollout_of(prompts, ids, found | {"stopped": jnp.ones(found["mask"].shape[:2], bool)})


def check_tokens(name: str, tokens: Any, mask: Any, vocabulary: int) -> None:
    """Refuses tokens that a policy does not have; the values of traced arrays are not known.

    Args:
      name: of the tokens, for the message.
      tokens: any shape.
      mask: where it is 0, a token may be any number; None where all count.
      vocabulary: V, number of the policy's tokens.

    Raises:
      ValueError: if a token that counts is not in 0..V-1.
    """
    if any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves((tokens, mask))):
        return
    tokens = np.asarray(tokens)
    wrong = (tokens < 0) | (tokens >= vocabulary)
    if mask is not None:
        wrong &= np.asarray(mask) > 0
    if wrong.any():
        raise ValueError(
            f"{name} has token {tokens[wrong][0]}, expected tokens in 0..{vocabulary - 1}, those of "
            "the policy"
        )


def refuse_values(policy: Policy, needs: Needs) -> None:
    """Refuses an algorithm that needs values, for a policy without a value head.

    Raises:
      ValueError: if values are needed.
    """
    if needs.values:
        raise ValueError(f"a {type(policy).__name__} has no value head; take a NetworkPolicy")


@dataclasses.dataclass(frozen=True)
class FeaturePolicy:
    """A network over feature vectors; the question decides how long a completion is.

    Attributes:
      network: with `init`, `logits` and `sample`, such as `small.AutoregressiveMLP`.
      features: questions to feature vectors [Q, F], such as a world's method.
      lengths: questions to tokens of a completion [Q], at most the network's length T, which all
        completions have by default.
    """

    network: Any
    features: Callable[[Any], Array]
    lengths: Callable[[Any], Array] | None = None

    @property
    def vocabulary(self) -> int | None:
        """Number of tokens; None for a network that does not say it."""
        return getattr(self.network, "vocabulary", None)

    def init(self, key):
        """Random parameters of the network."""
        return self.network.init(key)

    def prompts(self, questions):
        """The features, and where they differ the lengths of the completions, `wanted_lengths`."""
        features = self.features(questions)
        prompts = {
            "prompts": features,
            "prompt_lengths": jnp.full(features.shape[0], features.shape[1]),
        }
        if self.lengths is None:
            return prompts
        return prompts | {"wanted_lengths": self.lengths(questions)}

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
        prompts, mask = dict(prompts), jnp.ones(tokens.shape, bool)
        if "wanted_lengths" in prompts:
            mask &= jnp.arange(tokens.shape[-1]) < prompts.pop("wanted_lengths")[:, None, None]
        return rollout_of(
            prompts,
            ids,
            {
                "completions": jnp.where(mask, tokens, 0),
                "mask": mask,
                "behavior_logp": jnp.where(mask, logp, 0.0),
                "stopped": jnp.ones(tokens.shape[:2], bool),
            },
        )

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

    @property
    def vocabulary(self) -> int:
        """Number of tokens."""
        return self.network.vocab_size

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


class Probe(NamedTuple):
    """What `probe` finds.

    Attributes:
      rewards: of each sample.
      entropy: of each question in nats, a mean over the tokens of its samples.
    """

    rewards: Float[Array, "Q G"]
    entropy: Float[Array, "Q"]


def probe(
    params: Any,
    questions: Any,
    key: Key[Array, ""],
    *,
    policy: Policy,
    task: Any,
    samples: int,
    greedy: bool = False,
) -> Probe:
    """Rewards and entropy of a policy on given questions, for `evaluate` of a run.

    Args:
      params: of the policy.
      questions: as `task.draw` gives them.
      key: of the samples.
      policy: that samples.
      task: with `ids` and `reward`.
      samples: G, of each question.
      greedy: whether the most likely tokens are taken instead.

    Returns:
      The rewards [Q, G] and the entropies [Q].
    """
    ids, prompts = task.ids(questions), policy.prompts(questions)
    rows = policy.sample(params, prompts, ids, key, samples=samples, greedy=greedy)
    by_question = lambda x: rearrange(x, "(q g) t -> q g t", g=samples)  # noqa: E731
    completions, mask = by_question(rows["completions"]), by_question(rows["mask"])
    rewards = task.reward(questions, completions, mask > 0)
    entropy = by_question(policy.forward(params, rows, needs=Needs()).entropy)
    return Probe(rewards, masked_mean(entropy, mask, axis=(1, 2)))
