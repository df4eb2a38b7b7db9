"""Every number of every settings class has a range, and what lies outside is refused in one line."""

import dataclasses
import math
import types
import typing

import numpy as np
import pytest

from polgrad import _ranges, algorithms
from polgrad._ranges import Filled, Range
from polgrad.cli.evaluate import Evaluate
from polgrad.cli.export import Export
from polgrad.cli.listing import Listing
from polgrad.cli.report import Report
from polgrad.cli.run import RunExperiment
from polgrad.cli.sample import Sample
from polgrad.cli.sweep import Sweep
from polgrad.rehearsal import compiling
from polgrad.training import config
from polgrad.training.config import Rewards, TrainConfig
from polgrad.training.runtime import hosts, mesh
from polgrad.training.setup import building, checks, footprint, problems

REQUIRED = {"policy": "p", "prompt": "p", "out": "o", "name": "n"}


def schemas():
    """Every settings class of the command, by name, with the classes in it."""
    found = [TrainConfig, Sample, Evaluate, Export, RunExperiment, Sweep]
    found += [Report, Listing, compiling.Rehearsal]
    for schema in found:
        for annotation in _ranges.hints(schema).values():
            kind, _ = _ranges.marks(annotation)
            if dataclasses.is_dataclass(kind) and kind not in found:
                found.append(kind)
    return found


def options(kind):
    return _ranges.kinds(kind)


def fields():
    for schema in schemas():
        for name, annotation in _ranges.hints(schema).items():
            kind, marked = _ranges.marks(annotation)
            yield schema, name, kind, marked


def ranges():
    for schema, name, kind, marked in fields():
        for mark in marked:
            if isinstance(mark, Range):
                yield pytest.param(
                    schema, name, float not in options(kind), mark, id=f"{schema.__name__}.{name}"
                )


def settings(schema, **changes):
    needed = {f.name for f in dataclasses.fields(schema) if f.default is dataclasses.MISSING}
    needed &= REQUIRED.keys()
    return schema(**({name: REQUIRED[name] for name in needed} | changes))


def refused(schema, **changes):
    with pytest.raises(ValueError) as caught:
        _ranges.check(settings(schema, **changes))
    message = str(caught.value)
    (name,) = changes
    assert message.startswith(f"{name} is ") and "expected" in message and "\n" not in message
    assert len(message) < 300
    return message


def just_outside(bounds, whole):
    low, high = (-math.inf, math.inf)
    step = (lambda x, to: x + (1 if to > x else -1)) if whole else _neighbour
    values = [bounds.above, bounds.below]
    values += [None if bounds.at_least is None else step(bounds.at_least, low)]
    values += [None if bounds.at_most is None else step(bounds.at_most, high)]
    values += [2**31] if whole and bounds.at_most is None and bounds.below is None else []
    values += [2**70, -(2**70), 10**5000] if whole else [1e39, -1e39, 1e-40, 10**400]
    return [value for value in values if value is not None] + [-math.inf]


def _neighbour(x, to):
    return float(np.nextafter(np.float64(x), np.float64(to)))


def ends(bounds, whole):
    values = [bounds.at_least, bounds.at_most]
    if bounds.above is not None:
        values.append(bounds.above + (1 if whole else 1e-6))
    if bounds.below is not None:
        values.append(bounds.below - (1 if whole else 1e-6))
    if whole and bounds.at_most is None and bounds.below is None:
        values.append(2**31 - 1)
    return [value for value in values if value is not None]


def test_every_number_has_a_range():
    without = [
        f"{schema.__name__}.{name}"
        for schema, name, kind, marked in fields()
        if {int, float} & {*options(kind)} and not any(isinstance(m, Range) for m in marked)
    ]
    assert len(schemas()) > 15 and not without


@pytest.mark.parametrize(("schema", "name", "whole", "bounds"), list(ranges()))
def test_a_number_outside_its_range_is_refused(schema, name, whole, bounds):
    for value in just_outside(bounds, whole):
        refused(schema, **{name: value})
    for value in (math.nan, math.inf, "3", True, [1], (1,), {}, b"1", 1.5 if whole else "1.5"):
        refused(schema, **{name: value})


@pytest.mark.parametrize(("schema", "name", "whole", "bounds"), list(ranges()))
def test_the_ends_of_a_range_are_allowed(schema, name, whole, bounds):
    allowed = ends(bounds, whole)
    assert allowed
    for value in allowed:
        assert bounds.problem(value, whole=whole) is None
        if schema is not compiling.Rehearsal:  # whose own rules tie its fields to each other
            _ranges.check(settings(schema, **{name: value}))


@pytest.mark.parametrize(
    ("bounds", "value", "whole", "expected"),
    [
        (Range(at_least=0), -1, False, "a number of at least 0"),
        (Range(above=0, at_most=1), 2, False, "a number in (0, 1]"),
        (Range(below=1), 1, False, "a number below 1"),
        (Range(), math.nan, False, "a finite number"),
        (Range(at_least=0), math.inf, False, "a finite number"),
        (Range(), 1e300, False, "a number that float32 can hold (up to 3.4e38)"),
        (Range(at_least=0), 10**400, False, "a number that float32 can hold (up to 3.4e38)"),
        (Range(at_most=1), 1e300, False, "a number of at most 1"),
        (Range(above=0), True, False, "a number above 0"),
        (Range(at_least=1), 2.0, True, "a whole number of at least 1"),
        (Range(at_most=3, reason="so"), 4, True, "a whole number of at most 3 (so)"),
        (Range(at_least=1), 2**31, True, "a whole number of at most 2147483647, because JAX"),
        (Range(), 1e-40, False, "0, or a number of size 1.2e-38 and more"),
        (Range(above=0), 1e-40, False, "a number of size 1.2e-38 and more"),
    ],
)
def test_a_message_says_what_number_was_expected(bounds, value, whole, expected):
    assert bounds.problem(value, whole=whole).startswith(expected)


@pytest.mark.parametrize("schema", schemas())
def test_values_of_another_type_are_refused(schema):
    for name, annotation in _ranges.hints(schema).items():
        kind, marked = _ranges.marks(annotation)
        if kind is typing.Any:
            continue
        for value in (object(), b"x", {"a": 1}, [1], (1,), 7j):
            refused(schema, **{name: value})
        if type(None) not in options(kind):
            refused(schema, **{name: None})
        if any(isinstance(mark, Filled) for mark in marked):
            refused(schema, **{name: ""})
            refused(schema, **{name: " \n"})
        if str not in options(kind):
            refused(schema, **{name: "nosuch"})


@pytest.mark.parametrize("schema", schemas())
def test_the_defaults_are_in_range_and_the_help_tells_the_ranges(schema):
    _ranges.check(settings(schema))
    text = " ".join(schema.__doc__.split())
    for annotation in _ranges.hints(schema).values():
        for mark in _ranges.marks(annotation)[1]:
            if isinstance(mark, Range):
                assert f"{str(mark)[0].upper()}{str(mark)[1:]}." in text


def test_numbers_of_numpy_and_lists_become_those_of_python():
    made = TrainConfig(
        steps=np.int64(3),
        parity_tolerance=np.float32(0.5),
        rewards=Rewards(memory=np.int32(512), functions=["my.py:a", "my.py:b"]),
    )
    _ranges.check(made)
    assert made == dataclasses.replace(
        TrainConfig(),
        steps=3,
        parity_tolerance=0.5,
        rewards=Rewards(memory=512, functions=("my.py:a", "my.py:b")),
    )
    kinds = [type(v) for v in (made.steps, made.parity_tolerance, made.rewards.memory)]
    assert kinds == [int, float, int] and type(made.rewards.functions) is tuple
    for wrong in (np.bool_(True), np.int64(-1), np.float64(3.0), [3]):
        with pytest.raises(ValueError, match="steps is "):
            _ranges.check(TrainConfig(steps=wrong))
    with pytest.raises(ValueError, match=r"rewards\.functions is \[1\]"):
        _ranges.check(TrainConfig(rewards=Rewards(functions=[1])))


@dataclasses.dataclass(frozen=True)
class Endless:
    limit: float = math.inf
    other: float | None = None
    bounds: tuple[float, float] = (0.0, 1.0)


def test_a_foreign_setting_is_infinite_only_where_its_default_is():
    _ranges.check(TrainConfig(settings=Endless(bounds=(0.0, math.inf))))
    for value in (math.inf, -math.inf):
        with pytest.raises(ValueError, match=r"settings\.other is -?inf; expected a finite"):
            _ranges.check(TrainConfig(settings=Endless(other=value)))


@pytest.mark.parametrize("name", sorted(algorithms.NAMES))
def test_nan_in_an_algorithms_setting_is_refused(name):
    found = algorithms.find(name)
    numbers = [f.name for f in dataclasses.fields(found) if type(f.default) is float]
    for field in numbers:
        with pytest.raises(ValueError, match=rf"settings\.{field} is nan; expected a number"):
            _ranges.check(TrainConfig(settings=dataclasses.replace(found(), **{field: math.nan})))


def nested(path, value):
    """Settings of a run with one of them changed."""
    *groups, name = path.split(".")
    change = {name: value}
    for depth in reversed(range(len(groups))):
        part = TrainConfig()
        for group in groups[: depth + 1]:
            part = getattr(part, group)
        change = {groups[depth]: dataclasses.replace(part, **change)}
    return dataclasses.replace(TrainConfig(), **change)


ATTACKS = [
    ("rollouts.temperature", math.nan, "at least 1e-06"),
    ("rollouts.temperature", math.inf, "a finite number"),
    ("rollouts.temperature", -1.0, "at least 1e-06"),
    ("rollouts.slots", 0, "at least 2"),
    ("rollouts.slots", 1, "at least 2"),
    ("rollouts.max_tokens", 0, "at least 1"),
    ("rollouts.prompts", -1, "at least 1"),
    ("update.chunk", 0, "at least 1"),
    ("update.max_skipped", 0, "at least 1"),
    ("warm_start.steps", -1, "at least 0"),
    ("warm_start.batch", 0, "at least 1"),
    ("warm_start.demonstrations", 0, "at least 1"),
    ("warm_start.optimizer.b2", 1.0, r"in \[0, 1\)"),
    ("rewards.workers", 0, r"in \[1, 1024\]"),
    ("rewards.workers", 10**6, r"in \[1, 1024\]"),
    ("rewards.timeout", 0.0, r"in \(0, 1000000\]"),
    ("rewards.timeout", 1e12, r"in \(0, 1000000\]"),
    ("rewards.failure_limit", 2.0, r"in \[0, 1\]"),
    ("rewards.failure_limit", -0.1, r"in \[0, 1\]"),
    ("rewards.functions", "mine.py:f", "a tuple of texts"),
    ("evaluation.problems", -1, "at least 0"),
    ("evaluation.samples", -1, r"in \[0, 65536\]"),
    ("evaluation.every", -1, "at least 0"),
    ("seed", 2**70, "JAX's keys keep 32 bits"),
    ("seed", 2**32, "JAX's keys keep 32 bits"),
    ("seed", -1, r"in \[0, 2\^32\)"),
    ("data.seed", 2**32, "JAX's keys keep 32 bits"),
    ("data.held_out", 1.0, r"in \[0, 1\)"),
    ("data.held_out", math.nan, r"in \[0, 1\)"),
    ("data.test_size", 0, r"in \[1, 100000000\]"),
    ("data.train_size", 10**12, r"in \[1, 100000000\]"),
    ("optimizer.learning_rate", math.nan, r"in \(0, 100\]"),
    ("optimizer.learning_rate", math.inf, r"in \(0, 100\]|finite"),
    ("optimizer.learning_rate", 1e30, r"in \(0, 100\]"),
    ("optimizer.learning_rate", 1e-50, "no update changes the policy"),
    ("optimizer.weight_decay", math.nan, "at least 0"),
    ("optimizer.b1", 2.0, r"in \[0, 1\)"),
    ("optimizer.b1", 0.99999999999, r"in \[0, 1\)"),
    ("optimizer.b2", -1.0, r"in \[0, 1\)"),
    ("optimizer.epsilon", -1.0, "above 0"),
    ("optimizer.epsilon", 0.0, "above 0"),
    ("optimizer.max_gradient_norm", -1.0, "at least 0"),
    ("optimizer.schedule", "step", "one of 'constant', 'linear', 'cosine'"),
    ("saving.every", 0, "at least 1"),
    ("saving.samples_every", 0, "at least 1"),
    ("saving.wandb", "project", "needs the package wandb"),
    ("saving.checkpoints", "gs://bucket/run", "needs the package gcsfs"),
    ("saving.checkpoints", "ftp://bucket/run", "expected a directory, or an address"),
    ("hosts.deadline", 0.0, r"in \(0, 1000000\]"),
    ("hosts.processes", 0, "at least 1"),
    ("hosts.process", -1, "at least 0"),
    ("small.heads", 0, r"in \[1, 1024\]"),
    ("small.width", 10**9, r"in \[1, 65536\]"),
    ("parity_tolerance", math.nan, "at least 0"),
    ("parity_tolerance", -1.0, "at least 0"),
    ("steps", "3", "a whole number"),
    ("steps", 2**31, "JAX counts in 32 bits"),
    ("out", "", "a text that is not empty"),
    ("task", "", "a text that is not empty"),
    ("probe", "maybe", "one of 'on', 'off'"),
    ("data", {"seed": 1}, "expected Data"),
]


@pytest.mark.parametrize(("path", "value", "expected"), ATTACKS)
def test_a_run_with_a_setting_out_of_range_is_refused_before_anything_is_written(
    path, value, expected, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(building.hosts, "join", lambda *_: pytest.fail("went on"))
    find = checks.importlib.util.find_spec
    missing = ("gcsfs", "tensorflow", "wandb")
    monkeypatch.setattr(
        checks.importlib.util, "find_spec", lambda name: None if name in missing else find(name)
    )
    with pytest.raises(ValueError, match=expected) as caught:
        building.build(nested(path, value))
    assert path in str(caught.value) and "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("there", ["gcsfs", "tensorflow"])
def test_googles_store_is_opened_by_either_package(there, monkeypatch):
    monkeypatch.setattr(
        checks.importlib.util, "find_spec", lambda name: True if name == there else None
    )
    checks.check_settings(nested("saving.checkpoints", "gs://bucket/run"))
    with pytest.raises(ValueError, match="needs the package s3fs"):
        checks.check_settings(nested("saving.checkpoints", "s3://bucket/run"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("data=1,data=1", "'data' twice"),
        ("data=1,", "mesh has ''"),
        (",", "mesh has ''"),
        ("data=0", "a size of at least 1"),
        ("data=-1", "axis=size"),
        ("data=²", "axis=size"),
        ("data=99999999999", "axis=size"),
        ("rows=2", "data, fsdp, tensor"),
        ("data", "axis=size"),
    ],
)
def test_a_mesh_that_cannot_be_read_is_named(text, expected):
    with pytest.raises(ValueError, match=expected):
        mesh.parse(text)


DEEP = "[" * 200_000


@pytest.mark.parametrize(
    ("pairs", "expected"),
    [
        ((f"a={DEEP}",), "data.parameters: a: it is nested too deeply"),
        (("a=NaN",), "data.parameters: a: NaN is not a number"),
        (("a=-Infinity",), "-Infinity is not a number"),
        (("a=" + "9" * 5000,), "data.parameters: a: "),
        (("a=1", "a=2"), "'a' twice"),
        (("a",), "expected name=value"),
        (("=1",), "expected name=value"),
    ],
)
def test_parameters_that_cannot_be_read_are_named(pairs, expected):
    with pytest.raises(ValueError, match=expected) as caught:
        problems.parse_parameters(pairs)
    assert len(str(caught.value)) < 200
    assert problems.parse_parameters(("a=1", "b=x", "c=[1]")) == {"a": 1, "b": "x", "c": [1]}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"small": config.Small(layers=1024, width=65536, mlp=262144)}, "parameters, which need"),
        ({"rollouts": config.Rollouts(max_tokens=10**9)}, "completions of up to 1,000,000,000"),
        ({"rollouts": config.Rollouts(prompts=2**31 - 1, max_tokens=100)}, "lower rollouts.max"),
    ],
)
def test_what_no_memory_holds_is_refused_before_it_is_made(changes, expected, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(f'{{"prompt": "{i}=", "answer": "{i}"}}\n' for i in range(10)))
    data = config.Data(held_out=0.0)
    settings = TrainConfig(task=str(path), data=data, out=str(tmp_path / "run"), mesh="data=1")
    with pytest.raises(ValueError, match=expected) as caught:
        building.build(dataclasses.replace(settings, **changes))
    assert "GiB" in str(caught.value) and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("width", "told"),
    [
        (30, "small.width 30 / small.heads 4 leaves 7.5 numbers a head; .*such as .*width 32$"),
        (33, "small.width 33 / small.heads 4 leaves 8.25 numbers a head; .*such as .*width 40$"),
        (12, "leaves 3 numbers a head; expected an even whole number"),
    ],
)
def test_the_heads_of_the_small_policy_share_its_width(width, told, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "1=", "answer": "1"}\n')
    settings = TrainConfig(
        task=str(path),
        data=config.Data(held_out=0.0),
        out=str(tmp_path / "run"),
        mesh="data=1",
        small=config.Small(width=width, layers=1, mlp=8),
    )
    with pytest.raises(ValueError, match=told):
        building.build(settings)
    assert not (tmp_path / "run").exists()


def test_the_memory_of_the_machine_is_that_of_its_container(tmp_path, monkeypatch):
    limit = tmp_path / "memory.max"
    limit.write_text("1048576\n")
    monkeypatch.setattr(footprint, "_LIMITS", (str(limit), str(tmp_path / "absent")))
    assert footprint.host_memory() == 2**20
    limit.write_text("max\n")
    assert footprint.host_memory() > 2**20


def test_the_memory_of_a_mesh_of_cpus_is_that_of_all_its_hosts(monkeypatch):
    monkeypatch.setattr(footprint, "host_memory", lambda: 100.0)
    devices = [types.SimpleNamespace(platform="cpu", process_index=i // 2) for i in range(6)]
    assert footprint.memory(types.SimpleNamespace(devices=np.array(devices))) == 300.0


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        (text, "expected host:port")
        for text in ("junk", "junk:", ":80", "a:b", "a:0", "a:70000", "http://a:1", "a b:1", "a:-1")
    ],
)
def test_a_coordinator_that_is_no_address_is_named(address, expected):
    given = config.Hosts(coordinator=address, processes=2, process=0)
    with pytest.raises(ValueError, match=expected):
        hosts._arguments(given, {})


def test_addresses_that_can_be():
    for address in ("a:1", "10.0.0.1:8476", "[::1]:8476", "host.name-x:65535"):
        hosts._check_address(address)


def test_a_coordinator_that_nobody_can_be_reached_at_is_told(monkeypatch):
    monkeypatch.setattr(hosts.jax.distributed, "initialize", lambda **_: pytest.fail("went on"))
    with hosts.socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
        arguments = {"coordinator_address": address, "num_processes": 2, "process_id": 1}
        with pytest.raises(hosts.HostError, match="nobody listens at hosts.coordinator"):
            hosts._initialize(arguments, 0.01)
        free.listen()
        with pytest.raises(ValueError, match="cannot listen at port"):
            hosts._initialize(arguments | {"process_id": 0}, 0.01)
        hosts._wait_for(address, 0.01)


@pytest.mark.parametrize(
    ("raised", "kind", "expected"),
    [
        (ValueError("coordinator_address should be defined."), ValueError, "hosts.auto: JAX finds"),
        (RuntimeError("must be called before"), hosts.HostError, "cannot join the run"),
    ],
)
def test_what_jax_says_when_it_cannot_join_is_one_line(raised, kind, expected, monkeypatch):
    def initialize(**_):
        raise raised

    monkeypatch.setattr(hosts.jax.distributed, "initialize", initialize)
    with pytest.raises(kind, match=expected):
        hosts._initialize({}, 1.0)


@pytest.mark.parametrize("text", ["²", "two", "-1", "1.0", "", "9" * 20])
def test_a_number_of_processes_that_is_none_names_its_variable(text):
    variables = {"JAX_COORDINATOR_ADDRESS": "a:1", "JAX_PROCESS_ID": "0"}
    with pytest.raises(ValueError, match="JAX_NUM_PROCESSES"):
        hosts._arguments(config.Hosts(), variables | {"JAX_NUM_PROCESSES": text})
    with pytest.raises(ValueError, match="JAX_NUM_PROCESSES is 0; expected at least 1"):
        hosts._arguments(config.Hosts(), variables | {"JAX_NUM_PROCESSES": "0"})
