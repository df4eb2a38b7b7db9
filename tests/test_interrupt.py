"""Ctrl-C ends a command with one line and exit code 130, wherever it comes."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from polgrad import _interrupt, cli
from polgrad.cli import listing
from polgrad.cli import sweep as sweep_command


@pytest.fixture(autouse=True)
def as_in_a_terminal():
    """A shell starts what runs in the background with Ctrl-C ignored, these tests too."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def press():
    signal.raise_signal(signal.SIGINT)


def test_one_interrupt_is_raised_and_remembered():
    with _interrupt.caught() as pressed:
        assert not pressed()
        with pytest.raises(KeyboardInterrupt):
            press()
        assert pressed()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def wait():
    """Until the interrupt that was put off comes."""
    ends = time.monotonic() + 5
    while time.monotonic() < ends:
        time.sleep(0.01)


def test_inside_a_destructor_it_is_put_off():
    class Held:
        def __del__(self):
            press()
            seen.append("whole")

    seen = []
    with _interrupt.caught() as pressed, pytest.raises(KeyboardInterrupt):
        Held()  # made and gone at once
        assert seen == ["whole"] and pressed()
        wait()


def test_inside_an_import_it_is_put_off(tmp_path, monkeypatch):
    (tmp_path / "pressed_within.py").write_text(
        "import signal\nsignal.raise_signal(signal.SIGINT)\nwhole = True\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with _interrupt.caught(), pytest.raises(KeyboardInterrupt):
        import pressed_within

        assert pressed_within.whole
        wait()


def terminate():
    signal.raise_signal(signal.SIGTERM)


def test_sigterm_is_raised_once_and_then_does_nothing():
    before = signal.getsignal(signal.SIGTERM)
    with _interrupt.terminated() as stopped:
        assert not stopped()
        with pytest.raises(KeyboardInterrupt):
            terminate()
        terminate()
        assert stopped()
        # A handler of Python's own does not reach programs that are started now; SIG_IGN would.
        assert callable(signal.getsignal(signal.SIGTERM))
    assert signal.getsignal(signal.SIGTERM) is before


def test_inside_a_destructor_sigterm_is_put_off():
    class Held:
        def __del__(self):
            terminate()
            seen.append("whole")

    seen = []
    with _interrupt.terminated() as stopped, pytest.raises(KeyboardInterrupt):
        Held()
        assert seen == ["whole"] and not stopped()
        wait()


def test_sigterm_that_is_put_off_beyond_the_block_harms_nobody(monkeypatch):
    monkeypatch.setattr(_interrupt, "_may_be_left", lambda frame: False)
    late = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: late.append(number))
    try:
        with _interrupt.terminated() as stopped:
            terminate()
            (timer,) = [t for t in threading.enumerate() if isinstance(t, threading.Timer)]
        timer.join()
        assert late == [] and not stopped()
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("no such world"), "no such world"),
        (OSError(28, "No space left"), "No space left"),
        (KeyboardInterrupt(), None),
    ],
)
def test_an_error_of_a_sweep_after_sigterm_is_told(monkeypatch, capfd, error, line):
    from polgrad.experiments import command

    def sweep(**_):
        with contextlib.suppress(KeyboardInterrupt):
            terminate()
        raise error

    monkeypatch.setattr(command, "sweep", sweep)
    code = sweep_command.main(["some.py", "--set", "gain=1", "--out", "s"])
    out, told = capfd.readouterr()
    if line is None:
        assert code == 0 and out.startswith("stopped by SIGTERM") and told == ""
    else:
        assert code == 2 and out == "" and line in told


def test_an_interrupt_that_went_lost_is_raised_again():
    _interrupt.check()
    with _interrupt.caught():
        with contextlib.suppress(KeyboardInterrupt):  # as a library does
            press()
        with pytest.raises(KeyboardInterrupt):
            _interrupt.check()
    _interrupt.check()


def test_a_block_that_must_end_in_order_is_not_interrupted(capfd):
    with _interrupt.caught():
        with _interrupt.postponed() as pressed:
            assert not pressed()
            press()
            assert pressed()
        with pytest.raises(KeyboardInterrupt):
            _interrupt.check()
    assert "a second Ctrl-C ends it at once" in capfd.readouterr().err
    with _interrupt.caught(), pytest.raises(KeyboardInterrupt):
        press()


def test_where_it_is_ignored_it_stays_ignored():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with _interrupt.caught() as pressed:
            press()
            assert not pressed()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def test_in_another_thread_nothing_is_changed():
    seen = []

    def work():
        with _interrupt.caught() as pressed:
            seen.append(pressed())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [False]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_what_an_interrupt_breaks_is_an_interrupt_too(monkeypatch, capfd):
    def fail(_):
        try:
            press()
        except KeyboardInterrupt:
            raise RecursionError("half a module") from None

    monkeypatch.setattr(listing, "main", fail)
    monkeypatch.setattr(cli._interrupt, "leave", sys.exit)
    with pytest.raises(SystemExit) as stop:
        cli.main(["list"])
    assert stop.value.code == 130 and capfd.readouterr().err == "polgrad: interrupted\n"


@pytest.mark.parametrize("block", ["contextlib.nullcontext", "_interrupt.postponed"])
def test_a_second_interrupt_ends_the_process(block):
    program = (
        "import contextlib, signal\nfrom polgrad import _interrupt\n"
        f"with _interrupt.caught(), {block}():\n"
        "    with contextlib.suppress(KeyboardInterrupt):\n"
        "        signal.raise_signal(signal.SIGINT)\n"
        "    signal.raise_signal(signal.SIGINT)\n"
        "    print('still there')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, env=os.environ)
    assert done.returncode == 130 and done.stderr.splitlines()[-1] == b"polgrad: interrupted"
    assert done.stdout == b""
