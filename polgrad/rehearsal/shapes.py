"""Shapes of published models, by name, without their weights.

For rehearsals and benchmarks; a checkpoint brings its own configuration (`policies.load`). Each
shape has exactly the number of parameters that its publishers count; of Gemma 3 from 4b on this is
the text model, without its vision tower.
"""

import functools
from collections.abc import Mapping

from polgrad.policies.configuration import RopeScaling, TransformerConfig

__all__ = ["SHAPES", "find"]

_LLAMA3 = RopeScaling("llama3", factor=8.0)
_LLAMA32 = RopeScaling("llama3", factor=32.0)


def _smollm2(width, layers, heads, kv_heads, mlp_width, rope_theta=100_000.0):
    return TransformerConfig(
        vocab_size=49_152,
        width=width,
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        mlp_width=mlp_width,
        max_length=8192,
        rope_theta=rope_theta,
        norm_epsilon=1e-5,
    )


def _qwen25(width, layers, heads, kv_heads, mlp_width, *, tied):
    return TransformerConfig(
        vocab_size=151_936 if tied else 152_064,
        width=width,
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        mlp_width=mlp_width,
        max_length=32_768,
        rope_theta=1_000_000.0,
        qkv_bias=True,
        tied=tied,
    )


def _qwen3(width, layers, heads, mlp_width, *, tied):
    return TransformerConfig(
        vocab_size=151_936,
        width=width,
        layers=layers,
        heads=heads,
        kv_heads=8,
        head_dim=128,
        mlp_width=mlp_width,
        max_length=40_960,
        rope_theta=1_000_000.0,
        qk_norm=True,
        tied=tied,
    )


def _llama(width, layers, heads, mlp_width, scaling, *, tied):
    return TransformerConfig(
        vocab_size=128_256,
        width=width,
        layers=layers,
        heads=heads,
        kv_heads=8,
        mlp_width=mlp_width,
        max_length=131_072,
        rope_theta=500_000.0,
        rope_scaling=scaling,
        norm_epsilon=1e-5,
        tied=tied,
    )


def _gemma(width, layers, heads, kv_heads, mlp_width, *, wide_heads=False, **rest):
    """What Gemma 2 and 3 share; with wide heads a score is divided by the root of a head's share."""
    return TransformerConfig(
        width=width,
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=128 if wide_heads else 256,
        query_scalar=width // heads if wide_heads else None,
        mlp_width=mlp_width,
        activation="gelu_tanh",
        embedding_scale=True,
        centered_norms=True,
        post_norms=True,
        **rest,
    )


_gemma2 = functools.partial(
    _gemma,
    vocab_size=256_000,
    max_length=8192,
    attention_cap=50.0,
    logit_cap=30.0,
    window=4096,
    global_every=2,
)
_gemma3 = functools.partial(
    _gemma,
    vocab_size=262_208,
    max_length=131_072,
    rope_theta=1_000_000.0,
    rope_scaling=RopeScaling("linear", 8.0),
    qk_norm=True,
    window=1024,
    global_every=6,
    local_rope_theta=10_000.0,
)


SHAPES: Mapping[str, TransformerConfig] = {
    "smollm2-135m": _smollm2(576, 30, 9, 3, 1536),
    "smollm2-360m": _smollm2(960, 32, 15, 5, 2560),
    "smollm2-1.7b": _smollm2(2048, 24, 32, 32, 8192, rope_theta=130_000.0),
    "qwen2.5-0.5b": _qwen25(896, 24, 14, 2, 4864, tied=True),
    "qwen2.5-1.5b": _qwen25(1536, 28, 12, 2, 8960, tied=True),
    "qwen2.5-3b": _qwen25(2048, 36, 16, 2, 11_008, tied=True),
    "qwen2.5-7b": _qwen25(3584, 28, 28, 4, 18_944, tied=False),
    "qwen2.5-14b": _qwen25(5120, 48, 40, 8, 13_824, tied=False),
    "qwen2.5-32b": _qwen25(5120, 64, 40, 8, 27_648, tied=False),
    "qwen2.5-72b": _qwen25(8192, 80, 64, 8, 29_568, tied=False),
    "qwen3-0.6b": _qwen3(1024, 28, 16, 3072, tied=True),
    "qwen3-1.7b": _qwen3(2048, 28, 16, 6144, tied=True),
    "qwen3-4b": _qwen3(2560, 36, 32, 9728, tied=True),
    "qwen3-8b": _qwen3(4096, 36, 32, 12_288, tied=False),
    "qwen3-14b": _qwen3(5120, 40, 40, 17_408, tied=False),
    "qwen3-32b": _qwen3(5120, 64, 64, 25_600, tied=False),
    "llama-3.2-1b": _llama(2048, 16, 32, 8192, _LLAMA32, tied=True),
    "llama-3.2-3b": _llama(3072, 28, 24, 8192, _LLAMA32, tied=True),
    "llama-3.1-8b": _llama(4096, 32, 32, 14_336, _LLAMA3, tied=False),
    "llama-3.1-70b": _llama(8192, 80, 64, 28_672, _LLAMA3, tied=False),
    "gemma-2-2b": _gemma2(2304, 26, 8, 4, 9216),
    "gemma-2-9b": _gemma2(3584, 42, 16, 8, 14_336),
    "gemma-2-27b": _gemma2(4608, 46, 32, 16, 36_864, wide_heads=True),
    "gemma-3-1b": _gemma3(
        1152, 26, 4, 1, 6912, vocab_size=262_144, max_length=32_768, rope_scaling=None, window=512
    ),
    "gemma-3-4b": _gemma3(2560, 34, 8, 4, 10_240),
    "gemma-3-12b": _gemma3(3840, 48, 16, 8, 15_360),
    "gemma-3-27b": _gemma3(5376, 62, 32, 16, 21_504, wide_heads=True),
}


def find(name: str) -> TransformerConfig:
    """The shape of a published model.

    Args:
      name: such as "qwen3-8b"; capitals do not matter.

    Returns:
      Its configuration.

    Raises:
      ValueError: for a name that is not known, with those that are.
    """
    if name.lower() not in SHAPES:
        raise ValueError(f"policy is {name!r}, expected one of {', '.join(SHAPES)}")
    return SHAPES[name.lower()]
