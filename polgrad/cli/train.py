"""`polgrad train`: settings from flags and files, the run, and its last lines."""

import contextlib
import dataclasses
import os
import signal
from typing import Any

from polgrad import _flags, _interrupt, _parts
from polgrad.cli.common import NO_CACHE, fail, flag_of, value_of


def main(arguments: list[str]) -> int:
    """Trains a policy, or goes on with a run."""
    with _ending_on_sigterm():
        try:
            parts = _train_settings(arguments)
            return parts if isinstance(parts, int) else _train_parts(parts)
        except KeyboardInterrupt:
            return fail("interrupted before the first step; nothing is lost", 130)


def _early_end(number, frame):
    """Ends at once. An exception could be caught: by somebody's code, or as a fault of it."""
    with contextlib.suppress(RuntimeError, OSError):  # a line is just being written; no reader
        text = "stopped by SIGTERM before the first step; nothing is lost, start it again"
        print(text, flush=True)
    os._exit(0)


def leave_on_sigterm() -> None:
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
        name = value_of(arguments, "--algorithm") or base.algorithm
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
        return fail(error, 2)
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
        return fail(error, 2)
    except hosts.HostError as error:
        return fail(error, 1)


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
    source = value_of(arguments, "--config")
    out = value_of(arguments, "--out") or default.out
    resumes = any(flag_of(argument) in ("--resume", "--resume-from") for argument in arguments)
    if source is None:
        if not resumes or not os.path.exists(os.path.join(out, run_files.CONFIG)):
            given = {flag_of(argument) for argument in arguments if argument.startswith("--")}
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
    typed = any(flag_of(argument) == "--saving.checkpoints" for argument in arguments)
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
    typed = {flag_of(argument) for argument in arguments}
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
        return fail(error, 1)
    except (StartError, ResumeError) as error:
        return fail(error, 2)
    except KeyboardInterrupt:
        return fail(f"interrupted; {_where_to_go_on(parts)}", 130)
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
