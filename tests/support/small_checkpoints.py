"""Small checkpoints whose weights follow from tensor names alone.

The script that makes the golden logits and the tests that check them build the same weights, so
the golden files hold logits and no weights.
"""

import json
import zlib
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

_COMMON = {
    "vocab_size": 43,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 6,
    "max_position_embeddings": 64,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
}
_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 1000.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    # Short, so that three pairs of dimensions fall into the three bands.
    "original_max_position_embeddings": 48,
}
# Family name and the settings with which its configuration class is built.
FAMILIES = {
    "llama": ("llama", {**_COMMON, "tie_word_embeddings": False, "rms_norm_eps": 1e-5}),
    "llama_tied_mha": (
        "llama",
        {**_COMMON, "tie_word_embeddings": True, "num_key_value_heads": 4},
    ),
    "llama3_rope": (
        "llama",
        {**_COMMON, "tie_word_embeddings": True, "head_dim": 8, "rope_parameters": _LLAMA3},
    ),
    "llama_linear_rope": (
        "llama",
        {
            **_COMMON,
            "tie_word_embeddings": True,
            "rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 3.0},
        },
    ),
    "qwen2": ("qwen2", {**_COMMON, "tie_word_embeddings": False}),
    "qwen2_tied": (
        "qwen2",
        {
            **_COMMON,
            "tie_word_embeddings": True,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
        },
    ),
    "qwen3": ("qwen3", {**_COMMON, "tie_word_embeddings": True, "head_dim": 10}),
    "qwen3_untied": ("qwen3", {**_COMMON, "tie_word_embeddings": False, "head_dim": 4}),
    # More layers than one period of local and global ones, and windows shorter than the sequences.
    "gemma2": (
        "gemma2",
        {
            **_COMMON,
            "tie_word_embeddings": True,
            "num_hidden_layers": 5,
            "sliding_window": 4,
            "query_pre_attn_scalar": 10,
            # Low, so that they bend many scores and logits.
            "attn_logit_softcapping": 2.0,
            "final_logit_softcapping": 6.0,
        },
    ),
    "gemma3": (
        "gemma3_text",
        {
            **_COMMON,
            "tie_word_embeddings": True,
            "num_hidden_layers": 8,
            "sliding_window": 5,
            "query_pre_attn_scalar": 12,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "rope_theta": 1e5, "factor": 8.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
            },
        },
    ),
}


def tensor(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Weights for a tensor: large enough that every part of the network shows in the logits."""
    noise = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape)
    if "norm" in name:
        values = 1.0 + 0.3 * noise
    elif name.endswith("bias"):
        values = 0.5 * noise
    else:
        values = noise / np.sqrt(shape[-1])
    return values.astype(np.float32)


def tokens() -> np.ndarray:
    """Two sequences of 14 tokens."""
    return np.random.default_rng(0).integers(0, _COMMON["vocab_size"], (2, 14))


def write_directory(path: Path, settings: dict, shapes: dict[str, tuple[int, ...]]) -> None:
    """A model directory with the weights of the rule."""
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps(settings))
    tensors = {name: tensor(name, tuple(shape)) for name, shape in shapes.items()}
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
