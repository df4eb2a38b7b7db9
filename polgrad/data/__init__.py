"""Tasks, tokenizers and batches: where prompts come from.

Nothing here imports jax, and the heavy libraries (TFDS, reasoning-gym, pyarrow, tokenizers)
load when a function first needs them: reward workers import this package too.
"""

from polgrad.data.batches import batch_indices
from polgrad.data.sources import Source
from polgrad.data.tasks import load_task, task_names
from polgrad.data.tokenizers import CharacterTokenizer, HubTokenizer, Tokenizer, from_assets

__all__ = [
    "CharacterTokenizer",
    "HubTokenizer",
    "Source",
    "Tokenizer",
    "batch_indices",
    "from_assets",
    "load_task",
    "task_names",
]
