"""f-DPG (Go et al. 2023, arXiv:2302.08215): any f-divergence to a target made of the reference.

The target of a prompt is the reference tilted by the reward, or the reference restricted to the
answers that are rewarded.
"""

import dataclasses
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from polgrad import _parts, distributions, divergences, losses, masking, running
from polgrad._dtypes import accumulate
from polgrad.algorithms import common
from polgrad.contract import Algorithm, Context, Initial


class FDPGState(NamedTuple):
    """Saved with the run: Z of every prompt, and the baseline's window."""

    partition: running.LogMeanState
    baseline: running.WindowState


@dataclasses.dataclass(frozen=True)
class Tilt:
    """The target p(y|x) = reference(y|x) exp(reward / beta) / Z(x).

    With `divergence="reverse_kl"` f-DPG is then exactly KL-regularised reinforcement learning.

    Attributes:
      beta: temperature of the tilt, positive; the strength of the KL in that reading.
    """

    beta: float = 0.1

    def score(self, reference_logp: Float[Array, "N"], rewards: Float[Array, "N"]) -> Array:
        """The log of the target times Z."""
        return distributions.tilt(reference_logp, rewards, beta=self.beta)


@dataclasses.dataclass(frozen=True)
class Filtered:
    """The target p(y|x) = reference(y|x) / Z(x) where the reward is above 0, and 0 elsewhere.

    Use it for a condition that an answer meets or not: the target is the reference, given that the
    condition is met. Divergences that are infinite where the target is 0 (`reverse_kl`,
    `reverse_chi_squared`) are cut by `log_ratio_clip`.
    """

    def score(self, reference_logp: Float[Array, "N"], rewards: Float[Array, "N"]) -> Array:
        """The log of the target times Z."""
        return distributions.filtered(reference_logp, rewards > 0.0)


@dataclasses.dataclass(frozen=True)
class FDPG:
    """Distributional policy gradient towards a target made of the reference and the reward.

    Attributes:
      divergence: D_f(policy || target) that is minimised.
      target: `Tilt(beta)` or `Filtered()`.
      log_ratio_clip: bound on the log of policy over target, positive.
      baseline_window: pseudo-rewards the baseline is the mean of.
    """

    divergence: Literal[
        "jensen_shannon",
        "forward_kl",
        "reverse_kl",
        "total_variation",
        "chi_squared",
        "reverse_chi_squared",
        "squared_hellinger",
    ] = "jensen_shannon"
    target: Tilt | Filtered = Tilt()
    log_ratio_clip: float = 20.0
    baseline_window: int = 1024

    def build(self, context: Context) -> Algorithm:
        """The functions for a run of this size."""
        _parts.check(self)
        form = {
            "divergence": getattr(divergences, self.divergence),
            "log_ratio_clip": self.log_ratio_clip,
        }

        def init(key):
            return FDPGState(
                running.log_mean().init((context.num_prompts,)),
                running.window(self.baseline_window).init(),
            )

        def prepare(state, experience, key):
            mask, size = experience["mask"], context.group_size
            valid = common.answered(experience)
            reference = common.sequence_logp(experience["reference_logp"], mask)
            behavior = common.sequence_logp(experience["behavior_logp"], mask)
            rewards = jnp.where(valid, experience["rewards"], 0.0)
            score = common.by_group(self.target.score(reference, rewards), size)
            prompts = common.by_group(experience["prompt_ids"], size)[:, 0]
            # A prompt may stand twice in a batch (a small data set): its groups enter in turn.
            partition = _add_groups(
                state.partition,
                prompts,
                score,
                common.by_group(behavior, size),
                common.by_group(valid, size),
            )
            log_z = running.log_mean().value(partition)[prompts]
            log_target = distributions.normalize(score, log_z).reshape(-1)
            pseudo = losses.f_dpg_pseudo_reward(behavior, log_target, **form)
            # Minus infinity is an answer that the target excludes: its pseudo-reward counts.
            known = valid & ~jnp.isnan(log_target) & ~jnp.isposinf(log_target)
            # Read before this batch is added: a baseline that has seen a sample biases it.
            window = running.window(self.baseline_window)
            baseline = window.value(state.baseline)
            mean = jnp.where(known, pseudo, 0.0).sum() / jnp.maximum(known.sum(), 1)
            state = FDPGState(partition, window.update(state.baseline, pseudo, valid=known))
            batch = common.make_batch(
                experience,
                masking.weights(valid.astype(jnp.float32), mode="sequence"),
                log_target=log_target,
                baseline=jnp.broadcast_to(baseline, log_target.shape),
            )
            return state, batch, _normalisers(log_z) | {"pseudo_reward": mean}

        def loss(outputs, batch):
            behavior = None
            if not context.on_policy:
                behavior = common.sequence_logp(batch["behavior_logp"], batch["mask"])
            logp = common.sequence_logp(outputs.logp, batch["mask"])
            loss = losses.f_dpg(
                logp,
                batch["log_target"],
                behavior_logp=behavior,
                baseline=batch["baseline"],
                **form,
            )
            return masking.weighted_sum(loss, batch["weights"]), {}

        return Algorithm(init=init, prepare=prepare, loss=loss, policies={"reference": Initial()})


def _normalisers(log_z: Float[Array, "P"]) -> dict[str, Array]:
    """The mean of log Z over the prompts of a step whose Z is known, and the share of these.

    Z is 0 until a prompt has an answer in the target; without a known Z there is no mean (NaN).
    """
    known = ~jnp.isneginf(log_z)
    total = jnp.where(known, log_z, 0.0).sum()
    return {"log_z": total / known.sum(), "known_z": known.mean()}


def _add_groups(partition, prompts, score, behavior, valid):
    """Adds each group to its prompt's running mean, one after the other."""

    def add(partition, group):
        prompt, score, behavior, valid = group
        entry = jax.tree.map(lambda x: x[prompt], partition)
        entry = running.log_mean().update(entry, accumulate(score) - behavior, valid=valid)
        return jax.tree.map(lambda x, y: x.at[prompt].set(y), partition, entry), None

    return jax.lax.scan(add, partition, (prompts, score, behavior, valid))[0]
