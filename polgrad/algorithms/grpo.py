"""GRPO and its kin: a group-relative advantage, and a token loss that limits the ratio.

Each member of the family adds a surrogate to `GroupRelative`, or is GRPO with other defaults.
"""

import dataclasses
from typing import Literal

from polgrad.algorithms import surrogates
from polgrad.algorithms.policy_gradient import GroupRelative
from polgrad.algorithms.surrogates import Aggregation, PPOClip
from polgrad.algorithms.terms import OverlongPenalty


@dataclasses.dataclass(frozen=True)
class GRPO(PPOClip, GroupRelative):
    """Group relative policy optimisation (Shao et al. 2024, arXiv:2402.03300).

    The KL of the paper is `kl=KL(0.04, gradient="k3")`.
    """


@dataclasses.dataclass(frozen=True)
class DrGRPO(GRPO):
    """Dr. GRPO: no division by deviation or length (Liu et al. 2025, arXiv:2503.20783)."""

    scale: Literal["group", "batch", "none"] = "none"
    aggregation: Aggregation = "constant"


@dataclasses.dataclass(frozen=True)
class DAPO(GRPO):
    """DAPO: token mean, higher upper clip, overlong penalty (Yu et al. 2025, arXiv:2503.14476).

    Groups whose rewards are all equal are masked; the paper samples further prompts in their place.
    """

    aggregation: Aggregation = "token"
    clip_high: float = 0.28
    drop_uniform_groups: bool = True
    overlong: OverlongPenalty | None = OverlongPenalty()


@dataclasses.dataclass(frozen=True)
class GSPO(surrogates.GSPO, GroupRelative):
    """GSPO: one ratio a sequence (Zheng et al. 2025, arXiv:2507.18071)."""


@dataclasses.dataclass(frozen=True)
class CISPO(surrogates.CISPO, GroupRelative):
    """CISPO: REINFORCE weighted by a capped, stopped ratio (MiniMax 2025, arXiv:2506.13585).

    Every token keeps a gradient. ScaleRL (Khatri et al. 2025, arXiv:2510.13786) recommends
    `scale="batch"` with the same cap.
    """


@dataclasses.dataclass(frozen=True)
class SAPO(surrogates.SAPO, GroupRelative):
    """SAPO: a soft gate in place of the clip (Gao et al. 2025, arXiv:2511.20347)."""
