"""The README's table of papers, made from `experiments/results/*.json` alone."""

import pathlib
import urllib.parse
from typing import Any

from polgrad.experiments import pages, reporting

BEGIN = "<!-- ledger: made by `polgrad report --ledger` -->"
END = "<!-- end of ledger -->"


def results(folder: pathlib.Path) -> list[dict[str, Any]]:
    """The committed results, by family and name.

    Raises:
      ValueError: for a file that is damaged, or is not a result of full size; with its name.
    """
    found = []
    for path in sorted(folder.glob("*.json")):
        content = reporting.read(path)
        if content.get("size") != "full" or content.get("verdict") is None:
            raise ValueError(
                f"{path} has size {content.get('size')!r} and verdict {content.get('verdict')!r}; "
                "expected a full-size run of all arms"
            )
        found.append(content)
    return sorted(found, key=lambda r: (r["family"], r["name"]))


def table(found: list[dict[str, Any]]) -> str:
    """Markdown: one row a paper, with its claim and what became of it."""
    lines = ["| experiment | paper | claim | verdict |", "|---|---|---|---|"]
    for entry in found:
        paper, name = entry["paper"], entry["name"]
        cite = _link(
            f"{paper['authors']}, {paper['year']}", f"https://arxiv.org/abs/{_url(paper['arxiv'])}"
        )
        picture = _link(entry["verdict"], f"experiments/results/{_url(name)}.png")
        lines.append(
            pages.row(
                [
                    f"{pages.code(name)} ({pages.inline(entry['family'])})",
                    cite,
                    pages.inline(entry["claim"]),
                    f"{picture}, {len(entry['seeds'])} seeds",
                ]
            )
        )
    return "\n".join(lines)


def _link(text: str, address: str) -> str:
    return f"[{pages.label(text)}]({address})"


def _url(part: str) -> str:
    return urllib.parse.quote(str(part), safe="/.")


def rewritten(readme: str, found: list[dict[str, Any]]) -> str:
    """The README with its ledger made anew.

    Raises:
      ValueError: if the README lacks the two marks between which the ledger stands.
    """
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"README.md lacks the marks {BEGIN} and {END}")
    return f"{before}{BEGIN}\n\n{table(found)}\n\n{END}{after}"
