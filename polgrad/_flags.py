"""The flags of a command: a wrong one ends in one line that says which was meant.

tyro reads the flags from a dataclass, fills it and prints `--help`. What a command line can have
wrong is found here before that, from the same dataclass, because tyro tells it in a box of several
lines. What only tyro finds is taken from its box and put into one line as well.
"""

import contextlib
import dataclasses
import io
import re
import shlex
import sys
import types
import typing
from collections.abc import Callable, Iterator, Sequence, Set
from typing import Any, NamedTuple

import tyro

from polgrad import _names, _ranges

__all__ = ["FlagError", "Shown", "parsed"]

# Names that other libraries use, and the flags that mean the same here. Of the flags those are
# shown that the command has. docs/porting.md has a table for their users.
ELSEWHERE: dict[str, tuple[str, ...]] = {
    "lr learning-rate actor-lr policy-lr": ("--optimizer.learning-rate",),
    "batch-size train-batch-size per-device-train-batch-size rollout-batch-size bs": (
        "--rollouts.prompts",
        "--sequences",
    ),
    "gradient-accumulation-steps grad-accum accumulate-grad-batches": ("--update.micro-batches",),
    "mini-batch-size ppo-mini-batch-size num-minibatches": ("--update.mini-batches",),
    "num-generations n-samples-per-prompt rollout-n num-return-sequences generations n": (
        "--rollouts.group-size",
        "--samples",
    ),
    "max-new-tokens max-completion-length max-response-length max-length response-length": (
        "--rollouts.max-tokens",
        "--max-tokens",
    ),
    "model model-name model-name-or-path model-path actor-rollout-ref.model.path pretrain checkpoint run": (
        "--policy",
    ),
    "dataset dataset-name dataset-path data train-file train-files env environment": ("--task",),
    "output-dir output save-dir save-path logdir log-dir output-path default-local-dir": ("--out",),
    "epochs num-train-epochs num-epochs": ("--steps", "--update.epochs"),
    "ppo-epochs num-iterations num-ppo-epochs": ("--update.epochs",),
    "max-steps num-steps total-steps train-steps training-steps total-training-steps iterations": (
        "--steps",
    ),
    "adv-estimator advantage-estimator": ("--algorithm",),
    "loss-type": ("--algorithm", "--settings.aggregation"),
    "scale-rewards": ("--settings.scale", "--settings.advantage.scale"),
    "use-kl-in-reward": ("--settings.kl",),
    "max-grad-norm grad-clip gradient-clipping clip-grad-norm": ("--optimizer.max-gradient-norm",),
    "warmup-steps warmup-ratio lr-warmup-steps": ("--optimizer.warmup",),
    "lr-scheduler-type lr-scheduler scheduler lr-schedule": ("--optimizer.schedule",),
    "adam-beta1 beta1": ("--optimizer.b1",),
    "adam-beta2 beta2": ("--optimizer.b2",),
    "adam-epsilon eps": ("--optimizer.epsilon",),
    "wd": ("--optimizer.weight-decay",),
    "save-steps save-every save-freq save-interval": ("--saving.every",),
    "save-total-limit": ("--saving.keep",),
    "eval-steps eval-every eval-freq test-freq": ("--evaluation.every",),
    "reward reward-fn reward-funcs reward-function rewards-fn scorer verifier "
    "custom-reward-function.path": ("--rewards.functions",),
    "bf16 fp16 dtype torch-dtype precision mixed-precision": (
        "--update.compute-dtype",
        "--compute-dtype",
    ),
    "gradient-checkpointing": ("--update.remat", "--remat"),
    "wandb wandb-project report-to project-name": ("--saving.wandb",),
    "resume-from-checkpoint": ("--resume",),
    "temp": ("--rollouts.temperature", "--temperature"),
    "tp tensor-parallel-size fsdp-size dp data-parallel-size": ("--mesh",),
    "beta reference-kl kl-coef kl-loss-coef kl-coeff kl-coefficient kl-beta init-kl-coef": (
        "--settings.kl.coefficient",
        "--settings.beta",
        "--settings.kl-coefficient",
    ),
    "reference-kl-form": ("--settings.kl.gradient", "--settings.kl"),
    "overlong-buffer": ("--settings.overlong.buffer",),
    "mixture": ("--settings.opponent.weight",),
    "ent-coef entropy-coef entropy-coeff entropy-coefficient": ("--settings.entropy.coefficient",),
    "cliprange clip-range clip-eps clip-ratio epsilon epsilon-low epsilon-high": (
        "--settings.clip-low",
        "--settings.clip-high",
    ),
    "gamma": ("--settings.discount",),
    "lam gae-lambda lmbda": ("--settings.lambda_",),
    "num-samples k": ("--samples",),
    "num-problems limit max-samples": ("--problems", "--evaluation.problems"),
    "num-workers": ("--rewards.workers", "--workers"),
    "directory": ("--out",),
}
# Names that other libraries use, for which no flag here takes the same value.
NOWHERE = "total-epochs n-gpus-per-node use-vllm max-prompt-length logging-steps"
TRAIN = "polgrad train"
_HELP = {"-h", "--help"}
_WORDS = {int: "a whole number", float: "a number"}


class FlagError(ValueError):
    """A command line that cannot be used; the message is one line."""


class Shown(Exception):
    """What was asked for, the help, has been printed."""


class Flag(NamedTuple):
    """A field of the command's settings as its command line has it.

    Attributes:
      name: with its dashes; of a positional argument the field's name.
      kind: the type of one value, `Any` where only tyro knows it.
      optional: whether the text `None` is a value too.
      many: whether it takes any number of values.
      positional: whether it is given without its name.
      required: whether it has no default.
    """

    name: str
    kind: Any
    optional: bool
    many: bool
    positional: bool
    required: bool


def parsed(
    schema: type,
    arguments: Sequence[str],
    prog: str,
    switches: Sequence[str] = (),
    finish: Callable[[Any, Set[str]], Any] = lambda instance, given: instance,
    **settings: Any,
) -> Any:
    """The command line as an instance of a dataclass, with every value in its range.

    Args:
      schema: the dataclass; each of its fields is a flag.
      arguments: the command line behind the command.
      prog: the command, for the help.
      switches: flags without a value that the caller has read already, such as `--no-cache`.
      finish: `(instance, given) -> instance`, where the schema stands for another class; `given` are
        the flags that were typed, such as "settings.clip_high".
      **settings: passed to `tyro.cli`, such as `default`.

    Returns:
      The instance.

    Raises:
      FlagError: one line for a flag that is unknown or without a value, a missing one,
        and a value of a wrong type or outside its range.
      Shown: if the help was asked for and has been printed.
    """
    flags = {flag.name: flag for flag in _flags(schema)}
    given = "default" in settings
    if not _HELP & {*arguments}:
        known = flags | {name: Flag(name, bool, False, False, False, False) for name in switches}
        _check(list(arguments), known, prog, needs_all=not given)
    arguments = [a for a in arguments if not (_is_flag(a) and _normal(a) in switches)]
    told = io.StringIO()
    try:
        with contextlib.redirect_stderr(told):
            instance = tyro.cli(schema, args=arguments, prog=prog, **settings)
    except SystemExit as stop:
        if not stop.code:
            raise Shown from None
        raise FlagError(_condensed(told.getvalue())) from None
    except ValueError as error:
        raise FlagError(str(error)) from error
    sys.stderr.write(told.getvalue())
    given = {_normal(a.partition("=")[0])[2:].replace("-", "_") for a in arguments if _is_flag(a)}
    try:
        instance = finish(instance, given)
        _ranges.check(instance)
    except ValueError as error:
        raise FlagError(str(error)) from None
    return instance


def _flags(schema: type, prefix: str = "") -> Iterator[Flag]:
    """The flags of a dataclass and of the dataclasses in it."""
    declared = _ranges.hints(schema)
    for field in dataclasses.fields(schema):
        annotation = Any if declared is None else declared[field.name]
        kind, marked = _ranges.marks(annotation)
        # `_parts` gives a field another name.
        called = next((mark.name for mark in marked if getattr(mark, "name", None)), field.name)
        if dataclasses.is_dataclass(kind):
            yield from _flags(kind, f"{prefix}{_dashed(called)}.")
            continue
        required = (
            field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        )
        positional = tyro.conf.Positional in marked
        name = field.name if positional else f"--{prefix}{_dashed(field.name)}"
        again = tyro.conf.UseAppendAction in marked
        yield Flag(name, *_kind(kind, again), positional, required)


def _kind(kind: Any, again: bool) -> tuple[Any, bool, bool]:
    """Type of one value, whether None is one too, and whether there may be several."""
    options = _ranges.kinds(kind)
    optional = types.NoneType in options
    rest = [option for option in options if option is not types.NoneType]
    kind = rest[0] if len(rest) == 1 else Any
    arguments = typing.get_args(kind)
    if typing.get_origin(kind) is tuple and arguments == (str, ...):
        return str, optional, not again
    if kind in (int, float, str, bool) or typing.get_origin(kind) is typing.Literal:
        return kind, optional, False
    # Somebody's own settings may have any type that tyro knows: only their names are checked.
    return Any, optional, True


def _dashed(name: str) -> str:
    """A name as a flag has it; underscores at its ends stay."""
    inner = name.strip("_")
    start = len(name) - len(name.lstrip("_"))
    return name[:start] + inner.replace("_", "-") + name[start + len(inner) :]


def _normal(token: str) -> str:
    return "--" + ".".join(_dashed(part) for part in token[2:].split("."))


def _check(tokens: list[str], flags: dict[str, Flag], prog: str, *, needs_all: bool) -> None:
    """Reads a command line as tyro does, and raises at what is wrong with it."""
    inverse = {
        f"--{path}{dot}no-{last}": flag
        for name, flag in flags.items()
        if flag.kind is bool and not flag.positional
        for path, dot, last in [name[2:].rpartition(".")]
    }
    positionals = [flag for flag in flags.values() if flag.positional]
    seen: set[str] = set()
    before = None
    while tokens:
        token = tokens.pop(0)
        if token == "--" or token.startswith("--tyro-"):
            return
        if not _is_flag(token):
            if not positionals:
                raise FlagError(_unexpected(token, before, flags, prog))
            flag = positionals.pop(0)
            seen.add(flag.name)
            _check_value(flag, token)
            continue
        given, equals, attached = token.partition("=")
        name = _normal(given)
        flag = flags.get(name) or inverse.get(name)
        if flag is None or flag.positional:
            raise FlagError(_unknown(given, flags, prog))
        seen.add(flag.name)
        before = flag
        values = [attached] if equals else []
        if flag.kind is bool and not flag.optional:
            if equals:
                raise FlagError(_unexpected(attached, flag, flags, prog))
            continue
        while tokens and (flag.many or not values) and not _is_flag(tokens[0]):
            values.append(tokens.pop(0))
        if not values and not flag.many:
            raise FlagError(f"{flag.name} has no value; expected {_wanted(flag)}")
        for value in values:
            _check_value(flag, value, [n for n in flags if n.startswith(f"{flag.name}.")])
    missing = [f.name for f in flags.values() if f.required and f.name not in seen]
    if missing and needs_all:
        raise FlagError(f"{prog} needs {', '.join(missing)}; {prog} --help explains the flags")


def _is_flag(token: str) -> bool:
    """Whether a token is a flag and not a value; `-1` and `-inf` are values."""
    if re.fullmatch(r"-(inf|infinity|nan)", token, re.IGNORECASE):
        return False
    return token == "--" or (token.startswith("-") and token.lstrip("-")[:1].isalpha())


def _check_value(flag: Flag, text: str, below: Sequence[str] = ()) -> None:
    if flag.optional and text == "None":
        return
    if typing.get_origin(flag.kind) is typing.Literal:
        choices = [str(choice) for choice in typing.get_args(flag.kind)]
        if text not in choices:
            hint = _names.hint(text, choices)
            if below and re.fullmatch(r"[-+.\de]+", text):
                # A number of one of the parts that the flag chooses.
                hint = f"; its numbers are {', '.join(below)}"
            raise FlagError(f"{flag.name} is {_short(text)}; expected {_wanted(flag)}{hint}")
    if flag.kind in _WORDS:
        try:
            flag.kind(text)
        except ValueError:
            raise FlagError(f"{flag.name} is {_short(text)}; expected {_wanted(flag)}") from None


def _wanted(flag: Flag) -> str:
    if typing.get_origin(flag.kind) is typing.Literal:
        return f"one of {', '.join(map(str, typing.get_args(flag.kind)))}"
    return _WORDS.get(flag.kind, "a value")


def _unexpected(token: str, before: Flag | None, flags: dict[str, Flag], prog: str) -> str:
    given, equals, value = token.partition("=")
    if equals and re.fullmatch(r"[A-Za-z_][\w.-]*", given):
        # Other programs take their settings as `name=value`.
        known = [flag.name for flag in flags.values() if not flag.positional]
        name = _normal(f"--{given}")
        meant = [name] if name in known else _meant(name, known)
        if meant:
            written = " or ".join(_written(flags[flag], value) for flag in meant)
            return f"unexpected {_short(token)}; a flag begins with --: write {written}"
    if before is not None and before.kind is bool:
        return (
            f"unexpected {_short(token)} behind {before.name}, which takes no value; write "
            f"{_written(before, token)}"
        )
    behind = f" behind {before.name}, which takes one value" if before else ""
    return f"unexpected {_short(token)}{behind}; flags begin with -- ({_listed(prog, 'them')})"


def _written(flag: Flag, value: str) -> str:
    """A flag with its value as a shell takes them."""
    if flag.kind is bool:
        path, dot, last = flag.name[2:].rpartition(".")
        return f"{flag.name} or --{path}{dot}no-{last}"
    return f"{flag.name} {shlex.quote(value)}"


def _unknown(given: str, flags: dict[str, Flag], prog: str) -> str:
    """The line for a flag that the command lacks, with the flags that may be meant."""
    known = [flag.name for flag in flags.values() if not flag.positional]
    hints = _meant(_normal("--" + given.lstrip("-")), known)
    group = given.lstrip("-").partition(".")[0]
    if _normal("--" + given.lstrip("-")).split(".")[:2] in (
        ["--settings", "surrogate"],
        ["--settings", "advantage"],
    ) and not any(name.startswith("--settings.surrogate") for name in known):
        return f"unknown flag {_short(given)}; it belongs to --algorithm policy_gradient"
    if hints:
        return f"unknown flag {_short(given)}; did you mean {' or '.join(hints)}?"
    if group == "settings" and (own := [n for n in known if n.startswith("--settings.")]):
        return f"unknown flag {_short(given)}; the algorithm's settings are {', '.join(own)}"
    return f"unknown flag {_short(given)}; {_listed(prog, 'the flags')}"


def _listed(prog: str, flags: str) -> str:
    """Where the flags of a command, called `flags` in the line, can be read."""
    others = ", and docs/porting.md says how those of TRL and verl are written"
    return f"{prog} --help lists {flags}{others if prog == TRAIN else ''}"


def _meant(name: str, known: list[str]) -> list[str]:
    """Flags that somebody may have meant, the likeliest first."""
    group, _, plain = name[2:].rpartition(".")
    last = {flag: flag[2:].rpartition(".")[2] for flag in known}
    same = [flag for flag in known if last[flag] == plain]
    if plain in NOWHERE.split() and not same:
        return []
    # Of `custom_reward_function.path` the last part alone tells nothing.
    parts = name[2:].split(".")
    ends = {".".join(parts[index:]) for index in range(len(parts))}
    for names, targets in ELSEWHERE.items():
        if ends & {*names.split()} and (found := [t for t in targets if t in known]):
            # `--epsilon` of one library is the clip of another: both are shown.
            return found + [flag for flag in same if flag not in found][:2]
    if same:
        return same[:3]
    own = [flag for flag in known if flag[2:].rpartition(".")[0] == group]
    for flags, cutoff in ((own, 0.6), (known, 0.75)):
        begin = [flag for flag in flags if len(plain) > 2 and last[flag].startswith(plain)]
        close = _names.nearest(plain, [last[flag] for flag in flags], 2, cutoff)
        if found := begin or [flag for word in close for flag in flags if last[flag] == word]:
            return list(dict.fromkeys(found))[:3]
    return []


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")


def _condensed(box: str) -> str:
    """What tyro tells in a box, as one line without the box, colours and pointers to the help."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", box)
    plain = re.sub(r"[─━│┃╭╮╰╯┌┐└┘├┤╶╴•]", " ", plain)
    plain = re.sub(r"(For full|Argument) helptext.*", "", plain, flags=re.DOTALL)
    words = re.sub(r"^(Parsing|Value) error\s*", "", " ".join(plain.split()))
    return re.sub(r"^Error parsing \w+: ", "", words)
