"""What a run opens before its first step: directory, checkpoints, reports, and the rewards' workers."""

import contextlib
from typing import NamedTuple

from polgrad import _outside
from polgrad.policies.hub.assets import missing_template
from polgrad.rewards.pool import RewardFailure, RewardPool, canary_set
from polgrad.training.config import TrainConfig
from polgrad.training.reporting import Reporter, SilentReporter
from polgrad.training.saving.checkpoints import Checkpoints
from polgrad.training.saving.errors import ResumeError, SavingError
from polgrad.training.saving.places import place_of
from polgrad.training.setup import ownership, planning, run_files, scorers
from polgrad.training.setup.parts import Parts


class StartError(ValueError):
    """A run that cannot begin, found before anything was written."""


@contextlib.contextmanager
def starting():
    """What is wrong before the first step is wrong with what the user gave."""
    try:
        yield
    except ResumeError:
        raise
    except (ValueError, RewardFailure, SavingError, OSError) as error:
        text = _outside.with_file(error) if isinstance(error, OSError) else str(error)
        raise StartError(" ".join(text.split())) from error


def claim(parts: Parts, stack: contextlib.ExitStack) -> str:
    """The run's own number; its directory is held until the end, its checkpoints are its own."""

    def work():
        stack.enter_context(ownership.held(parts))
        if not parts.processes.first:
            return ""
        number = ownership.run_id(parts)
        ownership.check_place(parts, number)
        return number

    return parts.processes.gather("whose run this is", work)[0]


def open_checkpoints(parts: Parts, stack: contextlib.ExitStack) -> Checkpoints:
    """The run's checkpoints, which are closed at the end."""
    place = place_of(parts.directory, parts.config.saving.checkpoints)
    checkpoints = Checkpoints(place, parts.config.saving.keep, parts.processes)

    @stack.push
    def close(kind, error, traceback):
        # With a host gone, waiting for its part of a save would not end.
        if parts.processes.failed:
            return
        with contextlib.suppress(SavingError) if error else contextlib.nullcontext():
            checkpoints.close()

    return checkpoints


def goes_on_from(config: TrainConfig, checkpoints: Checkpoints) -> int | None:
    """The checkpoint that the run goes on from, whole as far as its files tell."""
    if not config.resume:
        return None
    found, step = checkpoints.steps(), config.resume_from
    if step is None:
        step = checkpoints.latest()
    elif step not in found:
        raise ResumeError(
            f"resume_from is {step}; expected one of the run's checkpoints "
            f"({', '.join(map(str, found)) or 'there is none'})"
        )
    if step is None:
        return None
    if step > config.steps:
        # The run would do nothing, and its settings would then deny the steps that it has done.
        earlier = ", ".join(str(n) for n in found if n <= config.steps)
        stands = "the run stands at step" if config.resume_from is None else "resume_from is"
        raise ResumeError(
            f"steps is {config.steps}, but {stands} {step}; give more steps"
            + (f", or an earlier checkpoint with --resume-from ({earlier})" if earlier else "")
        )
    checkpoints.check(step)
    return step


def open_reporter(parts: Parts, quiet: bool) -> Reporter | SilentReporter:
    """The run's reporter, on the process that writes its files."""
    config, made = parts.config, []

    def work():
        reporter = Reporter(
            parts.directory,
            config.steps,
            tensorboard=config.saving.tensorboard,
            wandb=config.saving.wandb,
            config=run_files.plain(config),
            quiet=quiet,
        )
        made.append(reporter)

    parts.processes.alone("the reports of the run", work)
    return made[0] if made else SilentReporter()


class Pools(NamedTuple):
    """The workers of a run: those of the training reward, and those that score held-out problems."""

    reward: RewardPool | None
    task: RewardPool | None


def start_pools(parts: Parts, stack: contextlib.ExitStack) -> Pools:
    """Workers for the training reward and for the task's own scorer; one set if they agree."""
    settings = parts.config.rewards

    def start(specs, limit):
        pool = RewardPool(
            specs,
            workers=settings.workers,
            failure_limit=limit,
            **scorers.worker_settings(settings),
        )
        return stack.enter_context(pool)

    reward = task = None
    if parts.algorithm.samples:
        # With several processes the limit is on the share of all of them, and checked there.
        alone = parts.processes.count == 1
        reward = start(parts.reward_specs, settings.failure_limit if alone else 1.0)
    if parts.test is not None:
        same = parts.reward_specs == parts.task_specs and reward is not None
        task = reward if same else start(parts.task_specs, 1.0)
    for pool in {id(p): p for p in (reward, task) if p is not None}.values():
        pool.wait_ready()
    if task is not None:
        _check_canaries(parts, task)
    return Pools(reward, task)


def _check_canaries(parts: Parts, pool: RewardPool) -> None:
    """Known right and known wrong answers go through the same workers before the first step."""
    source = parts.test.source
    pool.canaries(canary_set([source[i] for i in range(min(4, len(source)))]))


ANSWERS_TRIED = 1000


def check_answers(parts: Parts, pool: RewardPool | None, reporter) -> None:
    """Answers that the reward cannot read are told here, and not sample by sample."""
    # A preference reads an opponent's completion too, which the data do not hold.
    if pool is None or parts.config.rewards.preference:
        return
    source = parts.train.source
    tried = min(len(source), ANSWERS_TRIED)
    rows = [source[i * len(source) // tried] for i in range(tried)]
    chosen = [planning.with_opponent(parts.algorithm, row) for row in rows]
    limit = parts.config.rewards.failure_limit

    def work():
        return pool.check_answers(chosen, limit=limit, working=parts.processes.working)

    # One process tries them: the others would find the same.
    if reasons := parts.processes.alone("answers that cannot be scored", work):
        reporter.say(
            f"{len(reasons)} of {tried} answers cannot be compared, and samples of their problems "
            f"count as invalid; a step with more than {limit:.0%} of them stops the run: take these "
            f"problems out, or raise --rewards.failure-limit. The first: {reasons[0]}"
        )


def say_missing_template(parts: Parts, reporter) -> None:
    """Tells the user where the policy has no chat template although one is asked for."""
    text = parts.policy.text
    if parts.config.data.chat_template and text and (note := missing_template(text)):
        reporter.say(note)
