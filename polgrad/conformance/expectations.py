"""Exact expected gradients of a loss, over every completion of a policy that is a small table."""

import contextlib
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from polgrad.conformance.calls import Batch, Call
from polgrad.tabular.sequences import Sequences, enumerate_sequences, token_logp

__all__ = [
    "EXACT",
    "STALENESS",
    "Measurement",
    "Problem",
    "distance",
    "exactly",
    "measure",
    "measurement",
    "moments",
    "problems",
    "token_score",
]

_TOKEN_FIELDS = ("tokens", "mask", "prefix")
STALENESS = (0.0, 0.1, 0.5, 1.0)
EXACT = 1e-7  # relative; the sums are in float64, user code may hold float32 constants


class Measurement(NamedTuple):
    """The exact expected gradient on one problem at one staleness.

    Attributes:
      problem: "bandit" (4 actions) or "sequences" (completions of 1 to 3 tokens).
      staleness: standard deviation of the noise on the logits of the policy that sampled.
      bias: norm of (expected gradient - policy gradient) / norm of the policy gradient.
      cosine: of the angle between the two.
      variance: trace of the covariance of a one-sample gradient, relative to on-policy REINFORCE
        with the same constant baseline; for groups and for settings of the gradient of a rollout,
        relative to REINFORCE with the mean of the other samples as baseline; for pairs relative to
        DPO.
      follows: the known gradient that the expected one equals, or "none of the known".
    """

    problem: str
    staleness: float
    bias: float
    cosine: float
    variance: float
    follows: str


@contextlib.contextmanager
def exactly():
    """Float64 on the CPU: accelerators have none, or a slow one, and nothing here is large."""
    with jax.enable_x64(True), jax.default_device(jax.local_devices(backend="cpu")[0]):
        yield


class Problem(NamedTuple):
    """A tabular policy over few completions, and the arrays that are the same for every objective."""

    name: str
    sequences: Sequences
    logits: np.ndarray  # [prefixes, V]
    noise: np.ndarray  # [prefixes, V], the direction in which the behaviour policy is stale
    returns: np.ndarray  # [N]
    score: np.ndarray  # [N, T, parameters], gradient of each token's log-probability


@functools.cache
def problems() -> tuple[Problem, ...]:
    """A bandit with 4 actions, and completions of 1 to 3 tokens over a vocabulary of 3."""
    bandit = enumerate_sequences(4, 1)
    # Padded to the same 3 tokens, so that one compiled call serves both.
    padded = {name: np.pad(getattr(bandit, name), ((0, 0), (0, 2))) for name in _TOKEN_FIELDS}
    worlds = {
        "bandit": bandit._replace(**padded),
        "sequences": enumerate_sequences(3, 3, end=0),
    }
    return tuple(_problem(name, sequences) for name, sequences in worlds.items())


def _problem(name: str, sequences: Sequences) -> Problem:
    count, random = len(sequences.tokens), np.random.default_rng(0)
    logits, noise = random.normal(size=(2, sequences.prefixes, sequences.vocabulary))
    score = token_score(sequences, logits)
    return Problem(name, sequences, logits, noise, random.normal(size=count), score)


def token_score(sequences: Sequences, logits: np.ndarray) -> np.ndarray:
    """Gradient of each token's log-probability in the logits, [N, T, parameters]."""
    jacobian = jax.jacobian(functools.partial(token_logp, sequences))(jnp.asarray(logits))
    return np.asarray(jacobian).reshape(*sequences.mask.shape, -1)


def measure(call: Call, problem: Problem) -> list[Measurement]:
    """Bias and variance of the expected gradient at every staleness."""
    sequences, returns, score = problem.sequences, problem.returns, problem.score
    mask, length = sequences.mask, sequences.mask.sum(-1)
    logp = np.asarray(token_logp(sequences, problem.logits))
    policy = np.exp(logp.sum(-1))
    exact = (policy * returns) @ score.sum(1)
    _, reinforce = moments(score, policy, (returns - policy @ returns)[:, None] * mask)

    results = []
    for staleness in STALENESS:
        behavior_logp = token_logp(sequences, problem.logits + staleness * problem.noise)
        behavior_logp = np.asarray(behavior_logp)
        behavior = np.exp(behavior_logp.sum(-1))
        advantages = returns - behavior @ returns
        # One completion a batch, so that a loss that mixes its rows still has a meaning here.
        batch = Batch(logp, behavior_logp, advantages, mask)
        ascent = -np.concatenate(
            [call.evaluate(Batch(*(x[n : n + 1] for x in batch)))[1].logp for n in range(len(logp))]
        )
        mean, variance = moments(score, behavior, ascent)
        weighted, ratio = advantages[:, None] * mask, np.exp(logp - behavior_logp)
        known = {
            "policy gradient": exact,
            "token-ratio surrogate": moments(score, behavior, ratio * weighted)[0],
            "uncorrected REINFORCE": moments(score, behavior, weighted)[0],
            "policy gradient / length": moments(score, policy, weighted / length[:, None])[0],
        }
        results.append(
            measurement(problem.name, staleness, mean, exact, variance / reinforce, known)
        )
    return results


def measurement(
    problem: str,
    staleness: float,
    mean: np.ndarray,
    exact: np.ndarray,
    variance: float,
    known: dict[str, np.ndarray],
) -> Measurement:
    """An expected gradient beside the exact one and others that are known."""
    norms = max(np.linalg.norm(mean) * np.linalg.norm(exact), 1e-300)
    follows = [name for name, g in known.items() if distance(mean, g) < EXACT]
    return Measurement(
        problem=problem,
        staleness=staleness,
        bias=distance(mean, exact),
        cosine=float(mean @ exact / norms),
        variance=float(variance),
        follows=follows[0] if follows else "none of the known",
    )


def moments(score, weight, token_gradient) -> tuple[np.ndarray, float]:
    """Mean and trace of the covariance of one-sample gradients, from [N, T] token gradients."""
    each = np.einsum("nt,ntp->np", token_gradient, score)
    mean = weight @ each
    return mean, weight @ np.sum(each**2, -1) - mean @ mean


def distance(a: np.ndarray, b: np.ndarray) -> float:
    """||a - b|| / ||b||; infinite if either holds a NaN."""
    found = float(np.linalg.norm(a - b) / max(np.linalg.norm(b), 1e-300))
    return np.inf if np.isnan(found) else found
