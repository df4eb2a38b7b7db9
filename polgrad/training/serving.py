"""Policies after training: loading a run's checkpoint, sampling from it, evaluating it."""

import dataclasses
import json
import os
import pathlib
import sys
import tempfile
from typing import Any

import jax
import numpy as np

from polgrad import _files, _outside, data, policies, randomness
from polgrad.policies import assets, configuration
from polgrad.policies.assets import missing_template
from polgrad.rewards.pool import RewardPool
from polgrad.rollouts import Sampling, generate, sampler
from polgrad.training import building, config, footprint, identity
from polgrad.training.checkpoints import place_of, restore_params, shape_difference, steps_in
from polgrad.training.evaluation import CHUNK, Accuracy, ProblemResult, evaluate
from polgrad.training.runtime import hosts
from polgrad.training.runtime import mesh as mesh_lib

POLICY_FILE = "policy.json"
PROBLEMS = 500
"""How many held-out problems are tried where nothing else is said."""


def save_description(directory: pathlib.Path, policy: policies.Policy, tokenizer: Any) -> None:
    """Writes what, with a checkpoint, makes a policy whole: its shape and its tokenizer."""
    description: dict[str, Any] = {"network": dataclasses.asdict(policy.network.config)}
    if isinstance(tokenizer, data.CharacterTokenizer):
        description["alphabet"] = tokenizer.alphabet
    else:
        description["text"] = policy.text._asdict()
    _files.write(directory / POLICY_FILE, json.dumps(description))


def load(
    name: str, *, step: int | None = None, remote: bool = False
) -> tuple[policies.Policy, data.Tokenizer]:
    """A policy with its tokenizer: a run's checkpoint, or whatever `policies.load` knows.

    Args:
      name: a run's directory, a Hugging Face directory, a `.gguf` file, or a known name.
      step: which checkpoint of a run; the newest when left out.
      remote: allow a run whose checkpoints lie at an address such as `gs://bucket/run`.

    Returns:
      `(policy, tokenizer)`.

    Raises:
      ValueError: if there is no such policy, checkpoint, or tokenizer; if a file of the run is
        damaged, with its name; or for checkpoints at an address unless `remote`.
    """
    directory = pathlib.Path(name).expanduser()
    if not (directory / POLICY_FILE).is_file():
        if _is_begun(directory):
            raise ValueError(f"policy {name}: this run holds no checkpoint; train it first")
        policy = policies.load(name)
        if policy.text is None:
            raise ValueError(f"policy {name} has no tokenizer (tokenizer.json)")
        return policy, data.from_assets(policy.text, rows=policy.network.config.vocab_size)
    path = directory / POLICY_FILE
    with _outside.reading(path):
        network, tokenizer, text = _described(_outside.read_json(path))
    params, _ = restore_params(directory, step, remote=remote)
    expected = jax.eval_shape(network.init, jax.random.key(0))
    if difference := shape_difference(params, expected):
        raise _outside.OutsideError(f"{path}: describes another network: {difference}")
    return policies.Policy(network, params, text), tokenizer


def _is_begun(directory: pathlib.Path) -> bool:
    """Whether a run has locked a directory and ended before it wrote its settings."""
    if (directory / identity.CONFIG).exists() or steps_in(place_of(directory, None)):
        return False
    return any((directory / name).is_file() for name in (".lock", identity.IDENTITY))


def _described(
    description: dict[str, Any],
) -> tuple[policies.Network, data.Tokenizer, policies.TextAssets]:
    """The network, tokenizer and text conventions that `save_description` wrote."""
    network = policies.TransformerNetwork(configuration.from_fields(description["network"]))
    if "alphabet" in description:
        tokenizer = data.CharacterTokenizer(description["alphabet"])
        return network, tokenizer, character_assets(tokenizer)
    text = assets.from_fields(description["text"])
    return network, data.from_assets(text, rows=network.config.vocab_size), text


def character_assets(tokenizer: data.CharacterTokenizer) -> policies.TextAssets:
    """A character tokenizer in the form of the hub, so that other libraries read an export."""
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers

    vocabulary = {"<pad>": tokenizer.pad_id, "<eos>": tokenizer.eos_id}
    vocabulary |= {c: tokenizer.encode(c)[0] for c in tokenizer.alphabet}
    hub = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    hub.pre_tokenizer = pre_tokenizers.Split(tokenizers.Regex(r"[\s\S]"), behavior="isolated")
    hub.decoder = decoders.Fuse()
    hub.add_special_tokens(["<pad>", "<eos>"])
    return policies.TextAssets(
        tokenizer_json=hub.to_str(),
        chat_template=None,
        bos_id=None,
        eos_id=tokenizer.eos_id,
        pad_id=tokenizer.pad_id,
        stop_ids=tokenizer.stop_ids,
        eos_token="<eos>",
        pad_token="<pad>",
    )


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
    _say_missing_template(name, policy)
    ids = tokenizer.prompt_ids(prompt)
    max_tokens = _room(f"prompt {prompt!r:.60}", len(ids), max_tokens, policy.network.max_length)
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


DEFAULT_TOKENS = 64
"""Longest completion where neither the user nor a run says one and the context has room."""


def _room(what: str, prompt: int, max_tokens: int | None, context: int) -> int:
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


def _say_missing_template(name: str, policy: policies.Policy) -> None:
    """A line where turns are known and a template is not; a run was told so when it began."""
    is_run = (pathlib.Path(name).expanduser() / POLICY_FILE).is_file()
    if not is_run and (note := missing_template(policy.text)):
        print(f"polgrad: {_outside.printable(note)}", file=sys.stderr)


def evaluate_policy(
    policy: str,
    *,
    step: int | None = None,
    remote: bool = False,
    task: str | None = None,
    parameters: tuple[str, ...] = (),
    held_out: float | None = None,
    problems: int | None = None,
    samples: int = 0,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    max_tokens: int | None = None,
    seed: int = 0,
    out: str | None = None,
) -> Accuracy:
    """Held-out accuracy of a policy on a task, or of a run on its own task.

    Args:
      policy: as for `load`.
      step: which checkpoint of a run; the newest when left out.
      remote: read checkpoints at an address that the run names.
      task: a reasoning-gym task, or a file, of which all rows are used; a run's own, with its
        settings and its held-out part, when left out.
      parameters: `key=value` settings of a reasoning-gym task.
      held_out: share of the file `task` that is used, the share that a training run with the same
        setting keeps for evaluation; all of it when left out.
      problems: how many at most; when left out 500, and all rows of a file `task`.
      samples: samples a problem for pass@k; 0 leaves it out.
      temperature: of those samples; so are `top_k`, `top_p`, `min_p`.
      top_k: keep only the k likeliest tokens.
      top_p: keep the likeliest tokens up to this mass.
      min_p: keep tokens at least this likely, relative to the likeliest.
      max_tokens: longest completion; the run's when left out, else what the context leaves, up to
        64.
      seed: of the problems (unless the run says) and the samples.
      out: a new JSON file for the accuracy and the result of each problem.

    Returns:
      The accuracy.

    Raises:
      ValueError: for a policy without a task of its own and none given, and for bad settings.
    """
    filters = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p}
    Sampling(max_tokens=max_tokens or 1, **filters)  # refuses numbers out of range
    _check_counts(problems, samples)
    place = None if out is None else _new_file(out)
    loaded, tokenizer = load(policy, step=step, remote=remote)
    _say_missing_template(policy, loaded)
    settings, test, count = _evaluated(policy, task, parameters, held_out, problems, seed)
    context = loaded.network.max_length
    longest = max(len(tokenizer.prompt_ids(test[i]["prompt"])) for i in range(len(test)))
    wanted = settings.rollouts.max_tokens if max_tokens is None else max_tokens
    tokens = _room("the longest prompt", longest, wanted, context)
    settings = dataclasses.replace(
        settings, seed=seed, rollouts=dataclasses.replace(settings.rollouts, max_tokens=tokens)
    )
    mesh = mesh_lib.make()
    parts = _Evaluated(
        config=settings,
        network=loaded.network,
        tokenizer=tokenizer,
        test=building.tokenize(test, tokenizer, context - tokens),
        mesh=mesh,
        processes=hosts.Processes(),
        filters=filters,
    )
    specs = building.task_specs(settings, test)
    if not specs:
        raise ValueError(f"task {settings.task} has no answers to check against")
    each: list[ProblemResult] | None = None if place is None else []
    with mesh_lib.entered(mesh), RewardPool(specs, failure_limit=1.0) as pool:
        rows = CHUNK * max(1, samples)
        footprint.check_sampling(
            loaded.network,
            rows=rows,
            slots=sampler.default_slots(rows),
            tokens=tokens,
            lower="samples or max_tokens",
        )
        params = jax.device_put(loaded.params, mesh_lib.replicated(mesh))
        accuracy = evaluate(parts, params, pool, problems=count, samples=samples, each=each)
    if place is not None:
        report = {"policy": policy, "task": settings.task, "max_tokens": tokens, "seed": seed}
        report |= {"samples": samples, **filters} if samples else {}
        results = [result._asdict() for result in each]
        content = report | accuracy._asdict() | {"results": results}
        _write_results(place, content)
    return accuracy


def _check_counts(problems: int | None, samples: int) -> None:
    if problems is not None and problems < 1:
        raise ValueError(f"problems is {problems}; expected at least 1")
    if samples < 0:
        raise ValueError(f"samples is {samples}; expected at least 0")


def _new_file(out: str) -> pathlib.Path:
    """Where the result is written at the end; that it can be is seen before anything is computed."""
    path = pathlib.Path(out).expanduser()
    if path.exists() or path.is_symlink():
        raise ValueError(f"out {out!r} is there already; give the name of a new file")
    if not path.parent.is_dir():
        raise ValueError(f"out {out!r} cannot be written: {path.parent} is no directory")
    try:
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise ValueError(f"out {out!r} cannot be written: {_outside.reason(error)}") from error
    return path


def _write_results(path: pathlib.Path, content: dict) -> None:
    """Writes the results; where this fails, the message keeps the accuracy."""
    try:
        _files.write(path, json.dumps(content, indent=1) + "\n")
    except OSError as error:
        raise _outside.OutsideError(
            f"{path} cannot be written: {_outside.reason(error)}; the accuracy is "
            f"{content['value']:.3f} (95% interval {content['low']:.3f} to {content['high']:.3f}, "
            f"{content['problems']} problems, greedy)"
        ) from error


def _evaluated(
    policy: str,
    task: str | None,
    parameters: tuple[str, ...],
    held_out: float | None,
    problems: int | None,
    seed: int,
) -> tuple[config.TrainConfig, data.Source, int]:
    """The settings of an evaluation, its problems, and how many of them are tried."""
    settings, split = _run_settings(policy), "test"
    is_file = task is not None and (task.endswith((".jsonl", ".parquet")) or os.sep in task)
    if held_out is not None and not is_file:
        raise ValueError("held_out is for a file that is given as task")
    if task is not None:
        share = config.Data.held_out if held_out is None else held_out
        own = config.Data(parameters=parameters, seed=seed, held_out=share)
        settings = dataclasses.replace(settings, task=task, data=own)
        # Who names a file as a test wants all of it.
        split = "all" if is_file and held_out is None else "test"
    elif parameters:
        raise ValueError("parameters are for a task; give the task too")
    elif not (pathlib.Path(policy).expanduser() / "config.json").is_file() or not settings.task:
        raise ValueError(f"policy {policy} is not a run; say which task with --task")
    size = problems or PROBLEMS
    settings = dataclasses.replace(
        settings, data=dataclasses.replace(settings.data, test_size=size)
    )
    source = building.load_source(settings, split, size_flag="--problems")
    return (
        settings,
        source,
        min(len(source), len(source) if split == "all" and not problems else size),
    )


def _run_settings(directory: str) -> config.TrainConfig:
    """Task and rollout settings of a run; the defaults for anything else."""
    path = pathlib.Path(directory).expanduser() / "config.json"
    if not path.is_file() or not (path.parent / POLICY_FILE).is_file():
        return config.TrainConfig(task="", rollouts=config.Rollouts(max_tokens=None))
    with _outside.reading(path):
        found = identity.settings_of(identity.read_settings(path), path)
    return config.TrainConfig(
        task=found.task,
        data=found.data,
        rollouts=found.rollouts,
        rewards=config.Rewards(functions=found.rewards.functions),
    )


@dataclasses.dataclass(frozen=True)
class _Evaluated:
    """The parts of a run that an evaluation reads."""

    config: config.TrainConfig
    network: policies.Network
    tokenizer: data.Tokenizer
    test: building.Problems
    mesh: jax.sharding.Mesh
    filters: dict[str, Any]
    processes: hosts.Processes

    def sampling(self, temperature: float | None = None) -> Sampling:
        """Greedy at temperature 0; else the filters that were asked for."""
        filters = {"temperature": 0.0} if temperature == 0.0 else self.filters
        return Sampling(
            max_tokens=self.config.rollouts.max_tokens,
            stop_ids=tuple(self.tokenizer.stop_ids),
            **filters,
        )
