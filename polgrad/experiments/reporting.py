"""What a run of an experiment tells: figures, a table, a picture, the committed result."""

import dataclasses
import io
import json
import math
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from polgrad import _files, _outside, statistics
from polgrad._versions import versions
from polgrad.experiments import pages
from polgrad.experiments.discovery import Found
from polgrad.experiments.running import Run
from polgrad.experiments.types import Verdict


def result(found: Found, run: Run, verdict: Verdict | None, *, size: str) -> dict[str, Any]:
    """A run as plain data, the form of `experiments/results/<name>.json`.

    Args:
      found: the experiment.
      run: its run.
      verdict: what became of the claim; None when some arm did not run.
      size: `"full"`, `"smoke"` or `"changed"`.

    Returns:
      Paper, claim, verdict with its checks, settings, versions, and for every arm each metric's
      interquartile mean, 95% interval and seeds, and its comparison with the baseline.
    """
    experiment = found.experiment
    checks = [] if verdict is None else [check._asdict() for check in verdict.checks]
    return {
        "name": found.name,
        "family": found.family,
        "paper": dataclasses.asdict(experiment.paper),
        "claim": experiment.claim,
        "verdict": None if verdict is None else verdict.outcome,
        "checks": checks,
        "size": size,
        "seeds": list(range(run.seeds)),
        "settings": dataclasses.asdict(run.results.settings),
        "versions": versions(),
        "seconds": {name: round(value, 1) for name, value in run.seconds.items()},
        "metrics": dict(experiment.metrics),
        "better": experiment.better,
        "baseline": experiment.baseline,
        "at_scale": experiment.at_scale,
        "note": experiment.note,
        "arms": {name: _arm(found, run, name) for name in run.results.curves},
    }


def _arm(found: Found, run: Run, name: str) -> dict[str, Any]:
    experiment, results = found.experiment, run.results
    metrics = {}
    for metric in experiment.metrics:
        final = results.final(name, metric)
        low, high = statistics.bootstrap_interval(final)
        metrics[metric] = {
            "interquartile_mean": statistics.interquartile_mean(final),
            "low": _finite(low),
            "high": _finite(high),
            "seeds": final.tolist(),
        }
    arm: dict[str, Any] = {"metrics": metrics, "comparison": None}
    if experiment.baseline in results.curves and name != experiment.baseline:
        main = experiment.main_metric
        ours, theirs = (results.final(n, main) for n in (name, experiment.baseline))
        compared = statistics.compare(ours, theirs)._asdict()
        if experiment.better == "lower":
            compared["probability_of_improvement"] = 1.0 - compared["probability_of_improvement"]
        arm["comparison"] = {k: _finite(v) for k, v in compared.items()}
    return arm


def _finite(value: Any) -> Any:
    """JSON has no infinity: an interval that one seed leaves open has no ends."""
    return None if isinstance(value, float) and not np.isfinite(value) else value


def figures(content: dict[str, Any]) -> pages.Table:
    """The final table: one row an arm."""
    main, *others = content["metrics"]
    header = ["arm", f"{main}, interquartile mean [95%]", *others]
    header += [f"less {content['baseline']} [95%]", "P(better)", "seeds to decide"]
    rows = []
    for name, arm in content["arms"].items():
        compared = arm["comparison"]
        cells = ["", "", ""]
        if compared is not None:
            needed = compared["seeds_needed"]
            cells = [
                _interval(compared["difference"], compared["low"], compared["high"]),
                f"{compared['probability_of_improvement']:.2f}",
                "unknown" if needed is None else f"{needed} more" if needed else "enough",
            ]
        first = arm["metrics"][main]
        values = [f"{arm['metrics'][m]['interquartile_mean']:.4g}" for m in others]
        middle = _interval(first["interquartile_mean"], first["low"], first["high"])
        rows.append([name, middle, *values, *cells])
    return pages.Table(header, rows)


def table(content: dict[str, Any]) -> Any:
    """`figures` for `rich` to print."""
    from rich.table import Table

    shown = Table(title=f"{content['name']}: {len(content['seeds'])} seeds")
    header, rows = figures(content)
    for index, column in enumerate(header):
        shown.add_column(column, justify="right" if index else "left")
    for row in rows:
        shown.add_row(*row)
    return shown


def blocks(content: dict[str, Any], png: bytes) -> list[pages.Block]:
    """A run as a page."""
    paper = content["paper"]
    cite = f"{paper['authors']}, {paper['title']}, {paper['year']} (arXiv:{paper['arxiv']})."
    found: list[pages.Block] = [pages.Text(cite), pages.Listing("\n".join(sentences(content)))]
    found += [pages.Text(content["note"])] if content["note"] else []
    found += [figures(content), pages.Picture("report", "curves with 95% bands", png)]
    meanings = [[name, meaning] for name, meaning in content["metrics"].items()]
    found += [pages.Heading("Metrics"), pages.Table(["metric", "meaning"], meanings)]
    settings = [[name, str(value)] for name, value in content["settings"].items()]
    return [*found, pages.Heading("Settings"), pages.Table(["setting", "value"], settings)]


def _interval(value: float | None, low: float | None, high: float | None) -> str:
    if value is None:
        return "not finite"
    ends = "one seed" if low is None or high is None else f"{low:.4g}, {high:.4g}"
    return f"{value:.4g} [{ends}]"


def sentences(content: dict[str, Any]) -> list[str]:
    """The verdict and what decides it, as lines."""
    lines = [f"claim: {content['claim']}"]
    for check in content["checks"]:
        interval = _interval(check["value"], _finite(check["low"]), _finite(check["high"]))
        lines.append(f"  {check['outcome']:14} {check['text']}: {interval}")
    if content["verdict"] is None:
        return [*lines, "verdict: none, because not all arms ran"]
    caution = "" if content["size"] == "full" else f" (at {content['size']} size)"
    return [*lines, f"verdict: {content['verdict']}{caution}"]


def agreement(content: dict[str, Any], committed: dict[str, Any]) -> str:
    """Whether a run of full size shows what the committed one did, as a line.

    It does when the verdict is the same and, for every arm, the two intervals of the compared
    metric overlap.
    """
    main = next(iter(content["metrics"]))
    apart = []
    for name, arm in content["arms"].items():
        theirs = committed["arms"].get(name, {"metrics": {}})["metrics"].get(main)
        ours = arm["metrics"][main]
        if theirs is None or not _overlap(ours, theirs):
            apart.append(name)
    said = f"committed result: {committed['verdict']}, "
    said += "the same" if content["verdict"] == committed["verdict"] else "ANOTHER VERDICT"
    if apart:
        return f"{said}; intervals of {main} do not overlap for {', '.join(apart)}"
    return f"{said}; intervals of {main} overlap for every arm"


def _overlap(ours: dict[str, Any], theirs: dict[str, Any]) -> bool:
    open_ended = None in (ours["low"], ours["high"], theirs["low"], theirs["high"])
    if open_ended:
        return True
    # An arm that ends at the same figure in every seed has no width: allow for the last digits.
    slack = 1e-6 * max(abs(ours["high"]), abs(theirs["high"]), 1e-30)
    return ours["low"] <= theirs["high"] + slack and theirs["low"] <= ours["high"] + slack


def write(path: pathlib.Path, content: dict[str, Any]) -> None:
    """Writes a result at once."""
    _files.write(path, json.dumps(_open_ends(content), indent=2) + "\n")


def plain(value: Any) -> Any:
    """A value as it comes back from a result's file."""
    return json.loads(json.dumps(_open_ends(value)))


_NUMBER = (int, float)
# What a result has, and of which type; `checks` and `arms` are looked at entry by entry.
_FORM: Mapping[str, tuple[type, ...]] = {
    "name": (str,),
    "family": (str,),
    "paper": (dict,),
    "claim": (str,),
    "verdict": (str, type(None)),
    "checks": (list,),
    "size": (str,),
    "seeds": (list,),
    "settings": (dict,),
    "metrics": (dict,),
    "better": (str,),
    "baseline": (str,),
    "note": (str,),
    "arms": (dict,),
}
_PAPER = {"title": (str,), "authors": (str,), "year": (int,), "arxiv": (str,)}
_CHECK = {
    "text": (str,),
    "value": (*_NUMBER, type(None)),
    "low": (*_NUMBER, type(None)),
    "high": (*_NUMBER, type(None)),
    "outcome": (str,),
}
_FIGURES = {
    "interquartile_mean": _NUMBER,
    "low": (*_NUMBER, type(None)),
    "high": (*_NUMBER, type(None)),
    "seeds": (list,),
}
_COMPARISON = {
    "difference": _NUMBER,
    "low": (*_NUMBER, type(None)),
    "high": (*_NUMBER, type(None)),
    "probability_of_improvement": _NUMBER,
    "seeds_needed": (int, type(None)),
}


def read(path: pathlib.Path) -> dict[str, Any]:
    """A result that was written before, by this version or another.

    Args:
      path: `result.json`, or a committed result.

    Returns:
      Its content, of the form that `result` gives.

    Raises:
      ValueError: the file is damaged or of another form; one line that names file and entry.
    """
    content = _outside.read_json(path)
    with _outside.reading(path):
        _require(content, _FORM, "")
        _require(content["paper"], _PAPER, "paper.")
        for index, check in enumerate(content["checks"]):
            _require(check, _CHECK, f"checks[{index}].")
        if not content["metrics"]:
            raise ValueError("metrics is empty; expected the metric that is compared")
        if content["better"] not in ("higher", "lower"):
            raise ValueError(f"better is {content['better']!r}; expected higher or lower")
        if content["seeds"] != list(range(len(content["seeds"]))) or not content["seeds"]:
            raise ValueError(f"seeds is {content['seeds']!r:.60}; expected the numbers from 0")
        for name, arm in content["arms"].items():
            _require(arm, {"metrics": (dict,), "comparison": (dict, type(None))}, f"arms.{name}.")
            for metric in content["metrics"]:
                place = f"arms.{name}.metrics."
                _require(arm["metrics"], {metric: (dict,)}, place)
                figures = arm["metrics"][metric]
                _require(figures, _FIGURES, f"{place}{metric}.")
                _numbers(figures["seeds"], len(content["seeds"]), f"{place}{metric}.seeds")
            if arm["comparison"] is not None:
                _require(arm["comparison"], _COMPARISON, f"arms.{name}.comparison.")
    return content


def _require(found: Any, form: Mapping[str, tuple[type, ...]], place: str) -> None:
    """Every entry of a form is there and has one of its types."""
    if not isinstance(found, dict):
        raise ValueError(f"{place.rstrip('.')} is {_kind(found)}; expected an object")
    for name, kinds in form.items():
        if name not in found:
            raise ValueError(f"the entry {place + name!r} is missing")
        value = found[name]
        if type(value) not in kinds:
            wanted = " or ".join(_NAMES[kind] for kind in kinds)
            raise ValueError(f"{place}{name} is {_kind(value)}; expected {wanted}")
        if type(value) in _NUMBER and not _is_finite(value):
            raise ValueError(f"{place}{name} is {value!r:.60}; expected a finite number")


def _numbers(found: list, count: int, place: str) -> None:
    wrong = [v for v in found if type(v) not in _NUMBER or not _is_finite(v)]
    if wrong or len(found) != count:
        raise ValueError(f"{place} holds {found!r:.60}; expected {count} finite numbers")


def _is_finite(value: int | float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer that no float can hold
        return False


_NAMES = {
    str: "text",
    int: "a whole number",
    float: "a number",
    dict: "an object",
    list: "a list",
    type(None): "null",
    bool: "true or false",
}


def _kind(value: Any) -> str:
    return _NAMES.get(type(value), type(value).__name__)


def _open_ends(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {k: _open_ends(v) for k, v in tree.items()}
    if isinstance(tree, (list, tuple)):
        return [_open_ends(v) for v in tree]
    if isinstance(tree, (np.generic, np.ndarray)):  # of somebody's own checks or settings
        return _open_ends(tree.tolist())
    return _finite(tree)


def plot(path: pathlib.Path, found: Found, run: Run) -> None:
    """Curves of all arms: the interquartile mean over seeds, with its pointwise 95% band."""
    # Not through pyplot: a notebook keeps its own way of showing pictures.
    from matplotlib.figure import Figure

    experiment, results = found.experiment, run.results
    metrics = [m for m in experiment.metrics if all(_is_curve(a[m]) for a in _arms(results))]
    if not metrics:
        raise ValueError(f"{found.name} has no metric with more than one point to draw")
    width = 2 if len(metrics) == 4 else min(3, len(metrics))
    height = -(-len(metrics) // width)
    figure = Figure(figsize=(4.6 * width, 3.4 * height), layout="constrained")
    axes = figure.subplots(height, width, squeeze=False)
    for metric, ax in zip(metrics, axes.flat):
        for index, (name, arm) in enumerate(results.curves.items()):
            x = arm[experiment.axis][0]
            middle, low, high = band(np.asarray(arm[metric], np.float64))
            # There are ten colours; beyond them the dashes tell arms apart.
            color, dashes = f"C{index % 10}", ("-", "--", ":")[index // 10 % 3]
            ax.plot(x, middle, dashes, color=color, label=name, linewidth=1.6)
            ax.fill_between(x, low, high, color=color, alpha=0.18, linewidth=0)
        ax.set(xlabel=experiment.axis, title=metric)
        ax.spines[["top", "right"]].set_visible(False)
    for ax in axes.flat[len(metrics) :]:
        ax.set_axis_off()
    lines, labels = axes.flat[0].get_legend_handles_labels()
    figure.legend(lines, labels, loc="outside right upper", frameon=False, fontsize=9)
    picture = io.BytesIO()
    figure.savefig(picture, dpi=130, format="png")
    _files.write(path, picture.getvalue())


def _arms(results):
    return results.curves.values()


def _is_curve(curve: np.ndarray) -> bool:
    return curve.ndim == 2 and curve.shape[1] > 1


def band(curves: np.ndarray, resamples: int = 400) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Interquartile mean of `[seeds, points]` and its bootstrap interval, point by point."""
    seeds = curves.shape[0]
    cut = seeds // 4

    def middle(values):
        return np.sort(values, axis=-2)[..., cut : seeds - cut, :].mean(-2)

    picks = np.random.default_rng(0).integers(seeds, size=(resamples, seeds))
    low, high = np.quantile(middle(curves[picks]), (0.025, 0.975), axis=0)
    return middle(curves), low, high
