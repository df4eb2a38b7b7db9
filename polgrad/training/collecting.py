"""From a step's number to the experience it learns from: samples with rewards, or data."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from polgrad import data, randomness
from polgrad.contract import Batch, Pair
from polgrad.data import sources
from polgrad.rewards.pool import RewardPool, check_failures
from polgrad.rollouts import Rollout, generate
from polgrad.training.runtime import hosts
from polgrad.training.runtime.mesh import batch_sharding, place_batch
from polgrad.training.saving.journal import ScoreJournal
from polgrad.training.setup.parts import Parts
from polgrad.training.setup.problems import Problems


class OwnSamples(NamedTuple):
    """The samples of a rollout that this process scores: all of them where it is the only one.

    Attributes:
      rows: their places in the rollout, rising `[n]`.
      tokens: their completions `[n, T]`.
      texts: the same as text, without the stop token.
      total: samples of the whole rollout.
    """

    rows: np.ndarray
    tokens: np.ndarray
    texts: list[str]
    total: int


def place_rollout(parts, rollout: Rollout) -> tuple[Batch, OwnSamples]:
    """A rollout split over the mesh by its samples, and those of them that lie here, as text."""
    placed = place_batch(rollout._asdict(), parts.mesh)
    total = rollout.completion_lengths.shape[0]
    rows = hosts.own_rows(batch_sharding(parts.mesh, total), total, parts.processes.index)
    tokens = hosts.local(placed["completions"])[rows]
    lengths = hosts.local(placed["completion_lengths"])[rows]
    texts = [parts.tokenizer.decode(row[:n].tolist()) for row, n in zip(tokens, lengths)]
    return placed, OwnSamples(rows, tokens, texts, total)


def share_scores(parts, name: str, own: OwnSamples, work: Callable[[], list[list]]) -> list:
    """Every process scores its own samples; all get the scores of all, in the rollout's order.

    Args:
      parts: the run.
      name: what is scored, for messages.
      own: this process's samples.
      work: gives `[value, valid, reason]` for each of them.

    Returns:
      One entry a sample of the whole rollout; None where no process had one.
    """
    scores: list[list | None] = [None] * own.total
    for rows, found in parts.processes.gather(name, lambda: [own.rows.tolist(), work()]):
        for row, score in zip(rows, found):
            scores[row] = score
    return scores


class Collector:
    """Makes the experience of a step; a pure function of parameters and step but for time-outs.

    Args:
      parts: the run.
      pool: workers that compute the training reward.
      journal: scores of the steps since the last checkpoint.
      for_sampling: from parameters to the weights that the sampler is given; they are dropped before
        an update needs the memory.
    """

    def __init__(
        self,
        parts: Parts,
        pool: RewardPool | None,
        journal: ScoreJournal,
        for_sampling: Callable[[Any], Any],
    ):
        self._parts, self._pool, self._journal = parts, pool, journal
        self._for_sampling = for_sampling
        self._scored: list[tuple] = []
        self._make = self._rollouts if parts.algorithm.samples else self._answers

    def __call__(
        self, step: int, params: Any, held: Mapping[str, Any]
    ) -> tuple[Batch, dict, list[dict]]:
        """The experience of a step, its metrics, and its samples as rows of text.

        Args:
          step: number of the step.
          params: of the policy.
          held: of the named policies.
        """
        config = self._parts.config
        indices = data.batch_indices(
            config.seed, step - 1, config.rollouts.prompts, len(self._parts.train.source)
        )
        return self._make(step, indices, params, held)

    def _rollouts(self, step, indices, params, held):
        parts, config = self._parts, self._parts.config
        size, train = config.rollouts.group_size, parts.train
        params = self._for_sampling(params)
        experience, own = self._sample(randomness.SAMPLE, step, indices, params, None, 0.0)
        examples = [train.source[int(indices[row // size])] for row in own.rows]
        rows = [{"prompt": e["prompt"], "completion": c} for e, c in zip(examples, own.texts)]
        versus = parts.algorithm.collect.samples.versus
        if versus is None:
            scores = self._score(step, "reward", own, examples)
        else:
            # A policy that is the sampling one itself is not held.
            mixed = self._for_sampling(held[versus.name]) if versus.name in held else params
            _, other = self._sample(
                randomness.OPPONENT, step, indices, params, mixed, versus.weight
            )
            for row, text in zip(rows, other.texts):
                row["opponent"] = text
            examples = [e | {"opponent": t} for e, t in zip(examples, other.texts)]
            scores = self._score(step, "reward", own, examples)
            if config.rewards.preference:
                experience["preferences"] = _column(scores, 0, np.float32)
            else:
                against = self._score(step, "opponent", other, examples)
                experience["opponent_rewards"] = _column(against, 0, np.float32)
                scores = [[s[0], s[1] and a[1], s[2] or a[2]] for s, a in zip(scores, against)]
        rewards, valid = _column(scores, 0, np.float32), _column(scores, 1, bool)
        experience |= {"rewards": np.where(valid, rewards, 0.0), "valid": valid}
        for row, place in zip(rows, own.rows):
            reward, ok, reason = scores[place]
            row |= {"step": step, "reward": reward if ok else None, "reason": reason}
        experience = place_batch(experience, parts.mesh)
        return experience, _reward_metrics(rewards, valid, experience), rows

    def _sample(
        self, purpose, step, indices, params, reference, weight
    ) -> tuple[Batch, OwnSamples]:
        parts, rollouts = self._parts, self._parts.config.rollouts
        problems = {"tokens": parts.train.tokens[indices], "lengths": parts.train.lengths[indices]}
        placed = place_batch({**problems, "ids": indices.astype(np.uint32)}, parts.mesh)
        rollout = generate(
            parts.network,
            params,
            placed["tokens"],
            placed["lengths"],
            placed["ids"],
            randomness.address(parts.config.seed, purpose, step),
            sampling=parts.sampling(),
            group_size=rollouts.group_size,
            slots=rollouts.slots,
            compute_dtype=parts.config.update.dtype,
            reference_params=reference,
            reference_weight=weight,
            weights=rollouts.weights,
        )
        return place_rollout(parts, rollout)

    def _score(self, step, name, own: OwnSamples, examples) -> list[list]:
        """Scores as `[value, valid, reason]` of all samples, from the journal where it has them."""

        computed: list[list] = []

        def work():
            scores = self._journal.get(step, name, own.rows, own.tokens)
            if scores is None:
                items = [(e["prompt"], c, e) for e, c in zip(examples, own.texts)]
                scores = [[float(s.value), s.valid, s.reason] for s in self._pool.score(items)]
                computed.extend(scores)
            return scores

        scores = share_scores(self._parts, f"{name}s of step {step}", own, work)
        # The share of failures is the whole step's, however many processes it is dealt out to.
        reasons = [reason for _, valid, reason in scores if not valid]
        check_failures(reasons, len(scores), self._parts.config.rewards.failure_limit)
        if computed:
            # Only now: failures that stop the run must not stop it again when it goes on.
            self._scored.append((step, name, own.rows, own.tokens, computed))
        return scores

    def keep(self) -> None:
        """Writes the scores of the step to the journal, before its update."""
        while self._scored:
            self._journal.put(*self._scored.pop(0))

    def _answers(self, step, indices, params, held):
        """The answers in the data: one of a row, or one for each role of a pair."""
        algorithm = self._parts.algorithm
        answers = [demonstrations(self._parts, indices, f) for f in algorithm.collect.columns]
        batch = answers[0]
        if isinstance(algorithm.unit, Pair):
            batch = jax.tree.map(lambda *roles: np.stack(roles, axis=1), *answers)
        return place_batch(batch, self._parts.mesh), {}, []


def demonstrations(parts: Parts, indices: np.ndarray, field: str = "answer") -> Batch:
    """Given completions as a batch; each ends as the policy ends a turn.

    Raises:
      ValueError: if a completion is longer than `rollouts.max_tokens`.
    """
    return encode_completions(
        parts.train, parts.tokenizer, indices, field, parts.config.rollouts.max_tokens
    )


def encode_completions(
    problems: Problems, tokenizer: data.Tokenizer, indices, field: str, max_tokens: int
) -> Batch:
    """Prompts and one field of their examples as arrays `[B, P]` and `[B, T]`."""
    completions = np.zeros((len(indices), max_tokens), np.int32)
    lengths = np.zeros(len(indices), np.int32)
    for row, index in enumerate(indices):
        example = problems.source[int(index)]
        ids = tokenizer.completion_ids(example["prompt"], sources.column(example, field))
        if len(ids) > max_tokens:
            raise ValueError(
                f"{field} of example {index} has {len(ids)} tokens; rollouts.max_tokens is {max_tokens}"
            )
        completions[row, : len(ids)], lengths[row] = ids, len(ids)
    return {
        "prompts": problems.tokens[indices],
        "prompt_lengths": problems.lengths[indices],
        "completions": completions,
        "completion_lengths": lengths,
        "mask": (np.arange(max_tokens) < lengths[:, None]).astype(np.float32),
    }


def _column(scores: list[list], index: int, dtype) -> np.ndarray:
    return np.array([s[index] if s[1] or index else 0.0 for s in scores], dtype)


def _reward_metrics(rewards: np.ndarray, valid: np.ndarray, rollout: Batch) -> dict[str, float]:
    counted = rewards[valid]
    lengths, stopped = hosts.whole((rollout["completion_lengths"], rollout["stopped"]))
    return {
        "reward_mean": counted.mean() if counted.size else float("nan"),
        "reward_std": counted.std() if counted.size else float("nan"),
        "invalid_rewards": int((~valid).sum()),
        "completion_length": lengths.mean(),
        "stopped": stopped.mean(),
        "tokens": int(lengths.sum()),
    }
