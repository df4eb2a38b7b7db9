"""Whole runs on a tiny policy: files, resuming, stopping, people's own code and data."""

import contextlib
import dataclasses
import json
import pathlib
import shutil
import signal
import types

import chat_families
import jax
import numpy as np
import pytest

from polgrad import algorithms, data, policies, training
from polgrad.policies.hub import assets
from polgrad.rewards import RewardFailure, RewardPool, RewardSpec
from polgrad.serving import evaluating, sampling
from polgrad.serving.loading import load
from polgrad.training import collecting, loop
from polgrad.training.config import (
    Data,
    Evaluation,
    Rewards,
    Rollouts,
    Saving,
    Small,
    TrainConfig,
    Update,
    WarmStart,
)
from polgrad.training.runtime import hosts
from polgrad.training.saving import description
from polgrad.training.saving.lines import read_lines
from polgrad.training.saving.reading import restore_params
from polgrad.training.setup import building, opening, planning
from polgrad.training.setup.problems import tokenize

TINY = Small(layers=1, width=16, heads=2, mlp=32)
LINES = [{"prompt": f"{a}+{b}=", "answer": str(a + b)} for a in range(6) for b in range(6)]


@pytest.fixture(scope="module")
def sums(tmp_path_factory):
    """A file of sums."""
    path = tmp_path_factory.mktemp("data") / "sums.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in LINES))
    # An untrained policy is never right, but its completions differ in length.
    (path.parent / "shorter.py").write_text(
        "def shorter(prompt, completion, example):\n    return -0.1 * len(completion)\n"
    )
    return path


def config(sums, out, **changes):
    base = TrainConfig(
        task=str(sums),
        steps=4,
        out=str(out),
        mesh="data=1",
        data=Data(held_out=0.3),
        small=TINY,
        rollouts=Rollouts(prompts=4, group_size=4, max_tokens=3),
        warm_start=WarmStart(steps=3, demonstrations=8, batch=4),
        rewards=Rewards(functions=(f"{sums.parent / 'shorter.py'}:shorter",)),
        evaluation=Evaluation(problems=6),
        saving=Saving(every=2, samples_every=2, tensorboard=False),
    )
    return dataclasses.replace(base, **changes)


@pytest.fixture(scope="module")
def result(sums, tmp_path_factory):
    """A run that nothing disturbs."""
    return training.train(config(sums, tmp_path_factory.mktemp("run")), quiet=True)


def same(a, b):
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b)))


def test_a_run_leaves_its_files_and_metrics(result):
    rows = read_lines(result.directory / "metrics.jsonl")
    assert [r["step"] for r in rows] == [1, 2, 3, 4]
    wanted = {"reward_mean", "reward_std", "entropy", "kl_reference", "clip_fraction"}
    wanted |= {"gradient_norm", "completion_length", "invalid_rewards", "parity_gap"}
    wanted |= {"tokens_per_second", "seconds"}
    assert all(wanted <= r.keys() for r in rows)
    assert "accuracy" in rows[-1] and "accuracy" not in rows[0]
    assert rows[0]["kl_reference"] == pytest.approx(0, abs=1e-6) and rows[-1]["kl_reference"] > 0
    assert max(r["parity_gap"] for r in rows) < 1e-4
    samples = read_lines(result.directory / "samples.jsonl")
    assert {s["step"] for s in samples} == {1, 3}
    assert {"prompt", "completion", "reward", "reason"} <= samples[0].keys()
    assert (result.directory / "reward.png").stat().st_size > 1000
    assert result.before.problems == result.after.problems == 6


def test_every_metric_is_defined_once_in_the_documentation(result):
    text = (pathlib.Path(__file__).parents[2] / "docs" / "metrics.md").read_text()
    for name in read_lines(result.directory / "metrics.jsonl")[-1]:
        assert text.count(f"| `{name}`") + text.count(f", `{name}`") == 1, name


@pytest.mark.slow
def test_a_profile_holds_the_steps_after_compilation(sums, tmp_path):
    changes = {"steps": 6, "profile": True, "evaluation": Evaluation(problems=0)}
    training.train(config(sums, tmp_path, warm_start=WarmStart(), **changes), quiet=True)
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))


def test_the_newest_checkpoint_is_the_final_state(result):
    params, step = restore_params(result.directory)
    assert step == 4
    assert same(params, jax.device_get(result.state.params))


def test_a_run_without_a_limit_of_memory_starts_its_workers_without_one(monkeypatch):
    class Pool(contextlib.nullcontext):
        def __init__(self, specs, **settings):
            super().__init__(self)
            self.settings = settings

        def wait_ready(self):
            pass

    monkeypatch.setattr(opening, "RewardPool", Pool)
    for memory, expected in ((None, None), (256, 1 << 28)):
        parts = types.SimpleNamespace(
            config=types.SimpleNamespace(rewards=Rewards(memory=memory)),
            algorithm=types.SimpleNamespace(samples=True),
            processes=types.SimpleNamespace(count=1),
            reward_specs=[],
            test=None,
        )
        with contextlib.ExitStack() as stack:
            assert opening.start_pools(parts, stack).reward.settings["memory"] == expected


def test_sigterm_saves_and_resume_ends_bit_for_bit_as_an_undisturbed_run(
    sums, tmp_path, result, monkeypatch
):
    settings = config(sums, tmp_path, resume=True, saving=Saving(every=100, tensorboard=False))
    step = loop._Loop._step

    def stop_after_the_third(self, number, state, initial):
        outcome = step(self, number, state, initial)
        if number == 3:
            signal.raise_signal(signal.SIGTERM)
        return outcome

    monkeypatch.setattr(loop._Loop, "_step", stop_after_the_third)
    stopped = training.train(settings, quiet=True)
    assert stopped.stopped and int(stopped.state.step) == 3
    monkeypatch.setattr(loop._Loop, "_step", step)
    # What a kill leaves behind: a row past the checkpoint, and half a line.
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "reward_mean": 9}\n{"step": 5, "rew')
    resumed = training.train(settings, quiet=True)
    assert not resumed.stopped
    assert same(resumed.state.params, result.state.params)
    assert same(resumed.state.optimizer, result.state.optimizer)
    assert [r["step"] for r in read_lines(tmp_path / "metrics.jsonl")] == [1, 2, 3, 4]
    assert resumed.before == result.before


def test_scores_of_steps_that_are_run_again_come_from_the_journal(sums, tmp_path, monkeypatch):
    settings = config(
        sums, tmp_path, resume=True, steps=3, saving=Saving(every=2, tensorboard=False)
    )
    first = training.train(settings, quiet=True)
    # As if killed in step 3, before a checkpoint of it: the step is run again from step 2.
    shutil.rmtree(tmp_path / "checkpoints" / "3")
    calls = []
    score = RewardPool.score

    def counted(self, items, **settings):
        calls.append(len(items))
        return score(self, items, **settings)

    monkeypatch.setattr(RewardPool, "score", counted)
    again = training.train(settings, quiet=True)
    assert same(first.state.params, again.state.params)
    assert 16 not in calls, "the rollout of step 3 was scored again"


def test_a_checkpoint_of_another_shape_is_refused(sums, result):
    wider = dataclasses.replace(TINY, width=32)
    settings = config(sums, result.directory, small=wider, resume=True, steps=5)
    words = (
        r"cannot be resumed with --small.width \(16 there, 32 here\): .* has shape .*another --out"
    )
    for allowed in ((), ("small", "network")):
        with pytest.raises(ValueError, match=words) as error:
            training.train(dataclasses.replace(settings, allow_changed=allowed), quiet=True)
        assert "network" not in str(error.value) and "allow" not in str(error.value)
    # What has the same shape, may go on.
    settings = config(sums, result.directory, seed=7, resume=True)
    with pytest.raises(ValueError, match="allow the change: --allow-changed seed$"):
        training.train(settings, quiet=True)


def test_non_finite_updates_are_skipped_and_then_stop_the_run(sums, tmp_path):
    class Broken(algorithms.GRPO):
        def surrogate(self, logp, behavior_logp, advantages, mask):
            return logp * np.nan

    settings = config(sums, tmp_path, settings=Broken(), update=Update(max_skipped=2))
    with pytest.raises(training.TrainingError, match="not finite in 2 updates in a row"):
        training.train(settings, quiet=True)
    rows = read_lines(tmp_path / "metrics.jsonl")
    assert rows[0]["skipped_updates"] == 1 and rows[0]["loss"] is None


def test_a_sampler_that_disagrees_with_the_trainer_stops_the_run(sums, tmp_path):
    settings = config(sums, tmp_path, parity_tolerance=1e-12)
    with pytest.raises(training.TrainingError, match="parity_tolerance"):
        training.train(settings, quiet=True)
    # The samples of the step may tell why; a step that has not ended has no line of metrics.
    assert {row["step"] for row in read_lines(tmp_path / "samples.jsonl")} == {1}
    assert read_lines(tmp_path / "metrics.jsonl") == []


def test_peoples_own_algorithm_and_reward_by_path(sums, tmp_path):
    code = tmp_path / "mine.py"
    code.write_text(
        "import dataclasses\n"
        "from polgrad.algorithms import GRPO\n\n"
        "@dataclasses.dataclass(frozen=True)\n"
        "class Mine(GRPO):\n"
        "    gain: float = 2.0\n"
        "    def surrogate(self, logp, behavior_logp, advantages, mask):\n"
        "        return -self.gain * advantages * logp\n"
    )
    settings = config(sums, tmp_path / "run", steps=1, algorithm=f"{code}:Mine")
    outcome = training.train(settings, quiet=True)
    assert outcome.metrics["reward_mean"] <= 0
    assert outcome.parts.config.settings.gain == 2.0


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("topr", "f_dpg", "online_dpo")]


@pytest.mark.sampled(1)
@pytest.mark.parametrize("name", ["ppo", "clip_cov", "nash_md", *SLOW])
def test_every_family_trains(sums, tmp_path, name):
    outcome = training.train(
        config(sums, tmp_path, algorithm=name, steps=2, evaluation=Evaluation(problems=0)),
        quiet=True,
    )
    assert np.isfinite(outcome.metrics["gradient_norm"])
    assert outcome.metrics["skipped_updates"] == 0


@pytest.mark.slow
def test_off_policy_updates_and_packing(sums, tmp_path):
    update = Update(epochs=2, mini_batches=2, micro_batches=2, packing=True)
    settings = config(sums, tmp_path, steps=2, update=update, evaluation=Evaluation(problems=0))
    # Samples of rounded weights are off-policy too.
    rollouts = dataclasses.replace(settings.rollouts, weights="int8")
    outcome = training.train(dataclasses.replace(settings, rollouts=rollouts), quiet=True)
    assert int(outcome.state.step) == 2 and np.isfinite(outcome.metrics["gradient_norm"])
    assert 1e-4 < outcome.metrics["parity_gap"] < 1


@pytest.mark.slow
def test_offline_pairs_raise_the_margin(tmp_path):
    path = tmp_path / "pairs.jsonl"
    rows = [{"prompt": f"{i}:", "chosen": "a", "rejected": "b"} for i in range(10)]
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    settings = config(
        path,
        tmp_path / "run",
        algorithm="dpo",
        steps=20,
        warm_start=WarmStart(),
        rewards=Rewards(),
        data=Data(held_out=0.0),
        optimizer=training.Optimizer(learning_rate=1e-2),
    )
    outcome = training.train(settings, quiet=True)
    assert outcome.metrics["pair_accuracy"] == 1.0 and outcome.metrics["margin"] > 0.1


@pytest.mark.slow
def test_supervised_learns_its_demonstrations(sums, tmp_path):
    settings = config(
        sums,
        tmp_path,
        algorithm="supervised",
        steps=60,
        optimizer=training.Optimizer(learning_rate=1e-2),
        evaluation=Evaluation(problems=0),
        warm_start=WarmStart(),
    )
    training.train(settings, quiet=True)
    losses = [r["loss"] for r in read_lines(tmp_path / "metrics.jsonl")]
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.slow
def test_plain_prompts_and_stops_of_a_run_stay_with_its_policy(sums, tmp_path):
    alphabet = data.CharacterTokenizer("0123456789+=")
    network = policies.TransformerNetwork(
        policies.TransformerConfig(vocab_size=14, width=16, layers=1, heads=2, mlp_width=32)
    )
    text = description.character_assets(alphabet)._replace(
        chat_template="{{ '9' + messages[0]['content'] }}"
    )
    policies.export(
        tmp_path / "chat", policies.Policy(network, network.init(jax.random.key(0)), text)
    )
    plain = config(
        sums,
        tmp_path / "run",
        policy=str(tmp_path / "chat"),
        steps=1,
        data=Data(held_out=0.3, chat_template=False),
        rollouts=Rollouts(prompts=8, group_size=8, max_tokens=4, stop=("+", "=")),
    )
    first = building.build(plain).train
    digit, plus, equals = alphabet.encode("9+=")
    assert first.tokens[0, : first.lengths[0]].tolist() == alphabet.encode(
        first.source[0]["prompt"]
    )
    chat = dataclasses.replace(plain, data=Data(held_out=0.3), rollouts=Rollouts())
    assert (building.build(chat).train.tokens[:, 0] == digit).all()
    training.train(plain, quiet=True)
    for row in read_lines(tmp_path / "run" / "samples.jsonl"):
        assert not set("+=") & set(row["completion"])
    _, tokenizer = load(str(tmp_path / "run"))
    assert tokenizer.chat_template is None
    assert tokenizer.stop_ids == (alphabet.eos_id, plus, equals)
    assert 0 <= evaluating.evaluate_policy(str(tmp_path / "run"), problems=4).value <= 1


def test_the_first_lines_show_a_prompt_the_scorers_and_a_known_answer(sums, tmp_path, capsys):
    changed = algorithms.GRPO(clip_high=0.28)
    sizes = {"steps": 1, "rollouts": Rollouts(prompts=4, group_size=4)}
    training.train(config(sums, tmp_path, settings=changed, **sizes))
    said = capsys.readouterr().out
    assert "first prompt, as the policy reads it: '" in said
    assert "reward: shorter.py:shorter; the known answer '" in said and "' scores -0.1" in said
    assert "held-out accuracy: polgrad.rewards.verifiers:exact_match; the known answer '" in said
    assert "' scores 1\n" in said
    assert "defaults for a small policy: " in said and "--rollouts.max-tokens 8" in said
    assert "note: clip_high has no effect: with one update" in said


class ReadsEntropy(algorithms.GRPO):
    """Uses an entropy that it did not require."""

    def loss(self, outputs, batch, context):
        loss, metrics = super().loss(outputs, batch, context)
        return loss - 0.1 * outputs.entropy.sum(), metrics


class ReadsReference(algorithms.GRPO):
    """Uses a reference that it did not require."""

    def batch_loss(self, outputs, batch, behavior_logp):
        return outputs.logp - batch["reference_logp"]


class TakesAKey(algorithms.GRPO):
    """Has a loss with the arguments of version 0.1."""

    def build(self, context):
        return super().build(context)._replace(loss=lambda outputs, batch, key: (0.0, {}))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (algorithms.GRPO(clip_low=-0.1), "clip_low is -0.1"),
        (algorithms.GRPO(clip_high=float("nan")), "clip_high is nan"),
        (
            algorithms.DAPO(overlong=algorithms.OverlongPenalty(9)),
            "buffer is 9, expected at most max_length = 3$",
        ),
        (algorithms.ClipCov(fraction=2.0), "fraction is 2"),
        (algorithms.PPO(lambda_=1.5), "lambda_ is 1.5"),
        (algorithms.NFT(epsilon=0.0), "epsilon is 0"),
        (algorithms.TOPR(positive=(2.0, 1.0)), "positive is"),
        (algorithms.DisCO(tau=-1.0), "tau is -1"),
        (algorithms.Reinforce(baseline="bacth"), "baseline is 'bacth'"),
        (ReadsEntropy(), "ReadsEntropy: test_loop.py, line .*NoneType.*needs. has them"),
        (ReadsReference(), "ReadsReference.*the batch has no 'reference_logp'.*policies. has NAME"),
        (algorithms.GroupRelative(), r"GroupRelative has no method surrogate\(logp, behavior_logp"),
        (
            TakesAKey(),
            r"TakesAKey: .*expected loss\(outputs, batch\): missing a required argument: 'key'",
        ),
    ],
)
def test_settings_of_an_algorithm_are_checked_at_the_start(sums, tmp_path, settings, words):
    with pytest.raises(ValueError, match=words):
        name = type(settings).__name__
        building.build(config(sums, tmp_path / "new", settings=settings, algorithm=name))
    assert not (tmp_path / "new").exists()


def test_answers_of_a_file_are_compared_by_the_reward_that_compares_answers(sums, tmp_path):
    def scorer(*functions):
        run = config(sums, tmp_path / "run", rewards=Rewards(functions=functions))
        (spec,) = building.build(run).task_specs
        return spec.target.rpartition(":")[2]

    own, math, number = (
        f"{sums.parent / 'shorter.py'}:shorter",
        "polgrad.rewards.verifiers:math_verify",
        "polgrad.rewards.verifiers:numeric_match",
    )
    assert scorer() == scorer(own) == scorer(math, number) == "exact_match"
    assert scorer(math) == scorer(own, math) == "math_verify"
    assert scorer(number) == "numeric_match"


def test_a_run_without_one_finite_update_fails(sums, tmp_path):
    @dataclasses.dataclass(frozen=True)
    class Broken(algorithms.GRPO):
        def surrogate(self, logp, behavior_logp, advantages, mask):
            return super().surrogate(logp, behavior_logp, advantages, mask) * np.nan

    with pytest.raises(loop.TrainingError, match="no update changed the policy: .*not finite in 2"):
        training.train(config(sums, tmp_path, steps=2, settings=Broken()), quiet=True)


def test_pairs_set_the_length_of_completions(tmp_path):
    path = tmp_path / "pairs.jsonl"
    lines = [{"prompt": f"{i}?", "chosen": "y" * 11, "rejected": "n"} for i in range(8)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    settings = config(path, tmp_path / "run", algorithm="dpo", rollouts=Rollouts(prompts=4))
    settings = dataclasses.replace(
        settings, warm_start=WarmStart(), rewards=Rewards(), steps=1, data=Data()
    )
    assert training.train(settings, quiet=True).parts.config.rollouts.max_tokens == 12


@pytest.mark.parametrize(
    ("algorithm", "fields", "empty"),
    [
        ("supervised", ("answer",), "answer"),
        ("dpo", ("chosen", "rejected"), "chosen"),
        ("dpo", ("chosen", "rejected"), "rejected"),
    ],
)
def test_an_empty_completion_is_refused_with_its_row(tmp_path, algorithm, fields, empty):
    path = tmp_path / "data.jsonl"
    rows = [{"prompt": f"{i}?", **dict.fromkeys(fields, "y")} for i in range(8)]
    rows[3][empty] = " "
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = dataclasses.replace(
        config(path, tmp_path / "run", algorithm=algorithm),
        warm_start=WarmStart(),
        rewards=Rewards(),
        data=Data(held_out=0.0),
    )
    with pytest.raises(ValueError, match=f"(row 3|line 4): field '{empty}' is empty, expected"):
        building.build(settings)
    assert not (tmp_path / "run").exists()


class Said:
    """A reporter that keeps its lines."""

    def __init__(self):
        self.lines = []

    def say(self, text):
        self.lines.append(text)


def test_answers_that_the_reward_cannot_read_are_told_before_the_first_step(tmp_path):
    path = tmp_path / "times.jsonl"

    def parts(times, out):
        rows = [*LINES, *({"prompt": f"{i}h", "answer": "1:30"} for i in range(times))]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        reward = Rewards(functions=("polgrad.rewards.verifiers:numeric_match",))
        settings = config(path, tmp_path / out, rewards=reward, data=Data(held_out=0.0))
        return building.build(settings)

    with pytest.raises(
        opening.StartError, match="12 of 48 answers have no reward.* is not one number"
    ):
        loop.run(parts(12, "many"), quiet=True)
    left = [path for path in (tmp_path / "many").rglob("*") if path.is_file()]
    assert {path.name for path in left} == {".lock"}
    few, reporter = parts(1, "one"), Said()
    with RewardPool(few.reward_specs) as pool:
        opening.check_answers(few, pool, reporter)
    assert len(reporter.lines) == 1 and "1 of 37 answers cannot be compared" in reporter.lines[0]
    assert "more than 10% of them stops the run" in reporter.lines[0]


COMPARES = """
def reward(prompt, completion, example):
    return float(completion > example["opponent"])
"""


def test_the_check_of_answers_gives_a_reward_an_opponent(tmp_path):
    (tmp_path / "compares.py").write_text(COMPARES)
    target = f"{tmp_path / 'compares.py'}:reward"
    lines = [*LINES, {"prompt": "p", "chosen": "a", "rejected": "b"}]
    parts = types.SimpleNamespace(
        config=TrainConfig(rewards=Rewards(functions=(target,))),
        algorithm=algorithms.NashMD().build(training.Context(4, 3, 4, True)),
        train=types.SimpleNamespace(source=lines, tokens=np.zeros((1, 1), int), lengths=[1]),
        tokenizer=types.SimpleNamespace(shown=str),
        processes=hosts.Processes(60.0),
    )
    signs = []
    parts.processes.working = lambda: signs.append("at work")
    with RewardPool([RewardSpec(target)]) as pool:
        opening.check_answers(parts, pool, Said())
        assert signs
        assert planning.first_example(parts, pool, None)[1].endswith("'0' scores 0")
        parts.algorithm = algorithms.GRPO().build(training.Context(4, 3, 4, True))
        with pytest.raises(RewardFailure, match="KeyError: 'opponent'"):
            opening.check_answers(parts, pool, Said())


def test_a_first_answer_that_cannot_be_scored_does_not_stop_the_run(tmp_path):
    path = tmp_path / "times.jsonl"
    path.write_text("".join(json.dumps({**line, "answer": "1:30"}) + "\n" for line in LINES))
    reward = Rewards(functions=("polgrad.rewards.verifiers:numeric_match",))
    changes = {"rewards": reward, "data": Data(held_out=0.0), "warm_start": WarmStart()}
    parts = building.build(config(path, tmp_path / "run", **changes))
    with RewardPool(parts.reward_specs) as pool:
        lines = planning.first_example(parts, pool, None)
    assert lines[1].endswith("reward: polgrad.rewards.verifiers:numeric_match")
    wanted = "WARNING: polgrad.rewards.verifiers:numeric_match gives no value for the right answer "
    assert lines[2].startswith(f"{wanted}'1:30': ") and "--rewards.failure-limit" in lines[2]


def test_prompts_without_a_template_are_told_where_one_should_be(sums, tmp_path, capsys):
    hub = chat_families.tokenizer()
    text = assets.text_assets(hub.to_str(), None, ids={"eos": 0})
    network = policies.TransformerNetwork(
        policies.TransformerConfig(
            vocab_size=hub.get_vocab_size(), width=16, layers=1, heads=2, mlp_width=32
        )
    )
    params = network.init(jax.random.key(0))
    policies.export(tmp_path / "hub", policies.Policy(network, params, text))
    line = "no chat template was found, though the tokenizer has <|im_start|>"
    sampling.sample(str(tmp_path / "hub"), "1+1=", max_tokens=1)
    assert line in capsys.readouterr().err

    for wanted in (True, False):
        reporter = Said()
        settings = config(sums, tmp_path / "run", policy=str(tmp_path / "hub"))
        settings = dataclasses.replace(settings, data=Data(held_out=0.3, chat_template=wanted))
        opening.say_missing_template(building.build(settings), reporter)
        assert [line in said for said in reporter.lines] == [True] * wanted


@pytest.mark.parametrize("family", chat_families.FAMILIES)
def test_demonstrations_end_as_the_policy_ends_a_turn(family, sums, tmp_path):
    template, bos, eos, turn, begins = chat_families.FAMILIES[family]
    hub = chat_families.tokenizer(bos if begins else None)
    ids = {"bos": None if bos is None else hub.token_to_id(bos), "eos": hub.token_to_id(eos)}
    text = assets.text_assets(hub.to_str(), template, ids=ids)
    for own, end in ((text, turn), (text._replace(chat_template=None), eos)):
        tokenizer = data.from_assets(own)
        problems = tokenize(data.load_task(sums, split="all"), tokenizer, 200)
        batch = collecting.encode_completions(
            problems, tokenizer, np.arange(3), "answer", max_tokens=40
        )
        for row in range(3):
            length = batch["completion_lengths"][row]
            tokens = batch["completions"][row, :length].tolist()
            prompt = problems.tokens[row, : problems.lengths[row]].tolist()
            assert hub.token_to_id(end) in tokens[-2:] and batch["mask"][row].sum() == length
            assert tokenizer.decode(tokens).split()[-1] == LINES[row]["answer"]
            assert prompt + tokens == tokenizer.prompt_ids(LINES[row]["prompt"]) + (
                tokenizer.completion_ids(LINES[row]["prompt"], LINES[row]["answer"])
            )


def test_settings_are_checked_before_anything_is_written(sums, tmp_path):
    for name, hint in (
        ("grpo", "give --settings.sampler-correction truncated_weights"),
        ("kl_cov", "give --settings.sampler-correction truncated_weights"),
        ("topr", "has no sampler_corr"),
    ):
        bad = config(sums, tmp_path / "new", algorithm=name, rollouts=Rollouts(weights="int8"))
        with pytest.raises(ValueError, match=f"rollouts.weights is 'int8'.*{hint}"):
            building.build(bad)
    bad = config(sums, tmp_path / "new", update=Update(compute_dtype="bfloat16"))
    with pytest.raises(ValueError, match="update.compute_dtype is 'bfloat16'; expected float32 on"):
        building.build(bad)
    bad = config(sums, tmp_path / "new", update=Update(attention="splash"))
    with pytest.raises(ValueError, match="update.attention is 'splash', which runs on a TPU"):
        building.build(bad)
    bad = config(sums, tmp_path / "new", rollouts=Rollouts(stop=("=",)))
    with pytest.raises(ValueError, match="rollouts.stop is .*policy small"):
        building.build(bad)
    assert not (tmp_path / "new").exists()
