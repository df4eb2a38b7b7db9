"""Addressed randomness: every key is a function of the seed, a purpose and a step.

No key is stored in a checkpoint and none depends on what was drawn before, so a resumed run, or
one on another mesh, draws the same numbers.
"""

import jax

# Purposes keep their numbers for ever: a changed number changes every run.
INIT, SAMPLE, OPPONENT, PREPARE, UPDATE, SHUFFLE, EVALUATE = range(7)


def address(seed: int, purpose: int, *place: int) -> jax.Array:
    """The key of a purpose at a place, such as a step.

    Args:
      seed: the run's seed.
      purpose: one of the constants of this module.
      *place: numbers below 2^32.

    Returns:
      A key.
    """
    key = jax.random.fold_in(jax.random.key(seed), purpose)
    for number in place:
        key = jax.random.fold_in(key, number)
    return key
