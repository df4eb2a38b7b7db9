"""Settings that hold other settings: names, JSON and flags."""

import dataclasses
import json
from typing import Literal

import pytest

from polgrad import _flags, _parts, algorithms
from polgrad.cli.train import _train_settings, train_schema
from polgrad.contract import Average, Initial, Previous
from polgrad.training.config import TrainConfig
from polgrad.training.setup import earlier, run_files


@dataclasses.dataclass(frozen=True)
class Far:
    """Far.

    Attributes:
      strength: how much.
      anchor: of whom.
    """

    strength: float = 0.5
    anchor: Initial | Previous | Average = Initial()


@dataclasses.dataclass(frozen=True)
class NearBy:
    """Near.

    Attributes:
      strength: how much.
      form: which.
    """

    strength: float = 0.25
    form: Literal["a", "b"] = "a"


@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings.

    Attributes:
      clip: a number.
      on: a switch.
      term: a part or none.
      way: a part.
    """

    clip: float = 0.2
    on: bool = False
    term: Far | NearBy | None = None
    way: NearBy | Far = NearBy()


def parsed(line, default=Settings()):
    """The settings that a command line makes of the default."""
    flat = _parts.as_flags(Settings, default)
    schema = dataclasses.make_dataclass(
        "Schema", [("settings", type(flat), dataclasses.field(default=flat))], frozen=True
    )
    return _flags.parsed(
        schema,
        line.split(),
        "test",
        finish=lambda x, given: Settings(
            **vars(_parts.from_flags(Settings, x.settings, default, given, "settings"))
        ),
        default=schema(),
    )


def test_names_of_classes():
    names = {"KL": "kl", "RewardKL": "reward_kl", "PPOClip": "ppo_clip", "CISPO": "cispo"}
    names |= {"KLCov": "kl_cov", "GroupRelative": "group_relative", "DrGRPO": "dr_grpo"}
    assert {n: _parts.name_of(type(n, (), {})) for n in names} == names


LINES = [
    ("", Settings()),
    ("--settings.clip 0.3 --settings.on", Settings(clip=0.3, on=True)),
    ("--settings.term near_by", Settings(term=NearBy())),
    # A setting of a part that is off switches on the first part that has it.
    ("--settings.term.strength 2", Settings(term=Far(2.0))),
    ("--settings.term.form b", Settings(term=NearBy(form="b"))),
    ("--settings.term near_by --settings.term.strength 2", Settings(term=NearBy(2.0))),
    ("--settings.way.strength=3 --settings.way=far", Settings(way=Far(3.0))),
    (
        "--settings.term far --settings.term.anchor previous --settings.term.anchor.every 3",
        Settings(term=Far(anchor=Previous(3))),
    ),
    ("--settings.term.anchor.decay 0.5 --settings.term.anchor average",
     Settings(term=Far(anchor=Average(0.5)))),
]  # fmt: skip


@pytest.mark.parametrize(("line", "wanted"), LINES)
def test_flags_choose_parts_and_set_their_fields(line, wanted):
    assert parsed(line) == wanted
    assert _parts.from_json(Settings, _parts.as_json(wanted), "settings") == wanted


STORED = Settings(term=Far(7.0, Previous(4)), way=NearBy(9.0, "b"))


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("", STORED),
        ("--settings.term.strength 8", dataclasses.replace(STORED, term=Far(8.0, Previous(4)))),
        ("--settings.term none", dataclasses.replace(STORED, term=None)),
        # Another part starts from its own defaults, and not from the numbers of the one before.
        ("--settings.way far", dataclasses.replace(STORED, way=Far())),
    ],
)
def test_flags_change_the_settings_that_they_start_from(line, wanted):
    assert parsed(line, STORED) == wanted


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("--settings.term fra", "--settings.term is 'fra'; expected one of far, near_by, none"),
        (
            "--settings.way.anchor initial",
            "--settings.way.anchor is a setting of far, and --settings.way is near_by; add "
            "--settings.way far",
        ),
        (
            "--settings.term none --settings.term.form a",
            "--settings.term.form is a setting of near_by, and --settings.term is none; add "
            "--settings.term near_by",
        ),
        (
            "--settings.term far --settings.term.anchor previous",
            "settings.term.anchor.every is missing; expected a value",
        ),
        (
            "--settings.term.anchor average --settings.term.anchor.decay 7",
            "settings.term.anchor.decay is 7.0, expected",
        ),
        ("--settings.term.strength nan", "term.strength is nan; expected a number"),
        ("--settings.way none", "--settings.way is 'none'; expected one of near_by, far"),
    ],
)
def test_wrong_parts_end_in_a_line(line, told):
    with pytest.raises(_flags.FlagError) as error:
        parsed(line)
    assert str(error.value).startswith(told)


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"term": {"part": "fra"}}, "settings.term.part is 'fra'; expected a part"),
        ({"term": 0.3}, "settings.term is 0.3; expected a part"),
        ({"way": None}, "settings.way is None; expected a part"),
        ({"term": {"part": "far", "x": 1}}, "settings.term has no setting x in this version"),
        ({"term": {"part": "far", "strength": "1"}}, "settings.term.strength is '1'; expected a"),
        ({"cilp": 1}, "settings has no setting cilp in this version; did you mean clip?"),
    ],
)
def test_wrong_json_ends_in_a_line(values, told):
    with pytest.raises(ValueError) as error:
        _parts.from_json(Settings, values, "settings")
    assert str(error.value).startswith(told)


@pytest.mark.parametrize("name", sorted(algorithms.NAMES))
def test_every_algorithm_has_flags_and_comes_back_from_json(name):
    found = algorithms.find(name)
    flat = _parts.as_flags(found, found())
    assert _parts.from_flags(found, flat, found(), set(), "settings") == found()
    assert _parts.from_json(found, _parts.as_json(found()), "settings") == found()


@pytest.mark.parametrize(
    ("found", "values", "wanted"),
    [
        (
            algorithms.GRPO,
            {"reference_kl": 0.1, "reference_kl_form": "k3", "entropy_coefficient": 0.02},
            algorithms.GRPO(
                kl=algorithms.KL(0.1, gradient="k3"), entropy=algorithms.Entropy(0.02)
            ),
        ),
        (
            algorithms.RLOO,
            {"reference_kl": 0.1, "reference_kl_form": "reward", "sampler_correction": 2.0},
            algorithms.RLOO(
                kl=algorithms.RewardKL(0.1), sampler_correction=algorithms.TruncatedWeights(2.0)
            ),
        ),
        (
            algorithms.GRPO,
            {"reference_kl": 0.0, "reference_kl_form": "k2", "entropy_coefficient": 0.0,
             "overlong_buffer": 0, "sampler_correction": 0.0},
            algorithms.GRPO(),
        ),
        (algorithms.DAPO, {"overlong_buffer": None}, algorithms.DAPO()),
        (algorithms.GRPO, {"kl_coefficient": 0.1}, algorithms.GRPO(kl=algorithms.KL(0.1))),
        (algorithms.RLOO, {"kl_coefficient": 0.0}, algorithms.RLOO()),
        (
            algorithms.KLCov,
            {"penalty": 2.0, "kl_coefficient": 0.1},
            algorithms.KLCov(kl_coefficient=2.0, kl=algorithms.KL(0.1)),
        ),
        (
            algorithms.PPO,
            {"kl_coefficient": 0.1, "value_coefficient": 0.5},
            algorithms.PPO(kl=algorithms.RewardKL(0.1)),
        ),
        (
            algorithms.DAPO,
            {"overlong_buffer": 3},
            algorithms.DAPO(overlong=algorithms.OverlongPenalty(3)),
        ),
        (
            algorithms.PPO,
            {"reference_kl": 0.3, "value_clip": 0.0},
            algorithms.PPO(kl=algorithms.RewardKL(0.3), value_clip=None),
        ),
        (
            algorithms.NashMD,
            {"tau": 0.1, "mixture": 0.25},
            algorithms.NashMD(tau=0.1, opponent=algorithms.Mixed(0.25)),
        ),
        (algorithms.FDPG, {"beta": 0.5}, algorithms.FDPG(target=algorithms.Tilt(0.5))),
        (
            algorithms.DisCO,
            {"score": "log_l", "beta": 5.0, "delta": 0.1},
            algorithms.DisCO(bound=algorithms.KLBound(beta=5.0, delta=0.1)),
        ),
    ],
)  # fmt: skip
def test_settings_of_earlier_versions(found, values, wanted):
    """Up to 0.3 the number 0 switched a term off."""
    assert _parts.from_json(found, earlier.settings(found, values), "settings") == wanted
    now = _parts.as_json(wanted)
    assert earlier.settings(found, now) == now


@dataclasses.dataclass(frozen=True)
class Own:
    """Somebody's settings: old names with meanings of their own, a nested class, a switch in a part."""

    sampler_correction: float = 2.0
    value_clip: float = 0.0
    inner: NearBy = NearBy()


def test_settings_of_somebody_are_left_as_they_are():
    plain = _parts.as_json(Own(inner=NearBy(3.0)))
    assert earlier.settings(Own, plain) == plain
    assert _parts.from_json(Own, plain, "settings") == Own(inner=NearBy(3.0))


@dataclasses.dataclass(frozen=True)
class Plain:
    width: float = 1.0


@dataclasses.dataclass(frozen=True)
class Switched:
    whiten: bool = True


def test_a_switch_of_a_part_is_switched_off():
    @dataclasses.dataclass(frozen=True)
    class Holder:
        p: Plain | Switched | None = None

    def chosen(*given, p="none", whiten=True):
        flat = _parts.as_flags(Holder, Holder())
        flat = dataclasses.replace(flat, p=p, p__=dataclasses.replace(flat.p__, whiten=whiten))
        return _parts.from_flags(Holder, flat, Holder(), set(given), "s").p

    assert chosen("s.p.no_whiten", whiten=False) == Switched(False)
    with pytest.raises(
        ValueError, match="--s.p.whiten is a setting of switched, and --s.p is plain"
    ):
        chosen("s.p", "s.p.no_whiten", p="plain", whiten=False)


def test_two_parts_of_one_name_are_refused():
    other = dataclasses.make_dataclass("Plain", [("depth", float, 1.0)], frozen=True)
    made = dataclasses.make_dataclass("Holder", [("p", Plain | other | None, None)], frozen=True)
    with pytest.raises(TypeError, match="Holder.p has two parts with one name: plain, plain"):
        _parts.choices(made)


def test_help_tells_what_is_required_and_what_differs_between_parts(capsys):
    with pytest.raises(_flags.Shown):
        _flags.parsed(train_schema(algorithms.PolicyGradient()), ["--help"], "polgrad train")
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "--settings.kl.reference.every INT (of previous) rollouts between copies" in text
    assert "1. (required)" in text
    assert "In clip_cov: share of the tokens that are masked" in text
    assert "In kl_cov: share of the tokens that are penalised" in text


def test_a_number_in_place_of_a_part_names_the_flags_of_its_numbers():
    schema = train_schema(algorithms.GRPO())
    with pytest.raises(_flags.FlagError, match=r"--settings.kl is '0.1'.* --settings.kl.coeffic"):
        _flags.parsed(schema, ["--settings.kl", "0.1"], "polgrad train", default=schema())


@pytest.mark.parametrize("flag", ["--settings.surrogate", "--settings.advantage"])
def test_a_part_of_the_composition_names_the_algorithm_that_has_it(flag):
    schema = train_schema(algorithms.GRPO())
    with pytest.raises(_flags.FlagError, match="it belongs to --algorithm policy_gradient"):
        _flags.parsed(schema, [flag, "cispo"], "polgrad train", default=schema())


def test_settings_of_another_algorithm_in_a_file_are_said_to_be_left_out(tmp_path, capsys):
    config = run_files.plain(TrainConfig(algorithm="rloo", settings=algorithms.RLOO()))
    (tmp_path / "config.json").write_text(json.dumps(config))
    arguments = ["--config", str(tmp_path / "config.json"), "--algorithm", "grpo", "--steps", "0"]
    with pytest.raises(_flags.FlagError, match="steps is 0"):
        _train_settings(arguments)
    assert "the settings of rloo in" in capsys.readouterr().out
