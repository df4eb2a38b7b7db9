"""`polgrad train` as several processes of one machine: gradient, a kill, other hosts, a notice."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from polgrad.training.saving.lines import read_lines

pytestmark = pytest.mark.hosts

B1 = 0.9
COMMAND = (
    "train --task chain_sum --policy small --algorithm grpo --data.train-size 64 "
    "--data.test-size 16 --data.parameters min_terms=2 max_terms=2 min_digits=1 max_digits=1 "
    "--small.layers 1 --small.width 32 --rollouts.prompts 8 --rollouts.group-size 4 "
    "--rollouts.max-tokens 4 --evaluation.problems 16 --saving.no-tensorboard "
    f"--optimizer.max-gradient-norm 0 --optimizer.b1 {B1} --saving.every 1 --saving.keep 9999"
).split()
REWARD = "def spread(prompt, completion, example):\n    return sum(map(ord, completion)) % 7 / 7\n"


def usual(changes):
    """The command without the flags that are given anew: a flag may be given once."""
    kept, dropped = [], False
    for part in COMMAND:
        dropped = part in changes if part.startswith("--") else dropped
        kept += [] if dropped else [part]
    return kept


def start(count, out, *changes, folders=None):
    """The processes of a run, each with one device; each in its own folder if they are given."""
    reward = out.parent / "reward.py"
    reward.write_text(REWARD)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    environment = os.environ | {"XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false"}
    # A shared cache of programs would let one process run ahead of those that still compile.
    environment["JAX_ENABLE_COMPILATION_CACHE"] = "0"
    boot = [sys.executable, "-c", "from polgrad.cli import main; main()", *usual(changes)]
    processes = []
    for index in range(count):
        variables = {
            "JAX_COORDINATOR_ADDRESS": f"localhost:{port}",
            "JAX_NUM_PROCESSES": str(count),
            "JAX_PROCESS_ID": str(index),
        }
        processes.append(
            subprocess.Popen(
                [*boot, "--out", str(out), "--rewards.functions", f"{reward}:spread", *changes],
                env=environment | (variables if count > 1 else {}),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                cwd=folders[index] if folders else None,
            )
        )
    return processes


def finish(processes, timeout=300):
    """Their exit codes and what they printed."""
    printed = [p.communicate(timeout=timeout)[0] for p in processes]
    return [p.returncode for p in processes], printed


def wait_for(path, processes, timeout=240):
    """Until a file is there."""
    ends = time.monotonic() + timeout
    while not path.exists():
        assert time.monotonic() < ends and all(p.poll() is None for p in processes), path
        time.sleep(0.2)


def first_gradient(out):
    """Adam's first moment after one step, over the share of the gradient that it takes in."""
    handler = ocp.PyTreeCheckpointHandler()
    item = out / "checkpoints" / "1" / "default"
    as_numpy = jax.tree.map(
        lambda _: ocp.RestoreArgs(restore_type=np.ndarray), handler.metadata(item).tree
    )
    state = handler.restore(item, args=ocp.args.PyTreeRestore(restore_args=as_numpy))
    moments = [
        leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(state["optimizer"])
        if "mu" in jax.tree_util.keystr(path)
    ]
    return np.concatenate([m.ravel() for m in moments]) / (1 - B1)


@pytest.fixture(scope="module")
def four(tmp_path_factory):
    """A run of four processes, one of which is killed; its directory and what was printed."""
    out = tmp_path_factory.mktemp("four") / "run"
    processes = start(4, out, "--steps", "5000")
    wait_for(out / "checkpoints" / "3", processes)
    processes[2].kill()
    return out, *finish(processes)


def test_the_first_gradient_of_four_processes_is_that_of_one(four, tmp_path):
    codes, printed = finish(start(1, tmp_path / "run", "--steps", "1"))
    assert codes == [0], printed
    one, several = first_gradient(tmp_path / "run"), first_gradient(four[0])
    assert np.abs(one).max() > 0.01
    assert np.abs(one - several).max() <= 1e-5 * np.abs(one).max()
    rewards = [read_lines(r / "metrics.jsonl")[0] for r in (tmp_path / "run", four[0])]
    assert rewards[0]["reward_mean"] == pytest.approx(rewards[1]["reward_mean"], abs=1e-6)


def test_each_process_scores_its_share(four):
    rows = [
        row
        for path in four[0].glob("scores*.jsonl")
        for entry in read_lines(path)[:1]
        for row in entry["rows"]
    ]
    assert len(list(four[0].glob("scores*.jsonl"))) == 4 and sorted(rows) == list(range(32))


def test_the_others_end_soon_and_say_who_is_gone(four):
    _, codes, printed = four
    assert codes[2] == -signal.SIGKILL and [codes[i] for i in (0, 1, 3)] == [1, 1, 1]
    for index in (0, 1, 3):
        assert "process 2" in printed[index].splitlines()[-1], printed[index]


def test_two_processes_go_on_where_four_were(four):
    out = four[0]
    saved = max(int(p.name) for p in (out / "checkpoints").iterdir() if p.name.isdigit())
    before = read_lines(out / "metrics.jsonl")[:saved]
    codes, printed = finish(start(2, out, "--steps", str(saved + 3), "--resume"))
    assert codes == [0, 0], printed
    assert f"resumes after step {saved} of {saved + 3}" in printed[0]
    rows = read_lines(out / "metrics.jsonl")
    assert [r["step"] for r in rows] == list(range(1, saved + 4)) and rows[:saved] == before
    assert (out / "checkpoints" / str(saved + 3)).is_dir()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_notice_to_one_process_saves_the_run_of_both(tmp_path, number):
    out = tmp_path / "run"
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:  # a shell starts what runs in the background, these tests too, with Ctrl-C ignored
        processes = start(2, out, "--steps", "100000", "--saving.every", "100000")
    finally:
        signal.signal(signal.SIGINT, before)
    wait_for(out / "metrics.jsonl", processes)
    processes[1].send_signal(number)
    codes, printed = finish(processes)
    assert codes == [0, 130 if number == signal.SIGINT else 0], printed
    step = read_lines(out / "metrics.jsonl")[-1]["step"]
    assert f"stopped by a signal and saved at step {step}" in printed[0]
    assert (out / "checkpoints" / str(step)).is_dir()


def test_what_the_first_process_cannot_write_ends_both_soon(tmp_path):
    out = tmp_path / "run"
    processes = start(2, out, "--steps", "100000", "--saving.every", "100000")
    metrics = out / "metrics.jsonl"
    wait_for(metrics, processes)
    while not metrics.is_dir():
        metrics.unlink(missing_ok=True)
        with contextlib.suppress(FileExistsError):
            metrics.mkdir()
    codes, printed = finish(processes, timeout=120)
    assert codes == [1, 1], printed
    lines = [[x for x in text.splitlines() if x.startswith("polgrad: ")] for text in printed]
    assert len(lines[0]) == len(lines[1]) == 1, printed
    assert lines[0][0].endswith("metrics.jsonl: Is a directory"), printed
    assert "process 0" in lines[1][0] and "failed at the end of step" in lines[1][0], printed


def test_hosts_with_other_problems_are_refused_before_anything_is_computed(tmp_path):
    lines = [{"prompt": f"{a}+1=", "answer": str(a + 1)} for a in range(9)]
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder, some in zip(folders, (lines, lines[::-1])):
        folder.mkdir()
        text = "".join(json.dumps(line) + "\n" for line in some)
        (folder / "sums.jsonl").write_text(text)
    # A relative path: the same words on each host, another file behind them.
    codes, printed = finish(
        start(2, tmp_path / "run", "--task", "./sums.jsonl", "--data.parameters", folders=folders)
    )
    assert codes == [1, 1], printed
    for text in printed:
        assert "the run differs between hosts" in text and "process 1" in text, text
    assert not (tmp_path / "run" / "config.json").exists()
