"""Settings that hold other settings: a field takes one of several small dataclasses, by name.

    @dataclasses.dataclass(frozen=True)
    class GRPO:
        kl: KL | RewardKL | None = None

The classes are called parts. A part's name is its class's in small letters: `kl`, `reward_kl`. On
the command line `--settings.kl reward_kl --settings.kl.coefficient 0.05` chooses one and sets its
fields; `--settings.kl none` takes none. A field that is annotated with one class alone has no
choice, and is no part.
"""

import dataclasses
import functools
import inspect
import re
import types
from collections.abc import Mapping, Set
from typing import Annotated, Any, Literal, NamedTuple

from polgrad import _names, _ranges

NONE = "none"
KIND = "part"
"""The key of a part's name where settings are JSON."""
_BELOW = "__"


class Choice(NamedTuple):
    """What a field may hold.

    Attributes:
      kinds: the parts' classes by name.
      optional: whether there may be none.
    """

    kinds: dict[str, type]
    optional: bool

    @property
    def names(self) -> tuple[str, ...]:
        """The texts that choose."""
        return (*self.kinds, NONE) if self.optional else tuple(self.kinds)


def name_of(kind: type) -> str:
    """A class's name in small letters: `reward_kl` of `RewardKL`."""
    words = re.findall(r"[A-Z]+(?![a-z])|[A-Z][a-z]*|[a-z]+|[0-9]+", kind.__name__)
    return "_".join(words).lower()


@functools.cache
def choices(schema: type) -> Mapping[str, Choice]:
    """The fields of a dataclass that hold parts, by name."""
    found = {}
    declared = _ranges.hints(schema) or {}
    for field in dataclasses.fields(schema):
        options = _ranges.kinds(_ranges.marks(declared.get(field.name, Any))[0])
        kinds = [option for option in options if option is not types.NoneType]
        if len(options) > 1 and all(dataclasses.is_dataclass(kind) for kind in kinds):
            optional = types.NoneType in options
            names = [name_of(kind) for kind in kinds]
            if len(set(names)) < len(names):
                raise TypeError(
                    f"{schema.__name__}.{field.name} has two parts with one name: {', '.join(names)}"
                )
            found[field.name] = Choice({name_of(kind): kind for kind in kinds}, optional)
    return types.MappingProxyType(found)


def entries(documented: Any, heading: str = "Attributes") -> dict[str, str]:
    """The entries of a section of a docstring, by name; of a class also its bases' entries."""
    if isinstance(documented, type):
        own = [kind for kind in reversed(documented.__mro__) if kind.__doc__]
        texts = [inspect.cleandoc(kind.__doc__) for kind in own]
    else:
        texts = [inspect.getdoc(documented) or ""]
    found = {}
    for text in texts:
        section = re.search(rf"^{heading}:\n(.*?)(?=^\S|\Z)", text, re.MULTILINE | re.DOTALL)
        body = section[1] if section else ""
        parts = re.split(r"^ {2,4}(\w+): ", body, flags=re.MULTILINE)
        found |= {name: " ".join(entry.split()) for name, entry in zip(parts[1::2], parts[2::2])}
    return found


def check(settings: Any, own: Mapping[str, type] = types.MappingProxyType({})) -> None:
    """Checks that the fields of parts hold parts.

    Args:
      settings: an instance of a dataclass.
      own: by field, a class whose subclasses may stand there too.

    Raises:
      ValueError: a field that holds something else.
    """
    for name, choice in choices(type(settings)).items():
        value = getattr(settings, name)
        allowed = (*choice.kinds.values(), *([own[name]] if name in own else []))
        if isinstance(value, allowed) or (value is None and choice.optional):
            continue
        words = [kind.__name__ for kind in choice.kinds.values()]
        raise ValueError(
            f"{name} is {value!r}, expected {', '.join(words)}{' or None' * choice.optional}"
        )


# --- as JSON ----------------------------------------------------------------------------------------


def as_json(settings: Any) -> dict[str, Any]:
    """Settings as plain data, each part with its name."""
    plain = {}
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            inner = as_json(value)
            named = field.name in choices(type(settings))
            value = {KIND: name_of(type(value)), **inner} if named else inner
        plain[field.name] = value
    return plain


def from_json(schema: type, values: Mapping[str, Any], place: str) -> Any:
    """Settings of a class from what `as_json` made of them.

    Args:
      schema: the class.
      values: by name; what is left out has its default.
      place: what the settings are called in messages.

    Raises:
      ValueError: one line for an unknown setting or part, a text where a number is expected.
    """
    names = [field.name for field in dataclasses.fields(schema)]
    if unknown := [name for name in values if name not in names]:
        hint = _names.hint(unknown[0], names) or "; delete it there if the run can do without it"
        raise ValueError(f"{place} has no setting {', '.join(unknown)} in this version{hint}")
    given = {}
    for name, value in values.items():
        choice = choices(schema).get(name)
        if choice is not None:
            value = _part_of_json(choice, value, f"{place}.{name}")
        elif isinstance(value, dict) and dataclasses.is_dataclass(_annotation(schema, name)):
            value = from_json(_annotation(schema, name), value, f"{place}.{name}")
        elif isinstance(value, str) and _is_number(schema, name):
            raise ValueError(f"{place}.{name} is {value!r}; expected a number")
        given[name] = tuple(value) if isinstance(value, list) else value
    return _made(schema, given, place)


def _part_of_json(choice: Choice, value: Any, place: str) -> Any:
    if value is None and choice.optional:
        return None
    expected = f"a part with {KIND!r}: one of {', '.join(choice.kinds)}"
    if not isinstance(value, dict):
        raise ValueError(f"{place} is {value!r}; expected {expected}")
    kind = choice.kinds.get(value.get(KIND))
    if kind is None:
        raise ValueError(f"{place}.{KIND} is {value.get(KIND)!r}; expected {expected}")
    return from_json(kind, {k: v for k, v in value.items() if k != KIND}, place)


def _is_number(schema: type, name: str) -> bool:
    """Whether a field takes nothing but numbers, as far as its annotation tells."""
    declared = _ranges.hints(schema)
    kinds = () if declared is None else _ranges.kinds(_ranges.marks(declared[name])[0])
    return bool(kinds) and all(kind in (int, float, types.NoneType) for kind in kinds)


def _made(kind: type, values: Mapping[str, Any], place: str) -> Any:
    """An instance, whose errors say which settings they are about."""
    missing = [f.name for f in _fields(kind) if f.name not in values and _required(kind, f.name)]
    if missing:
        raise ValueError(f"{place}.{missing[0]} is missing; expected a value")
    try:
        return kind(**values)
    except ValueError as error:
        names = [name for name in values if str(error).startswith(f"{name} is ")]
        raise ValueError(f"{place}.{error}" if names else str(error)) from error


# --- as flags ---------------------------------------------------------------------------------------


def has_choices(schema: type) -> bool:
    """Whether a dataclass has a field that holds parts."""
    return dataclasses.is_dataclass(schema) and bool(choices(schema))


def as_flags(schema: type, default: Any) -> Any:
    """Settings as an instance of a class without choices, all of whose fields are flags.

    A field `kl` that holds parts becomes the name of a part, and a field beside it that holds the
    fields of all parts. `tyro` and `_flags` make of the two `--settings.kl` and
    `--settings.kl.coefficient`.

    Args:
      schema: the class of the settings.
      default: the settings that the flags change.
    """
    made = _merged({"": schema}, default)
    type(made).__doc__ = schema.__doc__
    return made


def _merged(kinds: Mapping[str, type], current: Any) -> Any:
    """The fields of several classes in one instance; where two share a field it is one field."""
    import tyro

    names = dict.fromkeys(field.name for kind in kinds.values() for field in _fields(kind))
    fields, values = [], {}
    for name in names:
        owners = {n: kind for n, kind in kinds.items() if name in [f.name for f in _fields(kind)]}
        source = current if type(current) in owners.values() else next(iter(owners.values()))
        value = _value(source, name)
        shown = {"help": _help(owners, name, alone=len(owners) == len(kinds))}
        if value is None and all(_required(kind, name) for kind in owners.values()):
            kind = _annotation(source if isinstance(source, type) else type(source), name)
            word = {int: "INT", float: "FLOAT"}.get(kind, "VALUE")
            shown |= {"metavar": word, "help_behavior_hint": "(required)"}
        told = tyro.conf.arg(**shown)
        offered = [choices(kind)[name] for kind in owners.values() if name in choices(kind)]
        if offered:
            below = {n: kind for choice in offered for n, kind in choice.kinds.items()}
            texts = dict.fromkeys(text for choice in offered for text in choice.names)
            fields.append((name, Annotated[Literal[tuple(texts)], told]))
            values[name] = NONE if value is None else name_of(type(value))
            inner = _merged(below, value)
            fields.append((name + _BELOW, Annotated[type(inner), tyro.conf.arg(name=name)]))
            values[name + _BELOW] = inner
        else:
            kind = functools.reduce(
                lambda a, b: a | b, [_annotation(owner, name) for owner in owners.values()]
            )
            fields.append((name, Annotated[kind if value is not None else kind | None, told]))
            values[name] = value
    specified = [
        (
            name,
            annotation,
            dataclasses.field(default_factory=functools.partial(_same, values[name])),
        )
        for name, annotation in fields
    ]
    return dataclasses.make_dataclass("Settings", specified, frozen=True)()


def _same(value: Any) -> Any:
    return value


def _fields(kind: type) -> tuple[dataclasses.Field, ...]:
    return tuple(field for field in dataclasses.fields(kind) if field.init)


def _value(source: Any, name: str) -> Any:
    """A field of settings, or its default in a class; None where there is none."""
    if not isinstance(source, type):
        return getattr(source, name)
    field = next(field for field in _fields(source) if field.name == name)
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return None if field.default is dataclasses.MISSING else field.default


def _required(kind: type, name: str) -> bool:
    field = next(field for field in _fields(kind) if field.name == name)
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _annotation(kind: type, name: str) -> Any:
    declared = _ranges.hints(kind)
    return Any if declared is None else _ranges.marks(declared[name])[0]


def _help(owners: Mapping[str, type], name: str, *, alone: bool) -> str:
    """What a flag's help says: of which parts it is a setting, and its entry in their docstrings."""
    texts: dict[str, list[str]] = {}
    for owner, kind in owners.items():
        texts.setdefault(entries(kind).get(name, ""), []).append(owner)
    told = next(iter(texts))
    if len(texts) > 1:
        told = " ".join(f"In {', '.join(names)}: {text}" for text, names in texts.items())
    defaults = {n: _value(kind, name) for n, kind in owners.items()}
    if len({*map(repr, defaults.values())}) > 1:
        told += f" By default {', '.join(f'{x} in {n}' for n, x in defaults.items())}."
    return told if alone else f"(of {', '.join(owners)}) {told}"


def from_flags(schema: type, flat: Any, default: Any, given: Set[str], place: str) -> Any:
    """The settings that a command line asks for.

    Args:
      schema: the class of the settings.
      flat: an instance of the class of `as_flags`, with the values of the command line.
      default: the settings that the flags change.
      given: the flags that were typed, such as "settings.kl.coefficient".
      place: of the settings among the flags, such as "settings".

    Raises:
      ValueError: one line for a setting of a part that was not chosen, or one without a value.
    """
    values = {}
    for field in _fields(schema):
        name, here = field.name, f"{place}.{field.name}"
        choice = choices(schema).get(name)
        before = getattr(default, name) if default is not None else _value(schema, name)
        if choice is None:
            # A part that was not chosen before has its defaults where nothing was typed.
            values[name] = getattr(flat, name) if _typed(here, given) else before
        else:
            values[name] = _chosen(choice, flat, name, before, given, here)
    if default is None:
        values = {name: x for name, x in values.items() if x is not None or _optional(schema, name)}
    return _made(schema, values, place)


def _typed(place: str, given: Set[str]) -> bool:
    above, _, last = place.rpartition(".")
    return place in given or f"{above}.no_{last}" in given


def _optional(schema: type, name: str) -> bool:
    return types.NoneType in _ranges.kinds(_annotation(schema, name))


def _chosen(choice: Choice, flat: Any, name: str, before: Any, given: Set[str], place: str) -> Any:
    """The part that a field holds after the command line."""
    owners = {n: [f.name for f in _fields(kind)] for n, kind in choice.kinds.items()}
    known = {name for names in owners.values() for name in names}
    typed = {
        f.removeprefix(f"{place}.").partition(".")[0] for f in given if f.startswith(f"{place}.")
    }
    # A switch is switched off by another name.
    wanted = {x if x in known else x.removeprefix("no_") for x in typed}
    if place in given:
        chosen = getattr(flat, name)
    elif before is None and wanted:
        # A setting of a part that is off switches the part on.
        fitting = [n for n, names in owners.items() if wanted <= {*names}]
        chosen = fitting[0] if fitting else NONE
    else:
        chosen = NONE if before is None else name_of(type(before))
    for setting in sorted(wanted - {*owners.get(chosen, ())}):
        fitting = [n for n, names in owners.items() if setting in names]
        flag = f"--{place}".replace("_", "-")
        told = f"{flag}.{setting.replace('_', '-')} is a setting of {', '.join(fitting)}, and {flag} is"
        if place in given and chosen != NONE:
            own = ", ".join(name.replace("_", "-") for name in owners[chosen]) or "no setting"
            raise ValueError(f"{told} {chosen}, which has {own}")
        raise ValueError(f"{told} {chosen}; add {' or '.join(f'{flag} {n}' for n in fitting)}")
    if chosen == NONE:
        return None
    kind = choice.kinds[chosen]
    same = before if type(before) is kind else None
    return from_flags(kind, getattr(flat, name + _BELOW), same, given, place)
