"""What experiments train is what users train: settings of algorithms, run by `small.run`."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[2] / "experiments"
# Their gradients are those of exact sums over all actions: no algorithm samples there.
EXACT = {"copg_bandit.py", "dpo_frontier.py"}
OWN = {"grad", "value_and_grad", "apply_updates"}
FILES = sorted(ROOT.glob("*/*.py"))


def calls(source):
    """Names of the functions and methods that a module reads, with their line."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute):
            yield node.attr, node.lineno
        elif isinstance(node, ast.ImportFrom):
            yield from ((alias.name, node.lineno) for alias in node.names)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_an_experiment_takes_no_gradient_of_its_own(path):
    found = [f"{name} in line {line}" for name, line in calls(path.read_text()) if name in OWN]
    assert bool(found) == (path.name in EXACT), found


def test_a_loop_of_its_own_is_found():
    assert {
        name
        for source in (
            "change = jax.value_and_grad(loss)(x)",
            "from jax import grad",
            "optax.apply_updates(x, change)",
        )
        for name, _ in calls(source)
    } >= OWN
