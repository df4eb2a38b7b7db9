"""`check`: the card of a loss or of the settings of an algorithm."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

from polgrad.conformance import calls, expectations, groups, pairs, requirements
from polgrad.conformance.expectations import Measurement
from polgrad.conformance.requirements import Check
from polgrad.contract import Settings

__all__ = ["Card", "check"]


class Card(NamedTuple):
    """What `check` found. Print it.

    Attributes:
      name: of the objective.
      layout: shapes that the objective takes.
      measurements: exact bias and variance, on-policy first.
      checks: name to `Check`.
    """

    name: str
    layout: str
    measurements: tuple[Measurement, ...]
    checks: dict[str, Check]

    @property
    def ok(self) -> bool:
        """True if every required check passed."""
        return all(check.ok for check in self.checks.values() if check.required)

    @property
    def failures(self) -> tuple[str, ...]:
        """Names of the required checks that failed."""
        return tuple(n for n, check in self.checks.items() if check.required and not check.ok)

    def __str__(self) -> str:
        lines = [
            f"{self.name}: {'conforms' if self.ok else 'FAILS ' + ', '.join(self.failures)}",
            f"  takes {self.layout}",
            "",
            f"  {'problem':<10} {'stale':>5} {'bias':>9} {'cosine':>8} {'variance':>9}  follows",
        ]
        lines += [
            f"  {m.problem:<10} {m.staleness:>5.2f} {m.bias:>9.1e} {m.cosine:>8.4f} "
            f"{m.variance:>9.3g}  {m.follows}"
            for m in self.measurements
        ]
        lines.append("")
        for name, found in self.checks.items():
            word = (
                ("pass" if found.ok else "FAIL")
                if found.required
                else "yes "
                if found.ok
                else "no  "
            )
            lines.append(f"  [{word}] {name:<20} {found.detail}")
        return "\n".join(lines)


def check(objective: Callable | Settings, *, layout: str | None = None) -> Card:
    """Examines a loss, or an algorithm, on a bandit and on a tiny autoregressive policy, exactly.

    Arguments are recognised by their names; an objective with other names has no layout and is
    refused. Bind whatever else it needs with `functools.partial`, and give a loss from elsewhere
    these names with a lambda.

        logp, advantages (or rewards); behavior_logp (or old_logp), mask, selected (all False)
        chosen_logratio, rejected_logratio (or chosen_logp, rejected_logp)

    It returns unreduced losses to minimise, one a row or an entry.

    A policy-gradient loss (layouts "token", "mixed", "sequence") is required to follow the policy
    gradient on-policy (for completions of several tokens also the one in which each completion's
    score is divided by its length); to have no gradient in anything but `logp`; to give for a batch
    the losses of its parts, in any order and with any padding; to be finite for log-probabilities
    of minus infinity and for empty rows; to agree in float32 and bfloat16 with float64; and to have
    a gradient along the advantage for a sample whose ratio has moved against it, which a loss with
    a clip on the wrong side has not. Measured: bias and variance off-policy. Noted: where the trust
    region ends, and whether the loss is proportional to the advantages.

    A loss of groups ("group") is measured over all groups of independent samples, a loss of pairs
    ("pair") over all labelled pairs, beside the exact gradient of `losses.dpo` with the same beta.
    What they are required to do is what holds for any such loss; whether they follow the policy
    gradient or DPO's is noted.

    Settings are built for rollouts of one prompt, and every rollout of G independent samples goes
    through `prepare`, `select` and `loss`: 4 samples of the bandit, 2 of the tiny policy. Losses of
    pairs see every labelled pair of the reference's answers, `Supervised` every demonstration; an
    opponent's answers and the estimates of a value head are enumerated and fixed. The expected
    gradient may be a multiple of a known one, and a sum with the gradient of a KL or an entropy;
    `follows` gives the factors. An algorithm is required to raise the mean of rewards of 0 and 1
    on-policy; to give for a batch the sum of its halves, in any order and with any padding; to have
    no gradient in what is fixed; to ignore samples without a reward; to be finite where the policy
    excludes a token; to agree in float32 with float64; and, where it may reuse samples, to read the
    log-probabilities of the sampler, or to need none: a pair has the same order whoever wrote it, and
    some losses have one optimum for samples of any policy. An algorithm that draws numbers is measured at one draw.

    Args:
      objective: the loss, or settings such as `algorithms.GRPO()`.
      layout: "token" (logp [B, T], advantages [B, 1]), "mixed" (logp [B, T], advantages [B]),
        "sequence" (both [B]), "group" (logp and rewards [B, G]) or "pair" (both [B]); by default
        the first of these that the objective accepts. Say "sequence" or "group" for a loss that
        does not check its shapes.

    Returns:
      A `Card`; `card.ok` is the verdict and `str(card)` the table.

    Raises:
      ValueError: if the objective has arguments that no layout has, accepts none of the layouts,
        or returns something else than losses: another shape, or weights, masks and metrics, which
        have no gradient; if settings cannot be built for these sizes or read rows that cannot be
        enumerated.
    """
    if hasattr(objective, "build"):
        return _check_settings(objective, layout)
    if not callable(objective):
        # A part alone has no path from samples to a gradient.
        holds = "algorithms.PolicyGradient(surrogate=...), or its method surrogate"
        part = dataclasses.is_dataclass(objective)
        raise ValueError(
            f"objective is {objective!r}, expected a loss or settings"
            f"{f': settings that hold it, such as {holds}' if part else ', such as algorithms.GRPO()'}"
        )
    with expectations.exactly():
        call = calls.Call(objective, layout)
        examine = {"group": groups.examine, "pair": pairs.examine}.get(call.layout, _examine)
        measurements, checks = examine(call)
    return Card(call.name, calls.LAYOUTS[call.layout], measurements, checks)


def _check_settings(settings: Settings, layout: str | None) -> Card:
    """The card of an algorithm."""
    # The training step, which losses alone do not need.
    from polgrad.conformance import settings as whole

    if layout is not None:
        raise ValueError(
            f"layout is {layout!r}, expected None for settings: the algorithm has a layout"
        )
    with expectations.exactly():
        return Card(whole.name_of(settings), *whole.examine(settings))


def _examine(call: calls.Call) -> tuple[tuple[Measurement, ...], dict[str, Check]]:
    """Measurements and checks of a policy-gradient loss of tokens or sequences."""
    measurements = tuple(
        m for problem in expectations.problems() for m in expectations.measure(call, problem)
    )
    return measurements, {
        "on-policy gradient": requirements.check_on_policy(measurements),
        "unreduced": requirements.check_unreduced(call),
        "stopped arguments": requirements.check_stopped(call),
        "micro-batches": requirements.check_micro_batches(call),
        "permutation": requirements.check_permutation(call),
        "padding": requirements.check_padding(call),
        "empty rows": requirements.check_empty(call),
        "minus infinity": requirements.check_edges(call),
        "number formats": requirements.check_formats(call),
        "wins samples back": requirements.check_recovery(call),
        "trust region": requirements.check_trust_region(call),
        "scales with A": requirements.check_scale(call),
    }
