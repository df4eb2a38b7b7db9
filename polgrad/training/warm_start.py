"""Supervised training on a few demonstrations, so that the first samples earn some reward."""

import numpy as np

from polgrad import data, randomness
from polgrad.training import collecting
from polgrad.training.runtime.mesh import place_batch
from polgrad.training.scoring import Scoring
from polgrad.training.setup.algorithm import find_algorithm
from polgrad.training.step import Programs


def warm_start(parts, params, reporter):
    """Parameters after `warm_start.steps` updates on demonstrations; the same for every rerun.

    A run that is killed here begins its warm start again: nothing of it was reported as saved.
    """
    settings = parts.config.warm_start
    if not settings.steps:
        return params
    algorithm = find_algorithm("supervised")().build(None)
    count = min(settings.demonstrations, len(parts.train.source))
    optimizer = settings.optimizer.build(settings.steps, parts.network.logical_axes())
    update = parts.config.update
    scoring = Scoring(compute_dtype=update.dtype, remat=update.remat, attention=update.attention)
    programs = Programs(parts.network, algorithm, optimizer, parts.mesh, scoring=scoring)
    state = programs.first_state(params)
    for step in range(settings.steps):
        # Its own order of batches: demonstrations are the first `count` problems.
        indices = data.batch_indices(parts.config.seed, step, settings.batch, count)
        batch = place_batch(collecting.demonstrations(parts, np.asarray(indices)), parts.mesh)
        key = randomness.address(parts.config.seed, randomness.UPDATE, 0, step)
        _, batch, _ = programs.prepare((), batch, key)
        state, metrics = programs.update(state, batch, key)
    loss = float(metrics["loss"])
    reporter.say(f"warm start: {settings.steps} updates on {count} demonstrations, loss {loss:.3f}")
    return state.params
