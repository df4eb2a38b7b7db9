"""What a run and a sweep show on the terminal while they go on."""

import contextlib
from collections.abc import Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from polgrad.experiments import running
from polgrad.experiments.cells import Cell


def console() -> Console:
    """Standard output; wide where it is not a terminal, so that tables in logs stay whole."""
    found = Console()
    return found if found.is_terminal else Console(width=max(160, found.width))


def bars(console: Console) -> Progress:
    """Bars that vanish when they end."""
    columns = (TextColumn("{task.description}"), BarColumn(24), MofNCompleteColumn())
    return Progress(*columns, TimeElapsedColumn(), console=console, transient=True)


@contextlib.contextmanager
def of_arms(console: Console, claim: str, arms: int) -> Iterator[running.Progress]:
    """The claim, then two bars, the arms and the points of the one that runs; a line for each end.

    Nothing is shown of a run that is refused.
    """
    with contextlib.ExitStack() as stack:
        shown = bars(console)
        whole = shown.add_task("arms", total=arms)
        part = shown.add_task("", total=None)

        def start() -> None:
            console.print(claim, highlight=False, markup=False, soft_wrap=True)
            stack.enter_context(shown)

        def end(text: str) -> None:
            shown.advance(whole)
            console.print(text, highlight=False)

        yield running.Progress(
            start=start,
            begin=lambda text: shown.reset(part, description=text, total=None),
            point=lambda done, total: shown.update(part, completed=done, total=total),
            end=end,
        )


def of_cells(console: Console, ended: Iterator[tuple[Cell, str]], total: int) -> int:
    """A bar over the cells and a line for each that ends; returns how many failed."""
    failed = 0
    with bars(console) as shown:
        task = shown.add_task("cells", total=total)
        for cell, error in ended:
            failed += bool(error)
            text = f"{cell.name}: {'failed, ' + error if error else 'done'}"
            console.print(text, highlight=False, markup=False, soft_wrap=True)
            shown.advance(task)
    return failed
