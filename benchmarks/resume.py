"""Shows that a killed run, resumed, ends with the same parameters bit for bit.

    python benchmarks/resume.py [--steps 40] [--kills 3]

One run is left alone. Another, with the same command, is killed with SIGKILL at three moments (in
the warm start or the first steps, in the middle, near the end) and started again each time.
"""

import argparse
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import time

import numpy as np

COMMAND = """-m polgrad.cli train --task chain_sum --policy small --algorithm grpo --resume
  --data.parameters min_terms=2 max_terms=2 min_digits=1 max_digits=2
  --data.prompt-pattern ": (.+)$" --data.train-size 1000 --data.test-size 64
  --rollouts.prompts 16 --rollouts.group-size 4 --rollouts.max-tokens 5
  --update.mini-batches 2 --optimizer.learning-rate 3e-4
  --warm-start.steps 20 --evaluation.problems 64 --saving.every 5"""


def command(out: pathlib.Path, steps: int) -> list[str]:
    """The run's command; the same for the run left alone and the one that is killed."""
    words = [w.strip('"') for w in COMMAND.replace('": (.+)$"', "@").split()]
    words = [": (.+)$" if w == "@" else w for w in words]
    program = "from polgrad.cli import main; main()"
    return [sys.executable, "-c", program, *words[2:], "--steps", str(steps), "--out", str(out)]


def steps_done(out: pathlib.Path) -> int:
    """Lines of the run's metrics so far."""
    path = out / "metrics.jsonl"
    return path.read_text().count("\n") if path.exists() else 0


def kill_at(out: pathlib.Path, steps: int, line: int) -> int:
    """Starts the run, kills it once `line` lines of metrics are there, and says how many were."""
    process = subprocess.Popen(command(out, steps), stdout=subprocess.DEVNULL)
    while steps_done(out) < line and process.poll() is None:
        time.sleep(0.02)
    if process.poll() is not None:
        sys.exit(f"the run ended with {process.returncode} before it could be killed")
    process.send_signal(signal.SIGKILL)
    process.wait()
    return steps_done(out)


def parameters(out: pathlib.Path) -> list[np.ndarray]:
    """The final parameters, leaf by leaf."""
    import jax

    from polgrad.training.checkpoints import restore_params

    return jax.tree.leaves(restore_params(out)[0])


def main() -> None:
    """Runs both, compares, exits with 1 on any difference."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--steps", type=int, default=40)
    options.add_argument("--kills", type=int, default=3)
    options = options.parse_args()
    root = pathlib.Path(tempfile.mkdtemp(prefix="polgrad-resume-"))
    alone, killed = root / "alone", root / "killed"
    subprocess.run(command(alone, options.steps), check=True, stdout=subprocess.DEVNULL)
    print(f"left alone: {steps_done(alone)} steps")
    moments = np.linspace(2, options.steps - 2, options.kills).astype(int)
    for moment in moments:
        print(f"SIGKILL after step {kill_at(killed, options.steps, int(moment))}", flush=True)
    subprocess.run(command(killed, options.steps), check=True, stdout=subprocess.DEVNULL)
    print(f"resumed: {steps_done(killed)} steps")
    pairs = list(zip(parameters(alone), parameters(killed), strict=True))
    same = all(np.array_equal(a, b) for a, b in pairs)
    count = sum(a.size for a, _ in pairs)
    print(
        f"{count:,} parameters in {len(pairs)} arrays: {'bit-identical' if same else 'DIFFERENT'}"
    )
    if not same:
        print("largest difference:", max(float(np.abs(a - b).max()) for a, b in pairs))
    shutil.rmtree(root)
    sys.exit(not same)


if __name__ == "__main__":
    main()
