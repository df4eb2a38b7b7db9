"""Published figures of accelerators, for estimates."""

from collections.abc import Mapping
from typing import NamedTuple

__all__ = ["CHIPS", "Chip"]


class Chip(NamedTuple):
    """What one device can do.

    Attributes:
      name: as people call it.
      memory: bytes of high-bandwidth memory.
      flops: bfloat16 operations a second.
      bandwidth: bytes a second of that memory.
      interconnect: bytes a second that it sends to its neighbours, all links together.
    """

    name: str
    memory: float
    flops: float
    bandwidth: float
    interconnect: float


CHIPS: Mapping[str, Chip] = {
    "v4": Chip("TPU v4", 32 * 2**30, 275e12, 1.2e12, 300e9),
    "v5e": Chip("TPU v5e", 16 * 2**30, 197e12, 0.82e12, 200e9),
    "v5p": Chip("TPU v5p", 95 * 2**30, 459e12, 2.765e12, 600e9),
    "v6e": Chip("TPU v6e", 32 * 2**30, 918e12, 1.64e12, 448e9),
}
"""By the first part of a topology's name. Source: cloud.google.com/tpu/docs/system-architecture."""
