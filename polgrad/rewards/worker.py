"""The process that runs rewards: one sample at a time, on its main thread, without jax.

Started by `RewardPool`. Frames on its standard input and output are a length (8 bytes, big
endian) and ASCII JSON; nothing is ever unpickled. What a reward prints goes to standard error.
"""

import contextlib
import hashlib
import os
import random
import re
import resource
import signal
import struct
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any, BinaryIO

from polgrad import _outside
from polgrad.data import _renderer, codec
from polgrad.rewards.compose import EXHAUSTED, RewardSpec, compose, environment_hint
from polgrad.rewards.score import Failure

HEADER = struct.Struct(">Q")
REPLY_LIMIT = 1 << 20
"""Bytes of the longest reply: a number and a reason, or why a worker cannot start."""

MARK = "POLGRAD_REWARD_WORKER"
"""Environment variable of a worker, by which processes that its rewards have started are found."""

_REASON = 2000


def encode_frame(message: Any) -> bytes:
    """Bytes of one message.

    Args:
        message: plain data, see `polgrad.data.codec`.

    Returns:
        Length and JSON.

    Raises:
        ValueError: the message holds what JSON cannot, or is nested too deeply.
    """
    body = codec.dumps(message).encode("ascii")
    return HEADER.pack(len(body)) + body


def read_frame(stream: BinaryIO) -> Any:
    """The next message of a blocking stream.

    Args:
        stream: a binary file.

    Returns:
        The message, or None where the other side has closed.
    """
    header = stream.read(HEADER.size)
    if len(header) < HEADER.size:
        return None
    (length,) = HEADER.unpack(header)
    body = stream.read(length)
    return codec.loads(body) if len(body) == length else None


def kill_marked(mark: str) -> None:
    """Kills every process whose environment holds a mark, in whatever session it is.

    A process inherits the mark from the worker that started it, also by way of others that have
    ended since. One that was started with another environment is not found, and none is where the
    system has no `/proc`.

    Args:
        mark: the beginning of the value of `MARK`.
    """
    wanted, own = f"{MARK}={mark}".encode(), os.getpid()
    for _ in range(3):  # a process that was being started is found the next time
        found = [pid for pid in _processes() if pid != own and _has(pid, wanted)]
        for pid in found:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        if not found:
            return


def _processes() -> Iterator[int]:
    with contextlib.suppress(OSError):
        yield from (int(name) for name in os.listdir("/proc") if name.isdigit())


def _has(pid: int, wanted: bytes) -> bool:
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            return any(entry.startswith(wanted) for entry in file.read().split(b"\0"))
    except OSError:  # it has ended, or is somebody else's
        return False


def _private_streams() -> tuple[BinaryIO, BinaryIO]:
    """Take standard input and output away from the rewards, which may print or read."""
    requests = os.fdopen(os.dup(0), "rb")
    replies = os.fdopen(os.dup(1), "wb", buffering=0)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    os.dup2(2, 1)
    # A process that a reward forks may come to the line that replies, as this one does.
    os.register_at_fork(after_in_child=lambda: _close(requests.fileno(), replies.fileno()))
    return requests, replies


def _close(*handles: int) -> None:
    for handle in handles:
        with contextlib.suppress(OSError):
            os.close(handle)


def _die_with_parent(parent: int) -> None:
    """End when the trainer is gone, even in the middle of a reward that never returns."""

    mark = os.environ[MARK]

    def watch():
        while os.getppid() == parent:
            time.sleep(0.5)
        kill_marked(mark)
        with contextlib.suppress(OSError):
            os.killpg(0, signal.SIGKILL)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _reset(prompt: str, completion: str, timeout: float) -> None:
    # The same sample gives the same score in whichever worker and order it is scored.
    seed = hashlib.blake2b(
        f"{prompt}\0{completion}".encode("utf-8", "surrogatepass"), digest_size=8
    ).digest()
    random.seed(seed)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(int.from_bytes(seed[:4], "big"))
    # A reward that holds the interpreter lock stops the watching thread too: should the trainer
    # be gone, the kernel ends this process once it has burnt far more than its deadline.
    signal.setitimer(signal.ITIMER_PROF, 60 + 20 * timeout)


def _limit_memory(limit: int | None) -> None:
    """Bounds the memory of this process and of those that it starts, each by itself."""
    if limit is None:
        return
    # Since Linux 4.7 this limit counts all memory that a process may write to and shares with
    # nobody. RLIMIT_AS would count addresses too that libraries reserve and never use.
    _renderer.limit(resource.RLIMIT_DATA, limit)


def limit_text(limit: int | None) -> str:
    """How the limit of memory is set, for the message of what may have failed because of it.

    Args:
        limit: bytes, or None.

    Returns:
        A text to put behind a reason; empty without a limit.
    """
    return "" if limit is None else f" (the limit is --rewards.memory {limit >> 20} MiB)"


def _start_error(error: BaseException, limit: int | None) -> str:
    """Why a worker cannot start, with the setting that may help."""
    text = str(error)[: REPLY_LIMIT // 16] or type(error).__name__
    if re.search("memory|allocate|new thread", text, re.IGNORECASE):
        return text + limit_text(limit)
    return text + environment_hint(error)


def main() -> None:
    """Serve requests until standard input closes."""
    try:
        _serve()
    except Exception as error:  # noqa: BLE001  (the trainer counts the sample as invalid)
        print(f"polgrad: a reward worker ends: {_outside.reason(error)}", file=sys.stderr)
        os._exit(1)


def _serve() -> None:
    requests, replies = _private_streams()
    _die_with_parent(os.getppid())
    own = os.getpid()

    def reply(message: Any) -> None:
        if os.getpid() != own:  # a process that a reward has forked, whose answer nobody asked for
            os._exit(0)
        frame = memoryview(encode_frame(message))
        while frame:
            frame = frame[replies.write(frame) :]

    setup = read_frame(requests)
    if setup is None:
        return
    _limit_memory(setup["memory"])
    try:
        with _outside.calling("rewards"):
            reward = compose([RewardSpec(*spec) for spec in setup["specs"]])
    except (ValueError, KeyboardInterrupt) as error:
        reply({"error": _start_error(error, setup["memory"])})
        return
    reply({"ready": own})
    while (request := read_frame(requests)) is not None:
        token, prompt, completion, example = request
        _reset(prompt, completion, setup["timeout"])
        try:
            score = reward(prompt, completion, example)
        except KeyboardInterrupt:  # raised by the reward: Ctrl-C does not reach this process
            score = Failure(0.0, False, "KeyboardInterrupt")
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)  # an alarm that a reward left behind
        # What has filled the memory may be there still, and would be the next sample's fault.
        last = not score.valid and EXHAUSTED in score.reason
        reason = score.reason[:_REASON] + (limit_text(setup["memory"]) if last else "")
        failed = isinstance(score, Failure)
        reply([token, score.value, score.valid, reason, failed, last])


if __name__ == "__main__":
    main()
