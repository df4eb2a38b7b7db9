"""Tensors in the Hugging Face layout of the Llama, Qwen and Gemma families: names and order."""

from collections.abc import Callable, Collection, Iterator
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
_HEADS = ("value_head", "reward_head")


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
        array = np.zeros(leaf.shape, np.float32)
        if path.startswith("layers/"):
            inner = path.removeprefix("layers/")
            for i in range(config.layers):
                array[i] = take(f"model.layers.{i}.{of_layer[inner]}", inner, leaf.shape[1:])
        elif not path.startswith(_HEADS):
            array[...] = take(_SHELL[path], path, leaf.shape)
        _put(params, path, array)
    if left:
        raise ValueError(f"tensors that {config} has no place for: {', '.join(sorted(left)[:5])}")
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
        elif path.startswith(_HEADS):
            heads[path.replace("/", ".")] = leaf
        else:
            model[_SHELL[path]] = _outward(path, leaf)
    return model, heads
