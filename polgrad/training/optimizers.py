"""The optimiser as settings: optax's AdamW or Muon behind a global-norm clip and a schedule."""

import dataclasses
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import optax

from polgrad import _ranges
from polgrad._ranges import Range

_DECAY = Range(at_least=0, below=1)
_RATE = Range(above=0, at_most=100, reason="at 0 no update changes the policy")


@_ranges.documented
@dataclasses.dataclass(frozen=True)
class Optimizer:
    """AdamW or Muon with warm-up, a schedule, and clipping by the global norm.

    Attributes:
      method: `"muon"` orthogonalises the momentum of the blocks' matrices (Jordan et al. 2024),
        scaled to the size of Adam's updates (Liu et al. 2025, arXiv:2502.16982) so that one
        learning rate serves both; all other parameters stay with AdamW, in Nesterov's form.
      learning_rate: peak learning rate. When left out `polgrad train` takes 1e-3 for a
        small policy; for pretrained weights 1e-5 below a billion parameters and 1e-6 from there on
        (2e-5 and 1e-5 for `supervised`).
      schedule: what follows the warm-up; `"linear"` and `"cosine"` fall to 0 at the last update.
        When left out constant for a small policy, linear for pretrained weights.
      warmup: updates over which the rate rises from 0. When left out 0 for a small policy, a
        twentieth of the updates for pretrained weights.
      max_gradient_norm: global-norm clip; 0 switches it off.
      weight_decay: decoupled weight decay.
      momentum: decay of Muon's momentum.
      b1: decay of Adam's first moment.
      b2: decay of Adam's second moment.
      epsilon: added to the root of the second moment.
    """

    method: Literal["adamw", "muon"] = "adamw"
    learning_rate: Annotated[float | None, _RATE] = None
    schedule: Literal["constant", "linear", "cosine"] | None = None
    warmup: Annotated[int | None, Range(at_least=0)] = None
    max_gradient_norm: Annotated[float, Range(at_least=0)] = 1.0
    weight_decay: Annotated[float, Range(at_least=0)] = 0.0
    momentum: Annotated[float, _DECAY] = 0.95
    b1: Annotated[float, _DECAY] = 0.9
    b2: Annotated[float, _DECAY] = 0.999
    epsilon: Annotated[float, Range(above=0)] = 1e-8

    def check(self, name: str = "optimizer") -> None:
        """Checks the numbers that are given.

        Args:
          name: what this optimiser is called in messages.

        Raises:
          ValueError: a number outside its range, or a value of another type.
        """
        _ranges.check(self, name)

    def rate(self, updates: int) -> optax.Schedule:
        """The learning rate as a function of the update's number.

        Raises:
          ValueError: as `check`; or `learning_rate` was left out, which only a run can fill in.
        """
        self.check()
        if self.learning_rate is None:
            raise ValueError("learning_rate is None, expected a number above 0")
        warmup = self.warmup or 0
        after = max(1, updates - warmup)
        main = {
            "constant": lambda: optax.constant_schedule(self.learning_rate),
            "linear": lambda: optax.linear_schedule(self.learning_rate, 0.0, after),
            "cosine": lambda: optax.cosine_decay_schedule(self.learning_rate, after),
        }[self.schedule or "constant"]()
        if not warmup:
            return main
        rise = optax.linear_schedule(0.0, self.learning_rate, warmup)
        return optax.join_schedules([rise, main], [warmup])

    def build(self, updates: int, axes: Any = None) -> optax.GradientTransformation:
        """The optax transformation for a run of `updates` updates.

        Args:
          updates: length of the schedule.
          axes: `network.logical_axes()`; Muon needs it to tell the blocks' matrices.

        Raises:
          ValueError: `method="muon"` without `axes`, or for a network without such matrices; no
            `learning_rate`.
        """
        method = {"adamw": self._adamw, "muon": self._muon}[self.method](self.rate(updates), axes)
        if not self.max_gradient_norm:
            return method
        return optax.chain(clip_by_global_norm(self.max_gradient_norm), method)

    def _adamw(self, rate: optax.Schedule, axes: Any) -> optax.GradientTransformation:
        return optax.adamw(
            rate, b1=self.b1, b2=self.b2, eps=self.epsilon, weight_decay=self.weight_decay
        )

    def _muon(self, rate: optax.Schedule, axes: Any) -> optax.GradientTransformation:
        leaves = jax.tree_util.tree_leaves_with_path(axes, is_leaf=lambda x: isinstance(x, tuple))
        matrices = {path: _matrix(names) for path, names in leaves}
        if not any(matrices.values()):
            raise ValueError(
                'optimizer.method is "muon", but the policy has no matrices between its residual '
                'stream and attention heads or MLP; use "adamw"'
            )

        def dimensions(params):
            # By path, not as a tree: optax also asks with a stand-in for the parameters.
            return jax.tree_util.tree_map_with_path(lambda path, _: matrices.get(path), params)

        return optax.contrib.muon(
            rate,
            beta=self.momentum,
            weight_decay=self.weight_decay,
            adam_b1=self.b1,
            adam_b2=self.b2,
            adam_weight_decay=self.weight_decay,
            muon_weight_dimension_numbers=dimensions,
            consistent_rms=0.2,
        )


def clip_by_global_norm(limit: float) -> optax.GradientTransformation:
    """`g * min(1, limit / |g|)` with the norm of all gradients together.

    `optax.clip_by_global_norm` divides every entry, which XLA does not repeat in the programs of the
    parameters and both moments: it would hold a second copy of the gradient. A factor is free.
    """

    def clip(updates, _):
        # Never above 1, also where the norm is 0.
        factor = limit / jnp.maximum(optax.tree.norm(updates), limit)
        return jax.tree.map(lambda g: (g * factor).astype(g.dtype), updates)

    return optax.stateless(clip)


def _matrix(names: tuple[str | None, ...]) -> optax.contrib.MuonDimensionNumbers | None:
    """A block's matrix: the residual stream on one side, heads or MLP on the other."""
    if "embed" not in names or not {"heads", "kv_heads", "mlp"} & set(names):
        return None
    stream = names.index("embed")
    other = tuple(i for i, name in enumerate(names) if i != stream and name != "layers")
    return optax.contrib.MuonDimensionNumbers(reduction_axis=stream, output_axis=other)
