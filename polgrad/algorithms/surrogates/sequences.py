"""Surrogates of whole answers: one importance ratio, one advantage and one loss for each."""

import dataclasses
import inspect
from collections.abc import Callable
from typing import ClassVar

from polgrad import losses
from polgrad.algorithms.from_loss import settings_of
from polgrad.algorithms.surrogates.base import SequenceSurrogate


@dataclasses.dataclass(frozen=True)
class SequenceLoss(SequenceSurrogate):
    """A loss `(logp, behavior_logp, advantages, mask) -> [B]`; a subclass gives `function`."""

    function: ClassVar[Callable]

    def surrogate(self, logp, behavior_logp, advantages, mask):
        """The function with its settings."""
        names = inspect.signature(type(self).function).parameters
        fields = [f.name for f in dataclasses.fields(self) if f.name in names]
        settings = {name: getattr(self, name) for name in fields}
        return type(self).function(logp, behavior_logp, advantages, mask, **settings)


def _of(name: str, function: Callable) -> type:
    clips = ("clip_low", "clip_high")
    return settings_of(function, name, SequenceLoss, depth=2, ratio_settings=clips)


LUSPO = _of("LUSPO", losses.luspo)
GMPO = _of("GMPO", losses.gmpo)
PPOClipSequence = _of("PPOClipSequence", losses.ppo_clip_sequence)
