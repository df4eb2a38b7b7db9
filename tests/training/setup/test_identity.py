"""What a run that goes on may change: each setting is in one of two tables, and is compared."""

import dataclasses
import inspect
import json
import sys
import types

import pytest

from polgrad import algorithms, data, policies
from polgrad.training.config import Data, Evaluation, Rewards, Rollouts, Saving, Small, TrainConfig
from polgrad.training.optimizers import Optimizer
from polgrad.training.setup import building, fingerprints, identity, ownership, run_files

FIELDS = {f.name for f in dataclasses.fields(TrainConfig)}
STARTS = {"resume", "resume_from", "allow_changed"}


def leaves(settings, prefix=""):
    """Every setting by its dotted name, with its value."""
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if dataclasses.is_dataclass(value):
            yield from leaves(value, f"{prefix}{field.name}.")
        else:
            yield prefix + field.name, value


LEAVES = dict(leaves(TrainConfig()))


def tables(name):
    return [identity._within(name, table) for table in (identity.DECIDES, identity.FREE)]


@pytest.mark.parametrize("name", LEAVES)
def test_every_setting_is_in_one_table(name):
    assert sum(tables(name)) == 1, f"{name} belongs to identity.DECIDES or to identity.FREE"


@pytest.mark.parametrize("name", [*identity.DECIDES, *identity.FREE])
def test_the_tables_name_settings_alone(name):
    assert any(leaf == name or leaf.startswith(f"{name}.") for leaf in LEAVES)


def other(value):
    """Another value of the same kind."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, (int, float)):
        return value + 1
    if isinstance(value, tuple):
        return (*value, "x")
    return f"{value}x" if isinstance(value, str) else "7"


def run_of(config):
    return run_files.Stored(run_files.plain(config), {}, "runs/a")


BASE = TrainConfig(settings=algorithms.GRPO())


@pytest.mark.parametrize("name", sorted(LEAVES.keys() - STARTS - {"settings"}))
def test_each_change_is_refused_by_name_or_passes(name):
    here = run_files._set(BASE, name.split("."), other(LEAVES[name]))
    found = identity.changes(run_of(BASE), here, {})
    assert [change.name for change in found] == [name]
    if not tables(name)[0]:
        identity.check(run_of(BASE), found, ())
        return
    with pytest.raises(ValueError) as error:
        identity.check(run_of(BASE), found, ())
    text = str(error.value)
    assert "\n" not in text and f"--allow-changed {name}" in text and "runs/a" in text
    identity.check(run_of(BASE), found, (name.replace("_", "-"),))
    identity.check(run_of(BASE), found, (name.partition(".")[0],))


def test_all_differences_stand_in_one_line():
    here = dataclasses.replace(
        BASE, seed=7, settings=algorithms.GRPO(clip_high=0.3), steps=9, optimizer=Optimizer(b1=0.5)
    )
    found = identity.changes(run_of(BASE), here, {})
    with pytest.raises(ValueError) as error:
        identity.check(run_of(BASE), found, ("seed",))
    text = str(error.value)
    assert "settings.clip_high (0.2 there, 0.3 here)" in text
    assert "optimizer.b1 (0.9 there, 0.5 here)" in text
    assert text.endswith("--allow-changed optimizer.b1 settings.clip_high")


def test_another_algorithm_is_one_difference():
    here = dataclasses.replace(BASE, algorithm="rloo", settings=algorithms.RLOO())
    assert [c.name for c in identity.changes(run_of(BASE), here, {})] == ["algorithm"]


@pytest.mark.parametrize("name", sorted(LEAVES.keys() - STARTS - {"settings"}))
def test_a_setting_that_an_earlier_version_did_not_write_had_its_default(name):
    run = run_of(BASE)
    *sections, last = name.split(".")
    place = run.config
    for section in sections:
        place = place[section]
    del place[last]
    assert identity.changes(run, BASE, {}) == []
    assert run_files.settings_of(run.config, "config.json") == dataclasses.replace(
        BASE, settings=None
    )


def test_settings_of_the_algorithm_that_an_earlier_version_did_not_write():
    run = run_of(BASE)
    del run.config["settings"]["clip_high"]
    assert identity.changes(run, BASE, {}) == []
    assert run_files.algorithm_settings_of(run.config, algorithms.GRPO, "f") == BASE.settings


def test_retired_settings_pass_with_their_only_value(tmp_path):
    run = run_of(BASE)
    run.config["rollouts"] |= {"top_k": 0, "top_p": 1.0, "min_p": 0.0}
    assert identity.changes(run, BASE, {}) == []
    assert run_files.settings_of(run.config, "f").rollouts == BASE.rollouts
    run.config["rollouts"]["top_k"] = 5
    with pytest.raises(ValueError, match="f: this version has no setting rollouts.top_k"):
        run_files.settings_of(run.config, "f")
    assert [c.name for c in identity.changes(run, BASE, {})] == ["rollouts.top_k"]


@pytest.mark.parametrize("name", identity.FINGERPRINTS)
def test_what_is_read_from_outside_is_compared(name):
    run = run_of(BASE)._replace(record={"id": "1", "fingerprints": {name: "a"}})
    assert identity.changes(run, BASE, {name: "a"}) == identity.changes(run, BASE, {}) == []
    found = identity.changes(run, BASE, {name: "b"})
    with pytest.raises(ValueError, match=rf"{name} \(.*--allow-changed {name}$"):
        identity.check(run, found, ())
    identity.check(run, found, (name,))


@pytest.mark.parametrize(
    ("names", "shown"),
    [
        (["network", "small.width"], "--small.width (1 there, 2 here): x"),
        (["rollouts.max_tokens", "steps"], "--rollouts.max-tokens (1 there, 2 here): x"),
        (
            ["train_problems", "tokenizer", "network"],
            "--task (the training problems are others): x",
        ),
        (
            ["optimizer.learning_rate", "train_problems", "tokenizer", "network"],
            "--task (the training problems are others): x",
        ),
        (
            ["seed", "network", "data.held_out", "test_problems", "small.width"],
            "--data.held-out (1 there, 2 here); --small.width (1 there, 2 here): x",
        ),
        (
            ["algorithm", "network", "tokenizer"],
            "--algorithm (1 there, 2 here); --policy (the policy has another tokenizer or chat "
            "template): x",
        ),
        (["optimizer.b1", "optimizer.method"], "--optimizer.method (1 there, 2 here): x"),
        (
            ["reward_source", "seed"],
            "--rewards.functions (a file of the reward has another text); "
            "--seed (1 there, 2 here): x",
        ),
        (["network"], "--policy (the policy's network computes something else): x"),
        (["algorithm_source"], "--algorithm (a file of the algorithm has another text): x"),
    ],
)
def test_what_cannot_be_resumed_is_named_as_it_was_typed(names, shown):
    found = [identity.Change(name, 1, 2) for name in names]
    for allowed in ((), tuple(names)):
        with pytest.raises(ValueError) as error:
            identity.check(run_of(BASE), found, allowed, "x")
        assert f"cannot be resumed with {shown}. Give the run's own" in str(error.value)
    assert {*identity.FLAG_OF} == {*identity.FINGERPRINTS}


@pytest.mark.parametrize("name", identity.SHAPES)
def test_what_may_change_a_shape_decides(name):
    assert identity.decides(name) and any(leaf.startswith(name) for leaf in LEAVES)
    assert {*identity.FOLLOWS} < {*identity.FINGERPRINTS}


@pytest.mark.parametrize(
    ("given", "hint"),
    [("optimizer.learning_rat", "did you mean optimizer.learning_rate"), ("zzz", "no setting")],
)
def test_a_name_that_is_no_setting(given, hint):
    with pytest.raises(ValueError, match=hint):
        identity.check(run_of(BASE), [], (given,))


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", "{}", '{"task": "a"}', '{"task":"a","algorithm":"b","data":3}']
)
def test_a_file_that_holds_no_settings(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match="config.json: ") as error:
        run_files.stored(tmp_path)
    assert "\n" not in str(error.value)


def test_a_longer_run_keeps_its_warm_up_and_says_what_becomes_of_the_rate():
    begun = dataclasses.replace(
        BASE, steps=4, optimizer=Optimizer(learning_rate=1e-3, schedule="linear", warmup=2)
    )
    here = run_files.filled(dataclasses.replace(BASE, steps=8), run_of(begun))
    assert here.optimizer == begun.optimizer
    note = identity.schedule_note(here, run_of(begun), 4)
    assert "8 steps instead of 4" in note and "0.000667" in note and note.endswith("been 0")
    assert identity.schedule_note(begun, run_of(begun), 4) is None


def test_an_algorithm_that_was_typed_into_a_notebook(monkeypatch):
    session, lines = types.ModuleType("__main__"), {}
    exec("class Mine:\n    def build(self): pass\n", session.__dict__)
    monkeypatch.setitem(sys.modules, "__main__", session)
    assert fingerprints.of_algorithm(session.Mine()) == ""
    monkeypatch.setattr(inspect, "getsource", lambda part: lines[part.__name__])
    lines["Mine"] = "gain = 1"
    first = fingerprints.of_algorithm(session.Mine())
    lines["Mine"] = "gain = 2"
    assert first and first != fingerprints.of_algorithm(session.Mine())


# What a run reads from outside, built and compared, without a step.


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Problems, a reward and an algorithm in files of their own."""
    folder = tmp_path_factory.mktemp("files")
    rows = [{"prompt": f"{a}+1=", "answer": str(a + 1)} for a in range(9)]
    (folder / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "rew.py").write_text("def fn(prompt, completion, example):\n    return 1.0\n")
    (folder / "mine.py").write_text("from polgrad.algorithms import GRPO as Mine\nMINE = Mine()\n")
    return folder


def config_of(folder, out, **changes):
    base = TrainConfig(
        task=str(folder / "sums.jsonl"),
        steps=2,
        out=str(out),
        mesh="data=1",
        data=Data(held_out=0.3),
        small=Small(layers=1, width=8, heads=2, mlp=8),
        rollouts=Rollouts(prompts=2, group_size=2, max_tokens=3),
        rewards=Rewards(functions=(f"{folder / 'rew.py'}:fn",)),
        saving=Saving(tensorboard=False),
    )
    return dataclasses.replace(base, **changes)


def begun(folder, out, **changes):
    """A run that has written who it is; its settings, to go on with."""
    config = config_of(folder, out, **changes)
    parts = building.build(config)
    ownership.record(parts, "0123456789abcdef", 0)
    return dataclasses.replace(config, resume=True)


def test_a_changed_file_of_the_run_is_refused(files, tmp_path):
    config = begun(files, tmp_path / "run")
    before = {
        path.name: path.read_bytes() for path in (tmp_path / "run").iterdir() if path.is_file()
    }
    building.build(config)
    task, reward = files / "sums.jsonl", files / "rew.py"
    kept = task.read_text(), reward.read_text()
    try:
        task.write_text(kept[0].replace('"answer": "3"', '"answer": "4"'))
        reward.write_text(kept[1].replace("1.0", "2.0"))
        with pytest.raises(ValueError) as error:
            building.build(config)
        assert str(error.value).endswith("--allow-changed train_problems reward_source")
        names = ("train_problems", "reward_source")
        parts = building.build(dataclasses.replace(config, allow_changed=names))
        assert {change.name for change in parts.changes} == set(names)
    finally:
        task.write_text(kept[0])
        reward.write_text(kept[1])
    assert before == {
        path.name: path.read_bytes() for path in (tmp_path / "run").iterdir() if path.is_file()
    }


@pytest.mark.parametrize(("before", "after"), [(5, 0), (0, 5)])
def test_held_out_problems_come_and_go_and_the_alphabet_stays(files, tmp_path, before, after):
    task = tmp_path / "sums.jsonl"
    task.write_text((files / "sums.jsonl").read_text())
    held_out = data.load_task(str(task), split="test", held_out=0.3)[0]["answer"]
    # A character that only a held-out answer has.
    text = task.read_text().replace(f'"answer": "{held_out}"', '"answer": "z"')
    task.write_text(text)
    settings = {"task": str(task), "evaluation": Evaluation(problems=before)}
    config = begun(files, tmp_path / "run", **settings)
    changed = dataclasses.replace(config, evaluation=Evaluation(problems=after))
    parts = building.build(changed)
    assert ("z" in parts.tokenizer.alphabet) == bool(before)
    assert [change.name for change in parts.changes] == ["evaluation.problems"]
    # Neither start tells the next one of the other's alphabet.
    ownership.record(parts, "0123456789abcdef", 0)
    again = building.build(dataclasses.replace(changed, evaluation=Evaluation(problems=before)))
    assert again.tokenizer.alphabet == parts.tokenizer.alphabet


def test_a_changed_algorithm_file_is_refused_and_an_object_is_taken(files, tmp_path):
    code = tmp_path / "alg.py"
    code.write_text(
        "import dataclasses\nfrom polgrad.algorithms import GRPO\nfrom polgrad.training import "
        "Context\n@dataclasses.dataclass(frozen=True)\nclass Mine(GRPO):\n    gain: float = 2.0\n"
        "OBJECT = Mine()\n"
        "BUILT = Mine().build(Context(2, 3, 9, True))\n"
    )
    for name in ("Mine", "OBJECT", "BUILT"):
        config = begun(files, tmp_path / name, algorithm=f"{code}:{name}")
        building.build(config)
        json.loads((tmp_path / name / "config.json").read_text())
    text = code.read_text()
    code.write_text(text.replace("2.0", "3.0"))
    config = config_of(files, tmp_path / "OBJECT", algorithm=f"{code}:OBJECT", resume=True)
    with pytest.raises(
        ValueError, match=r"settings.gain \(2.0 there, 3.0 here\).*algorithm_source"
    ):
        building.build(config)


def test_a_template_that_writes_the_date_is_noticed(files, tmp_path, monkeypatch):
    from polgrad.training.saving import description

    alphabet = data.CharacterTokenizer("0123456789+=")
    shape = policies.TransformerConfig(vocab_size=14, width=8, layers=1, heads=2, mlp_width=8)
    network = policies.TransformerNetwork(shape)
    import jax

    text = description.character_assets(alphabet)._replace(
        chat_template="{{ strftime_now('%S%f')[:6] + messages[0]['content'] }}"
    )
    policies.export(
        tmp_path / "hub", policies.Policy(network, network.init(jax.random.key(0)), text)
    )
    config = begun(files, tmp_path / "run", policy=str(tmp_path / "hub"))
    with pytest.raises(
        ValueError, match="train_prompts .*as where a chat template writes the date"
    ):
        building.build(config)


def test_paths_are_kept_so_that_another_folder_finds_them(files, tmp_path, monkeypatch):
    monkeypatch.chdir(files)
    relative = {"task": "sums.jsonl", "rewards": Rewards(functions=("rew.py:fn",))}
    config = begun(files, tmp_path / "run", **relative)
    monkeypatch.chdir(tmp_path)
    kept = run_files.read_settings(tmp_path / "run" / "config.json")
    assert kept["task"] == str(files / "sums.jsonl")
    assert kept["rewards"]["functions"] == [f"{files / 'rew.py'}:fn"]
    config = dataclasses.replace(run_files.settings_of(kept, "config.json"), resume=True)
    assert building.build(config).changes == ()


def test_relative_paths_of_an_earlier_version_are_the_same_files(files, tmp_path, monkeypatch):
    config = begun(files, tmp_path / "run")
    path = tmp_path / "run" / "config.json"
    raw = json.loads(path.read_text())
    raw["task"], raw["rewards"]["functions"] = "sums.jsonl", ["rew.py:fn"]
    path.write_text(json.dumps(raw))
    (tmp_path / "run" / "identity.json").unlink()
    monkeypatch.chdir(files)
    assert building.build(config).changes == ()


def test_settings_of_version_0_1_are_those_of_today():
    """A part that is written with all its fields equals one number of the version before."""
    config = TrainConfig(settings=algorithms.GRPO(kl=algorithms.KL(0.1)))
    stored = run_files.plain(config)
    stored["settings"] = {"scale": "group", "kl_coefficient": 0.1, "entropy_coefficient": 0.0}
    run = run_files.Stored(stored, {}, "run")
    assert identity.changes(run, config, {}) == []
    stored["settings"]["kl_coefficient"] = 0.2
    (change,) = identity.changes(run, config, {})
    assert (change.name, change.there, change.here) == ("settings.kl.coefficient", 0.2, 0.1)


def test_another_part_is_allowed_by_the_name_of_its_setting():
    names = ["settings.kl.part", "settings.kl.coefficient", "settings.kl.reference.part", "seed"]
    assert identity._sections(names) == ["settings.kl", "seed"]
    assert identity._sections(["settings.kl.coefficient"]) == ["settings.kl.coefficient"]
