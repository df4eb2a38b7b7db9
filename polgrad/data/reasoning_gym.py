"""A TFDS builder over the procedural tasks of reasoning-gym: array_record, no TensorFlow."""

import contextlib
import dataclasses
import hashlib
import io
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import reasoning_gym
import tensorflow_datasets as tfds
from absl import logging

from polgrad._outside import reading
from polgrad.data import codec, sources

FORMAT = "1.0.1"  # of the files: a change of what they hold changes it


@dataclasses.dataclass(kw_only=True)
class TaskConfig(tfds.core.BuilderConfig):
    """Everything that decides the examples; `name` is a digest of the rest.

    Args:
        task: a task of reasoning-gym.
        parameters: JSON of the task's own parameters.
        split: "train", "test" or "all".
        size: number of examples.
        seed: non-negative int.
        held_out: share of the prompts that makes up "test", in [0, 1].
        distinct: keep each prompt once; "test" always does.
        prompt_pattern: see `sources.prompt_formatter`.
        prompt_template: see `sources.prompt_formatter`.
    """

    name: str = ""
    task: str = ""
    parameters: str = "{}"
    split: str = "train"
    size: int = 0
    seed: int = 0
    held_out: float = 0.1
    distinct: bool = False
    prompt_pattern: str | None = None
    prompt_template: str = "{prompt}"

    def __post_init__(self):
        content = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(TaskConfig)
            if field.name not in {base.name for base in dataclasses.fields(tfds.core.BuilderConfig)}
        }
        # A generator may change with the library, and then so must the directory.
        content["versions"] = [FORMAT, reasoning_gym.__version__]
        text = json.dumps(content, sort_keys=True)
        digest = hashlib.blake2b(text.encode(), digest_size=10).hexdigest()
        self.name = f"{self.task}-{self.split}-{digest}"
        self.description = text


def stream_seed(seed: int, split: str) -> int:
    """The seed that a split's problems are generated from.

    reasoning-gym draws problem `i` from `Random(seed + i)`, so seeds 0 and 1 share all but one of
    their problems; a digest sets the streams apart.

    Args:
        seed: non-negative int.
        split: the split's name.

    Returns:
        An int in [0, 2^31).
    """
    digest = hashlib.blake2b(f"{seed}/{split}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 33


class ReasoningGym(tfds.core.GeneratorBasedBuilder):
    """Problems of one reasoning-gym task as `prompt`, `answer`, `metadata` (JSON) and `index`."""

    VERSION = tfds.core.Version(FORMAT)
    RELEASE_NOTES = {FORMAT: "prompt, answer, metadata, index; answers to open problems"}
    # Nothing is downloaded, so there are no checksums; looking for them beside this file would
    # need the importlib_resources backport, which TFDS does not install on these Pythons.
    url_infos = None

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.builder_config.description,
            features=tfds.features.FeaturesDict(
                {
                    "prompt": tfds.features.Text(),
                    "answer": tfds.features.Text(),
                    "metadata": tfds.features.Text(),
                    "index": tfds.features.Scalar(dtype=np.int64),
                }
            ),
            disable_shuffling=True,  # index i of the source is problem i
        )

    def _split_generators(self, dl_manager) -> dict[str, Iterator]:
        del dl_manager
        return {self.builder_config.split: self._generate_examples()}

    def _generate_examples(self) -> Iterator[tuple[int, dict[str, Any]]]:
        for index, (prompt, entry) in enumerate(generate(self.builder_config)):
            yield (
                index,
                {
                    "prompt": prompt,
                    "answer": known_answer(self.builder_config.task, entry),
                    "metadata": codec.dumps(entry),
                    "index": index,
                },
            )


def generate(config: TaskConfig) -> Iterator[tuple[str, dict[str, Any]]]:
    """The problems of a split, in order.

    Problems of the task's stream are kept when their prompt belongs to the split; "test", and a
    config that says so, keeps each prompt once, so that an accuracy counts distinct problems.

    Args:
        config: what to generate.

    Yields:
        The prompt, and the task's entry (`question`, `answer`, `metadata`).

    Raises:
        ValueError: the task's space does not hold enough problems.
    """
    formatter = sources.prompt_formatter(config.prompt_pattern, config.prompt_template)
    share = {"train": 1 - config.held_out, "test": config.held_out, "all": 1.0}[config.split]
    candidates = 2000 + int(8 * config.size / share)
    dataset = reasoning_gym.create_dataset(
        config.task,
        size=candidates,
        seed=stream_seed(config.seed, config.split),
        **json.loads(config.parameters),
    )
    distinct = config.distinct or config.split == "test"
    seen: set[str] = set()
    found = 0
    for candidate in range(candidates):
        if found == config.size:
            return
        entry = dataset[candidate]
        question, prompt = formatter(entry["question"])
        if question in seen or not sources.in_split(question, config.split, config.held_out):
            continue
        if distinct:
            seen.add(question)
        found += 1
        yield prompt, entry
    if found < config.size:
        raise sources.TooFew(
            f"task {config.task!r} with parameters {config.parameters} gave {found} "
            f"{'distinct ' if distinct else ''}problems for split {config.split!r} "
            f"in {candidates} draws, fewer than the {config.size} asked for; widen the parameters, "
            f"change held_out={config.held_out}, or ask for at most {found}",
            found,
        )


# Tasks with many right answers keep none as theirs; some keep an example.
_EXAMPLES = {
    "propositional_logic": "example_answer",
    "rubiks_cube": "example_correct_answer",
}


def known_answer(task: str, entry: Mapping[str, Any]) -> str:
    """A right answer to a problem: a demonstration, and the check of the scorer at the start.

    Args:
        task: the task's name.
        entry: the task's record of the problem.

    Returns:
        The task's own answer, or one of many where it keeps none; "" for `rush_hour` alone, whose
        shortest solutions take a search.
    """
    if entry["answer"] is not None:
        return entry["answer"]
    metadata = entry["metadata"]
    if task in _EXAMPLES:
        return metadata[_EXAMPLES[task]]
    if task == "graph_color":
        return json.dumps(metadata["possible_answer"])
    if task == "boxnet":
        return json.dumps(_boxes_to_targets(metadata["initial_state"]))
    return ""


def _boxes_to_targets(state: Mapping[str, list[str]]) -> list[dict[str, str]]:
    """A plan for `boxnet`: each box goes along its row, then along its column, to its target."""
    place = {
        thing: tuple(map(float, square.split("_"))) for square in state for thing in state[square]
    }
    plan = []
    for box in (thing for thing in place if thing.startswith("box_")):
        target = box.replace("box_", "target_")
        here, end = list(place[box]), place[target]
        for axis in (1, 0):
            while here[axis] != end[axis]:
                agent = f"Agent[{here[0]}, {here[1]}]"
                here[axis] += 1.0 if end[axis] > here[axis] else -1.0
                plan.append({agent: f"move({box}, square[{here[0]}, {here[1]}])"})
        plan.append({f"Agent[{end[0]}, {end[1]}]": f"move({box}, {target})"})
    return plan


@contextlib.contextmanager
def _quiet():
    # TFDS prints its plan, a warning and two progress bars for files that take a second.
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.set_verbosity(verbosity)


class TaskSource:
    """Examples of a built task.

    An example's `metadata` has `task`, `parameters` and `entry`, the task's own record, which its
    scorer needs.
    """

    def __init__(self, records, *, task: str, parameters: Mapping[str, Any], path: Path):
        self.task = task
        self.parameters = dict(parameters)
        self._records = records
        self._path = path

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        size = len(self)
        if not -size <= index < size:
            raise IndexError(f"index {index} is outside a source of {size} examples")
        with _reading(self._path):
            record = self._records[int(index) % size]
            return {
                "prompt": record["prompt"].decode(),
                "answer": record["answer"].decode(),
                "index": int(record["index"]),
                "metadata": {
                    "task": self.task,
                    "parameters": dict(self.parameters),
                    "entry": codec.loads(record["metadata"]),
                },
            }

    def place(self, index: int) -> str:
        """Where an example comes from.

        Args:
            index: of the example in this source.

        Returns:
            "problem 3 of chain_sum", counted from 0.
        """
        return f"problem {range(len(self))[index]} of {self.task}"


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Names the built files where they cannot be read, and says what helps."""
    try:
        with reading(path):
            yield
    except ValueError as error:
        raise ValueError(f"{error}; remove this directory, and it is built again") from None


def open_task(config: TaskConfig, data_dir: str | os.PathLike) -> TaskSource:
    """Build a task's files where they are missing, and open them.

    The files are written in a directory of their own and renamed into place at the end, so that
    a killed or concurrent build leaves nothing half-written under the final name.

    Args:
        config: what to generate.
        data_dir: where built tasks are kept.

    Returns:
        The source.

    Raises:
        ValueError: as `generate`, or `data_dir` cannot be written.
    """
    root = Path(data_dir).expanduser()
    final = root / config.name
    if not final.is_dir():
        _build(config, root, final)
    with _reading(final), _quiet():
        builder = ReasoningGym(data_dir=final, config=config, file_format="array_record")
        # What `tfds.data_source` does for a builder that it finds by name.
        records = builder.as_data_source(split=config.split)
        if len(records) != config.size:
            raise ValueError(f"holds {len(records)} problems, expected {config.size}")
    parameters = json.loads(config.parameters)
    return TaskSource(records, task=config.task, parameters=parameters, path=final)


def _build(config: TaskConfig, root: Path, final: Path) -> None:
    try:
        root.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{config.name}-", dir=root))
    except OSError as error:
        raise ValueError(f"data_dir {root} cannot be written: {error.strerror}") from None
    try:
        with _quiet():
            builder = ReasoningGym(data_dir=scratch, config=config, file_format="array_record")
            builder.download_and_prepare()
        try:
            scratch.rename(final)
        except OSError:
            if not final.is_dir():  # else another process was first, with the same content
                raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
