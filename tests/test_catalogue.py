"""The public interface is written down: whoever changes it sees what users will see."""

import pathlib
import re

import jax.numpy as jnp
import optax
import pages
import pytest

from polgrad import _catalogue, divergences, losses

GOLDEN = pathlib.Path(__file__).parent / "golden" / "signatures.txt"


def test_signatures_are_those_written_down():
    known = GOLDEN.read_text().splitlines()
    found = pages.generate.signatures().splitlines()
    gone, new = sorted(set(known) - set(found)), sorted(set(found) - set(known))
    assert known == found, f"gone: {gone}; new: {new}; {pages.HINT}"


def test_a_signature_tells_shapes_and_defaults():
    (found,) = (p for p in _catalogue.primitives(("losses",)) if p.name == "losses.ppo_clip")
    assert found.function is losses.ppo_clip and found.room == "losses"
    assert _catalogue.signature(found) == (
        "losses.ppo_clip(logp[B,T], behavior_logp[B,T], advantages[B,T], *, clip_low=0.2, "
        "clip_high=0.2, dual_clip=None)"
    )


def test_every_primitive_says_in_one_line_what_it_is():
    for primitive in _catalogue.primitives():
        assert primitive.summary.endswith((".", ":")), primitive.name


@pytest.mark.parametrize("page", ["primitives", "papers"])
def test_pages_are_those_of_the_docstrings(page):
    make, _ = pages.generate.PAGES[page]
    assert make().splitlines() == pages.lines(page), pages.HINT


def test_every_function_lives_in_a_file_that_a_test_file_mirrors():
    for primitive in _catalogue.primitives():
        assert pages.generate.mirrored(primitive).exists(), primitive.name


@pytest.mark.parametrize("page", ["choosing", "porting"])
def test_pages_name_only_what_exists(page):
    """`room.name` anywhere, and bare names where they are functions of losses or advantages."""
    names = {primitive.name for primitive in _catalogue.primitives()}
    text = "\n".join(pages.lines(page))
    named = re.findall(rf"\b((?:{'|'.join(_catalogue.ROOMS)})\.\w+(?:\.\w+)?)", text)
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
