"""What a small run is given wrong ends in one line that names it."""

import dataclasses

import jax
import jax.numpy as jnp
import optax
import pytest

from polgrad import algorithms, curricula, small
from polgrad.contract import Algorithm

WORLD = small.ModularSums.create(jax.random.key(0), prompts=8, fixed=1, vocabulary=3)
NETWORK = small.AutoregressiveMLP(WORLD.width, 3, length=3, width=8)
RIGHT = {
    "settings": algorithms.GRPO(),
    "policy": small.FeaturePolicy(NETWORK, WORLD.features),
    "task": WORLD,
    "schedule": small.Schedule(rollouts=2, questions=4, group=3, points=1),
    "optimizer": optax.sgd(0.1),
}


class Task:
    """The world with one method replaced."""

    def __init__(self, **methods):
        self.__dict__ |= methods

    def __getattr__(self, name):
        return getattr(WORLD, name)


def rewarding(shape):
    return Task(reward=lambda questions, completions, mask: jnp.zeros(shape))


@dataclasses.dataclass(frozen=True)
class Own:
    """An algorithm of one's own."""

    prepared: object = None
    lost: object = None

    def build(self, context):
        def prepare(state, experience, key):
            batch = experience | {"weights": jnp.ones(experience["mask"].shape[0])}
            return self.prepared(state, batch) if self.prepared else (state, batch, {})

        def loss(outputs, batch):
            total = (outputs.logp.sum(-1) * batch["weights"]).sum()
            return self.lost(outputs, total) if self.lost else (total, {})

        return Algorithm(prepare, loss)


class Nothing:
    def build(self, context):
        return None


WRONG = [
    ({"settings": algorithms.GRPO}, r"settings is the class GRPO, expected GRPO\(\)"),
    ({"settings": "grpo"}, "settings is 'grpo', expected settings such as algorithms.GRPO"),
    ({"settings": Nothing()}, "Nothing.build returned None, expected an Algorithm"),
    ({"curriculum": curricula.SEC}, r"curriculum is the class SEC, expected SEC\(\)"),
    ({"curriculum": "sec"}, "curriculum is 'sec', expected settings such as curricula.SEC"),
    ({"policy": NETWORK}, "policy is a AutoregressiveMLP, which has no prompts; expected one"),
    ({"task": None}, "task is a NoneType, which has no size; expected one such as small"),
    ({"optimizer": optax.adam}, "optimizer is a function, which has no init; expected one such"),
    ({"schedule": RIGHT["schedule"]._replace(epochs=1.5)}, "epochs is 1.5, expected a whole"),
    ({"schedule": RIGHT["schedule"]._replace(group=0)}, "group is 0, expected a whole number"),
    (
        {"schedule": RIGHT["schedule"]._replace(questions=9)},
        "questions is 9, and task ModularSums drew 8; expected at most as many",
    ),
    ({"task": rewarding((4, 3, 1))}, r"Task.reward returned shape \[4, 3, 1\], expected \[4, 3\]"),
    ({"task": rewarding((3, 4))}, r"Task.reward returned shape \[3, 4\], expected \[4, 3\]"),
    ({"task": rewarding((4,))}, r"Task.reward returned shape \[4\], expected \[4, 3\]: one number"),
    ({"evaluate": lambda params, key: {"rollout": 7.0}}, "evaluate returned 'rollout'"),
    (
        {"settings": Own(prepared=lambda state, batch: (state, batch))},
        r"prepare returned 2 values, expected \(state, batch, metrics\)",
    ),
    (
        {"settings": Own(prepared=lambda state, batch: (state, batch | {"x": jnp.ones(3)}, {}))},
        r"prepare returned x of shape \[3\], expected 6 rows as in the mask",
    ),
    ({"settings": Own(lost=lambda outputs, x: x)}, r"loss returned .*, expected \(sum, metrics\)"),
    (
        {"settings": Own(lost=lambda outputs, x: (outputs.logp.sum(-1), {}))},
        r"loss returned shape \[6\], expected one number",
    ),
    (
        {"settings": Own(lost=lambda outputs, x: (x, {"x": x}))},
        r"loss has the metric 'x', which is .*, expected \(sum, count\)",
    ),
]


@pytest.mark.parametrize(("change", "told"), WRONG)
def test_what_is_wrong_is_named(change, told):
    with pytest.raises(ValueError, match=told):
        jax.eval_shape(lambda key: small.run(key, **(RIGHT | change)), jax.random.key(0))


def test_what_is_right_runs():
    jax.eval_shape(lambda key: small.run(key, **RIGHT), jax.random.key(0))
    jax.eval_shape(lambda key: small.run(key, **(RIGHT | {"settings": Own()})), jax.random.key(0))


def test_without_a_valid_reward_the_mean_is_no_number():
    task = Task(reward=lambda questions, completions, mask: jnp.full(mask.shape[:2], jnp.nan))
    _, curves = jax.jit(lambda key: small.run(key, **(RIGHT | {"task": task})))(jax.random.key(0))
    assert jnp.isnan(curves["reward_mean"]).all()
