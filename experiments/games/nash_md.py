"""Nash-MD: a policy that no other beats, where no reward can say which answer is best."""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from polgrad import algorithms, contract, distributions, divergences, experiments, small, tabular
from polgrad.tabular.sequences import enumerate_sequences


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
    table: small.TablePolicy
    logits: Array  # [prefixes, V], the reference's
    reference: Array  # [N], its log-probabilities
    preference: Array  # [N, N]
    equilibrium: Array  # [N], the Nash policy
    rewards: Array  # [N], fitted to pairs of the reference
    rlhf: Array  # [N], the policy that those rewards make optimal


def world(key: Array, settings: Settings) -> World:
    """A random game, the reference in it, and what the two sides of the claim aim at."""
    sequences = enumerate_sequences(settings.vocabulary, settings.length)
    answers, table = len(sequences.tokens), (sequences.prefixes, sequences.vocabulary)
    # One draw for both: random numbers are most of what compiles.
    quality, logits = jnp.split(
        jax.random.normal(key, (answers + sequences.prefixes * sequences.vocabulary,)), [answers]
    )
    classes = sequences.tokens.sum(-1) % 3
    preference = tabular.cyclic_game(quality, classes, a=settings.quality, b=settings.cycle)
    logits = settings.spread * logits.reshape(table)
    policy = small.TablePolicy(sequences)
    reference = policy.logp(logits)
    nash = tabular.regularized_nash(
        jnp.exp(reference), preference, tau=settings.tau, iterations=2000
    )
    rewards = tabular.bradley_terry_fit(preference, jnp.exp(reference))
    rlhf = jnp.exp(tabular.kl_regularized_optimum(reference, rewards, beta=settings.tau))
    return World(policy, logits, reference, preference, nash, rewards, rlhf)


def measure(game: World, policy: Array, settings: Settings) -> dict[str, Array]:
    reference = jnp.exp(game.reference)
    return {
        "gap": tabular.duality_gap(policy, reference, game.preference, tau=settings.tau),
        "beaten_by": jnp.max(tabular.win_rates(game.preference, policy)),
        "beats_rlhf": tabular.policy_win_rate(game.preference, policy, game.rlhf),
        "beats_nash": tabular.policy_win_rate(game.preference, policy, game.equilibrium),
        "entropy": distributions.entropy(jnp.log(policy)),
        "kl_to_nash": divergences.categorical_kl(jnp.log(game.equilibrium), jnp.log(policy)),
    }


def exact(key: Array, settings: Settings) -> dict[str, Array]:
    """Nash-MD itself, with the decaying step that the theorem wants."""
    game = world(key, settings)
    reference = jnp.exp(game.reference)

    def update(number, policy):
        eta = 2.0 / (settings.tau * (number + 2.0))
        return tabular.nash_md_step(policy, reference, game.preference, eta=eta, tau=settings.tau)

    def point(policy, index):
        # None at point 0, which is before the first update.
        first = jnp.maximum(index - 1, 0) * settings.updates
        policy = jax.lax.fori_loop(first, index * settings.updates, update, policy)
        metrics = measure(game, policy, settings)
        experiments.record(index, settings.points + 1, **metrics)
        return policy, metrics

    indices = jnp.arange(settings.points + 1)
    _, curves = jax.lax.scan(point, reference, indices)
    return {"update": settings.updates * indices, **curves}


@dataclasses.dataclass(frozen=True, eq=False)
class Judged(small.OneQuestion):
    """One question, whose answers are compared by the game or rewarded by what was fitted to it."""

    game: World

    def reward(self, questions: Array, completions: Array, mask: Array) -> Array:
        return self.game.rewards[self.game.table.numbers(completions)]

    def prefer(self, questions: Array, completions: Array, others: Array) -> Array:
        answers, rivals = (self.game.table.numbers(x) for x in (completions, others))
        return self.game.preference[answers, rivals]


def learn(key: Array, settings: Settings, *, algorithm: Callable) -> dict[str, Array]:
    """Gradient descent with sampled answers, from the reference on."""
    game = world(key, settings)

    def evaluate(params, _):
        return measure(game, jnp.exp(game.table.logp(params)), settings)

    _, curves = small.run(
        key,
        algorithm(settings),
        policy=game.table,
        task=Judged(game),
        schedule=small.Schedule(
            rollouts=settings.points * settings.updates,
            questions=1,
            group=settings.batch,
            points=settings.points,
        ),
        optimizer=optax.sgd(settings.learning_rate),
        evaluate=evaluate,
        params=game.logits,
        report=experiments.record,
    )
    return small.pick(curves, EXPERIMENT.metrics, axis="update")


def nash_md(opponent: Callable) -> Callable:
    """Nash-MD-PG against an opponent that the settings determine."""
    return lambda s: algorithms.NashMD(tau=s.tau, opponent=opponent(s))


# The algorithm of each sampled arm.
ALGORITHMS: dict[str, Callable[[Settings], contract.Settings]] = {
    "nash_md_0.125": nash_md(lambda s: algorithms.Mixed(0.125)),
    "nash_md_0.25": nash_md(lambda s: algorithms.Mixed(0.25)),
    "nash_md_0.5": nash_md(lambda s: algorithms.Mixed(0.5)),
    "self_play": nash_md(lambda s: algorithms.Mixed(0.0)),
    "best_response": nash_md(lambda s: algorithms.Mixed(1.0)),
    "nash_ema": nash_md(lambda s: contract.Average(s.ema)),
    "rlhf": lambda s: algorithms.RLOO(kl=algorithms.RewardKL(s.tau)),
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
    arms={"exact": exact}
    | {name: functools.partial(learn, algorithm=make) for name, make in ALGORITHMS.items()},
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
