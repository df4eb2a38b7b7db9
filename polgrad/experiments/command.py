"""What `polgrad run`, `polgrad sweep`, `polgrad report` and `polgrad list experiments` do."""

import json
import pathlib
import re
from collections.abc import Sequence

from polgrad.experiments import (
    discovery,
    display,
    ledger,
    pages,
    reporting,
    running,
    sweep_report,
    sweeping,
)
from polgrad.experiments.settings import parse


def run(
    name: str,
    *,
    seeds: int | None = None,
    arms: str = "",
    set: Sequence[str] = (),
    smoke: bool = False,
    out: str = "",
    commit: bool = False,
) -> dict:
    """Runs an experiment and prints its table, its verdict and where the plot lies.

    Args:
      name: as `discovery.find` takes it.
      seeds: how many; the experiment's own number when left out.
      arms: some arms, joined by commas.
      set: texts `key=value`.
      smoke: the small size.
      out: directory of the run; when left out, one under `runs/` named by what is run.
      commit: also write the committed result.

    Returns:
      The result, as `result.json` holds it.

    Raises:
      ValueError: for bad input, before anything is computed.
      ExperimentError: for an arm that cannot be used.
    """
    found = discovery.find(name)
    changes = parse(found.experiment.settings, set)
    size = "changed" if changes else "smoke" if smoke else "full"
    some = [a.strip() for a in arms.split(",") if a.strip()]
    if commit and (size != "full" or some):
        raise ValueError("commit is for runs of full size with all arms and no changed setting")
    directory = pathlib.Path(out or _place(found.name, smoke, set, seeds))
    console = display.console()
    console.print(f"{found.name}: {found.experiment.claim}", highlight=False)
    with display.of_arms(console, len(some) or len(found.experiment.arms)) as progress:
        done = running.run(
            found,
            directory,
            seeds=seeds,
            arms=some,
            changes=changes,
            smoke=smoke,
            progress=progress,
        )
    whole = done.results.curves.keys() == found.experiment.arms.keys()
    verdict = found.experiment.holds(done.results) if whole else None
    content = reporting.result(found, done, verdict, size=size)
    known = discovery.result_path(found.path)
    for path in [directory / "result.json", *([known] if commit else [])]:
        path.parent.mkdir(parents=True, exist_ok=True)
        reporting.write(path, content)
        reporting.plot(path.with_suffix(".png"), found, done)
    console.print(reporting.table(content))
    for line in reporting.sentences(content):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    if size == "full" and not some and not commit and known.exists():
        line = reporting.agreement(content, json.loads(known.read_text()))
        console.print(line, highlight=False, soft_wrap=True)
    console.print(f"plot: {directory / 'result.png'}", highlight=False, soft_wrap=True)
    return content


def _place(name: str, smoke: bool, changes: Sequence[str], seeds: int | None) -> str:
    """A directory for each combination, so that none collides with another one's run."""
    parts = [name, *(["smoke"] if smoke else []), *changes]
    parts += [] if seeds is None else [f"seeds={seeds}"]
    return "runs/" + re.sub(r"[^\w.,=+-]", "_", "-".join(parts))


def sweep(
    name: str,
    *,
    set: Sequence[str] = (),
    seeds: int | None = None,
    arms: str = "",
    smoke: bool = False,
    workers: int = 2,
    ray: str = "",
    cpus: float = 1.0,
    gpus: float = 0.0,
    out: str = "",
) -> int:
    """Runs the open cells of a grid, then writes its table and its report.

    Args:
      name: as `discovery.find` takes it.
      set: texts `key=value,value,...`.
      seeds: how many a cell; the experiment's own number when left out.
      arms: some arms, joined by commas.
      smoke: the small size.
      workers: processes on this machine.
      ray: address of a Ray cluster, or `auto`; processes on this machine when left out.
      cpus: that a cell asks Ray for.
      gpus: that a cell asks Ray for.
      out: directory of the sweep; `runs/sweep-NAME` when left out.

    Returns:
      How many cells failed.

    Raises:
      ValueError: for bad input, before anything is computed.
    """
    if workers < 1:
        raise ValueError(f"workers is {workers}, expected at least 1")
    found = discovery.find(name)
    grid = sweeping.grid(found.experiment.settings, set)
    some = [a.strip() for a in arms.split(",") if a.strip()]
    directory = pathlib.Path(out or _place(f"sweep-{found.name}", smoke, [], None))
    plan = sweeping.plan(found, directory, grid, seeds=seeds, arms=some, smoke=smoke)
    console = display.console()
    with sweeping.alone(directory):
        left = len(plan.open_cells())
        where = f"Ray at {ray}" if ray else f"{workers} processes"
        console.print(
            f"{found.name}: {len(plan.cells)} cells x {plan.cells[0].seeds} seeds, "
            f"{len(plan.cells) - left} there already, on {where}, in {directory}",
            highlight=False,
            soft_wrap=True,
        )
        if ray:
            from polgrad.experiments.on_ray import on_ray

            ended = on_ray(plan, ray, cpus=cpus, gpus=gpus)
        else:
            ended = sweeping.in_processes(plan, workers)
        failed = display.of_cells(console, ended, left)
        console.print(f"table: {sweeping.write_table(plan)}", highlight=False, soft_wrap=True)
    if failed < len(plan.cells):
        report(str(directory))
    return failed


def report(directory: str, *, metric: str | None = None) -> None:
    """Writes `report.md` and `report.html` of a sweep or a run, and prints what they say first.

    Args:
      directory: of a sweep or of a run.
      metric: that a sweep's cells are compared by; the experiment's first when left out.

    Raises:
      ValueError: if the directory has neither, or nothing in it has ended.
    """
    place = pathlib.Path(directory)
    console = display.console()
    if (place / "sweep.json").exists():
        summary = sweep_report.read(place, metric)
        title, blocks = f"Sweep of {summary.description['name']}", sweep_report.blocks(summary)
        lines = [sweep_report.best(summary)]
    elif (place / "result.json").exists():
        content = json.loads((place / "result.json").read_text())
        blocks = reporting.blocks(content, (place / "result.png").read_bytes())
        title, lines = content["name"], reporting.sentences(content)
    else:
        raise ValueError(f"{directory} holds neither sweep.json nor result.json; expected a run")
    for line in [*lines, *(f"report: {p}" for p in pages.write(place, title, blocks))]:
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def listing() -> list[str]:
    """One line an experiment, by family, with the verdict of its committed result."""
    lines, family = [], None
    known = discovery.names()
    for name, path in sorted(known.items(), key=lambda item: (item[1].parent.name, item[0])):
        if path.parent.name != family:
            family = path.parent.name
            lines.append(f"{family}:")
        result = discovery.result_path(path)
        verdict = "not run" if not result.exists() else json.loads(result.read_text())["verdict"]
        lines.append(f"  {name:24} {verdict:16} {discovery.find(str(path)).experiment.claim}")
    return lines


def write_ledger(root: pathlib.Path | None = None, *, write: bool = True) -> bool:
    """Makes the README's ledger anew.

    Args:
      root: of the checkout; the working directory when left out.
      write: whether to write it, or only to compare.

    Returns:
      Whether the README had this ledger already.

    Raises:
      ValueError: outside of a checkout, or for a README without the ledger's marks.
    """
    root = pathlib.Path.cwd() if root is None else root
    path = root / "README.md"
    if not path.exists() or not (root / "experiments" / "results").is_dir():
        raise ValueError(
            f"{root} lacks README.md or experiments/results; the ledger is made in a checkout"
        )
    text = path.read_text()
    new = ledger.rewritten(text, ledger.results(root / "experiments" / "results"))
    if write and new != text:
        path.write_text(new)
    return new == text
