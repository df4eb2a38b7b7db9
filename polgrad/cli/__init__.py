"""The `polgrad` command: train, sample, evaluate, export, run, sweep, report, compile, list.

Every end but success is one line on standard error. Exit codes: 2 for bad input; 1 for a run that
cannot go on, out of memory among others; 130 after Ctrl-C; 70 for a fault of polgrad, whose
traceback is kept in a file that the line names. In a step of a run SIGTERM and a first Ctrl-C save;
SIGTERM exits with 0. With POLGRAD_TRACEBACK=1 in the environment the traceback is printed before
the line.
"""

import importlib
import importlib.util
import os
import select
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from typing import Any

from polgrad import _compilers, _flags, _interrupt, _names
from polgrad._outside import OutsideError, reason
from polgrad.cli.common import NO_CACHE, TRACEBACK, fail

COMMANDS = {
    "train": "train",
    "sample": "sample",
    "evaluate": "evaluate",
    "export": "export",
    "run": "run",
    "sweep": "sweep",
    "report": "report",
    "compile": "compiling",
    "list": "listing",
}
"""Each command, and the module of this package that runs it."""

CACHED = ("train", "sample", "evaluate")

LOWER = (
    "lower the batch or the length of completions (train: --rollouts.slots, --rollouts.prompts, "
    "--rollouts.max-tokens, more --update.micro-batches, --update.remat full; sample, evaluate: "
    "--samples, --max-tokens)"
)

USAGE = """usage: polgrad COMMAND [OPTIONS]

  train      train a policy
  sample     print completions of a policy
  evaluate   measure the accuracy of a policy on problems that are kept out of training
  export     write a policy as a Hugging Face directory, which other libraries load
  run        run the experiment of a paper and say whether the paper's claim holds
  sweep      run an experiment for each combination of several settings
  report     write a page, in Markdown and HTML, about a run or a sweep
  compile    tell the memory and the time of a training step on a TPU slice that you do not have
  list       list algorithms, tasks, rewards, policies or experiments

polgrad COMMAND --help explains the options of a command. The commands train, sample and evaluate keep
compiled programs, so that the next start is faster: in your cache folder, or in the folder that
JAX_COMPILATION_CACHE_DIR names. With --no-cache they keep nothing."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line and exits."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    _compilers.protect()
    with _interrupt.caught() as interrupted:
        try:
            code = _bounded(arguments, interrupted)
            sys.stdout.flush()
        except BrokenPipeError as error:
            if not _reader_is_gone():
                code = _unforeseen(error)
            else:
                # The reader, `head` say, has what it wanted; nothing is left to be told.
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
                code = 0
        except KeyboardInterrupt:
            code = fail("interrupted", _interrupt.CODE)
        if code and _has_company():
            _leave(code)
        if code == _interrupt.CODE:
            _interrupt.leave(code)
    sys.exit(code)


def _has_company() -> bool:
    """Whether this process is one of several of a run."""
    hosts = sys.modules.get("polgrad.training.runtime.hosts")
    return hosts is not None and hosts.joined()


def _bounded(arguments: list[str], interrupted: Callable[[], bool]) -> int:
    """Runs a command; whatever nothing else has turned into a line becomes one here."""
    try:
        return _run(arguments)
    except (KeyboardInterrupt, BrokenPipeError):
        raise
    except SystemExit as stop:
        if interrupted():
            raise KeyboardInterrupt from stop
        # No command ends so; somebody's code did, and must not look like success.
        return fail(f"code that polgrad called ended with sys.exit({stop.code!r})", 2)
    except BaseException as error:
        if interrupted():
            # What was interrupted may fail in another way.
            raise KeyboardInterrupt from error
        return _unforeseen(error)


def _unforeseen(error: BaseException) -> int:
    """The line and the exit code for an exception that no command expects."""
    text = f"{type(error).__name__}: {error}"
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in text:
        return fail(f"out of memory; {LOWER}", 1, error)
    if isinstance(error, RuntimeError) and "Unable to initialize backend" in text:
        named = os.environ.get("JAX_PLATFORMS")
        where = f"JAX_PLATFORMS is {named!r}" if named else "JAX finds no device"
        return fail(f"{where}: {_short(error)}", 2, error)
    if isinstance(error, OutsideError):
        return fail(error, 2)
    if isinstance(error, OSError):
        named = f"{error.filename}: " if error.filename else ""
        return fail(f"{named}{reason(error)}", 1, error)
    if isinstance(error, ModuleNotFoundError) and error.name:
        return fail(f"the package {error.name} is not installed", 2, error)
    trace = "".join(traceback.format_exception(error))
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="polgrad-traceback-", suffix=".txt", delete=False, encoding="utf-8"
        ) as file:
            file.write(trace)
        place = f"its traceback is in {file.name}"
    except (OSError, UnicodeError):
        place = f"its traceback could not be kept; {TRACEBACK}=1 shows it"
    return fail(f"a fault of polgrad, please report it: {_short(text)}; {place}", 70, error)


def _short(text: Any) -> str:
    words = " ".join(str(text).split())
    return words if len(words) <= 300 else words[:297] + "..."


def _reader_is_gone() -> bool:
    """Whether it is standard output that cannot be written to."""
    try:
        poll = select.poll()
        poll.register(sys.stdout.fileno(), 0)
        return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))
    except (OSError, ValueError):
        return True


def _run(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE)
        return 0 if arguments else 2
    command, rest = arguments[0], arguments[1:]
    if command == "--version":
        import polgrad

        print(polgrad.__version__)
        return 0
    if command not in COMMANDS:
        hint = _names.hint(command, COMMANDS)
        return fail(f"unknown command {command!r}{hint} (known: {', '.join(COMMANDS)})", 2)
    if command == "train":
        from polgrad.cli import train

        train.leave_on_sigterm()
    if command in CACHED:
        _quiet_compiler()
        # Where it is another flag's value by mistake, the command is refused below.
        cached = NO_CACHE not in [argument.replace("_", "-") for argument in rest]
        if not {"-h", "--help"} & {*rest}:
            from polgrad.training.runtime import host_memory, program_cache

            host_memory.keep()
            if cached:
                program_cache.use()
    try:
        return importlib.import_module(f"polgrad.cli.{COMMANDS[command]}").main(rest)
    except _flags.Shown:
        return 0
    except _flags.FlagError as error:
        return fail(error, 2)


def _quiet_compiler() -> None:
    """Without an accelerator, keeps XLA's own log off the terminal; its errors still are raised.

    Whenever XLA reads a compiled program back on a CPU, it complains of a feature of the CPU that
    is none, and does so with the very CPU that the program was compiled on.
    """
    if not any(importlib.util.find_spec(name) for name in ("jax_plugins", "libtpu")):
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


def _leave(code: int) -> None:
    """Ends one of several processes. An orderly end waits minutes for one that is gone."""
    from polgrad.training.runtime import hosts

    sys.stdout.flush()
    sys.stderr.flush()
    hosts.part()
    os._exit(code)
