"""The algorithm of a run: found by its name, and built from its settings."""

import dataclasses
import sys
import types
from typing import Any

from polgrad import _names, _outside, _user_files, algorithms, data
from polgrad.contract import Algorithm, Context
from polgrad.training.config import TrainConfig
from polgrad.training.setup import abstract


def algorithm_settings(config: TrainConfig) -> Any:
    """The algorithm's settings: those given, or the defaults of the one that is named."""
    if config.settings is not None:
        return config.settings
    found = find_algorithm(config.algorithm)
    return found() if isinstance(found, type) else found


def find_algorithm(name: str) -> Any:
    """The settings class, or the `Algorithm`, of a name, `file.py:NAME` or `module:NAME`.

    Raises:
      ValueError: there is none of that name, the file fails, or it holds something else; one line
        with the file.
    """
    if ":" not in name:
        return algorithms.find(name)
    place, _, attribute = name.rpartition(":")
    try:
        module = _user_files.module(place, f"algorithm {name!r}")
    except _outside.OutsideError as error:
        hint = "; write @dataclasses.dataclass(frozen=True) above the class"
        thawed = "cannot inherit non-frozen dataclass" in str(error)
        raise _outside.OutsideError(f"{error}{hint if thawed else ''}") from error
    with _outside.calling(place, f"algorithm {name!r}"):
        found = getattr(module, attribute, None)
        if isinstance(found, Algorithm):
            return found
        if dataclasses.is_dataclass(found) and hasattr(found, "build"):
            if isinstance(found, type):
                found()  # its defaults are shown, and taken where no setting is given
            return found
    raise ValueError(
        f"algorithm {name!r} is {_what_came(module, attribute, found)}; expected an Algorithm, or a "
        f"dataclass with build(context): {_how_to_mend(found)}"
    )


def _what_came(module: types.ModuleType, attribute: str, found: Any) -> str:
    """What stands in somebody's module where an algorithm was expected."""
    if found is None:
        close = _names.nearest(attribute, vars(module))
        return f"missing{f' (did you mean {close[0]}?)' if close else ''}"
    if isinstance(found, type):
        return f"the class {found.__name__}"
    if callable(found):
        return f"the function {getattr(found, '__name__', type(found).__name__)}"
    return f"of type {type(found).__name__}"


def _how_to_mend(found: Any) -> str:
    """What to write, in a line, so that it is an algorithm."""
    if isinstance(found, type) and not dataclasses.is_dataclass(found) and hasattr(found, "build"):
        return "write @dataclasses.dataclass(frozen=True) above the class"
    if isinstance(found, type) and dataclasses.is_dataclass(found):
        return "write its method def build(self, context), which returns an Algorithm"
    return "derive a dataclass from one of polgrad.algorithms, such as class Mine(algorithms.GRPO)"


def build_algorithm(name: str, settings: Any, context: Context) -> Algorithm:
    """The algorithm of some settings, which may be a class in somebody's own file.

    Args:
      name: as `find_algorithm` takes it.
      settings: an instance of what it found, or an `Algorithm`.
      context: the sizes of the run.

    Returns:
      What `settings.build` gives.

    Raises:
      ValueError: settings that do not go with the sizes; in somebody's own file whatever `build`
        raises, with its file and line.
    """
    if isinstance(settings, Algorithm):
        return settings
    place = name.rpartition(":")[0]
    if not place.endswith(".py"):
        place = getattr(sys.modules.get(place), "__file__", None) or place
    try:
        if not place:
            return settings.build(context)
        with _outside.calling(place, f"algorithm {name!r}"):
            found = _built(name, settings, context)
    except NotImplementedError as error:
        raise ValueError(f"algorithm {name}: {error}") from None
    if not isinstance(found, Algorithm):
        raise ValueError(
            f"algorithm {name!r}: build(context) returned {type(found).__name__}; expected an "
            f"Algorithm{' (does its last line say return?)' if found is None else ''}"
        )
    return found


def _built(name: str, settings: Any, context: Context) -> Any:
    """What `build` returns; polgrad's own traces a surrogate to see what it does."""
    try:
        return settings.build(context)
    except _outside.OutsideError as error:
        raise _outside.OutsideError(f"algorithm {name!r}: {error}") from error
    except abstract.TRACED as error:
        told = ValueError(abstract.reason(error))
        raise told.with_traceback(error.__traceback__) from error


def context_of(config: TrainConfig, train: data.Source) -> Context:
    """The sizes of a run, which `build` of the algorithm's settings takes."""
    return Context(
        group_size=config.rollouts.group_size,
        # Before it is chosen, a completion may have any length.
        max_tokens=config.rollouts.max_tokens or 2**30,
        num_prompts=len(train),
        on_policy=config.on_policy,
    )
