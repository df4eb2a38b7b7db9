"""Rollouts as a run would have stored them, for tests that compare ways to learn from them."""

import jax
import jax.numpy as jnp
import numpy as np

from polgrad.contract import Pair, Previous

PROMPTS, GROUP, P, T, V = 4, 4, 5, 6, 11


def stored_rollouts(dtype=np.float64):
    """Random prompts, completions, rewards and log-probabilities; one sample is invalid."""
    rng = np.random.default_rng(0)
    n = PROMPTS * GROUP
    lengths = rng.integers(1, T + 1, n).astype(np.int32)
    mask = (np.arange(T) < lengths[:, None]).astype(dtype)
    completions = np.where(mask > 0, rng.integers(1, V, (n, T)), 0).astype(np.int32)
    prompt_lengths = np.repeat(rng.integers(1, P + 1, PROMPTS), GROUP).astype(np.int32)
    prompts = np.repeat(rng.integers(1, V, (PROMPTS, P)), GROUP, axis=0).astype(np.int32)
    prompts = np.where(np.arange(P) < prompt_lengths[:, None], prompts, 0)
    logp = rng.normal(-2.3, 0.5, (2, n, T)).astype(dtype) * mask
    valid = np.ones(n, bool)
    valid[5] = False
    return {
        "prompts": prompts,
        "prompt_lengths": prompt_lengths,
        "completions": completions,
        "completion_lengths": lengths,
        "mask": mask,
        "behavior_logp": logp[0],
        "reference_logp": logp[1],
        "stopped": rng.random(n) < 0.7,
        "prompt_ids": np.repeat(np.arange(PROMPTS), GROUP).astype(np.uint32),
        "sample_ids": np.tile(np.arange(GROUP), PROMPTS).astype(np.uint32),
        "rewards": np.where(valid, rng.random(n), 0.0).astype(dtype),
        "opponent_rewards": rng.random(n).astype(dtype),
        "values": (rng.normal(0, 1, (n, T + 1)) * (np.arange(T + 1) <= lengths[:, None])).astype(
            dtype
        ),
        "valid": valid,
    }


def stored_for(algorithm):
    """The stored rollouts, in the layout that the algorithm's data have."""
    found = jax.tree.map(jnp.asarray, stored_rollouts())
    if algorithm.samples:
        for name, kind in algorithm.policies.items():
            if kind == Previous(every=1):
                found[f"{name}_logp"] = found["behavior_logp"]
        if algorithm.unit == Pair():
            return found
    found["rewards"] = jnp.round(found["rewards"])
    if algorithm.samples:
        return found
    rows = np.arange(5 * len(algorithm.unit.roles)).reshape(5, -1)
    return {name: x[rows] for name, x in found.items()}
