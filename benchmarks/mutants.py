"""Breaks the formulas one at a time and looks whether a test notices.

    python benchmarks/mutants.py [FILE ...] [--every N] [--workers N] [--out FILE]

Each mutant is one source file with one change: a sign, an operator, a comparison, a number (defaults
too), a swapped branch of `where`, a dropped stop_gradient, a swapped pair of bounds, a dropped mask.
Only the mirrored test file runs against it, and stops at the first failure. Survivors are printed;
those that `equivalent_mutants.txt` explains (no input can tell them from the original) do not count.
"""

import argparse
import ast
import contextlib
import copy
import importlib.abc
import importlib.util
import json
import os
import pathlib
import signal
import sys
import tempfile
import time
from collections import Counter
from typing import NamedTuple

ROOT = pathlib.Path(__file__).resolve().parent.parent
TARGETS = (
    *sorted((ROOT / "polgrad" / "losses").glob("[a-z]*.py")),
    *sorted((ROOT / "polgrad" / "advantages").glob("[a-z]*.py")),
    *sorted((ROOT / "polgrad" / "selection").glob("[a-z]*.py")),
    *sorted((ROOT / "polgrad" / "distributions").glob("[a-z]*.py")),
    *sorted((ROOT / "polgrad" / "reward_models").glob("[a-z]*.py")),
    *(
        ROOT / "polgrad" / f"{name}.py"
        for name in ("divergences", "masking", "ratios", "running", "schedules")
    ),
)
EXPLAINED = ROOT / "benchmarks" / "equivalent_mutants.txt"


# --- What can be broken -------------------------------------------------------------------------


class Mutant(NamedTuple):
    """One change. Its key holds no line number, so that it survives edits elsewhere in the file."""

    path: pathlib.Path
    function: str
    change: str
    number: int
    line: int

    @property
    def key(self) -> str:
        return f"{self.path.relative_to(ROOT)}:{self.function}: {self.change}"


_BINARY = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
}
_NEGATED = {
    ast.Lt: ast.GtE,
    ast.LtE: ast.Gt,
    ast.Gt: ast.LtE,
    ast.GtE: ast.Lt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
}
_BOUNDARY = {ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt}
_CALLS = {"minimum": "maximum", "min": "max", "any": "all", "sum": "mean", "exp": "expm1"}
_CALLS |= {other: name for name, other in _CALLS.items()}
_PAIRS = (("low", "high"), ("chosen", "rejected"), ("positive", "negative"))
_INDICATORS = {"mask", "valid", "live", "selected", "present"}
# Where a change is no change of a formula: shapes, texts, types.
_LEFT_ALONE = {"axis", "axes", "keepdims", "dtype", "ndim", "shape", "static_argnames"}


def mutants(path: pathlib.Path) -> list[Mutant]:
    """All mutants of a file, in the order of its text."""
    found = _Changes(None)
    found.visit(ast.parse(path.read_text()))
    seen, listed = Counter(), []
    for number, (function, change, line) in enumerate(found.changes):
        seen[function, change] += 1
        if seen[function, change] > 1:
            change = f"{change} (#{seen[function, change]})"
        listed.append(Mutant(path, function, change, number, line))
    return listed


def mutated(mutant: Mutant) -> str:
    """Source text of the mutant."""
    tree = _Changes(mutant.number).visit(ast.parse(mutant.path.read_text()))
    return ast.unparse(ast.fix_missing_locations(tree))


class _Changes(ast.NodeTransformer):
    """Lists every change, and makes the one of the given number."""

    def __init__(self, number: int | None):
        self.number, self.changes, self.functions = number, [], []

    def change(self, node, other, swapped=None):
        """Offers `other` in place of `node`; returns what stands there afterwards."""
        mine = len(self.changes)
        text = swapped or f"{ast.unparse(node)} -> {ast.unparse(other)}"
        self.changes.append((".".join(self.functions) or "module", text, node.lineno))
        return other if mine == self.number else node

    def visit_FunctionDef(self, node):
        self.functions.append(node.name)
        # Annotations and decorators stay; the docstring is no formula.
        for field in (node.args.defaults, node.args.kw_defaults):
            field[:] = [default and self.visit(default) for default in field]
        node.body[:] = [self.visit(statement) for statement in node.body]
        self.functions.pop()
        return node

    def visit_ClassDef(self, node):
        self.functions.append(node.name)
        node.body[:] = [self.visit(x) if isinstance(x, ast.FunctionDef) else x for x in node.body]
        self.functions.pop()
        return node

    def skip(self, node):
        return node

    visit_Raise = visit_Import = visit_ImportFrom = visit_JoinedStr = visit_Assert = skip
    visit_Subscript = skip  # indices pick axes and parts

    def visit_AnnAssign(self, node):
        node.value = node.value and self.visit(node.value)
        return node

    def visit_Assign(self, node):
        if not self.functions and ast.unparse(node.targets[0]) in ("__all__", "_MODES"):
            return node
        node.value = self.visit(node.value)
        return node

    def visit_keyword(self, node):
        if node.arg not in _LEFT_ALONE:
            node.value = self.visit(node.value)
        return node

    def visit_Compare(self, node):
        self.generic_visit(node)
        for table in (_NEGATED, _BOUNDARY):
            if len(node.ops) == 1 and type(node.ops[0]) in table:
                other = copy.deepcopy(node)
                other.ops = [table[type(node.ops[0])]()]
                node = self.change(node, other)
        return node

    def visit_BinOp(self, node):
        self.generic_visit(node)
        original = copy.deepcopy(node)
        if type(node.op) in _BINARY:
            other = copy.deepcopy(original)
            other.op = _BINARY[type(node.op)]()
            node = self.change(node, other)
        for side, kept in (("left", original.right), ("right", original.left)):
            factor = getattr(original, side)
            if isinstance(original.op, ast.Mult) and _name(factor) in _INDICATORS:
                node = self.change(node, copy.copy(kept))
        return node

    def visit_UnaryOp(self, node):
        if isinstance(node.op, ast.USub) and isinstance(node.operand, ast.Constant):
            return self.change(node, node.operand)
        self.generic_visit(node)
        if isinstance(node.op, ast.USub | ast.Not | ast.Invert):
            node = self.change(node, node.operand)
        return node

    def visit_BoolOp(self, node):
        self.generic_visit(node)
        other = copy.deepcopy(node)
        other.op = ast.Or() if isinstance(node.op, ast.And) else ast.And()
        return self.change(node, other)

    def visit_Constant(self, node):
        if isinstance(node.value, bool):
            return self.change(node, ast.copy_location(ast.Constant(not node.value), node))
        if isinstance(node.value, int | float):
            return self.change(node, ast.copy_location(ast.Constant(node.value + 1), node))
        return node

    def visit_Name(self, node):
        for pair in _PAIRS:
            for one, other in (pair, pair[::-1]):
                parts = node.id.split("_")
                if one in parts and self.functions and isinstance(node.ctx, ast.Load):
                    renamed = "_".join(other if part == one else part for part in parts)
                    if renamed in self.names:
                        return self.change(node, ast.copy_location(ast.Name(renamed), node))
        return node

    def visit_Call(self, node):
        name = _name(node.func)
        if ast.unparse(node.func).startswith("_checks."):
            return node
        self.generic_visit(node)
        if name in ("stop_gradient", "_stopped") and node.args:
            return self.change(node, node.args[0])
        if name == "where" and len(node.args) == 3:
            other = copy.deepcopy(node)
            other.args[1:] = other.args[:0:-1]
            node = self.change(node, other)
        if name in _CALLS and ast.unparse(node.func).startswith("jnp."):
            other = copy.deepcopy(node)
            other.func.attr = _CALLS[name]
            node = self.change(node, other)
        return node

    def visit_Module(self, node):
        # Names of all arguments: a bound is only exchanged for one that exists.
        self.names = {a.arg for a in ast.walk(node) if isinstance(a, ast.arg)}
        node.body[:] = [self.visit(statement) for statement in node.body]
        return node


def _name(node) -> str:
    return getattr(node, "attr", getattr(node, "id", ""))


# --- Whether a test notices ---------------------------------------------------------------------


class _Source(importlib.abc.MetaPathFinder, importlib.abc.SourceLoader):
    """Serves one module from a text instead of its file."""

    def __init__(self, module: str, path: pathlib.Path, text: str):
        self.module, self.path, self.text = module, str(path), text

    def find_spec(self, name, path=None, target=None):
        if name == self.module:
            return importlib.util.spec_from_file_location(name, self.path, loader=self)
        return None

    def get_filename(self, name):
        return self.path

    def get_data(self, path):
        return self.text.encode()

    def path_stats(self, path):
        raise OSError  # so that no bytecode is read or written


def test_files(path: pathlib.Path) -> list[str]:
    """What mirrors a source file: the test file of its name, the folder of its name, or both."""
    parts = path.relative_to(ROOT / "polgrad")
    place = ROOT / "tests" / parts.parent
    return [str(p) for p in (place / f"test_{parts.name}", place / parts.stem) if p.exists()]


def start(path: pathlib.Path, text: str) -> int:
    """Runs the mirrored tests against `text` in a child; returns its process id."""
    child = os.fork()
    if child:
        return child
    os.setsid()
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)
    import pytest

    module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    sys.meta_path.insert(0, _Source(module, path, text))
    options = [
        "-x",
        "-q",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:xdist",
        "--hypothesis-profile=mutants",
    ]
    os._exit(int(pytest.main([*options, *test_files(path)])))


def prepare(cache: str) -> None:
    """Imports what every child needs, before any backend starts; compiled programs are shared."""
    os.environ |= {
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": cache,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        "OMP_NUM_THREADS": "1",
    }
    import chex  # noqa: F401
    import hypothesis
    import jax  # noqa: F401
    import pytest  # noqa: F401

    hypothesis.settings.register_profile(
        "mutants",
        deadline=None,
        max_examples=15,
        derandomize=True,
        phases=[hypothesis.Phase.explicit, hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )


def examine(every: list[Mutant], workers: int, limits: dict[pathlib.Path, float]):
    """Yields (mutant, whether it was killed), a few at a time."""
    waiting, running = list(reversed(every)), {}
    while waiting or running:
        while waiting and len(running) < workers:
            mutant = waiting.pop()
            running[start(mutant.path, mutated(mutant))] = (mutant, time.monotonic())
        process, status = os.waitpid(-1, os.WNOHANG)
        if process:
            mutant, _ = running.pop(process)
            yield mutant, status != 0
            continue
        for process, (mutant, begun) in running.items():
            if time.monotonic() - begun > limits[mutant.path]:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process, signal.SIGKILL)  # an endless loop counts as noticed
        time.sleep(0.02)


def baseline(path: pathlib.Path) -> float:
    """Time limit for the tests of a file, from a run against the original."""
    begun = time.monotonic()
    _, status = os.waitpid(start(path, path.read_text()), 0)
    if status:
        names = ", ".join(test_files(path))
        raise SystemExit(f"{names} fails without any change")
    return 10 * (time.monotonic() - begun) + 30


def main() -> None:
    """Prints survivors as they appear, then the score of each file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="*", type=pathlib.Path, help="all targets when left out")
    parser.add_argument("--every", type=int, default=1, help="take every Nth mutant")
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--out", type=pathlib.Path, help="JSON lines, one a mutant")
    options = parser.parse_args()
    paths = [path.resolve() for path in options.files] or [
        path for path in TARGETS if path.name != "__init__.py"
    ]
    explained = {line for line in EXPLAINED.read_text().splitlines() if line[:7] == "polgrad"}
    os.chdir(ROOT)
    every = [mutant for path in paths for mutant in mutants(path)][:: options.every]
    killed, total, out = Counter(), Counter(), options.out and options.out.open("w")
    with tempfile.TemporaryDirectory() as cache:
        prepare(cache)
        limits = {path: baseline(path) for path in paths}
        for mutant, noticed in examine(every, options.workers, limits):
            if out:
                print(json.dumps({"mutant": mutant.key, "killed": noticed}), file=out, flush=True)
            if not noticed and mutant.key in explained:
                continue
            total[mutant.path] += 1
            killed[mutant.path] += noticed
            if not noticed:
                print(f"line {mutant.line:4} {mutant.key}", flush=True)
    print(f"\n{'file':44} {'mutants':>8} {'killed':>8}")
    for path in paths:
        share = killed[path] / max(total[path], 1)
        print(f"{str(path.relative_to(ROOT)):44} {total[path]:8} {share:8.1%}")
    print(f"{'all':44} {total.total():8} {killed.total() / max(total.total(), 1):8.1%}")


if __name__ == "__main__":
    main()
