"""The README's promises: its examples run as they are printed, and ten lines are ten."""

import dataclasses
import json
import os
import pathlib
import re
import shlex
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from schemas import COMMANDS
from stored import GROUP, PROMPTS, T, stored_rollouts

from polgrad import _flags, advantages, algorithms, cli, conformance, experiments, training
from polgrad.cli.common import value_of
from polgrad.cli.train import train_schema
from polgrad.contract import Context, Outputs
from polgrad.experiments import settings, sweeping
from polgrad.training.config import Data, Evaluation, Rewards, Rollouts, Saving, Small, TrainConfig
from polgrad.training.setup.algorithm import find_algorithm

README = (pathlib.Path(__file__).parents[1] / "README.md").read_text()


def block(heading, number=0):
    """A Python block of a section, the first one by default."""
    section = re.search(rf"##+ {heading}\n(.*?)(?=\n## |\Z)", README, re.DOTALL)[1]
    return re.findall(r"```python\n(.*?)```", section, re.DOTALL)[number]


def lines(code):
    return [line for line in code.splitlines() if line.strip()]


def test_the_notebook_example_runs_and_is_ten_lines(capsys):
    code = block("In a notebook")
    assert len(lines(code)) <= 10
    exec(compile(code, "README.md", "exec"), {})
    printed = capsys.readouterr().out
    values = np.array(re.findall(r"-?\d+\.\d*", printed), float)
    # One right sample of three tokens pulls up, its neighbours down, padding not at all.
    assert values.size == 12 and values[0] < 0 and values[2] == 0


def short_run(tmp_path, task, algorithm, **changes):
    """Two steps of an algorithm in a file, on a file of problems."""
    config = TrainConfig(
        task=str(tmp_path / task),
        algorithm=str(tmp_path / algorithm),
        steps=2,
        out=str(tmp_path / "run"),
        mesh="data=1",
        data=Data(held_out=0.0),
        small=Small(layers=1, width=16, heads=2, mlp=32),
        evaluation=Evaluation(problems=0),
        saving=Saving(tensorboard=False),
        **changes,
    )
    return training.train(config, quiet=True)


def test_the_loss_of_ten_lines_is_ten_lines_and_trains(tmp_path):
    code = block("Add a loss in ten lines")
    assert len(lines(code)) <= 10
    (tmp_path / "mine.py").write_text(code)
    (tmp_path / "short.py").write_text("def f(p, completion, e):\n    return -len(completion)\n")
    rows = [{"prompt": f"{i}=", "answer": str(i)} for i in range(10)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    outcome = short_run(
        tmp_path,
        "rows.jsonl",
        "mine.py:SoftClip",
        rollouts=Rollouts(prompts=4, group_size=4, max_tokens=3),
        rewards=Rewards(functions=(f"{tmp_path / 'short.py'}:f",)),
    )
    assert outcome.parts.config.settings.width == 0.2
    assert outcome.metrics["gradient_norm"] > 0 and outcome.metrics["skipped_updates"] == 0


def test_the_pair_loss_of_the_readme_trains_and_is_its_function(tmp_path):
    code = block("Add a loss in ten lines", 1)
    assert len(lines(code)) <= 10
    (tmp_path / "pairs.py").write_text(code)
    rows = [{"prompt": f"{i}=", "chosen": str(i), "rejected": "x"} for i in range(8)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    outcome = short_run(
        tmp_path, "pairs.jsonl", "pairs.py:SquaredHinge", rollouts=Rollouts(prompts=4)
    )
    assert outcome.parts.config.settings.beta == 0.1
    assert outcome.metrics["gradient_norm"] > 0
    # At the initial policy every log-ratio is 0.
    first = json.loads((outcome.directory / "metrics.jsonl").read_text().splitlines()[0])
    assert abs(first["loss"] - 1.0) < 1e-5


def test_the_sequence_loss_of_the_readme_has_the_gradient_of_its_function(tmp_path):
    code = block("Add a loss in ten lines", 2)
    assert len(lines(code)) <= 10
    (tmp_path / "tempered.py").write_text(code)
    found = find_algorithm(f"{tmp_path / 'tempered.py'}:Tempered")
    assert [f.name for f in dataclasses.fields(found)][-1] == "power"
    experience = {name: jnp.asarray(x) for name, x in stored_rollouts().items()}
    algorithm = found(power=0.3).build(Context(GROUP, T, PROMPTS, on_policy=False))
    _, batch, _ = algorithm.prepare((), experience, None)
    logp = experience["behavior_logp"] - 0.1 * experience["mask"]
    ours = jax.grad(lambda x: algorithm.loss(Outputs(x), batch)[0])(logp)
    rewards, valid = (experience[n].reshape(PROMPTS, GROUP) for n in ("rewards", "valid"))
    advantage = advantages.group_relative(rewards, valid=valid).ravel()
    counted = experience["mask"] * experience["valid"][:, None]
    length = counted.sum(-1)
    # d/dlogp of -weight A sum(logp): the same for each token of an answer.
    wanted = -np.exp(0.3 * -0.1 * experience["mask"].sum(-1)) * advantage / (length > 0).sum()
    np.testing.assert_allclose(
        ours, (wanted * (length > 0))[:, None] * experience["mask"], atol=1e-6
    )


def test_the_run_in_one_program_learns(capsys):
    code = block("A whole run in one program")
    exec(compile(code.replace(", 16)", ", 2)"), "README.md", "exec"), {})
    rewards = np.array(re.findall(r"nan|\d+\.\d+", capsys.readouterr().out)[-5:], float)
    assert np.isnan(rewards[0]) and rewards[-1] > rewards[1] + 0.05


def mine(**settings):
    """The README's algorithm."""
    names = {}
    exec(compile(block("Add a loss in ten lines"), "README.md", "exec"), names)
    return names["SoftClip"](**settings)


def soft_clip(**settings):
    """The README's loss as a function."""
    return mine(**settings).surrogate


def test_the_loss_of_ten_lines_conforms():
    card = conformance.check(soft_clip())
    assert card.failures == (), str(card)
    on_policy = [m.follows for m in card.measurements if m.staleness == 0.0]
    assert on_policy == ["policy gradient"] * 2


def test_the_loss_of_ten_lines_does_what_its_text_says():
    width, x = 0.4, np.array([-0.4, -0.1, 0.0, 0.1, 0.8])
    loss = soft_clip(width=width)
    for advantage in (2.0, -2.0):
        pull = -jax.grad(lambda p, a=advantage: loss(p, 0 * p, jnp.full((1, 1), a), None).sum())(
            jnp.asarray(x, jnp.float32)[None]
        )[0]
        with_it = np.where(x * advantage > 0, np.square(x / width), 0.0)
        np.testing.assert_allclose(pull, advantage * np.exp(x - with_it), rtol=1e-5)


@pytest.mark.slow
def test_the_control_example_learns(capsys):
    code = block("Control worlds")
    exec(compile(code, "README.md", "exec"), {})
    assert float(capsys.readouterr().out) > 150  # upright for 20 steps by chance


def test_importing_one_function_needs_no_trainer():
    code = block("In a notebook") + "\nimport sys\nassert 'flax' not in sys.modules\n"
    environment = os.environ | {"PYTHONPATH": str(pathlib.Path(__file__).parents[1])}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment, capture_output=True)


def test_the_commands_on_experiments_name_what_there_is():
    commands = re.findall(r"^polgrad (run|sweep) (\w+)(.*)$", README, re.MULTILINE)
    assert {kind for kind, _, _ in commands} == {"run", "sweep"}
    for kind, name, rest in commands:
        experiment = experiments.find(name).experiment
        pairs = re.findall(r"--set (\S+)", rest)
        read = settings.parse if kind == "run" else sweeping.grid
        assert len(read(experiment.settings, pairs)) == len(pairs)
        for arms in re.findall(r"--arms (\S+)", rest):
            assert set(arms.split(",")) <= experiment.arms.keys()


def commands():
    """The `polgrad` commands of the README's shell blocks and tables, split as a shell does."""
    code = "\n".join(re.findall(r"```bash\n(.*?)```", README, re.DOTALL)).replace("\\\n", " ")
    code += "\n" + "\n".join(re.findall(r"`(polgrad [^`]*)`", README))
    for line in code.splitlines():
        words = shlex.split(line.replace("$'", "'"), comments=True)
        if words[:1] == ["polgrad"] and len(words) > 2:
            yield pytest.param(words[1], words[2:], id=line[:60])


SCHEMAS = {
    "train": TrainConfig,
    **COMMANDS,
}


def flags_of(command, algorithm=None):
    """The flags of a command by name; with the settings of an algorithm, the README's own too."""
    flags = list(_flags._flags(SCHEMAS[command]))
    if command == "train":
        own = algorithm is not None and algorithm.endswith(":SoftClip")
        found = type(mine()) if own else algorithms.find(algorithm or "grpo")
        flags += _flags._flags(found, "settings.")
    if command == "compile":
        extra = ("--topology", "--mesh")
        flags += [_flags.Flag(name, str, False, False, False, False) for name in extra]
    return {flag.name: flag for flag in flags}


@pytest.mark.parametrize(("command", "words"), list(commands()))
def test_a_command_has_the_flags_that_it_is_given(command, words):
    if "--help" not in words:
        flags = flags_of(command, value_of(words, "--algorithm"))
        _flags._check([*words], flags, f"polgrad {command}", needs_all=command != "train")


def test_the_flags_of_the_tables_are_there():
    known = {"--help", "--no-cache", "--config", "--no-deps"}  # --no-deps is pip's
    for command in cli.COMMANDS:
        known |= flags_of(command).keys()
    for algorithm in (mine(), algorithms.PolicyGradient()):
        known |= {flag.name for flag in _flags._flags(train_schema(algorithm))}
    found = {name.rstrip(".") for name in re.findall(r"(?<![\w-])--[a-z][\w.-]*", README)}
    found = {name if name in known else re.sub(r"(^--|\.)no-", r"\1", name) for name in found}
    assert len(found) > 40 and found <= known, found - known
