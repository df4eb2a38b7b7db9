"""Held-out accuracy: greedy, with a Wilson interval, and pass@k from samples."""

from typing import Any, NamedTuple

import numpy as np
from einops import rearrange

from polgrad import randomness, statistics
from polgrad.rewards.pool import RewardPool
from polgrad.rollouts import Sampling, generate
from polgrad.training import collecting
from polgrad.training.runtime.mesh import place_batch

CHUNK = 256
"""Problems whose completions are sampled together."""


class Accuracy(NamedTuple):
    """How many held-out problems are solved.

    Attributes:
      value: share of problems with full marks; invalid ones count as unsolved.
      low: lower end of the 95% Wilson interval.
      high: upper end.
      problems: how many were tried.
      invalid: samples whose reward could not be computed.
      pass_at_k: `{k: probability that one of k samples is right}`, unbiased.
    """

    value: float
    low: float
    high: float
    problems: int
    invalid: int
    pass_at_k: dict[int, float]

    def metrics(self) -> dict[str, float]:
        """As numbers for `metrics.jsonl`."""
        named = {f"pass_at_{k}": v for k, v in self.pass_at_k.items()}
        return {
            "accuracy": self.value,
            "accuracy_low": self.low,
            "accuracy_high": self.high,
        } | named


class ProblemResult(NamedTuple):
    """What became of one problem.

    Attributes:
      index: its place among the problems.
      prompt: as the task has it.
      solved: whether the greedy completion is right.
      samples_solved: how many of the samples for pass@k are right; None without samples.
    """

    index: int
    prompt: str
    solved: bool
    samples_solved: int | None


def evaluate(
    parts,
    params: Any,
    pool: RewardPool,
    *,
    problems: int,
    samples: int = 0,
    step: int = 0,
    each: list[ProblemResult] | None = None,
) -> Accuracy:
    """Greedy accuracy on the first held-out problems, and pass@k at the run's temperature.

    Args:
      parts: the run; its `test` problems are used.
      params: the policy's parameters.
      pool: workers with the task's own scorer.
      problems: how many problems, at most those there are.
      samples: samples a problem for pass@k; 0 leaves it out.
      step: addresses the samples' randomness.
      each: takes the result of each problem; left out, none is kept.

    Returns:
      The accuracy. A problem is solved when the scorer gives at least 1.
    """
    count = min(problems, len(parts.test.source))
    right, invalid = _solved(parts, params, pool, count, parts.sampling(0.0), 1, step)
    low, high = statistics.wilson_interval(int(right.sum()), count)
    pass_at_k, sampled = {}, None
    if samples:
        sampled, _ = _solved(parts, params, pool, count, parts.sampling(), samples, step)
        solved = sampled.sum(1)
        pass_at_k = {
            k: float(statistics.pass_at_k(solved, samples, k).mean()) for k in tried(samples)
        }
    for index in range(count if each is not None else 0):
        own = None if sampled is None else int(sampled[index].sum())
        prompt = parts.test.source[index]["prompt"]
        each.append(ProblemResult(index, prompt, bool(right[index, 0]), own))
    return Accuracy(float(right.mean()), low, high, count, invalid, pass_at_k)


def tried(samples: int) -> list[int]:
    """The `k` of pass@k for so many samples: the powers of two, and the number itself."""
    return [*(2**i for i in range(samples.bit_length()) if 2**i < samples), samples]


def _solved(
    parts, params, pool, count: int, sampling: Sampling, samples: int, step: int
) -> tuple[np.ndarray, int]:
    """`[problems, samples]`, whether each is right, and how many could not be scored."""
    test, width = parts.test, CHUNK
    right, invalid = [], 0
    for start in range(0, count, width):
        # Every chunk has the same width, so that one program serves all: absent prompts are empty.
        index = np.arange(start, start + width)
        here = index < count
        index = np.where(here, index, 0)
        placed = place_batch(
            {
                "tokens": test.tokens[index],
                "lengths": np.where(here, test.lengths[index], 0),
                "ids": index.astype(np.uint32),
            },
            parts.mesh,
        )
        rollout = generate(
            parts.network,
            params,
            placed["tokens"],
            placed["lengths"],
            placed["ids"],
            randomness.address(parts.config.seed, randomness.EVALUATE, step),
            sampling=sampling,
            group_size=samples,
            compute_dtype=parts.config.update.dtype,
        )
        _, own = collecting.place_rollout(parts, rollout)
        wanted = here.sum() * samples  # the absent prompts are the last
        examples = [test.source[int(index[row // samples])] for row in own.rows if row < wanted]

        def work(own=own, examples=examples):
            scores = pool.score([(e["prompt"], t, e) for e, t in zip(examples, own.texts)])
            return [[float(s.value), s.valid, s.reason] for s in scores]

        name = f"evaluation of step {step}, problems from {start}"
        scores = collecting.share_scores(parts, name, own, work)[:wanted]
        right += [valid and value >= 1.0 for value, valid, _ in scores]
        invalid += sum(not valid for _, valid, _ in scores)
    right = rearrange(np.array(right), "(problems samples) -> problems samples", samples=samples)
    return right, invalid
