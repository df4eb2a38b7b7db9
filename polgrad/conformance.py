"""A card for any policy-gradient objective: which gradient it follows, and what it survives.

    card = conformance.check(my_loss)
    print(card)
    assert card.ok
    measure_kl(my_kl_term, place="loss")
    measure_advantages(my_baseline)

An objective is a loss with polgrad's signature, from this package or from anybody's notebook.
Nothing is sampled: the policies are small enough to sum over every completion in float64, so the
expected gradient, its bias and its variance are exact.
"""

from collections.abc import Callable
from typing import NamedTuple

from polgrad import _conformance as kit
from polgrad._conformance import Check, Measurement
from polgrad._estimators import (
    AdvantageMeasurement,
    KLMeasurement,
    measure_advantages,
    measure_kl,
)

__all__ = [
    "AdvantageMeasurement",
    "Card",
    "Check",
    "KLMeasurement",
    "Measurement",
    "check",
    "measure_advantages",
    "measure_kl",
]


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


def check(objective: Callable, *, layout: str | None = None) -> Card:
    """Examines a loss on a bandit and on a tiny autoregressive policy, exactly.

    The objective is called as objective(logp, advantages), objective(logp, behavior_logp,
    advantages) or objective(logp, behavior_logp, advantages, mask); arguments are recognised by
    these names (also `rewards`, `old_logp`, and `selected`, which is all False), otherwise by
    position. Bind whatever else it needs with `functools.partial`. It returns unreduced losses
    to minimise, [B, T] or [B].

    Required: on-policy its expected gradient is the policy gradient (for completions of several
    tokens also the one in which each completion's score is divided by its length); gradients
    flow through `logp` alone; the losses of a batch are those of its parts; order and padding do
    not matter; everything is finite for log-probabilities of minus infinity and empty rows;
    float32 and bfloat16 agree with float64; and a sample whose ratio has moved against its
    advantage is pulled back, which a clip on the wrong side would not do. Measured: bias and
    variance off-policy. Noted: where the trust region ends, and whether the loss is proportional to
    the advantages.

    Args:
      objective: the loss.
      layout: "token" (logp [B, T], advantages [B, 1]), "mixed" (logp [B, T], advantages [B]) or
        "sequence" (both [B]); by default the first of these that the objective accepts. Say
        "sequence" for a sequence loss that does not check its shapes.

    Returns:
      A `Card`; `card.ok` is the verdict and `str(card)` the table.

    Raises:
      ValueError: if the objective takes no arguments that are known, accepts none of the
        layouts, or returns neither [B, T] nor [B] nor a scalar.
    """
    with kit.exactly():
        call = kit.Call(objective, layout)
        measurements = tuple(m for problem in kit.problems() for m in kit.measure(call, problem))
        checks = {
            "on-policy gradient": kit.check_on_policy(measurements),
            "unreduced": kit.check_unreduced(call),
            "stopped arguments": kit.check_stopped(call),
            "micro-batches": kit.check_micro_batches(call),
            "permutation": kit.check_permutation(call),
            "padding": kit.check_padding(call),
            "empty rows": kit.check_empty(call),
            "minus infinity": kit.check_edges(call),
            "number formats": kit.check_formats(call),
            "wins samples back": kit.check_recovery(call),
            "trust region": kit.check_trust_region(call),
            "scales with A": kit.check_scale(call),
        }
    return Card(call.name, kit.LAYOUTS[call.layout], measurements, checks)
