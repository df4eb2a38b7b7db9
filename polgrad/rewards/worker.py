"""The process that runs rewards: one sample at a time, on its main thread, without jax.

Started by `RewardPool`. Frames on its standard input and output are a length (8 bytes, big
endian) and ASCII JSON; nothing is ever unpickled. What a reward prints goes to standard error.
"""

import hashlib
import os
import random
import signal
import struct
import sys
import threading
import time
from typing import Any, BinaryIO

from polgrad.data import codec
from polgrad.rewards.compose import RewardSpec, compose

HEADER = struct.Struct(">Q")


def encode_frame(message: Any) -> bytes:
    """Bytes of one message.

    Args:
        message: plain data, see `polgrad.data.codec`.

    Returns:
        Length and JSON.
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


def _private_streams() -> tuple[BinaryIO, BinaryIO]:
    """Take standard input and output away from the rewards, which may print or read."""
    requests = os.fdopen(os.dup(0), "rb")
    replies = os.fdopen(os.dup(1), "wb")
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    os.dup2(2, 1)
    return requests, replies


def _die_with_parent(parent: int) -> None:
    """End when the trainer is gone, even in the middle of a reward that never returns."""

    def watch():
        while os.getppid() == parent:
            time.sleep(0.5)
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


def main() -> None:
    """Serve requests until standard input closes."""
    requests, replies = _private_streams()
    _die_with_parent(os.getppid())

    def reply(message: Any) -> None:
        replies.write(encode_frame(message))
        replies.flush()

    setup = read_frame(requests)
    if setup is None:
        return
    try:
        reward = compose([RewardSpec(*spec) for spec in setup["specs"]])
    # A user's module may raise anything on import; the trainer shows it and stops.
    except (Exception, SystemExit) as error:  # noqa: BLE001
        own = isinstance(error, ValueError) and str(error).startswith("reward ")
        reply({"error": str(error) if own else f"{type(error).__name__}: {error}"})
        return
    reply({"ready": os.getpid()})
    while (request := read_frame(requests)) is not None:
        index, prompt, completion, example = request
        _reset(prompt, completion, setup["timeout"])
        score = reward(prompt, completion, example)
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)  # an alarm that a reward left behind
        reply([index, score.value, score.valid, score.reason[:2000]])


if __name__ == "__main__":
    main()
