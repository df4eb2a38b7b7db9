"""Tensors in the Hugging Face layout of the Llama, Qwen and Gemma families: names and order."""

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import numpy as np

from polgrad.policies.configuration import TransformerConfig
from polgrad.policies.network import Params
from polgrad.policies.transformer import TransformerNetwork

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
# With norms on both sides, the second name means the norm behind attention.
_POST_NORMS = {
    "attention_post_norm/scale": "post_attention_layernorm.weight",
    "mlp_norm/scale": "pre_feedforward_layernorm.weight",
    "mlp_post_norm/scale": "post_feedforward_layernorm.weight",
}
HEADS = ("value_head", "reward_head")


def _layer_names(config: TransformerConfig) -> dict[str, str]:
    return {**_LAYER, **_POST_NORMS} if config.post_norms else _LAYER


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


def of_text(names: Collection[str]) -> dict[str, str]:
    """The text model's tensors in a Gemma 3 that also sees, to the names that they have there."""
    prefix = "language_model."
    return {name.removeprefix(prefix): name for name in names if name.startswith(prefix)}


# What a `config.json` calls the sizes of a config.
_ENTRIES = {
    "vocab_size": "vocab_size",
    "width": "hidden_size",
    "mlp_width": "intermediate_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
}


def check_sizes(
    config: TransformerConfig,
    shapes: Mapping[str, tuple[int, ...]],
    entries: Mapping[str, str] | None = None,
) -> None:
    """Holds the sizes that a file claims against those of its tensors.

    A claim of 2 billion rows must end here, before memory is taken for them.

    Args:
        config: what the file claims.
        shapes: shape of each tensor, by name.
        entries: what the file calls the fields of the config; by default as `config.json` does.

    Raises:
        ValueError: a size that the tensors do not have; names the entry and the tensor.
    """
    told = _ENTRIES if entries is None else entries
    first, head = "model.layers.0", config.head_dim
    claims = (
        ("model.embed_tokens.weight", 0, ("vocab_size",), config.vocab_size),
        ("model.embed_tokens.weight", 1, ("width",), config.width),
        (f"{first}.mlp.gate_proj.weight", 0, ("mlp_width",), config.mlp_width),
        (f"{first}.self_attn.q_proj.weight", 0, ("heads", "head_dim"), config.heads * head),
        (f"{first}.self_attn.k_proj.weight", 0, ("kv_heads", "head_dim"), config.kv_heads * head),
    )
    for name, axis, fields, size in claims:
        if name not in shapes:
            raise ValueError(f"the checkpoint lacks the tensor {name}")
        if len(shapes[name]) != 2 or shapes[name][axis] != size:
            claimed = " and ".join(f"{told[field]} is {getattr(config, field)}" for field in fields)
            raise ValueError(f"{claimed}, but the tensor {name} has shape {shapes[name]}")
    found = (re.match(r"model\.layers\.(\d{1,9})\.", name) for name in shapes)
    layers = len({match[1] for match in found if match})
    if config.layers != layers:
        raise ValueError(
            f"{told['layers']} is {config.layers}, but the weights hold {layers} layers"
        )


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
    of_layer = _layer_names(config)
    for path, leaf in _leaves(TransformerNetwork(config).shapes()):
        if path.startswith("layers/"):
            inner = path.removeprefix("layers/")
            array = np.empty(leaf.shape, np.float32)
            for i in range(config.layers):
                array[i] = take(f"model.layers.{i}.{of_layer[inner]}", inner, leaf.shape[1:])
        elif path.startswith(HEADS):
            array = np.zeros(leaf.shape, np.float32)
        else:
            # A copy: of a matrix this is a transposed view of what was read.
            array = np.array(take(_SHELL[path], path, leaf.shape), np.float32, order="C")
        _put(params, path, array)
    if left:
        raise ValueError(f"the shape has no place for: {', '.join(sorted(left)[:5])}")
    return params


def tensors_from_params(
    config: TransformerConfig, params: Params
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The inverse of `params_from_tensors`: the model's tensors, and the scalar heads' apart."""
    model, heads = {}, {}
    of_layer = _layer_names(config)
    for path, leaf in _leaves(params):
        leaf = np.asarray(leaf, np.float32)
        if path.startswith("layers/"):
            inner = path.removeprefix("layers/")
            for i, layer in enumerate(leaf):
                model[f"model.layers.{i}.{of_layer[inner]}"] = _outward(inner, layer)
        elif path.startswith(HEADS):
            heads[path.replace("/", ".")] = leaf
        else:
            model[_SHELL[path]] = _outward(path, leaf)
    return model, heads
