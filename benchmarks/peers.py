"""What the comparisons with other libraries share: their environments, and turns taken side by side.

A peer runs in an environment and a process of its own. The two take turns, so that whatever else the
machine does falls on both, and the ratio is that of the medians.
"""

import ctypes
import gc
import os
import pathlib
import statistics
import subprocess
import sys
import venv
from typing import Literal

ROOT = pathlib.Path(__file__).resolve().parents[1]
HOME = ROOT / ".venv-peers"
THREADS = {name: "2" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
SETTINGS = {
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "POLGRAD_FIX_COMPILER": "1",
}


def environment(
    name: str, *requirements: str, free: tuple[str, ...] | Literal["all"] = ()
) -> pathlib.Path:
    """The Python of a peer's environment, made at first use.

    Args:
      name: of the environment.
      *requirements: as pip takes them; versions are those of constraints.txt where it has them.
      free: packages of constraints.txt that the peer needs in another version; or "all", for a peer
        that names its own versions.

    Returns:
      The interpreter's path.
    """
    python = HOME / name / "bin" / "python"
    done = HOME / name / "installed"
    if not done.exists():
        print(f"installing {', '.join(requirements)} into {HOME / name}", flush=True)
        venv.create(HOME / name, with_pip=True)
        pins = (ROOT / "constraints.txt").read_text().splitlines()
        pins = [p for p in pins if free != "all" and p.split("==")[0] not in free]
        constraints = HOME / name / "constraints.txt"
        constraints.write_text("\n".join(pins) + "\n")
        pip = [python, "-m", "pip", "install", "-q", "-c", constraints]
        subprocess.run([*pip, *requirements], check=True)
        done.touch()
    return python


class Side:
    """A process that does its work once each time it is asked, and says how long it took.

    Args:
      python: the interpreter.
      script: a benchmark; with `--side NAME` it calls `serve`.
      *arguments: of the script.
    """

    def __init__(self, python: str | os.PathLike, script: str, *arguments: str):
        self._process = subprocess.Popen(
            [python, script, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | THREADS | SETTINGS,
        )
        self.description = self._line()

    def _line(self) -> str:
        line = self._process.stdout.readline()
        if not line:
            sys.exit(f"a side of the comparison ended with code {self._process.wait()}")
        return line.strip()

    def __call__(self) -> list[float]:
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        return [float(number) for number in self._line().split()]

    def close(self) -> None:
        """Ends the process."""
        self._process.stdin.close()
        self._process.wait()


def serve(description: str, work) -> None:
    """Says what this side is, then does `work` once a line of stdin and prints its numbers.

    Args:
      description: one line, versions among it.
      work: returns the numbers of one turn, seconds first.
    """
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not be taken for numbers
    print(description, file=out, flush=True)
    for _ in sys.stdin:
        print(*(f"{number:.6g}" for number in work()), file=out, flush=True)


def take_turns(sides: dict[str, Side], repetitions: int) -> dict[str, list[list[float]]]:
    """The numbers of every turn; the first, which warms up, is left out."""
    for name, side in sides.items():
        print(f"{name}: {side.description}", flush=True)
        side()
    numbers = {name: [] for name in sides}
    for _ in range(repetitions):
        for name, side in sides.items():
            numbers[name].append(side())
    for side in sides.values():
        side.close()
    return numbers


def median(turns: list[list[float]], index: int = 0) -> float:
    """The median of one of the numbers over all turns."""
    return statistics.median(turn[index] for turn in turns)


def resident(field: str) -> int:
    """Bytes of a line of /proc/self/status (Linux): `VmRSS` now, `VmHWM` at the peak."""
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    (line,) = [line for line in lines if line.startswith(field + ":")]
    return 1024 * int(line.split()[1])


def watch_memory() -> int:
    """Bytes resident now; the peak is counted from here on (Linux)."""
    # What the set-up has freed must not be what comes after takes.
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    pathlib.Path("/proc/self/clear_refs").write_text("5")
    return resident("VmRSS")
