import os
import subprocess
import sys

import pytest
import reasoning_gym

from polgrad.data import load_task
from polgrad.data.reasoning_gym import stream_seed

SUMS = {
    "parameters": {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 2},
    "prompt_pattern": r": (.+)$",
}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("built")


def load(data_dir, split="train", size=120, seed=0, **settings):
    return load_task(
        "chain_sum", split=split, size=size, seed=seed, data_dir=data_dir, **{**SUMS, **settings}
    )


def test_examples_hold_the_tasks_own_record(data_dir):
    source = load(data_dir)
    assert len(source) == 120
    scorer = reasoning_gym.create_dataset("chain_sum", size=1, **SUMS["parameters"]).score_answer
    for index in (0, 57, 119, -1):
        example = source[index]
        entry = example["metadata"]["entry"]
        assert example["index"] == index % 120
        assert entry["question"].endswith(": " + example["prompt"])
        assert eval(example["prompt"].rstrip("= ")) == int(example["answer"])
        assert scorer(example["answer"], entry) == 1.0
        assert entry["metadata"]["difficulty"] == {"num_terms": (2, 2), "num_digits": (1, 2)}
        assert example["metadata"]["task"] == "chain_sum"
        assert example["metadata"]["parameters"] == SUMS["parameters"]
    with pytest.raises(IndexError, match="index 120"):
        source[120]


def test_a_problem_has_a_place_for_messages(data_dir):
    source = load(data_dir)
    assert source.place(3) == "problem 3 of chain_sum"
    assert source.place(-1) == "problem 119 of chain_sum"


def test_built_files_that_were_damaged_are_named(data_dir, tmp_path):
    load(tmp_path, size=5)
    records = next(path for path in tmp_path.rglob("*array_record*"))
    records.write_bytes(records.read_bytes()[:-40])
    with pytest.raises(ValueError, match="remove this directory, and it is built again") as caught:
        [load(tmp_path, size=5)[i] for i in range(5)]
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


def test_splits_share_no_prompt_whatever_their_seeds(data_dir):
    def prompts(split, seed):
        return [x["prompt"] for x in map(load(data_dir, split, seed=seed).__getitem__, range(120))]

    train, test = set(prompts("train", 0)) | set(prompts("train", 1)), prompts("test", 0)
    assert not train & (set(test) | set(prompts("test", 1)))
    assert len(set(test)) == 120  # an accuracy counts distinct problems


def test_seeds_share_few_problems(data_dir):
    # The library draws problem i from seed + i: neighbouring seeds would be one stream, shifted.
    first, second = (
        [load(data_dir, seed=seed)[i]["prompt"] for i in range(120)] for seed in (0, 1)
    )
    assert first[1:] != second[:-1] and len(set(first) & set(second)) < 40
    assert 0 <= stream_seed(3, "train") < 2**31 and stream_seed(3, "train") != stream_seed(
        3, "test"
    )


def test_a_second_call_reads_the_first_ones_files(data_dir):
    before = load(data_dir)
    stamps = {path: path.stat().st_mtime_ns for path in data_dir.rglob("*")}
    after = load(data_dir)
    assert {path: path.stat().st_mtime_ns for path in data_dir.rglob("*")} == stamps
    assert [before[i] for i in range(120)] == [after[i] for i in range(120)]
    assert any("array_record" in path.name for path in stamps)


def test_every_setting_has_its_own_directory(data_dir):
    load(data_dir)
    count = len(list(data_dir.iterdir()))
    template = load(data_dir, prompt_template="Q {prompt}")
    assert template[0]["prompt"] == "Q " + load(data_dir)[0]["prompt"]
    assert len(list(data_dir.iterdir())) == count + 1


def test_a_space_that_is_too_small_says_so_and_leaves_nothing(tmp_path):
    with pytest.raises(ValueError, match=r"gave \d+ distinct problems for split 'test'") as caught:
        load(tmp_path, "test", parameters={**SUMS["parameters"], "max_digits": 1})
    assert "at most 22" in str(caught.value) and not list(tmp_path.iterdir())


def test_an_unwritable_directory(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot be written"):
        load(tmp_path / "file" / "below")


@pytest.mark.parametrize("task", ["arc_agi", "graph_color", "letter_counting"])
def test_tuples_survive_and_missing_answers_are_found(data_dir, task):
    # arc_agi's scorer compares tuples; graph_color has no answer of its own, but an example.
    source = load_task(task, size=2, data_dir=data_dir)
    entry = source[1]["metadata"]["entry"]
    score = reasoning_gym.get_score_answer_fn(task)
    assert (entry["answer"] is None) == (task == "graph_color")
    assert score(source[1]["answer"], entry) == 1.0


BUILD = """
import sys, hashlib
from polgrad.data import load_task
source = load_task("chain_sum", size=200, data_dir=sys.argv[1])
digest = hashlib.sha256(repr([source[i] for i in range(200)]).encode()).hexdigest()
print(digest, sorted({"jax", "tensorflow", "torch"} & set(sys.modules)))
"""


@pytest.mark.slow
def test_two_processes_at_once_without_tensorflow_or_jax(tmp_path):
    command = [sys.executable, "-W", "ignore", "-c", BUILD, str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    runs = [
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        for _ in range(2)
    ]
    outputs = [run.communicate(timeout=100)[0] for run in runs]
    assert outputs[0] == outputs[1] and outputs[0].endswith(" []\n")
    # One directory, and nothing half-built beside it; no line printed by the builder.
    assert len(list(tmp_path.iterdir())) == 1 and outputs[0].count("\n") == 1


def test_distinct_training_problems_repeat_no_prompt(tmp_path):
    easy = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}
    prompts = {}
    for distinct in (False, True):
        source = load_task(
            "chain_sum", size=100, parameters=easy, distinct=distinct, data_dir=tmp_path
        )
        prompts[distinct] = [source[i]["prompt"] for i in range(len(source))]
    assert len(set(prompts[True])) == 100 > len(set(prompts[False]))
