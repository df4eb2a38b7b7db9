"""Whole runs on small worlds inside one compiled program, to be vmapped over seeds.

`train` is the loop of every on-policy method that works on groups of samples: what makes it GRPO
or another is the loss it is given, and nothing else. `fit` is the same for a fixed data set.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, Key

from polgrad.contract import Outputs
from polgrad.policies.distributions import token_statistics

__all__ = ["Batch", "Schedule", "Task", "fit", "imitate", "probe", "train"]

Metrics = Mapping[str, Float[Array, ""]]


class Task(Protocol):
    """Questions and what their answers are worth, as in `polgrad.small`."""

    def draw(self, key: Key[Array, ""], count: int) -> Any:
        """`count` questions: any arrays with that leading axis."""

    def features(self, questions: Any) -> Float[Array, "Q F"]:
        """What the policy sees of them."""

    def reward(self, questions: Any, tokens: Int[Array, "Q G T"]) -> Float[Array, "Q G"]:
        """One number for each answer."""


class Schedule(NamedTuple):
    """The sizes of a run.

    Attributes:
      rollouts: how many.
      questions: Q, of a rollout.
      group: G, answers to each question.
      updates: of the optimiser for each rollout: it is split by questions into as many
        mini-batches, each used once.
      points: of the curves after the one before training.
    """

    rollouts: int
    questions: int
    group: int
    updates: int
    points: int


class Batch(NamedTuple):
    """A mini-batch of whole groups; B = Q G rows, group after group.

    Attributes:
      tokens: answers.
      mask: all True: answers have one length.
      behavior_logp: log-probabilities under the policy that drew them.
      advantages: one a row, for token losses.
      rewards: in groups, on the last axis.
    """

    tokens: Int[Array, "B T"]
    mask: Bool[Array, "B T"]
    behavior_logp: Float[Array, "B T"]
    advantages: Float[Array, "B 1"]
    rewards: Float[Array, "Q G"]


def train(
    key: Key[Array, ""],
    params: Any,
    *,
    policy: Any,
    task: Task,
    schedule: Schedule,
    optimizer: optax.GradientTransformation,
    loss: Callable[[Outputs, Batch, Key[Array, ""]], Float[Array, ""]],
    evaluate: Callable[[Any, Key[Array, ""]], Metrics],
    advantages: Callable[[Float[Array, "Q G"]], Float[Array, "Q G"]] = lambda rewards: rewards,
    report: Callable[..., None] = lambda point, total, **metrics: None,
) -> tuple[Any, dict[str, Float[Array, "N"]]]:
    """Rolls out, scores and updates, again and again.

    Args:
      key: of the run; rollouts and evaluations are addressed by their number.
      params: initial parameters of the policy.
      policy: with `logits` and `sample`, as in `small.networks`.
      task: questions and rewards.
      schedule: the sizes.
      optimizer: from optax.
      loss: `(outputs, batch, key) -> number` to be minimised, once for each update, on the whole
        mini-batch: what selects or whitens tokens does it here. `outputs` carry the gradient.
      evaluate: `(params, key) -> {name: number}`, at every point of the curves.
      advantages: from the rewards of the whole rollout; the rewards themselves by default.
      report: called with (point, points in all, metrics), such as `experiments.record`.

    Returns:
      (final parameters, curves): the metrics of `evaluate`, and `rollout`, how many there had
      been, each [points + 1].

    Raises:
      ValueError: if `updates` does not divide `questions`, or `points` not `rollouts`.
    """
    _divides("updates", schedule.updates, "questions", schedule.questions)
    _divides("points", schedule.points, "rollouts", schedule.rollouts)
    rollout_key, evaluation_key = jax.random.split(key)

    def objective(params, features, batch, key):
        tokens = batch.tokens.reshape(*batch.rewards.shape, -1)
        statistics = token_statistics(policy.logits(params, features[:, None], tokens), tokens)
        logp, entropy = (x.reshape(batch.tokens.shape) for x in statistics)
        return loss(Outputs(logp, entropy), batch, key)

    def update(carry, inputs):
        params, state = carry
        gradient = jax.grad(objective)(params, *inputs)
        change, state = optimizer.update(gradient, state, params)
        return (optax.apply_updates(params, change), state), None

    def rollout(number, carry):
        keys = jax.random.split(jax.random.fold_in(rollout_key, number), 2 + schedule.updates)
        questions = task.draw(keys[0], schedule.questions)
        features = task.features(questions)
        tokens, logp = policy.sample(carry[0], features, keys[1], samples=schedule.group)
        rewards = task.reward(questions, tokens)
        parts = _split((features, tokens, logp, advantages(rewards), rewards), schedule.updates)
        features, tokens, logp, given, rewards = parts
        rows = lambda x, width: x.reshape(schedule.updates, -1, width)  # noqa: E731
        tokens, logp = rows(tokens, tokens.shape[-1]), rows(logp, logp.shape[-1])
        batches = Batch(tokens, jnp.ones_like(tokens, bool), logp, rows(given, 1), rewards)
        return jax.lax.scan(update, carry, (features, batches, keys[2:]))[0]

    every = schedule.rollouts // schedule.points

    def stretch(carry, point):
        carry = _after_the_first(point, every, rollout, carry)
        metrics = dict(evaluate(carry[0], jax.random.fold_in(evaluation_key, point)))
        report(point, schedule.points + 1, **metrics)
        return carry, metrics

    points = jnp.arange(schedule.points + 1)
    (params, _), curves = jax.lax.scan(stretch, (params, optimizer.init(params)), points)
    return params, {"rollout": points * every} | curves


def fit(
    key: Key[Array, ""],
    params: Any,
    data: Any,
    *,
    loss: Callable[[Any, Any, Key[Array, ""]], Float[Array, ""]],
    optimizer: optax.GradientTransformation,
    epochs: int,
    batch: int,
    evaluate: Callable[[Any, Key[Array, ""]], Metrics] = lambda params, key: {},
    report: Callable[..., None] = lambda point, total, **metrics: None,
) -> tuple[Any, dict[str, Float[Array, "N"]]]:
    """Goes through a fixed data set, in a new random order each epoch.

    Args:
      key: of the run.
      params: initial parameters.
      data: arrays with one leading axis of N units, such as questions with their answers.
      loss: `(params, batch, key) -> number` to be minimised; the batch is a part of the data.
      optimizer: from optax.
      epochs: times through the data.
      batch: units an update.
      evaluate: `(params, key) -> {name: number}`, before training and after each epoch.
      report: called with (point, points in all, metrics), such as `experiments.record`.

    Returns:
      (final parameters, curves): the metrics of `evaluate`, and `epoch`, each [epochs + 1].

    Raises:
      ValueError: if `batch` does not divide N.
    """
    units = jax.tree.leaves(data)[0].shape[0]
    epoch_key, evaluation_key = jax.random.split(key)
    _divides("batch", batch, "the units of data", units)

    def update(carry, inputs):
        params, state = carry
        rows, key = inputs
        gradient = jax.grad(loss)(params, jax.tree.map(lambda x: x[rows], data), key)
        change, state = optimizer.update(gradient, state, params)
        return (optax.apply_updates(params, change), state), None

    def epoch(number, carry):
        keys = jax.random.split(jax.random.fold_in(epoch_key, number), 1 + units // batch)
        order = jax.random.permutation(keys[0], units).reshape(-1, batch)
        return jax.lax.scan(update, carry, (order, keys[1:]))[0]

    def stretch(carry, point):
        carry = _after_the_first(point, 1, epoch, carry)
        metrics = dict(evaluate(carry[0], jax.random.fold_in(evaluation_key, point)))
        report(point, epochs + 1, **metrics)
        return carry, metrics

    points = jnp.arange(epochs + 1)
    (params, _), curves = jax.lax.scan(stretch, (params, optimizer.init(params)), points)
    return params, {"epoch": points} | curves


def imitate(
    key: Key[Array, ""],
    params: Any,
    features: Float[Array, "N F"],
    answers: Int[Array, "N T"],
    *,
    policy: Any,
    optimizer: optax.GradientTransformation,
    epochs: int,
    batch: int,
) -> Any:
    """Supervised learning of answers, such as a warm start from noisy ones.

    Args:
      key: of the order.
      params: initial parameters.
      features: of the questions.
      answers: tokens, one answer a question.
      policy: as in `train`.
      optimizer: from optax.
      epochs: times through the answers.
      batch: answers an update.

    Returns:
      The final parameters.

    Raises:
      ValueError: if `batch` does not divide N.
    """

    def loss(params, batch, key):
        logp, _ = token_statistics(policy.logits(params, batch[0], batch[1]), batch[1])
        return -jnp.mean(logp)

    data = features, answers
    return fit(key, params, data, loss=loss, optimizer=optimizer, epochs=epochs, batch=batch)[0]


def probe(
    params: Any,
    questions: Any,
    key: Key[Array, ""],
    *,
    policy: Any,
    task: Task,
    samples: int,
    greedy: bool = False,
) -> tuple[Float[Array, "Q G"], Float[Array, "Q"]]:
    """Rewards and entropy of a policy on given questions, for evaluations.

    Args:
      params: of the policy.
      questions: as `task.draw` makes them.
      key: of the samples.
      policy: as in `train`.
      task: as in `train`.
      samples: G, answers to each question.
      greedy: whether to take the most likely tokens instead.

    Returns:
      (rewards [Q, G], entropy [Q] in nats, a mean over the tokens of the samples).
    """
    features = task.features(questions)
    tokens, _ = policy.sample(params, features, key, samples=samples, greedy=greedy)
    logits = policy.logits(params, features[:, None], tokens)
    _, entropy = token_statistics(logits, tokens)
    return task.reward(questions, tokens), entropy.mean((1, 2))


def _split(tree: Any, parts: int) -> Any:
    return jax.tree.map(lambda x: x.reshape(parts, -1, *x.shape[1:]), tree)


def _after_the_first(point: Array, every: int, step: Callable, carry: Any) -> Any:
    """`every` steps, numbered through, but none at point 0.

    So the evaluation before training is the same code as the others, and is compiled once.
    """
    return jax.lax.fori_loop(jnp.maximum(point - 1, 0) * every, point * every, step, carry)


def _divides(name: str, value: int, of: str, total: int) -> None:
    if value < 1 or total % value:
        raise ValueError(f"{name} is {value}, expected a divisor of {of} = {total}")
