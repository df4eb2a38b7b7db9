"""Losses of whole answers: one importance ratio, one advantage and one loss for each.

Each class has the keyword-only numbers of a function in `polgrad.losses` as its settings.
"""

import dataclasses

from polgrad.algorithms import surrogates
from polgrad.algorithms.policy_gradient import SequencePolicyGradient


@dataclasses.dataclass(frozen=True)
class SequenceLoss(surrogates.SequenceLoss, SequencePolicyGradient):
    """A loss `(logp, behavior_logp, advantages, mask) -> [B]` of whole answers, with GRPO's advantage.

    A subclass gives `function`, as `algorithms.settings_of` does.
    """


def _of(surrogate: type) -> type:
    made = dataclasses.make_dataclass(
        surrogate.__name__, [], bases=(surrogate, SequencePolicyGradient), frozen=True
    )
    made.__module__, made.__doc__ = __name__, surrogate.__doc__
    return made


LUSPO = _of(surrogates.LUSPO)
GMPO = _of(surrogates.GMPO)
PPOClipSequence = _of(surrogates.PPOClipSequence)
