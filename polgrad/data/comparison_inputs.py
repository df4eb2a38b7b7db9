"""The input of a reward model that compares a candidate with a reference trajectory."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int

__all__ = ["ComparisonInput", "comparison_input"]


class ComparisonInput(NamedTuple):
    """Tokens of one comparison, padded on the right.

    Attributes:
      tokens: ids, 0 behind the end.
      mask: True where there is a token; the last of them is the one whose state is scored.
    """

    tokens: Int[np.ndarray, "L"]
    mask: Bool[np.ndarray, "L"]


def comparison_input(
    prompt: Sequence[int],
    reference: Sequence[int],
    candidate: Sequence[int],
    *,
    separator: int,
    end: int,
    length: int,
    response_length: int,
) -> ComparisonInput:
    """Lays out prompt + reference + <separator> + prompt + candidate + <end>.

    A causal model reads both trajectories in one pass, and its score is a linear function of the
    state at <end> (`policies.heads.last_token_score`). Responses are cut on the right to
    `response_length` tokens, the prompt on the LEFT to half of what then remains.

    Args:
      prompt: token ids.
      reference: token ids of the trajectory to compare with, such as a demonstration.
      candidate: token ids of the trajectory to score.
      separator: id of the token between the two halves.
      end: id of the token that is scored.
      length: tokens of the result, at least 2 response_length + 2.
      response_length: most tokens of either response, at least 0 (4096 in the paper).

    Returns:
      `ComparisonInput(tokens, mask)`, int32 and bool, [length] each.

    Raises:
      ValueError: if two responses of the greatest length do not fit.

    References:
      Dou et al., Pre-Trained Policy Discriminators are General Reward Models, 2025
      (arXiv:2507.05197).
    """
    if response_length < 0 or length < 2 * response_length + 2:
        raise ValueError(
            f"length is {length} with response_length {response_length}, expected at least "
            f"2 response_length + 2 = {2 * response_length + 2}, and no negative number"
        )
    reference, candidate = list(reference)[:response_length], list(candidate)[:response_length]
    room = (length - len(reference) - len(candidate) - 2) // 2
    prompt = list(prompt)
    prompt = prompt[max(len(prompt) - room, 0) :]
    ids = [*prompt, *reference, separator, *prompt, *candidate, end]
    tokens = np.zeros(length, np.int32)
    tokens[: len(ids)] = ids
    return ComparisonInput(tokens, np.arange(length) < len(ids))
