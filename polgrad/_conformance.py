"""The examinations behind `polgrad.conformance`: calling a loss, exact moments, requirements."""

import contextlib
import functools
import inspect
import itertools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from polgrad.tabular.sequences import Sequences, enumerate_sequences, token_logp

_TOKEN_FIELDS = ("tokens", "mask", "prefix")
STALENESS = (0.0, 0.1, 0.5, 1.0)
EXACT = 1e-7  # relative; the sums are in float64, user code may hold float32 constants

# Argument names that are recognised, and what they stand for.
_ROLES = {
    "logp": "logp",
    "behavior_logp": "behavior_logp",
    "old_logp": "behavior_logp",
    "advantages": "advantages",
    "rewards": "advantages",
    "mask": "mask",
    "selected": "selected",
}
_PAIR_ROLES = {
    "chosen_logratio": "chosen",
    "rejected_logratio": "rejected",
    "chosen_logp": "chosen",
    "rejected_logp": "rejected",
}
LAYOUTS = {
    "token": "logp [B, T], advantages [B, 1]",
    "mixed": "logp [B, T], advantages [B]",
    "sequence": "logp [B], advantages [B]",
    "group": "logp [B, G], rewards [B, G]",
    "pair": "chosen [B], rejected [B]",
}


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


class Check(NamedTuple):
    """One requirement, or (`required` False) one property worth knowing."""

    ok: bool
    detail: str
    required: bool = True


# --- Calling somebody's loss ------------------------------------------------------------------


class Batch(NamedTuple):
    """Inputs in the widest form, one advantage a sequence; each layout narrows them."""

    logp: Array  # [B, T]
    behavior_logp: Array  # [B, T]
    advantages: Array  # [B]
    mask: Array  # [B, T]


class Pairs(NamedTuple):
    """Log ratios (or log-probabilities) of preferred answers and of the others."""

    chosen: Array  # [B]
    rejected: Array  # [B]


class Call:
    """An objective as a function of a `Batch` or of `Pairs`, with its layout found out."""

    def __init__(self, objective: Callable, layout: str | None):
        self.objective = objective
        inner = objective.func if isinstance(objective, functools.partial) else objective
        self.name = getattr(inner, "__name__", type(inner).__name__)
        if layout is not None and layout not in LAYOUTS:
            raise ValueError(f"layout is {layout!r}, expected one of {', '.join(LAYOUTS)}")
        names = _arguments(objective)
        pairs = set(names) <= _PAIR_ROLES.keys()
        self.roles = {name: (_PAIR_ROLES if pairs else _ROLES)[name] for name in names}
        self.has_reference = "chosen_logratio" in names
        possible = ["pair"] if pairs else [name for name in LAYOUTS if name != "pair"]
        if layout is not None and layout not in possible:
            raise ValueError(
                f"layout is {layout!r}, but the arguments ({', '.join(names)}) are those of "
                f"{', '.join(map(repr, possible))}"
            )
        self.layout = self._find_layout([layout] if layout else possible)
        self.ndim = jax.eval_shape(self._raw, self.example()).ndim
        # (losses [B], gradients of their sum in every argument), in one compiled function.
        self.evaluate = jax.jit(self._evaluate)
        self._refuse_without_gradient()

    def example(self) -> "Batch | Pairs":
        """Ordinary arguments."""
        if self.layout == "pair":
            return _pairs()
        batch = _batch()
        if self.layout == "group":
            rewards = np.random.default_rng(1).normal(size=batch.logp.shape)
            return _full(batch)._replace(advantages=rewards)
        return batch

    def learned(self, gradient: "Batch | Pairs") -> np.ndarray:
        """The gradients in what is learned, stacked: in logp, or in both answers of the pairs."""
        arrays = gradient if self.layout == "pair" else gradient[:1]
        return np.stack([np.asarray(x) for x in arrays])

    def _find_layout(self, candidates: list[str]) -> str:
        complaints = []
        for candidate in candidates:
            self.layout = candidate
            batch = self.example()
            try:
                shape = jax.eval_shape(self._raw, batch).shape
            except (ValueError, TypeError, IndexError, AssertionError) as error:
                complaints.append(f"{candidate} ({LAYOUTS[candidate]}): {error}")
                continue
            if shape in ((), batch[0].shape, batch[0].shape[:1]):
                return candidate
            complaints.append(
                f"{candidate}: returned shape {list(shape)}, expected one loss a row or an entry"
            )
        raise ValueError("objective fits no layout: " + "; ".join(complaints))

    def _refuse_without_gradient(self) -> None:
        """Weights, masks and metrics have the arguments of a loss, but no gradient."""
        example = self.example()
        output = jax.eval_shape(self._raw, example)
        if self.layout != "pair":
            example = example._replace(behavior_logp=example.logp)  # inside of every clip
        real = jnp.issubdtype(output.dtype, jnp.floating)
        if real and np.any(self.learned(self.evaluate(example)[1]) != 0.0):
            return
        first = "chosen" if self.layout == "pair" else "logp"
        other = '; for a loss of groups [..., G] give layout="group"' * (self.layout == "token")
        raise ValueError(
            f"objective returns {output.dtype} without a gradient in {first} in layout "
            f"{self.layout!r}, expected losses: weights, masks and metrics have no layout{other}"
        )

    def _raw(self, batch: "Batch | Pairs") -> jax.Array:
        given = batch._asdict()
        if self.layout != "pair":
            given |= {"selected": jnp.zeros(batch.mask.shape, bool)}
        if self.layout == "token":
            given["advantages"] = batch.advantages[:, None]
        if self.layout == "sequence":
            given["logp"] = _sequence_sum(batch.logp, batch.mask)
            given["behavior_logp"] = _sequence_sum(batch.behavior_logp, batch.mask)
            given["mask"] = jnp.any(batch.mask > 0, axis=-1)
        return self.objective(**{name: given[role] for name, role in self.roles.items()})

    def _evaluate(self, batch: "Batch | Pairs") -> tuple[jax.Array, "Batch | Pairs"]:
        def total(batch):
            loss = self._raw(batch)
            losses = _sequence_sum(loss, batch.mask) if loss.ndim == 2 else loss
            return jnp.sum(losses), losses

        gradient, losses = jax.grad(total, has_aux=True)(batch)
        return losses, gradient


def _sequence_sum(x: jax.Array, mask: jax.Array) -> jax.Array:
    return jnp.sum(jnp.where(mask > 0, x, 0.0), axis=-1)


def _arguments(objective: Callable) -> list[str]:
    """Names of the arguments to pass: those that are needed, and known ones with a default."""
    parameters = inspect.signature(objective).parameters.values()
    passed = [p for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
    needed = {p.name for p in passed if p.default is p.empty}
    if any(p.kind is p.POSITIONAL_ONLY for p in passed):
        raise ValueError("objective has arguments without a name, expected arguments by name")
    if {_PAIR_ROLES.get(name) for name in needed} == {"chosen", "rejected"}:
        return sorted(needed, key=lambda name: _PAIR_ROLES[name])
    known = [p.name for p in passed if p.name in _ROLES]
    if needed <= set(known) and {"logp", "advantages"} <= {_ROLES[n] for n in known}:
        return known
    unknown = sorted(needed - _ROLES.keys() - _PAIR_ROLES.keys())
    raise ValueError(
        f"objective needs the arguments ({', '.join(sorted(needed))}), which no layout has"
        + (f" (unknown: {', '.join(unknown)})" if unknown else "")
        + "; expected logp and advantages (or rewards), and perhaps behavior_logp (or old_logp), "
        "mask, selected; or chosen_logratio and rejected_logratio (or chosen_logp and "
        "rejected_logp). Bind other arguments with functools.partial, and give others' loss these "
        "names with a lambda"
    )


@contextlib.contextmanager
def exactly():
    """Float64 on the CPU: accelerators have none, or a slow one, and nothing here is large."""
    with jax.enable_x64(True), jax.default_device(jax.local_devices(backend="cpu")[0]):
        yield


# --- Exact expectations -----------------------------------------------------------------------


class Problem(NamedTuple):
    """A tabular policy over few completions, with all that does not depend on the objective."""

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


# --- Requirements -----------------------------------------------------------------------------


def _batch() -> Batch:
    """A small off-policy batch of 3 tokens with a hole, a short row and different lengths."""
    random = np.random.default_rng(0)
    mask = np.array([[1.0, 1.0, 1.0], [1.0, 0.0, 1.0], [1.0, 0.0, 0.0], [1.0, 1.0, 0.0]])
    logp = -random.uniform(0.1, 3.0, mask.shape)
    behavior_logp = logp + random.normal(0.0, 0.3, mask.shape)
    advantages = random.normal(size=len(mask))
    return Batch(logp * mask, behavior_logp * mask, advantages, mask)


def _full(batch: Batch) -> Batch:
    """A batch whose mask hides nothing, with an entry in every place."""
    random = np.random.default_rng(2)
    logp = -random.uniform(0.1, 3.0, batch.logp.shape)
    behavior_logp = logp + random.normal(0.0, 0.3, logp.shape)
    return Batch(logp, behavior_logp, batch.advantages, np.ones_like(batch.mask))


def _pairs() -> Pairs:
    """Log ratios of pairs in the right and in the wrong order."""
    random = np.random.default_rng(0)
    return Pairs(*-random.uniform(0.1, 3.0, (2, 4)))


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
    batch = _batch()
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
    batch, others = _batch(), np.array([0, 2, 3])
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
    batch = _batch()
    _, scaled = call.evaluate(batch._replace(advantages=3.0 * batch.advantages))
    if close(scaled.logp, 3.0 * call.evaluate(batch)[1].logp):
        return Check(True, "gradients are proportional to the advantages", required=False)
    return Check(False, "a term beside the advantages is in the loss", required=False)
