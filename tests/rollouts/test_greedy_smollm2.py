"""Greedy text of real weights: a dozen prompts in one batch against transformers, one by one."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

from polgrad import policies
from polgrad.rollouts import Sampling, generate, pad_prompts

_PATH = Path(__file__).with_name("make_greedy_goldens.py")
_SPEC = importlib.util.spec_from_file_location("make_greedy_goldens", _PATH)
goldens = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(goldens)

# Where transformers' own two best logits are closer than this, rounding decides between them.
TIE = 1e-3


@pytest.fixture(scope="module")
def smollm2():
    return policies.load("smollm2-135m-instruct")


def check(policy, golden):
    rows = golden["rows"]
    tokens, lengths = pad_prompts([row["prompt"] for row in rows], bucket=16, max_length=256)
    assert len(set(lengths)) > len(rows) / 2
    # Fewer slots than prompts: slots are refilled under real weights, too.
    rollout = generate(
        policy.network,
        policy.params,
        tokens,
        lengths,
        np.arange(len(rows)),
        np.zeros(2, np.uint32),
        sampling=Sampling(
            max_tokens=golden["max_tokens"], temperature=0.0, stop_ids=tuple(golden["stop_ids"])
        ),
        slots=8,
    )
    equal = 0
    for index, row in enumerate(rows):
        ours = np.asarray(rollout.completions[index, : rollout.completion_lengths[index]]).tolist()
        if ours == row["tokens"]:
            equal += 1
            continue
        first = next(
            t for t, pair in enumerate(zip(ours, row["tokens"], strict=False)) if len(set(pair)) > 1
        )
        assert row["gaps"][first] < TIE, f"prompt {index} differs at token {first}: {ours}"
    assert equal >= len(rows) - 2


@pytest.mark.slow
@pytest.mark.weights
def test_greedy_tokens_equal_the_goldens(smollm2):
    check(smollm2, json.loads(goldens.GOLDEN.read_text()))


@pytest.mark.slow
@pytest.mark.weights
def test_sampled_log_probabilities_equal_the_training_forward(smollm2, teacher_forced):
    rows = json.loads(goldens.GOLDEN.read_text())["rows"][:4]
    tokens, lengths = pad_prompts([row["prompt"] for row in rows], bucket=16, max_length=256)
    rollout = generate(
        smollm2.network,
        smollm2.params,
        tokens,
        lengths,
        np.arange(4),
        np.zeros(2, np.uint32),
        sampling=Sampling(max_tokens=8, stop_ids=smollm2.text.stop_ids),
    )
    exact = teacher_forced(smollm2.network, smollm2.params, rollout)
    exact = np.take_along_axis(exact, np.asarray(rollout.completions)[..., None], -1)[..., 0]
    np.testing.assert_allclose(rollout.behavior_logp, exact * rollout.mask, atol=1e-4)


@pytest.mark.weights
@pytest.mark.parity
def test_greedy_tokens_equal_transformers_live(smollm2, tmp_path):
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    policies.export(tmp_path / "smollm2", smollm2)
    # Other prompts than the goldens'.
    prompts = [f"{prompt} Answer in one word." for prompt in goldens.PROMPTS]
    check(smollm2, goldens.greedy(tmp_path / "smollm2", prompts, max_tokens=12))
