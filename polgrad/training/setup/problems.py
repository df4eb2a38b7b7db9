"""The problems of a run: read from its task, and their prompts as token ids."""

import hashlib
import json
from typing import Any, NamedTuple

import numpy as np

from polgrad import _outside, data
from polgrad.data import codec, sources
from polgrad.data.sources import TooFew
from polgrad.training.config import TrainConfig
from polgrad.training.setup import fingerprints, run_files

FIELDS = ("prompt", "answer", "chosen", "rejected")
"""The texts that problems usually have."""


class Problems(NamedTuple):
    """A source with its prompts as token ids, all padded to one width.

    Attributes:
      source: the problems.
      tokens: of their prompts `[n, width]`.
      lengths: of their prompts `[n]`.
      digest: a fingerprint of every field of every problem.
    """

    source: data.Source
    tokens: np.ndarray
    lengths: np.ndarray
    digest: str = ""


class Texts:
    """The texts of a source, each of which is read and tokenised once while a run is built.

    Attributes:
      source: the problems.
      columns: further answers of each problem, by name.
      rows: of each problem its prompt, and the answers that it has.
      digest: a fingerprint of every field of every problem.
    """

    def __init__(self, source: data.Source, columns: tuple[str, ...] = ()):
        self.source, self.columns, self.rows, self._sizes = source, columns, [], {}
        digest = hashlib.sha256()
        for index in range(len(source)):
            example = source[index]
            digest.update(_text_of(example, source, index))
            row = {name: example[name] for name in FIELDS if name in example}
            further = {name: sources.column(example, name) for name in columns}
            self.rows.append(row | {k: text for k, text in further.items() if text is not None})
        self.digest = digest.hexdigest()[:32]

    def size(self, index: int, field: str, tokenizer: data.Tokenizer) -> int:
        """How many tokens a completion has with its end; a run has one tokenizer."""
        if (index, field) not in self._sizes:
            row = self.rows[index]
            ids = tokenizer.completion_ids(row["prompt"], row[field])
            self._sizes[index, field] = len(ids)
        return self._sizes[index, field]


def tokens_digest(problems: Problems) -> str:
    """A fingerprint of the token ids of all prompts."""
    return fingerprints.fingerprint(problems.lengths.tobytes(), problems.tokens.tobytes())


def parse_parameters(pairs: tuple[str, ...]) -> dict[str, Any]:
    """`("min_terms=2",)` as a dictionary; values are JSON, or text where they are not."""
    parameters: dict[str, Any] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals or not name:
            raise ValueError(f"data.parameters has {pair!r:.80}; expected name=value")
        if name in parameters:
            raise ValueError(f"data.parameters has {name!r} twice; expected each name once")
        try:
            parameters[name] = json.loads(text, parse_constant=_no_number)
        except json.JSONDecodeError:
            parameters[name] = text
        except (ValueError, RecursionError) as error:
            raise ValueError(f"data.parameters: {name}: {_outside.reason(error)}") from None
    return parameters


def _no_number(text: str) -> None:
    raise ValueError(f"{text} is not a number that a task can take")


def load_source(config: TrainConfig, split: str, *, size_flag: str | None = None) -> data.Source:
    """The problems of one split of a run's task.

    Args:
      config: names the task.
      split: "train", "test" or "all".
      size_flag: what the user calls the number of problems, for messages; `--data.train-size` or
        `--data.test-size` when left out.

    Returns:
      The problems.

    Raises:
      ValueError: as `data.load_task`.
    """
    settings = config.data
    is_file = run_files.is_file(config.task)
    size = settings.train_size if split == "train" else settings.test_size
    try:
        return data.load_task(
            config.task,
            split=split,
            size=None if is_file else size,
            seed=settings.seed,
            parameters=parse_parameters(settings.parameters),
            prompt_pattern=settings.prompt_pattern,
            prompt_template=settings.prompt_template,
            held_out=settings.held_out,
            distinct=settings.distinct,
        )
    except TooFew as error:
        flag = size_flag or f"--data.{split}-size"
        raise ValueError(f"{error} ({flag} {error.found})") from None


def load_sources(config: TrainConfig) -> tuple[data.Source, data.Source | None]:
    """The problems of training, and the held-out ones where the run evaluates."""
    train = load_source(config, "train")
    if config.evaluation.problems == 0 or config.data.held_out == 0:
        return train, None
    return train, held_out_problems(config, train)


def held_out_problems(config: TrainConfig, train: data.Source) -> data.Source:
    """The held-out problems; of a file, which has been read for those of training, too."""
    return (
        train.with_split("test") if run_files.is_file(config.task) else load_source(config, "test")
    )


def tokenize(source: data.Source, tokenizer: data.Tokenizer, limit: int) -> Problems:
    """All prompts of a source as token ids of one width.

    Raises:
      ValueError: if a prompt has no token, or leaves no room for the completion.
    """
    return tokenized(Texts(source), tokenizer, limit)


def tokenized(texts: Texts, tokenizer: data.Tokenizer, limit: int) -> Problems:
    """All prompts as token ids of one width; `tokenize` is the same from a source."""
    rows = []
    for index, row in enumerate(texts.rows):
        ids = tokenizer.prompt_ids(row["prompt"])
        if not 0 < len(ids) <= limit:
            raise ValueError(
                f"{texts.source.place(index)}: the prompt {row['prompt'][:60]!r} has {len(ids)} "
                f"tokens; {_room(len(ids), limit)}"
            )
        rows.append(ids)
    lengths = np.array([len(r) for r in rows], np.int32)
    tokens = np.zeros((len(rows), lengths.max()), np.int32)
    for row, ids in zip(tokens, rows):
        row[: len(ids)] = ids
    return Problems(texts.source, tokens, lengths, texts.digest)


def outlier(problems: Problems) -> tuple[str, ...]:
    """A sentence on a prompt that is far longer than the others, which are padded to its length."""
    count, lengths = len(problems.lengths), np.sort(problems.lengths)
    beyond = max(1, count // 100)
    if count <= beyond:
        return ()
    usual, longest = lengths[-beyond - 1], lengths[-1]
    if longest < _LONG or longest <= 4 * usual:
        return ()
    return (
        f"{problems.source.place(int(problems.lengths.argmax()))}: the prompt has {longest} tokens, "
        f"and {count - beyond} of {count} prompts have at most {usual}; every prompt is padded to "
        "the longest one, which costs time and memory: shorten it, or take it out of the data",
    )


_LONG = 64
"""Tokens of a prompt below which padding costs next to nothing."""


def _room(found: int, limit: int) -> str:
    """What was expected of a prompt that has no token, or too many."""
    if not found:
        return "expected at least 1"
    return (
        f"expected at most {limit}, the policy's context less rollouts.max_tokens: lower "
        "--rollouts.max-tokens, take a policy with a longer context, or shorten the prompt"
    )


def _text_of(example: dict[str, Any], source: data.Source, index: int) -> bytes:
    """All that an example holds; the workers of a reward are sent the same text."""
    try:
        return codec.dumps(example).encode("utf-8", "surrogatepass")
    except ValueError as error:
        raise ValueError(f"{source.place(index)}: {error}") from None
