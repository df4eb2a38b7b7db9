"""What the algorithms share: laying out a batch, and the metrics every run reports."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from polgrad import divergences, masking
from polgrad.training.types import Batch, Outputs

SEQUENCES = ("prompts", "prompt_lengths", "completions", "completion_lengths", "mask")


def make_batch(experience: Batch, weights: Array, **extra: Array) -> Batch:
    """The arrays that scoring needs, the weights, and what the algorithm adds."""
    batch = {k: experience[k] for k in SEQUENCES} | {"weights": weights} | extra
    for name in ("behavior_logp", "reference_logp", "prompt_ids", "sample_ids"):
        if name in experience:
            batch.setdefault(name, experience[name])
    if "behavior_logp" in experience:
        # Kept apart: an algorithm may replace behavior_logp, the parity probe may not.
        batch["sampler_logp"] = experience["behavior_logp"]
    return batch


def by_group(x: Float[Array, "N"], group_size: int) -> Float[Array, "P G"]:
    """Rows are prompt-major: the samples of a prompt become the last axis."""
    return x.reshape(-1, group_size)


def counted(experience: Batch) -> Float[Array, "N T"]:
    """The token mask without samples whose reward is invalid."""
    return experience["mask"] * experience["valid"][:, None]


def behavior_logp(outputs: Outputs, batch: Batch, on_policy: bool) -> Float[Array, "B T"]:
    """What sampled the batch: strictly on-policy the current policy itself, so the ratio is 1."""
    return jax.lax.stop_gradient(outputs.logp) if on_policy else batch["behavior_logp"]


def token_metrics(outputs: Outputs, batch: Batch) -> Mapping[str, tuple[Array, Array]]:
    """`entropy` and, with a reference, `kl_reference`: means over the batch's tokens."""
    mask = batch["mask"]
    count = mask.sum()
    metrics = {"entropy": (jax.lax.stop_gradient((outputs.entropy * mask).sum()), count)}
    if "reference_logp" in batch:
        kl = divergences.kl_estimate(outputs.logp, batch["reference_logp"], kind="k3")
        metrics["kl_reference"] = (jnp.where(mask > 0, kl, 0.0).sum(), count)
    return metrics


def sequence_logp(logp: Float[Array, "... T"], mask: Float[Array, "... T"]) -> Float[Array, "..."]:
    """Sum over the tokens that count, for any number of leading axes."""
    flat = masking.sequence_sum(logp.reshape(-1, logp.shape[-1]), mask.reshape(-1, mask.shape[-1]))
    return flat.reshape(logp.shape[:-1])
