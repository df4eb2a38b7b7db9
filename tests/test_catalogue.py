"""The public interface is written down: whoever changes it sees what users will see."""

import pathlib

import pages

from polgrad import _catalogue, losses

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


def test_the_page_of_primitives_is_that_of_the_docstrings():
    assert pages.generate.primitives().splitlines() == pages.lines("primitives"), pages.HINT
