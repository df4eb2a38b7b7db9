"""The loop: collect, prepare, update, report, save. It knows no algorithm by name."""

import contextlib
import pathlib
import signal
import sys
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from polgrad import _interrupt, _outside, randomness
from polgrad.rewards.pool import RewardFailure
from polgrad.rollouts import sampling_weights
from polgrad.training import probe
from polgrad.training.collecting import Collector
from polgrad.training.config import TrainConfig
from polgrad.training.evaluation import Accuracy, evaluate
from polgrad.training.reporting import plot
from polgrad.training.runtime import hosts
from polgrad.training.runtime import mesh as mesh_lib
from polgrad.training.saving.errors import SavingError
from polgrad.training.saving.journal import ScoreJournal
from polgrad.training.scoring import Scoring, with_packing
from polgrad.training.setup import building, fingerprints, planning
from polgrad.training.setup.beginning import Beginning
from polgrad.training.setup.opening import (
    Pools,
    check_answers,
    claim,
    goes_on_from,
    open_checkpoints,
    open_reporter,
    say_missing_template,
    start_pools,
    starting,
)
from polgrad.training.setup.parts import Parts
from polgrad.training.state import TrainState
from polgrad.training.step import Programs
from polgrad.training.watch import Watch

PROFILED = (5, 7)


class TrainingError(RuntimeError):
    """A run that cannot go on, with what to do about it."""


class Result(NamedTuple):
    """What `train` returns.

    Attributes:
      state: the final state; `state.params` are the parameters.
      metrics: the last step's metrics.
      before: held-out accuracy before the first step (None without held-out problems).
      after: held-out accuracy after the last.
      directory: the run's directory.
      parts: what the run was made of: policy, tokenizer, problems.
      stopped: True when a signal to one of its processes ended the run early, with everything saved.
      warning: why the run has learned nothing, or None.
    """

    state: TrainState
    metrics: Mapping[str, float]
    before: Accuracy | None
    after: Accuracy | None
    directory: pathlib.Path
    parts: Parts
    stopped: bool
    warning: str | None = None


def train(config: TrainConfig, *, quiet: bool = False) -> Result:
    """Trains a policy; the same as `polgrad train`.

    Args:
      config: all settings.
      quiet: print nothing.

    Returns:
      The final state and metrics.

    Raises:
      ValueError: for settings that cannot be used, before anything is computed.
      StartError: a ValueError too: for answers that the rewards cannot score, and a directory or
        checkpoints that are another run's or in use.
      ResumeError: if the checkpoint in `config.out` is damaged or of another shape.
      TrainingError: if the run cannot go on, or cannot be saved.
      HostError: if another process of the run is missing or failed.
      polgrad.rewards.RewardFailure: if too many rewards fail.
    """
    result = run(building.build(config), quiet=quiet)
    if result.warning and result.parts.processes.first and not quiet:
        print(result.warning, flush=True)
    return result


def run(parts: Parts, *, quiet: bool = False, afterwards: Any = None) -> Result:
    """Trains what `building.build` has checked.

    Args:
      parts: the run.
      quiet: print nothing.
      afterwards: the handler of SIGTERM after the run; the one before it when left out.

    Returns:
      As `train`, which also tells the exceptions.

    Raises:
      KeyboardInterrupt: after Ctrl-C; everything is saved where a command handles Ctrl-C
        (`_interrupt`) and a step was being computed. After Ctrl-C in the last step the run is
        complete, and its result is returned.
    """
    try:
        result = _run(parts, quiet, afterwards)
        if result.stopped:
            if _interrupt.pressed():
                hosts.end_together()
            _interrupt.check()
        return result
    except (SavingError, _outside.OutsideError) as error:
        raise TrainingError(str(error)) from error
    except BrokenPipeError:
        raise  # the reader of what is printed has gone
    except OSError as error:
        raise TrainingError(_outside.with_file(error)) from error


def _run(parts: Parts, quiet: bool, afterwards: Any) -> Result:
    with contextlib.ExitStack() as stack, _telling(parts.processes):
        stop = stack.enter_context(_stop_signal(afterwards))
        stack.enter_context(mesh_lib.entered(parts.mesh))
        with starting():
            number = claim(parts, stack)
            checkpoints = open_checkpoints(parts, stack)
            # Before anything is said: a checkpoint that is not there ends the start.
            step = goes_on_from(parts.config, checkpoints)
            reporter = open_reporter(parts, quiet)
            stack.callback(reporter.close)
            if parts.replaced is not None:
                reporter.say(f"takes over {parts.directory}, whose run had saved no step")
            say_missing_template(parts, reporter)
            pools = start_pools(parts, stack)
            check_answers(parts, pools.reward, reporter)
        try:
            return _Loop(parts, reporter, checkpoints, pools, stop, number).run(step)
        except jax.errors.JaxRuntimeError as error:
            if parts.processes.count == 1:
                raise
            raise parts.processes.lost(error) from error


@contextlib.contextmanager
def _telling(processes: hosts.Processes):
    """Tells the other processes of an error of this one, which they would wait for otherwise."""
    try:
        yield
    except (TrainingError, RewardFailure):
        raise  # all processes find it, and still meet to save what they have
    except BaseException as error:
        processes.fail(error)
        raise


@contextlib.contextmanager
def _stop_signal(afterwards: Any = None):
    """A list that SIGTERM puts something into; the loop looks at it between steps."""
    seen: list[int] = []
    try:
        previous = signal.signal(signal.SIGTERM, lambda number, frame: seen.append(number))
    except ValueError:  # Not the main thread, as in some notebooks: no signals there.
        yield seen
        return
    try:
        yield seen
    finally:
        signal.signal(signal.SIGTERM, previous if afterwards is None else afterwards)


def _programs(parts: Parts) -> Programs:
    """The programs of a run."""
    config = parts.config
    updates = config.steps * config.update.epochs * config.update.mini_batches
    # Processes that decided differently would run different programs, and wait for ever.
    memories = parts.processes.gather(
        "memory of the devices", lambda: sampling_weights.memory_of(parts.mesh)
    )
    return Programs(
        parts.network,
        parts.algorithm,
        config.optimizer.build(updates, parts.network.logical_axes()),
        parts.mesh,
        scoring=Scoring(
            temperature=config.rollouts.temperature,
            compute_dtype=config.update.dtype,
            remat=config.update.remat,
            attention=config.update.attention,
            chunk=config.update.chunk,
            values=parts.algorithm.needs.values,
            entropy_gradient=parts.algorithm.needs.entropy,
        ),
        mini_batches=config.update.mini_batches,
        micro_batches=config.update.micro_batches,
        samples=config.rollouts.group_size if parts.algorithm.samples else 1,
        share_prompts=config.update.share_prompts,
        gather=config.rollouts.gather,
        rounded=config.rollouts.weights == "int8",
        memory=sampling_weights.smallest(memories),
        track_kl=config.track_kl,
        seed=config.seed,
    )


class _Loop:
    """One run from its first or a resumed step to its last."""

    def __init__(self, parts: Parts, reporter, checkpoints, pools: Pools, stop: list, number: str):
        self.parts, self.config, self.reporter = parts, parts.config, reporter
        self.checkpoints, self.pools, self.stop = checkpoints, pools, stop
        self.number = number
        self.programs: Programs = _programs(parts)
        with starting():
            self.journal = ScoreJournal(
                parts.directory, parts.processes.index, fingerprints.of_scores(parts)
            )
        self.collect = Collector(parts, pools.reward, self.journal, self.programs.for_sampling)
        self.watch = Watch(self.config)
        self.platform = parts.mesh.devices.flat[0].platform
        self.probing = probe.wanted(self.config.probe, self.platform)
        self.samples: list[dict] = []
        self.covered = 0

    def run(self, step: int | None) -> Result:
        """Everything, in order, from checkpoint `step` or from the beginning."""
        for line in [*planning.plan(self.parts), *self._first_example()]:
            self.reporter.say(line)
        beginning = Beginning(
            self.parts,
            self.programs,
            self.checkpoints,
            self.reporter,
            self.number,
            measure=None if self.pools.task is None else self._accuracy,
        )
        state, initial, before = beginning.state(step)
        start = int(state.step)
        with _interrupt.postponed() as pressed:
            state, row, stop = self._steps(state, initial, pressed)
            if not stop:
                self._check_learned(state, start)
            after = self._last_accuracy(state)
            self.checkpoints.close()
            self.parts.processes.gather("the end of the run", self._end)
        stopped = stop and int(state.step) != self.config.steps
        warning = self.watch.end()
        return Result(state, row, before, after, self.parts.directory, self.parts, stopped, warning)

    def _steps(self, state: TrainState, initial, pressed) -> tuple[TrainState, dict, bool]:
        """All steps: the state and the metrics after the last one, and whether it was told to stop."""
        row, stop = {}, False
        start, saved = int(state.step), self.checkpoints.latest()
        with self.reporter.live(start):
            for step in range(start + 1, self.config.steps + 1):
                with self._profiled(step), self._keeping_samples(step):
                    state, metrics = self._step(step, state, initial)
                metrics |= self._evaluation(step, state)
                row = {k: float(v) for k, v in metrics.items()}
                last, stop = step == self.config.steps, self._ended(step, row, pressed)
                if stop or last or step % self.config.saving.every == 0:
                    # A save first waits for the one before it, so only that one is sure to be
                    # complete, and only its scores will never be asked for again.
                    self.checkpoints.save(step, state)
                    self.covered, saved = saved or 0, step
                if stop:
                    break
        return state, row, stop

    def _ended(self, step: int, row: Mapping[str, float], pressed) -> bool:
        """Reports a step; whether any host was told to stop.

        A pod is preempted host by host, but saves as one.
        """

        def work():
            self._write_samples()
            self.reporter.metrics(step, row)
            for line in self.watch.lines(step, row):
                self.reporter.say(line)
            return bool(self.stop or pressed())

        return any(self.parts.processes.gather(f"the end of step {step}", work))

    @contextlib.contextmanager
    def _keeping_samples(self, step: int):
        """Writes the samples of a step that ends the run: they may tell why it could not go on."""
        try:
            yield
        except TrainingError:
            self.parts.processes.gather(f"the samples of step {step}", self._write_samples)
            raise

    def _write_samples(self) -> None:
        samples, self.samples = self.samples, []
        if samples:
            self.reporter.samples(samples)

    def _end(self) -> None:
        """What is written last."""
        self.journal.cut(self.covered)
        if self.parts.processes.first:
            plot(self.parts.directory)

    def _settled(self, experience: Any) -> dict[str, str]:
        """Writes the scores of a step, before its update; the shapes of its batch."""
        if self.covered:
            self.journal.cut(self.covered)
            self.covered = 0
        self.collect.keep()
        return hosts.shapes(experience)

    def _first_example(self) -> list[str]:
        """The first problem as the policy reads it, and what its known answer scores."""
        # The other processes print nothing.
        return self.parts.processes.alone(
            "the first example", lambda: planning.first_example(self.parts, *self.pools)
        )

    @contextlib.contextmanager
    def _profiled(self, step: int):
        """Traces steps 5 to 7: the earlier ones compile."""
        first, last = PROFILED
        inside = self.config.profile and first <= step <= min(last, self.config.steps)
        if inside and step == first:
            jax.profiler.start_trace(str(self.parts.directory / "profile"))
        try:
            yield
        finally:
            if inside and (step == min(last, self.config.steps) or sys.exc_info()[0]):
                jax.profiler.stop_trace()

    def _accuracy(self, params, step: int) -> Accuracy:
        settings = self.config.evaluation
        return evaluate(
            self.parts,
            self.programs.for_sampling(params),
            self.pools.task,
            problems=settings.problems,
            samples=settings.samples,
            step=step,
        )

    def _evaluation(self, step: int, state: TrainState) -> dict[str, float]:
        every = self.config.evaluation.every
        due = step == self.config.steps or (every and step % every == 0)
        if self.pools.task is None or not due:
            return {}
        self.last = (step, self._accuracy(state.params, step))
        return self.last[1].metrics()

    def _last_accuracy(self, state: TrainState) -> Accuracy | None:
        """The accuracy at the end; computed here only when no step was left to do."""
        step = int(state.step)
        if self.pools.task is None or step < self.config.steps:
            return None
        if getattr(self, "last", (None,))[0] != step:
            self.last = (step, self._accuracy(state.params, step))
        return self.last[1]

    def _step(self, step: int, state: TrainState, initial: Any) -> tuple[TrainState, dict]:
        """One rollout and its updates."""
        began = time.perf_counter()
        config = self.config
        state = self.programs.before_rollout(state, step)
        held = self.programs.held(state, initial)
        experience, metrics, rows = self.collect(step, state.params, held)
        tokens = metrics.pop("tokens", None)
        # Host-side work ends here: from now on the processes run the same programs in step.
        self.parts.processes.agree(f"batch of step {step}", lambda: self._settled(experience))
        experience = self.programs.complete(experience, state.params, held)
        algorithm_state, batch, prepared = self.programs.prepare(
            state.algorithm, experience, randomness.address(config.seed, randomness.PREPARE, step)
        )
        state = state._replace(algorithm=algorithm_state)
        if rows and config.saving.samples_every and (step - 1) % config.saving.samples_every == 0:
            self.samples = rows[: 2 * config.rollouts.group_size]
        state, updates = self._updates(step, state, batch)
        state = state._replace(step=state.step + 1)
        metrics = {**metrics, **prepared, **updates}
        metrics = {k: float(v) for k, v in metrics.items()}
        state = self.programs.after_updates(state, metrics)
        seconds = time.perf_counter() - began
        metrics["seconds"] = seconds
        if tokens is not None:
            metrics["tokens_per_second"] = tokens / seconds
        self._check(step, state, metrics)
        return state, metrics

    def _updates(self, step: int, state: TrainState, batch) -> tuple[TrainState, dict]:
        """All optimiser updates of a rollout; metrics are their means, the gap is the first's."""
        update, seed = self.config.update, self.config.seed
        seen: list[dict] = []
        for epoch in range(update.epochs):
            parts = self.programs.mini_batches(
                batch, randomness.address(seed, randomness.SHUFFLE, step, epoch)
            )
            for index, part in enumerate(parts):
                key = randomness.address(seed, randomness.UPDATE, step, epoch, index)
                rows = None
                if self.probing:
                    self._probe(state, part, key)
                if update.packing:
                    part, rows = with_packing(part, update.micro_batches)
                state, metrics = self.programs.update(state, part, key, packed_rows=rows)
                seen.append(jax.device_get(metrics))
        means = {k: np.mean([m[k] for m in seen]) for k in seen[0]}
        if "parity_gap" in seen[0]:
            means["parity_gap"] = seen[0]["parity_gap"]
        means["skipped_updates"] = sum(not _finite(m) for m in seen)
        return state, means

    def _probe(self, state: TrainState, part, key) -> None:
        """Compares one gradient with its sum over two parts, on the first batch that has one."""
        update = self.config.update
        if part["weights"].shape[0] < 2:
            self.reporter.say("probe: a batch of one row has no two parts to compare")
            self.probing = False
            return
        found = probe.differences(
            self.programs,
            state.params,
            part,
            key,
            micro_batches=update.micro_batches,
            packing=update.packing,
            dtype=update.compute_dtype,
        )
        self.probing = found is None
        message = found and probe.complaint(found, update.compute_dtype, self.platform)
        if message:
            raise TrainingError(message)

    def _check(self, step: int, state: TrainState, metrics: Mapping[str, float]) -> None:
        gap, limit = metrics.get("parity_gap", 0.0), self.config.parity_limit
        if not gap <= limit:
            raise TrainingError(
                f"step {step}: the sampler's and the trainer's log-probabilities differ by {gap:.3g}"
                f" nats, more than parity_tolerance {limit:g}. With bfloat16, raise the tolerance "
                "and give --settings.sampler-correction truncated_weights"
            )
        skipped, most = int(state.skipped), self.config.update.max_skipped
        if skipped >= most:
            raise TrainingError(f"step {step}: {self._not_finite(skipped)}")

    def _check_learned(self, state: TrainState, start: int) -> None:
        """A run shorter than `max_skipped` that never made an update has learned nothing."""
        update = self.config.update
        updates = (int(state.step) - start) * update.epochs * update.mini_batches
        skipped = int(state.skipped)
        if updates and skipped >= updates:
            raise TrainingError(f"no update changed the policy: {self._not_finite(skipped)}")

    def _not_finite(self, skipped: int) -> str:
        """Why updates were skipped, and what to do."""
        latest = self.checkpoints.latest()
        saved = (
            "there is no checkpoint yet" if latest is None else f"checkpoint {latest} is the newest"
        )
        return (
            f"the loss or the gradient was not finite in {skipped} updates in a row; {saved}. If "
            "the first update was already not finite, look at the loss and the rewards; otherwise "
            f"lower --optimizer.learning-rate (now {self.config.optimizer.learning_rate:g})"
        )


def _finite(metrics: Mapping[str, Any]) -> bool:
    return bool(np.isfinite(metrics["loss"]) and np.isfinite(metrics["gradient_norm"]))
