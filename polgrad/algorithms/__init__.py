"""Algorithms: how advantages, losses and rollouts make GRPO, PPO, f-DPG and their kin.

Each is a frozen dataclass of settings with `build(context) -> Algorithm`, four pure functions.
"""

from polgrad import _names
from polgrad.algorithms.disco import DisCO
from polgrad.algorithms.dpo import DPO, OnlineDPO
from polgrad.algorithms.entropy_mechanism import ClipCov, KLCov
from polgrad.algorithms.f_dpg import FDPG
from polgrad.algorithms.grpo import CISPO, DAPO, GRPO, GSPO, SAPO, DrGRPO
from polgrad.algorithms.nash_md import NashMD
from polgrad.algorithms.nft import NFT
from polgrad.algorithms.policy_gradient import GroupRelative, PolicyGradient, RatioClip
from polgrad.algorithms.ppo import PPO
from polgrad.algorithms.reinforce import RLOO, Reinforce, ReinforcePlusPlus
from polgrad.algorithms.supervised import Supervised
from polgrad.algorithms.topr import TOPR
from polgrad.training.types import Algorithm, Context, Outputs

NAMES = {
    "supervised": Supervised,
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
    "CISPO",
    "DAPO",
    "DPO",
    "FDPG",
    "GRPO",
    "GSPO",
    "NAMES",
    "NFT",
    "PPO",
    "RLOO",
    "SAPO",
    "TOPR",
    "Algorithm",
    "ClipCov",
    "Context",
    "DisCO",
    "DrGRPO",
    "GroupRelative",
    "KLCov",
    "NashMD",
    "OnlineDPO",
    "Outputs",
    "PolicyGradient",
    "RatioClip",
    "Reinforce",
    "ReinforcePlusPlus",
    "Supervised",
    "find",
]
