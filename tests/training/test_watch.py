"""Warnings that a run's metrics give rise to, each once."""

from polgrad.training.config import Rollouts, TrainConfig
from polgrad.training.optimizers import Optimizer
from polgrad.training.watch import Watch

CONFIG = TrainConfig(rollouts=Rollouts(max_tokens=8), optimizer=Optimizer(learning_rate=1e-3))


def lines(rows):
    watch = Watch(CONFIG)
    return [line for step, row in enumerate(rows, 1) for line in watch.lines(step, row)]


def test_nothing_is_said_of_a_healthy_run():
    rows = [{"stopped": 0.9, "entropy": 2 - 0.05 * i, "gradient_norm": 0.1} for i in range(30)]
    assert lines(rows) == []


def test_answers_that_are_all_cut_off():
    found = lines([{"stopped": 0.1}, {"stopped": 0.0}, {"stopped": 0.0}])
    assert len(found) == 1
    assert found[0].startswith("warning: step 2: no sample ended before the length limit")
    assert "rollouts.max_tokens 8" in found[0]


def test_entropy_that_collapses_within_a_few_steps():
    found = lines([{"entropy": e} for e in (1.95, 1.9, 0.35, 0.3)])
    assert len(found) == 1 and "entropy fell from 1.95 to 0.35 nats in 2 steps" in found[0]
    assert "now 0.001" in found[0]
    slow = [{"entropy": 2.0 * 0.8**i} for i in range(30)]  # a third in five steps
    assert lines(slow) == []


def test_a_gradient_of_exactly_0_for_many_steps():
    silent = {"gradient_norm": 0.0, "uniform_groups": 1.0}
    assert lines([silent] * 9 + [{"gradient_norm": 0.1}] + [silent] * 9) == []
    found = lines([silent] * 30)
    assert len(found) == 1 and "step 10: the gradient was exactly 0 in the last 10" in found[0]
    assert "in every group all rewards were equal" in found[0]
    assert "group" not in lines([{"gradient_norm": 0.0}] * 10)[0]


def ended(rows):
    watch = Watch(CONFIG)
    for step, row in enumerate(rows, 1):
        watch.lines(step, row)
    return watch.end()


def test_a_run_without_any_gradient_says_so_at_its_end():
    silent = {"gradient_norm": 0.0, "uniform_groups": 1.0}
    assert ended([]) is None
    for length in (2, 30):
        line = ended([silent] * length)
        assert "learned nothing: the gradient was exactly 0 in every step" in line
        assert "--warm-start.steps" in line
    assert ended([silent, silent, {"gradient_norm": 0.1}]) is None


def test_the_advice_follows_the_reward():
    silent = {"gradient_norm": 0.0, "uniform_groups": 1.0}
    assert "easier problems" in ended([silent | {"reward_mean": 0.0}] * 3)
    line = ended([silent | {"reward_mean": 1.0}] * 3)
    assert "mean reward 1" in line and "harder problems" in line and "easier" not in line


def test_a_run_that_goes_on_is_judged_from_its_first_step_on():
    watch = Watch(CONFIG)
    for step in (4, 5):
        watch.lines(step, {"gradient_norm": 0.0})
    assert watch.end().startswith("warning: the run from step 4 on learned nothing")


def test_a_run_whose_rewards_were_all_invalid_says_so_at_its_end():
    nothing = {"reward_mean": float("nan"), "invalid_rewards": 4, "gradient_norm": 0.0}
    assert "learned nothing: every reward was invalid in each of its 3 steps" in ended(
        [nothing] * 3
    )
    assert (
        ended([nothing, {"reward_mean": 1.0, "invalid_rewards": 0, "gradient_norm": 1.0}]) is None
    )


def test_a_run_of_skipped_updates_says_so_at_its_end():
    # Groups without a signal in between set the counter of updates in a row back.
    rows = [{"skipped_updates": 1.0, "gradient_norm": float("nan")}] * 3
    rows = [*rows, {"gradient_norm": 0.0}, *rows]
    assert "6 of 7 updates were skipped" in ended(rows)
    assert ended([*rows, *[{"gradient_norm": 0.1}] * 5]) is None


def test_updates_that_were_skipped():
    found = lines([{"skipped_updates": 0.0}, {"skipped_updates": 2.0}, {"skipped_updates": 1.0}])
    assert len(found) == 1 and "2 updates were skipped" in found[0]
