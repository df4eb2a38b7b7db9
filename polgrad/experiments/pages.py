"""A report as blocks, and as Markdown or one HTML file."""

import base64
import pathlib
from collections.abc import Sequence
from typing import NamedTuple


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


def markdown(title: str, blocks: Sequence[Block]) -> str:
    """Pictures are links to `<name>.png` beside it."""
    parts = [f"# {title}"]
    for block in blocks:
        if isinstance(block, Heading):
            parts.append(f"## {block.text}")
        elif isinstance(block, Table):
            lines = [block.header, ["---"] * len(block.header), *block.rows]
            rows = [" | ".join(cell.replace("|", "\\|") for cell in line) for line in lines]
            parts.append("\n".join(f"| {row} |" for row in rows))
        elif isinstance(block, Picture):
            parts.append(f"![{block.caption}]({block.name}.png)")
        elif isinstance(block, Listing):
            parts.append(f"```text\n{block.text.rstrip()}\n```")
        else:
            parts.append(block.text)
    return "\n\n".join(parts) + "\n"


def write(directory: pathlib.Path, title: str, blocks: Sequence[Block]) -> list[pathlib.Path]:
    """Writes `report.md` with its pictures, and `report.html`.

    Returns:
      The two pages.
    """
    for block in blocks:
        if isinstance(block, Picture):
            (directory / f"{block.name}.png").write_bytes(block.png)
    pages = {"report.md": markdown(title, blocks), "report.html": html(title, blocks)}
    for name, text in pages.items():
        (directory / name).write_text(text)
    return [directory / name for name in pages]
