"""From settings to the parts of a run: problems, policy, algorithm, mesh. All checks are here.

Whatever is wrong with the settings raises a ValueError before anything is computed or written.
"""

import dataclasses
import hashlib
import importlib.util
import json
import os
import pathlib
import sys
import types
import zlib
from typing import Any, NamedTuple

import jax
import numpy as np

from polgrad import _names, _outside, _ranges, _user_files, algorithms, data, policies
from polgrad._versions import versions
from polgrad.contract import Algorithm, Context
from polgrad.data import codec, sources
from polgrad.data.sources import TooFew
from polgrad.policies.hub import exporting
from polgrad.rewards import compose, verifiers
from polgrad.rewards.compose import RewardSpec
from polgrad.rewards.pool import RewardFailure, RewardPool
from polgrad.rollouts import Sampling
from polgrad.training.config import Hosts, Rewards, Small, TrainConfig
from polgrad.training.runtime import hosts
from polgrad.training.runtime import mesh as mesh_lib
from polgrad.training.setup import abstract, defaults, footprint, identity, ownership

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


@dataclasses.dataclass(frozen=True)
class Parts:
    """What a run is made of, checked and ready."""

    config: TrainConfig
    policy: policies.Policy
    tokenizer: data.Tokenizer
    train: Problems
    test: Problems | None
    algorithm: Algorithm
    mesh: jax.sharding.Mesh
    processes: hosts.Processes
    reward_specs: tuple[RewardSpec, ...]
    task_specs: tuple[RewardSpec, ...]
    directory: pathlib.Path
    chosen: str | None = None
    """The settings that were filled in for the kind of policy, as a line for the user."""
    stored: identity.Stored | None = None
    """The run that goes on; None where it begins."""
    replaced: identity.Stored | None = None
    """A run in the directory that holds nothing, and whose place this one takes."""
    fingerprints: dict[str, str] = dataclasses.field(default_factory=dict)
    """Of what the run reads from outside."""
    changes: tuple[identity.Change, ...] = ()
    """What is not as it was before; all of it may be so."""

    @property
    def network(self) -> policies.Network:
        """The policy's network."""
        return self.policy.network

    def sampling(self, temperature: float | None = None) -> Sampling:
        """Sampling settings of the run, at another temperature if one is given."""
        rollouts = self.config.rollouts
        return Sampling(
            max_tokens=rollouts.max_tokens,
            temperature=rollouts.temperature if temperature is None else temperature,
            stop_ids=tuple(self.tokenizer.stop_ids),
        )


def build(config: TrainConfig) -> Parts:
    """Checks settings, joins the run's other processes, and builds what the settings name.

    Raises:
      ValueError: for any setting that cannot be used, naming it, its value and what was expected.
      HostError: if another process is missing, failed, or builds something else.
    """
    if config.resume_from is not None:
        config = dataclasses.replace(config, resume=True)
    _check(config)
    processes = hosts.join(config.hosts)
    made: list[Parts] = []
    # The first process knows the run that goes on: the others' directories may be their own.
    (run, *_) = processes.gather(
        "the run that goes on", lambda: ownership.stored(config) if processes.first else None
    )
    run = run and identity.Stored(*run)

    def work():
        made.append(_build(config, processes, run))
        return _fingerprint(made[0], config)

    processes.agree("the run", work)
    if config.saving.checkpoints is None:
        hosts.check_shared(processes, made[0].directory)
    return made[0]


def _fingerprint(parts: "Parts", given: TrainConfig) -> dict[str, Any]:
    """What must be the same on every host; which of them it is tells the message."""
    # Files may lie elsewhere on each host: what is in them is compared.
    names = ("task", "policy", "algorithm", "rewards", "saving")
    same = dataclasses.replace(
        parts.config, hosts=Hosts(), out="", **{name: getattr(given, name) for name in names}
    )
    found = versions()
    # Corrections of Python itself change no numbers, and machines get them at different times.
    found["python"] = ".".join(found["python"].split(".")[:2])
    return {
        "versions": found,
        "settings": zlib.crc32(json.dumps(identity.plain(same)).encode()),
        "problems": [zlib.crc32(p.tokens.tobytes()) for p in (parts.train, parts.test) if p],
    }


def _build(config: TrainConfig, processes: hosts.Processes, run: identity.Stored | None) -> Parts:
    mesh = mesh_lib.make(mesh_lib.parse(config.mesh) if config.mesh else None)
    if config.update.compute_dtype != "float32" and mesh.devices.flat[0].platform == "cpu":
        raise ValueError(
            f"update.compute_dtype is {config.update.compute_dtype!r}; expected float32 on a CPU, where "
            "XLA does not run products of bfloat16 that are summed in float32"
        )
    replaced = _check_free(config, run)
    config = identity.filled(identity.absolute(config), run)
    ownership.check_room(config)
    footprint.check_small(config, footprint.memory(mesh))
    # Left out, it is the length of the longest completion.
    bounded = config.rollouts.max_tokens is not None
    settings = algorithm_settings(config)
    _check_rounded(config, settings)
    train, test = _sources(config)
    # What the algorithm reads decides how the policy is loaded, whatever the sizes.
    first = _algorithm(config, settings, train)
    # What takes longer is checked later: a wrong name must not wait for the policy to be loaded.
    specs, task = _reward_specs(config, first, train)
    if first.samples:
        _check_rewards(config.rewards, specs)
    own, held = (Texts(x, first.collect.columns) if x else None for x in (train, test))
    _check_columns(config, first, own)
    alphabet = _alphabet(config, own, held, run) if config.policy == "small" else None
    config, policy, tokenizer, chosen = _policy(config, first, own, held, alphabet)
    algorithm = _algorithm(config, settings, train)
    _check_sizes(config, algorithm)
    footprint.check_run(config, policy.network, mesh, samples=algorithm.samples)
    abstract.check(
        algorithm,
        _context(config, train),
        config.algorithm,
        preferences=config.rewards.preference is not None,
    )
    _check_attention(config, policy.network, mesh)
    limit = policy.network.max_length - config.rollouts.max_tokens
    problems = _tokenized(own, tokenizer, limit)
    algorithm = algorithm._replace(warnings=(*algorithm.warnings, *_outlier(problems)))
    parts = Parts(
        config=dataclasses.replace(config, settings=settings),
        policy=policy,
        tokenizer=tokenizer,
        train=problems,
        test=_tokenized(held, tokenizer, limit) if held and task else None,
        algorithm=algorithm,
        mesh=mesh,
        processes=processes,
        reward_specs=specs,
        task_specs=task,
        directory=pathlib.Path(config.out),
        chosen=chosen,
        stored=run,
        replaced=replaced,
    )
    _check_completions(parts, own, bounded)
    parts = _identified(parts)
    ownership.make_directories(config)
    return parts


OTHERS = {
    "experiment.json": "an experiment's run",
    "sweep.json": "a sweep",
    exporting.MARK: "an exported policy",
}
"""Files by which a directory is known that something else than `train` has written."""


def _check_free(config: TrainConfig, run: identity.Stored | None) -> identity.Stored | None:
    """A directory is refused before the policy is loaded where a run is in it that does not go on.

    Returns:
      A run that is in it and holds nothing, as one that failed before its first saved step.
    """
    directory = pathlib.Path(config.out)
    for file, kind in OTHERS.items():
        if (directory / file).exists():
            raise ValueError(f"out {config.out!r} holds {kind} ({file}); give another --out")
    replaced = None if config.resume else identity.stored(directory)
    if replaced is not None and not ownership.holds_nothing(replaced):
        raise ValueError(f"out {config.out!r} holds a run already; give --resume or another --out")
    if config.allow_changed and not config.resume:
        raise ValueError(
            f"allow_changed is {', '.join(config.allow_changed)}; expected only with --resume, whose "
            "settings it lets differ"
        )
    if run is None and config.resume_from is not None:
        raise ValueError(f"resume_from is {config.resume_from}, but {config.out!r} holds no run")
    _check_task_is_kept(config, directory)
    if run is None and replaced is None and (found := _of_others(directory)):
        raise ValueError(
            f"out {config.out!r} holds {found}, which this run has not written and would write to; "
            "give another --out"
        )
    return replaced


WRITTEN = (
    "metrics.jsonl",
    "samples.jsonl",
    "scores*.jsonl",
    identity.CHANGES,
    "before.json",
    "policy.json",
    "reward.png",
    "tensorboard/*",
    "checkpoints/*",
)
"""What a run writes once its `config.json` is there, as patterns below its directory."""


def _of_others(directory: pathlib.Path) -> str | None:
    """The first file with a name that a run writes, where no run has written its settings.

    A start that ended before that has left `identity.json`, and with it the mark of its place of
    checkpoints; the corrected command begins there.
    """
    left = {ownership.OWNER, ".lock"} if (directory / identity.IDENTITY).exists() else {".lock"}
    for pattern in WRITTEN:
        for path in sorted(directory.glob(pattern)):
            if path.name not in left:
                return os.path.relpath(path, directory)
    return None


def _check_task_is_kept(config: TrainConfig, directory: pathlib.Path) -> None:
    """The file of problems is none that the run itself writes."""
    if not identity.is_file(config.task):
        return
    task, here = (pathlib.Path(p).expanduser().resolve() for p in (config.task, directory))
    # With a slash before it, a pattern is compared with the whole path and not with its end.
    below = pathlib.PurePath("/", task.relative_to(here)) if task.is_relative_to(here) else None
    if below is not None and any(below.match(f"/{pattern}") for pattern in WRITTEN):
        raise ValueError(
            f"task {config.task!r} is a file that the run writes to (out {config.out!r}); give "
            "another --out, or the task under another name"
        )


def _identified(parts: Parts) -> Parts:
    """The same with what tells this run from others, compared with the run that goes on."""
    targets = [spec.target for spec in parts.reward_specs]
    prints = {
        "train_problems": parts.train.digest,
        "train_prompts": _tokens_digest(parts.train),
        "reward_source": identity.of_rewards(targets if parts.algorithm.samples else ()),
        "algorithm_source": identity.of_algorithm(parts.config.settings),
        **identity.of_policy(parts.policy, parts.tokenizer),
    }
    if parts.test is not None:
        prints |= {
            "test_problems": parts.test.digest,
            "test_prompts": _tokens_digest(parts.test),
        }
    found: list[identity.Change] = []
    # The first process knows the run; what it raises ends the others, too.
    if parts.stored is not None and parts.processes.first:
        found = identity.changes(parts.stored, parts.config, prints)
        ownership.check_changes(parts, found)
    return dataclasses.replace(parts, fingerprints=prints, changes=tuple(found))


def _tokens_digest(problems: Problems) -> str:
    return identity.fingerprint(problems.lengths.tobytes(), problems.tokens.tobytes())


def _check_completions(parts: Parts, texts: Texts, bounded: bool) -> None:
    """Every completion that a step may read ends within `rollouts.max_tokens`."""
    config, rows = parts.config, texts.rows
    if bounded:
        _check_lengths(parts, texts, range(len(rows)), parts.algorithm.collect.columns, "")
    if not config.warm_start.steps:
        return
    if not rows[0].get("answer"):
        raise ValueError(
            f"warm_start.steps is {config.warm_start.steps}, expected 0: task {config.task} has no "
            "answers to learn from"
        )
    count = min(config.warm_start.demonstrations, len(rows))
    advice = ", or lower --warm-start.demonstrations"
    _check_lengths(parts, texts, range(count), ("answer",), advice)


def _check_lengths(
    parts: Parts, texts: Texts, indices: range, fields: tuple[str, ...], advice: str
) -> None:
    limit = parts.config.rollouts.max_tokens
    for index in indices:
        for field in fields:
            size = texts.size(index, field, parts.tokenizer)
            if size > limit:
                raise ValueError(
                    f"{texts.source.place(index)}: {field!r} has {size} tokens with its end, "
                    f"more than rollouts.max_tokens {limit}: {texts.rows[index][field][:60]!r}; "
                    f"raise --rollouts.max-tokens{advice}"
                )


def _algorithm(config: TrainConfig, settings: Any, train: data.Source) -> Algorithm:
    """The algorithm for a run of this size; a completion's length may still be open."""
    return build_algorithm(config.algorithm, settings, _context(config, train))


def build_algorithm(name: str, settings: Any, context: Context) -> Algorithm:
    """The algorithm of some settings, which may be a class in somebody's own file.

    Args:
      name: as `find_algorithm` takes it.
      settings: an instance of what it found, or an `Algorithm`.
      context: the sizes of the run.

    Returns:
      What `settings.build` gives.

    Raises:
      ValueError: settings that do not go with the sizes; in somebody's own file whatever `build`
        raises, with its file and line.
    """
    if isinstance(settings, Algorithm):
        return settings
    place = name.rpartition(":")[0]
    if not place.endswith(".py"):
        place = getattr(sys.modules.get(place), "__file__", None) or place
    try:
        if not place:
            return settings.build(context)
        with _outside.calling(place, f"algorithm {name!r}"):
            found = _built(name, settings, context)
    except NotImplementedError as error:
        raise ValueError(f"algorithm {name}: {error}") from None
    if not isinstance(found, Algorithm):
        raise ValueError(
            f"algorithm {name!r}: build(context) returned {type(found).__name__}; expected an "
            f"Algorithm{' (does its last line say return?)' if found is None else ''}"
        )
    return found


def _built(name: str, settings: Any, context: Context) -> Any:
    """What `build` returns; polgrad's own traces a surrogate to see what it does."""
    try:
        return settings.build(context)
    except _outside.OutsideError as error:
        raise _outside.OutsideError(f"algorithm {name!r}: {error}") from error
    except abstract.TRACED as error:
        told = ValueError(abstract.reason(error))
        raise told.with_traceback(error.__traceback__) from error


def _context(config: TrainConfig, train: data.Source) -> Context:
    return Context(
        group_size=config.rollouts.group_size,
        # Before it is chosen, a completion may have any length.
        max_tokens=config.rollouts.max_tokens or 2**30,
        num_prompts=len(train),
        on_policy=config.on_policy,
    )


def _check(config: TrainConfig) -> None:
    """Every setting has its type and lies in its range, and what it names is installed."""
    _ranges.check(config)
    if config.policy == "small":
        _check_heads(config.small)
    place, package = config.saving.checkpoints or "", None
    if "://" in place:
        packages = {"gs": "gcsfs", "s3": "s3fs", "az": "adlfs", "hf": "huggingface_hub"}
        package = packages.get(place.partition("://")[0])
        if package is None:
            raise ValueError(
                f"saving.checkpoints is {place!r}; expected a directory, or an address that begins "
                f"with one of {', '.join(f'{scheme}://' for scheme in packages)}"
            )
    # Orbax opens addresses of Google's store with TensorFlow too.
    other = "tensorflow" if package == "gcsfs" else None
    _check_installed("saving.checkpoints", place, package, other)
    _check_installed("saving.wandb", config.saving.wandb, "wandb")


def _check_heads(shape: Small) -> None:
    """The heads of the small policy share its width, and the rotary halves share that of a head."""
    unit = 2 * shape.heads
    if shape.width % unit:
        raise ValueError(
            f"small.width {shape.width} / small.heads {shape.heads} leaves "
            f"{shape.width / shape.heads:.4g} numbers a head; expected an even whole number, such as "
            f"with --small.width {-(-shape.width // unit) * unit}"
        )


def _check_installed(
    name: str, value: str | None, package: str | None, or_else: str | None = None
) -> None:
    """A setting that needs a package which is not there is refused before anything is built."""
    if value is None or package is None or package in sys.modules:
        return
    if or_else and importlib.util.find_spec(or_else) is not None:
        return
    if importlib.util.find_spec(package) is None:
        raise ValueError(
            f"{name} is {value!r}, which needs the package {package}; run pip install {package}"
        )


VERIFIERS = "polgrad.rewards.verifiers"


def _check_columns(config: TrainConfig, algorithm: Algorithm, train: Texts) -> None:
    """The file holds what the algorithm reads, and no completion in it is empty."""
    fields = algorithm.collect.columns
    for field in fields:
        if all(field not in row for row in train.rows):
            wanted = " and ".join(map(repr, ("prompt", *fields)))
            raise ValueError(
                f"algorithm {config.algorithm} reads {wanted}; task {config.task} lacks {field!r} "
                f"(it has: {', '.join(sorted(train.rows[0]))})"
            )
    for index, row in enumerate(train.rows):
        for field in fields:
            try:
                sources.check_text(field, row.get(field))
            except ValueError as error:
                raise ValueError(f"{train.source.place(index)}: {error}") from None
            if not row[field].strip():
                raise ValueError(
                    f"{train.source.place(index)}: field {field!r} is empty, expected text "
                    f"(prompt {row['prompt'][:60]!r})"
                )


def _check_sizes(config: TrainConfig, algorithm: Algorithm) -> None:
    """The parts of a batch divide it, and samples are reused only where a ratio corrects."""
    rollouts, update = config.rollouts, config.update
    rows = algorithm.rows(rollouts.prompts, rollouts.group_size)
    samples = rows != rollouts.prompts
    parts = update.mini_batches * update.micro_batches
    if rows % parts:
        raise ValueError(
            f"update.mini_batches x update.micro_batches is {parts}, which does not divide the "
            f"{rows} rows of a step (rollouts.prompts{' x rollouts.group_size' if samples else ''})"
        )
    updates = update.epochs * update.mini_batches
    if not algorithm.reuse and updates > 1:
        raise ValueError(
            f"update.epochs x update.mini_batches is {updates}, expected 1, because algorithm "
            f"{config.algorithm} has no importance ratio to reuse samples with"
        )


def _check_rounded(config: TrainConfig, settings: Any) -> None:
    """Samples of rounded weights are another policy's, for which something must correct."""
    if config.rollouts.weights == "full" or not config.on_policy:
        return
    if not getattr(settings, "sampler_correction", None):
        has = hasattr(settings, "sampler_correction")
        flag = "--settings.sampler-correction truncated_weights"
        hint = f"give {flag}" if has else "it has no sampler_correction"
        raise ValueError(
            f"rollouts.weights is {config.rollouts.weights!r}, but algorithm {config.algorithm} would "
            f"take the samples for the trained policy's own: {hint}"
        )


def _check_attention(config: TrainConfig, network: policies.Network, mesh) -> None:
    """A kernel by name that cannot run is refused here, not when the first program is traced."""
    update, length = config.update, network.max_length
    platform = mesh.devices.flat[0].platform
    try:
        network.attention_kernel(update.attention, update.dtype, length, platform=platform)
    except ValueError as error:
        raise ValueError(f"update.{error}") from None


def algorithm_settings(config: TrainConfig) -> Any:
    """The algorithm's settings: those given, or the defaults of the one that is named."""
    if config.settings is not None:
        return config.settings
    found = find_algorithm(config.algorithm)
    return found() if isinstance(found, type) else found


def find_algorithm(name: str) -> Any:
    """The settings class, or the `Algorithm`, of a name, `file.py:NAME` or `module:NAME`.

    Raises:
      ValueError: there is none of that name, the file fails, or it holds something else; one line
        with the file.
    """
    if ":" not in name:
        return algorithms.find(name)
    place, _, attribute = name.rpartition(":")
    try:
        module = _user_files.module(place, f"algorithm {name!r}")
    except _outside.OutsideError as error:
        hint = "; write @dataclasses.dataclass(frozen=True) above the class"
        thawed = "cannot inherit non-frozen dataclass" in str(error)
        raise _outside.OutsideError(f"{error}{hint if thawed else ''}") from error
    with _outside.calling(place, f"algorithm {name!r}"):
        found = getattr(module, attribute, None)
        if isinstance(found, Algorithm):
            return found
        if dataclasses.is_dataclass(found) and hasattr(found, "build"):
            if isinstance(found, type):
                found()  # its defaults are shown, and taken where no setting is given
            return found
    raise ValueError(
        f"algorithm {name!r} is {_what_came(module, attribute, found)}; expected an Algorithm, or a "
        f"dataclass with build(context): {_how_to_mend(found)}"
    )


def _what_came(module: types.ModuleType, attribute: str, found: Any) -> str:
    """What stands in somebody's module where an algorithm was expected."""
    if found is None:
        close = _names.nearest(attribute, vars(module))
        return f"missing{f' (did you mean {close[0]}?)' if close else ''}"
    if isinstance(found, type):
        return f"the class {found.__name__}"
    if callable(found):
        return f"the function {getattr(found, '__name__', type(found).__name__)}"
    return f"of type {type(found).__name__}"


def _how_to_mend(found: Any) -> str:
    """What to write, in a line, so that it is an algorithm."""
    if isinstance(found, type) and not dataclasses.is_dataclass(found) and hasattr(found, "build"):
        return "write @dataclasses.dataclass(frozen=True) above the class"
    if isinstance(found, type) and dataclasses.is_dataclass(found):
        return "write its method def build(self, context), which returns an Algorithm"
    return "derive a dataclass from one of polgrad.algorithms, such as class Mine(algorithms.GRPO)"


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
    is_file = identity.is_file(config.task)
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


def _sources(config: TrainConfig) -> tuple[data.Source, data.Source | None]:
    train = load_source(config, "train")
    if config.evaluation.problems == 0 or config.data.held_out == 0:
        return train, None
    return train, _held_out(config, train)


def _held_out(config: TrainConfig, train: data.Source) -> data.Source:
    """The held-out problems; of a file, which has been read for those of training, too."""
    return (
        train.with_split("test") if identity.is_file(config.task) else load_source(config, "test")
    )


def _policy(
    config: TrainConfig,
    algorithm: Algorithm,
    train: Texts,
    test: Texts | None,
    alphabet: str | None,
) -> tuple[TrainConfig, policies.Policy, data.Tokenizer, str | None]:
    """The policy with its tokenizer, and the settings with what was left out filled in."""
    value_head = algorithm.needs.values
    if config.policy == "small":
        texts = [texts for texts in (train, test) if texts]
        return _small_policy(config, algorithm, texts, value_head, alphabet)
    policy = policies.load(config.policy, value_head=value_head)
    if policy.text is None:
        raise ValueError(f"policy {config.policy} has no tokenizer (tokenizer.json)")
    policy = policy._replace(text=_text_assets(config, policy.text))
    tokenizer = data.from_assets(policy.text, rows=policy.network.config.vocab_size)
    chosen = defaults.choose(
        config,
        algorithm,
        parameters=sum(x.size for x in jax.tree.leaves(policy.params)),
        context=policy.network.max_length,
        longest=_longest_completion(config, algorithm, train, tokenizer),
    )
    return chosen.config, policy, tokenizer, chosen.line


def _longest_completion(
    config: TrainConfig, algorithm: Algorithm, train: Texts, tokenizer: data.Tokenizer
) -> int | None:
    """Tokens of the longest completion in the data; None for algorithms that sample their own."""
    fields = algorithm.collect.columns
    if not fields or config.rollouts.max_tokens is not None:
        return None
    return max(train.size(i, f, tokenizer) for i in range(len(train.rows)) for f in fields)


def _alphabet(
    config: TrainConfig, train: Texts, test: Texts | None, run: identity.Stored | None
) -> str:
    """The characters of policy small: those of the problems, the held-out ones among them.

    A run may stop to evaluate when it goes on, or begin to; it keeps the alphabet that it began
    with, which its record tells.
    """
    found = _characters([texts for texts in (train, test) if texts])
    known = run.record.get("fingerprints", {}).get("tokenizer") if run else None
    if not known or identity.of_alphabet(found) == known or config.data.held_out == 0:
        return found
    others = [train] if test else [train, Texts(_held_out(config, train.source), train.columns)]
    other = _characters(others)
    return other if identity.of_alphabet(other) == known else found


def _characters(each: list[Texts]) -> str:
    alphabet = set()
    for row in (row for texts in each for row in texts.rows):
        alphabet.update(*row.values())
    return "".join(sorted(alphabet))


def _small_policy(
    config: TrainConfig,
    algorithm: Algorithm,
    each: list[Texts],
    value_head: bool,
    alphabet: str,
) -> tuple[TrainConfig, policies.Policy, data.Tokenizer, str | None]:
    """A transformer from nothing, whose tokens are the characters of the data."""
    if config.rollouts.stop:
        raise ValueError(
            f"rollouts.stop is {config.rollouts.stop}; expected none, because policy small is "
            "trained to end with its own end token"
        )
    longest = max(len(row["prompt"]) for texts in each for row in texts.rows)
    tokenizer = data.CharacterTokenizer(alphabet)

    def network(max_tokens):
        shape = config.small
        return policies.TransformerNetwork(
            policies.TransformerConfig(
                vocab_size=tokenizer.vocab_size,
                width=shape.width,
                layers=shape.layers,
                heads=shape.heads,
                mlp_width=shape.mlp,
                unroll=shape.layers,
                max_length=longest + max_tokens,
                value_head=value_head,
            )
        )

    chosen = defaults.choose(
        config,
        algorithm,
        parameters=0,
        context=0,
        longest=_longest_completion(config, algorithm, each[0], tokenizer),
    )
    network = network(chosen.config.rollouts.max_tokens)
    params = network.init(jax.random.fold_in(jax.random.key(config.seed), 0))
    return chosen.config, policies.Policy(network, params, None), tokenizer, chosen.line


def _text_assets(config: TrainConfig, text: policies.TextAssets) -> policies.TextAssets:
    """The policy's text conventions with the run's changes; checkpoints and exports keep them."""
    if not config.data.chat_template:
        text = text._replace(chat_template=None)
    tokenizer = data.from_assets(text)
    stops = [i for c in config.rollouts.stop for i in tokenizer.ids_holding(c)]
    # In order and once each.
    return text._replace(stop_ids=tuple(dict.fromkeys((*tokenizer.stop_ids, *stops))))


def tokenize(source: data.Source, tokenizer: data.Tokenizer, limit: int) -> Problems:
    """All prompts of a source as token ids of one width.

    Raises:
      ValueError: if a prompt has no token, or leaves no room for the completion.
    """
    return _tokenized(Texts(source), tokenizer, limit)


def _tokenized(texts: Texts, tokenizer: data.Tokenizer, limit: int) -> Problems:
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


def _outlier(problems: Problems) -> tuple[str, ...]:
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


def task_specs(config: TrainConfig, source: data.Source) -> tuple[RewardSpec, ...]:
    """What scores held-out problems.

    A task of reasoning-gym has a scorer of its own. The answers of a file are compared by the one
    reward that compares answers, where the run has one, and else exactly.
    """
    if "answer" not in source[0]:
        return ()
    if not identity.is_file(config.task):
        return (RewardSpec(target=f"{VERIFIERS}:reasoning_gym_score"),)
    compared = [f"{VERIFIERS}:{name}" for name in verifiers.READS_ANSWERS]
    chosen = [target for target in config.rewards.functions if target in compared]
    return (RewardSpec(target=chosen[0] if len(chosen) == 1 else f"{VERIFIERS}:exact_match"),)


def _reward_specs(
    config: TrainConfig, algorithm: Algorithm, train: data.Source
) -> tuple[tuple[RewardSpec, ...], tuple[RewardSpec, ...]]:
    """What scores the samples of training, and what scores held-out problems."""
    task = task_specs(config, train)
    specs = tuple(RewardSpec(target=f) for f in config.rewards.functions) or task
    if config.rewards.preference:
        specs = (RewardSpec(target=config.rewards.preference),)
    if algorithm.samples and not specs:
        pairs = ", or take --algorithm dpo, which learns from pairs" if "chosen" in train[0] else ""
        raise ValueError(
            f"task {config.task} has no answers to check against; give --rewards.functions{pairs}"
        )
    return specs, task


def _check_rewards(settings: Rewards, specs: tuple[RewardSpec, ...]) -> None:
    """Every reward is there and can be called; people's own is imported in a process of its own."""
    theirs = []
    for spec in specs:
        if spec.target.partition(".")[0] == "polgrad":
            compose.resolve(spec.target)
        else:
            theirs.append(spec)
    if not theirs:
        return
    try:
        with RewardPool(theirs, **worker_settings(settings)) as pool:
            pool.wait_ready()
    except RewardFailure as error:
        raise ValueError(str(error)) from None


def worker_settings(settings: Rewards) -> dict[str, Any]:
    """What the settings of a run say of a reward's process, as keywords of `RewardPool`."""
    return {
        "timeout": settings.timeout,
        "memory": None if settings.memory is None else settings.memory * 2**20,
        "environment": settings.environment,
    }
