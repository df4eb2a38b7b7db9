"""Algorithms: how advantages, losses and rollouts make GRPO, PPO, f-DPG and their kin.

Each is a frozen dataclass of settings with `build(context) -> Algorithm`, pure functions.
"""

from polgrad import _names
from polgrad.algorithms import estimators, surrogates
from polgrad.algorithms.batch_losses import splits, whole_batch
from polgrad.algorithms.disco import DisCO, DisCOB, KLBound
from polgrad.algorithms.entropy_mechanism import ClipCov, KLCov
from polgrad.algorithms.f_dpg import FDPG, Filtered, Tilt
from polgrad.algorithms.from_loss import settings_of
from polgrad.algorithms.groups import (
    P3OV1,
    P3OV2,
    BestOfN,
    CoPG,
    GroupLoss,
    PairwisePolicyGradient,
    RewardWeighted,
)
from polgrad.algorithms.grpo import CISPO, DAPO, GRPO, GSPO, SAPO, DrGRPO
from polgrad.algorithms.nash_md import Mixed, NashMD
from polgrad.algorithms.nft import NFT
from polgrad.algorithms.pairs import (
    AOT,
    CPO,
    DPO,
    EXO,
    INPO,
    IPO,
    NCA,
    ORPO,
    RPO,
    SPPO,
    TPO,
    AlphaPO,
    APODown,
    APOZero,
    DiscoPOP,
    ExponentialMargin,
    Hinge,
    LinearMargin,
    OnlineDPO,
    PairLoss,
    RobustDPO,
    SimPO,
    SLiC,
)
from polgrad.algorithms.policy_gradient import (
    GroupRelative,
    PolicyGradient,
    SequencePolicyGradient,
    TokenPolicyGradient,
)
from polgrad.algorithms.ppo import PPO
from polgrad.algorithms.reinforce import RLOO, Reinforce, ReinforcePlusPlus
from polgrad.algorithms.sequences import GMPO, LUSPO, PPOClipSequence, SequenceLoss
from polgrad.algorithms.supervised import Supervised
from polgrad.algorithms.terms import KL, Entropy, OverlongPenalty, RewardKL, TruncatedWeights
from polgrad.algorithms.topr import TOPR
from polgrad.algorithms.unlikelihood import Unlikelihood
from polgrad.contract import Algorithm, Context, Outputs

NAMES = {
    "supervised": Supervised,
    "policy_gradient": PolicyGradient,
    "reinforce": Reinforce,
    "reinforce_plus_plus": ReinforcePlusPlus,
    "rloo": RLOO,
    "grpo": GRPO,
    "dr_grpo": DrGRPO,
    "dapo": DAPO,
    "gspo": GSPO,
    "cispo": CISPO,
    "sapo": SAPO,
    "ppo": PPO,
    "clip_cov": ClipCov,
    "kl_cov": KLCov,
    "topr": TOPR,
    "f_dpg": FDPG,
    "nash_md": NashMD,
    "disco": DisCO,
    "nft": NFT,
    "dpo": DPO,
    "online_dpo": OnlineDPO,
    "ipo": IPO,
    "inpo": INPO,
    "sppo": SPPO,
    "hinge": Hinge,
    "exo": EXO,
    "discopop": DiscoPOP,
    "exponential_margin": ExponentialMargin,
    "linear_margin": LinearMargin,
    "robust_dpo": RobustDPO,
    "nca": NCA,
    "apo_zero": APOZero,
    "apo_down": APODown,
    "aot": AOT,
    "simpo": SimPO,
    "alphapo": AlphaPO,
    "cpo": CPO,
    "orpo": ORPO,
    "rpo": RPO,
    "slic": SLiC,
    "tpo": TPO,
    "unlikelihood": Unlikelihood,
    "luspo": LUSPO,
    "gmpo": GMPO,
    "ppo_clip_sequence": PPOClipSequence,
    "copg": CoPG,
    "p3o_v1": P3OV1,
    "p3o_v2": P3OV2,
    "pairwise_policy_gradient": PairwisePolicyGradient,
    "disco_b": DisCOB,
    "best_of_n": BestOfN,
    "reward_weighted": RewardWeighted,
}
"""Names of the command line."""


def find(name: str) -> type:
    """The settings class of a name.

    Raises:
      ValueError: for an unknown name, with the nearest known one.
    """
    if name in NAMES:
        return NAMES[name]
    if name.endswith(".py"):
        raise ValueError(f"algorithm {name!r} is a file; expected {name}:NAME, a class in it")
    hint = _names.hint(name, NAMES)
    raise ValueError(f"unknown algorithm {name!r}{hint} (known: {', '.join(sorted(NAMES))})")


__all__ = [
    "AOT",
    "APODown",
    "APOZero",
    "Algorithm",
    "AlphaPO",
    "BestOfN",
    "CISPO",
    "CPO",
    "ClipCov",
    "CoPG",
    "Context",
    "DAPO",
    "DPO",
    "DisCO",
    "DisCOB",
    "DiscoPOP",
    "DrGRPO",
    "EXO",
    "Entropy",
    "ExponentialMargin",
    "FDPG",
    "Filtered",
    "GMPO",
    "GRPO",
    "GSPO",
    "GroupLoss",
    "GroupRelative",
    "Hinge",
    "INPO",
    "IPO",
    "KL",
    "KLBound",
    "KLCov",
    "LUSPO",
    "LinearMargin",
    "Mixed",
    "NAMES",
    "NCA",
    "NFT",
    "NashMD",
    "ORPO",
    "OverlongPenalty",
    "OnlineDPO",
    "Outputs",
    "P3OV1",
    "P3OV2",
    "PPO",
    "PPOClipSequence",
    "PairLoss",
    "PairwisePolicyGradient",
    "PolicyGradient",
    "RLOO",
    "RPO",
    "Reinforce",
    "ReinforcePlusPlus",
    "RewardKL",
    "RewardWeighted",
    "RobustDPO",
    "SAPO",
    "SLiC",
    "SPPO",
    "SequenceLoss",
    "SequencePolicyGradient",
    "SimPO",
    "Supervised",
    "TOPR",
    "TPO",
    "Tilt",
    "TokenPolicyGradient",
    "TruncatedWeights",
    "Unlikelihood",
    "estimators",
    "find",
    "settings_of",
    "splits",
    "surrogates",
    "whole_batch",
]
