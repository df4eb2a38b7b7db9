"""Settings of an algorithm as earlier versions wrote them, in the words of this version."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from polgrad import _parts


def settings(schema: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a stored run, by the names that they have now.

    Up to version 0.3 a term was switched off by the number 0. A term is a part now, or None. Version
    0.1 had the KL of the loss with the gradient k2 only.

    Args:
      schema: the class of the algorithm's settings.
      values: by name, as a `config.json` holds them.

    Returns:
      The values; those that already have the names of this version are as they were.
    """
    found = dict(values)
    names = {field.name for field in dataclasses.fields(schema)}
    choices = _parts.choices(schema)
    terms = {"kl_coefficient", "reference_kl", "entropy_coefficient"}
    earlier = bool(terms & found.keys() - names)

    def old(name: str, new: str) -> bool:
        """Whether an old name is there that the class has replaced by a new one."""
        return name in found and name not in names and new in choices

    if "penalty" in found and "penalty" not in names:  # KL-Cov of 0.1
        found["reference_kl"] = found.pop("kl_coefficient", 0.0)
        found["kl_coefficient"] = found.pop("penalty")
        found["reference_kl_form"] = "k2"
    elif old("kl_coefficient", "kl"):
        found["reference_kl"] = found.pop("kl_coefficient")
        if "value_coefficient" not in names:  # PPO had the KL in the reward
            found["reference_kl_form"] = "k2"
    if old("reference_kl", "kl"):
        coefficient = found.pop("reference_kl")
        form = found.pop("reference_kl_form", "reward")
        kind = {"reward": _part("reward_kl")}.get(form, _part("kl", gradient=form))
        found["kl"] = kind | {"coefficient": coefficient} if coefficient else None
    if old("entropy_coefficient", "entropy"):
        coefficient = found.pop("entropy_coefficient")
        found["entropy"] = _part("entropy", coefficient=coefficient) if coefficient else None
    if old("overlong_buffer", "overlong"):
        buffer = found.pop("overlong_buffer")
        found["overlong"] = None if buffer == 0 else _part("overlong_penalty", buffer=buffer)
    if "sampler_correction" in choices and _is_number(found.get("sampler_correction")):
        cap = found["sampler_correction"]
        found["sampler_correction"] = _part("truncated_weights", cap=cap) if cap else None
    if old("mixture", "opponent"):
        found["opponent"] = _part("mixed", weight=found.pop("mixture"))
    if old("beta", "target"):
        found["target"] = _part("tilt", beta=found.pop("beta"))
    if old("beta", "bound"):
        numbers = {name: found.pop(name) for name in ("beta", "delta") if name in found}
        found["bound"] = _part("kl_bound", **numbers)
    if earlier and "value_clip" in names and found.get("value_clip") == 0:
        found["value_clip"] = None
    return found


def _part(name: str, **values: Any) -> dict[str, Any]:
    return {_parts.KIND: name, **values}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
