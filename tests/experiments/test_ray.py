"""A sweep on a real Ray cluster of two nodes on this machine, one of which is killed."""

import collections
import csv
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import pytest
from worlds import WORLD

pytestmark = pytest.mark.ray
psutil = pytest.importorskip("psutil")
RAY = pathlib.Path(sys.executable).with_name("ray")


def raylets():
    return {p.pid for p in psutil.process_iter(["name"]) if p.info["name"] == "raylet"}


def begun_on(node, log):
    """Cells that a worker of a node has begun."""
    words = log.read_text().split() if log.exists() else []
    workers = {str(p.pid) for p in psutil.Process(node).children(recursive=True)}
    return [cell for cell, pid in zip(words[::2], words[1::2]) if pid in workers]


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """Two `ray start`: the address, and the process of the second node."""
    pytest.importorskip("ray")
    monkeypatch.setenv("RUNS_LOG", str(tmp_path / "log"))
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    start = [str(RAY), "start", "--num-cpus=1", "--disable-usage-stats"]
    quiet = {"check": True, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    head = ["--head", f"--port={port}", "--include-dashboard=false"]
    try:
        subprocess.run([*start, *head], **quiet)
        before = raylets()
        subprocess.run([*start, f"--address=127.0.0.1:{port}"], **quiet)
        (second,) = raylets() - before
        yield f"127.0.0.1:{port}", second
    finally:
        subprocess.run([str(RAY), "stop", "--force"], **quiet | {"check": False})


def test_a_node_that_dies_under_a_sweep_loses_nothing(cluster, tmp_path):
    address, second = cluster
    world = tmp_path / "worlds" / "world.py"
    world.parent.mkdir()
    world.write_text(WORLD)
    command = ["sweep", world, "--set", "gain=1,2", "--set", "pause=1,1.01,1.02"]
    command += ["--seeds", "3", "--ray", address, "--out", tmp_path / "s"]
    module = [sys.executable, "-c", "from polgrad.cli import main; main()"]
    process = subprocess.Popen([*module, *map(str, command)], stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not (lost := begun_on(second, tmp_path / "log")) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(second, signal.SIGKILL)
    out, _ = process.communicate(timeout=240)
    assert process.returncode == 0, out
    with (tmp_path / "s" / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert collections.Counter(row["cell"] for row in rows) == {
        f"gain={gain},pause={pause}": 3 for gain in (1.0, 2.0) for pause in (1.0, 1.01, 1.02)
    }
    for row in rows:
        assert float(row["value"]) == float(row["gain"]) * (1 + int(row["seed"]))
    assert "6 cells x 3 seeds, 0 there already, on Ray" in out
    # The cell that the node took with it was begun again elsewhere.
    begun = collections.Counter((tmp_path / "log").read_text().split()[::2])
    assert lost and all(begun[cell] > 3 for cell in lost)


def test_the_recipe_of_the_documentation_trains_on_two_nodes(cluster, tmp_path):
    address, _ = cluster
    page = (pathlib.Path(__file__).parents[2] / "docs" / "pods.md").read_text()
    recipe = page.split("```python\n")[1].split("```")[0]
    command = (
        f"{RAY.with_name('polgrad')} train --task chain_sum --data.train-size 32 --data.test-size 8 "
        "--small.layers 1 --small.width 16 --rollouts.prompts 4 --rollouts.group-size 2 "
        f"--rollouts.max-tokens 3 --steps 1 --evaluation.problems 8 --out {tmp_path / 'run'}"
    )
    recipe = recipe.replace("HOSTS, CPUS, GPUS = 4, 8, 8", "HOSTS, CPUS, GPUS = 2, 1, 0")
    (old,) = [line for line in recipe.splitlines() if line.startswith("COMMAND = ")]
    recipe = recipe.replace(old, f"COMMAND = {command!r}") + "\nassert codes == [0, 0], codes\n"
    one_device = {"XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false", "RAY_ADDRESS": address}
    subprocess.run([sys.executable, "-c", recipe], env=os.environ | one_device, check=True)
    assert len(list((tmp_path / "run").glob("scores*.jsonl"))) == 2
