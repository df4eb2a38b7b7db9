"""The README's table of papers, made from `experiments/results/*.json` alone."""

import json
import pathlib
from typing import Any

BEGIN = "<!-- ledger: made by `polgrad report --ledger` -->"
END = "<!-- end of ledger -->"


def results(folder: pathlib.Path) -> list[dict[str, Any]]:
    """The committed results, by family and name.

    Raises:
      ValueError: for a file that is not a result of full size.
    """
    found = []
    for path in sorted(folder.glob("*.json")):
        content = json.loads(path.read_text())
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
        paper = entry["paper"]
        cite = f"[{paper['authors']}, {paper['year']}](https://arxiv.org/abs/{paper['arxiv']})"
        picture = f"[{entry['verdict']}](experiments/results/{entry['name']}.png)"
        seeds = len(entry["seeds"])
        lines.append(
            f"| `{entry['name']}` ({entry['family']}) | {cite} | {entry['claim']} | "
            f"{picture}, {seeds} seeds |"
        )
    return "\n".join(lines)


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
