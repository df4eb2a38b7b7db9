import ast
import contextlib
import functools
import math
import os
import pathlib
import subprocess
import sys
import time

import pytest

from polgrad.rewards import (
    Canary,
    RewardFailure,
    RewardPool,
    RewardSpec,
    Score,
    canary_set,
    interruptions,
    process,
    worker,
)
from polgrad.rewards import pool as pool_module
from polgrad.rewards.score import Failure

MY = """
import mmap, multiprocessing, os, random, signal, sys, time
from polgrad.rewards import Score

class Own(BaseException):
    pass

def frame(text):
    return len(text).to_bytes(8, "big") + text

JUNK = [
    b"x",
    b"hello\\n" * 10,
    frame(b"[0, 63.0, true, ''"),
    frame(b'[0, 63.0, true, "", false, false]'),
    frame(b'["0123456789abcdef", 63.0, true, "", false, false]'),
    frame(b'{"ready": 1}'),
    frame(b"[" * 100_000),
    b"\\xff" * 100,
    (1 << 62).to_bytes(8, "big"),
    b"\\0" * 2_000_000,
]

def reward(prompt, completion, example):
    word, _, rest = completion.partition(" ")
    if word == "spin":
        while True:
            pass
    if word == "lock":
        9 ** 9 ** 9  # one instruction that holds the interpreter lock for ever
    if word == "sleep":
        time.sleep(float(rest))
    if word == "announce":
        print(os.getpid(), flush=True)
        time.sleep(60)
    if word == "exit":
        os._exit(3)
    if word == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if word == "raise":
        raise RuntimeError("cannot judge " + rest)
    if word == "leave":
        sys.exit(1)
    if word == "interrupt":
        raise KeyboardInterrupt
    if word == "own":
        raise Own("enough")
    if word == "realtime":
        os.kill(os.getpid(), 40)
    if word == "fork":
        return 1.0 if os.fork() else 0.0  # the child comes back to the worker's loop as well
    if word == "multiprocess":
        process = multiprocessing.get_context("fork").Process(target=time.time)
        process.start()
        process.join()
    if word == "junk":
        for handle in range(3, 30):
            try:
                os.write(handle, JUNK[int(rest)])
            except OSError:
                pass
    if word == "memory":
        return float(len(bytearray(1 << 33)))
    if word == "reserve":
        return float(len(mmap.mmap(-1, 1 << 33, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, prot=0)))
    if word == "variable":
        return float(os.environ[rest])
    if word == "key":
        return float({}[rest])
    if word == "environment":
        return Score(0.0, True, repr(sorted(os.environ)))
    if word == "judge":
        return Score(0.0, False, rest)
    if word == "nan":
        return float("nan")
    if word == "none":
        return None
    if word == "close":
        os.closerange(0, 200)
    if word == "print":
        print("x" * 100_000, flush=True)
        os.write(1, b"\\0" * 64)
        os.system("echo from a child")
    if word == "read":
        return float(len(sys.stdin.read()))
    if word == "alarm":
        signal.alarm(1)
    if word == "random":
        return random.random()
    if word == "modules":
        banned = ("jax", "jaxlib", "flax", "tensorflow", "tensorflow_datasets", "torch")
        return Score(0.0, True, ",".join(name for name in banned if name in sys.modules))
    if word == "pid":
        return Score(0.0, True, str(os.getpid()))
    if word == "main":
        return Score(0.0, True, sys.modules["__main__"].__dict__.get("__file__", "none"))
    if word == "example":
        return Score(0.0, True, repr(example))
    return float(len(completion))
"""
BEGIN = 1 + MY.splitlines().index("def reward(prompt, completion, example):")
TIMEOUT = 1.0
reads_proc = pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="reads /proc")


@pytest.fixture(scope="module")
def target(tmp_path_factory):
    path = tmp_path_factory.mktemp("my") / "my.py"
    path.write_text(MY)
    return f"{path}:reward"


@pytest.fixture(scope="module")
def pool(target):
    with RewardPool(
        [RewardSpec(target)], workers=2, timeout=TIMEOUT, failure_limit=1.0
    ) as instance:
        instance.wait_ready()
        yield instance


def line_of(word):
    """The line below the one that looks for a word."""
    lines = MY.splitlines()
    return 2 + next(i for i, s in enumerate(lines) if f'word == "{word.split()[0]}"' in s)


def score(pool, *completions):
    return pool.score([("prompt", completion, {}) for completion in completions])


def test_scores_come_in_the_order_of_the_items(pool):
    completions = ["x" * n for n in (5, 1, 4, 2, 8, 0, 3)]
    completions[2] = "sleep 0.1"  # finishes after those that follow
    assert [s.value for s in score(pool, *completions)] == [5, 1, 9, 2, 8, 0, 3]
    assert score(pool) == []


@pytest.mark.parametrize(
    ("completion", "reason"),
    [
        ("spin", "timeout after 1 s"),
        ("lock", "timeout after 1 s"),
        ("sleep 60", "timeout after 1 s"),
        ("exit", "worker died (exit code 3)"),
        ("crash", "worker died (signal SIGSEGV)"),
        ("realtime", "worker died (signal 40)"),
        ("raise this", "my.py, line LINE: RuntimeError: cannot judge this"),
        ("leave", "my.py, line LINE: called sys.exit(1)"),
        ("own", "my.py, line LINE: Own: enough"),
        ("interrupt", "KeyboardInterrupt"),
        ("nan", f"my.py, line {BEGIN}: returned nan"),
        (
            "none",
            f"my.py, line {BEGIN}: returned nothing, expected a number, True, False or a Score",
        ),
    ],
)
def test_a_failure_is_invalid_with_its_reason_and_harms_no_other(pool, completion, reason):
    scores = score(pool, "a", completion, "bb", "ccc")
    assert scores[1] == Score(0.0, False, reason.replace("LINE", str(line_of(completion))))
    assert isinstance(scores[1], Failure)
    assert [scores[i] for i in (0, 2, 3)] == [Score(1.0), Score(2.0), Score(3.0)]


def test_a_worker_that_closes_its_pipes_is_replaced(pool):
    scores = score(pool, "close", "a")
    assert not scores[0].valid and scores[0].reason.startswith("worker died")
    assert scores[1] == Score(1.0)


@pytest.mark.parametrize("kind", range(10))
def test_a_reply_that_cannot_be_read_ends_the_worker_and_not_the_run(pool, kind):
    """Text, half a message, messages of other forms, forged scores, claims of huge lengths."""
    odd, *rest = score(pool, f"junk {kind}", "a", "bb", "ccc")
    # An incomplete message is completed by the true reply, and is no message then.
    assert not odd.valid and odd.reason.startswith(("worker ended (its reply", "timeout after"))
    assert rest == [Score(1.0), Score(2.0), Score(3.0)]


def test_only_the_process_that_was_started_replies(pool):
    assert [s.value for s in score(pool, *["fork", "a"] * 8)] == [1.0] * 16
    assert score(pool, "multiprocess") == [Score(12.0)]


@pytest.mark.skipif(sys.platform != "linux", reason="the limit of memory is Linux's")
def test_memory_is_bounded_and_the_process_replaced(target):
    with RewardPool([RewardSpec(target)], memory=1 << 30, failure_limit=1.0, timeout=20.0) as one:
        before, big, after, reserved = score(one, "pid", "memory", "pid", "reserve")
        # What is only reserved takes no memory: CUDA, wasm and many threads do so.
        assert reserved == Score(2.0**33)
        assert big == Score(
            0.0,
            False,
            f"out of memory: my.py, line {line_of('memory')}: MemoryError "
            "(the limit is --rewards.memory 1024 MiB)",
        )
        assert before.valid and after.valid and before.reason != after.reason
        assert interruptions([before, big, after]) == {1: big}


def test_a_variable_that_is_not_passed_on_is_said_with_the_flag(pool):
    hint = "(--rewards.environment NAME passes a variable on)"
    first, second = score(pool, "variable NO_SUCH_NAME", "key x")
    assert first.reason.endswith(f"KeyError: 'NO_SUCH_NAME' {hint}")
    assert not second.valid and hint not in second.reason


@pytest.mark.parametrize(
    "text", ["MemoryError", "failed to map: Cannot allocate memory", "can't start new thread"]
)
def test_a_start_that_lacks_memory_names_the_limit(text):
    error = ValueError(f"my.py, line 1: {text}")
    assert worker._start_error(error, 1 << 30).endswith("(the limit is --rewards.memory 1024 MiB)")
    assert worker._start_error(error, None) == str(error)
    assert worker._start_error(ValueError("no module"), 1 << 30) == "no module"


def test_a_worker_sees_the_variables_of_the_list_alone(target, monkeypatch):
    for name in ("HF_TOKEN", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY", "MY_JUDGE"):
        monkeypatch.setenv(name, "secret")
    monkeypatch.setenv("LANG", "C")
    with RewardPool([RewardSpec(target)], environment=("MY_JUDGE",)) as one:
        seen = set(ast.literal_eval(score(one, "environment")[0].reason))
    own = {"MY_JUDGE", "POLGRAD_REWARD_WORKER", *process.KEPT, *process.ALWAYS}
    # Python itself may set the first, and macOS the second.
    assert (
        {"LANG", "MY_JUDGE", "JAX_PLATFORMS"}
        <= seen
        <= own | {"LC_CTYPE", "__CF_USER_TEXT_ENCODING"}
    )


def test_an_example_that_is_nested_too_deeply_is_one_line(pool):
    deep = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(ValueError, match="nested so deeply"):
        pool.score([("", "a", {"deep": deep})])
    assert score(pool, "a") == [Score(1.0)]


def test_the_deadline_is_of_a_sample_and_not_of_the_queue(pool):
    # Six samples of 0.4 s on two workers end after more than the deadline, and all count.
    assert all(s.valid for s in score(pool, *["sleep 0.4"] * 6))


def test_what_a_reward_prints_and_reads_does_not_meet_the_protocol(pool):
    assert [s.value for s in score(pool, "print", "read", "a")] == [5.0, 0.0, 1.0]


def test_an_alarm_left_behind_does_not_hit_the_next_sample(target):
    with RewardPool([RewardSpec(target)], timeout=3.0) as one:
        assert all(s.valid for s in score(one, "alarm", "sleep 1.2"))


@pytest.mark.parametrize("text", ["\ud800 \udfff", "é\0\n", "x" * 3_000_000, '"\\'])
def test_any_text_survives(pool, text):
    assert score(pool, text) == [Score(float(len(text)))]


def test_examples_arrive_unchanged(pool):
    example = {"answer": "é", "metadata": {"grid": ((1, 2), (3,)), "by": {1: "a"}, "x": None}}
    assert pool.score([("", "example", example)])[0].reason == repr(example)


def test_a_sample_has_its_own_random_stream(pool):
    first = score(pool, "random a", "random b", "random a")
    assert first == score(pool, *["random a", "random b", "random a"])
    assert first[0] == first[2] != first[1]


def test_workers_have_neither_jax_nor_the_callers_main_module(pool):
    modules, main = score(pool, "modules", "main")
    assert modules == Score(0.0, True, "")
    assert main.reason == "none"


VERIFIERS = "polgrad.rewards.verifiers"


def test_importing_data_and_rewards_brings_no_jax():
    code = (
        f"import sys, polgrad.data, polgrad.rewards, {VERIFIERS}; "
        "print(sorted({'jax', 'tensorflow_datasets', 'reasoning_gym', 'math_verify', "
        "'tokenizers', 'jinja2', 'pyarrow'} & set(sys.modules)))"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, env=environment)
    assert run.stdout.strip() == b"[]", run.stderr


ENDLESS = r"$\binom{1000000000}{500000000}$"


def test_the_packages_own_rewards_in_a_worker():
    entry = {"question": "1 + 2 =", "answer": "3", "metadata": {}}
    example = {
        "prompt": "1 + 2 =",
        "answer": "3",
        "metadata": {"task": "chain_sum", "parameters": {}, "entry": entry},
    }
    specs = [
        RewardSpec(f"{VERIFIERS}:reasoning_gym_score"),
        RewardSpec(f"{VERIFIERS}:math_verify", weight=0.5),
        RewardSpec(f"{VERIFIERS}:length_penalty", 0.1, {"free": 4, "limit": 8}),
    ]
    with RewardPool(specs, timeout=3.0, failure_limit=1.0) as pool:
        pool.canaries(canary_set([example]))
        # The library would compute this number, digit by digit, until the deadline.
        items = [("", completion, example) for completion in ("3", "4", ENDLESS)]
        right, wrong, endless = pool.score(items)
    assert right == Score(1.5) and wrong == Score(0.0)
    assert endless == Score(0.0, False, "timeout after 3 s")


FAILED = (
    r"^3 of 20 samples have no reward; more than a share of 0.1 stops the run. The most common "
    rf"reason \(3 of 3\): 'my.py, line {BEGIN}: returned nan'. --rewards.failure-limit sets"
)


def test_samples_that_take_too_long_name_the_flag_of_the_timeout():
    late = ["timeout after 5 s"] * 2 + ["my.py, line 3: returned nan"]
    with pytest.raises(RewardFailure, match=r"\(2 of 3\): 'timeout after 5 s'. --rewards.timeout"):
        pool_module.check_failures(late, 10, 0.1)


@pytest.mark.parametrize(
    ("answers", "limit", "stops"),
    [
        (["raise 1", "nan", "none", "raise 2"], 0.1, True),
        (["raise 1"], 0.1, True),
        (["raise 1", "nan", "none", "raise 2"], 1.0, False),  # the user wants it so
        (["raise 1", "right"], 0.1, False),  # it can score some
        (["judge program.py, line 1: invalid syntax"] * 4, 0.1, False),  # the reward says so itself
        (["raise 1", "exit"], 0.1, True),
        (["exit"], 0.1, True),
        ([], 0.1, False),
    ],
)
def test_a_reward_that_fails_on_every_right_answer_stops_at_the_start(pool, answers, limit, stops):
    examples = [{"prompt": "p", "answer": answer} for answer in answers]
    with pytest.raises(RewardFailure) if stops else contextlib.nullcontext() as caught:
        assert pool.check_answers(examples, limit=limit) == []
    if stops:
        assert f"each of the {len(answers)} right answers" in str(caught.value)
        first = f"my.py, line {line_of('raise')}: " if answers[0] == "raise 1" else "worker died ("
        assert f"on '{answers[0]}' with '{first}" in str(caught.value)


READS = """
import pathlib, time

def reward(prompt, completion, example):
    place = pathlib.Path(completion)
    while not place.exists():
        time.sleep(0.01)
    return 1.0
"""


@pytest.mark.parametrize("also", [[], ["exact_match"]], ids=["a_few_answers", "all_answers"])
def test_the_check_of_answers_tells_that_it_is_at_work(tmp_path, monkeypatch, also):
    """The answer gets its score when the check has told so three times during that one sample."""
    monkeypatch.setattr(pool_module, "_PAUSE", 0.01)
    (tmp_path / "reads.py").write_text(READS)
    monkeypatch.setattr(pool_module.verifiers, "READS_ANSWERS", tuple(also))
    specs = [RewardSpec(name) for name in (f"{tmp_path / 'reads.py'}:reward", *also)]
    place, signs = tmp_path / "there", []

    def working():
        signs.append(pool._workers[0].index)
        if signs.count(0) == 3:
            place.touch()

    with RewardPool(specs, timeout=20.0) as pool:
        pool.wait_ready()
        examples = [{"prompt": "p", "answer": str(place)}]
        assert pool.check_answers(examples, limit=0.1, working=working) == []


def test_too_many_failures_stop_with_counts_and_reasons(target):
    with RewardPool([RewardSpec(target)], failure_limit=0.1) as pool:
        assert sum(not s.valid for s in score(pool, *["a"] * 18, "nan", "nan")) == 2
        with pytest.raises(RewardFailure, match=FAILED) as caught:
            score(pool, *["a"] * 17, "nan", "nan", "nan")
        assert "timeout" not in str(caught.value)
        # A few samples say little, unless every one fails.
        assert not score(pool, "a", "nan")[1].valid and not score(pool, "nan")[0].valid
        with pytest.raises(RewardFailure, match="2 of 2"):
            score(pool, "nan", "none")
        # It stops as soon as the limit is passed, and the pool can be used again.
        with pytest.raises(RewardFailure, match=r"^3 of the 3 samples scored so far \(of 20; "):
            score(pool, "nan", "none", "nan", "nan", *["sleep 4"] * 16)
        assert score(pool, "abc") == [Score(3.0)]


def test_canaries(pool):
    pool.canaries([("", "a", {}, True), ("", "", {}, False), ("", "abc", {}, 3.0)])
    with pytest.raises(
        RewardFailure, match=r"completion 'a', answer '7'.*gave 1, expected at most"
    ):
        pool.canaries([Canary("p", "a", {"answer": "7"}, False)])
    with pytest.raises(RewardFailure, match="gave 3, expected 2"):
        pool.canaries([Canary("p", "abc", {}, 2.0)])
    with pytest.raises(RewardFailure, match=r"no value \(my.py, line \d+: returned nan\)"):
        pool.canaries([Canary("p", "nan", {}, False)])


def test_answers_that_cannot_be_compared_are_told_at_once():
    def examples(*answers):
        return [{"prompt": "p", "answer": answer} for answer in answers]

    with RewardPool([RewardSpec(f"{VERIFIERS}:numeric_match")]) as pool:
        check = functools.partial(pool.check_answers, limit=0.1)
        assert check(examples("1", "-$2", "3 apples")) == []
        good = ["7"] * 19
        assert check(examples(*good, "7:30")) == ["answer '7:30' is not one number"]
        with pytest.raises(
            RewardFailure, match=r"2 of 2 answers have no reward.*.1 and 2.* is not one"
        ):
            check(examples("1 and 2", "none"))
        assert check([{"prompt": "p", "chosen": "1", "rejected": "2"}]) == []
    with RewardPool([RewardSpec(f"{VERIFIERS}:exact_match")]) as pool:
        assert pool.check_answers(examples("1 and 2", "none"), limit=0.0) == []


def test_canary_set_has_a_wrong_sample_of_every_example():
    examples = [{"prompt": "p", "answer": "3"}, {"prompt": "q", "answer": ""}]
    assert [(c.completion, c.expected) for c in canary_set(examples)] == [
        ("3", True),
        ("no answer", False),
        ("no answer", False),
    ]


def test_what_was_cut_before_is_cut_again(pool):
    items = [("", completion, {}) for completion in ("a", "exit", "nan", "spin")]
    first = pool.score(items)
    cut = interruptions(first)
    assert sorted(cut) == [1, 3]
    start = time.monotonic()
    assert pool.score(items, replayed=cut) == first
    assert time.monotonic() - start < TIMEOUT  # the replayed samples did not run
    assert score(pool, "a")[0] == Score(1.0)
    replayed = pool.score([("", "a", {}), ("", "sleep 0.1", {})], replayed={0: Score(9.0)})
    assert replayed[0] == Score(9.0)
    with pytest.raises(ValueError, match="replayed holds position 4"):
        pool.score(items, replayed={4: Score(0.0)})


def test_an_idle_worker_that_dies_costs_no_sample(target):
    with RewardPool([RewardSpec(target)]) as pool:
        os.kill(int(score(pool, "pid")[0].reason), 9)
        time.sleep(0.1)
        assert score(pool, "abc") == [Score(3.0)]


FORK = """
import os, subprocess, time
def reward(prompt, completion, example):
    own_session = completion != "group"
    child = subprocess.Popen(["sleep", "60"], start_new_session=own_session)
    open(prompt, "w").write(str(child.pid))
    if completion == "crash":
        os._exit(1)
    if completion != "return":
        time.sleep(60)
    return 1.0
"""


@reads_proc
@pytest.mark.parametrize("how", ["group", "session", "crash", "return"])
def test_children_die_with_their_worker(tmp_path, how):
    """In the worker's group or in a session of their own; at the deadline, a crash or the end."""
    path = tmp_path / "fork.py"
    path.write_text(FORK)
    note = tmp_path / "pid"
    with RewardPool([RewardSpec(f"{path}:reward")], timeout=0.5, failure_limit=1.0) as pool:
        assert pool.score([(str(note), how, {})])[0].valid == (how == "return")
    assert _gone(int(note.read_text()))


def _gone(pid: int) -> bool:
    for _ in range(60):
        try:
            state = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return True
        if state == "Z":  # dead, and waiting for its adopter
            return True
        time.sleep(0.1)
    return False


PARENT = """
import os, sys
from polgrad.rewards import RewardPool, RewardSpec
pool = RewardPool([RewardSpec(sys.argv[1])], timeout=60)
pool.score([("", "announce", {})])
"""


@reads_proc
def test_a_worker_in_a_sample_dies_with_its_trainer(target):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", PARENT, target]
    parent = subprocess.Popen(command, stderr=subprocess.PIPE, env=environment)
    worker = int(parent.stderr.readline())  # printed in the sample, so it has begun
    parent.kill()
    parent.wait()
    parent.stderr.close()
    assert _gone(worker)


@pytest.mark.parametrize(
    ("source", "name", "error", "message"),
    [
        ("def fn(p, c, e): return 1.0", "fnn", ValueError, "has no 'fnn'; did you mean fn"),
        ("def fn(p): return 1.0", "fn", ValueError, r"my\.py, line 1\) .*too many positional"),
        ("1 / 0", "fn", ValueError, r"my\.py, line 1: ZeroDivisionError"),
        ("raise KeyboardInterrupt", "fn", ValueError, "KeyboardInterrupt"),
        (
            "import os; os._exit(5)",
            "fn",
            RewardFailure,
            r"did not start: worker died \(exit code 5",
        ),
        ("import time; time.sleep(60)", "fn", RewardFailure, "did not start: timeout after 1.5 s"),
    ],
)
def test_a_reward_that_cannot_be_imported_stops_at_start(tmp_path, source, name, error, message):
    path = tmp_path / "my.py"
    path.write_text(source)
    limit = 1.5 if "sleep" in source else 60.0
    with (
        RewardPool([RewardSpec(f"{path}:{name}")], start_timeout=limit) as pool,
        pytest.raises(error, match=message),
    ):
        pool.wait_ready()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"workers": 0}, "workers is 0; expected a whole number of at least 1"),
        ({"timeout": 0}, "timeout is 0; expected a number above 0"),
        ({"failure_limit": 2}, r"failure_limit is 2; expected a number in \[0, 1\]"),
        ({"memory": 1000}, r"memory is 1000; expected a whole number in \[2\^28, 2\^63\)"),
        ({"memory": 1e10}, "memory is 10000000000.0; expected a whole number or None"),
        ({"workers": True}, "workers is True; expected a whole number"),
        ({"timeout": math.inf}, "timeout is inf; expected a finite number"),
        ({"timeout": "5"}, "timeout is '5'; expected a number"),
        ({"start_timeout": math.nan}, "start_timeout is nan; expected"),
        ({"environment": ("NO_SUCH_NAME",)}, "NO_SUCH_NAME, which is not set"),
        ({"environment": "PATH"}, "must be a sequence of names"),
        ({"specs": []}, "at least one RewardSpec"),
        ({"specs": [RewardSpec("x")]}, "must have the form"),
        ({"specs": [RewardSpec("gone.py:fn")]}, "no such file"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        RewardPool(**{"specs": [RewardSpec(f"{VERIFIERS}:exact_match")], **settings})


def test_a_closed_pool_says_so(target):
    pool = RewardPool([RewardSpec(target)])
    pool.close()
    pool.close()
    with pytest.raises(ValueError, match="closed"):
        pool.score([("", "", {})])
