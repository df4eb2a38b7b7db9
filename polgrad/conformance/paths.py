"""The path of an algorithm over every rollout: `prepare`, `select`, `loss`, and the gradient."""

import functools
import itertools

import jax
import numpy as np

from polgrad.conformance import expectations, groups, rollouts
from polgrad.conformance.expectations import Measurement
from polgrad.conformance.rollouts import Policies, World
from polgrad.contract import Algorithm, Context, Settings
from polgrad.training import step

__all__ = ["KEY", "UNKNOWN", "Path", "beta_of", "build", "experience_of", "follows"]

KEY = 0
UNKNOWN = "none of the known"


class Path:
    """The whole path of an algorithm on one problem, over all rollouts."""

    def __init__(self, settings: Settings, problem: expectations.Problem):
        self.problem = problem
        size = groups.SIZES[problem.name]
        kind = rollouts.kind_of(build(settings, size, 1, True), type(settings).__name__)
        # An opponent doubles the samples: then a rollout has one.
        self.size = 1 if kind is rollouts.Contests else size
        self.build = functools.cache(lambda on_policy: build(settings, self.size, 1, on_policy))
        self.samples = self.build(True).samples
        self.world: World = kind(problem, self.build(True), self.size, beta_of(settings))
        self.gradients = functools.cache(
            lambda on_policy: _gradients(self.build(on_policy), problem)
        )

    def ascent(self, staleness: float, returns: np.ndarray) -> tuple[np.ndarray, Policies]:
        """Direction of each rollout's step, [M, parameters], and the policies."""
        policies = rollouts.policies_at(self.problem, staleness, samples=self.samples)
        rows = self.world.rows
        arrays = experience_of(self.world, policies, rows, self.size)
        arrays |= self.world.rewards(returns, self.world.index)
        # Pairs and demonstrations have no sampler whose policy could be the current one.
        gradients = self.gradients(self.samples and staleness == 0.0)
        found = -np.asarray(gradients(policies.current, arrays))
        return found.reshape(len(rows), -1), policies

    def expected(self, staleness: float, returns: np.ndarray) -> tuple[np.ndarray, float, Policies]:
        """Ascent direction of the expected loss, variance of a rollout's, and the policies."""
        ascent, policies = self.ascent(staleness, returns)
        weight = self.world.weight(policies, returns)
        mean, variance = expectations.moments(ascent[:, None], weight, np.ones((len(ascent), 1)))
        return mean, variance, policies

    def measurements(self) -> list[Measurement]:
        """At every staleness."""
        found = []
        for staleness in expectations.STALENESS:
            mean, variance, policies = self.expected(staleness, self.problem.returns)
            known = self.world.known(policies, self.problem.returns)
            exact = known.gradients[self.world.exact]
            measured = expectations.measurement(
                self.problem.name, staleness, mean, exact, variance / known.variance, {}
            )
            terms = {} if staleness else known.terms
            found.append(measured._replace(follows=follows(mean, known.gradients, terms)))
        return found

    @functools.cached_property
    def binary(self) -> np.ndarray:
        """Rewards of 0 and 1."""
        returns = self.problem.returns
        return (returns > np.median(returns)).astype(returns.dtype)


def beta_of(settings: Settings) -> float:
    """The strength of a KL, 0.1 in settings without one."""
    beta = getattr(settings, "beta", 0.1)
    return float(beta) if isinstance(beta, int | float) else 0.1


def build(settings: Settings, size: int, prompts: int, on_policy: bool) -> Algorithm:
    """The algorithm of some settings, for groups of `size` samples of the enumerated policies."""
    algorithm = settings.build(
        Context(
            group_size=size,
            max_tokens=expectations.problems()[0].sequences.mask.shape[1],
            num_prompts=prompts,
            on_policy=on_policy,
        )
    )
    algorithm.check()
    return algorithm


def _gradients(algorithm: Algorithm, problem: expectations.Problem):
    """`(logits, experience of many rollouts) -> gradient of each one's loss`, compiled."""
    gradient = step.gradient_of(rollouts.Tabular(problem), algorithm)

    def one(logits, experience):
        key = jax.random.key(KEY)
        _, batch, _ = algorithm.prepare(algorithm.init(key), experience, key)
        return gradient(logits, batch, key)[1]

    return jax.jit(jax.vmap(one, (None, 0)))


def experience_of(world: World, policies: Policies, index: np.ndarray, size: int) -> dict:
    """The arrays of a rollout, as `training.train` gives them to `prepare`, for many rollouts.

    Args:
      world: the completions.
      policies: logits.
      index: numbers of completions, [..., rows] or [..., rows, roles].
      size: samples of a prompt, which are neighbouring rows.
    """
    sequences = world.problem.sequences
    mask = sequences.mask[index]
    lengths = mask.sum(-1).astype(np.int32)
    found = {
        "prompts": np.zeros((*index.shape, 1), np.int32),
        "prompt_lengths": np.ones(index.shape, np.int32),
        "completions": sequences.tokens[index].astype(np.int32),
        "completion_lengths": lengths,
        "mask": mask,
    }
    for name, kind in world.algorithm.policies.items():
        found[f"{name}_logp"] = world.token_logp(policies.of(kind))[index]
    if not world.algorithm.samples:
        return found
    number = np.broadcast_to(np.arange(index.shape[-1]), index.shape)
    found |= {
        "behavior_logp": world.token_logp(policies.behavior)[index],
        "stopped": (lengths < mask.shape[-1]) | (found["completions"][..., -1] == 0),
        "prompt_ids": (number // size).astype(np.uint32),
        "sample_ids": (number % size).astype(np.uint32),
    }
    if world.algorithm.needs.values:
        found["values"] = rollouts.Tabular(world.problem).values[index]
    return found


def follows(
    mean: np.ndarray, gradients: dict[str, np.ndarray], terms: dict[str, np.ndarray]
) -> str:
    """The known gradient that this one is, a multiple of it, or its sum with terms."""
    # More vectors than the parameters allow would fit anything.
    most = np.linalg.matrix_rank(np.stack(list(gradients.values()) + list(terms.values()))) - 1
    for count in range(max(1, min(3, most))):
        for name, extra in itertools.product(gradients, itertools.combinations(terms, count)):
            basis = np.stack([gradients[name], *(terms[t] for t in extra)], -1)
            factors = np.linalg.lstsq(basis, mean)[0]
            if expectations.distance(basis @ factors, mean) < expectations.EXACT and np.all(
                factors > 1e-9
            ):
                return " ".join([_times(factors[0], name), *map(_with, factors[1:], extra)])
    return UNKNOWN


def _times(factor: float, name: str) -> str:
    return name if abs(factor - 1.0) < expectations.EXACT else f"{factor:.3g} x {name}"


def _with(factor: float, name: str) -> str:
    return f"{'+' if name.startswith('entropy') else '-'} {factor:.3g} x {name}"
