"""The shape of a transformer: which of the Llama, Qwen and Gemma families' parts it has."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from polgrad.policies import entries


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """How rotary frequencies are stretched beyond the original context.

    Args:
        kind: `"linear"` divides every frequency by `factor`; `"llama3"` divides only wavelengths
            above `original_length / low_frequency_factor`, keeps those below
            `original_length / high_frequency_factor` and interpolates between.
        factor: stretch, at least 1.
        low_frequency_factor: llama3 only.
        high_frequency_factor: llama3 only, above `low_frequency_factor`.
        original_length: llama3 only: context of the original training, in tokens.
    """

    kind: Literal["linear", "llama3"]
    factor: float
    low_frequency_factor: float = 1.0
    high_frequency_factor: float = 4.0
    original_length: int = 8192

    def __post_init__(self):
        if self.kind not in ("linear", "llama3"):
            raise ValueError(
                f"rope scaling kind must be 'linear' or 'llama3', got {self.kind!r}; "
                "other kinds (yarn, longrope, dynamic) are not supported"
            )
        entries.number("rope scaling factor", self.factor, least=1)
        for name in ("low_frequency_factor", "high_frequency_factor"):
            entries.number(name, getattr(self, name), positive=True)
        entries.whole("original_length", self.original_length)
        if self.low_frequency_factor >= self.high_frequency_factor:
            raise ValueError(
                "high_frequency_factor must be above low_frequency_factor, got "
                f"{self.high_frequency_factor} and {self.low_frequency_factor}"
            )


_SIZES = tuple(
    [
        "vocab_size",
        "width",
        "layers",
        "heads",
        "kv_heads",
        "head_dim",
        "mlp_width",
        "max_length",
        "unroll",
    ]
)
_FLAGS = (
    *("qkv_bias", "qk_norm", "tied", "value_head", "reward_head"),
    *("embedding_scale", "centered_norms", "post_norms"),
)


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
    """Shape of a transformer; everything is static.

    Args:
        vocab_size: tokens in the vocabulary, `V`.
        width: width of the residual stream, `D`.
        layers: number of blocks.
        heads: query heads.
        kv_heads: key and value heads; divides `heads` (default: `heads`).
        head_dim: width of a head, even (default: `width // heads`).
        mlp_width: width of the gated MLP (default: `4 * width`).
        max_length: longest sequence in tokens.
        rope_theta: base of the rotary frequencies.
        rope_scaling: stretch of the rotary frequencies, or None.
        norm_epsilon: added to the mean square in RMSNorm.
        qkv_bias: biases on query, key and value (Qwen2).
        qk_norm: RMSNorm on queries and keys before rotation (Qwen3, Gemma 3).
        tied: the output projection is the embedding, transposed.
        value_head: adds a linear value head, zero at the start.
        reward_head: adds a linear scalar reward head, zero at the start.
        unroll: how many layers one step of the layer scan holds; `layers` removes the loop.
        activation: of the gated MLP: `"silu"`, or `"gelu_tanh"`, GELU by its tanh formula (Gemma).
        embedding_scale: embeddings are multiplied by `sqrt(width)`, rounded to the compute type
            (Gemma).
        centered_norms: every RMSNorm multiplies by one plus its scale, which starts at zero
            (Gemma).
        post_norms: RMSNorm also after attention and after the MLP, before what they give is added
            (Gemma).
        query_scalar: attention scores are divided by its square root (default: `head_dim`).
        attention_cap: attention scores `s` become `cap * tanh(s / cap)` before the softmax
            (Gemma 2), or None.
        logit_cap: the vocabulary's logits likewise (Gemma 2; see `heads.CappedHead`), or None.
        window: positions of its own sequence that a token of a local layer sees, itself included;
            None: no layer is local.
        global_every: every so many layers one is global, the last of them; the others are local.
            At least 2 with a window, 1 without.
        local_rope_theta: base of the rotary frequencies of local layers, which are then not
            stretched (Gemma 3); None: those of all layers.
    """

    vocab_size: int
    width: int
    layers: int
    heads: int
    kv_heads: int | None = None
    head_dim: int | None = None
    mlp_width: int | None = None
    max_length: int = 2048
    rope_theta: float = 10_000.0
    rope_scaling: RopeScaling | None = None
    norm_epsilon: float = 1e-6
    qkv_bias: bool = False
    qk_norm: bool = False
    tied: bool = True
    value_head: bool = False
    reward_head: bool = False
    unroll: int = 1
    activation: Literal["silu", "gelu_tanh"] = "silu"
    embedding_scale: bool = False
    centered_norms: bool = False
    post_norms: bool = False
    query_scalar: float | None = None
    attention_cap: float | None = None
    logit_cap: float | None = None
    window: int | None = None
    global_every: int = 1
    local_rope_theta: float | None = None

    def __post_init__(self):
        width, heads = entries.whole("width", self.width), entries.whole("heads", self.heads)
        defaults = {"kv_heads": heads, "head_dim": width // heads, "mlp_width": 4 * width}
        for name, value in defaults.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
        # These numbers come from files too: each has its type and range looked at.
        for name in _SIZES:
            entries.whole(name, getattr(self, name))
        for name in _FLAGS:
            entries.flag(name, getattr(self, name))
        self._as_float("rope_theta", least=1)
        self._as_float("norm_epsilon", least=0, most=1)
        if not isinstance(self.rope_scaling, (RopeScaling, type(None))):
            raise ValueError(f"rope_scaling must be None or a RopeScaling, got {self.rope_scaling}")
        if self.heads % self.kv_heads:
            raise ValueError(f"kv_heads must divide heads, got {self.kv_heads} and {self.heads}")
        if self.head_dim % 2:
            raise ValueError(f"head_dim must be even (rotary halves), got {self.head_dim}")
        if self.activation not in ("silu", "gelu_tanh"):
            raise ValueError(f"activation must be 'silu' or 'gelu_tanh', got {self.activation!r}")
        for name in ("query_scalar", "attention_cap", "logit_cap"):
            if getattr(self, name) is not None:
                self._as_float(name, positive=True)
        if self.local_rope_theta is not None:
            self._as_float("local_rope_theta", least=1)
        self._check_window()

    def _as_float(self, name: str, **allowed) -> None:
        # Beyond 2^31 a whole number is none for JAX, and a float is.
        number = entries.number(name, getattr(self, name), **allowed)
        object.__setattr__(self, name, number)

    def _check_window(self):
        entries.whole("global_every", self.global_every)
        if self.window is None:
            if self.global_every != 1 or self.local_rope_theta is not None:
                raise ValueError(
                    "window is None: global_every must be 1 and local_rope_theta None, got "
                    f"{self.global_every} and {self.local_rope_theta}"
                )
            return
        entries.whole("window", self.window)
        if self.global_every < 2:
            raise ValueError(
                f"global_every must be at least 2 with a window, got {self.global_every}"
            )


def from_fields(fields: Any) -> TransformerConfig:
    """A config from the JSON object that `dataclasses.asdict` and `json.dumps` made of one.

    Args:
        fields: what was stored with a run.

    Returns:
        The config.

    Raises:
        ValueError: an entry that is missing, unknown, of another type or out of range; names it.
    """
    fields = dict(entries.mapping("network", fields))
    scaling = fields.get("rope_scaling")
    if scaling is not None:
        scaling = entries.mapping("rope_scaling", scaling)
        fields["rope_scaling"] = _of_class(RopeScaling, scaling)
    return _of_class(TransformerConfig, fields)


def _of_class(made: type, fields: Mapping[str, Any]) -> Any:
    known = {field.name: field for field in dataclasses.fields(made)}
    for name in fields:
        if name not in known:
            raise ValueError(f"{made.__name__} has no entry {name!r}; it has {', '.join(known)}")
    for name, field in known.items():
        if field.default is dataclasses.MISSING and name not in fields:
            raise ValueError(f"the entry {name!r} of {made.__name__} is missing")
    return made(**fields)
