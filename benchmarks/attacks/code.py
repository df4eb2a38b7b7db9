"""People's own Python files that fail: rewards, algorithms, experiments."""

import functools
import pathlib

from worlds import WORLD

from attacks import Attack
from attacks.world import ALGORITHM, TRAIN

ANY = {
    "does not parse": "def f(:\n",
    "raises": "raise RuntimeError('no')\n",
    "exits with success": "import sys\nsys.exit(0)\n",
    "exits": "import sys\nsys.exit(3)\n",
    "imports what is not there": "import nosuchmodule\n",
    "is not UTF-8": b"# \xff\xfe\n",
    "is empty": "",
    "raises what is no Exception": "class Odd(BaseException): pass\nraise Odd('no')\n",
    "nests deeply": "x = " + "(" * 500 + ")" * 500 + "\n",
}
REWARDS = {
    "takes one argument": "def length(completion):\n    return 1.0\n",
    "takes four arguments": "def length(a, b, c, d):\n    return 1.0\n",
    "is of another library": "def length(data_source, solution_str, ground_truth):\n    return 1.0\n",
    "takes batches": "def length(prompts, completions, **kwargs):\n    return [1.0]\n",
    "needs a keyword": "def length(prompt, completion, example, *, scale):\n    return 1.0\n",
    "is a number": "length = 7\n",
}
ALGORITHMS = {
    "is a number": "Mine = 7\n",
    "is a function": "def Mine():\n    pass\n",
    "needs an argument": ALGORITHM + "    needed: int\n",
    "raises when it is built": ALGORITHM + "    def build(self, context):\n        return 1 / 0\n",
    "builds None": ALGORITHM + "    def build(self, context):\n        return None\n",
    "exits when it is built": ALGORITHM
    + "    def build(self, context):\n        raise SystemExit(0)\n",
    "has a build without arguments": ALGORITHM + "    def build(self):\n        return None\n",
    "has a surrogate of another shape": ALGORITHM
    + "    def surrogate(self, *a, **k):\n        return 0.0\n",
}
EXPERIMENTS = {
    "is a number": "EXPERIMENT = 7\n",
    "has no arms": WORLD.replace('{"only": experiments.HostArm(arm)}', "{}"),
    "has another baseline": WORLD.replace('baseline="only"', 'baseline="other"'),
    "lacks a claim": WORLD.replace('    claim="Scores are positive.",\n', ""),
}


def _write(name: str, text: str | bytes, place: pathlib.Path) -> None:
    content = text if isinstance(text, bytes) else text.encode()
    (place / name).write_bytes(content)


def attacks() -> list[Attack]:
    """Each file as a reward, as an algorithm, as an experiment to run and to sweep."""
    reward = (*TRAIN, "--rewards.functions", "mine.py:length")
    preference = (*TRAIN, "--rewards.preference", "mine.py:length", "--algorithm", "online_dpo")
    algorithm = (*TRAIN, "--algorithm", "algorithm.py:Mine")
    compiled = ("compile", "--policy", "smollm2-135m", "--algorithm", "algorithm.py:Mine")
    run = ("run", "own/trial.py", "--out", "runs/other")
    sweep = ("sweep", "own/trial.py", "--out", "runs/other", "--set", "gain=1,2")
    found = []

    def add(what, words, file, kinds):
        for name, text in kinds.items():
            prepare = functools.partial(_write, file, text)
            found.append(Attack(f"code: {what} {name}", words, prepare))

    add("a reward's file", reward, "mine.py", ANY)
    add("a preference's file", preference, "mine.py", {k: ANY[k] for k in ("raises", "exits")})
    add("a reward", reward, "mine.py", REWARDS)
    add("an algorithm's file", algorithm, "algorithm.py", ANY)
    add("an algorithm", algorithm, "algorithm.py", ALGORITHMS)
    add("an algorithm's file for compile", compiled, "algorithm.py", ANY)
    add("an experiment's file", run, "own/trial.py", ANY)
    add("an experiment", run, "own/trial.py", EXPERIMENTS)
    add("a sweep's file", sweep, "own/trial.py", ANY)
    add("a sweep's experiment", sweep, "own/trial.py", EXPERIMENTS)
    return found
