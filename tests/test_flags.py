"""A wrong command line ends in one line that says which flag was meant; a right one is read."""

import dataclasses
import re
import typing

import pages
import pytest
from schemas import COMMANDS

from polgrad import _flags, _ranges, algorithms
from polgrad.cli.common import value_of
from polgrad.cli.train import train_schema
from polgrad.training import config

SCHEMAS = {
    "train": train_schema(algorithms.GRPO()),
    "ppo": train_schema(algorithms.PPO()),
    "dpo": train_schema(algorithms.DPO()),
    **COMMANDS,
}
RATE = "--optimizer.learning-rate"


def parse(command, line):
    arguments = line.split() if isinstance(line, str) else line
    return _flags.parsed(SCHEMAS[command], arguments, f"polgrad {command}")


UNKNOWN = [
    ("train", "--lr 1", [RATE]),
    ("train", "--optimizer.lr 1", [RATE]),
    ("train", "--learning_rate 1", [RATE]),
    ("train", "--batch-size 1", ["--rollouts.prompts"]),
    ("train", "--per_device_train_batch_size=1", ["--rollouts.prompts"]),
    ("train", "--model x", ["--policy"]),
    ("train", "--model_name_or_path x", ["--policy"]),
    ("train", "--dataset x", ["--task"]),
    ("train", "--beta 1", ["--settings.kl.coefficient"]),
    ("ppo", "--kl-coef 1", ["--settings.kl.coefficient"]),
    ("dpo", "--beta 1", ["--settings.beta"]),
    ("ppo", "--gamma 1", ["--settings.discount"]),
    ("ppo", "--gae-lambda 1", ["--settings.lambda_"]),
    ("train", "--epochs 1", ["--steps", "--update.epochs"]),
    ("train", "--num-generations 1", ["--rollouts.group-size"]),
    ("train", "--max-new-tokens 1", ["--rollouts.max-tokens"]),
    ("train", "--max-completion-length 1", ["--rollouts.max-tokens"]),
    ("train", "--max-tokens 1", ["--rollouts.max-tokens"]),
    ("sample", "--max-new-tokens 1", ["--max-tokens"]),
    ("train", "--output-dir x", ["--out"]),
    ("train", "--epsilon 1", ["--settings.clip-low", "--optimizer.epsilon"]),
    ("train", "--group-size 1", ["--rollouts.group-size"]),
    ("train", "--temp 1", ["--rollouts.temperature"]),
    ("train", "--rollouts.temp 1", ["--rollouts.temperature"]),
    ("train", "--reward-fn x", ["--rewards.functions"]),
    ("train", "--tsak x", ["--task"]),
    ("train", "--step 1", ["--steps"]),
    ("train", "--settings.clip-hihg 1", ["--settings.clip-high"]),
    ("dpo", "--settings.nosuch 1", ["--settings.beta"]),
    ("train", "--no-resum", ["--resume"]),
    ("train", "--nothing-of-the-kind 1", ["polgrad train --help"]),
    ("train", "-x 1", ["polgrad train --help"]),
    ("run", "nash_md --seed 1", ["--seeds"]),
    ("compile", "--policy x --batch-size 1", ["--sequences"]),
    ("list", "tasks --all", ["polgrad list --help"]),
]


PORTED = re.compile(r"\| (?:`(\w+)`)? ?\| (?:`([\w.]+)`)? ?\| (?:`(--[\w.-]+)`|none: )")
PORTS = [
    (name, found[3])
    for found in map(PORTED.match, pages.lines("porting"))
    for name in (found.groups()[:2] if found else ())
    if name
]


@pytest.mark.parametrize(("name", "flag"), PORTS)
def test_a_name_of_another_library_names_its_flag(name, flag):
    """Each row of the table in docs/porting.md."""
    for line in (f"--{name} 1", f"{name}=1"):
        with pytest.raises(_flags.FlagError) as caught:
            parse("train", line)
        found = re.findall(r"(?:mean|write|or) (--[\w.-]+)", str(caught.value))
        assert found[:1] == ([flag] if flag else []), caught.value
        assert bool(flag) or "docs/porting.md" in str(caught.value)


def test_the_table_of_names_is_read():
    assert len(PORTS) > 30 and ("scale_rewards", "--settings.scale") in PORTS
    assert ("use_vllm", None) in PORTS


@pytest.mark.parametrize(("command", "line", "meant"), UNKNOWN)
def test_an_unknown_flag_tells_which_was_meant(command, line, meant):
    with pytest.raises(_flags.FlagError) as caught:
        parse(command, line)
    message = str(caught.value)
    assert message.startswith("unknown flag '-") and "\n" not in message and len(message) < 300
    assert all(flag in message for flag in meant), message


WRONG = [
    ("train", "--steps x", "--steps is 'x'; expected a whole number"),
    ("train", "--steps 1.5", "--steps is '1.5'; expected a whole number"),
    ("train", "--steps=", "--steps is ''; expected a whole number"),
    ("train", "--rollouts.temperature hot", "--rollouts.temperature is 'hot'; expected a number"),
    ("train", "--probe maybe", "--probe is 'maybe'; expected one of on, off"),
    ("train", "--update.remat ful", "did you mean full?"),
    ("train", "--settings.scale grup", "expected one of group, batch, none; did you mean group?"),
    ("train", "--steps", "--steps has no value; expected a whole number"),
    ("train", "--steps --seed 1", "--steps has no value"),
    ("train", "--task --seed 1", "--task has no value"),
    ("train", "--resume true", "unexpected 'true' behind --resume, which takes no value"),
    ("train", "--resume=true", "write --resume or --no-resume"),
    ("train", "--data.chat-template no", "write --data.chat-template or --data.no-chat-template"),
    ("train", "extra", "unexpected 'extra'"),
    ("train", "algorithm.clip_high=0.3", "write --settings.clip-high 0.3"),
    ("ppo", "--steps 3 algorithm.gamma=1", "write --settings.discount 1"),
    ("train", "actor_rollout_ref.actor.optim.lr=1e-6", f"write {RATE} 1e-6"),
    ("train", "--resume data.train_batch_size=8", "write --rollouts.prompts 8"),
    ("train", "rollouts.max_tokens=5", "begins with --: write --rollouts.max-tokens 5"),
    ("train", "data.chat_template=false", "write --data.chat-template or --data.no-chat-template"),
    ("train", ["out=a b"], "write --out 'a b'"),
    ("run", "nash_md seeds=3", "write --seeds 3"),
    (
        "train",
        "trainer.nnodes=1",
        "flags begin with -- (polgrad train --help lists them, and docs/",
    ),
    ("sample", "trainer.nnodes=1", "flags begin with -- (polgrad sample --help lists them)"),
    ("train", "--steps 1 2", "unexpected '2' behind --steps, which takes one value"),
    ("train", "--steps 0", "steps is 0; expected a whole number of at least 1"),
    ("train", "--seed 4294967296", "seed is 4294967296; expected a whole number in [0, 2^32)"),
    ("train", "--rollouts.temperature nan", "rollouts.temperature is nan"),
    ("train", "--rollouts.temperature -inf", "rollouts.temperature is -inf"),
    ("train", "--optimizer.b1 -1", "optimizer.b1 is -1.0; expected a number in [0, 1)"),
    ("train", "--settings.clip-low nan", "settings.clip_low is nan"),
    ("train", ["--out", ""], "out is ''; expected a text that is not empty"),
    ("sample", "--prompt a", "polgrad sample needs --policy"),
    (
        "sample",
        "",
        "polgrad sample needs --policy, --prompt; polgrad sample --help explains the flags",
    ),
    ("sample", "--policy a --prompt b --top-p 2", "top_p is 2.0; expected a number in (0, 1]"),
    (
        "sample",
        "--policy a --prompt b --max-tokens 0",
        "max_tokens is 0; expected a whole number of at least 1",
    ),
    (
        "evaluate",
        "--policy a --max-tokens 0",
        "max_tokens is 0; expected a whole number of at least 1",
    ),
    ("evaluate", "--policy a --problems 0", "problems is 0; expected a whole number of at least 1"),
    ("evaluate", "--policy a --samples -1", "samples is -1; expected a whole number in [0, 65536]"),
    ("export", "--policy a", "polgrad export needs --out"),
    ("run", "", "polgrad run needs name"),
    ("run", "a b", "unexpected 'b'"),
    ("run", "a --seeds 0", "seeds is 0; expected a whole number in [1, 65536]"),
    ("sweep", "a --workers 0", "workers is 0; expected a whole number in [1, 1024]"),
    ("sweep", "a --cpus nan", "cpus is nan"),
    ("report", "a b", "unexpected 'b'"),
    ("compile", "--policy a --remat some", "expected one of none, dots, full"),
    (
        "compile",
        "--policy a --group-size 0",
        "group_size is 0; expected a whole number of at least 1",
    ),
    ("compile", "--policy a --sequences 9", "sequences is 9, expected a multiple of group_size 8"),
    ("list", "task", "kind is 'task'; expected one of algorithms, tasks"),
]


@pytest.mark.parametrize(("command", "line", "expected"), WRONG)
def test_a_wrong_value_is_one_line_that_names_the_flag(command, line, expected):
    with pytest.raises(_flags.FlagError) as caught:
        parse(command, line)
    assert expected in str(caught.value) and "\n" not in str(caught.value)


def test_right_lines_are_read():
    found = parse(
        "train",
        "--steps=3 --rollouts.max_tokens 5 --data.no-chat-template --optimizer.weight-decay 1e-2 "
        "--data.parameters a=1 b=-2 --mesh data=1 --saving.wandb None --settings.clip-high .3",
    )
    assert (found.steps, found.rollouts.max_tokens, found.data.chat_template) == (3, 5, False)
    assert found.data.parameters == ("a=1", "b=-2") and found.saving.wandb is None
    assert found.settings.clip_high == 0.3 and found.optimizer.weight_decay == 0.01
    found = parse("sample", ["--policy", "p", "--prompt=--x", "--temperature", "0"])
    assert found.prompt == "--x" and found.max_tokens is None
    assert parse("sample", ["--policy", "p", "--prompt", "-1 + 2 ="]).prompt == "-1 + 2 ="
    found = parse("run", "--set a=1 nash_md --set b=2")
    assert (found.name, found.set) == ("nash_md", ("a=1", "b=2"))
    assert parse("list", "").kind == "algorithms"
    default = dataclasses.replace(config.TrainConfig(), steps=7)
    settings = {"default": default}
    assert _flags.parsed(config.TrainConfig, ["--seed", "1"], "polgrad", **settings).steps == 7


@pytest.mark.parametrize("command", SCHEMAS)
def test_the_table_of_flags_is_that_of_the_help(command, capsys):
    with pytest.raises(_flags.Shown):
        parse(command, "--help")
    text = capsys.readouterr().out
    names = [flag.name for flag in _flags._flags(SCHEMAS[command]) if not flag.positional]
    assert all(name in text for name in names)
    assert "__tyro" not in text and "[STR] of" not in text


def test_the_help_tells_ranges(capsys):
    with pytest.raises(_flags.Shown):
        parse("train", "--help")
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for words in ("At least 1.", "In [0, 1).", "In [0, 2^32).", "Above 0.", "At least 1e-06."):
        assert words in text


@pytest.mark.parametrize(
    ("command", "line", "words"),
    [
        ("train", "--nosuch 1", ["--nosuch"]),
        ("train", "--steps x", ["--steps", "x"]),
        ("train", "--probe maybe", ["--probe", "maybe", "on"]),
        ("train", "--steps", ["--steps"]),
        ("sample", "--prompt a", ["--policy"]),
    ],
)
def test_what_only_the_parser_finds_is_one_line_too(command, line, words, monkeypatch):
    monkeypatch.setattr(_flags, "_check", lambda *_, **__: None)
    with pytest.raises(_flags.FlagError) as caught:
        parse(command, line)
    message = str(caught.value)
    assert "\n" not in message and not {*"─│╭╯\x1b"} & {*message} and "helptext" not in message
    assert all(word in message for word in words), message


def test_every_flag_that_is_pointed_to_is_there():
    schemas = [train_schema(found()) for found in algorithms.NAMES.values()]
    known = {flag.name for s in (*schemas, *SCHEMAS.values()) for flag in _flags._flags(s)}
    targets = {flag for flags in _flags.ELSEWHERE.values() for flag in flags}
    assert targets <= known
    names = [name for names in _flags.ELSEWHERE for name in names.split()]
    assert len(names) == len(set(names))


def test_settings_of_ones_own_may_have_any_type():
    @dataclasses.dataclass(frozen=True)
    class Own:
        """Own."""

        pair: tuple[int, int] = (1, 2)
        either: typing.Literal["auto"] | float = 1.0
        hidden: "nowhere" = 3  # noqa: F821

    flags = list(_flags._flags(Own))
    assert [flag.name for flag in flags] == ["--pair", "--either", "--hidden"]
    table = {flag.name: flag for flag in flags}
    _flags._check(["--pair", "1", "2", "--either", "auto"], table, "polgrad", needs_all=True)
    assert _ranges.hints(Own) is None


def test_the_last_of_several_values_counts():
    """A script may add flags to a command line that has them already."""
    parsed = parse("train", "--steps 1 --data.test-size 1 --resume --steps=2 --data.test_size=3")
    assert (parsed.steps, parsed.data.test_size, parsed.resume) == (2, 3, True)
    assert not parse("train", "--resume --no-resume").resume
    assert value_of(["--out", "a", "--out=b"], "--out") == "b"
