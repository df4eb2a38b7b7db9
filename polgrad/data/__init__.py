"""Tasks, tokenizers and batches: where prompts come from.

Nothing here imports jax, and the heavy libraries (TFDS, reasoning-gym, pyarrow, tokenizers)
load when a function first needs them: reward workers import this package too. The two modules of
arrays load jax when they are first used: `preferences` (pairs made of samples, flipped, mixed) and
`augmentation` (pairs relabelled by their scores).
"""

import importlib

from polgrad.data.batches import batch_indices
from polgrad.data.sources import Source
from polgrad.data.tasks import load_task, task_names
from polgrad.data.tokenizers import CharacterTokenizer, HubTokenizer, Tokenizer, from_assets

__all__ = [
    "CharacterTokenizer",
    "HubTokenizer",
    "Source",
    "Tokenizer",
    "augmentation",
    "batch_indices",
    "from_assets",
    "load_task",
    "preferences",
    "task_names",
]


def __getattr__(name: str):
    if name in ("augmentation", "preferences"):
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
