"""The state of a run: its parts, its forms in checkpoints, and the policies that move with it."""

import dataclasses
import json
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polgrad import training
from polgrad.contract import Algorithm, Average, Initial, Previous
from polgrad.curricula import bandit
from polgrad.training import state
from polgrad.training.config import (
    Data,
    Evaluation,
    Rewards,
    Rollouts,
    Saving,
    Small,
    TrainConfig,
)
from polgrad.training.saving.checkpoints import Checkpoints
from polgrad.training.saving.errors import ResumeError
from polgrad.training.saving.reading import restore_params, schema_of

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "run_0_3"


def make(params, policies=None, frozen=None, **more):
    return state.TrainState(
        trainable=params,
        frozen=frozen or {},
        policies=policies or {},
        optimizer={"moment": jnp.ones(3)},
        algorithm=(),
        step=jnp.int32(4),
        skipped=jnp.int32(0),
        **more,
    )


def test_parameters_are_joined_by_name():
    frozen = {"layer": {"kernel": 1, "bias": 2}, "head": 3}
    trained = {"layer": {"lora": 4}, "value": 5}
    assert state.assemble(frozen, trained) == {
        "layer": {"kernel": 1, "bias": 2, "lora": 4},
        "head": 3,
        "value": 5,
    }
    assert state.assemble({}, trained) is trained
    assert make(trained, frozen=frozen).params == state.assemble(frozen, trained)
    assert frozen == {"layer": {"kernel": 1, "bias": 2}, "head": 3}
    with pytest.raises(ValueError, match="'head' is both frozen and trainable"):
        state.assemble(frozen, {"head": 6})
    with pytest.raises(ValueError, match="'kernel' is both"):
        state.assemble(frozen, {"layer": {"kernel": 6}})


def test_a_form_that_cannot_hold_the_state_is_refused():
    plain = make({"w": jnp.zeros(2)})
    for schema in (1, 2):
        again = state.from_saved(state.as_saved(plain, schema), schema)
        assert jax.tree.structure(again) == jax.tree.structure(plain)
    assert set(state.as_saved(plain, 1)) == {"params", "optimizer", "algorithm", "step", "skipped"}
    with pytest.raises(ValueError, match="holds no policies lagged"):
        state.as_saved(make({"w": 1}, policies={"lagged": {"w": 1}}), 1)
    with pytest.raises(ValueError, match="holds no frozen parameters"):
        state.as_saved(make({"w": 1}, frozen={"v": 1}), 1)
    with pytest.raises(ValueError, match="holds no curriculum"):
        state.as_saved(make({"w": 1}, curriculum={"values": 1}), 1)


def test_frozen_parameters_and_policies_are_saved_and_read_back(tmp_path):
    saved = make(
        {"a": jnp.arange(3.0)},
        policies={"lagged": {"a": jnp.arange(3.0) + 1}},
        frozen={"b": jnp.arange(2.0)},
    )
    made = Checkpoints(tmp_path / "checkpoints", 2)
    made.save(4, saved)
    made.close()
    made = Checkpoints(tmp_path / "checkpoints", 2)
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), saved)
    again = made.restore(4, like)
    made.close()
    jax.tree.map(np.testing.assert_array_equal, again, saved)
    params, step = restore_params(tmp_path)
    assert step == 4 and set(params) == {"a", "b"}
    np.testing.assert_array_equal(params["b"], saved.frozen["b"])


def saved_and_read(path, saved, like):
    """What a checkpoint of the one state gives to a run of the other."""
    made = Checkpoints(path / "checkpoints", 2)
    made.save(4, saved)
    made.close()
    made = Checkpoints(path / "checkpoints", 2)
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), like)
    try:
        return made.restore(4, like)
    finally:
        made.close()


def test_a_curriculum_is_saved_and_read_back(tmp_path):
    paid = bandit.update(bandit.init(3), jnp.arange(3.0), jnp.ones(3))
    saved = make({"a": jnp.ones(2)}, curriculum=paid)
    again = saved_and_read(tmp_path / "with", saved, saved)
    assert isinstance(again.curriculum, bandit.BanditState)
    jax.tree.map(np.testing.assert_array_equal, again, saved)


def test_a_run_without_a_curriculum_has_the_form_of_the_runs_before(tmp_path):
    plain = make({"a": jnp.ones(2)})
    fields = ("trainable", "frozen", "policies", "optimizer", "algorithm", "step", "skipped")
    assert tuple(state.as_saved(plain, state.SCHEMA)) == fields
    assert saved_and_read(tmp_path / "plain", plain, plain).curriculum == ()
    paid = make({"a": jnp.ones(2)}, curriculum={"values": jnp.ones(3)})
    for name, saved, like in (("added", plain, paid), ("dropped", paid, plain)):
        with pytest.raises(ResumeError, match="curriculum/values has shape"):
            saved_and_read(tmp_path / name, saved, like)


def test_a_form_of_a_later_version_is_refused(tmp_path):
    made = Checkpoints(tmp_path / "checkpoints", 2)
    made.save(4, make({"a": jnp.ones(2)}))
    made.close()
    path = tmp_path / "checkpoints" / "4" / "_CHECKPOINT_METADATA"
    path.write_text(path.read_text().replace('"schema": 2', '"schema": 3'))
    with pytest.raises(ResumeError, match="form 3, expected 1 to 2: a later version of polgrad"):
        schema_of(made._root, 4)


def config(out, **changes):
    base = TrainConfig(
        task=str(GOLDEN / "sums.jsonl"),
        algorithm="supervised",
        steps=4,
        out=str(out),
        mesh="data=1",
        data=Data(held_out=0.0),
        small=Small(layers=1, width=8, heads=2, mlp=8),
        rollouts=Rollouts(prompts=4, group_size=4, max_tokens=3),
        evaluation=Evaluation(problems=0),
        saving=Saving(every=2, samples_every=9, tensorboard=False),
        rewards=Rewards(functions=("polgrad.rewards.verifiers:exact_match",)),
    )
    return dataclasses.replace(base, **changes)


@pytest.fixture
def old_run(tmp_path):
    """A run of version 0.3 that was stopped after two of its four steps."""
    shutil.copytree(GOLDEN / "run", tmp_path / "run")
    for name in ("config.json", "checkpoints/polgrad_run.json"):
        path = tmp_path / "run" / name
        text = path.read_text().replace("/old/sums.jsonl", str(GOLDEN / "sums.jsonl"))
        path.write_text(text.replace("/old", str(tmp_path)))
    return tmp_path / "run"


def test_a_run_of_version_0_3_goes_on(old_run):
    before, step = restore_params(old_run)
    assert step == 2
    assert schema_of(Checkpoints(old_run / "checkpoints", 2)._root, 2) == 1
    result = training.train(config(old_run, resume=True), quiet=True)
    assert int(result.state.step) == 4
    after, step = restore_params(old_run)
    assert step == 4
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(result.state.params), after)
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), before, after)
    assert max(jax.tree.leaves(moved)) > 0


@dataclasses.dataclass(frozen=True)
class Held:
    """REINFORCE whose loss and state read three named policies and the metrics of each step."""

    def build(self, context):
        def prepare(memory, experience, key):
            rows = experience["rewards"].shape[0]
            kept = ("prompts", "prompt_lengths", "completions", "completion_lengths", "mask")
            batch = {name: experience[name] for name in kept}
            # Different at every step, and on policies that move: a wrong one changes the run.
            drift = experience["lagged_logp"] - experience["mean_logp"]
            batch["advantages"] = experience["rewards"] + memory + drift.sum(-1)
            batch["weights"] = jnp.full((rows,), 1.0 / rows)
            start = experience["start_logp"].sum()
            return memory, batch, {"drift": drift.sum(), "start_logp": start}

        def loss(outputs, batch):
            logp = (outputs.logp * batch["mask"]).sum(-1)
            return -(logp * batch["advantages"] * batch["weights"]).sum(), {}

        return Algorithm(
            init=lambda key: jnp.float32(0.1),
            prepare=prepare,
            loss=loss,
            observe=lambda memory, metrics: 0.5 * memory + 0.1 * metrics["entropy"],
            policies={"start": Initial(), "lagged": Previous(every=2), "mean": Average(0.9)},
            reuse=False,
        )


def held(out, **changes):
    algorithm = f"{__file__}:Held"
    rewards = Rewards(functions=(f"{__file__}:length",))
    saving = Saving(every=1, samples_every=9, tensorboard=False, keep=9)
    return config(out, algorithm=algorithm, rewards=rewards, saving=saving, steps=5, **changes)


def length(prompt, completion, example):
    """A reward for `held`."""
    return 0.1 * len(completion)


def test_named_policies_and_a_controller_go_on_where_a_run_was_stopped(tmp_path):
    """Resumed after each step, the end is bit for bit that of the run that was left alone."""
    alone = training.train(held(tmp_path / "alone"), quiet=True)
    assert abs(alone.metrics["drift"]) > 0
    assert float(alone.state.algorithm) not in (0.0, 0.1)
    for stop in (1, 2, 4):
        out = tmp_path / f"stopped {stop}"
        shutil.copytree(tmp_path / "alone", out)
        owner = out / "checkpoints" / "polgrad_run.json"
        told = json.loads(owner.read_text())
        owner.write_text(json.dumps({**told, "directory": str(out)}))
        resumed = training.train(held(out, resume_from=stop), quiet=True)
        jax.tree.map(
            np.testing.assert_array_equal,
            jax.device_get(resumed.state),
            jax.device_get(alone.state),
        )
    # The average is none of the others, and the copy is two rollouts old at most.
    trees = [alone.state.policies["mean"], alone.state.policies["lagged"], alone.state.params]
    leaves = [np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)]) for tree in trees]
    for i, j in ((0, 1), (0, 2), (1, 2)):
        assert np.abs(leaves[i] - leaves[j]).max() > 0
