"""The shapes of a run's batches, and an algorithm traced on them before anything is computed."""

import pathlib
import traceback

import jax
import jax.numpy as jnp

from polgrad import _outside
from polgrad.training.types import Algorithm, Batch, Context, Outputs


def experience(
    algorithm: Algorithm,
    context: Context,
    *,
    prompts: int,
    prompt_length: int,
    preferences: bool = False,
) -> Batch:
    """Shapes and types of what `prepare` is given in a step.

    Args:
      algorithm: decides the layout and which further arrays there are.
      context: group size and longest completion.
      prompts: prompts, or rows of a data file, in a step.
      prompt_length: tokens of the longest prompt.
      preferences: an opponent's samples are compared by a preference, not by two rewards.

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
    }
    if "reference" in algorithm.requires:
        kinds["reference_logp"] = ((tokens,), jnp.float32)
    if "values" in algorithm.requires:
        kinds["values"] = ((tokens + 1,), jnp.float32)
    if sampled:
        kinds |= {"behavior_logp": ((tokens,), jnp.float32), "rewards": ((), jnp.float32)}
        kinds |= {name: ((), jnp.bool) for name in ("valid", "stopped")}
        kinds |= {name: ((), jnp.uint32) for name in ("prompt_ids", "sample_ids")}
    if algorithm.opponent is not None:
        kinds["preferences" if preferences else "opponent_rewards"] = ((), jnp.float32)
    return {
        name: jax.ShapeDtypeStruct(rows + shape, dtype) for name, (shape, dtype) in kinds.items()
    }


def check(algorithm: Algorithm, context: Context, name: str, *, preferences: bool = False) -> None:
    """Traces the algorithm's functions, so that a mistake is found before anything is computed.

    Args:
      algorithm: its functions.
      context: the sizes of the run.
      name: the algorithm, for messages.
      preferences: as in `experience`.

    Raises:
      ValueError: settings out of range, which the losses and advantages refuse; a function of the
        algorithm that reads what it did not require, or that takes other arguments.
    """
    key = jax.eval_shape(lambda: jax.random.key(0))
    given = experience(algorithm, context, prompts=2, prompt_length=1, preferences=preferences)

    def step(key, given):
        _, batch, metrics = algorithm.prepare(algorithm.init(key), given, key)
        zeros = jnp.zeros(batch["mask"].shape, jnp.float32)
        values = jnp.pad(zeros, [(0, 0)] * (zeros.ndim - 1) + [(0, 1)])
        outputs = Outputs(
            zeros,
            zeros if "entropy" in algorithm.requires else None,
            values if "values" in algorithm.requires else None,
        )
        return metrics, algorithm.loss(outputs, algorithm.select(outputs, batch, key))

    try:
        jax.eval_shape(step, key, given)
    except ValueError as error:
        raise ValueError(_first(error)) from error
    # The functions are somebody's own: they may raise anything, and call sys.exit.
    except (Exception, SystemExit) as error:
        raise ValueError(
            f"algorithm {name}: {_place(error)}{_first(error)}{_hint(error)}"
        ) from error


def _first(error: BaseException) -> str:
    """What an error says, without the paragraph that jax appends about its own frames."""
    if isinstance(error, KeyError):
        return f"the batch has no {error}"
    if isinstance(error, (ValueError, TypeError, AttributeError)):
        return str(error).partition("\n---")[0]
    return _outside.reason(error)


def _place(error: BaseException) -> str:
    """File and line where an error was raised, where that is outside of jax."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "/jax/" not in f.filename]
    return f"{pathlib.Path(frames[-1].filename).name}, line {frames[-1].lineno}: " if frames else ""


def _hint(error: BaseException) -> str:
    """What to do about outputs and arrays that are there only where they are asked for."""
    if isinstance(error, KeyError) or "NoneType" in str(error):
        return (
            "; outputs.entropy, outputs.values and reference_logp are there only where the "
            "algorithm's `requires` holds 'entropy', 'values' or 'reference'"
        )
    return ""
