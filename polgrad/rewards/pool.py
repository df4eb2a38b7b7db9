"""Rewards in worker processes: a deadline for each sample, and no failure that looks like a zero.

A stranger's reward may loop, leak, print, exit or crash. It does so in a process of its own that
imports no jax; that process is killed and replaced, and the sample it had is invalid.
"""

import collections
import contextlib
import os
import selectors
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from polgrad import _compilers
from polgrad.data import codec
from polgrad.rewards import compose, verifiers, worker
from polgrad.rewards.score import Score

# -c and not -m: the caller's search path then comes first and whole, so that a worker finds what
# the caller can import, and no module beside worker.py shadows one of the same name.
_BOOT = (
    "import sys; sys.path[:] = sys.argv[1:]; del sys.argv[1:]; "
    "from polgrad.rewards.worker import main; main()"
)

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


class _Worker:
    """One process, its two pipes, and the sample that it is busy with."""

    def __init__(self, setup: bytes, start_timeout: float):
        environment = {
            **os.environ,
            "PYTHONHASHSEED": "0",  # sets iterate in one order in every worker and every run
            "JAX_PLATFORMS": "cpu",  # a reward that brings jax must not take the accelerator
            "OMP_NUM_THREADS": "1",
            _compilers.OPT_IN: "1",  # and must compute with it as the trainer does
        }
        path = [os.path.abspath(entry or os.curdir) for entry in sys.path]
        self.process = subprocess.Popen(
            [sys.executable, "-W", "ignore::SyntaxWarning", "-c", _BOOT, *path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            env=environment,
            start_new_session=True,  # Ctrl-C reaches the trainer alone; children die together
        )
        self.requests = self.process.stdin.fileno()
        self.replies = self.process.stdout.fileno()
        os.set_blocking(self.requests, False)
        os.set_blocking(self.replies, False)
        self.index: int | None = None
        self.ready = False
        self._received = bytearray()
        self._unsent = memoryview(b"")
        self.send(setup, start_timeout)

    @property
    def sending(self) -> bool:
        return bool(self._unsent)

    def send(self, frame: bytes, timeout: float) -> None:
        self._unsent = memoryview(frame)
        self._timeout = timeout
        self.deadline = time.monotonic() + timeout
        self.flush()

    def flush(self) -> None:
        try:
            while self._unsent:
                self._unsent = self._unsent[os.write(self.requests, self._unsent) :]
        except BlockingIOError:
            return
        except BrokenPipeError:
            self._unsent = memoryview(b"")  # it has died: reading tells
        # The sample starts now: the time that a large message travels is not its own.
        self.deadline = time.monotonic() + self._timeout

    def receive(self) -> tuple[list[Any], bool]:
        """Whole messages that have come, and whether the pipe is still open."""
        is_open = True
        try:
            while chunk := os.read(self.replies, 1 << 16):
                self._received += chunk
            is_open = False
        except BlockingIOError:
            pass
        messages = []
        header = worker.HEADER.size
        while len(self._received) >= header:
            (length,) = worker.HEADER.unpack(self._received[:header])
            if len(self._received) < header + length:
                break
            messages.append(codec.loads(bytes(self._received[header : header + length])))
            del self._received[: header + length]
        return messages, is_open

    def exit_text(self) -> str:
        try:
            code = self.process.wait(timeout=1.0)
        except subprocess.TimeoutExpired:
            return "it closed its pipe"
        return f"exit code {code}" if code >= 0 else f"signal {signal.Signals(-code).name}"

    def kill(self) -> None:
        # The group still exists after its leader has died if the reward started children.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()


def _kill_all(workers: list[_Worker]) -> None:
    while workers:
        workers.pop().kill()


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
        start_timeout: seconds that a worker may take to import the rewards.

    Raises:
        ValueError: a number out of range, or a malformed spec.
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
    ):
        specs = [compose.RewardSpec(*spec) for spec in specs]
        compose.check_specs(specs)
        if isinstance(workers, bool) or not isinstance(workers, int) or workers < 1:
            raise ValueError(f"workers must be an integer of at least 1, got {workers!r}")
        if not timeout > 0:
            raise ValueError(f"timeout must be above 0 seconds, got {timeout!r}")
        if not 0 <= failure_limit <= 1:
            raise ValueError(f"failure_limit must be in [0, 1], got {failure_limit!r}")
        self.specs = [spec._replace(target=compose.absolute(spec.target)) for spec in specs]
        self.timeout = float(timeout)
        self.failure_limit = failure_limit
        self._start_timeout = start_timeout
        self._setup = worker.encode_frame(
            {
                "specs": [[s.target, s.weight, dict(s.parameters)] for s in self.specs],
                "timeout": self.timeout,
            }
        )
        self._closed = False
        self._workers: list[_Worker] = []
        self._finalizer = weakref.finalize(self, _kill_all, self._workers)
        for _ in range(workers):
            self._workers.append(_Worker(self._setup, start_timeout))

    def __enter__(self) -> "RewardPool":
        return self

    def __exit__(self, *exception) -> None:
        self.close()

    def close(self) -> None:
        """End the workers; a second call does nothing."""
        self._closed = True
        _kill_all(self._workers)

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

    def check_answers(self, examples: Sequence[Mapping[str, Any]], *, limit: float) -> list[str]:
        """Score examples' own answers, before training meets one that cannot be compared.

        Only where a component is one of `verifiers.READS_ANSWERS`: what another reward makes of an
        answer is not known.

        Args:
            examples: of a `data.load_task` source.
            limit: share of invalid answers above which the check fails.

        Returns:
            The reasons of the answers that are invalid, one each.

        Raises:
            RewardFailure: the share of invalid answers is above `limit`.
        """
        own = {f"polgrad.rewards.verifiers:{name}" for name in verifiers.READS_ANSWERS}
        if not own & {spec.target for spec in self.specs}:
            return []
        items = [(e["prompt"], e["answer"], e) for e in examples if "answer" in e]
        reasons = [s.reason for s in self._run(items, {}, limit=1.0) if not s.valid]
        check_failures(reasons, len(items), limit, "answers")
        return reasons

    def _run(
        self, items: Sequence[Item], replayed: dict[int, Score], *, limit: float
    ) -> list[Score]:
        self._check_open()
        results: dict[int, Score] = dict(replayed)
        waiting = collections.deque(i for i in range(len(items)) if i not in replayed)
        try:
            while len(results) < len(items):
                self._assign(waiting, items)
                if self._turn(results):
                    # Every death costs seconds: do not run to the end of a batch that is lost.
                    _check(results, len(items), limit)
        finally:
            # Only after an exception: a later call must not meet this call's replies.
            for slot, busy in enumerate(self._workers):
                if busy.index is not None:
                    self._replace(slot)
        _check(results, len(items), limit)
        return [results[i] for i in range(len(items))]

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
            frame = worker.encode_frame([index, prompt, completion, dict(example)])
            idle.index = index
            idle.send(frame, self.timeout)

    def _replace(self, slot: int) -> None:
        self._workers[slot].kill()
        self._workers[slot] = _Worker(self._setup, self._start_timeout)

    def _turn(self, results: dict[int, Score]) -> bool:
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
            selector.select(max(0.0, pause))
        failed = [
            self._attend(slot, one, results)
            for slot, one in enumerate(self._workers)
            if one in active
        ]
        return any(failed)

    def _attend(self, slot: int, one: _Worker, results: dict[int, Score]) -> bool:
        if one.sending:
            one.flush()
        messages, is_open = one.receive()
        for message in messages:
            if not one.ready:
                if "error" in message:
                    raise ValueError(message["error"])
                one.ready = True
            elif message[0] == one.index:
                results[one.index] = score = Score(*message[1:])
                one.index = None
                return not score.valid
        if one.ready and one.index is None:
            return False
        if not is_open:
            reason = f"worker died ({one.exit_text()})"
        elif time.monotonic() >= one.deadline:
            reason = f"timeout after {one._timeout:g} s"
        else:
            return False
        if not one.ready:
            raise RewardFailure(f"a reward worker did not start: {reason}")
        results[one.index] = Score(0.0, False, reason)
        self._replace(slot)
        return True


def _check(results: Mapping[int, Score], total: int, limit: float) -> None:
    check_failures([s.reason for s in results.values() if not s.valid], total, limit)


def check_failures(reasons: Sequence[str], total: int, limit: float, what: str = "samples") -> None:
    """Raises where too many samples have no reward.

    Args:
        reasons: of the samples without one.
        total: all samples of the step; under `RewardPool.MINIMUM`, only where all of several fail.
        limit: share of them, in [0, 1].
        what: what has no reward, for the message.

    Raises:
        RewardFailure: with the commonest reasons.
    """
    failed = len(reasons)
    if total >= RewardPool.MINIMUM:
        too_many = failed > limit * total
    else:
        too_many = failed == total > 1 and limit < 1
    if too_many:
        common = collections.Counter(reasons).most_common(3)
        raise RewardFailure(
            f"{failed} of {total} {what} have no reward (failure_limit={limit:g}): "
            + "; ".join(f"{count} x {reason!r:.200}" for reason, count in common)
        )


def interruptions(scores: Sequence[Score]) -> dict[int, Score]:
    """The scores that depend on timing or on a process's death, by position.

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
        if not score.valid and score.reason.startswith(("timeout after ", "worker died ("))
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
