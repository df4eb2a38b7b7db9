import jax
import jax.numpy as jnp
import numpy as np

from polgrad.policies.decoder import restore, round_matrix
from polgrad.policies.heads import CappedHead
from polgrad.rollouts import Sampling, decoding, pad_prompts
from polgrad.rollouts.sampling import sample_keys


def test_prefill_in_chunks_is_prefill_at_once(transformer, monkeypatch):
    tokens, lengths = pad_prompts([[3], [1, 2, 3], [7, 7], [9], [4, 4, 4]], bucket=4, max_length=8)
    keys = sample_keys(jax.random.key(0), jnp.arange(5, dtype=jnp.uint32), 2)

    def run(budget):
        monkeypatch.setattr(decoding, "_PREFILL_TOKENS", budget)
        sampler = decoding.make_sampler(
            transformer.network,
            transformer.params,
            None,
            reference_weight=0.0,
            sampling=Sampling(max_tokens=2),
            compute_dtype=jnp.float32,
        )
        return jax.jit(lambda *args: decoding._prefill(sampler, *args))(tokens, lengths, keys)

    whole, tokens_whole, logp_whole = run(20)
    # Two prompts at a time; the third chunk is half empty.
    parts, tokens_parts, logp_parts = run(8)
    for one, many in zip(jax.tree.leaves(whole), jax.tree.leaves(parts)):
        assert one.shape[1] == 5 and many.shape[1] == 6
        np.testing.assert_allclose(one, many[:, :5], atol=1e-5)
    np.testing.assert_array_equal(tokens_whole, tokens_parts)
    np.testing.assert_allclose(logp_whole, logp_parts, atol=1e-5)
    assert tokens_whole.shape == (5, 2)


def test_a_rounded_head_keeps_its_cap():
    hidden, matrix = jax.random.normal(jax.random.key(1), (2, 4, 4))
    rounded = round_matrix(matrix)
    logits = hidden @ restore(rounded, jnp.float32)
    np.testing.assert_allclose(decoding.head_product(hidden, rounded), logits, rtol=1e-5)
    capped = decoding.head_product(hidden, CappedHead(rounded, 1.5))
    np.testing.assert_allclose(capped, 1.5 * np.tanh(logits / 1.5), rtol=1e-5)
