"""GGUF files: quantised weights, tokenizer and chat template in one file. Read only."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from einops import rearrange

from polgrad._outside import reason
from polgrad.policies import entries
from polgrad.policies.attention import rotary_frequencies
from polgrad.policies.configuration import RopeScaling, TransformerConfig
from polgrad.policies.hub import assets, tensor_names
from polgrad.policies.hub.assets import Policy, TextAssets
from polgrad.policies.hub.config_json import config_from_settings
from polgrad.policies.hub.weights import check_finite
from polgrad.policies.transformer import TransformerNetwork

_SHELL = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
# In this form Gemma's norms hold one plus what its safetensors hold: read as those, it would be wrong.
_FAMILIES = ("llama", "qwen2", "qwen3")
_ROPE_FACTORS = "rope_freqs.weight"
# Entries without which there is no shape, in the words of a config.json and in those of the file.
_NEEDED = {
    "hidden_size": "embedding_length",
    "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count",
    "intermediate_size": "feed_forward_length",
}
# What the file calls the sizes of a config.
_ENTRIES = {
    "vocab_size": "the vocabulary",
    "width": "embedding_length",
    "mlp_width": "feed_forward_length",
    "layers": "block_count",
    "heads": "attention.head_count",
    "kv_heads": "attention.head_count_kv",
    "head_dim": "attention.key_length",
}
_LONGEST = 2**22  # of lists in a file; a vocabulary has a quarter of a million entries

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}


def _split(digits: str) -> list[dict[str, Any]]:
    pattern = {"Regex": f"{_CONTRACTIONS}|{_WORDS}|{digits}|{_REST}"}
    split = {"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False}
    return [split, {**_BYTES, "use_regex": False}]


# How `tokenizer.ggml.pre` cuts a text before byte-pair merging. llama.cpp's "smollm" is GPT-2's
# rule with every digit on its own.
_PRE_TOKENIZERS = {
    "gpt-2": [{**_BYTES, "use_regex": True}],
    "smollm": [
        {"type": "Digits", "individual_digits": True},
        {**_BYTES, "use_regex": True},
    ],
    "qwen2": _split(r"\p{N}"),
    "llama-bpe": _split(r"\p{N}{1,3}"),
}
# Where a file does not say whether texts begin with the beginning-of-text token, as in llama.cpp.
_STARTS = ("llama-bpe",)
_CONTROL, _USER_DEFINED = 3, 4


def load_file(path: Path, *, value_head: bool = False, reward_head: bool = False) -> Policy:
    """Reads a GGUF file, every quantisation that the `gguf` package can undo.

    Args:
        path: the file.
        value_head: adds a value head of zeros.
        reward_head: adds a reward head of zeros.

    Returns:
        The policy, parameters dequantised to float32.

    Raises:
        ValueError: no GGUF file, an unsupported architecture, rotary scaling or tokenizer, or a
            missing tensor.
    """
    import gguf

    reader = _open(path)
    fields = {name: field.contents for name, field in reader.fields.items()}
    tensors = {_hub_name(tensor.name): tensor for tensor in reader.tensors}
    factors = tensors.pop(_ROPE_FACTORS, None)

    def dequantize(tensor) -> np.ndarray:
        array = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        check_finite(tensor.name, array)
        return array

    settings = _settings(fields, tensors)
    heads = {"value_head": value_head, "reward_head": reward_head}
    if factors is not None:
        settings["rope_scaling"] = _rope_from_factors(settings, dequantize(factors))
    config = config_from_settings(settings, tied="lm_head.weight" not in tensors, **heads)
    shapes = {name: tuple(map(int, t.shape[::-1])) for name, t in tensors.items()}
    tensor_names.check_sizes(config, shapes, _ENTRIES)

    def read(name: str) -> np.ndarray:
        array = dequantize(tensors[name])
        if settings["model_type"] == "llama":
            for part, count in (("q_proj", config.heads), ("k_proj", config.kv_heads)):
                if f"{part}.weight" in name:
                    return _unpermute(array, count)
        return array

    params = tensor_names.params_from_tensors(config, tensors, read)
    text = _load_text(fields)
    if text is not None:
        assets.check_ids(text, config.vocab_size, f"{path}")
    return Policy(TransformerNetwork(config), params, text)


def _open(path: Path):
    """The file's reader, which takes no length in the file for true that the file cannot hold."""
    import gguf

    class Reader(gguf.GGUFReader):
        """The library slices beyond the end in silence, and then counts to 2^60."""

        def _get(self, offset, dtype, count=1, override_order=None):
            end = int(offset) + np.dtype(dtype).itemsize * int(count)
            if end > self.data.size:
                raise ValueError(
                    f"the file has {self.data.size} bytes, and what it says of itself needs {end}"
                )
            return super()._get(offset, dtype, count, override_order)

        def _get_field_parts(self, orig_offs, raw_type):
            if raw_type == gguf.GGUFValueType.ARRAY:
                length = int(self._get(orig_offs + 4, np.uint64)[0])
                if length > _LONGEST:  # each element becomes a Python object of a hundred bytes
                    raise ValueError(f"a list has {length} entries, expected at most {_LONGEST}")
            return super()._get_field_parts(orig_offs, raw_type)

    try:
        return Reader(path)
    except Exception as error:
        raise ValueError(f"{path} is not a readable GGUF file: {reason(error)}") from error


def _hub_name(name: str) -> str:
    """`blk.3.attn_q.weight` to `model.layers.3.self_attn.q_proj.weight`."""
    if not name.startswith("blk."):
        return _SHELL.get(name, name)
    if name.count(".") != 3:
        return name
    _, layer, part, kind = name.split(".")
    return f"model.layers.{layer}.{_LAYER.get(part, part)}.{kind}"


def _unpermute(weight: np.ndarray, heads: int) -> np.ndarray:
    """Undoes llama.cpp's reordering of query and key rows.

    Its rotary kernel for this architecture turns neighbouring rows, ours (and Hugging Face's)
    rows half a head apart.
    """
    order = "(heads pairs two) columns -> (heads two pairs) columns"
    return rearrange(weight, order, heads=heads, two=2)


def _settings(fields, tensors) -> dict[str, Any]:
    """The metadata in the words of a `config.json`."""
    family = fields["general.architecture"]()
    if family not in _FAMILIES:
        raise ValueError(
            f"the architecture of a GGUF file must be one of {', '.join(_FAMILIES)}, got "
            f"{family!r:.80}"
        )

    def get(key: str, default=None):
        field = fields.get(f"{family}.{key}")
        return default if field is None else field()

    def whole(key: str) -> int | None:
        value = get(key)
        return None if value is None else entries.whole(f"{family}.{key}", value)

    def decimal(key: str, default: float, least: float) -> float:
        value = entries.number(f"{family}.{key}", get(key, default), least=least)
        # Stored in float32: 9.999999747378752e-06 was 1e-05.
        return float(str(np.float32(value)))

    embedding = tensors.get("model.embed_tokens.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise ValueError("the GGUF file lacks the tensor token_embd.weight")
    scaling = None
    if get("rope.scaling.type", "none") != "none":
        scaling = {"rope_type": get("rope.scaling.type"), "factor": get("rope.scaling.factor")}
    settings = {
        "model_type": family,
        "vocab_size": int(embedding.shape[1]),
        "hidden_size": whole("embedding_length"),
        "num_hidden_layers": whole("block_count"),
        "num_attention_heads": whole("attention.head_count"),
        "num_key_value_heads": whole("attention.head_count_kv"),
        "intermediate_size": whole("feed_forward_length"),
        "max_position_embeddings": whole("context_length"),
        "head_dim": whole("attention.key_length"),
        "rms_norm_eps": decimal("attention.layer_norm_rms_epsilon", 1e-6, 0),
        "rope_theta": decimal("rope.freq_base", 10_000.0, 1),
        "rope_scaling": scaling,
    }
    for name, key in _NEEDED.items():
        if settings[name] is None:
            raise ValueError(f"the GGUF file lacks the entry {family}.{key}")
    return {name: value for name, value in settings.items() if value is not None}


def _rope_from_factors(settings: dict[str, Any], factors: np.ndarray) -> dict[str, Any]:
    """Llama 3's scaling from the per-frequency divisors that GGUF stores in its place.

    The file keeps neither band limits nor original length; every Llama 3 has the same ones, and
    the divisors tell whether this file has them too.
    """
    if factors.ndim != 1 or factors.size == 0:
        raise ValueError(f"{_ROPE_FACTORS} has shape {factors.shape}, expected one number a pair")
    scaling = RopeScaling("llama3", float(factors.max()))
    head_dim = 2 * factors.size
    plain = TransformerConfig(1, 1, 1, 1, head_dim=head_dim, rope_theta=settings["rope_theta"])
    scaled = TransformerConfig(
        1, 1, 1, 1, head_dim=head_dim, rope_theta=settings["rope_theta"], rope_scaling=scaling
    )
    expected = rotary_frequencies(plain) / rotary_frequencies(scaled)
    if not np.allclose(expected, factors, rtol=1e-4):
        raise ValueError(
            f"{_ROPE_FACTORS} holds rotary factors other than Llama 3's; load the safetensors form"
        )
    return {
        "rope_type": "llama3",
        "factor": scaling.factor,
        "low_freq_factor": scaling.low_frequency_factor,
        "high_freq_factor": scaling.high_frequency_factor,
        "original_max_position_embeddings": scaling.original_length,
    }


def _load_text(fields) -> TextAssets | None:
    """The tokenizer from the metadata; None where the file has none."""

    def get(key: str, default=None):
        field = fields.get(f"tokenizer.{key}")
        return default if field is None else field()

    kind, pre = get("ggml.model"), get("ggml.pre", "gpt-2")
    if kind in (None, "none", "no_vocab"):
        return None
    if kind != "gpt2" or not isinstance(pre, str) or pre not in _PRE_TOKENIZERS:
        raise ValueError(
            f"tokenizer {kind!r:.80} with pre-tokenizer {pre!r:.80} is not supported; "
            f"supported are gpt2 with {', '.join(_PRE_TOKENIZERS)}"
        )
    tokens, merges, types = _lists(get)
    names = {"bos": "bos", "eos": "eos", "pad": "padding", "unk": "unknown"}
    ids = {ours: get(f"ggml.{theirs}_token_id") for ours, theirs in names.items()}
    tokenizer_json = _tokenizer_json(tokens, merges, types, pre=pre)
    for name, index in ids.items():
        assets.check_row(index, len(tokens), f"tokenizer.ggml.{names[name]}_token_id")
    starts = entries.flag("tokenizer.ggml.add_bos_token", get("ggml.add_bos_token", pre in _STARTS))
    if starts and ids["bos"] is not None:
        tokenizer_json = assets.begin_texts_with(tokenizer_json, ids["bos"])
    turn, template = get("ggml.eot_token_id"), get("chat_template")
    assets.check_row(turn, len(tokens), "tokenizer.ggml.eot_token_id")
    if template is not None:
        entries.text("tokenizer.chat_template", template)
    stops = [] if turn is None else [turn]
    return assets.text_assets(tokenizer_json, template, ids=ids, stop_ids=stops)


def _lists(get) -> tuple[list[str], list[str], list[int]]:
    """Tokens, merges and the tokens' kinds, each of its type."""
    told = {}
    for name, kind in (("tokens", str), ("merges", str), ("token_type", int)):
        told[name] = get(f"ggml.{name}")
        fits = isinstance(told[name], list) and all(isinstance(x, kind) for x in told[name])
        if not fits:
            what = "numbers" if kind is int else "texts"
            raise ValueError(
                f"tokenizer.ggml.{name} is {entries.shown(told[name])}; expected a list of {what}"
            )
    tokens, merges, types = told.values()
    if len(types) != len(tokens):
        raise ValueError(
            f"tokenizer.ggml.token_type has {len(types)} entries, expected {len(tokens)}, one a "
            "token"
        )
    for merge in merges:
        if merge.count(" ") != 1:
            raise ValueError(f"tokenizer.ggml.merges holds {merge!r:.80}, expected two parts")
    return tokens, merges, types


def _tokenizer_json(tokens, merges, types, *, pre: str) -> str:
    """A byte-level BPE tokenizer in the JSON form of the `tokenizers` library."""
    added = [
        {
            "id": index,
            "content": token,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": kind == _CONTROL,
        }
        for index, (token, kind) in enumerate(zip(tokens, types, strict=True))
        if kind in (_CONTROL, _USER_DEFINED)
    ]
    document = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": {"type": "NFC"} if pre == "qwen2" else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": _PRE_TOKENIZERS[pre]},
        "post_processor": None,
        "decoder": {**_BYTES, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": pre == "llama-bpe",
            "vocab": {token: index for index, token in enumerate(tokens)},
            "merges": [merge.split(" ") for merge in merges],
        },
    }
    return json.dumps(document, ensure_ascii=False)
