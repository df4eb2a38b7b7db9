"""Chat templates, which run in a process of their own with bounds of time, memory and length."""

import atexit
import contextlib
import datetime
import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from polgrad.data import codec

__all__ = ["ChatTemplate", "RunawayTemplate"]

# Templates of the hub take milliseconds, and a context of a million tokens has 4 million characters.
SECONDS = 2.0  # of processor time, for one text
LENGTH = 2**22  # characters of a text
MEMORY = 2**30  # bytes of the renderer's address space
_TEMPLATES = 256  # that one process keeps
_RENDERER = Path(__file__).with_name("_renderer.py")
# The renderer gets no other variable: a template has no business with tokens and passwords.
_VARIABLES = ("TZ", "LD_LIBRARY_PATH", "PYTHONHOME")


class RunawayTemplate(ValueError):
    """A template took more time, memory or length than any template needs."""


class ChatTemplate:
    """A jinja2 template of the hub, in jinja2's immutable sandbox.

    The template comes with the policy and may be written by anybody. The sandbox refuses
    attributes that begin with an underscore and every change of the values that it is given.
    The template runs in a process of its own (one for all templates), where it sees no environment
    variables and cannot write a file. A text may take `SECONDS` of processor time and `LENGTH`
    characters, and the process may take `MEMORY` bytes of address space: the kernel ends what takes
    more. Not bounded is the time on the clock: on a machine that is busy otherwise, two seconds of
    processor time can last longer. Where the kernel does not keep RLIMIT_AS (macOS), memory is
    bounded by the time alone.

    Args:
        source: jinja2 text.
        now: what `strftime_now` formats; None is the clock. A template that prints the date
            gives other prompts tomorrow, so a run that must be repeatable sets it.

    Raises:
        ValueError: the template has a syntax error.
    """

    def __init__(self, source: str, *, now: datetime.datetime | None = None):
        self.source = source
        self.now = None if now is None else now.isoformat()
        told = json.dumps([source, self.now]).encode("ascii")
        self.key = hashlib.blake2b(told, digest_size=16).hexdigest()
        _renderer.ask(self, None)

    def render(self, **variables: Any) -> str:
        """The text.

        Args:
            **variables: what the template reads: `messages`, `add_generation_prompt`, ....
                Values that JSON and `codec` know.

        Returns:
            The text.

        Raises:
            RunawayTemplate: a bound was passed (see the class).
            ValueError: the template failed or refused, or a value of another type.
        """
        return _renderer.ask(self, variables)


class _Renderer:
    """The process of the templates; started when it is first needed, and again when it ended."""

    def __init__(self):
        self._process: subprocess.Popen | None = None
        self._known: set[str] = set()
        self._lock = threading.Lock()

    def ask(self, template: ChatTemplate, variables: dict[str, Any] | None) -> str:
        """A template's text; with no variables, whether it has the form of a template."""
        with self._lock:
            process = self._running()
            fresh = template.key not in self._known
            request = {
                "key": template.key,
                "source": template.source if fresh else None,
                "now": template.now,
                "seconds": SECONDS,
                "length": LENGTH,
                "variables": variables,
            }
            try:
                body = codec.dumps(request).encode("ascii")
            except ValueError as error:
                raise ValueError(f"chat_template: {error}") from None
            try:
                reply = _exchange(process, body)
            except (OSError, EOFError, ValueError):
                raise RunawayTemplate(f"chat_template: {_why(self.stop())}") from None
            except BaseException:
                # Interrupted between question and answer: the next question must not get this one.
                self.stop()
                raise
            if "text" in reply:
                self._known.add(template.key)
                return reply["text"]
        if "runaway" in reply:
            raise RunawayTemplate(f"chat_template: {reply['runaway']}")
        raise ValueError(f"chat_template{' ' if 'line' in reply else ': '}{reply['error']}")

    def _running(self) -> subprocess.Popen:
        if len(self._known) >= _TEMPLATES:
            self.stop()
        if self._process is None or self._process.poll() is not None:
            self._known = set()
            environment = {name: os.environ[name] for name in _VARIABLES if name in os.environ}
            environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-S", str(_RENDERER), codec.__file__, str(MEMORY)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=environment,
                start_new_session=True,  # Ctrl-C is for this process, which then ends the other
            )
        return self._process

    def stop(self) -> int:
        """Ends the process and returns its exit code; negative is the number of a signal."""
        process, self._process = self._process, None
        if process is None:
            return 0
        with contextlib.suppress(OSError):
            process.stdin.close()
        process.stdout.close()
        try:
            return process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()


def _exchange(process: subprocess.Popen, body: bytes) -> dict[str, Any]:
    process.stdin.write(len(body).to_bytes(8, "big") + body)
    process.stdin.flush()
    size = process.stdout.read(8)
    length = int.from_bytes(size, "big")
    # JSON writes a character as up to twelve.
    if len(size) < 8 or length > 12 * LENGTH + 4096:
        raise EOFError
    reply = process.stdout.read(length)
    if len(reply) < length:
        raise EOFError
    return json.loads(reply)


def _why(code: int) -> str:
    if code == -signal.SIGPROF:
        return f"one text took more than {SECONDS:g} seconds of processor time"
    ended = f"signal {-code}" if code < 0 else f"exit code {code}"
    return f"the process that renders it ended with {ended}, as it does when memory runs out"


_renderer = _Renderer()


def _forget() -> None:
    """In a forked child: the renderer is the parent's, and its answers are for the parent."""
    global _renderer
    _renderer = _Renderer()


os.register_at_fork(after_in_child=_forget)
atexit.register(lambda: _renderer.stop())
