"""Prompts as the sampler wants them: one array, right-padded to a bucket."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from polgrad._scalars import in_range


def pad_prompts(
    prompts: Sequence[Sequence[int]], *, bucket: int, max_length: int
) -> tuple[Int[np.ndarray, "M P"], Int[np.ndarray, " M"]]:
    """Right-pads token lists to a common width.

    The width is `P = min(max_length, bucket * ceil(longest / bucket))`: a run whose prompts vary in
    length meets few widths, and so compiles few programs.

    Args:
        prompts: `M >= 1` lists of token ids, each of 1 to `max_length` tokens.
        bucket: the width is a multiple of it, at least 1.
        max_length: the longest prompt allowed, in tokens.

    Returns:
        `(tokens[M, P], lengths[M])`, int32; padding is 0.

    Raises:
        ValueError: no prompts, an empty prompt, or one longer than `max_length`, named by its index.
    """
    in_range("bucket", bucket, low=1)
    if not len(prompts):
        raise ValueError("prompts is empty, expected at least one prompt")
    lengths = np.array([len(prompt) for prompt in prompts], np.int32)
    for index, length in enumerate(lengths):
        if length == 0:
            raise ValueError(f"prompt {index} has no tokens, expected at least one")
        if length > max_length:
            raise ValueError(
                f"prompt {index} has {length} tokens, more than the {max_length} allowed"
            )
    width = min(max_length, -(-int(lengths.max()) // bucket) * bucket)
    tokens = np.zeros((len(prompts), width), np.int32)
    for row, prompt in zip(tokens, prompts):
        row[: len(prompt)] = prompt
    return tokens, lengths
