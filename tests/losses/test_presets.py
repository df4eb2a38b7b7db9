"""The named methods as compositions of primitives: value and gradient against numpy.

Each method of the critic-free family is one advantage, one surrogate, one aggregation and
perhaps a KL. Here each is written in a few lines of the library and again, token by token, in
float64 numpy, whose gradient is taken by central differences.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiled import value_and_grad

from polgrad import advantages, losses, masking

SEQUENCES, TOKENS, GROUP = 6, 5, 3


class Batch(NamedTuple):
    """Two prompts with three samples each; prompts in order."""

    behavior: np.ndarray
    reference: np.ndarray
    rewards: np.ndarray
    mask: np.ndarray


def draw(seed):
    """A policy that has moved far enough to meet every clip, and what it is compared with."""
    rng = np.random.default_rng(seed)
    behavior, reference = rng.normal(-2, 0.5, (2, SEQUENCES, TOKENS))
    mask = (np.arange(TOKENS) < rng.integers(2, TOKENS + 1, (SEQUENCES, 1))).astype(float)
    mask[1, 1] = 0.0  # a hole
    rewards = np.array([[1.0, 0.0, 0.25], [0.5, -1.0, 0.5]])
    return behavior + rng.normal(0, 0.4, behavior.shape), Batch(behavior, reference, rewards, mask)


# --- in polgrad --------------------------------------------------------------------------------


def reinforce_plus_plus(logp, b):
    scores = b.rewards.reshape(-1)
    rewards = advantages.kl_shaped_rewards(scores, b.behavior, b.reference, b.mask, beta=0.01)
    advantage = advantages.reinforce_plus_plus(rewards, b.mask)
    loss = losses.ppo_clip(logp, b.behavior, advantage)
    return masking.reduce(loss, b.mask, mode="token")


def rloo(logp, b):
    distance = masking.sequence_sum(b.behavior - b.reference, b.mask)
    rewards = advantages.regularized_rewards(b.rewards, distance.reshape(-1, GROUP), beta=0.05)
    advantage = advantages.leave_one_out(rewards).reshape(-1, 1)
    loss = losses.reinforce(logp, advantage)
    return masking.reduce(loss, b.mask, mode="sequence_sum")


def rloo_clipped(logp, b):
    advantage = advantages.leave_one_out(b.rewards).reshape(-1)
    loss = losses.ppo_clip_sequence(logp, b.behavior, advantage, b.mask)
    return masking.reduce(loss, b.mask.any(1), mode="sequence")


def grpo(logp, b):
    advantage = advantages.group_relative(b.rewards).reshape(-1, 1)
    loss = losses.ppo_clip(logp, b.behavior, advantage)
    loss += 0.04 * losses.kl_penalty(logp, b.reference, value="k3", gradient="k3")
    return masking.reduce(loss, b.mask, mode="sequence")


def dr_grpo(logp, b):
    advantage = advantages.group_relative(b.rewards, scale="none").reshape(-1, 1)
    loss = losses.ppo_clip(logp, b.behavior, advantage)
    return masking.reduce(loss, b.mask, mode="constant", length=TOKENS)


def dapo(logp, b):
    lengths = b.mask.sum(1).reshape(-1, GROUP)
    rewards = b.rewards + advantages.overlong_penalty(lengths, max_length=5, buffer=2)
    advantage = advantages.group_relative(rewards).reshape(-1, 1)
    loss = losses.ppo_clip(logp, b.behavior, advantage, clip_high=0.28)
    return masking.reduce(loss, b.mask, mode="token")


def gspo(logp, b):
    advantage = advantages.group_relative(b.rewards).reshape(-1)
    loss = losses.gspo(logp, b.behavior, advantage, b.mask)
    return masking.reduce(loss, b.mask.any(1), mode="sequence")


def cispo(logp, b):
    advantage = advantages.group_relative(b.rewards, scale="batch").reshape(-1, 1)
    loss = losses.cispo(logp, b.behavior, advantage, cap_high=1.5)
    return masking.reduce(loss, b.mask, mode="token")


def sapo(logp, b):
    advantage = advantages.group_relative(b.rewards).reshape(-1, 1)
    loss = losses.sapo(logp, b.behavior, advantage)
    return masking.reduce(loss, b.mask, mode="sequence")


# --- in numpy ----------------------------------------------------------------------------------

PRESETS = (
    reinforce_plus_plus,
    rloo,
    rloo_clipped,
    grpo,
    dr_grpo,
    dapo,
    gspo,
    cispo,
    sapo,
)


def by_hand(name, logp, frozen, b):
    """The loss with loops over sequences; `frozen` stands where the method stops a gradient."""
    on = b.mask > 0
    rows = [np.flatnonzero(row) for row in on]
    advantage = advantages_by_hand(name, b, rows)
    total = np.zeros(SEQUENCES)
    for s, at in enumerate(rows):
        for t in at:
            total[s] += token_by_hand(name, s, t, at, logp, frozen, advantage[s, t], b)
    if name in ("reinforce_plus_plus", "dapo", "cispo"):
        return total.sum() / on.sum()
    if name == "dr_grpo":
        return total.sum() / (SEQUENCES * TOKENS)
    if name == "rloo":
        return total.mean()
    return np.mean(total / on.sum(1))


def advantages_by_hand(name, b, rows):
    found = np.zeros((SEQUENCES, TOKENS))
    if name == "reinforce_plus_plus":
        for s, at in enumerate(rows):
            each = -0.01 * (b.behavior - b.reference)[s, at]
            each[-1] += b.rewards.flat[s]
            found[s, at] = np.cumsum(each[::-1])[::-1]
        every = np.concatenate([found[s, at] for s, at in enumerate(rows)])
        return (found - every.mean()) / np.sqrt(every.var(ddof=1) + 1e-8)
    rewards = b.rewards.copy()
    for s, at in enumerate(rows):
        if name == "rloo":
            rewards.flat[s] -= 0.05 * (b.behavior - b.reference)[s, at].sum()
        if name == "dapo":
            rewards.flat[s] += {5: -1.0, 4: -0.5}.get(len(at), 0.0)
    for p, group in enumerate(rewards):
        for g, reward in enumerate(group):
            if name.startswith("rloo"):
                value = reward - np.delete(group, g).mean()
            else:
                value = reward - group.mean()
            if name == "cispo":
                value /= rewards.std(ddof=1) + 1e-6
            elif name in ("grpo", "dapo", "gspo", "sapo"):
                value /= group.std(ddof=1) + 1e-6
            found[GROUP * p + g] = value
    return found


def token_by_hand(name, s, t, at, logp, frozen, a, b):
    """One token's term; a sequence's term is spread over its tokens."""
    delta = logp[s, t] - b.behavior[s, t]
    ratio = np.exp(delta)
    if name == "rloo":
        return -a * logp[s, t]
    if name == "cispo":
        return -min(np.exp(frozen[s, t] - b.behavior[s, t]), 1.5) * a * logp[s, t]
    if name == "sapo":
        tau = 1.0 if a > 0 else 1.05
        return -4 / tau / (1 + np.exp(-tau * (ratio - 1))) * a
    low, high = {"dapo": (0.8, 1.28), "gspo": (1 - 3e-4, 1 + 4e-4)}.get(name, (0.8, 1.2))
    if name == "gspo":
        ratio = np.exp((logp - b.behavior)[s, at].mean())
    if name == "rloo_clipped":
        ratio = np.exp((logp - b.behavior)[s, at].sum())
    loss = -min(ratio * a, np.clip(ratio, low, high) * a)
    if name == "grpo":
        x = b.reference[s, t] - logp[s, t]
        loss += 0.04 * (np.exp(x) - x - 1)
    return loss


@pytest.mark.sampled(3)
@pytest.mark.parametrize("preset", PRESETS, ids=lambda f: f.__name__)
def test_value_and_gradient_equal_the_numpy_loops(preset):
    for seed in range(3):
        logp, batch = draw(seed)
        with jax.enable_x64(True):
            arrays = jax.tree.map(jnp.asarray, batch)
            value, slope = VALUE_AND_GRAD[preset](jnp.asarray(logp), arrays)
        name = preset.__name__
        np.testing.assert_allclose(value, by_hand(name, logp, logp, batch), rtol=1e-10)
        numeric = np.zeros_like(logp)
        for place in np.ndindex(logp.shape):
            step = np.zeros_like(logp)
            step[place] = 1e-6
            up, down = (by_hand(name, logp + d, logp, batch) for d in (step, -step))
            numeric[place] = (up - down) / 2e-6
        np.testing.assert_allclose(slope, numeric, atol=1e-8)
        np.testing.assert_array_equal(slope[batch.mask == 0], 0.0)


VALUE_AND_GRAD = {preset: value_and_grad(preset) for preset in PRESETS}


@pytest.mark.parametrize("preset", PRESETS, ids=lambda f: f.__name__)
def test_what_stands_under_the_mask_and_where_the_rewards_zero_is_do_not_matter(preset):
    logp, batch = draw(0)
    hidden = batch.mask == 0
    garbage = batch._replace(
        behavior=np.where(hidden, 7.0, batch.behavior),
        reference=np.where(hidden, -9.0, batch.reference),
    )
    # The whitened returns of REINFORCE++ lose a constant only if all its tokens get the same.
    if preset is not reinforce_plus_plus:
        garbage = garbage._replace(rewards=batch.rewards + 8.0)
    with jax.enable_x64(True):
        plain, other = (
            VALUE_AND_GRAD[preset](jnp.asarray(x), jax.tree.map(jnp.asarray, b))
            for x, b in ((logp, batch), (np.where(hidden, 3.0, logp), garbage))
        )
    for ours, theirs in zip(plain, other, strict=True):
        np.testing.assert_allclose(theirs, ours, rtol=1e-9, atol=1e-12)
