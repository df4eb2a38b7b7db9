"""Nash-MD: a policy that no other beats, where no reward can say which answer is best."""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from polgrad import advantages, divergences, experiments, games, losses, policies
from polgrad.games.sequences import Sequences, enumerate_sequences, token_logp


@dataclasses.dataclass(frozen=True)
class Settings:
    """All sequences of a few tokens, with a quality each and rock-paper-scissors on top.

    Attributes:
      vocabulary: tokens.
      length: of a sequence.
      quality: weight of the quality in the preferences, in nats.
      cycle: weight of rock-paper-scissors, in nats.
      spread: standard deviation of the reference's logits.
      tau: strength of the KL to the reference.
      ema: decay of the averaged policy that Nash-EMA plays against.
      batch: answers an update, each judged against one of the opponent.
      learning_rate: of plain gradient descent.
      points: of a curve.
      updates: between two points.
    """

    vocabulary: int = 4
    length: int = 3
    quality: float = 1.0
    cycle: float = 2.0
    spread: float = 0.7
    tau: float = 0.05
    ema: float = 0.99
    batch: int = 128
    learning_rate: float = 0.3
    points: int = 60
    updates: int = 50


class World(NamedTuple):
    sequences: Sequences
    logits: Array  # [prefixes, V], the reference's
    reference: Array  # [N], its log-probabilities
    preference: Array  # [N, N]
    equilibrium: Array  # [N], the Nash policy
    rewards: Array  # [N], fitted to pairs of the reference
    rlhf: Array  # [N], the policy that those rewards make optimal

    def logp(self, logits: Array) -> Array:
        return token_logp(self.sequences, logits).sum(-1)


def world(key: Array, settings: Settings) -> World:
    """A random game, the reference in it, and what the two sides of the claim aim at."""
    sequences = enumerate_sequences(settings.vocabulary, settings.length)
    answers, table = len(sequences.tokens), (sequences.prefixes, sequences.vocabulary)
    # One draw for both: random numbers are most of what compiles.
    quality, logits = jnp.split(
        jax.random.normal(key, (answers + sequences.prefixes * sequences.vocabulary,)), [answers]
    )
    classes = sequences.tokens.sum(-1) % 3
    preference = games.cyclic_game(quality, classes, a=settings.quality, b=settings.cycle)
    logits = settings.spread * logits.reshape(table)
    reference = token_logp(sequences, logits).sum(-1)
    nash = games.regularized_nash(jnp.exp(reference), preference, tau=settings.tau, iterations=2000)
    rewards = games.bradley_terry_fit(preference, jnp.exp(reference))
    rlhf = jnp.exp(games.kl_regularized_optimum(reference, rewards, beta=settings.tau))
    return World(sequences, logits, reference, preference, nash, rewards, rlhf)


def measure(game: World, policy: Array, settings: Settings) -> dict[str, Array]:
    reference = jnp.exp(game.reference)
    return {
        "gap": games.duality_gap(policy, reference, game.preference, tau=settings.tau),
        "beaten_by": jnp.max(games.win_rates(game.preference, policy)),
        "beats_rlhf": games.policy_win_rate(game.preference, policy, game.rlhf),
        "beats_nash": games.policy_win_rate(game.preference, policy, game.equilibrium),
        "entropy": divergences.categorical_entropy(jnp.log(policy)),
        "kl_to_nash": divergences.categorical_kl(jnp.log(game.equilibrium), jnp.log(policy)),
    }


def run(key: Array, settings: Settings, start: Callable, update: Callable, policy: Callable):
    """Curves of `update(game, carry, number)` from `start(game)`, measured on `policy(carry)`."""
    game = world(key, settings)

    def point(carry, index):
        numbers = index * settings.updates + jnp.arange(settings.updates)
        advance = lambda carry, number: (update(game, carry, number), None)  # noqa: E731
        carry, _ = jax.lax.scan(advance, carry, numbers)
        metrics = measure(game, policy(game, carry), settings)
        experiments.record(index, settings.points, **metrics)
        return carry, metrics

    indices = jnp.arange(settings.points)
    _, curves = jax.lax.scan(point, start(game), indices)
    return {"update": settings.updates * (1 + indices), **curves}


def exact(key: Array, settings: Settings) -> dict[str, Array]:
    """Nash-MD itself, with the decaying step that the theorem wants."""

    def update(game, policy, number):
        eta = 2.0 / (settings.tau * (number + 2.0))
        reference = jnp.exp(game.reference)
        return games.nash_md_step(policy, reference, game.preference, eta=eta, tau=settings.tau)

    return run(
        key, settings, lambda game: jnp.exp(game.reference), update, lambda game, policy: policy
    )


def draw(logp: Array, uniforms: Array) -> Array:
    """Answers [B] of a policy [N] by inversion of its cumulative distribution."""
    return jnp.sum(uniforms[:, None] >= jnp.cumsum(jnp.exp(logp))[:-1], axis=-1)


def preference_loss(game, logits, average, uniforms, settings, *, opponent: Callable) -> Array:
    """Nash-MD-PG against an opponent, a function of (policy, its average, reference)."""
    logp = game.logp(logits)
    answers = draw(jax.lax.stop_gradient(logp), uniforms[0])
    rivals = draw(
        game.logp(jax.lax.stop_gradient(opponent(logits, average, game.logits))), uniforms[1]
    )
    ratio = (logp - game.reference)[answers]
    wins = game.preference[answers, rivals]
    return jnp.mean(losses.nash_md(logp[answers], wins, ratio, tau=settings.tau))


def reward_loss(game, logits, average, uniforms, settings) -> Array:
    """RLHF: REINFORCE on the fitted reward, with the same KL."""
    logp = game.logp(logits)
    answers = draw(jax.lax.stop_gradient(logp), uniforms[0])
    ratio = jax.lax.stop_gradient(logp - game.reference)[answers]
    group = (game.rewards[answers] - settings.tau * ratio)[None]
    centred = advantages.leave_one_out(group).reshape(-1, 1)
    return jnp.mean(losses.reinforce(logp[answers][:, None], centred))


def learn(key: Array, settings: Settings, *, loss: Callable) -> dict[str, Array]:
    """Gradient descent on a loss of sampled answers, from the reference on."""

    def update(game, carry, number):
        logits, average = carry
        uniforms = jax.random.uniform(jax.random.fold_in(key, number), (2, settings.batch))
        of_logits = lambda z: loss(game, z, average, uniforms, settings)  # noqa: E731
        logits = logits - settings.learning_rate * jax.grad(of_logits)(logits)
        return logits, settings.ema * average + (1.0 - settings.ema) * logits

    return run(
        key,
        settings,
        lambda game: (game.logits, game.logits),
        update,
        lambda game, carry: jnp.exp(game.logp(carry[0])),
    )


def mixture(weight: float) -> Callable:
    """The opponent that mixes the reference into every next-token distribution."""
    return lambda logits, average, reference: policies.geometric_mixture(
        logits, reference, reference_weight=weight
    )


OPPONENTS: dict[str, Callable] = {
    "nash_md_0.125": mixture(0.125),
    "nash_md_0.25": mixture(0.25),
    "nash_md_0.5": mixture(0.5),
    "self_play": mixture(0.0),
    "best_response": mixture(1.0),
    "nash_ema": lambda logits, average, reference: average,
}


def holds(results: experiments.Results) -> experiments.Verdict:
    gap = {arm: results.final(arm, "gap") for arm in results.curves}
    curves, tau = results.curves["exact"], results.settings.tau
    bound = 8.0 / (tau**2 * (curves["update"] + 1.0))
    return experiments.verdict(
        experiments.at_least(
            "gap of rlhf less 4 x nash_md_0.125's", gap["rlhf"] - 4.0 * gap["nash_md_0.125"], 0.0
        ),
        experiments.at_least(
            "gap of best_response less 3 x nash_md_0.125's",
            gap["best_response"] - 3.0 * gap["nash_md_0.125"],
            0.0,
        ),
        experiments.at_most("entropy of rlhf", results.final("rlhf", "entropy"), 0.2),
        experiments.at_most(
            "KL(Nash || exact) over its bound, at worst",
            (curves["kl_to_nash"] / bound).max(-1),
            1.0,
        ),
    )


EXPERIMENT = experiments.Experiment(
    paper=experiments.Paper(
        "Nash Learning from Human Feedback", "Munos et al.", 2023, "2312.00886"
    ),
    claim="In a game with cycles, Nash-MD-PG with a small mixture weight comes near the Nash "
    "policy, while RLHF and the best response to the reference stay far from it.",
    arms={
        "exact": exact,
        **{
            name: functools.partial(learn, loss=functools.partial(preference_loss, opponent=rival))
            for name, rival in OPPONENTS.items()
        },
        "rlhf": functools.partial(learn, loss=reward_loss),
    },
    settings=Settings(),
    smoke={"vocabulary": 3, "length": 2, "points": 2, "updates": 5, "batch": 16},
    metrics={
        "gap": "duality gap of the regularised game, 0 at the Nash policy alone",
        "beaten_by": "win rate of the best answer against the policy, 0.5 for a Nash policy",
        "beats_rlhf": "win rate against the optimum of the reward fitted to the reference's pairs",
        "beats_nash": "win rate against the Nash policy of the regularised game",
        "entropy": "of the policy over answers, in nats",
        "kl_to_nash": "KL(Nash policy || policy), in nats",
    },
    holds=holds,
    baseline="nash_md_0.125",
    better="lower",
    seeds=16,
    at_scale="TL;DR summaries with a T5X-L policy and a 3B preference model, or an 8B policy on "
    "UltraFeedback, on 8 accelerators",
    note="In an exact game, self-play (no mixture) is the least exploitable: a constant mixture "
    "weight moves the stationary point away from the Nash policy, the more the larger it is. The "
    "paper's preference for 0.125 to 0.375 comes from a separate judge and is not claimed here. "
    "At equal tau the Nash policy stays so near the reference that RLHF, which pays more KL, wins "
    "more than half of their plain encounters; what RLHF loses is its safety from the "
    "best reply (beaten_by). The theorem's bound is loose here by a factor of thousands.",
)
