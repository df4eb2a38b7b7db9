"""Runs hundreds of bad inputs through the command line and prints what did not end as it should.

    python benchmarks/attack.py [--only WORD] [--workers 2] [--list]

Each attack is one command in a fresh copy of a small world: a data file, a model directory, a GGUF
file, a finished run, an experiment and a sweep. It must end

- with exit code 2 and one line on standard error that begins with `polgrad: `,
- without a traceback, within a minute,
- and with every file of the world as it was, and no file more.

The commands run in forks of a process that has imported polgrad already: the import is the same
for all of them and would take most of the time.
"""

import argparse
import collections
import contextlib
import hashlib
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback

sys.path.insert(0, str(pathlib.Path(__file__).parent))
sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "tests" / "support"))

from attacks import Attack, everything, world

LIMIT = 60
"""Seconds after which an attack counts as hanging."""
IGNORED = {".lock"}
"""Files that a refused command may leave: the lock by which it found out."""


def contents(root: pathlib.Path) -> dict[str, str]:
    """Every file below a folder, with a digest; a link with what it points to."""
    found = {}
    for path in sorted(root.rglob("*")):
        name = str(path.relative_to(root))
        if path.is_symlink():
            found[name] = f"link to {os.readlink(path)}"
        elif path.is_file() and path.name not in IGNORED:
            found[name] = hashlib.blake2b(path.read_bytes(), digest_size=8).hexdigest()
    return found


def faults(attack: Attack, original: pathlib.Path) -> list[str]:
    """Runs an attack in a copy of the world; what is wrong with how it ended."""
    root = pathlib.Path(tempfile.mkdtemp(prefix="polgrad-attack-"))
    place = root / "world"
    try:
        shutil.copytree(original, place, symlinks=True)
        with attack.prepared(place):
            before = contents(place)
            code, out, error = _forked(attack, place, root)
            after = contents(place)
    finally:
        shutil.rmtree(root, ignore_errors=True)
    return _wrong_ending(code, out, error) + _changes(before, after)


def _wrong_ending(code: int | None, out: str, error: str) -> list[str]:
    found = []
    lines = error.splitlines()
    if code is None:
        return [f"hangs: not over after {LIMIT} s"]
    if code != 2:
        found.append(f"exit code {code}; expected 2")
    if len(lines) != 1 or not lines[0].startswith("polgrad: "):
        shown = " | ".join(lines[:2] + lines[-2:])[:300]
        found.append(f"{len(lines)} lines on standard error; expected one of polgrad's: {shown}")
    if "Traceback" in out + error:
        found.append("a traceback")
    return found


def _changes(before: dict[str, str], after: dict[str, str]) -> list[str]:
    kinds = {
        "is gone": before.keys() - after.keys(),
        "is new": after.keys() - before.keys(),
        "has changed": {n for n in before.keys() & after.keys() if before[n] != after[n]},
    }
    return [f"{name} {kind}" for kind, names in kinds.items() for name in sorted(names)[:3]]


def _forked(attack: Attack, place: pathlib.Path, root: pathlib.Path) -> tuple[int | None, str, str]:
    """Exit code (None after the time limit), standard output and standard error of a command."""
    out, error = root / "out", root / "error"
    process = os.fork()
    if process == 0:
        os.setsid()
        _become(attack, place, out, error)
    deadline = time.monotonic() + LIMIT
    code = None
    while time.monotonic() < deadline:
        ended, status = os.waitpid(process, os.WNOHANG)
        if ended:
            code = os.waitstatus_to_exitcode(status)
            break
        time.sleep(0.01)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process, signal.SIGKILL)  # also what the command may have left behind
    if code is None:
        os.waitpid(process, 0)
    return code, out.read_text(errors="replace"), error.read_text(errors="replace")


def _become(attack: Attack, place: pathlib.Path, out: pathlib.Path, error: pathlib.Path) -> None:
    """The fork's part: runs the command and never returns."""
    code = 70
    try:
        for number, path in ((1, out), (2, error)):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), number)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.chdir(place)
        os.environ.update(attack.environment)
        import jax

        from polgrad import cli

        jax.config.update("jax_platforms", os.environ["JAX_PLATFORMS"])  # it was read at the import

        cli.main(list(attack.command))
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 1
    except BaseException:  # noqa: BLE001  (whatever it is, the traceback is what is looked for)
        traceback.print_exc()
        code = 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _part(attacks: list[Attack], original: pathlib.Path) -> int:
    """Runs attacks one after the other; prints the faults; how many attacks had some."""
    import jax  # noqa: F401

    from polgrad import cli, policies  # noqa: F401
    from polgrad.experiments import command  # noqa: F401
    from polgrad.rewards import pool  # noqa: F401
    from polgrad.serving import evaluating, sampling  # noqa: F401
    from polgrad.training import loop  # noqa: F401

    bad = 0
    for attack in attacks:
        began = time.monotonic()
        found = faults(attack, original)
        bad += bool(found)
        for fault in found:
            print(f"{attack.name}: {fault}", flush=True)
        if (seconds := time.monotonic() - began) > 20:
            print(f"({attack.name} took {seconds:.0f} s)", flush=True)
    return bad


def main() -> None:
    """Runs all attacks side by side; exits with 1 where one did not end as it should."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="attacks whose name holds this text")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--list", action="store_true", help="only say what there is")
    parser.add_argument("--part", nargs=2, metavar=("NUMBER", "WORLD"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    os.environ["JAX_PLATFORMS"] = "cpu"
    # As the command does where no accelerator is: here jax is imported before it could.
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    chosen = [a for a in everything() if options.only in a.name]
    if options.part:
        number, place = int(options.part[0]), pathlib.Path(options.part[1])
        sys.exit(min(_part(chosen[number :: options.workers], place), 100))
    kinds = collections.Counter(attack.name.partition(":")[0] for attack in chosen)
    print(f"{len(chosen)} attacks: " + ", ".join(f"{n} {kind}" for kind, n in kinds.items()))
    if options.list:
        print("\n".join(f"{a.name:50} polgrad {' '.join(a.command)[:200]}" for a in chosen))
        return
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="polgrad-world-") as place:
        os.environ["JAX_COMPILATION_CACHE_DIR"] = f"{place}/cache"
        original = pathlib.Path(place) / "world"
        world.build(original)
        command = [sys.executable, __file__, "--only", options.only]
        command += ["--workers", str(options.workers)]
        parts = [
            subprocess.Popen([*command, "--part", str(number), str(original)])
            for number in range(options.workers)
        ]
        bad = sum(part.wait() for part in parts)
    print(f"{bad} of {len(chosen)} did not end as they should ({time.monotonic() - began:.0f} s)")
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()
