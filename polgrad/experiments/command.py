"""What `polgrad run`, `polgrad sweep`, `polgrad report` and `polgrad list experiments` do."""

import pathlib
import traceback
from collections.abc import Sequence

from polgrad import _files, _names, _outside
from polgrad.experiments import (
    cells,
    discovery,
    display,
    ledger,
    on_ray,
    pages,
    reporting,
    running,
    sweep_report,
    sweeping,
    training_report,
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
      ExperimentError: for an arm that cannot be used; its traceback is kept in `error.txt`.
    """
    found = discovery.find(name)
    changes = parse(found.experiment.settings, set)
    size = "changed" if changes else "smoke" if smoke else "full"
    some = [a.strip() for a in arms.split(",") if a.strip()]
    if commit and (size != "full" or some):
        raise ValueError("commit is for runs of full size with all arms and no changed setting")
    directory = pathlib.Path(out or _place(found.name, smoke, set, seeds))
    known = discovery.result_path(found.path)
    committed = reporting.read(known) if known.exists() and not commit else None
    console = display.console()
    contents = []

    def finish(done: running.Run) -> None:
        verdict = running.verdict(found, done.results)
        contents.append(reporting.result(found, done, verdict, size=size))
        for path in [directory / "result.json", *([known] if commit else [])]:
            path.parent.mkdir(parents=True, exist_ok=True)
            reporting.write(path, contents[0])
            reporting.plot(path.with_suffix(".png"), found, done)

    claim, arms_to_run = f"{found.name}: {found.experiment.claim}", some or found.experiment.arms
    with display.of_arms(console, claim, len(arms_to_run)) as progress:
        try:
            running.run(
                found,
                directory,
                seeds=seeds,
                arms=some,
                changes=changes,
                smoke=smoke,
                progress=progress,
                finish=finish,
            )
        except running.ExperimentError as error:
            kept = directory / running.ERROR
            text = traceback.format_exc()
            _files.write(kept, text.encode("utf-8", "backslashreplace"))
            raise running.ExperimentError(f"{error} (traceback: {kept})") from error
    (content,) = contents
    console.print(reporting.table(content))
    for line in reporting.sentences(content):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    if size == "full" and not some and committed is not None:
        line = reporting.agreement(content, committed)
        console.print(line, highlight=False, soft_wrap=True)
    console.print(f"plot: {directory / 'result.png'}", highlight=False, soft_wrap=True)
    return content


def _place(name: str, smoke: bool, changes: Sequence[str], seeds: int | None) -> str:
    """A directory for each combination, so that none collides with another one's run."""
    parts = [name, *(["smoke"] if smoke else []), *changes]
    parts += [] if seeds is None else [f"seeds={seeds}"]
    text = "-".join(parts)
    return f"runs/{cells.safe_name(text, text, 163)}"


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
    if ray:
        on_ray.check_installed()
    found = discovery.find(name)
    grid = sweeping.grid(found.experiment.settings, set)
    some = [a.strip() for a in arms.split(",") if a.strip()]
    directory = pathlib.Path(out or _place(f"sweep-{found.name}", smoke, [], None))
    plan = sweeping.plan(found, directory, grid, seeds=seeds, arms=some, smoke=smoke)
    console = display.console()
    with _files.alone(directory):
        left = len(plan.open_cells())
        where = f"Ray at {ray}" if ray else f"{workers} processes"
        console.print(
            f"{found.name}: {len(plan.cells)} cells x {plan.cells[0].seeds} seeds, "
            f"{len(plan.cells) - left} there already, on {where}, in {directory}",
            highlight=False,
            soft_wrap=True,
        )
        if ray:
            ended = on_ray.on_ray(plan, ray, cpus=cpus, gpus=gpus)
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
      directory: of a sweep, of an experiment's run, or of a run of `polgrad train`.
      metric: that a sweep's cells are compared by; the experiment's first when left out.

    Raises:
      ValueError: if the directory has none of them, nothing in it has ended, or a file in it is
        damaged.
    """
    place = pathlib.Path(directory)
    console = display.console()
    if (place / "sweep.json").exists():
        summary = sweep_report.read(place, metric)
        title, blocks = f"Sweep of {summary.description['name']}", sweep_report.blocks(summary)
        lines = [sweep_report.best(summary)]
    elif metric is not None:
        raise ValueError(f"--metric is {metric!r}, and {directory} is no sweep; leave it out")
    elif (place / "result.json").exists():
        content = reporting.read(place / "result.json")
        blocks = reporting.blocks(content, pages.read_picture(place / "result.png"))
        title, lines = content["name"], reporting.sentences(content)
    elif (place / "metrics.jsonl").exists() and (place / "config.json").exists():
        title, lines, blocks = training_report.read(place)
    else:
        raise ValueError(_nothing_there(place))
    for line in [*lines, *(f"report: {p}" for p in pages.write(place, title, blocks))]:
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _nothing_there(place: pathlib.Path) -> str:
    """Why a directory has no report, and which directories beside it are like it by name."""
    if place.is_dir():
        problem = f"{place} holds no sweep.json, result.json or metrics.jsonl with config.json"
        return f"{problem}; expected a sweep or a run that has ended or shown a step"
    beside = []
    if place.parent.is_dir():
        there = sorted(p for p in place.parent.iterdir() if p.is_dir())
        beside = [p for p in there if p.name.startswith(place.name)]
        names = {p.name: p for p in there}
        beside = beside or [names[n] for n in _names.nearest(place.name, names, n=3)]
    hint = f"; there is {', '.join(str(p) for p in beside[:5])}" if beside else ""
    return f"{place} does not exist{hint}; expected the directory of a sweep or a run"


def listing() -> list[str]:
    """One line an experiment, by family, with the verdict of its committed result.

    No experiment is run: what the lines say is read from the files' text.
    """
    lines, family = [], None
    told = discovery.listed()
    own = {one.path.stem for one in told if one.own}
    for one in sorted(told, key=lambda t: (t.path.parent.name, t.path.stem, not t.own)):
        if one.problem:
            continue
        if one.path.parent.name != family:
            family = one.path.parent.name
            lines.append(f"{family}:")
        claim = one.claim or "(its text names no claim)"
        if not one.own:
            claim += f" ({discovery.shown(one.path)}"
            claim += ", to be run by this path)" if one.path.stem in own else ")"
        lines.append(f"  {one.path.stem:24} {_verdict(one.path):16} {claim}")
    for one in told:
        if one.problem:
            lines.append(f"skipped: {discovery.shown(one.path)}: {one.problem}")
    return [_outside.printable(line) for line in lines]


def _verdict(path: pathlib.Path) -> str:
    """The verdict of an experiment's committed result."""
    result = discovery.result_path(path)
    if not result.exists():
        return "not run"
    try:
        return str(_outside.read_json(result).get("verdict"))
    except ValueError:
        return "unreadable"


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
    with _outside.reading(path):
        text = path.read_text(encoding="utf-8")
    new = ledger.rewritten(text, ledger.results(root / "experiments" / "results"))
    if write and new != text:
        _files.write(path, new)
    return new == text
