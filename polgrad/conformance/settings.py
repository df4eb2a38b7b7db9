"""What `check` does with the settings of an algorithm: the whole of them, from samples to gradient."""

import dataclasses

import numpy as np

from polgrad.algorithms import common
from polgrad.conformance import batch_checks, expectations, rollouts
from polgrad.conformance.expectations import Measurement
from polgrad.conformance.paths import UNKNOWN, Path, follows
from polgrad.conformance.requirements import Check
from polgrad.contract import Settings

__all__ = ["examine", "name_of"]

_WANTED = {
    rollouts.World: "the mean of rewards of 0 and 1",
    rollouts.Contests: "the win rate against the opponent",
    rollouts.Pairs: "the margin of the chosen answers",
    rollouts.Answers: "the likelihood of the demonstrations",
}


def name_of(settings: Settings) -> str:
    """The class and the settings that differ from its defaults."""
    fields = dataclasses.fields(settings) if dataclasses.is_dataclass(settings) else ()
    changed = common.changed(settings, tuple(f.name for f in fields)) if fields else ()
    told = ", ".join(f"{name}={getattr(settings, name)!r}" for name in changed)
    return f"{type(settings).__name__}({told})"


def examine(settings: Settings) -> tuple[str, tuple[Measurement, ...], dict[str, Check]]:
    """What the algorithm takes, its measurements and its checks."""
    if isinstance(settings, type):
        raise ValueError(
            f"objective is the class {settings.__name__}, expected settings: {settings.__name__}()"
        )
    paths = [Path(settings, problem) for problem in expectations.problems()]
    measurements = tuple(m for path in paths for m in path.measurements())
    batch = batch_checks.Example(settings, expectations.problems()[1])
    checks = {
        "direction": _check_direction(paths),
        "micro-batches": batch_checks.check_micro_batches(batch),
        "permutation": batch_checks.check_permutation(batch),
        "padding": batch_checks.check_padding(batch),
        **batch_checks.check_stopped(batch),
        "minus infinity": batch_checks.check_edges(batch),
        "number formats": batch_checks.check_formats(batch),
    }
    if batch.algorithm.samples:
        checks["invalid rewards"] = batch_checks.check_invalid(batch)
        checks["reuse"] = batch_checks.check_reuse(batch)
    checks["gradient"] = _tell_gradient(measurements, paths[0].world.exact)
    if batch.algorithm.samples:
        checks |= _notes_on_rewards(paths)
    return batch.layout, measurements, checks


# --- in words -------------------------------------------------------------------------------------


def _tell_gradient(measurements: tuple[Measurement, ...], exact: str) -> Check:
    """Which gradient it is on-policy; a property, not a requirement.

    The bandit has too few parameters to tell a gradient with two terms from any other.
    """
    found = [m for m in measurements if m.staleness == 0.0]
    told = [
        f"{m.follows}{f', cosine {m.cosine:.3f}' if m.follows == UNKNOWN else ''} ({m.problem})"
        for m in found
    ]
    known = found[-1].follows != UNKNOWN
    names = {"policy gradient": "a policy gradient of the mean reward"}
    start = "" if known else f"not {names.get(exact, f'that of {exact}')}: "
    return Check(known, f"{start}{'; '.join(told)}", required=False)


def _check_direction(paths: list[Path]) -> Check:
    """A step raises what is wanted; of samples, what does not depend on the rewards is left out."""
    wrong, wanted = [], _WANTED[type(paths[0].world)]
    for path in paths:
        returns = path.binary if path.samples else path.problem.returns
        ascent, policies = path.ascent(0.0, returns)
        if path.samples:
            ascent = ascent - path.ascent(0.0, np.zeros_like(returns))[0]
        rise = path.world.rise(policies, returns, ascent)
        if not rise > 0.0:
            word = "lowers" if rise < 0.0 else "does not raise"
            wrong.append(f"a step {word} {wanted} ({path.problem.name})")
    return Check(not wrong, "; ".join(wrong) or f"a step raises {wanted}")


def _notes_on_rewards(paths: list[Path]) -> dict[str, Check]:
    """What constants, scales and rewards of 0 and 1 make of the gradient; properties."""
    path = paths[1]
    returns = path.problem.returns
    rewards = (0.0 * returns, returns, returns + 3.0, 3.0 * returns)
    without, *found = (path.expected(0.0, x)[0] for x in rewards)
    mean, shifted, scaled = (x - without for x in found)
    if expectations.distance(scaled, mean) < 1e-4:  # of the constant that keeps a deviation from 0
        scale = (
            "three times the rewards give the same gradient: they are divided by their deviation"
        )
        scale += ", or ranked, so that no fixed function of the rewards is maximised"
    elif expectations.distance(scaled, 3.0 * mean) < expectations.EXACT:
        scale = "the gradient is proportional to the rewards"
    else:
        scale = "three times the rewards give neither the same gradient nor three times it"
    same = expectations.distance(shifted, mean) < expectations.EXACT
    constant = f"a constant added to the rewards changes {'nothing' if same else 'the gradient'}"
    proportional = scale.startswith("the gradient")
    return {
        "reward constants": Check(same, constant, required=False),
        "scales with rewards": Check(proportional, scale, required=False),
        "rewards of 0 and 1": _tell_binary(paths),
    }


def _tell_binary(paths: list[Path]) -> Check:
    found = []
    for path in paths:
        mean, _, policies = path.expected(0.0, path.binary)
        known = path.world.known(policies, path.binary)
        found.append(follows(mean, known.gradients, known.terms))
    told = "; ".join(f"{f} ({p.problem.name})" for f, p in zip(found, paths, strict=True))
    return Check(found[-1] != UNKNOWN, told, required=False)
