"""The shapes of a run's batches, and an algorithm traced on them before anything is computed."""

import jax
import jax.numpy as jnp

from polgrad.training.types import Algorithm, Batch, Context, Outputs


def experience(
    algorithm: Algorithm, context: Context, *, prompts: int, prompt_length: int
) -> Batch:
    """Shapes and types of what `prepare` is given in a step.

    Args:
      algorithm: decides the layout and which further arrays there are.
      context: group size and longest completion.
      prompts: prompts, or rows of a data file, in a step.
      prompt_length: tokens of the longest prompt.

    Returns:
      `jax.ShapeDtypeStruct`s by name.
    """
    tokens = context.max_tokens
    sampled = algorithm.source == "rollouts"
    rows = (prompts * context.group_size,) if sampled else (prompts,)
    if algorithm.source == "pairs":
        rows = (prompts, 2)
    kinds = {
        "prompts": ((prompt_length,), jnp.int32),
        "prompt_lengths": ((), jnp.int32),
        "completions": ((tokens,), jnp.int32),
        "completion_lengths": ((), jnp.int32),
        "mask": ((tokens,), jnp.float32),
        "reference_logp": ((tokens,), jnp.float32),
        "values": ((tokens + 1,), jnp.float32),
    }
    if sampled:
        kinds |= {"behavior_logp": ((tokens,), jnp.float32), "rewards": ((), jnp.float32)}
        kinds |= {name: ((), jnp.bool) for name in ("valid", "stopped")}
        kinds |= {name: ((), jnp.uint32) for name in ("prompt_ids", "sample_ids")}
    if algorithm.opponent is not None:
        kinds["opponent_rewards"] = ((), jnp.float32)
    return {
        name: jax.ShapeDtypeStruct(rows + shape, dtype) for name, (shape, dtype) in kinds.items()
    }


def check(algorithm: Algorithm, context: Context, *, prompts: int, prompt_length: int) -> None:
    """Traces the algorithm's functions, so that settings out of range are found at the start.

    Raises:
      ValueError: whatever the algorithm's losses and advantages refuse.
    """
    key = jax.eval_shape(lambda: jax.random.key(0))
    given = experience(algorithm, context, prompts=prompts, prompt_length=prompt_length)

    def step(key, given):
        _, batch, metrics = algorithm.prepare(algorithm.init(key), given, key)
        zeros = jnp.zeros(batch["mask"].shape, jnp.float32)
        outputs = Outputs(
            zeros,
            zeros if "entropy" in algorithm.requires else None,
            jnp.pad(zeros, [(0, 0)] * (zeros.ndim - 1) + [(0, 1)]),
        )
        return metrics, algorithm.loss(outputs, algorithm.select(outputs, batch, key))

    try:
        jax.eval_shape(step, key, given)
    except ValueError as error:
        # jax appends a paragraph about its own frames.
        raise ValueError(str(error).partition("\n---")[0]) from error
