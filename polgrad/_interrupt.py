"""Ctrl-C of a command: one KeyboardInterrupt, raised where it is not lost.

Python raises KeyboardInterrupt wherever the program happens to be. Inside an import it leaves half
a module behind, which then fails in other ways; inside a destructor, or in the callback that JAX
adds to the garbage collector, Python prints the exception and goes on. There it is put off until
the place is left. A block that must end in order, such as a step of a run, puts it off to its own
end. A second Ctrl-C ends the process at once, and its line has what `telling` was given. `terminated` raises at SIGTERM in the same way.
"""

import contextlib
import os
import signal
import sys
import threading
import types
from collections.abc import Callable, Iterator

__all__ = ["CODE", "caught", "check", "leave", "postponed", "pressed", "telling", "terminated"]

CODE = 130
"""The exit code after Ctrl-C, as shells have it."""
_AGAIN = 0.05  # seconds until a place that cannot be left is looked at again
_LOST = ("_xla_gc_callback", "__del__")
_ENDING = b"\npolgrad: Ctrl-C: this step ends and the run saves; a second Ctrl-C ends it at once\n"
_presses = 0
_blocks = 0
_advice: Callable[[], str] | None = None


@contextlib.contextmanager
def caught() -> Iterator[Callable[[], bool]]:
    """Handles Ctrl-C in the block.

    A process that ignores Ctrl-C, as one behind `nohup` does, goes on to ignore it; so does a block
    outside the main thread, where Python delivers no signals.

    Yields:
      A function that tells whether Ctrl-C was pressed.
    """
    global _presses
    _presses, put_off = 0, False

    def handle(number: int, frame: types.FrameType | None) -> None:
        nonlocal put_off
        global _presses
        if not put_off:
            _presses += 1
        put_off = False
        if _presses > 1:
            os.write(2, f"polgrad: {_last_words()}\n".encode())
            os._exit(CODE)
        if _blocks:
            os.write(2, _ENDING)
            return
        if not _may_be_left(frame):
            put_off = True
            _send_later(signal.SIGINT)
            return
        raise KeyboardInterrupt

    here = threading.current_thread() is threading.main_thread()
    ours = here and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if ours:
        signal.signal(signal.SIGINT, handle)
    try:
        yield pressed
    finally:
        _presses = 0
        if ours:
            signal.signal(signal.SIGINT, signal.default_int_handler)


@contextlib.contextmanager
def telling(advice: Callable[[], str]) -> Iterator[None]:
    """A block in which the line of a second Ctrl-C tells how to go on.

    Args:
      advice: makes this text. It must not wait for anything: a third Ctrl-C ends it.
    """
    global _advice
    before, _advice = _advice, advice
    try:
        yield
    finally:
        _advice = before


def _last_words() -> str:
    """What the line of a second Ctrl-C says; a third one comes while the text is being made."""
    text = "interrupted"
    if _advice is not None and _presses == 2:
        with contextlib.suppress(Exception):  # the process ends, whatever its files are like
            text = " ".join(f"{text}; {_advice()}".split())
    return text


@contextlib.contextmanager
def terminated() -> Iterator[Callable[[], bool]]:
    """Raises KeyboardInterrupt at the first SIGTERM, so that the block ends what it started.

    A second SIGTERM does nothing: it would break off this ending. Outside the main thread, where
    Python delivers no signals, SIGTERM ends the process as before.

    Yields:
      A function that tells whether SIGTERM raised the exception.
    """
    raised, waiting = False, None

    def handle(number: int, frame: types.FrameType | None) -> None:
        nonlocal raised, waiting
        if raised:
            return
        if _may_be_left(frame):
            raised = True
            raise KeyboardInterrupt
        waiting = _send_later(signal.SIGTERM)

    here = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, handle) if here else None
    try:
        yield lambda: raised
    finally:
        if here:
            if waiting is not None:
                waiting.cancel()  # the block is at its end, and its result counts
            signal.signal(signal.SIGTERM, before)


def _send_later(number: signal.Signals) -> threading.Timer:
    """Sends a signal to this thread again, when the place that it came in may have been left."""
    timer = threading.Timer(_AGAIN, signal.pthread_kill, (threading.get_ident(), number))
    timer.daemon = True
    timer.start()
    return timer


def check() -> None:
    """Raises KeyboardInterrupt again where Ctrl-C was pressed and the exception went lost.

    A library that calls Python from compiled code may swallow it, as during a compilation. In a
    `postponed` block it is not raised at all: this function is called after the block.
    """
    if _presses:
        raise KeyboardInterrupt


def pressed() -> bool:
    """Whether Ctrl-C was pressed since `caught` was entered."""
    return _presses > 0


@contextlib.contextmanager
def postponed() -> Iterator[Callable[[], bool]]:
    """A block that `caught` does not interrupt at the first Ctrl-C; call `check` after it.

    Yields:
      A function that tells whether Ctrl-C was pressed: the block is to end soon.
    """
    global _blocks
    _blocks += 1
    try:
        yield pressed
    finally:
        _blocks -= 1


def _may_be_left(frame: types.FrameType | None) -> bool:
    while frame is not None:
        code = frame.f_code
        if code.co_filename.startswith("<frozen importlib") or code.co_name in _LOST:
            return False
        frame = frame.f_back
    return True


def leave(code: int) -> None:
    """Ends the process at once: threads of JAX that still compute crash an orderly end.

    Args:
      code: the exit code.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
