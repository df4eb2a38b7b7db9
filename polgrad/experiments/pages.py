"""A report as blocks, and as Markdown or one HTML file."""

import base64
import pathlib
import re
from collections.abc import Sequence
from typing import NamedTuple

from polgrad import _files, _outside


class Heading(NamedTuple):
    """A section's title."""

    text: str


class Text(NamedTuple):
    """A paragraph."""

    text: str


class Table(NamedTuple):
    """Rows of cells below a header."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]


class Picture(NamedTuple):
    """A PNG with its caption."""

    name: str
    caption: str
    png: bytes


class Listing(NamedTuple):
    """Text whose lines stay as they are."""

    text: str


Block = Heading | Text | Table | Picture | Listing

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{{ title }}</title><style>
body { font: 15px/1.5 system-ui, sans-serif; max-width: 64rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; display: block; overflow-x: auto; }
th, td { padding: .25rem .75rem; border-bottom: 1px solid #ddd; text-align: right; }
th:first-child, td:first-child { text-align: left; }
img { max-width: 100%; } figure { margin: 1rem 0; } figcaption { color: #555; }
pre { background: #f6f6f6; padding: .75rem; overflow-x: auto; font-size: 13px; }
</style></head><body><h1>{{ title }}</h1>
{% for kind, block in blocks %}
{% if kind == "Heading" %}<h2>{{ block.text }}</h2>
{% elif kind == "Text" %}<p>{{ block.text }}</p>
{% elif kind == "Listing" %}<pre>{{ block.text }}</pre>
{% elif kind == "Picture" %}<figure><img alt="{{ block.caption }}"
src="data:image/png;base64,{{ encode(block.png) }}"><figcaption>{{ block.caption }}</figcaption></figure>
{% elif kind == "Table" %}<table><thead><tr>{% for cell in block.header %}<th>{{ cell }}</th>
{% endfor %}</tr></thead><tbody>
{% for row in block.rows %}<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}</tbody></table>
{% endif %}
{% endfor %}
</body></html>
"""


def html(title: str, blocks: Sequence[Block]) -> str:
    """One file, pictures inside."""
    import jinja2

    template = jinja2.Environment(autoescape=True).from_string(PAGE)
    kinds = [(type(block).__name__, block) for block in blocks]
    encode = lambda png: base64.b64encode(png).decode()  # noqa: E731
    return template.render(title=title, blocks=kinds, encode=encode)


def inline(text: str) -> str:
    """Text as Markdown shows it letter by letter: on one line, without any mark-up of its own.

    Args:
      text: anything, also what somebody wrote who wants a heading, a tag or another column.

    Returns:
      One line that may stand in a paragraph, a heading, a list or a cell of a table.
    """
    text = " ".join(str(text).split())
    text = re.sub(r"([\\`*|~])", r"\\\1", text)
    text = re.sub(r"&(?=#?\w+;)", "&amp;", text).replace("<", "&lt;").replace(">", "&gt;")
    # Underscores inside of words, and brackets without an address behind them, mark nothing up.
    text = (
        re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\_", text).replace("](", "\\](").replace("]:", "\\]:")
    )
    # What makes a heading, a list or a rule at the beginning of a line.
    return re.sub(r"^(#|[-+](?=\s|-|$)|=+$|\d+(?=[.)](?:\s|$)))", _escaped_start, text)


def label(text: str) -> str:
    """`inline` for the text of a link or a picture, which no bracket may end."""
    # Private letters stand for the brackets until everything else is escaped.
    text = str(text).replace("[", "\ue000").replace("]", "\ue001")
    return inline(text).replace("\ue000", "&#91;").replace("\ue001", "&#93;")


def _escaped_start(found: re.Match) -> str:
    start = found[1]
    return f"\\{start}" if not start.isdigit() else f"{start}\\"


def code(text: str) -> str:
    """Text as an inline listing of one line, whatever backticks it has; also in a table's cell."""
    text = " ".join(str(text).split()).replace("|", "\\|")
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    space = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{fence}{space}{text}{space}{fence}"


def _listing(text: str) -> str:
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}text\n{text.rstrip()}\n{fence}"


def row(cells: Sequence[str]) -> str:
    """A row of a Markdown table from cells that are Markdown already."""
    return f"| {' | '.join(cells)} |"


def markdown(title: str, blocks: Sequence[Block]) -> str:
    """Pictures are links to `<name>.png` beside it; no text becomes mark-up."""
    parts = [f"# {inline(title)}"]
    for block in blocks:
        if isinstance(block, Heading):
            parts.append(f"## {inline(block.text)}")
        elif isinstance(block, Table):
            rows = [row([inline(cell) for cell in line]) for line in (block.header, *block.rows)]
            parts.append("\n".join([rows[0], row(["---"] * len(block.header)), *rows[1:]]))
        elif isinstance(block, Picture):
            parts.append(f"![{label(block.caption)}]({block.name}.png)")
        elif isinstance(block, Listing):
            parts.append(_listing(block.text))
        else:
            parts.append(inline(block.text))
    return "\n\n".join(parts) + "\n"


def read_picture(path: pathlib.Path) -> bytes:
    """A picture that was drawn before.

    Args:
      path: of a PNG.

    Returns:
      Its bytes.

    Raises:
      ValueError: there is none, or the file is no PNG.
    """
    with _outside.reading(path):
        content = path.read_bytes()
        if not content.startswith(b"\x89PNG\r\n\x1a\n") or b"IEND" not in content[-16:]:
            raise ValueError("is no PNG; remove it and run the command that made it again")
    return content


def write(directory: pathlib.Path, title: str, blocks: Sequence[Block]) -> list[pathlib.Path]:
    """Writes `report.md` with its pictures, and `report.html`, each whole and through no link.

    Returns:
      The two pages.
    """
    # Both pages are made before either is written, so that a failure keeps the old pages.
    pages = {"report.md": markdown(title, blocks), "report.html": html(title, blocks)}
    for block in blocks:
        if isinstance(block, Picture):
            _files.write(directory / f"{block.name}.png", block.png)
    for name, text in pages.items():
        _files.write(directory / name, text.encode("utf-8", "backslashreplace"))
    return [directory / name for name in pages]
