"""Rewards in worker processes: a deadline for each sample, and no failure that looks like a zero.

A reward is trusted code: it runs as the user who trains, with this user's files and network, and
nothing here defends the machine against a reward that means harm. Run only rewards whose text you
have read. What is defended against is a reward with a mistake. It may

- loop, sleep, exit, crash, or kill itself: its process is killed at the deadline and replaced, and
  the sample is invalid;
- raise anything, return anything, or return a number beyond float32: the sample is invalid, with
  the reason;
- take memory: on Linux a process has a limit (`memory`), and what goes beyond it is a MemoryError
  in the reward. The limit is of memory that a process can write to and does not share, and of each
  process, so children have one each;
- print, read standard input, write to any open file descriptor, or fork: a reply counts only if it
  comes from the process that was started and carries the request's token. A reply that cannot be
  read ends the process and makes its sample invalid, and the run goes on;
- start processes: they are killed with their worker, in other sessions too as long as they keep
  the environment that they were given (found by `/proc`; elsewhere only the process group is).

The process imports no jax and sees no accelerator. Its environment holds the variables of `KEPT`,
those of `ALWAYS` and those that are passed on by name (`environment`), so that tokens and keys of
the trainer's environment do not reach a reward, or its log, by accident.
"""

import collections
import dataclasses
import math
import secrets
import selectors
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, NamedTuple

from polgrad import _ranges
from polgrad.rewards import compose, verifiers, worker
from polgrad.rewards.process import (
    UNREADABLE,
    Unreadable,
    Worker,
    environment_of,
    kill_all,
    read_reply,
)
from polgrad.rewards.score import Failure, Score

MEMORY = 4 << 30
"""Bytes of memory that a worker may take."""

_PAUSE = 1.0  # seconds after which `working` is called again, where nothing else happens

TRIED = 4
"""Right answers on which a reward is tried that may make anything of them."""

Item = tuple[str, str, Mapping[str, Any]]


class RewardFailure(RuntimeError):
    """Too many samples without a reward, a worker that does not start, or a canary that fails."""


class Canary(NamedTuple):
    """A sample whose reward is known.

    Args:
        prompt: the prompt's text.
        completion: a completion that is known to be right, or wrong.
        example: the example.
        expected: True or False: above or below half of the components' total weight (components
            give 0 to 1); a number: exactly this value, to 1e-6.
    """

    prompt: str
    completion: str
    example: Mapping[str, Any]
    expected: float | bool


@_ranges.documented
@dataclasses.dataclass(frozen=True)
class _Numbers:
    """The numbers that a pool is given.

    Attributes:
        workers: how many worker processes run.
        timeout: seconds after which a sample that is being scored becomes invalid.
        failure_limit: share of invalid samples above which a call of `score` raises.
        start_timeout: seconds that a worker may take until it has imported the rewards.
        memory: bytes of memory that one worker may take; None for no limit.
    """

    workers: Annotated[int, _ranges.COUNT]
    timeout: Annotated[float, _ranges.Range(above=0)]
    failure_limit: Annotated[float, _ranges.Range(at_least=0, at_most=1)]
    start_timeout: Annotated[float, _ranges.Range(above=0)]
    memory: Annotated[int | None, _ranges.Range(at_least=1 << 28, below=1 << 63)]


class RewardPool:
    """Scores samples in worker processes, in the order of the samples.

    Workers start at once, side by side, while the caller goes on; `score` waits for the first. Use
    a pool as a context manager, or `close` it. One thread at a time.

    Args:
        specs: the components of the reward.
        workers: processes, at least 1.
        timeout: seconds that one sample may take from its start in the worker, above 0.
        failure_limit: share of invalid samples in a call of `score`, in [0, 1], above which it
            raises; calls with fewer than 10 samples raise only where all of several fail.
        start_timeout: seconds that a worker may take to import the rewards, above 0.
        memory: bytes of memory that a worker may take, at least 256 MiB; None for no limit.
            Beyond it the reward meets a MemoryError, its sample is invalid and its process is
            replaced.
        environment: names of variables that workers see besides those of `KEPT`.

    Raises:
        ValueError: a number out of range, a malformed spec, or a variable that is not set.
    """

    MINIMUM = 10

    def __init__(
        self,
        specs: Sequence[compose.RewardSpec],
        *,
        workers: int = 1,
        timeout: float = 5.0,
        failure_limit: float = 0.1,
        start_timeout: float = 120.0,
        memory: int | None = MEMORY,
        environment: Sequence[str] = (),
    ):
        specs = [compose.RewardSpec(*spec) for spec in specs]
        compose.check_specs(specs)
        _ranges.check(_Numbers(workers, timeout, failure_limit, start_timeout, memory))
        self.specs = [spec._replace(target=compose.full_target(spec.target)) for spec in specs]
        self.timeout = float(timeout)
        self.failure_limit = failure_limit
        self._start_timeout = start_timeout
        self._setup = worker.encode_frame(
            {
                "specs": [[s.target, s.weight, dict(s.parameters)] for s in self.specs],
                "timeout": self.timeout,
                "memory": memory,
            }
        )
        self._memory = memory
        self._environment = environment_of(environment)
        self._mark = secrets.token_hex(8)
        self._closed = False
        self._workers: list[Worker] = []
        self._finalizer = weakref.finalize(self, kill_all, self._workers, self._mark)
        for _ in range(workers):
            self._workers.append(self._start())

    def _start(self) -> Worker:
        return Worker(self._setup, self._start_timeout, self._environment, self._mark)

    def __enter__(self) -> "RewardPool":
        return self

    def __exit__(self, *exception) -> None:
        self.close()

    def close(self) -> None:
        """End the workers; a second call does nothing."""
        self._closed = True
        kill_all(self._workers, self._mark)

    def wait_ready(self) -> None:
        """Wait until every worker has imported the rewards.

        Raises:
            ValueError: a reward cannot be imported or called; the worker's message.
            RewardFailure: a worker died, or took longer than `start_timeout`.
        """
        self._check_open()
        while not all(w.ready for w in self._workers):
            self._turn({})

    def score(
        self,
        items: Sequence[Item],
        *,
        replayed: Mapping[int, Score] | None = None,
        limit: float | None = None,
    ) -> list[Score]:
        """The rewards of samples, in their order.

        Args:
            items: `(prompt, completion, example)` a sample.
            replayed: scores by position that are taken as they are, without running: what an
                earlier attempt at the same step met by chance of timing (see `interruptions`).
            limit: share of invalid samples that is allowed; None takes `failure_limit`.

        Returns:
            As many scores as items.

        Raises:
            ValueError: a reward cannot be imported, or an example holds what JSON cannot.
            RewardFailure: the share of invalid samples is above `limit`.
        """
        replayed = dict(replayed or {})
        for index in replayed:
            if not 0 <= index < len(items):
                raise ValueError(f"replayed holds position {index}, of {len(items)} items")
        return self._run(items, replayed, limit=self.failure_limit if limit is None else limit)

    def canaries(self, canaries: Sequence[Canary]) -> None:
        """Score samples whose verdict is known, through the same workers.

        Args:
            canaries: known right and known wrong samples.

        Raises:
            RewardFailure: a verdict differs, or cannot be given; the message shows the sample.
        """
        canaries = [Canary(*canary) for canary in canaries]
        scores = self._run([canary[:3] for canary in canaries], {}, limit=1.0)
        middle = sum(spec.weight for spec in self.specs) / 2
        for canary, score in zip(canaries, scores, strict=True):
            if isinstance(canary.expected, bool):
                good = score.valid and (score.value > middle) == canary.expected
                wanted = f"{'above' if canary.expected else 'at most'} {middle:g}"
            else:
                good = score.valid and abs(score.value - canary.expected) <= 1e-6
                wanted = f"{canary.expected:g}"
            if not good:
                got = f"{score.value:g}" if score.valid else f"no value ({score.reason})"
                raise RewardFailure(
                    f"canary: prompt {canary.prompt!r:.200}, completion "
                    f"{canary.completion!r:.200}, answer {canary.example.get('answer')!r:.80}: "
                    f"the reward gave {got}, expected {wanted}"
                )

    def check_answers(
        self,
        examples: Sequence[Mapping[str, Any]],
        *,
        limit: float,
        working: Callable[[], None] | None = None,
    ) -> list[str]:
        """Score examples' own answers, before training meets one that has no reward.

        Where a component is one of `verifiers.READS_ANSWERS`, every answer is scored. What another
        reward makes of an answer is not known, but it should not fail: a few are tried until one
        does not.

        Args:
            examples: of a `data.load_task` source.
            limit: share of invalid answers above which the check fails.
            working: called every few seconds: many answers may take longer than other processes
                wait without a sign.

        Returns:
            The reasons of the answers that cannot be compared, one each.

        Raises:
            RewardFailure: the share of invalid answers is above `limit`, or another reward fails on
                every answer that is tried and `limit` is below 1.
        """
        own = {f"polgrad.rewards.verifiers:{name}" for name in verifiers.READS_ANSWERS}
        items = [(e["prompt"], e["answer"], e) for e in examples if "answer" in e]
        if not own & {spec.target for spec in self.specs}:
            if limit < 1:
                self._check_fails(items[:: max(1, len(items) // TRIED)][:TRIED], working)
            return []
        scores = self._run(items, {}, limit=1.0, working=working)
        reasons = [score.reason for score in scores if not score.valid]
        check_failures(reasons, len(items), limit, "answers")
        return reasons

    def _check_fails(self, items: Sequence[Item], working: Callable[[], None] | None) -> None:
        """Raises where the reward fails on every right answer, as it then will on others."""
        reasons: list[str] = []
        for item in items:
            score = self._run([item], {}, limit=1.0, working=working)[0]
            if not isinstance(score, Failure):
                return
            reasons.append(score.reason)
        if reasons:
            slow = "give --rewards.timeout more seconds, " if _is_late(reasons) else ""
            raise RewardFailure(
                f"the reward fails on each of the {len(reasons)} right answers of the data that "
                f"were tried: on {items[0][1]!r:.80} with {reasons[0]!r:.300}; mend the reward, "
                f"{slow}or give --rewards.failure-limit 1 to run it as it is"
            )

    def _run(
        self,
        items: Sequence[Item],
        replayed: dict[int, Score],
        *,
        limit: float,
        working: Callable[[], None] | None = None,
    ) -> list[Score]:
        self._check_open()
        results: dict[int, Score] = dict(replayed)
        waiting = collections.deque(i for i in range(len(items)) if i not in replayed)
        try:
            while len(results) < len(items):
                self._assign(waiting, items)
                if working is not None:
                    working()
                if self._turn(results, math.inf if working is None else _PAUSE):
                    # Every death costs seconds: do not run to the end of a batch that is lost.
                    self._check(results, len(items), limit)
        finally:
            # Only after an exception: a later call must not meet this call's replies.
            for slot, busy in enumerate(self._workers):
                if busy.index is not None:
                    self._replace(slot)
        self._check(results, len(items), limit)
        return [results[i] for i in range(len(items))]

    def _check(self, results: Mapping[int, Score], total: int, limit: float) -> None:
        reasons = [score.reason for score in results.values() if not score.valid]
        check_failures(reasons, total, limit, scored=len(results))

    def _check_open(self) -> None:
        if self._closed:
            raise ValueError("this RewardPool is closed")

    def _assign(self, waiting: collections.deque, items: Sequence[Item]) -> None:
        for slot, idle in enumerate(self._workers):
            if not waiting:
                return
            if not idle.ready or idle.index is not None:
                continue
            if idle.process.poll() is not None:  # died between samples: no sample's fault
                self._replace(slot)
                continue
            index = waiting.popleft()
            prompt, completion, example = items[index]
            token = secrets.token_hex(8)
            frame = worker.encode_frame([token, prompt, completion, dict(example)])
            idle.index, idle.token = index, token
            idle.send(frame, self.timeout)

    def _replace(self, slot: int) -> None:
        self._workers[slot].kill()
        self._workers[slot] = self._start()

    def _turn(self, results: dict[int, Score], longest: float = math.inf) -> bool:
        """Wait for something to happen, and take it in; whether a sample became invalid."""
        active = [w for w in self._workers if w.index is not None or not w.ready]
        if not active:
            return False
        with selectors.DefaultSelector() as selector:
            for one in active:
                selector.register(one.replies, selectors.EVENT_READ, one)
                if one.sending:
                    selector.register(one.requests, selectors.EVENT_WRITE, one)
            pause = min(one.deadline for one in active) - time.monotonic()
            selector.select(max(0.0, min(pause, longest)))
        failed = [
            self._attend(slot, one, results)
            for slot, one in enumerate(self._workers)
            if one in active
        ]
        return any(failed)

    def _attend(self, slot: int, one: Worker, results: dict[int, Score]) -> bool:
        if one.sending:
            one.flush()
        try:
            messages, is_open = one.receive()
            for message in messages:
                if not one.ready:
                    self._take_ready(one, message)
                else:
                    score, last = self._take_score(one, message)
                    results[one.index], one.index = score, None
                    if last:
                        self._replace(slot)
                    return not score.valid
        except Unreadable:
            return self._give_up(slot, one, results, UNREADABLE)
        if one.ready and one.index is None:
            return False
        if not is_open:
            return self._give_up(slot, one, results, f"worker died ({one.exit_text()})")
        if time.monotonic() >= one.deadline:
            return self._give_up(slot, one, results, f"timeout after {one._timeout:g} s")
        return False

    def _take_ready(self, one: Worker, message: Any) -> None:
        """A worker's first message: it is ready, or cannot be."""
        if isinstance(message, dict) and isinstance(message.get("error"), str):
            raise ValueError(message["error"])
        if message != {"ready": one.process.pid}:
            raise Unreadable("a worker that starts")
        one.ready = True

    def _take_score(self, one: Worker, message: Any) -> tuple[Score, bool]:
        token, score, last = read_reply(message)
        if one.index is None or token != one.token:
            raise Unreadable("a reply that nobody asked for")
        return score, last

    def _give_up(self, slot: int, one: Worker, results: dict[int, Score], reason: str) -> bool:
        """Replaces a worker; whether a sample became invalid by that."""
        if not one.ready:
            # A library may abort, without a message, where it gets no memory.
            hint = worker.limit_text(self._memory) if "died" in reason else ""
            raise RewardFailure(f"a reward worker did not start: {reason}{hint}")
        index, one.index = one.index, None
        self._replace(slot)
        if index is None:
            return False
        results[index] = Failure(0.0, False, reason)
        return True


def _is_late(reasons: Sequence[str]) -> bool:
    """Whether a sample of these reasons was cut at its deadline."""
    return any("timeout after " in reason for reason in reasons)


def check_failures(
    reasons: Sequence[str],
    total: int,
    limit: float,
    what: str = "samples",
    *,
    scored: int | None = None,
) -> None:
    """Raises where too many samples have no reward.

    Args:
        reasons: of the samples without one.
        total: all samples of the step; under `RewardPool.MINIMUM`, only where all of several fail.
        limit: share of them, in [0, 1].
        what: what has no reward, for the message.
        scored: how many of the samples were scored so far; all of them when left out.

    Raises:
        RewardFailure: with the most common reason, and the flags that may help.
    """
    failed = len(reasons)
    if total >= RewardPool.MINIMUM:
        too_many = failed > limit * total
    else:
        too_many = failed == total > 1 and limit < 1
    if too_many:
        early = scored is not None and scored < total
        share = (
            f"{failed} of the {scored} {what} scored so far"
            if early
            else f"{failed} of {total} {what}"
        )
        rest = f" (of {total}; the others were not scored)" if early else ""
        ((reason, count),) = collections.Counter(reasons).most_common(1)
        slow = "--rewards.timeout gives each sample more seconds, " if _is_late(reasons) else ""
        raise RewardFailure(
            f"{share}{rest} have no reward; more than a share of {limit:g} stops the run. "
            f"The most common reason ({count} of {failed}): {reason!r:.300}. {slow}"
            "--rewards.failure-limit sets the share that may fail"
        )


def interruptions(scores: Sequence[Score]) -> dict[int, Score]:
    """The scores that depend on timing, on a process's death or its memory, by position.

    A run that is repeated from a checkpoint passes them as `replayed`, so that a sample that was
    cut before is cut again, whatever the machine's load is now.

    Args:
        scores: what `RewardPool.score` returned.

    Returns:
        Position to score.
    """
    return {
        index: score
        for index, score in enumerate(scores)
        if not score.valid
        and (
            score.reason.startswith(("timeout after ", "worker died (", UNREADABLE))
            or compose.EXHAUSTED in score.reason
        )
    }


def canary_set(examples: Sequence[Mapping[str, Any]]) -> list[Canary]:
    """A right and a wrong sample of each example.

    Args:
        examples: of a `data.load_task` source.

    Returns:
        The example's answer as the right completion, and a text without any answer as the wrong
        one; only the wrong one where the answer is not known (`rush_hour`).
    """
    canaries = []
    for example in examples:
        if example.get("answer"):
            canaries.append(Canary(example["prompt"], example["answer"], example, True))
        canaries.append(Canary(example["prompt"], "no answer", example, False))
    return canaries
