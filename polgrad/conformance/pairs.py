"""What `polgrad.conformance` does with losses of preference pairs: chosen [B], rejected [B]."""

import inspect
import itertools
from typing import NamedTuple

import numpy as np

from polgrad.conformance import calls, expectations, requirements
from polgrad.conformance.expectations import Measurement
from polgrad.conformance.requirements import Check
from polgrad.distributions import log_softmax

__all__ = ["Labelled", "dpo_slope", "examine", "label"]

_FAR = 30.0  # log ratio of a pair that is far in the wrong order


def examine(call: calls.Call) -> tuple[tuple[Measurement, ...], dict[str, Check]]:
    """Measurements and checks of a loss of pairs."""
    measurements = tuple(_measure(call))
    return measurements, {
        "unreduced": requirements.check_unreduced(call),
        "prefers chosen": _check_direction(call),
        "micro-batches": requirements.check_micro_batches(call),
        "permutation": requirements.check_permutation(call),
        "minus infinity": _check_edges(call),
        "number formats": requirements.check_formats(call),
        "follows DPO": _check_dpo(measurements),
        "margin alone": _check_margin(call),
        "wrong order": _check_far(call),
    }


def _measure(call: calls.Call) -> list[Measurement]:
    """The exact expected gradient beside that of `losses.dpo` with the same beta.

    Pairs of a bandit's answers are drawn from the reference and labelled by Bradley-Terry with the
    returns as rewards. The policy is the reference with noise of the given size on its logits. A
    loss without a reference is compared with DPO against the uniform policy.
    """
    problem = expectations.problems()[0]
    beta = _beta(call)
    reference, drift = np.asarray(log_softmax(problem.logits[0])), problem.noise[0]
    count = len(reference)
    first, second, weight = label(reference, problem.returns)

    results = []
    for staleness in expectations.STALENESS:
        logp = np.asarray(log_softmax(problem.logits[0] + staleness * drift))
        score = np.eye(count) - np.exp(logp)
        x = logp - reference if call.has_reference else logp
        batch = calls.Pairs(x[first], x[second])
        _, slope = call.evaluate(batch)
        dpo = dpo_slope(x[first] - x[second], beta)

        def moments(chosen, rejected, score=score):
            each = -np.stack([chosen, rejected], -1)
            return expectations.moments(np.stack([score[first], score[second]], 1), weight, each)

        mean, variance = moments(*map(np.asarray, slope))
        exact, least = moments(dpo, -dpo)
        results.append(
            expectations.measurement(
                "pairs", staleness, mean, exact, variance / least, {"DPO": exact}
            )
        )
    return results


class Labelled(NamedTuple):
    """All pairs of answers to a prompt, with the first one preferred.

    Attributes:
      chosen: number of the preferred answer.
      rejected: number of the other.
      weight: probability of the pair with this label.
    """

    chosen: np.ndarray
    rejected: np.ndarray
    weight: np.ndarray


def label(reference: np.ndarray, returns: np.ndarray) -> Labelled:
    """Two answers of the reference, labelled by Bradley-Terry with the returns as rewards.

    Args:
      reference: log-probability of each answer, [N].
      returns: of each answer, [N].
    """
    count = len(reference)
    first, second = (x.ravel() for x in np.indices((count, count)))
    wins = 1.0 / (1.0 + np.exp(returns[second] - returns[first]))
    # Either of the two may have been drawn first.
    return Labelled(first, second, 2.0 * np.exp(reference[first] + reference[second]) * wins)


def dpo_slope(margin: np.ndarray, beta: float) -> np.ndarray:
    """Slope of the DPO loss in the chosen answer's log-ratio; in the other's it is minus this."""
    return -beta / (1.0 + np.exp(beta * margin))


def _beta(call: calls.Call) -> float:
    """The beta that the loss is called with, 0.1 if it has none."""
    found = inspect.signature(call.objective).parameters.get("beta")
    default = None if found is None else found.default
    return float(default) if isinstance(default, int | float) else 0.1


def _check_dpo(measurements: tuple[Measurement, ...]) -> Check:
    """A property, not a requirement: other losses have other gradients."""
    same = all(m.follows == "DPO" for m in measurements)
    cosines = ", ".join(f"{m.cosine:.3f}" for m in measurements)
    detail = "the gradient is that of DPO" if same else f"cosines with DPO's gradient: {cosines}"
    return Check(same, detail, required=False)


def _check_direction(call: calls.Call) -> Check:
    """Where the policy does not tell two answers apart, a step raises the chosen one's margin."""
    even = -np.ones(4)
    _, slope = call.evaluate(calls.Pairs(even, even))
    rise = np.asarray(slope.rejected) - np.asarray(slope.chosen)
    if np.all(rise > 0.0):
        return Check(True, "a step on an even pair raises the margin of the chosen answer")
    return Check(False, "a step on an even pair does not raise the margin of the chosen answer")


def _check_margin(call: calls.Call) -> Check:
    """Whether only the difference of the two counts; a property, not a requirement."""
    batch = call.example()
    _, slope = call.evaluate(batch)
    _, moved = call.evaluate(calls.Pairs(*(x - 0.7 for x in batch)))
    if requirements.close(moved.chosen, slope.chosen) and requirements.close(
        moved.rejected, slope.rejected
    ):
        return Check(True, "only the difference of the two answers counts", required=False)
    return Check(False, "a shift of both answers changes the gradient", required=False)


def _check_far(call: calls.Call) -> Check:
    """Whether a pair that is far in the wrong order is put right; a property."""
    _, slope = call.evaluate(calls.Pairs(np.full(4, -2.0 * _FAR), np.full(4, -_FAR)))
    rise = np.asarray(slope.rejected) - np.asarray(slope.chosen)
    if np.all(rise > 1e-6):
        return Check(True, f"a pair {_FAR:g} nats in the wrong order is put right", required=False)
    return Check(False, f"no gradient for a pair {_FAR:g} nats in the wrong order", required=False)


def _check_edges(call: calls.Call) -> Check:
    """Answers that a policy excludes, or nearly, give finite losses and gradients."""
    for chosen, rejected in itertools.product((-np.inf, -1000.0, -1.0), repeat=2):
        losses, slope = call.evaluate(calls.Pairs(np.full(4, chosen), np.full(4, rejected)))
        if not all(np.all(np.isfinite(x)) for x in (losses, *slope)):
            return Check(False, f"not finite at chosen {chosen}, rejected {rejected}")
    return Check(True, "losses and gradients stay finite")
