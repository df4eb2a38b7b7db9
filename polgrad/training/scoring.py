"""The one forward pass of training: log-probabilities of a batch, packed or not.

Losses, advantages and metrics see `[B, T]` only. How sequences lie in the rows that the network
reads (padded one to a row, or several to a row) is decided here and nowhere else.
"""

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Array, Bool, Float, Int

from polgrad.contract import Batch, Outputs
from polgrad.policies import heads
from polgrad.training.runtime import hosts

SEQUENCE_KEYS = ("prompts", "prompt_lengths", "completions", "completion_lengths", "mask")
PACKING_KEYS = ("pack_row", "pack_offset")


@dataclasses.dataclass(frozen=True)
class Scoring:
    """Static settings of the forward pass.

    Attributes:
      temperature: divides the logits; the sampler's.
      compute_dtype: dtype of the network's products; log-probabilities are float32 anyway.
      remat: what the backward pass recomputes: `"none"`, `"dots"` or `"full"`.
      attention: the kernel that attends: `"auto"`, `"xla"`, `"splash"` or `"cudnn"`.
      chunk: positions of the vocabulary head handled at once (see `heads.token_logp`).
      values: also return the value head's estimates.
      entropy_gradient: the loss differentiates the entropy.
      packed_rows: None for one sequence a row; or `(rows, row_length)`, with the plan of
        `pack` in the batch.
      samples: consecutive sequences that have one prompt, which is read once for all of them; 1 where
        nothing is known. Not with packing.
    """

    temperature: float = 1.0
    compute_dtype: Any = jnp.float32
    remat: str = "none"
    attention: str = "auto"
    chunk: int | None = None
    values: bool = False
    entropy_gradient: bool = False
    packed_rows: tuple[int, int] | None = None
    samples: int = 1

    @property
    def forward(self) -> dict[str, Any]:
        """Keywords of the network's `hidden` and `group_hidden`."""
        settings = {"compute_dtype": self.compute_dtype, "remat": self.remat}
        # Not every network has kernels to choose from.
        return settings if self.attention == "auto" else settings | {"attention": self.attention}


def score(network, params, batch: Batch, scoring: Scoring = Scoring()) -> Outputs:
    r"""Log-probability, entropy and value at every completion token of a batch.

    :math:`\log\pi_\theta(y_t \mid x, y_{<t})` under the distribution tempered as the sampler's.

    Args:
      network: a `policies.Network`.
      params: its parameters.
      batch: `prompts [..., P]`, `prompt_lengths [...]`, `completions [..., T]`,
        `completion_lengths [...]`, `mask [..., T]`, and with packing `pack_row [...]`,
        `pack_offset [...]`; any number of leading axes.
      scoring: static settings.

    Returns:
      `Outputs` with leading axes as in the batch; 0 where the mask is 0. Values have T + 1
      steps: the state before each token, then the one after the last.
    """
    lead, length = batch["prompt_lengths"].shape, batch["completions"].shape[-1]
    keys = SEQUENCE_KEYS if scoring.packed_rows is None else (*SEQUENCE_KEYS, *PACKING_KEYS)
    flat = {k: batch[k].reshape(-1, *batch[k].shape[len(lead) :]) for k in keys}
    hidden = (_shared if scoring.samples > 1 else _separate)(network, params, flat, scoring)
    logp, entropy = heads.token_logp(
        hidden[:, :length],
        network.head(params),
        flat["completions"],
        temperature=scoring.temperature,
        chunk=scoring.chunk,
        entropy_gradient=scoring.entropy_gradient,
    )
    valid = flat["mask"] > 0
    values = None
    if scoring.values:
        values = network.values(params, hidden)
        alive = jnp.arange(length + 1) <= flat["completion_lengths"][:, None]
        values = jnp.where(alive, values, 0.0).reshape(*lead, length + 1)
    return Outputs(
        jnp.where(valid, logp, 0.0).reshape(*lead, length),
        jnp.where(valid, entropy, 0.0).reshape(*lead, length),
        values,
    )


def _separate(network, params, flat: Batch, scoring: Scoring) -> Float[Array, "B S D"]:
    """Hidden states that predict each completion token, every sequence read whole."""
    if scoring.packed_rows is None:
        place = None
    else:
        place = tuple(flat[k] for k in PACKING_KEYS)
    tokens, positions, segments = _lay_out(flat, place, scoring.packed_rows)
    hidden = network.hidden(params, tokens, positions, segments, **scoring.forward)
    steps = flat["completions"].shape[1] + scoring.values
    return _collect(hidden, flat["prompt_lengths"], steps, place)


def _shared(network, params, flat: Batch, scoring: Scoring) -> Float[Array, "B S D"]:
    """The same, a prompt read once for the sequences that have it."""
    steps = flat["completions"].shape[1] + scoring.values
    hidden = network.group_hidden(
        params,
        flat["prompts"][:: scoring.samples],
        flat["prompt_lengths"][:: scoring.samples],
        # The last token predicts nothing, unless its value is asked for.
        rearrange(
            flat["completions"][:, : steps - 1],
            "(prompts samples) steps -> prompts samples steps",
            samples=scoring.samples,
        ),
        **scoring.forward,
    )
    return rearrange(hidden, "prompts samples steps width -> (prompts samples) steps width")


def sharing(network, batch: Batch, samples: int, micro_batches: int, split: int) -> int:
    """How many consecutive sequences of a micro-batch may be read as samples of one prompt.

    Args:
      network: a `policies.Network`.
      batch: shapes of the optimiser batch.
      samples: consecutive sequences of the batch that have one prompt; where a row of the batch
        holds several, these.
      micro_batches: parts that the batch is split into.
      split: devices that a batch is split over. Sharing never splits a prompt's samples.

    Returns:
      At least 1, which is no sharing.
    """
    lead = batch["prompt_lengths"].shape
    if len(lead) > 1:
        samples = math.prod(lead[1:])
    elif samples % micro_batches:
        return 1
    else:
        samples //= micro_batches
    prompts, rest = divmod(math.prod(lead) // micro_batches, samples)
    single = batch["completions"].shape[-1] == 1
    if rest or prompts % split or single or not hasattr(network, "group_hidden"):
        return 1
    return samples


def one_prompt(batch: Batch, samples: int) -> Bool[Array, ""]:
    """Whether all consecutive `samples` sequences of a batch have one prompt."""
    # Whatever the leading axes are: a batch of pairs has its roles on the second.
    lengths = batch["prompt_lengths"].reshape(-1, samples)
    prompts = batch["prompts"].reshape(*lengths.shape, -1)
    return (prompts == prompts[:, :1]).all() & (lengths == lengths[:, :1]).all()


def _lay_out(flat: Batch, place, shape) -> tuple[Array, Array, Array]:
    """Token ids, positions and segments (0 is padding) of the rows that the network reads."""
    prompts, completions = flat["prompts"], flat["completions"]
    start, size = flat["prompt_lengths"], flat["prompt_lengths"] + flat["completion_lengths"]
    width = prompts.shape[1] + completions.shape[1]
    index = jnp.arange(width)[None, :]
    inside = index < size[:, None]
    both = jnp.concatenate([prompts, completions], axis=1)
    # Prompts are padded on the right; a completion follows its prompt directly.
    shift = jnp.where(index < start[:, None], index, index - start[:, None] + prompts.shape[1])
    tokens = jnp.take_along_axis(both, jnp.clip(shift, 0, width - 1), axis=1)
    tokens = jnp.where(inside, tokens, 0)
    positions = jnp.broadcast_to(index, tokens.shape)
    if place is None:
        return tokens, positions, inside
    row, offset = place
    # Cells outside a sequence are sent past the end of their row and dropped.
    column = jnp.where(inside, offset[:, None] + index, shape[1])
    numbered = inside * (1 + jnp.arange(len(start)))[:, None]

    def put(x):
        return (
            jnp.zeros(shape, jnp.int32)
            .at[row[:, None], column]
            .set(x.astype(jnp.int32), mode="drop")
        )

    return put(tokens), put(positions), put(numbered)


def _collect(hidden: Array, prompt_lengths: Array, steps: int, place) -> Float[Array, "B S D"]:
    """Hidden states that predict completion token t: those at `prompt_length - 1 + t`."""
    index = prompt_lengths[:, None] - 1 + jnp.arange(steps)[None, :]
    if place is None:
        index = jnp.clip(index, 0, hidden.shape[1] - 1)
        return jnp.take_along_axis(hidden, index[..., None], axis=1)
    row, offset = place
    index = jnp.clip(offset[:, None] + index, 0, hidden.shape[1] - 1)
    return hidden[row[:, None], index]


class Packing(NamedTuple):
    """Where each sequence lies: `row[i]`, starting at `offset[i]`, among `num_rows` rows."""

    row: Int[np.ndarray, "N"]
    offset: Int[np.ndarray, "N"]
    num_rows: int


def pack(lengths: Int[np.ndarray, "N"], row_length: int) -> Packing:
    """First-fit-decreasing packing of sequences into rows.

    Args:
      lengths: tokens of each sequence (prompt and completion) `[N]`, at most `row_length`.
      row_length: tokens in a row.

    Returns:
      The plan; no two sequences overlap.

    Raises:
      ValueError: if a sequence is longer than a row.
    """
    lengths = np.asarray(lengths)
    if lengths.max(initial=0) > row_length:
        raise ValueError(
            f"a sequence of {lengths.max()} tokens does not fit row_length {row_length}"
        )
    row, offset = np.zeros(len(lengths), np.int32), np.zeros(len(lengths), np.int32)
    used: list[int] = []
    for i in np.argsort(-lengths, kind="stable"):
        free = (r for r, u in enumerate(used) if u + lengths[i] <= row_length)
        r = next(free, len(used))
        if r == len(used):
            used.append(0)
        row[i], offset[i] = r, used[r]
        used[r] += int(lengths[i])
    return Packing(row, offset, max(len(used), 1))


def with_packing(batch: Batch, micro_batches: int) -> tuple[Batch, tuple[int, int]]:
    """Adds a packing plan for each micro-batch to a batch on the host.

    Returns:
      The batch with `pack_row` and `pack_offset`, and `(rows, row_length)` common to all
      micro-batches. Rows are rounded up to eighths of the unpacked count, so that a run
      compiles at most eight programs.
    """
    lengths = sum(hosts.whole([batch["prompt_lengths"], batch["completion_lengths"]]))
    width = batch["prompts"].shape[-1] + batch["completions"].shape[-1]
    parts = split_micro(lengths, micro_batches)
    plans = [pack(part.reshape(-1), width) for part in parts]
    count = int(np.prod(parts.shape[1:]))
    step = max(1, count // 8)
    rows = min(count, -(-max(p.num_rows for p in plans) // step) * step)

    def together(name):
        x = np.stack([getattr(p, name).reshape(parts.shape[1:]) for p in plans])
        return jnp.asarray(join_micro(x))

    packed = {**batch, "pack_row": together("row"), "pack_offset": together("offset")}
    return packed, (rows, width)


def split_micro(x, micro_batches: int):
    """`[B, ...]` to `[M, B / M, ...]`; strided, so that every device holds a share of each part."""
    return rearrange(x, "(rows parts) ... -> parts rows ...", parts=micro_batches)


def join_micro(x):
    """The inverse of `split_micro`."""
    return rearrange(x, "parts rows ... -> (rows parts) ...")


def split_tree(batch: Batch, micro_batches: int) -> Batch:
    """`split_micro` of every array of a batch."""
    return jax.tree.map(lambda x: split_micro(x, micro_batches), batch)
