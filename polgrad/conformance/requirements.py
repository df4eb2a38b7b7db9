"""What a loss is required to do, and what is noted about it: one function for each `Check`."""

import itertools
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from polgrad.conformance.calls import Batch, Call, example_batch
from polgrad.conformance.expectations import EXACT, Measurement

__all__ = [
    "Check",
    "check_edges",
    "check_empty",
    "check_formats",
    "check_micro_batches",
    "check_on_policy",
    "check_padding",
    "check_permutation",
    "check_recovery",
    "check_scale",
    "check_stopped",
    "check_trust_region",
    "check_unreduced",
    "close",
]


class Check(NamedTuple):
    """One requirement, or (`required` False) one property worth knowing."""

    ok: bool
    detail: str
    required: bool = True


def close(a, b, tolerance: float = EXACT) -> bool:
    """Whether two arrays have one shape and agree, each entry relative to 1 + |b|."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    # NaN is equal to nothing, itself included.
    return a.shape == b.shape and bool(np.all(np.abs(a - b) <= tolerance * (1.0 + np.abs(b))))


def check_on_policy(measurements: tuple[Measurement, ...]) -> Check:
    """On-policy it follows the policy gradient, or the one with scores divided by length."""
    found, wrong = [], []
    for m in measurements:
        if m.staleness > 0.0:
            continue
        found.append(f"{m.follows} ({m.problem})")
        allowed = ["policy gradient"] + ["policy gradient / length"] * (m.problem == "sequences")
        if m.follows not in allowed:
            turned = ", it points away" if m.cosine < 0.0 else ""
            wrong.append(f"{m.problem}: relative bias {m.bias:.2g}, cosine {m.cosine:.3f}{turned}")
    return Check(not wrong, "; ".join(wrong or found))


def check_unreduced(call: Call) -> Check:
    """The loss is left to `masking.reduce`."""
    if call.ndim == 0:
        return Check(False, "returns a scalar, expected one loss a row or an entry")
    return Check(True, "one loss a row or a token")


def check_stopped(call: Call) -> Check:
    """No gradient reaches what is fixed once the samples are drawn."""
    _, gradient = call.evaluate(call.example())
    leaks = [
        name
        for name in ("behavior_logp", "advantages")
        if not np.all(np.asarray(getattr(gradient, name)) == 0.0)
    ]
    if leaks:
        return Check(False, f"a gradient reaches {' and '.join(leaks)}: stop it inside the loss")
    return Check(True, "gradients reach logp alone")


def check_micro_batches(call: Call) -> Check:
    """Splitting a batch changes nothing, so gradient accumulation and shards are exact."""
    batch = call.example()
    losses, gradient = call.evaluate(batch)
    parts = [call.evaluate(type(batch)(*(x[i : i + 1] for x in batch))) for i in range(4)]
    total, whole = sum(float(jnp.sum(part)) for part, _ in parts), float(jnp.sum(losses))
    joined = np.concatenate([call.learned(g) for _, g in parts], axis=1)
    if close(total, whole) and close(joined, call.learned(gradient)):
        return Check(True, "losses and gradients of the parts add up to those of the batch")
    return Check(
        False,
        f"the parts sum to {total:.4g}, the batch to {whole:.4g}: the loss divides by a count or "
        "takes a statistic of the batch",
    )


def check_permutation(call: Call) -> Check:
    """Rows are exchangeable."""
    order, batch = np.array([2, 0, 3, 1]), call.example()
    losses, gradient = call.evaluate(batch)
    moved_losses, moved = call.evaluate(type(batch)(*(x[order] for x in batch)))
    same = close(moved_losses, losses[order] if losses.ndim else losses)
    if same and close(call.learned(moved), call.learned(gradient)[:, order]):
        return Check(True, "the order of rows does not matter")
    return Check(False, "the order of rows changes the loss or its gradient")


def check_padding(call: Call) -> Check:
    """Neither the values under mask = 0 nor their number are seen."""
    batch = example_batch()
    hidden = batch.mask == 0
    losses, gradient = call.evaluate(batch)
    kept = np.where(hidden, 0.0, gradient.logp)
    dirty_losses, dirty = call.evaluate(
        batch._replace(
            logp=np.where(hidden, -7.3, batch.logp),
            behavior_logp=np.where(hidden, -0.4, batch.behavior_logp),
        )
    )
    if not (close(dirty_losses, losses) and close(np.where(hidden, 0.0, dirty.logp), kept)):
        return Check(False, "values under mask = 0 change the loss or its gradient")
    if not close(np.asarray(dirty.logp)[hidden], np.zeros(hidden.sum())):
        return Check(False, "a gradient flows into positions under mask = 0")
    pad = lambda x: np.pad(x, ((0, 0), (0, 2))) if x.ndim == 2 else x  # noqa: E731
    wide_losses, wide = call.evaluate(Batch(*map(pad, batch)))
    if not (close(wide_losses, losses) and close(wide.logp[:, :3], gradient.logp)):
        return Check(False, "masked columns at the end change the loss or its gradient")
    return Check(True, "what lies under mask = 0 does not matter")


def check_empty(call: Call) -> Check:
    """Rows without a valid token, and batches of them, add nothing and no NaN."""
    batch, others = example_batch(), np.array([0, 2, 3])
    present = np.array([[1.0], [0.0], [1.0], [1.0]])
    losses, gradient = call.evaluate(
        batch._replace(
            mask=batch.mask * present,
            logp=batch.logp * present,
            behavior_logp=batch.behavior_logp * present,
        )
    )
    if not close(gradient.logp[1], np.zeros(3)) or (losses.ndim and not close(losses[1], 0.0)):
        return Check(False, "an all-masked row has a loss or a gradient, or NaN")
    if not close(gradient.logp[others], call.evaluate(batch)[1].logp[others]):
        return Check(False, "an all-masked row changes the gradient of the others")
    losses, gradient = call.evaluate(Batch(*map(np.zeros_like, batch)))
    if not (close(jnp.sum(losses), 0.0) and close(gradient.logp, np.zeros((4, 3)))):
        return Check(False, "an all-masked batch has a loss or a gradient, or NaN")
    return Check(True, "all-masked rows and batches contribute 0")


def check_edges(call: Call) -> Check:
    """Excluded and nearly excluded tokens give finite losses and gradients."""
    values, mask = (-np.inf, -1000.0, -1.0, 0.0), np.eye(1, 3) * np.ones((4, 1))
    for behavior_logp, advantage in itertools.product(values, (-1.0, 0.0, 1.0)):
        logp = np.where(mask > 0, np.array(values)[:, None], 0.0)
        old = np.where(mask > 0, behavior_logp, 0.0)
        losses, gradient = call.evaluate(Batch(logp, old, np.full(4, advantage), mask))
        wrong = ~np.isfinite(gradient.logp).all(-1) | ~np.isfinite(losses)
        if wrong.any():
            where = f"logp {values[int(wrong.argmax())]}, behavior_logp {behavior_logp}"
            return Check(False, f"not finite at {where}, advantage {advantage}")
    return Check(True, "losses and gradients stay finite")


def check_formats(call: Call) -> Check:
    """The arithmetic survives float32 and bfloat16 inputs."""
    # All see values that bfloat16 can hold, so that only the arithmetic differs.
    batch = call.example()
    kind, rounded = type(batch), [x.astype(jnp.bfloat16) for x in batch]
    exact, gradient = call.evaluate(kind(*(x.astype(jnp.float64) for x in rounded)))
    gradient = call.learned(gradient)
    for dtype, tolerance in ((jnp.float32, 1e-4), (jnp.bfloat16, 2e-2)):
        losses, found = call.evaluate(kind(*(x.astype(dtype) for x in rounded)))
        if not (
            close(losses, exact, tolerance) and close(call.learned(found), gradient, tolerance)
        ):
            return Check(False, f"{dtype.__name__} differs from float64 by more than {tolerance}")
    return Check(True, "float32 and bfloat16 agree with float64")


# Where a trust region may be closed on the side that the policy is coming back from: not here.
_AWAY = 0.4  # log ratio of every token, beyond the usual clips and within the usual dual clip
_RATIOS = np.round(np.arange(0.05, 10.0, 0.1), 2)  # between the bounds that people use


def _pull(call: Call, log_ratios: np.ndarray, advantage: float) -> np.ndarray:
    """How the loss moves the log-probability of a one-token answer, for each log ratio."""
    mask = np.eye(1, 3) * np.ones((len(log_ratios), 1))
    logp = -1.0 * mask
    batch = Batch(logp, logp - log_ratios[:, None] * mask, np.full(len(mask), advantage), mask)
    return -np.asarray(call.evaluate(batch)[1].logp)[:, 0]


def check_recovery(call: Call) -> Check:
    """A clip that is the wrong way round has the right gradient on-policy, and never comes back."""
    for advantage, side in ((1.0, -_AWAY), (-1.0, _AWAY)):
        pull = float(_pull(call, np.array([side]), advantage)[0])
        if not pull * advantage > 0.0:
            word = "no gradient" if pull == 0.0 else "a gradient the wrong way"
            where = f"advantage {advantage:+g} at ratio {np.exp(side):.2f}"
            return Check(False, f"{word} for {where}: a lost sample is not won back")
    return Check(
        True, "samples that the policy moved the wrong way have a gradient that corrects it"
    )


def check_trust_region(call: Call) -> Check:
    """From which ratio on a sample has no gradient any more; a property, not a requirement."""
    ends = []
    for advantage, ratios in (
        (1.0, _RATIOS[_RATIOS >= 1.0]),
        (-1.0, _RATIOS[_RATIOS <= 1.0][::-1]),
    ):
        closed = _pull(call, np.log(ratios), advantage) == 0.0
        ends.append(f"{ratios[closed.argmax()]:g}" if closed[-1] else None)
    if not any(ends):
        return Check(False, "no sample's gradient ends with its ratio", required=False)
    good, bad = (end or "never" for end in ends)
    detail = f"no gradient from ratio {good} on for A > 0, {bad} for A < 0"
    return Check(True, detail, required=False)


def check_scale(call: Call) -> Check:
    """Twice the advantages, twice the gradient; a property, not a requirement."""
    batch = example_batch()
    _, scaled = call.evaluate(batch._replace(advantages=3.0 * batch.advantages))
    if close(scaled.logp, 3.0 * call.evaluate(batch)[1].logp):
        return Check(True, "gradients are proportional to the advantages", required=False)
    return Check(False, "a term beside the advantages is in the loss", required=False)
