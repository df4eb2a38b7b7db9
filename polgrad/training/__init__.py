"""Training: the forward pass, the sharded step, checkpoints and the loop."""

import importlib

_NAMES = {
    "Algorithm": "polgrad.contract",
    "Context": "polgrad.contract",
    "Outputs": "polgrad.contract",
    "TrainState": "polgrad.training.state",
    "Scoring": "polgrad.training.scoring",
    "score": "polgrad.training.scoring",
    "make_gradient": "polgrad.training.step",
    "make_update": "polgrad.training.step",
    "Optimizer": "polgrad.training.optimizers",
    "TrainConfig": "polgrad.training.config",
    "Result": "polgrad.training.loop",
    "TrainingError": "polgrad.training.loop",
    "train": "polgrad.training.loop",
    "plot": "polgrad.training.reporting",
}

__all__ = list(_NAMES)


def __getattr__(name: str):
    if name in _NAMES:
        return getattr(importlib.import_module(_NAMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
