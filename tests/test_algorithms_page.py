"""docs/algorithms.md: its example runs, and it names every part of the contract."""

import dataclasses
import pathlib
import re
import shlex

import jax
import jax.numpy as jnp
from stored import GROUP, PROMPTS, T, stored_rollouts

from polgrad import _flags, _parts, algorithms, contract
from polgrad.cli.train import train_schema
from polgrad.contract import Outputs
from polgrad.training import config

PAGE = (pathlib.Path(__file__).parents[1] / "docs" / "algorithms.md").read_text()


def run(name):
    """The names that the page's example with a name in it defines."""
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    names = {}
    exec(compile(next(block for block in blocks if name in block), "page", "exec"), names)
    return names


def test_the_command_has_the_settings_of_the_example():
    found, wanted = algorithms.PolicyGradient, run("PolicyGradient")["settings"]
    command = re.search(r"```bash\n(polgrad train .*?)```", PAGE, re.DOTALL)[1]
    _, _, *arguments = shlex.split(command.replace("\\\n", " "))
    schema = train_schema(found())
    parsed = _flags.parsed(
        schema,
        arguments,
        "polgrad train",
        finish=lambda x, given: config.TrainConfig(
            algorithm=x.algorithm,
            settings=_parts.from_flags(found, x.settings, found(), given, "settings"),
        ),
        default=schema(),
    )
    assert (parsed.algorithm, parsed.settings) == ("policy_gradient", wanted)


def test_the_algorithms_of_the_page_have_the_gradient_that_they_say():
    context = contract.Context(GROUP, T, PROMPTS, on_policy=False)
    experience = {name: jnp.asarray(x) for name, x in stored_rollouts().items()}
    logp = experience["behavior_logp"] + 0.1 * experience["mask"]
    mask, valid = experience["mask"], experience["valid"]

    def gradient(settings):
        algorithm = settings.build(context)
        _, batch, _ = algorithm.prepare((), experience, None)
        return jax.grad(lambda x: algorithm.loss(Outputs(x), batch)[0])(logp)

    gradients = {
        "own": gradient(run("Powered")["own"]),
        "new": gradient(run("Regression")["Regression"]()),
    }

    def regression(x):
        ratio = ((x - experience["reference_logp"]) * mask).sum(-1)
        centred = experience["rewards"] - experience["rewards"][valid].mean()
        return jnp.where(valid, (0.1 * ratio - centred) ** 2, 0.0).sum() / valid.sum()

    assert jnp.allclose(gradients["new"], jax.grad(regression)(logp), atol=1e-6)
    assert jnp.abs(gradients["own"]).max() > 1e-3
    # The advantages of a group sum to 0, and so do the slopes of a group times its lengths.
    total = (gradients["own"].sum(-1) * jnp.where(valid, 1.0, 0.0)).reshape(PROMPTS, GROUP).sum(-1)
    assert jnp.abs(total).max() < 1e-5


def test_the_runs_of_the_page_learn():
    names = run("small.NetworkPolicy(")
    rewards = names["curves"]["reward_mean"]
    assert rewards[-1] > 0.9 and jnp.isfinite(rewards[1:]).all()
    assert jnp.isfinite(names["more"]["loss"][1:]).all() and names["log"].rewards.shape == (8, 4)


def test_every_part_is_named():
    for schema in (algorithms.PolicyGradient, algorithms.KL):
        for field, choice in _parts.choices(schema).items():
            assert f"`{field}`" in PAGE or f"`kl.{field}`" in PAGE, field
            if field != "surrogate":
                assert all(f"{kind.__name__}(" in PAGE for kind in choice.kinds.values()), field


def test_the_example_splits():
    names = run("whitened")
    keys = jax.random.split(jax.random.key(0), 2)
    batch = {
        "mask": jnp.ones((4, 3)),
        "rewards": jax.random.normal(keys[0], (4,)),
        "weights": jnp.full(4, 0.25),
    }
    logp = -1.0 + jax.random.normal(keys[1], (4, 3))
    chosen = names["select"](Outputs(logp), batch, keys[0])
    halves = [jax.tree.map(lambda x, i=i: x[i::2], chosen) for i in range(2)]

    def of_parts(x):
        return sum(names["loss"](Outputs(x[i::2]), halves[i])[0] for i in range(2))

    whole = jax.grad(lambda x: names["whitened"](Outputs(x), batch)[0])(logp)
    assert jnp.abs(whole).max() > 1e-3
    assert jnp.allclose(jax.grad(of_parts)(logp), whole, atol=1e-6)


def test_every_part_of_the_contract_is_named():
    functions = {"init", "prepare", "select", "loss", "observe"}
    named = set(re.findall(r"\b(\w+)\(", PAGE)) | set(re.findall(r"(\w+)=", PAGE))
    fields = {*contract.Algorithm._fields} - {"reuse", "warnings", "unit"}
    assert functions <= fields and fields <= named
    kinds = [contract.Initial, contract.Previous, contract.Average, contract.Mixture]
    kinds += [contract.Sequence, contract.Pair, contract.Group, contract.List]
    assert {kind.__name__ for kind in kinds} <= named
    assert all(dataclasses.is_dataclass(kind) for kind in kinds)
    for name in re.findall(r"`([A-Z]\w+)`", PAGE.partition("## What the loss reads")[0]):
        assert hasattr(algorithms, name), name
