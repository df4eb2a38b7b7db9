"""The generator of the pages under docs/, as a module."""

import importlib.util
import pathlib

DOCS = pathlib.Path(__file__).parent.parent.parent / "docs"

_spec = importlib.util.spec_from_file_location("generate", DOCS / "generate.py")
generate = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(generate)

HINT = "if this is meant, run python docs/generate.py"


def lines(page: str) -> list[str]:
    """The lines of a page."""
    return (DOCS / f"{page}.md").read_text().splitlines()
