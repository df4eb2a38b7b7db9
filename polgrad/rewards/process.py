"""A worker process as the trainer sees it: how it is started, spoken to and killed."""

import contextlib
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from polgrad import _compilers
from polgrad.data import codec
from polgrad.rewards import compose, worker
from polgrad.rewards.score import Failure, Score

# -c and not -m: the caller's search path then comes first and whole, so that a worker finds what
# the caller can import, and no module beside worker.py shadows one of the same name.
_BOOT = (
    "import sys; sys.path[:] = sys.argv[1:]; del sys.argv[1:]; "
    "from polgrad.rewards.worker import main; main()"
)
KEPT = (
    *("PATH", "HOME", "USER", "LOGNAME", "SHELL", "TERM", "TZ", "PWD"),
    *("LANG", "LANGUAGE", "LC_ALL", "LC_CTYPE", "LC_NUMERIC", "LC_COLLATE"),
    *("TMPDIR", "TMP", "TEMP", "XDG_CACHE_HOME"),
    *("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "VIRTUAL_ENV", "CONDA_PREFIX", "CONDA_DEFAULT_ENV"),
    *("PYTHONPATH", "PYTHONHOME", "PYTHONUTF8", "PYTHONIOENCODING", "PYTHONDONTWRITEBYTECODE"),
    *("XLA_FLAGS", "JAX_ENABLE_X64"),  # a reward that brings jax computes as the trainer does
    # Where libraries keep models and data, and whether they may ask for more.
    *("XDG_CONFIG_HOME", "XDG_DATA_HOME", "HF_HOME", "HF_HUB_CACHE", "HF_DATASETS_CACHE"),
    *("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_CACHE", "TRANSFORMERS_OFFLINE"),
    *("TORCH_HOME", "NLTK_DATA", "TIKTOKEN_CACHE_DIR"),
    # How a judge on the network is reached.
    *("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"),
    *("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"),
    *("http_proxy", "https_proxy", "all_proxy", "no_proxy"),
)
"""Variables of the caller's environment that a worker has too."""

ALWAYS = {
    "PYTHONHASHSEED": "0",  # sets iterate in one order in every worker and every run
    "JAX_PLATFORMS": "cpu",  # a reward that brings jax must not take the accelerator
    "CUDA_VISIBLE_DEVICES": "",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    _compilers.OPT_IN: "1",
}
"""Variables that every worker has, with their values."""

UNREADABLE = "worker ended (its reply could not be read)"


class Unreadable(Exception):
    """What has come from a worker is not what it was asked for."""


class Worker:
    """One process, its two pipes, and the sample that it is busy with."""

    def __init__(
        self, setup: bytes, start_timeout: float, environment: Mapping[str, str], pool: str
    ):
        self.mark = f"{pool}:{secrets.token_hex(8)}"
        path = [os.path.abspath(entry or os.curdir) for entry in sys.path]
        self.process = subprocess.Popen(
            [sys.executable, "-W", "ignore::SyntaxWarning", "-c", _BOOT, *path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            env={**environment, worker.MARK: self.mark},
            start_new_session=True,  # Ctrl-C reaches the trainer alone; children die together
        )
        self.requests = self.process.stdin.fileno()
        self.replies = self.process.stdout.fileno()
        os.set_blocking(self.requests, False)
        os.set_blocking(self.replies, False)
        self.index: int | None = None
        self.token = ""
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
        """Whole messages that have come, and whether the pipe is still open.

        Raises:
            Unreadable: what has come is no message.
        """
        is_open = True
        header, limit = worker.HEADER.size, worker.REPLY_LIMIT
        try:
            while chunk := os.read(self.replies, 1 << 16):
                self._received += chunk
                if len(self._received) > header + limit:
                    break
            else:
                is_open = False
        except BlockingIOError:
            pass
        messages = []
        while len(self._received) >= header:
            (length,) = worker.HEADER.unpack(self._received[:header])
            if length > limit:
                raise Unreadable(f"a reply of {length} bytes")
            if len(self._received) < header + length:
                break
            try:
                messages.append(codec.loads(bytes(self._received[header : header + length])))
            # A reward may write anything to the pipe, JSON of another form among it.
            except Exception as error:
                raise Unreadable("a reply that is no message") from error
            del self._received[: header + length]
        return messages, is_open

    def kill_group(self) -> None:
        # The group still exists after its leader has died if the reward started children.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()

    def kill(self) -> None:
        self.kill_group()
        worker.kill_marked(self.mark)

    def exit_text(self) -> str:
        try:
            code = self.process.wait(timeout=1.0)
        except subprocess.TimeoutExpired:
            return "it closed its pipe"
        if code >= 0:
            return f"exit code {code}"
        try:
            return f"signal {signal.Signals(-code).name}"
        except ValueError:  # one of the numbers that have no name
            return f"signal {-code}"


def read_reply(message: Any) -> tuple[str, Score, bool]:
    """Token, score and whether the process is at its end, of a worker's message.

    Raises:
        Unreadable: the message has another form.
    """
    kinds = [str, float, bool, str, bool, bool]
    if not isinstance(message, list) or [type(part) for part in message] != kinds:
        raise Unreadable("a reply of another form")
    token, value, valid, reason, failed, last = message
    score = compose.as_score(Score(value, valid, reason))
    return token, Failure(*score) if failed and not score.valid else score, last


def kill_all(workers: list[Worker], pool: str) -> None:
    """Ends the workers of a pool, with the processes that they have started."""
    there = bool(workers)
    while workers:
        workers.pop().kill_group()
    if there:
        worker.kill_marked(pool)


def environment_of(names: Sequence[str]) -> dict[str, str]:
    """What a worker's environment holds.

    Raises:
        ValueError: a name that is not set.
    """
    if isinstance(names, str) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"environment must be a sequence of names, got {names!r:.80}")
    missing = [name for name in names if name not in os.environ]
    if missing:
        raise ValueError(f"environment names {', '.join(missing)}, which is not set here")
    kept = {name: os.environ[name] for name in (*KEPT, *names) if name in os.environ}
    return kept | {name: value for name, value in ALWAYS.items() if name not in names}
