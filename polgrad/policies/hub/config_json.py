"""A `config.json` of the Llama, Qwen and Gemma families, and the shape that it describes."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from polgrad.policies import entries
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


_NEEDED = {
    "vocab_size": "vocab_size",
    "width": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "mlp_width": "intermediate_size",
}
# Where null is a value of its own; elsewhere it means that the entry is not given.
_NULL_COUNTS = ("num_key_value_heads", "attn_logit_softcapping", "final_logit_softcapping")


def _is_gemma(family: str) -> bool:
    return "post_norms" in _TRAITS[family]


def of_text(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of the text model in a Gemma 3 that also sees; others as they are."""
    if settings.get("model_type") != "gemma3":
        return dict(settings)
    # Its turns end with tokens that only the whole model's settings name.
    tokens = {key: value for key, value in settings.items() if key.endswith("_token_id")}
    inner = entries.mapping("text_config", settings.get("text_config", {}))
    return {**settings, **inner, **tokens, "model_type": "gemma3_text"}


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
    if not isinstance(family, str) or family not in FAMILIES:
        raise ValueError(f"model_type must be one of {', '.join(FAMILIES)}, got {family!r:.80}")
    for key in _NEEDED.values():
        if key not in settings and key not in _DEFAULTS[family]:
            raise ValueError(f"lacks {key}; expected a whole number of at least 1")
        entries.whole(key, settings.get(key, _DEFAULTS[family].get(key)))
    told = {k: v for k, v in settings.items() if v is not None or k in _NULL_COUNTS}
    settings = {**_DEFAULTS[family], **told}
    _refuse_unsupported(settings, family)
    theta, scaling = _rope(settings)
    kv_heads = settings.get("num_key_value_heads")
    return TransformerConfig(
        **{name: settings[key] for name, key in _NEEDED.items()},
        kv_heads=None if kv_heads is None else entries.whole("num_key_value_heads", kv_heads),
        head_dim=_head_dim(settings),
        max_length=entries.whole("max_position_embeddings", settings["max_position_embeddings"]),
        rope_theta=theta,
        rope_scaling=scaling,
        norm_epsilon=entries.number(
            "rms_norm_eps", settings.get("rms_norm_eps", 1e-6), least=0, most=1
        ),
        tied=tied,
        **_TRAITS[family],
        **(_gemma(settings, family) if _is_gemma(family) else {}),
        **heads,
    )


def _head_dim(settings: Mapping[str, Any]) -> int | None:
    if "head_dim" in settings:
        return entries.whole("head_dim", settings["head_dim"])
    width, heads = settings["hidden_size"], settings["num_attention_heads"]
    if width % heads:
        raise ValueError(
            f"num_attention_heads is {heads}; expected a divisor of hidden_size, which is {width}, "
            "or an entry head_dim"
        )
    return None


def _refuse_unsupported(settings: Mapping[str, Any], family: str) -> None:
    gemma = _is_gemma(family)
    name, wanted = ("hidden_activation", "gelu_pytorch_tanh") if gemma else ("hidden_act", "silu")
    if settings.get(name, wanted) != wanted:
        raise ValueError(f"{name} must be {wanted!r}, got {settings[name]!r:.80}")
    # Qwen2 always has its biases; elsewhere the flag would also put one on the output.
    flags = ["mlp_bias", "use_sliding_window"]
    if family != "qwen2":
        flags.append("attention_bias")
    if gemma:
        flags.append("use_bidirectional_attention")
    for flag in flags:
        if entries.flag(flag, settings.get(flag, False)):
            raise ValueError(f"{flag} is true, which is not supported")
    others = ["quantization_config"]
    if family == "gemma3_text":
        # Its configuration has the entry, but its attention does not.
        others.append("attn_logit_softcapping")
    for name in others:
        if settings.get(name) is not None:
            raise ValueError(f"{name} is {entries.shown(settings[name])}, which is not supported")
    known = {"full_attention", "sliding_attention"} if gemma else {"full_attention"}
    kinds = set(_layer_types(settings)) - known
    if kinds:
        raise ValueError(f"layer_types {', '.join(sorted(kinds))} are not supported")


def _layer_types(settings: Mapping[str, Any]) -> list[str]:
    kinds = settings.get("layer_types", [])
    if not isinstance(kinds, list) or not all(isinstance(kind, str) for kind in kinds):
        raise ValueError(f"layer_types is {entries.shown(kinds)}; expected a list of names")
    return kinds


def _rope(settings: Mapping[str, Any]) -> tuple[float, RopeScaling | None]:
    """Base and scaling, from `rope_parameters` (newer files) or `rope_theta`/`rope_scaling`."""
    where, rope = "rope_parameters", _object(settings, "rope_parameters")
    if {"full_attention", "sliding_attention"} & set(rope):
        # Gemma 3 has an entry for each kind of layer.
        where, rope = "rope_parameters.full_attention", _object(rope, "full_attention")
    if not rope:
        where, rope = "rope_scaling", _object(settings, "rope_scaling")
    theta = _theta(rope, where, "rope_theta", settings.get("rope_theta", 10_000.0))
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return theta, None
    if kind not in ("linear", "llama3"):
        raise ValueError(f"rope type must be 'default', 'linear' or 'llama3', got {kind!r:.80}")
    extra = {}
    if kind == "llama3":
        for ours, theirs in _LLAMA3.items():
            extra[ours] = entries.number(f"{where}.{theirs}", rope.get(theirs), positive=True)
        name = "original_max_position_embeddings"
        extra["original_length"] = entries.whole(f"{where}.{name}", rope.get(name))
    factor = entries.number(f"{where}.factor", rope.get("factor"), least=1)
    return theta, RopeScaling(kind, factor, **extra)


_LLAMA3 = {"low_frequency_factor": "low_freq_factor", "high_frequency_factor": "high_freq_factor"}


def _object(settings: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """An entry that is an object; an absent one, and null, are an empty object."""
    told = settings.get(name)
    return {} if told is None else entries.mapping(name, told)


def _theta(rope: Mapping[str, Any], where: str, name: str, default: Any) -> float:
    """The base of an object for rotary positions, or the entry of the settings."""
    if "rope_theta" in rope:
        return entries.number(f"{where}.rope_theta", rope["rope_theta"], least=1)
    return entries.number(name, default, least=1)


def _gemma(settings: Mapping[str, Any], family: str) -> dict[str, Any]:
    """What the Gemma families have beyond the others."""
    name = "query_pre_attn_scalar"
    scalar = entries.number(name, settings[name], positive=True)
    extra = {"query_scalar": None if scalar == settings["head_dim"] else scalar}
    caps = {"attention_cap": "attn_logit_softcapping", "logit_cap": "final_logit_softcapping"}
    for ours, theirs in caps.items():
        cap = settings.get(theirs)
        extra[ours] = None if cap is None else entries.number(theirs, cap, positive=True)
    every = _global_every(settings)
    if every == 1:
        return extra
    window = entries.whole("sliding_window", settings["sliding_window"])
    extra |= {"window": window, "global_every": every}
    if family == "gemma3_text":
        rope = _object(_object(settings, "rope_parameters"), "sliding_attention")
        if rope.get("rope_type", "default") != "default":
            raise ValueError(
                f"rope type of sliding_attention must be 'default', got {rope['rope_type']!r:.80}"
            )
        extra["local_rope_theta"] = _theta(
            rope,
            "rope_parameters.sliding_attention",
            "rope_local_base_freq",
            settings["rope_local_base_freq"],
        )
    return extra


def _global_every(settings: Mapping[str, Any]) -> int:
    """Of each so many layers the last one attends to everything; 1 where all do."""
    told = entries.whole("sliding_window_pattern", settings["sliding_window_pattern"])
    kinds, layers = _layer_types(settings), settings["num_hidden_layers"]
    if not kinds:
        return told
    if len(kinds) != layers:
        raise ValueError(f"layer_types has {len(kinds)} entries, expected {layers}, one a layer")
    local = [kind == "sliding_attention" for kind in kinds]
    for every in (told, *range(1, layers + 2)):
        if local == [(i + 1) % every != 0 for i in range(layers)]:
            return every
    raise ValueError(
        f"layer_types must repeat some sliding_attention and one full_attention over "
        f"{layers} layers, got {', '.join(kinds)}"
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


def _as_whole(number: float) -> float:
    """The same number, as an integer where it is one: transformers refuses 256.0 for 256."""
    return int(number) if float(number).is_integer() else number


def _gemma_settings(config: TransformerConfig) -> dict[str, Any]:
    kinds = ("full_attention", "sliding_attention")
    local = [(i + 1) % config.global_every != 0 for i in range(config.layers)]
    return {
        "hidden_act": "gelu_pytorch_tanh",
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": _as_whole(config.query_scalar or config.head_dim),
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
