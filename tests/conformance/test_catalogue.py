"""The public interface is written down: whoever changes it sees what users will see."""

import inspect
import itertools
import pathlib
import re

import jax.numpy as jnp
import optax
import pages
import pytest

from polgrad import divergences, losses
from polgrad.conformance import catalogue

GOLDEN = pathlib.Path(__file__).parent.parent / "golden" / "signatures.txt"


def test_signatures_are_those_written_down():
    known = GOLDEN.read_text().splitlines()
    found = pages.generate.signatures().splitlines()
    gone, new = sorted(set(known) - set(found)), sorted(set(found) - set(known))
    assert known == found, f"gone: {gone}; new: {new}; {pages.HINT}"


def test_a_signature_tells_shapes_and_defaults():
    (found,) = (p for p in catalogue.primitives(("losses",)) if p.name == "losses.ppo_clip")
    assert found.function is losses.ppo_clip and found.room == "losses"
    assert catalogue.signature(found) == (
        "losses.ppo_clip(logp[B,T], behavior_logp[B,T], advantages[B,T], *, clip_low=0.2, "
        "clip_high=0.2, dual_clip=None)"
    )


def test_every_primitive_says_in_one_line_what_it_is():
    for primitive in catalogue.primitives():
        assert primitive.summary.endswith((".", ":")), primitive.name


def section(primitive, heading):
    """The text below a heading of a docstring, "" where there is no such heading."""
    doc = inspect.getdoc(primitive.function)
    found = re.search(rf"^{heading}:\n((?:  .*\n?|\n)+)", doc, re.MULTILINE)
    return found[1] if found else ""


def test_every_docstring_has_its_arguments_and_what_it_returns():
    for primitive in catalogue.primitives():
        described = re.findall(r"^  (\w+):", section(primitive, "Args"), re.MULTILINE)
        parameters = list(inspect.signature(primitive.function).parameters)
        assert described == parameters, primitive.name
        assert section(primitive, "Returns"), primitive.name


def test_a_docstring_that_checks_its_arguments_says_what_it_raises():
    for primitive in catalogue.primitives(("ratios", "masking", "advantages", "losses")):
        body = inspect.getsource(primitive.function).split('"""')[-1]
        if "_checks." in body or "in_range(" in body or "raise ValueError" in body:
            assert "ValueError:" in section(primitive, "Raises"), primitive.name


@pytest.mark.parametrize("page", ["primitives", "papers"])
def test_pages_are_those_of_the_docstrings(page):
    make, _ = pages.generate.PAGES[page]
    assert make().splitlines() == pages.lines(page), pages.HINT


def test_the_mirror_of_its_file_tests_every_function():
    for primitive in catalogue.primitives():
        text = "".join(path.read_text() for path in pages.generate.mirrored(primitive))
        name = primitive.name.rpartition(".")[2]
        assert re.search(rf"\b{name}\b", text), primitive.name


@pytest.mark.parametrize("page", ["choosing", "porting"])
def test_pages_name_only_what_exists(page):
    """`room.name` anywhere, and bare names where they are functions of losses or advantages."""
    names = {primitive.name for primitive in catalogue.primitives()}
    text = "\n".join(pages.lines(page))
    named = re.findall(rf"\b((?:{'|'.join(catalogue.ROOMS)})\.\w+(?:\.\w+)?)", text)
    modules = {name.rpartition(".")[0] for name in names}
    unknown = [n for n in named if n not in names | modules and n.rpartition(".")[0] not in names]
    generators = {f"divergences.{name}" for name in divergences.__all__}
    assert not set(unknown) - generators


def test_the_reference_that_follows_is_a_line_of_optax():
    """The line of docs/choosing.md: at first the old reference, every so often a mixture."""
    params, reference = {"w": jnp.array(1.0)}, {"w": jnp.array(0.0)}
    mixed = optax.incremental_update(params, reference, 0.6)
    for step, expected in ((1, 0.0), (511, 0.0), (512, 0.6)):
        found = optax.periodic_update(mixed, reference, step, 512)
        assert abs(float(found["w"]) - expected) < 1e-6


# --- The page of all primitives -----------------------------------------------------------------


def entry(name):
    (found,) = (p for p in catalogue.primitives() if p.name == name)
    return pages.generate.entry(found)


def test_an_entry_shows_its_formula_to_the_end():
    text = entry("losses.kl_penalty")
    assert '"k2":  -x grad logp ' in text and '"k3":  (1 - exp(x)) grad logp' in text
    for primitive in catalogue.primitives():
        description = inspect.getdoc(primitive.function).partition("\nArgs:\n")[0]
        shown = list(pages.generate.formula(description.split("\n\n")[1:]))
        for text, after in itertools.pairwise([*shown, ""]):
            # A sentence that announces something is followed by it.
            assert after or not text.rstrip().endswith((",", ":", "that of", "with")), (
                primitive.name
            )


def test_a_function_is_recommended_where_it_is_the_remedy_and_not_where_it_is_named():
    assert "unlikely" in entry("losses.rpo") and "unlikely" not in entry("losses.dpo")
    assert "grows without end (with `label_smoothing=0.1`)" in entry("losses.dpo")
    assert "grows without end;" not in entry("losses.dpo")


def test_no_page_is_written_if_one_of_them_cannot_be_made(tmp_path, monkeypatch):
    def broken():
        raise LookupError("unannotated")

    first = tmp_path / "first.md"
    made = {"first": (lambda: "new", first), "second": (broken, tmp_path / "second.md")}
    monkeypatch.setattr(pages.generate, "PAGES", made)
    monkeypatch.setattr("sys.argv", ["generate.py"])
    first.write_text("old")
    with pytest.raises(LookupError):
        pages.generate.main()
    assert first.read_text() == "old"
    monkeypatch.setattr("sys.argv", ["generate.py", "first"])
    pages.generate.main()
    assert first.read_text() == "new"
