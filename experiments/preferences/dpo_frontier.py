"""DPO on a tabular policy: how near it comes to the exact frontier of reward and KL."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from polgrad import experiments, losses, tabular

# Strengths of the KL at which the exact frontier is computed; it is interpolated between them.
GRID = np.geomspace(100.0, 0.02, 400)
BETAS = (0.5, 1.0, 2.0, 5.0)


@dataclasses.dataclass(frozen=True)
class Settings:
    """Labelled pairs of answers from a random reference, all of whose numbers are known.

    Attributes:
      answers: to the one prompt.
      pairs: drawn from the reference.
      sharpness: nats of log-odds in a label for each unit of reward.
      points: of the curves.
      updates: between two points, each on all pairs.
      learning_rate: of Adam.
    """

    answers: int = 64
    pairs: int = 4000
    sharpness: float = 2.0
    points: int = 50
    updates: int = 10
    learning_rate: float = 0.03


def world(key, settings):
    """Log-probabilities of the reference, rewards, and (chosen, rejected) of every pair."""
    world_key, pair_key = jax.random.split(key)
    logits, rewards = jax.random.normal(world_key, (2 * settings.answers,)).reshape(2, -1)
    log_reference = jax.nn.log_softmax(logits)
    noise = jax.random.uniform(pair_key, (3 * settings.pairs,)).reshape(3, -1)
    first, second = jnp.searchsorted(jnp.cumsum(jnp.exp(log_reference))[:-1], noise[:2])
    right = noise[2] < jax.nn.sigmoid(settings.sharpness * (rewards[first] - rewards[second]))
    pairs = jnp.where(right, jnp.stack([first, second]), jnp.stack([second, first]))
    return log_reference, rewards, pairs


def direct(ratio, logp, pairs, *, beta):
    return losses.dpo(ratio[pairs[0]], ratio[pairs[1]], beta=beta)


def unweighted(ratio, logp, pairs, *, beta):
    """The margin of DPO without its sigmoid: every pair keeps its whole weight."""
    return -beta * (ratio[pairs[0]] - ratio[pairs[1]])


def preferred(ratio, logp, pairs):
    return -logp[pairs[0]]


def train(key, settings, *, method):
    log_reference, rewards, pairs = world(key, settings)
    frontier = tabular.reward_kl_frontier(log_reference, rewards, GRID)
    start = tabular.expected_reward(log_reference, rewards)
    optimizer = optax.adam(settings.learning_rate)

    def loss(logits):
        logp = jax.nn.log_softmax(logits)
        return jnp.mean(method(logp - log_reference, logp, pairs))

    def step(_, carry):
        logits, state = carry
        change, state = optimizer.update(jax.grad(loss)(logits), state)
        return optax.apply_updates(logits, change), state

    def stretch(carry, _):
        carry = jax.lax.fori_loop(0, settings.updates, step, carry)
        return carry, measure(jax.nn.log_softmax(carry[0]))

    def measure(logp):
        gain = jnp.exp(logp) @ rewards - start
        kl = jnp.exp(logp) @ (logp - log_reference)
        return {"share": gain / (jnp.interp(kl, *frontier[::-1]) - start), "gain": gain, "kl": kl}

    carry = log_reference, optimizer.init(log_reference)
    _, curves = jax.lax.scan(stretch, carry, None, length=settings.points)
    return curves | {"update": settings.updates * jnp.arange(1, settings.points + 1)}


def holds(results):
    share = {beta: results.final(f"dpo_{beta:g}", "share") for beta in BETAS}
    kl = lambda arm: results.final(arm, "kl")  # noqa: E731
    return experiments.verdict(
        *[
            experiments.at_least(f"share of the frontier, beta {beta:g}", share[beta], 0.93)
            for beta in BETAS
        ],
        experiments.at_most("KL, Preferred-FT", kl("preferred_ft"), 0.2),
        experiments.at_least("KL, without weights over DPO", kl("unweighted") / kl("dpo_1"), 2.0),
    )


EXPERIMENT = experiments.Experiment(
    paper=experiments.Paper(
        "Direct Preference Optimization: Your Language Model is Secretly a Reward Model",
        "Rafailov et al.",
        2023,
        "2305.18290",
    ),
    claim="At the KL that it spends, DPO gets nearly the reward of the best possible policy; "
    "without its sigmoid's weight the policy runs away from the reference.",
    arms={
        f"dpo_{beta:g}": functools.partial(train, method=functools.partial(direct, beta=beta))
        for beta in BETAS
    }
    | {
        "preferred_ft": functools.partial(train, method=preferred),
        "unweighted": functools.partial(train, method=functools.partial(unweighted, beta=1.0)),
    },
    settings=Settings(),
    smoke={"answers": 8, "pairs": 40, "points": 4, "updates": 2},
    metrics={
        "share": "gain in reward over the most that any policy gains at the same KL",
        "gain": "expected reward less that of the reference",
        "kl": "from the reference, in nats",
    },
    holds=holds,
    baseline="dpo_1",
    at_scale="sentiment of GPT-2-large on IMDb, one run for each beta",
    seeds=16,
    note="The first half of the claim shows, the second does not. Without the weight the policy "
    "gets a smaller share of the frontier, but its KL ends at half of that of DPO with beta 1: "
    "Adam moves the logits of all answers that win more than they lose at one rate, so they keep "
    "the reference's proportions.",
)
