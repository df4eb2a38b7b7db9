"""What the algorithms share: groups, batches, clips, and checks of a run's sizes."""

import dataclasses
from typing import Any

import jax
from einops import rearrange
from jaxtyping import Array, Bool, Float

from polgrad import _outside, _user_files, masking
from polgrad.contract import Batch, Context, Outputs
from polgrad.ratios import importance_ratio

SEQUENCES = ("prompts", "prompt_lengths", "completions", "completion_lengths", "mask")


def make_batch(experience: Batch, weights: Array, **extra: Array) -> Batch:
    """The arrays that scoring needs, the weights, and what the algorithm adds."""
    batch = {k: experience[k] for k in SEQUENCES} | {"weights": weights} | extra
    for name in experience:
        # The log-probabilities of the sampler and of each named policy.
        if name.endswith("_logp") or name in ("prompt_ids", "sample_ids"):
            batch.setdefault(name, experience[name])
    if "behavior_logp" in experience:
        # Kept apart: an algorithm may replace behavior_logp, the parity probe may not.
        batch["sampler_logp"] = experience["behavior_logp"]
    return batch


def by_group(x: Array, group_size: int) -> Array:
    """`[N, ...]` to `[P, G, ...]`. The samples of a prompt are neighbouring rows."""
    return rearrange(x, "(prompts samples) ... -> prompts samples ...", samples=group_size)


def counted(experience: Batch) -> Float[Array, "N T"]:
    """The token mask without samples whose reward is invalid."""
    return experience["mask"] * experience["valid"][:, None]


def answered(experience: Batch) -> Bool[Array, "N"]:
    """Samples with a valid reward and at least one token that counts."""
    return experience["valid"] & (experience["mask"] != 0).any(-1)


def behavior_logp(outputs: Outputs, batch: Batch, on_policy: bool) -> Float[Array, "B T"]:
    """What sampled the batch: strictly on-policy the current policy itself, so the ratio is 1."""
    return jax.lax.stop_gradient(outputs.logp) if on_policy else batch["behavior_logp"]


def sequence_logp(logp: Float[Array, "... T"], mask: Float[Array, "... T"]) -> Float[Array, "..."]:
    """Sum over the tokens that count, for any number of leading axes."""
    flat = masking.sequence_sum(logp.reshape(-1, logp.shape[-1]), mask.reshape(-1, mask.shape[-1]))
    return flat.reshape(logp.shape[:-1])


def clips(settings: Any) -> dict[str, Any]:
    """The settings of PPO's clip, as keywords of `losses.ppo_clip`."""
    names = ("clip_low", "clip_high", "dual_clip")
    return {name: getattr(settings, name) for name in names if hasattr(settings, name)}


def outside(ratio: Array, advantages: Array, *, clip_low, clip_high) -> Bool[Array, "..."]:
    """Where a clipped loss has gradient 0: the ratio is past the bound on the gaining side."""
    above = (advantages > 0) & (ratio > 1.0 + clip_high)
    return above | ((advantages < 0) & (ratio < 1.0 - clip_low))


def ppo_clipped(
    logp: Float[Array, "B T"],
    behavior_logp: Float[Array, "B T"],
    advantages: Array,
    *,
    clip_low: float,
    clip_high: float,
    dual_clip: float | None = None,
) -> Bool[Array, "B T"]:
    """The tokens whose gradient `losses.ppo_clip` sets to 0."""
    ratio = importance_ratio(jax.lax.stop_gradient(logp), behavior_logp)
    stopped = outside(ratio, advantages, clip_low=clip_low, clip_high=clip_high)
    if dual_clip is None:
        return stopped
    return stopped | ((advantages < 0) & (ratio > dual_clip))


def check_arguments(settings: Any, arguments: dict[str, tuple[str, ...]]) -> None:
    """Refuses methods that cannot be called as the settings call them.

    Args:
      settings: their methods.
      arguments: of each method, the names of its arguments.

    Raises:
      OutsideError: with the line of the method, what it takes and what was expected.
    """
    for name, names in arguments.items():
        told = _user_files.misfit(getattr(settings, name), name, names)
        if told:
            raise _outside.OutsideError(told)


def check_returned(
    settings: Any, name: str, value: Any, shape: tuple[int, ...] | None, each: str
) -> None:
    """Refuses what a method returned if it is no array, or one of another shape.

    Args:
      settings: the object with the method.
      name: of the method.
      value: what it returned.
      shape: that was expected; None for any shape.
      each: what stands in the array, for the message.

    Raises:
      OutsideError: with the line of the method, what it returned and what was expected.
    """
    found = getattr(value, "shape", None)
    if found is not None and shape in (None, tuple(found)):
        return
    line = _user_files.line_of(getattr(settings, name))
    came = type(value).__name__ if found is None else f"shape {list(found)}"
    raise _outside.OutsideError(
        f"{f'{line}: ' if line else ''}{type(settings).__name__}.{name} returned "
        f"{'nothing' if value is None else came}, expected "
        f"{each if shape is None else f'{list(shape)}: {each}'}"
        f"{' (does its last line say return?)' if value is None else ''}"
    )


def need_group(settings: Any, context: Context, least: int) -> None:
    """Refuses groups too small for a gradient.

    Raises:
      ValueError: if a group has fewer than `least` samples.
    """
    if context.group_size < least:
        raise ValueError(
            f"the group size (rollouts.group_size) is {context.group_size}, expected at least {least}: "
            f"{type(settings).__name__} compares the samples of a prompt, and every gradient of a "
            "smaller group is 0"
        )


def holds_one(limits: tuple[Any, Any]) -> bool:
    """Whether limits of a ratio leave a ratio of 1 as it is; False for traced limits."""
    low, high = limits
    try:
        return bool(low <= 1.0 <= high)
    except jax.errors.TracerBoolConversionError:
        return False


def changed(settings: Any, names: tuple[str, ...]) -> tuple[str, ...]:
    """Those of the named settings that have another value than their default."""
    defaults = {field.name: field.default for field in dataclasses.fields(settings)}

    def differs(name: str) -> bool:
        try:
            return bool(getattr(settings, name) != defaults.get(name))
        except jax.errors.TracerBoolConversionError:  # one of several values under jax.vmap
            return True

    return tuple(name for name in names if differs(name))


def inert_on_policy(names: tuple[str, ...], then: str = "") -> tuple[str, ...]:
    """A sentence on settings that act on the ratio, for a run whose ratio is always 1.

    Args:
      names: the settings; without any there is no sentence.
      then: what follows from it, as the end of the sentence.

    Returns:
      The sentence, or nothing.
    """
    if not names:
        return ()
    has = "have" if len(names) > 1 else "has"
    return (
        f"{', '.join(names)} {has} no effect: with one update a rollout the importance ratio is 1 "
        f"(update.epochs or update.mini-batches above 1 changes this){then}",
    )
