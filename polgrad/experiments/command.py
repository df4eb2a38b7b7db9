"""What `polgrad run`, `polgrad report` and `polgrad list experiments` do."""

import json
import pathlib
import re
from collections.abc import Sequence

from polgrad.experiments import discovery, display, ledger, reporting, running
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
    places = [directory] + ([discovery.folder() / "results"] if commit else [])
    for place in places:
        place.mkdir(parents=True, exist_ok=True)
        stem = found.name if place != directory else "result"
        reporting.write(place / f"{stem}.json", content)
        reporting.plot(place / f"{stem}.png", found, done)
    console.print(reporting.table(content, found.experiment))
    for line in reporting.sentences(content):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    console.print(f"plot: {directory / 'result.png'}", highlight=False, soft_wrap=True)
    return content


def _place(name: str, smoke: bool, changes: Sequence[str], seeds: int | None) -> str:
    """A directory for each combination, so that none collides with another one's run."""
    parts = [name, *(["smoke"] if smoke else []), *changes]
    parts += [] if seeds is None else [f"seeds={seeds}"]
    return "runs/" + re.sub(r"[^\w.,=+-]", "_", "-".join(parts))


def listing() -> list[str]:
    """One line an experiment, by family, with the verdict of its committed result."""
    lines, family = [], None
    known = discovery.names()
    for name, path in sorted(known.items(), key=lambda item: (item[1].parent.name, item[0])):
        if path.parent.name != family:
            family = path.parent.name
            lines.append(f"{family}:")
        result = discovery.folder() / "results" / f"{name}.json"
        verdict = "not run" if not result.exists() else json.loads(result.read_text())["verdict"]
        lines.append(f"  {name:24} {verdict:16} {discovery.find(str(path)).experiment.claim}")
    return lines or [f"no experiments in {discovery.folder()}; run in a checkout"]


def write_ledger(*, write: bool = True) -> bool:
    """Makes the README's ledger anew.

    Args:
      write: whether to write it, or only to compare.

    Returns:
      Whether the README had this ledger already.
    """
    folder = discovery.folder()
    path = folder.parent / "README.md"
    text = path.read_text()
    new = ledger.rewritten(text, ledger.results(folder / "results"))
    if write and new != text:
        path.write_text(new)
    return new == text
