"""What a rollout of a language policy is."""

from typing import NamedTuple

from jaxtyping import Array, Bool, Float, Int, UInt32


class Rollout(NamedTuple):
    """`G` sampled completions for each of `M` prompts; `N = M * G` rows, prompt-major.

    Row `n = prompt * G + sample`. Masks come from lengths, never from token values: a completion
    may contain the padding token's id.

    Attributes:
        prompts: `[N, P]` token ids, right-padded with 0.
        prompt_lengths: `[N]`, in `[0, P]`; 0 marks an absent prompt, whose row is empty.
        completions: `[N, T]` sampled token ids, right-padded with 0; a stop token is part of it.
        completion_lengths: `[N]`, in `[0, T]`, the stop token included.
        mask: `[N, T]` float32, 1 where `t < completion_lengths`.
        behavior_logp: `[N, T]` float32, nats: the log-probability of each token under the
            distribution it was really drawn from (tempered, filtered, mixed); 0 where masked.
        stopped: `[N]`, true where the completion ends with a stop token, false where it was cut.
        prompt_ids: `[N]` the addresses of the randomness: row `n` drew its token `t` with
            `uniform(fold_in(fold_in(fold_in(key, prompt_id), sample_id), t))`.
        sample_ids: `[N]`, in `[0, G)`.
    """

    prompts: Int[Array, "N P"]
    prompt_lengths: Int[Array, " N"]
    completions: Int[Array, "N T"]
    completion_lengths: Int[Array, " N"]
    mask: Float[Array, "N T"]
    behavior_logp: Float[Array, "N T"]
    stopped: Bool[Array, " N"]
    prompt_ids: UInt32[Array, " N"]
    sample_ids: UInt32[Array, " N"]
