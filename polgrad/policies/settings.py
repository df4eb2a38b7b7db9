"""A `config.json` of the Llama, Qwen and Gemma families, and the shape that it describes."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from polgrad.policies.configuration import RopeScaling, TransformerConfig

FAMILIES = {
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "gemma2": "Gemma2ForCausalLM",
    "gemma3_text": "Gemma3ForCausalLM",
}
_GEMMA = {
    "activation": "gelu_tanh",
    "embedding_scale": True,
    "centered_norms": True,
    "post_norms": True,
}
# What makes a shape one of a family; what is not named here has the config's default there.
_TRAITS: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {"qkv_bias": True},
    "qwen3": {"qk_norm": True},
    "gemma2": _GEMMA,
    "gemma3_text": {**_GEMMA, "qk_norm": True},
}
# What a family's file may leave out, and what it then means.
_GEMMA_DEFAULTS = {
    "head_dim": 256,
    "num_key_value_heads": 4,
    "hidden_activation": "gelu_pytorch_tanh",
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
}
_DEFAULTS: dict[str, dict[str, Any]] = {
    "llama": {"max_position_embeddings": 2048},
    "qwen2": {"max_position_embeddings": 32_768},
    "qwen3": {"max_position_embeddings": 32_768, "head_dim": 128},
    "gemma2": {
        **_GEMMA_DEFAULTS,
        "max_position_embeddings": 8192,
        "sliding_window_pattern": 2,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
    },
    "gemma3_text": {
        **_GEMMA_DEFAULTS,
        "vocab_size": 262_208,
        "num_attention_heads": 8,
        "max_position_embeddings": 131_072,
        "sliding_window_pattern": 6,
        "rope_theta": 1_000_000.0,
        "rope_local_base_freq": 10_000.0,
    },
}


def _is_gemma(family: str) -> bool:
    return "post_norms" in _TRAITS[family]


def of_text(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of the text model in a Gemma 3 that also sees; others as they are."""
    if settings.get("model_type") != "gemma3":
        return dict(settings)
    # Its turns end with tokens that only the whole model's settings name.
    tokens = {key: value for key, value in settings.items() if key.endswith("_token_id")}
    return {**settings, **settings.get("text_config", {}), **tokens, "model_type": "gemma3_text"}


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
    settings = {**_DEFAULTS[family], **settings}
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
    return TransformerConfig(
        **{name: int(settings[key]) for name, key in needed.items()},
        kv_heads=settings.get("num_key_value_heads"),
        head_dim=settings.get("head_dim") or _DEFAULTS[family].get("head_dim"),
        max_length=int(settings["max_position_embeddings"]),
        rope_theta=theta,
        rope_scaling=scaling,
        norm_epsilon=float(settings.get("rms_norm_eps", 1e-6)),
        tied=tied,
        **_TRAITS[family],
        **(_gemma(settings, family) if _is_gemma(family) else {}),
        **heads,
    )


def _refuse_unsupported(settings: Mapping[str, Any], family: str) -> None:
    gemma = _is_gemma(family)
    name, wanted = ("hidden_activation", "gelu_pytorch_tanh") if gemma else ("hidden_act", "silu")
    if settings.get(name, wanted) != wanted:
        raise ValueError(f"{name} must be {wanted!r}, got {settings[name]!r}")
    # Qwen2 always has its biases; elsewhere the flag would also put one on the output.
    flags = ["mlp_bias", "use_sliding_window", "quantization_config"]
    if family != "qwen2":
        flags.append("attention_bias")
    if gemma:
        flags.append("use_bidirectional_attention")
    if family == "gemma3_text":
        # Its configuration has the entry, but its attention does not.
        flags.append("attn_logit_softcapping")
    for flag in flags:
        if settings.get(flag):
            raise ValueError(f"{flag}={settings[flag]!r} in config.json is not supported")
    known = {"full_attention", "sliding_attention"} if gemma else {"full_attention"}
    kinds = set(settings.get("layer_types") or ()) - known
    if kinds:
        raise ValueError(f"layer_types {', '.join(sorted(kinds))} are not supported")


def _rope(settings: Mapping[str, Any]) -> tuple[float, RopeScaling | None]:
    """Base and scaling, from `rope_parameters` (newer files) or `rope_theta`/`rope_scaling`."""
    rope = settings.get("rope_parameters") or {}
    if {"full_attention", "sliding_attention"} & set(rope):
        rope = rope.get("full_attention")  # Gemma 3 has an entry for each kind of layer
    rope = rope or settings.get("rope_scaling") or {}
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


def _gemma(settings: Mapping[str, Any], family: str) -> dict[str, Any]:
    """What the Gemma families have beyond the others."""
    scalar = settings["query_pre_attn_scalar"]
    extra = {
        "query_scalar": None if scalar == settings["head_dim"] else scalar,
        "attention_cap": settings.get("attn_logit_softcapping"),
        "logit_cap": settings.get("final_logit_softcapping"),
    }
    every = _global_every(settings)
    if every == 1:
        return extra
    extra |= {"window": settings["sliding_window"], "global_every": every}
    if family == "gemma3_text":
        rope = (settings.get("rope_parameters") or {}).get("sliding_attention") or {}
        if rope.get("rope_type", "default") != "default":
            raise ValueError(
                f"rope type of sliding_attention must be 'default', got {rope['rope_type']!r}"
            )
        extra["local_rope_theta"] = float(rope.get("rope_theta", settings["rope_local_base_freq"]))
    return extra


def _global_every(settings: Mapping[str, Any]) -> int:
    """Of each so many layers the last one attends to everything; 1 where all do."""
    told, layers = settings["sliding_window_pattern"], int(settings["num_hidden_layers"])
    if not settings.get("layer_types"):
        return told
    local = [kind == "sliding_attention" for kind in settings["layer_types"]]
    for every in (told, *range(1, layers + 2)):
        if local == [(i + 1) % every != 0 for i in range(layers)]:
            return every
    raise ValueError(
        f"layer_types must repeat some sliding_attention and one full_attention over "
        f"{layers} layers, got {', '.join(settings['layer_types'])}"
    )


def settings_from_config(config: TransformerConfig) -> dict[str, Any]:
    """The contents of a `config.json` for this shape.

    Raises:
        ValueError: the shape belongs to no family; says why.
    """
    family = _family(config)
    rope: dict[str, Any] = {"rope_type": "default"}
    if config.rope_scaling is not None:
        s = config.rope_scaling
        rope = {"rope_type": s.kind, "factor": s.factor}
        if s.kind == "llama3":
            rope["low_freq_factor"] = s.low_frequency_factor
            rope["high_freq_factor"] = s.high_frequency_factor
            rope["original_max_position_embeddings"] = s.original_length
    settings = {
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
    if _is_gemma(family):
        settings |= _gemma_settings(config)
    if family == "gemma3_text":
        settings |= _two_ropes(config, settings["rope_parameters"])
    return settings


def _family(config: TransformerConfig) -> str:
    names = {name for traits in _TRAITS.values() for name in traits}
    traits = {
        field.name: getattr(config, field.name)
        for field in dataclasses.fields(config)
        if field.name in names and getattr(config, field.name) != field.default
    }
    family = next((name for name, has in _TRAITS.items() if has == traits), None)
    if family is None:
        raise ValueError(
            f"no supported family has {' and '.join(traits)} and no other trait, so this network "
            "cannot be exported"
        )
    absent = []
    if not _is_gemma(family):
        absent = ["query_scalar", "attention_cap", "logit_cap", "window"]
    elif family == "gemma2":
        absent = ["local_rope_theta"]
    else:
        absent = ["attention_cap"]
        if config.window is not None and config.local_rope_theta is None:
            raise ValueError("family gemma3_text has a local_rope_theta, got None")
    for name in absent:
        if getattr(config, name) is not None:
            raise ValueError(f"family {family} has no {name}, got {getattr(config, name)}")
    return family


def _gemma_settings(config: TransformerConfig) -> dict[str, Any]:
    kinds = ("full_attention", "sliding_attention")
    local = [(i + 1) % config.global_every != 0 for i in range(config.layers)]
    return {
        "hidden_act": "gelu_pytorch_tanh",
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": config.query_scalar or config.head_dim,
        "attn_logit_softcapping": config.attention_cap,
        "final_logit_softcapping": config.logit_cap,
        # Readers make a window's mask even where no layer uses it.
        "sliding_window": config.window or config.max_length,
        "sliding_window_pattern": config.global_every,
        "layer_types": [kinds[is_local] for is_local in local],
    }


def _two_ropes(config: TransformerConfig, rope: dict[str, Any]) -> dict[str, Any]:
    theta = config.local_rope_theta or _DEFAULTS["gemma3_text"]["rope_local_base_freq"]
    local = {"rope_type": "default", "rope_theta": theta}
    return {
        "rope_local_base_freq": theta,
        "rope_parameters": {"full_attention": rope, "sliding_attention": local},
    }
