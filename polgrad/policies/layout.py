"""The Hugging Face layout of the Llama, Qwen2 and Qwen3 families: settings and tensor names."""

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import numpy as np

from polgrad.policies.configuration import RopeScaling, TransformerConfig
from polgrad.policies.network import Params
from polgrad.policies.transformer import TransformerNetwork

FAMILIES = {
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
_SHELL = {
    "embed": "model.embed_tokens.weight",
    "norm/scale": "model.norm.weight",
    "head": "lm_head.weight",
}
_LAYER = {
    "attention_norm/scale": "input_layernorm.weight",
    "attention/query/kernel": "self_attn.q_proj.weight",
    "attention/query/bias": "self_attn.q_proj.bias",
    "attention/query_norm/scale": "self_attn.q_norm.weight",
    "attention/key/kernel": "self_attn.k_proj.weight",
    "attention/key/bias": "self_attn.k_proj.bias",
    "attention/key_norm/scale": "self_attn.k_norm.weight",
    "attention/value/kernel": "self_attn.v_proj.weight",
    "attention/value/bias": "self_attn.v_proj.bias",
    "attention/output/kernel": "self_attn.o_proj.weight",
    "mlp_norm/scale": "post_attention_layernorm.weight",
    "mlp/gate/kernel": "mlp.gate_proj.weight",
    "mlp/up/kernel": "mlp.up_proj.weight",
    "mlp/down/kernel": "mlp.down_proj.weight",
}
_HEADS = ("value_head", "reward_head")


def config_from_settings(settings: Mapping[str, Any], *, tied: bool, **heads) -> TransformerConfig:
    """The network's shape from the contents of a `config.json`.

    Args:
        settings: the parsed file.
        tied: whether embedding and output projection are one.
        **heads: `value_head`, `reward_head`.

    Returns:
        The config.

    Raises:
        ValueError: an unsupported family or feature, or a missing entry; names it.
    """
    family = settings.get("model_type")
    if family not in FAMILIES:
        raise ValueError(f"model_type must be one of {', '.join(FAMILIES)}, got {family!r}")
    _refuse_unsupported(settings, family)
    needed = {
        "vocab_size": "vocab_size",
        "width": "hidden_size",
        "layers": "num_hidden_layers",
        "heads": "num_attention_heads",
        "mlp_width": "intermediate_size",
    }
    missing = [key for key in needed.values() if key not in settings]
    if missing:
        raise ValueError(f"config.json lacks {', '.join(missing)}")
    theta, scaling = _rope(settings)
    length = settings.get("max_position_embeddings", 2048 if family == "llama" else 32768)
    return TransformerConfig(
        **{name: int(settings[key]) for name, key in needed.items()},
        kv_heads=settings.get("num_key_value_heads"),
        head_dim=settings.get("head_dim") or (128 if family == "qwen3" else None),
        max_length=int(length),
        rope_theta=theta,
        rope_scaling=scaling,
        norm_epsilon=float(settings.get("rms_norm_eps", 1e-6)),
        qkv_bias=family == "qwen2",
        qk_norm=family == "qwen3",
        tied=tied,
        **heads,
    )


def _refuse_unsupported(settings: Mapping[str, Any], family: str) -> None:
    if settings.get("hidden_act", "silu") != "silu":
        raise ValueError(f"hidden_act must be 'silu', got {settings['hidden_act']!r}")
    # Qwen2 always has its biases; elsewhere the flag would also put one on the output.
    flags = ["mlp_bias", "use_sliding_window", "quantization_config"]
    for flag in flags if family == "qwen2" else [*flags, "attention_bias"]:
        if settings.get(flag):
            raise ValueError(f"{flag}={settings[flag]!r} in config.json is not supported")
    kinds = set(settings.get("layer_types") or ()) - {"full_attention"}
    if kinds:
        raise ValueError(f"layer_types {', '.join(sorted(kinds))} are not supported")


def _rope(settings: Mapping[str, Any]) -> tuple[float, RopeScaling | None]:
    """Base and scaling, from `rope_parameters` (newer files) or `rope_theta`/`rope_scaling`."""
    rope = settings.get("rope_parameters") or settings.get("rope_scaling") or {}
    theta = float(rope.get("rope_theta", settings.get("rope_theta", 10_000.0)))
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return theta, None
    if kind not in ("linear", "llama3"):
        raise ValueError(f"rope type must be 'default', 'linear' or 'llama3', got {kind!r}")
    names = {
        "low_frequency_factor": "low_freq_factor",
        "high_frequency_factor": "high_freq_factor",
        "original_length": "original_max_position_embeddings",
    }
    extra = {ours: rope[theirs] for ours, theirs in names.items() if kind == "llama3"}
    return theta, RopeScaling(kind, float(rope["factor"]), **extra)


def settings_from_config(config: TransformerConfig) -> dict[str, Any]:
    """The contents of a `config.json` for this shape.

    Raises:
        ValueError: the shape belongs to no family.
    """
    if config.qkv_bias and config.qk_norm:
        raise ValueError(
            "no supported family has both qkv_bias and qk_norm, so this network cannot be exported"
        )
    family = "qwen3" if config.qk_norm else "qwen2" if config.qkv_bias else "llama"
    rope: dict[str, Any] = {"rope_type": "default"}
    if config.rope_scaling is not None:
        s = config.rope_scaling
        rope = {"rope_type": s.kind, "factor": s.factor}
        if s.kind == "llama3":
            rope["low_freq_factor"] = s.low_frequency_factor
            rope["high_freq_factor"] = s.high_frequency_factor
            rope["original_max_position_embeddings"] = s.original_length
    return {
        "architectures": [FAMILIES[family]],
        "model_type": family,
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "intermediate_size": config.mlp_width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": config.max_length,
        "rms_norm_eps": config.norm_epsilon,
        # Both spellings: engines older than the second one read the first.
        "rope_theta": config.rope_theta,
        "rope_scaling": None if config.rope_scaling is None else rope,
        "rope_parameters": {"rope_theta": config.rope_theta, **rope},
        "tie_word_embeddings": config.tied,
        "attention_bias": False,
        "mlp_bias": False,
        "use_sliding_window": False,
        "torch_dtype": "float32",
    }


def _leaves(tree: Params, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, node in tree.items():
        if isinstance(node, dict):
            yield from _leaves(node, f"{prefix}{name}/")
        else:
            yield prefix + name, node


def _put(tree: Params, path: str, value: Any) -> None:
    *parents, name = path.split("/")
    for parent in parents:
        tree = tree.setdefault(parent, {})
    tree[name] = value


def _is_matrix(path: str) -> bool:
    return path.endswith("kernel") or path == "head"


def _outward(path: str, leaf: np.ndarray) -> np.ndarray:
    """Our `[inputs..., outputs...]` kernel as their `[outputs, inputs]` matrix."""
    if not _is_matrix(path):
        return leaf.reshape(-1) if path != "embed" else leaf
    inputs = leaf.shape[0] * leaf.shape[1] if "output" in path else leaf.shape[0]
    return np.ascontiguousarray(leaf.reshape(inputs, -1).T)


def _inward(path: str, tensor: np.ndarray, shape: tuple[int, ...], name: str) -> np.ndarray:
    # Both sides hold the same numbers in the same order once the matrix is transposed.
    expected = _outward(path, np.broadcast_to(np.float32(0), shape)).shape
    if tensor.shape != expected:
        raise ValueError(f"tensor {name} has shape {tensor.shape}, expected {expected}")
    return (tensor.T if _is_matrix(path) else tensor).reshape(shape)


def params_from_tensors(
    config: TransformerConfig, names: Collection[str], read: Callable[[str], np.ndarray]
) -> Params:
    """Parameters from tensors named and laid out as Hugging Face has them.

    Args:
        config: the network's shape; scalar heads are filled with zeros.
        names: the tensors there are.
        read: gives one tensor by name.

    Returns:
        Nested dict of float32 numpy arrays, layers stacked.

    Raises:
        ValueError: a tensor that is missing, left over, or of another shape; names it.
    """
    # Older files store rotary tables; tied files may repeat the embedding.
    left = {name for name in names if not name.endswith("rotary_emb.inv_freq")}
    if config.tied:
        left.discard("lm_head.weight")

    def take(name: str, path: str, shape: tuple[int, ...]) -> np.ndarray:
        if name not in left:
            raise ValueError(f"the checkpoint lacks the tensor {name}")
        left.discard(name)
        return _inward(path, read(name), shape, name)

    params: Params = {}
    for path, leaf in _leaves(TransformerNetwork(config).shapes()):
        array = np.zeros(leaf.shape, np.float32)
        if path.startswith("layers/"):
            inner = path.removeprefix("layers/")
            for i in range(config.layers):
                array[i] = take(f"model.layers.{i}.{_LAYER[inner]}", inner, leaf.shape[1:])
        elif not path.startswith(_HEADS):
            array[...] = take(_SHELL[path], path, leaf.shape)
        _put(params, path, array)
    if left:
        raise ValueError(f"tensors that {config} has no place for: {', '.join(sorted(left)[:5])}")
    return params


def tensors_from_params(params: Params) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The inverse of `params_from_tensors`: the model's tensors, and the scalar heads' apart."""
    model, heads = {}, {}
    for path, leaf in _leaves(params):
        leaf = np.asarray(leaf, np.float32)
        if path.startswith("layers/"):
            inner = path.removeprefix("layers/")
            for i, layer in enumerate(leaf):
                model[f"model.layers.{i}.{_LAYER[inner]}"] = _outward(inner, layer)
        elif path.startswith(_HEADS):
            heads[path.replace("/", ".")] = leaf
        else:
            model[_SHELL[path]] = _outward(path, leaf)
    return model, heads
