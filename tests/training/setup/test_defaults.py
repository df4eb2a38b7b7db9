"""What a run takes for the settings that were left out, by the kind of policy and of data."""

import dataclasses

import pytest

from polgrad import algorithms
from polgrad.contract import Context
from polgrad.training.config import Rollouts, TrainConfig, Update, WarmStart
from polgrad.training.optimizers import Optimizer
from polgrad.training.setup import defaults

PRETRAINED = TrainConfig(policy="smollm2-135m-instruct", steps=150)


CONTEXT = Context(group_size=4, max_tokens=8, num_prompts=8, on_policy=True)


def choose(config, algorithm="grpo", parameters=135_000_000, context=2048, longest=None):
    algorithm = algorithms.find(algorithm)().build(CONTEXT)
    chosen = defaults.choose(
        config, algorithm, parameters=parameters, context=context, longest=longest
    )
    return chosen.config, chosen.line


def test_the_small_policy_keeps_its_large_steps_on_short_texts():
    config, line = choose(TrainConfig())
    assert config.optimizer == Optimizer(learning_rate=1e-3, schedule="constant", warmup=0)
    assert (config.rollouts.prompts, config.rollouts.max_tokens) == (64, 8)
    assert line.startswith("defaults for a small policy: --rollouts.prompts 64, ")


def test_pretrained_weights_take_small_steps_with_a_warm_up_and_long_answers():
    config, line = choose(PRETRAINED)
    assert config.optimizer == Optimizer(learning_rate=1e-5, schedule="linear", warmup=8)
    assert (config.rollouts.prompts, config.rollouts.max_tokens) == (16, 256)
    assert "pretrained weights of 135,000,000 parameters" in line
    for flag in (
        "--optimizer.learning-rate 1e-05",
        "--optimizer.warmup 8",
        "--rollouts.max-tokens",
    ):
        assert flag in line


@pytest.mark.parametrize(
    ("algorithm", "parameters", "rate"),
    [
        ("grpo", 999_999_999, 1e-5),
        ("grpo", 1_000_000_000, 1e-6),
        ("dpo", 8_000_000_000, 1e-6),
        ("supervised", 135_000_000, 2e-5),
        ("supervised", 8_000_000_000, 1e-5),
    ],
)
def test_the_rate_falls_with_the_size(algorithm, parameters, rate):
    config, _ = choose(PRETRAINED, algorithm=algorithm, parameters=parameters)
    assert config.optimizer.learning_rate == rate


def test_what_is_given_is_kept_and_not_named():
    given = dataclasses.replace(
        PRETRAINED,
        rollouts=Rollouts(prompts=3, max_tokens=5),
        optimizer=Optimizer(learning_rate=0.5, schedule="cosine", warmup=0),
    )
    config, line = choose(given)
    assert (config.rollouts, config.optimizer) == (given.rollouts, given.optimizer)
    assert line is None


def test_a_warm_start_has_defaults_of_its_own():
    asked = dataclasses.replace(PRETRAINED, warm_start=WarmStart(steps=100))
    config, line = choose(asked)
    assert config.warm_start.optimizer == Optimizer(learning_rate=2e-5, schedule="cosine", warmup=5)
    assert "--warm-start.optimizer.learning-rate 2e-05" in line
    assert "warm-start" not in choose(PRETRAINED)[1]
    small = choose(TrainConfig(warm_start=WarmStart(steps=100)))[0].warm_start.optimizer
    assert small.learning_rate == 1e-3


def test_lengths_follow_the_data_and_the_context():
    assert choose(PRETRAINED, algorithm="dpo", longest=37)[0].rollouts.max_tokens == 37
    assert choose(PRETRAINED, algorithm="dpo", longest=37)[0].rollouts.prompts == 32
    assert choose(PRETRAINED, context=100)[0].rollouts.max_tokens == 50


def test_the_warm_up_is_a_twentieth_of_all_updates():
    several = dataclasses.replace(PRETRAINED, update=Update(epochs=2, mini_batches=2))
    assert choose(several)[0].optimizer.warmup == 30


def test_the_parity_limit_follows_the_precision():
    assert TrainConfig().parity_limit == 0.01
    assert TrainConfig(update=Update(compute_dtype="bfloat16")).parity_limit == 0.5
    assert TrainConfig(rollouts=Rollouts(weights="int8")).parity_limit == 1.0
    assert TrainConfig(parity_tolerance=0.2).parity_limit == 0.2
