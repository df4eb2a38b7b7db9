"""The loop of `polgrad train` on a small policy, as one compiled program."""

import functools
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from einops import rearrange
from jaxtyping import Array, Float, Int, Key

from polgrad._scalars import whole_number
from polgrad.contract import (
    Algorithm,
    Batch,
    Context,
    Curriculum,
    CurriculumSettings,
    Initial,
    Needs,
    Pair,
    Previous,
    Settings,
)
from polgrad.curricula import bandit
from polgrad.small.policies import OtherPolicy, Policy, rollout_of
from polgrad.small.tasks import Task
from polgrad.training import named_policies, step
from polgrad.training.setup import abstract
from polgrad.training.state import TrainState

Metrics = Mapping[str, Float[Array, ""]]
Evaluate = Callable[[Any, Key[Array, ""]], Metrics]


class Schedule(NamedTuple):
    """The sizes of a run.

    Attributes:
      rollouts: how many.
      questions: Q, of a rollout.
      group: G, completions of each question.
      points: of the curves, after the one before training; divides `rollouts`.
      mini_batches: optimiser updates a pass over a rollout.
      epochs: passes over a rollout.
    """

    rollouts: int
    questions: int
    group: int
    points: int
    mini_batches: int = 1
    epochs: int = 1


class Program(NamedTuple):
    """A run in its parts, for a loop on the host that saves in between.

    Attributes:
      init: `(key, params=None) -> carry`, before the first rollout.
      stretch: `(carry, key, point) -> (carry, metrics)`: the rollouts up to a point of the curves
        (none for point 0) and the evaluation there.
      points: points 0 to this one make the run.
    """

    init: Callable[..., Any]
    stretch: Callable[[Any, Array, Array], tuple[Any, dict[str, Array]]]
    points: int


def run(
    key: Key[Array, ""],
    settings: Settings,
    *,
    policy: Policy,
    task: Task,
    schedule: Schedule,
    optimizer: optax.GradientTransformation,
    evaluate: Evaluate = lambda params, key: {},
    params: Any = None,
    curriculum: CurriculumSettings | None = None,
    report: Callable[..., None] = lambda point, total, **metrics: None,
) -> tuple[Any, dict[str, Float[Array, "N"]]]:
    """A whole run, to be compiled and vmapped over seeds or settings.

    Use it where a policy and a task fit into one program and a run takes seconds: ablations, claims
    over seeds. Use `training.train` for language policies.

    Args:
      key: of the run; rollouts and evaluations are addressed by their number.
      settings: of an algorithm, such as `algorithms.GRPO(clip_high=0.28)`.
      policy: what is trained.
      task: questions and rewards; a `small.Log` has the samples too, and a rollout is then rows of
        the log.
      schedule: the sizes.
      optimizer: from optax.
      evaluate: `(params, key) -> {name: number}`, at every point of the curves. A name that a
        metric of the rollouts has too, such as `entropy`, stands for the evaluation's.
      params: initial parameters; drawn by `policy.init` when left out.
      curriculum: how the arms of the questions are chosen, such as `curricula.SEC()`; the task must
        have arms. With None the task draws the questions itself.
      report: called with (point, points in all, metrics), such as `experiments.record`.

    Returns:
      `(final parameters, curves)`: by name the metrics of `evaluate`, those of the last rollout
      before each point (`reward_mean`, `entropy`, `loss`, the algorithm's own and, of a
      curriculum, `arm_mean`, the mean number of the arms drawn from), and `rollout`, each
      [points + 1]. Before training the rollout's metrics are NaN.

    Raises:
      ValueError: sizes that do not divide, an algorithm or a curriculum that asks for what the
        policy, the task or the algorithm does not have, ready tokens that the policy does not have.

    Warns:
      UserWarning: with each of `Algorithm.warnings`, such as settings without effect, when the run
        is traced.
    """
    parts = program(
        settings,
        policy=policy,
        task=task,
        schedule=schedule,
        optimizer=optimizer,
        evaluate=evaluate,
        curriculum=curriculum,
    )

    def stretch(carry, point):
        carry, metrics = parts.stretch(carry, key, point)
        report(point, schedule.points + 1, **metrics)
        return carry, metrics

    points = jnp.arange(schedule.points + 1)
    (state, _, _), curves = jax.lax.scan(stretch, parts.init(key, params), points)
    every = schedule.rollouts // schedule.points
    return state.params, {"rollout": points * every} | curves


def pick(
    curves: Mapping[str, Array], names: Iterable[str], *, axis: str = "rollout"
) -> dict[str, Array]:
    """Some of the curves of a run, as an arm of an experiment returns them.

    Use it to leave out the metrics of the rollouts: they are NaN before training, and a runner of
    experiments refuses curves with a NaN.

    Args:
      curves: from `run`, or made of them.
      names: of the curves that stay, such as the metrics of an experiment.
      axis: what the number of the rollout is called.

    Returns:
      The curves by name, and `rollout` by the name of the axis.
    """
    return {axis: curves["rollout"]} | {name: curves[name] for name in names}


def program(
    settings: Settings,
    *,
    policy: Policy,
    task: Task,
    schedule: Schedule,
    optimizer: optax.GradientTransformation,
    evaluate: Evaluate = lambda params, key: {},
    curriculum: CurriculumSettings | None = None,
) -> Program:
    """The same run in its parts; see `run` for the arguments and `Program` for the result."""
    loop = _Loop(settings, policy, task, schedule, optimizer, curriculum)
    every = schedule.rollouts // schedule.points

    def init(key, params=None):
        params = policy.init(jax.random.fold_in(key, 2)) if params is None else params
        state = loop.first(params, jax.random.fold_in(key, 3))
        # The carry may be donated, so that no two of its arrays may be one.
        initial = jax.tree.map(lambda x: jnp.array(x, copy=True), params)
        return state, initial, loop.no_metrics(state, params)

    def stretch(carry, key, point):
        rollout_key, evaluation_key = (jax.random.fold_in(key, n) for n in (0, 1))

        def rollout(number, carry):
            state, initial, _ = carry
            state, metrics = loop.step(
                state, initial, jax.random.fold_in(rollout_key, number), number
            )
            return state, initial, metrics

        # None at point 0: the evaluation before training is compiled with the others.
        first = jnp.maximum(point - 1, 0) * every
        carry = jax.lax.fori_loop(first, point * every, rollout, carry)
        found = evaluate(carry[0].params, jax.random.fold_in(evaluation_key, point))
        if "rollout" in found:
            raise ValueError(
                "evaluate returned 'rollout', which is the axis of the curves; expected another name"
            )
        return carry, {**carry[2], **found}

    return Program(init, stretch, schedule.points)


class _Loop:
    """One step of a run: collect, prepare, update."""

    def __init__(
        self, settings, policy: Policy, task: Task, schedule: Schedule, optimizer, curriculum=None
    ):
        _check_given(settings, policy, task, schedule, optimizer, curriculum)
        updates = schedule.epochs * schedule.mini_batches
        context = Context(
            group_size=schedule.group,
            max_tokens=_max_tokens(policy, task, schedule),
            num_prompts=task.size,
            on_policy=updates == 1 and not hasattr(task, "logged"),
        )
        self.policy, self.task, self.schedule = policy, task, schedule
        self.logged = hasattr(task, "logged")
        self.optimizer = optimizer
        self.algorithm: Algorithm = settings.build(context)
        if not isinstance(self.algorithm, Algorithm):
            raise ValueError(
                f"{type(settings).__name__}.build returned {self.algorithm!r}, expected an Algorithm"
            )
        self.policies = dict(self.algorithm.policies)
        self.name = type(settings).__name__
        self._check(updates)
        preferences = hasattr(task, "prefer")
        abstract.check(self.algorithm, context, self.name, preferences=preferences)
        for sentence in self.algorithm.warnings:
            # Of this line, whoever calls: Python then shows a sentence once a process.
            warnings.warn(f"{self.name}: {sentence}", stacklevel=1)
        self.curriculum = None if curriculum is None else self._curriculum(curriculum)
        forward = functools.partial(policy.forward, needs=self.algorithm.needs)
        self.update = step.update_of(forward, self.algorithm, optimizer)

    def _check(self, updates: int) -> None:
        schedule, algorithm, name = self.schedule, self.algorithm, self.name
        algorithm.check()
        if schedule.points < 1 or schedule.rollouts % schedule.points:
            raise ValueError(
                f"points is {schedule.points}, expected a divisor of rollouts = {schedule.rollouts}"
            )
        rows = algorithm.rows(schedule.questions, schedule.group)
        if schedule.mini_batches < 1 or rows % schedule.mini_batches:
            raise ValueError(
                f"mini_batches is {schedule.mini_batches}, expected a divisor of the {rows} rows of "
                "a rollout"
            )
        # Logged samples are another policy's from the start.
        if updates > 1 and not algorithm.reuse and not self.logged:
            raise ValueError(
                f"epochs x mini_batches is {updates}, expected 1: {name} has no importance ratio to "
                "reuse samples with"
            )
        if not algorithm.samples and not hasattr(self.task, "answers"):
            raise ValueError(
                f"{name} reads {' and '.join(algorithm.collect.columns)} of the data, and task "
                f"{type(self.task).__name__} has no method answers(questions, columns)"
            )
        if algorithm.samples and self.logged and algorithm.collect.samples.versus is not None:
            raise ValueError(
                f"{name} samples from a mixture of policies, and task {type(self.task).__name__} has "
                "logged samples alone"
            )
        vocabulary = getattr(self.policy, "vocabulary", None)
        if vocabulary is not None and hasattr(self.task, "check_tokens"):
            self.task.check_tokens(vocabulary)

    def _curriculum(self, settings: CurriculumSettings) -> Curriculum:
        if not hasattr(self.task, "arms"):
            raise ValueError(
                f"curriculum is {settings}, expected None: task {type(self.task).__name__} has no "
                "arms to choose from"
            )
        return settings.build()

    def first(self, params: Any, key: Array) -> TrainState:
        """The state before the first rollout."""
        return TrainState(
            trainable=params,
            frozen={},
            policies=named_policies.first(self.policies, params),
            optimizer=self.optimizer.init(params),
            algorithm=self.algorithm.init(key),
            step=jnp.zeros((), jnp.int32),
            skipped=jnp.zeros((), jnp.int32),
            curriculum=self.curriculum.init(self.task.arms) if self.curriculum else (),
        )

    def no_metrics(self, state: TrainState, initial: Any) -> dict[str, Array]:
        """NaN for each metric of a step."""
        key = jax.random.key(0)
        _, metrics = jax.eval_shape(self.step, state, initial, key, 0)
        return {name: jnp.full(x.shape, jnp.nan, x.dtype) for name, x in metrics.items()}

    def step(self, state: TrainState, initial: Any, key: Array, number: Array):
        """One rollout and its updates; `number` counts from 0, unbatched under `vmap`."""
        collect, prepare, updates, choose = (jax.random.fold_in(key, n) for n in range(4))
        state = self._refreshed(state, number)
        held = dict(state.policies)
        for name, kind in self.policies.items():
            if isinstance(kind, Initial):
                held[name] = initial
            elif named_policies.behaves(kind) and self.logged:
                # The policy at the start of the rollout, which did not draw the log.
                held[name] = state.params
        arm = self._chosen(state, choose)
        experience, metrics = self._experience(state.params, held, collect, arm)
        memory, batch, prepared = self.algorithm.prepare(state.algorithm, experience, prepare)
        if arm is not None:
            metrics["arm_mean"] = arm.mean()
            state = state._replace(curriculum=self._paid(state.curriculum, arm, experience, batch))
        state, seen = self._updates(state._replace(algorithm=memory), batch, updates)
        metrics = {**metrics, **prepared, **seen}
        state = state._replace(
            step=state.step + 1,
            algorithm=step.observed(self.algorithm, state.algorithm, metrics),
            policies=named_policies.after_updates(self.policies, state.policies, state.trainable),
        )
        return state, {name: jnp.asarray(x, jnp.float32) for name, x in metrics.items()}

    def _chosen(self, state: TrainState, key: Array) -> Int[Array, "Q"] | None:
        """The arm of each question of a rollout; None without a curriculum."""
        if not self.curriculum:
            return None
        noise = jax.random.uniform(key, (self.schedule.questions,))
        return self.curriculum.choose(state.curriculum, state.step, noise)

    def _paid(self, state: Any, arm: Int[Array, "Q"], experience: Batch, batch: Batch) -> Any:
        """The curriculum's state after a rollout, in which a sample's signal is its mean |advantage|."""
        if not self.curriculum.learns:
            return state
        if "advantages" not in batch:
            raise ValueError(
                f"the curriculum learns from advantages, and {self.name} has none; expected an "
                "algorithm with advantages, such as GRPO, or a curriculum that learns nothing, such "
                "as curricula.Uniform()"
            )
        # One number an answer, or one a token.
        advantages = batch["advantages"].reshape(batch["mask"].shape[0], -1)
        signal = bandit.absolute_advantage(advantages, batch["mask"])
        arm = jnp.repeat(arm, self.schedule.group)
        return self.curriculum.update(state, arm, signal, experience["valid"])

    def _refreshed(self, state: TrainState, number: Array) -> TrainState:
        policies = dict(state.policies)
        for name, kind in named_policies.moving(self.policies).items():
            if isinstance(kind, Previous):
                policies[name] = jax.lax.cond(
                    number % kind.every == 0,
                    lambda old: state.trainable,
                    lambda old: old,
                    policies[name],
                )
        return state._replace(policies=policies)

    def _experience(
        self, params: Any, held: Mapping[str, Any], key: Array, arm: Array | None = None
    ) -> tuple[Batch, dict]:
        """What `prepare` is given, and the metrics of the samples."""
        keys = [jax.random.fold_in(key, n) for n in range(3)]
        chosen = () if arm is None else (arm,)
        questions = self.task.draw(keys[0], self.schedule.questions, *chosen)
        ids, prompts = self.task.ids(questions), self.policy.prompts(_asked(self.task, questions))
        if ids.shape[0] != self.schedule.questions:
            raise ValueError(
                f"questions is {self.schedule.questions}, and task {type(self.task).__name__} drew "
                f"{ids.shape[0]}; expected at most as many as it has"
            )
        if self.algorithm.samples:
            experience, metrics = self._samples(params, held, questions, ids, prompts, keys[1:])
        else:
            experience, metrics = self._answers(questions, prompts), {}
        for name in self.policies:
            if name in held:
                logp = self.policy.forward(held[name], experience, needs=Needs()).logp
            else:
                logp = experience["behavior_logp"]
            experience[f"{name}_logp"] = jax.lax.stop_gradient(logp)
        if self.algorithm.needs.values:
            needs = Needs(values=True)
            experience["values"] = self.policy.forward(params, experience, needs=needs).values
        return experience, metrics

    def _samples(self, params, held, questions, ids, prompts, keys) -> tuple[Batch, dict]:
        group = self.schedule.group
        by_question = lambda x: rearrange(x, "(q g) ... -> q g ...", g=group)  # noqa: E731

        def drawn(key, mixed=None):
            rows = self.policy.sample(params, prompts, ids, key, samples=group, mixed=mixed)
            return rows, by_question(rows["completions"]), by_question(rows["mask"]) > 0

        if self.logged:
            experience, rewards, mask = self._logged(questions, ids, prompts)
        else:
            experience, completions, mask = drawn(keys[0])
            rewards = self._per_completion("reward", questions, completions, mask)
        valid = jnp.isfinite(rewards)
        versus = self.algorithm.collect.samples.versus
        if versus is not None:
            # A policy that is the sampling one itself is not held.
            other = OtherPolicy(held.get(versus.name, params), versus.weight)
            _, others, others_mask = drawn(keys[1], other)
            if hasattr(self.task, "prefer"):
                preferred = self._per_completion("prefer", questions, completions, others)
                experience["preferences"] = preferred.reshape(-1)
            else:
                against = self._per_completion("reward", questions, others, others_mask)
                experience["opponent_rewards"] = against.reshape(-1)
        for name in ("preferences", "opponent_rewards"):
            if name in experience:
                known = jnp.isfinite(experience[name])
                experience[name] = jnp.where(known, experience[name], 0.0)
                valid &= known.reshape(valid.shape)
        rewards = jnp.where(valid, rewards, 0.0)
        experience |= {"rewards": rewards.reshape(-1), "valid": valid.reshape(-1)}
        count = jnp.maximum(valid.sum(), 1)
        mean = rewards.sum() / count
        spread = jnp.where(valid, jnp.square(rewards - mean), 0.0).sum() / count
        return experience, {
            # Without a valid reward there is no mean, and 0 would be a reward.
            "reward_mean": jnp.where(valid.any(), mean, jnp.nan),
            "reward_std": jnp.where(valid.any(), jnp.sqrt(spread), jnp.nan),
            "completion_length": mask.sum(-1).mean(),
        }

    def _per_completion(self, method: str, questions, *arrays) -> Array:
        """What a method of the task says of each completion."""
        found = getattr(self.task, method)(questions, *arrays)
        wanted = (self.schedule.questions, self.schedule.group)
        if jnp.shape(found) != wanted:
            raise ValueError(
                f"{type(self.task).__name__}.{method} returned shape {list(jnp.shape(found))}, "
                f"expected {list(wanted)}: one number for each completion of each question"
            )
        return found

    def _logged(self, questions, ids, prompts) -> tuple[Batch, Array, Array]:
        """The log's samples of these questions, with their rewards and their mask by question."""
        logged = dict(self.task.logged(questions))
        rewards, mask = logged.pop("rewards"), logged["mask"]
        if rewards.shape[1] != self.schedule.group:
            raise ValueError(
                f"group is {self.schedule.group}, expected {rewards.shape[1]}, the samples of each "
                "question in the log"
            )
        return rollout_of(prompts, ids, logged), rewards, mask

    def _answers(self, questions, prompts) -> Batch:
        columns = self.algorithm.collect.columns
        completions, mask = self.task.answers(questions, columns)
        lead = completions.shape[:2]
        rows = {
            name: jnp.broadcast_to(x[:, None], (*lead, *x.shape[1:])) for name, x in prompts.items()
        }
        rows |= {
            "completions": completions,
            "completion_lengths": mask.sum(-1),
            "mask": mask.astype(jnp.float32),
        }
        if isinstance(self.algorithm.unit, Pair):
            return rows
        return {name: x[:, 0] for name, x in rows.items()}

    def _updates(self, state: TrainState, batch: Batch, key: Array) -> tuple[TrainState, dict]:
        """All optimiser updates of a rollout, and the means of their metrics."""
        schedule, count = self.schedule, self.schedule.mini_batches

        def update(state, inputs):
            return self.update(state, *inputs)

        def epoch(state, key):
            shuffle, select = jax.random.split(key)
            if count == 1:
                parts = jax.tree.map(lambda x: x[None], batch)
            else:
                parts = step.in_mini_batches(batch, shuffle, count)
            state, metrics = jax.lax.scan(update, state, (parts, jax.random.split(select, count)))
            return state, jax.tree.map(jnp.mean, metrics)

        state, metrics = jax.lax.scan(epoch, state, jax.random.split(key, schedule.epochs))
        return state, jax.tree.map(jnp.mean, metrics)


def _check_given(settings, policy, task, schedule, optimizer, curriculum) -> None:
    """Checks that each argument of a run is what it is called."""
    for name, given in (("settings", settings), ("curriculum", curriculum)):
        if isinstance(given, type):
            raise ValueError(f"{name} is the class {given.__name__}, expected {given.__name__}()")
        if not hasattr(given, "build") and not (name == "curriculum" and given is None):
            such = "algorithms.GRPO()" if name == "settings" else "curricula.SEC()"
            raise ValueError(f"{name} is {given!r}, expected settings such as {such}")
    wanted = {
        "policy": (policy, ("init", "prompts", "sample", "forward"), "small.FeaturePolicy"),
        "task": (task, ("size", "draw", "ids"), "small.ModularSums"),
        "optimizer": (optimizer, ("init", "update"), "optax.adam(1e-3)"),
    }
    for name, (given, methods, such) in wanted.items():
        missing = [method for method in methods if not hasattr(given, method)]
        if missing:
            raise ValueError(
                f"{name} is a {type(given).__name__}, which has no {missing[0]}; expected one such "
                f"as {such}"
            )
    for size, value in schedule._asdict().items():
        whole_number(size, value, low=1)


def _max_tokens(policy: Policy, task: Task, schedule: Schedule) -> int:
    """Longest completion, as the shape of a sample has it."""

    def sampled(key):
        questions = task.draw(key, 1)
        if hasattr(task, "logged"):
            return task.logged(questions)["completions"][0]
        params = policy.init(key)
        prompts = policy.prompts(_asked(task, questions))
        return policy.sample(params, prompts, task.ids(questions), key, samples=1)["completions"]

    return jax.eval_shape(sampled, jax.eval_shape(lambda: jax.random.key(0))).shape[1]


def _asked(task: Task, questions: Any) -> Any:
    """What the policy reads of the questions: they may be rows of data."""
    return task.asked(questions) if hasattr(task, "asked") else questions
