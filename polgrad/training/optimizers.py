"""The optimiser as settings: optax's AdamW behind a global-norm clip and a schedule."""

import dataclasses
from typing import Literal

import optax


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """AdamW with warm-up, a schedule, and clipping by the global norm.

    Attributes:
      learning_rate: peak learning rate.
      schedule: what follows the warm-up; `"linear"` and `"cosine"` fall to 0 at the last update.
      warmup: updates over which the rate rises from 0.
      max_gradient_norm: global-norm clip; 0 switches it off.
      weight_decay: decoupled weight decay.
      b1: decay of the first moment.
      b2: decay of the second moment.
      epsilon: added to the root of the second moment.
    """

    learning_rate: float = 1e-3
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    warmup: int = 0
    max_gradient_norm: float = 1.0
    weight_decay: float = 0.0
    b1: float = 0.9
    b2: float = 0.999
    epsilon: float = 1e-8

    def __post_init__(self):
        if self.learning_rate < 0:
            raise ValueError(f"learning_rate is {self.learning_rate}; expected at least 0")
        if self.warmup < 0:
            raise ValueError(f"warmup is {self.warmup}; expected at least 0")

    def rate(self, updates: int) -> optax.Schedule:
        """The learning rate as a function of the update's number."""
        after = max(1, updates - self.warmup)
        main = {
            "constant": lambda: optax.constant_schedule(self.learning_rate),
            "linear": lambda: optax.linear_schedule(self.learning_rate, 0.0, after),
            "cosine": lambda: optax.cosine_decay_schedule(self.learning_rate, after),
        }[self.schedule]()
        if not self.warmup:
            return main
        rise = optax.linear_schedule(0.0, self.learning_rate, self.warmup)
        return optax.join_schedules([rise, main], [self.warmup])

    def build(self, updates: int) -> optax.GradientTransformation:
        """The optax transformation for a run of `updates` updates."""
        adam = optax.adamw(
            self.rate(updates),
            b1=self.b1,
            b2=self.b2,
            eps=self.epsilon,
            weight_decay=self.weight_decay,
        )
        if not self.max_gradient_norm:
            return adam
        return optax.chain(optax.clip_by_global_norm(self.max_gradient_norm), adam)
