"""Training: the forward pass, the sharded step, checkpoints and the loop."""

import importlib

_NAMES = {
    "Algorithm": "types",
    "Context": "types",
    "Outputs": "types",
    "TrainState": "state",
    "Scoring": "scoring",
    "score": "scoring",
    "make_gradient": "step",
    "make_update": "step",
    "Optimizer": "optimizers",
    "TrainConfig": "config",
    "Result": "loop",
    "TrainingError": "loop",
    "train": "loop",
    "plot": "reporting",
}

__all__ = list(_NAMES)


def __getattr__(name: str):
    if name in _NAMES:
        return getattr(importlib.import_module(f"{__name__}.{_NAMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
