"""Somebody's loss as a function of one batch: its arguments by their names, its layout found out."""

import functools
import inspect
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

__all__ = ["LAYOUTS", "Batch", "Call", "Pairs", "example_batch"]

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


class Batch(NamedTuple):
    """All inputs that an objective may take, with one advantage a sequence; a layout selects its own."""

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
        batch = example_batch()
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


def example_batch() -> Batch:
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
