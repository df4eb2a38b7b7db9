"""The harness on a world whose outcome is known."""

import json
import pathlib

import numpy as np
import pytest

from polgrad import cli, experiments
from polgrad.experiments import ledger, reporting, running
from polgrad.experiments.settings import parse

WORLD = '''
import dataclasses
import functools

import jax
import jax.numpy as jnp

from polgrad import experiments


@dataclasses.dataclass(frozen=True)
class Settings:
    """A walk with drift.

    Attributes:
      steps: of the walk.
      drift: of the good arm, a step.
    """

    steps: int = 40
    drift: float = 1.0


def walk(key, settings, *, drift):
    def step(place, index):
        place += jax.random.normal(jax.random.fold_in(key, index)) + drift * settings.drift
        experiments.record(index, settings.steps, place=place)
        return place, place

    _, places = jax.lax.scan(step, 0.0, jnp.arange(settings.steps))
    return {"step": jnp.arange(settings.steps), "place": places}


EXPERIMENT = experiments.Experiment(
    paper=experiments.Paper("Walks", "Nobody", 2020, "2001.00001"),
    claim="Drift moves a walk.",
    arms={name: functools.partial(walk, drift=d) for name, d in (("still", 0.0), ("moved", 1.0))},
    settings=Settings(),
    smoke={"steps": 4},
    metrics={"place": "where the walk ends"},
    holds=lambda results: experiments.verdict(
        experiments.at_least(
            "moved less still", results.final("moved", "place") - results.final("still", "place"), 10
        )
    ),
    baseline="still",
    at_scale="longer walks",
    axis="step",
)
'''


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    path = tmp_path_factory.mktemp("folder") / "experiments" / "walks" / "walk.py"
    path.parent.mkdir(parents=True)
    path.write_text(WORLD)
    return path


@pytest.fixture(scope="module")
def done(world, tmp_path_factory):
    found = experiments.find(str(world))
    return found, experiments.run(found, tmp_path_factory.mktemp("run"))


def test_arms_see_the_same_keys_and_are_compared_seed_by_seed(done):
    _, run = done
    moved, still = (run.results.final(arm, "place") for arm in ("moved", "still"))
    np.testing.assert_allclose(moved - still, 40.0, rtol=1e-5)
    assert len(set(still)) == 5


def test_a_seed_does_not_depend_on_how_many_there_are(done, tmp_path):
    found, run = done
    fewer = experiments.run(found, tmp_path, seeds=2, arms=["still"])
    np.testing.assert_allclose(
        fewer.results.curves["still"]["place"], run.results.curves["still"]["place"][:2], rtol=1e-6
    )


def test_metrics_hold_every_point_of_every_seed(done):
    _, run = done
    rows = [json.loads(s) for s in (run.directory / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) == 2 * 5 * 40
    assert rows[41] == {
        "arm": "still",
        "seed": 1,
        "point": 1,
        "step": 1,
        "place": run.results.curves["still"]["place"][1, 1].item(),
    }


def test_a_killed_run_goes_on_with_the_arm_it_was_in(done, tmp_path):
    found, run = done
    experiments.run(found, tmp_path, arms=["still"])
    # What a kill while the second arm was being written leaves behind.
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"arm": "moved", "seed": 0, "st')
    (tmp_path / "arms" / "moved.new.npz").write_bytes(b"half")
    ended = []
    again = experiments.run(found, tmp_path, progress=running.Progress(end=ended.append))
    assert ended[0].endswith("already there") and not ended[1].endswith("already there")
    assert (tmp_path / "metrics.jsonl").read_text() == (run.directory / "metrics.jsonl").read_text()
    np.testing.assert_array_equal(
        again.results.final("moved", "place"), run.results.final("moved", "place")
    )


def test_points_stream_while_an_arm_runs(done, tmp_path):
    found, run = done
    lines, path = [], tmp_path / "metrics.jsonl"

    def point(done, total):
        lines.append((done, total, path.read_text().splitlines()[-1]))

    experiments.run(found, tmp_path, progress=running.Progress(point=point))
    assert [done for done, _, _ in lines] == [*range(1, 201)] * 2
    assert {total for _, total, _ in lines} == {200}
    streamed = [json.loads(line) for _, _, line in lines]
    place = run.results.curves
    for row in streamed:
        found_place = place[row["arm"]]["place"][row["seed"], row["point"]]
        assert row["place"] == pytest.approx(found_place.item(), rel=1e-6)
    # What was streamed has made way for the arms' own curves.
    assert path.read_text() == (run.directory / "metrics.jsonl").read_text()


def test_an_arm_is_a_pure_function_outside_of_a_run(done):
    import jax

    found, run = done
    experiment = found.experiment
    alone = jax.jit(experiment.arms["moved"], static_argnums=1)(
        jax.random.key(3), experiment.settings
    )
    np.testing.assert_allclose(alone["place"], run.results.curves["moved"]["place"][3], rtol=1e-5)


def test_a_host_arm_is_saved_seed_by_seed(done, tmp_path):
    import dataclasses

    found, _ = done
    calls, deadly = [], {2}

    def loop(seed, settings, directory):
        calls.append((seed, directory.name))
        if seed in deadly:
            raise KeyboardInterrupt
        return {"step": np.arange(3), "place": np.arange(3) + seed * settings.drift}

    arms = {"still": experiments.HostArm(loop)}
    found = found._replace(experiment=dataclasses.replace(found.experiment, arms=arms))
    points = []
    progress = running.Progress(point=lambda *point: points.append(point))
    with pytest.raises(KeyboardInterrupt):
        experiments.run(found, tmp_path, seeds=4, progress=progress)
    deadly.clear()
    run = experiments.run(found, tmp_path, seeds=4, progress=progress)
    assert [seed for seed, _ in calls] == [0, 1, 2, 2, 3]
    assert len({place for _, place in calls}) == 4
    assert points == [(1, 4), (2, 4), (1, 4), (2, 4), (3, 4), (4, 4)]
    np.testing.assert_array_equal(run.results.final("still", "place"), [2.0, 3.0, 4.0, 5.0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seeds": 3}, "seeds 5, this one has 3"),
        ({"changes": {"drift": 2.0}}, "settings .* give another --out"),
    ],
)
def test_a_directory_of_another_run_is_refused(done, change, message):
    found, run = done
    with pytest.raises(ValueError, match=message):
        experiments.run(found, run.directory, **change)


def test_an_experiment_that_changed_does_not_join_its_old_arms(done):
    found, run = done
    with pytest.raises(ValueError, match="a run with source"):
        experiments.run(found._replace(digest="other"), run.directory)


@pytest.mark.parametrize(
    ("samples", "outcome"),
    [
        ([2.0, 2.1, 2.2, 2.0, 2.1], "holds"),
        ([0.1, 0.2, 0.0, 0.1, 0.2], "does not hold"),
        ([0.0, 2.0, 0.1, 1.9, 1.0], "undecided"),
        ([5.0], "undecided"),
    ],
)
def test_a_check_decides_only_when_its_whole_interval_does(samples, outcome):
    check = experiments.at_least("x", np.array(samples), 1.0)
    assert check.outcome == outcome
    mirrored = experiments.at_most("x", -np.array(samples), -1.0)
    assert mirrored.outcome == outcome


def test_one_check_that_fails_decides_and_one_undecided_leaves_it_open():
    yes, no, open_ = (
        experiments.at_least("x", np.array(s), 1.0) for s in ([2.0, 2.0], [0.0, 0.0], [0.0, 2.0])
    )
    assert [c.outcome for c in (yes, no, open_)] == ["holds", "does not hold", "undecided"]
    assert experiments.verdict(yes, open_, no).outcome == "does not hold"
    assert experiments.verdict(yes, open_).outcome == "undecided"
    assert experiments.verdict(yes, yes).outcome == "holds"
    with pytest.raises(ValueError, match="at least one check"):
        experiments.verdict()


def test_arms_that_cannot_be_used_are_named(done, tmp_path):
    found, _ = done

    def with_arm(arm):
        import dataclasses

        return found._replace(
            experiment=dataclasses.replace(found.experiment, arms={"still": arm}, baseline="still")
        )

    good = found.experiment.arms["still"]
    for index, (arm, message) in enumerate(
        [
            (lambda k, s: {"step": good(k, s)["step"]}, "arm still returns no place"),
            (lambda k, s: good(k, s) | {"place": good(k, s)["place"] / 0}, "place is not finite"),
            (lambda k, s: good(k, s) | {"place": good(k, s)["place"][1:]}, "shape \\(39,\\)"),
            (lambda k, s: good(k, s) | {"step": good(k, s)["step"][0]}, "step is one number"),
        ]
    ):
        with pytest.raises(experiments.ExperimentError, match=message):
            experiments.run(with_arm(arm), tmp_path / str(index))


def test_settings_have_the_types_of_their_fields(done):
    settings = done[0].experiment.settings
    assert parse(settings, ["steps=3", "drift=2"]) == {"steps": 3, "drift": 2.0}
    for bad, message in [
        ("steps=1.5", "setting steps is '1.5'; expected a whole number"),
        ("step=1", "'step' is unknown; did you mean steps"),
        ("steps", "expected key=value"),
    ]:
        with pytest.raises(ValueError, match=message):
            parse(settings, [bad])


def test_results_say_what_decides(done):
    found, run = done
    content = reporting.result(found, run, found.experiment.holds(run.results), size="full")
    assert content["verdict"] == "holds"
    compared = content["arms"]["moved"]["comparison"]
    assert compared["difference"] == pytest.approx(40.0, rel=1e-5)
    assert compared["probability_of_improvement"] == 1.0
    assert content["arms"]["still"]["comparison"] is None
    assert reporting.sentences(content)[-1] == "verdict: holds"


def test_a_run_is_held_against_the_committed_result(done):
    found, run = done
    content = reporting.result(found, run, found.experiment.holds(run.results), size="full")
    line = reporting.agreement(content, content)
    assert line == "committed result: holds, the same; intervals of place overlap for every arm"
    other = json.loads(json.dumps(content)) | {"verdict": "undecided"}
    figures = other["arms"]["moved"]["metrics"]["place"]
    figures["low"] = content["arms"]["moved"]["metrics"]["place"]["high"] + 1.0
    figures["high"] = figures["low"] + 1.0
    line = reporting.agreement(content, other)
    assert "undecided, ANOTHER VERDICT" in line and line.endswith("do not overlap for moved")


def test_the_band_is_the_interval_of_the_mean_at_every_point():
    curves = np.random.default_rng(1).normal(size=(8, 3))
    middle, low, high = reporting.band(curves)
    np.testing.assert_allclose(middle, np.sort(curves, 0)[2:6].mean(0))
    assert ((low < middle) & (middle < high)).all()


def test_the_command_runs_lists_and_keeps_the_ledger(world, capsys, monkeypatch):
    folder = world.parents[2]
    monkeypatch.chdir(folder)

    def polgrad(*arguments):
        with pytest.raises(SystemExit) as stopped:
            cli.main(arguments)
        captured = capsys.readouterr()
        return stopped.value.code, captured.out, captured.err

    code, out, _ = polgrad("run", "walk", "--commit")
    assert code == 0 and "verdict: holds" in out
    assert {p.name for p in (folder / "runs" / "walk").iterdir()} >= {
        "metrics.jsonl",
        "result.json",
        "result.png",
        "experiment.json",
    }
    assert {p.name for p in pathlib.Path("experiments/results").iterdir()} == {
        "walk.json",
        "walk.png",
    }
    code, out, _ = polgrad("run", "walk", "--out", "again")
    assert "committed result: holds, the same; intervals of place overlap" in out
    code, out, _ = polgrad("list", "experiments")
    assert "walks:\n  walk" in out and "holds" in out
    (folder / "README.md").write_text(f"# It\n{ledger.BEGIN}\nold\n{ledger.END}\nend\n")
    assert polgrad("report", "--check")[0] == 1
    assert polgrad("report", "--ledger")[0] == 0
    assert polgrad("report", "--check")[0] == 0
    text = (folder / "README.md").read_text()
    assert "| `walk` (walks) | [Nobody, 2020](https://arxiv.org/abs/2001.00001)" in text
    assert text.startswith("# It\n") and text.endswith("\nend\n")
    for arguments, message in [
        (("run", "wlk"), "did you mean walk"),
        (("run", "walk", "--set", "drift=x"), "setting drift is 'x'; expected a number"),
        (("run", "walk", "--arms", "still,other"), "arms has ['other']"),
        (("run", "walk", "--seeds", "0"), "seeds is 0"),
        (("run", "walk", "--smoke", "--commit"), "full size"),
    ]:
        code, out, error = polgrad(*arguments)
        assert code == 2 and message in error and error.count("\n") == 1 and not out
    code, out, _ = polgrad("run", "walk", "--smoke", "--arms", "still", "--seeds", "1")
    assert code == 0 and "not all arms ran" in out


def test_the_own_experiments_of_a_folder_join_those_of_polgrad(world, monkeypatch):
    bystander = world.with_name("plotting.py")
    bystander.write_text("raise SystemExit('a script that is no experiment was run')\n")
    monkeypatch.chdir(world.parents[2])
    names = experiments.names()
    assert names["walk"] == world and {"clip_cov", "nash_md"} < names.keys()
    assert "plotting" not in names
    bystander.unlink()


def test_keys_are_those_of_their_seeds():
    import jax

    many, few = running.keys(5), running.keys(3)
    assert (jax.random.key_data(many)[:3] == jax.random.key_data(few)).all()
