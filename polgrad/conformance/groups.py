"""What `polgrad.conformance` does with losses of groups: logp [B, G], rewards [B, G]."""

import functools
import itertools

import numpy as np

from polgrad.conformance import calls, expectations, requirements
from polgrad.conformance.expectations import Measurement
from polgrad.conformance.requirements import Check
from polgrad.tabular.sequences import token_logp

__all__ = ["SIZES", "all_groups", "examine", "least_variance"]

SIZES = {"bandit": 4, "sequences": 2}  # samples of a group, all groups of which are enumerated


def examine(call: calls.Call) -> tuple[tuple[Measurement, ...], dict[str, Check]]:
    """Measurements and checks of a loss of groups."""
    measurements = tuple(m for problem in expectations.problems() for m in _measure(call, problem))
    return measurements, {
        "unreduced": requirements.check_unreduced(call),
        "stopped arguments": requirements.check_stopped(call),
        "micro-batches": requirements.check_micro_batches(call),
        "permutation": requirements.check_permutation(call),
        "order in a group": _check_order(call),
        "minus infinity": _check_edges(call),
        "number formats": requirements.check_formats(call),
        "on-policy gradient": _check_on_policy(measurements),
        "reward constants": _check_constants(call),
    }


def _measure(call: calls.Call, problem: expectations.Problem) -> list[Measurement]:
    """Bias and variance over all groups of independent samples of the behaviour policy."""
    score = problem.score.sum(1)
    logp = np.asarray(token_logp(problem.sequences, problem.logits)).sum(-1)
    policy, size = np.exp(logp), SIZES[problem.name]
    exact = (policy * problem.returns) @ score
    groups = all_groups(len(logp), size)
    rewards = problem.returns[groups]
    of_groups = functools.partial(expectations.moments, score[groups])
    least = least_variance(score, policy, groups, rewards)

    results = []
    for staleness in expectations.STALENESS:
        noisy = problem.logits + staleness * problem.noise
        behavior_logp = np.asarray(token_logp(problem.sequences, noisy)).sum(-1)
        batch = calls.Batch(logp[groups], behavior_logp[groups], rewards, np.ones(groups.shape))
        ascent = -np.asarray(call.evaluate(batch)[1].logp)
        # A loss of the samples is averaged over them, a loss of the group is taken as it is.
        ascent = ascent / (size if call.ndim == 2 else 1)
        mean, variance = of_groups(np.exp(behavior_logp)[groups].prod(-1), ascent)
        results.append(
            expectations.measurement(
                problem.name, staleness, mean, exact, variance / least, {"policy gradient": exact}
            )
        )
    return results


def all_groups(completions: int, size: int) -> np.ndarray:
    """Every group of `size` samples, as numbers of completions [M, size]."""
    return np.array(list(itertools.product(range(completions), repeat=size)))


def least_variance(
    score: np.ndarray, policy: np.ndarray, groups: np.ndarray, rewards: np.ndarray
) -> float:
    """That of on-policy REINFORCE with the mean of the other samples as baseline, in a group."""
    size = groups.shape[1]
    others = (rewards.sum(-1, keepdims=True) - rewards) / max(size - 1, 1)
    return expectations.moments(score[groups], policy[groups].prod(-1), (rewards - others) / size)[
        1
    ]


def _check_on_policy(measurements: tuple[Measurement, ...]) -> Check:
    """Whether it is a policy gradient; imitation of the best sample, say, is none."""
    found = [m for m in measurements if m.staleness == 0.0]
    detail = "; ".join(f"{m.follows} ({m.problem}), cosine {m.cosine:.3f}" for m in found)
    return Check(all(m.follows == "policy gradient" for m in found), detail, required=False)


def _check_order(call: calls.Call) -> Check:
    """The samples of a group are exchangeable."""
    order, batch = np.array([1, 2, 0]), call.example()
    _, gradient = call.evaluate(batch)
    _, moved = call.evaluate(calls.Batch(*(x[:, order] for x in batch)))
    if requirements.close(moved.logp, np.asarray(gradient.logp)[:, order]):
        return Check(True, "the order of a group's samples does not matter")
    return Check(False, "the order of a group's samples changes the gradient")


def _check_constants(call: calls.Call) -> Check:
    """A constant added to the rewards of a prompt; a property, not a requirement."""
    batch = call.example()
    _, gradient = call.evaluate(batch)
    _, moved = call.evaluate(batch._replace(advantages=batch.advantages + 3.0))
    if requirements.close(moved.logp, gradient.logp):
        return Check(True, "a constant added to a group's rewards changes nothing", required=False)
    return Check(
        False, "a constant added to a group's rewards changes the gradient", required=False
    )


def _check_edges(call: calls.Call) -> Check:
    """Excluded and nearly excluded samples give finite losses and gradients."""
    values = (-np.inf, -1000.0, -1.0)
    for logp, behavior_logp in itertools.product(values, repeat=2):
        batch = call.example()
        batch = batch._replace(
            logp=np.where(np.eye(4, 3) > 0, logp, batch.logp),
            behavior_logp=np.where(np.eye(4, 3) > 0, behavior_logp, batch.behavior_logp),
        )
        losses, gradient = call.evaluate(batch)
        if not (np.all(np.isfinite(losses)) and np.all(np.isfinite(gradient.logp))):
            return Check(False, f"not finite at logp {logp}, behavior_logp {behavior_logp}")
    return Check(True, "losses and gradients stay finite")
