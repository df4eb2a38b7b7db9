"""The one rule about number formats: reductions and exponentials run in at least float32."""

import jax.numpy as jnp
from jaxtyping import Array

__all__ = ["accumulate"]


def accumulate(x) -> Array:
    """Returns `x` as an array of `promote_types(x.dtype, float32)`.

    bfloat16, integers and booleans become float32; float64 stays float64. A bfloat16
    log-probability of -7 has a resolution of 0.03, so its ratio must at least be formed without
    losing more.
    """
    x = jnp.asarray(x)
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
