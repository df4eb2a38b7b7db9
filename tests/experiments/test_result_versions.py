"""Committed results were computed by versions of jaxlib that return right numbers."""

import json
import pathlib

import pytest

from polgrad import _compilers

RESULTS = sorted((pathlib.Path(__file__).parents[2] / "experiments" / "results").glob("*.json"))


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_a_result_names_a_version_that_is_known_to_be_right(path):
    assert json.loads(path.read_text())["versions"]["jax"] not in _compilers.FAULTS
