"""Policies: networks, and checkpoints in the Hugging Face layout.

Names load on first use (PEP 562): `policies.RopeScaling` needs no flax, and no name needs
tokenizers, safetensors or gguf before a checkpoint is really read or written.
"""

import importlib

_HOMES = {
    "ActorCritic": "actor_critic",
    "LinearNetwork": "linear",
    "Network": "network",
    "Policy": "hub.assets",
    "RopeScaling": "configuration",
    "TextAssets": "hub.assets",
    "TransformerConfig": "configuration",
    "TransformerNetwork": "transformer",
    "export": "hub.checkpoints",
    "load": "hub.checkpoints",
}
_SUBMODULES = (
    "actor_critic",
    "attention",
    "configuration",
    "entries",
    "heads",
    "hub",
    "linear",
    "modules",
    "network",
    "transformer",
)

__all__ = [*sorted(_HOMES), *_SUBMODULES]


def __getattr__(name: str):
    if name in _HOMES:
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    if name in _SUBMODULES:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
