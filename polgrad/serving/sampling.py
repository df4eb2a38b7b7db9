"""Completions of a policy for one prompt, as text (`polgrad sample`)."""

import numpy as np

from polgrad import randomness
from polgrad.rollouts import Sampling, generate, sampler
from polgrad.serving.loading import load, say_missing_template
from polgrad.training.setup import footprint

DEFAULT_TOKENS = 64
"""Longest completion where neither the user nor a run says one and the context has room."""


def sample(
    name: str,
    prompt: str,
    *,
    step: int | None = None,
    remote: bool = False,
    samples: int = 1,
    seed: int = 0,
    max_tokens: int | None = None,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
) -> list[str]:
    """Completions of a prompt, as text.

    Args:
      name: as for `load`.
      prompt: the text; the chat template is applied where the policy has one.
      step: which checkpoint of a run; the newest when left out.
      remote: read checkpoints at an address that the run names.
      samples: how many.
      seed: of the sampler.
      max_tokens: longest completion; when left out what the policy's context leaves, up to 64.
      temperature: 0 takes the likeliest token.
      top_k: keep only the k likeliest tokens; 0 keeps all.
      top_p: keep the likeliest tokens up to this mass.
      min_p: keep tokens at least this likely, relative to the likeliest.

    Returns:
      The completions.

    Raises:
      ValueError: for settings out of range or a prompt too long for the policy's context.
    """
    if samples < 1:
        raise ValueError(f"samples is {samples}; expected at least 1")
    policy, tokenizer = load(name, step=step, remote=remote)
    say_missing_template(name, policy)
    ids = tokenizer.prompt_ids(prompt)
    max_tokens = room(f"prompt {prompt!r:.60}", len(ids), max_tokens, policy.network.max_length)
    sampling = Sampling(
        max_tokens=max_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        stop_ids=tuple(tokenizer.stop_ids),
    )
    footprint.check_sampling(
        policy.network,
        rows=samples,
        slots=sampler.default_slots(samples),
        tokens=max_tokens,
        lower="samples or max_tokens",
    )
    rollout = generate(
        policy.network,
        policy.params,
        np.array([ids], np.int32),
        np.array([len(ids)], np.int32),
        np.zeros(1, np.uint32),
        randomness.address(seed, randomness.SAMPLE),
        sampling=sampling,
        group_size=samples,
    )
    lengths = np.asarray(rollout.completion_lengths)
    return [
        tokenizer.decode(r[:n].tolist()) for r, n in zip(np.asarray(rollout.completions), lengths)
    ]


def room(what: str, prompt: int, max_tokens: int | None, context: int) -> int:
    """The longest completion: what was asked for, or what the context leaves."""
    if prompt < 1:
        raise ValueError(f"{what} has no tokens; expected at least 1")
    if prompt >= context:
        raise ValueError(
            f"{what} has {prompt} tokens; expected at most {context - 1}, so that the policy's "
            f"context of {context} leaves room for a completion"
        )
    if max_tokens is None:
        return min(DEFAULT_TOKENS, context - prompt)
    if prompt + max_tokens > context:
        raise ValueError(
            f"max_tokens is {max_tokens}; expected at most {context - prompt}, because {what} has "
            f"{prompt} tokens and the policy's context {context}"
        )
    return max_tokens
