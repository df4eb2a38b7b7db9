"""Kills commands with SIGKILL at random moments, starts them again, and compares the ends.

    python benchmarks/resume.py [--kills 4] [--only WORD] [--seed 0]

Each subject (training with GRPO, training with PPO and its critic, training with named policies and a
controller, an experiment's run, a sweep) is
run once and left alone. Then the same command is killed at random moments and given again, up to
five times, before it may end; only kills that met a running command are counted. Every second kill falls after the first checkpoint or the first result of
an arm is there, the others anywhere. What both leave must agree bit for bit: parameters, optimiser and step of
the last checkpoint, metrics (but for times), samples, curves and tables.
"""

import argparse
import contextlib
import json
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

TIMES = {"seconds", "tokens_per_second"}
CHAIN = 5
"""Kills before a command may end."""
TRAIN = (
    "train --task chain_sum --resume --data.parameters min_terms=2 max_terms=2 min_digits=1 "
    "max_digits=2 --data.prompt-pattern @ --data.train-size 500 --data.test-size 32 "
    "--small.layers 1 --small.width 32 --small.heads 2 --small.mlp 64 "
    "--rollouts.prompts 8 --rollouts.group-size 4 --rollouts.max-tokens 5 --steps 30 "
    "--warm-start.steps 5 --evaluation.problems 32 --saving.every 3 --saving.samples-every 2"
)
GRPO = f"{TRAIN} --algorithm grpo --update.mini-batches 2 --optimizer.learning-rate 3e-4"
PPO = f"{TRAIN} --algorithm ppo --update.epochs 2 --optimizer.learning-rate 3e-4"
# An average, a copy that is made anew every ten rollouts, and a controller with `observe`.
CONTROLLED = (
    f"{TRAIN} --algorithm {pathlib.Path(__file__).parent / 'controlled.py'}:Controlled "
    "--settings.kl.coefficient 0.05 --settings.kl.reference previous --settings.kl.reference.every 10 "
    "--optimizer.learning-rate 3e-4"
)
RUN = "run clip_cov --smoke --seeds 2"
SWEEP = "sweep nash_md --smoke --seeds 2 --set learning_rate=0.1,0.2,0.3"


class Subject(NamedTuple):
    """A command, the files that appear at its first save, and the results that are compared."""

    name: str
    words: str
    saved: str
    left: Callable[[pathlib.Path], dict[str, object]]


def of_training(out: pathlib.Path) -> dict[str, object]:
    """The last checkpoint's arrays, and the rows of metrics and samples without times."""
    import jax
    import orbax.checkpoint as ocp

    steps = [int(p.name) for p in (out / "checkpoints").iterdir() if p.name.isdigit()]
    item = out.resolve() / "checkpoints" / str(max(steps)) / "default"
    handler = ocp.PyTreeCheckpointHandler()
    restore = jax.tree.map(
        lambda _: ocp.RestoreArgs(restore_type=np.ndarray), handler.metadata(item).tree
    )
    tree = handler.restore(item, args=ocp.args.PyTreeRestore(restore_args=restore))
    handler.close()
    arrays = {
        "state" + jax.tree_util.keystr(path): np.asarray(leaf).tobytes()
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }
    return arrays | {name: rows(out / name) for name in ("metrics.jsonl", "samples.jsonl")}


def of_run(out: pathlib.Path) -> dict[str, object]:
    """The arms' arrays, the rows of metrics, and the result without times."""
    found: dict[str, object] = {"metrics.jsonl": rows(out / "metrics.jsonl")}
    for path in sorted((out / "arms").glob("*.npz")):
        with np.load(path) as arm:
            found |= {f"{path.name} {n}": arm[n].tobytes() for n in arm.files if n not in TIMES}
    return found | {"result.json": without_times(json.loads((out / "result.json").read_text()))}


def of_sweep(out: pathlib.Path) -> dict[str, object]:
    """Every cell as a run, and the table of outcomes."""
    found: dict[str, object] = {}
    for cell in sorted((out / "cells").iterdir()):
        found |= {f"{cell.name} {name}": value for name, value in of_run(cell).items()}
    return found | {"cells": sorted(p.name for p in (out / "cells").iterdir())}


SUBJECTS = (
    Subject("train, grpo", GRPO, "checkpoints/[0-9]*", of_training),
    Subject("train, ppo", PPO, "checkpoints/[0-9]*", of_training),
    Subject("train, named policies", CONTROLLED, "checkpoints/[0-9]*", of_training),
    Subject("run", RUN, "arms/*.npz", of_run),
    Subject("sweep", SWEEP, "cells/*/result.json", of_sweep),
)


def rows(path: pathlib.Path) -> list[dict]:
    """The rows of a JSONL file without times."""
    return [without_times(json.loads(line)) for line in path.read_text().splitlines()]


def without_times(value):
    """A copy of JSON content without entries that tell seconds."""
    if isinstance(value, dict):
        return {k: without_times(v) for k, v in value.items() if k not in TIMES}
    return [without_times(v) for v in value] if isinstance(value, list) else value


def start(subject: Subject, out: pathlib.Path) -> subprocess.Popen:
    """Starts the subject's command."""
    words = [": (.+)$" if word == "@" else word for word in subject.words.split()]
    command = [sys.executable, "-m", "polgrad", *words, "--out", str(out)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)


def saved(subject: Subject, out: pathlib.Path) -> bool:
    """Whether there is a checkpoint or a result to go on from."""
    # Orbax gives a checkpoint that it still writes a longer name, which ends otherwise.
    return any("tmp" not in path.name for path in out.glob(subject.saved))


def finish(subject: Subject, out: pathlib.Path) -> tuple[float, float]:
    """Runs the command to its end; the seconds until something was saved, and those after it."""
    began = time.monotonic()
    process = start(subject, out)
    wait_until_saved(subject, out, process)
    first = time.monotonic()
    if code := process.wait():
        sys.exit(f"{subject.name}: exit code {code} in {out}")
    return first - began, time.monotonic() - first


def wait_until_saved(subject: Subject, out: pathlib.Path, process: subprocess.Popen) -> None:
    """Returns when something is saved, or the process has ended."""
    while process.poll() is None and not saved(subject, out):
        time.sleep(0.02)


def kill(subject: Subject, out: pathlib.Path, seconds: float, *, late: bool) -> str:
    """Starts the command and kills it; the phase that the kill met.

    Args:
      subject: the command.
      out: its directory.
      seconds: to wait before the kill.
      late: wait first until something is saved.

    Returns:
      "before", "after" (the first checkpoint or result), or "ended".
    """
    process = start(subject, out)
    if late:
        wait_until_saved(subject, out, process)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(seconds)
    process.send_signal(signal.SIGKILL)
    if process.wait() != -signal.SIGKILL:
        return "ended"
    return "after" if saved(subject, out) else "before"


def check(subject: Subject, root: pathlib.Path, kills: int, moments: random.Random) -> int:
    """Kills and compares; how many ends differ from the one that was left alone."""
    alone = root / "alone"
    finish(subject, alone)
    before, after = finish(subject, root / "again")  # with its programs compiled already
    expected = subject.left(alone)
    different = int(subject.left(root / "again") != expected)
    print(
        f"{subject.name}: {before:.1f} s until something is saved and {after:.1f} s more when left "
        "alone",
        flush=True,
    )
    done = chain = 0
    while done < kills:
        out, met = root / f"killed-{chain}", Counter()
        chain += 1
        while met.total() < min(CHAIN, kills - done) and not met["ended"]:
            late = (done + met.total()) % 2 == 1
            # A command that goes on finds something saved at once, and has to start before it works.
            fresh = late and not saved(subject, out)
            longest = after if fresh else before + after
            # A command that has ended leaves nothing to kill: most of the moments are early.
            met[kill(subject, out, longest * moments.random() ** 1.5, late=late)] += 1
        count = met["before"] + met["after"]
        done += count
        finish(subject, out)
        left = subject.left(out)
        names = sorted(n for n in expected.keys() | left.keys() if expected.get(n) != left.get(n))
        different += bool(names)
        verdict = f"DIFFERENT: {', '.join(names[:5])}" if names else "bit-identical"
        print(
            f"  {count} kills, {met['before']} before something was saved, {met['after']} after it: "
            f"{verdict}",
            flush=True,
        )
        shutil.rmtree(out)
    return different


def main() -> None:
    """All subjects; exits with 1 on any difference."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=4, help="in all, over the subjects")
    parser.add_argument("--only", default="", help="subjects whose name holds this text")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    options = parser.parse_args()
    subjects = [s for s in SUBJECTS if options.only in s.name]
    moments = random.Random(options.seed)
    different = 0
    for number, subject in enumerate(subjects):
        kills = options.kills // len(subjects) + (number < options.kills % len(subjects))
        with tempfile.TemporaryDirectory(prefix="polgrad-resume-") as root:
            different += check(subject, pathlib.Path(root), kills, moments)
    print("all ends are bit-identical" if not different else f"{different} ends differ")
    sys.exit(bool(different))


if __name__ == "__main__":
    main()
