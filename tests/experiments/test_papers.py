"""Every experiment runs at its small size; committed results and the ledger agree with the code."""

import dataclasses
import json
import pathlib

import pytest

from polgrad import experiments
from polgrad.experiments import command, reporting

ROOT = pathlib.Path(__file__).parents[2]
PAPERS = {p.stem: p for p in sorted((ROOT / "experiments").glob("*/*.py")) if p.stem[0] != "_"}
RESULTS = sorted((ROOT / "experiments" / "results").glob("*.json"))


# Compiling every one of their arms takes long: `make test-slow`.
HEAVY = {
    "clip_cov",
    "copg",
    "disco",
    "dpo",
    "dpo_frontier",
    "f_dpg",
    "inpo",
    "nash_md",
    "nft",
    "sec",
    "topr",
}


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] if name in HEAVY else []) for name in PAPERS],
)
def test_an_experiment_runs_at_its_small_size(name, tmp_path):
    found = experiments.find(str(PAPERS[name]))
    run = experiments.run(found, tmp_path, seeds=2, smoke=True)
    experiment = found.experiment
    assert run.results.curves.keys() == experiment.arms.keys()
    verdict = experiment.holds(run.results)
    assert verdict.outcome in ("holds", "does not hold", "undecided") and verdict.checks
    content = reporting.result(found, run, verdict, size="smoke")
    reporting.plot(tmp_path / "plot.png", found, run)
    assert (tmp_path / "plot.png").stat().st_size > 5000
    # The table's numbers come from the curves.
    for arm, curves in run.results.curves.items():
        final = content["arms"][arm]["metrics"][experiment.main_metric]["seeds"]
        assert final == pytest.approx(list(curves[experiment.main_metric].reshape(2, -1)[:, -1]))


@pytest.mark.sampled(1)
@pytest.mark.parametrize("name", sorted(HEAVY - {"dpo"}))
def test_an_arm_of_a_heavy_experiment_runs(name, tmp_path):
    found = experiments.find(str(PAPERS[name]))
    arm = found.experiment.baseline
    run = experiments.run(found, tmp_path, seeds=2, smoke=True, arms=[arm])
    assert run.results.final(arm, found.experiment.main_metric).shape == (2,)


@pytest.mark.parametrize("name", PAPERS)
def test_an_experiment_says_what_it_is(name):
    experiment = experiments.find(str(PAPERS[name])).experiment
    assert experiment.seeds >= 5
    assert experiment.claim.endswith(".") and experiment.at_scale
    documented = type(experiment.settings).__doc__
    for field in dataclasses.fields(experiment.settings):
        assert f"{field.name}:" in documented, f"{field.name} is not in the settings' docstring"


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_a_committed_result_is_that_of_its_experiment(path):
    content = json.loads(path.read_text())
    found = experiments.find(str(PAPERS[path.stem]))
    experiment = found.experiment
    assert path.with_suffix(".png").exists()
    assert content["size"] == "full" and len(content["seeds"]) >= 5
    assert content["claim"] == experiment.claim
    assert content["note"] == experiment.note
    assert content["paper"] == dataclasses.asdict(experiment.paper)
    assert content["arms"].keys() == experiment.arms.keys()
    assert content["settings"] == json.loads(json.dumps(dataclasses.asdict(experiment.settings)))


def test_the_ledger_of_the_readme_is_that_of_the_results():
    assert command.write_ledger(ROOT, write=False), "run polgrad report --ledger"
