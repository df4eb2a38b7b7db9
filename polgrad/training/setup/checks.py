"""Checks of a run's settings against their ranges, the algorithm, the policy and the data."""

import importlib.util
import sys
from typing import Any

from polgrad import _ranges, policies
from polgrad.contract import Algorithm
from polgrad.data import sources
from polgrad.training.config import Small, TrainConfig
from polgrad.training.setup.parts import Parts
from polgrad.training.setup.problems import Texts


def check_settings(config: TrainConfig) -> None:
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


def check_columns(config: TrainConfig, algorithm: Algorithm, train: Texts) -> None:
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


def check_sizes(config: TrainConfig, algorithm: Algorithm) -> None:
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


def check_rounded(config: TrainConfig, settings: Any) -> None:
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


def check_attention(config: TrainConfig, network: policies.Network, mesh) -> None:
    """A kernel by name that cannot run is refused here, not when the first program is traced."""
    update, length = config.update, network.max_length
    platform = mesh.devices.flat[0].platform
    try:
        network.attention_kernel(update.attention, update.dtype, length, platform=platform)
    except ValueError as error:
        raise ValueError(f"update.{error}") from None


def check_completions(parts: Parts, texts: Texts, bounded: bool) -> None:
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
