"""CONTRIBUTING's example of a paper is whole: it fits, it runs, and its claim is decided."""

import pathlib
import re

from polgrad import experiments

TEXT = (pathlib.Path(__file__).parents[1] / "CONTRIBUTING.md").read_text()


def test_the_example_of_a_paper_runs(tmp_path):
    code = re.search(r"To add a paper.*?```python\n(.*?)```", TEXT, re.DOTALL)[1]
    lines = [line for line in code.splitlines() if line.strip()]
    assert len(lines) < 60
    path = tmp_path / "verifiable_rewards" / "leave_one_out.py"
    path.parent.mkdir()
    path.write_text(code)
    found = experiments.find(str(path))
    run = experiments.run(found, tmp_path / "run")
    regret = {arm: run.results.curves[arm]["regret"] for arm in run.results.curves}
    assert all((curve[:, -1] >= 0).all() for curve in regret.values())
    assert found.experiment.holds(run.results).outcome == "holds"
