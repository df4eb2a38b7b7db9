"""From settings to the parts of a run.

Whatever is wrong with the settings raises a ValueError before anything is computed or written.
"""

import dataclasses
import json
import pathlib
import zlib
from typing import Any

from polgrad import data
from polgrad._versions import versions
from polgrad.contract import Algorithm
from polgrad.training.config import Hosts, TrainConfig
from polgrad.training.runtime import hosts
from polgrad.training.runtime import mesh as mesh_lib
from polgrad.training.setup import abstract, fingerprints, footprint, identity, ownership, run_files
from polgrad.training.setup.algorithm import algorithm_settings, build_algorithm, context_of
from polgrad.training.setup.checks import (
    check_attention,
    check_columns,
    check_completions,
    check_rounded,
    check_settings,
    check_sizes,
)
from polgrad.training.setup.directory import check_free
from polgrad.training.setup.parts import Parts
from polgrad.training.setup.policy import build_policy, find_alphabet
from polgrad.training.setup.problems import Texts, load_sources, outlier, tokenized, tokens_digest
from polgrad.training.setup.scorers import check_rewards, find_specs


def build(config: TrainConfig) -> Parts:
    """Checks settings, joins the run's other processes, and builds what the settings name.

    Raises:
      ValueError: for any setting that cannot be used, naming it, its value and what was expected.
      HostError: if another process is missing, failed, or builds something else.
    """
    if config.resume_from is not None:
        config = dataclasses.replace(config, resume=True)
    check_settings(config)
    processes = hosts.join(config.hosts)
    made: list[Parts] = []
    # The first process knows the run that goes on: the others' directories may be their own.
    (run, *_) = processes.gather(
        "the run that goes on", lambda: ownership.stored(config) if processes.first else None
    )
    run = run and run_files.Stored(*run)

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
        "settings": zlib.crc32(json.dumps(run_files.plain(same)).encode()),
        "problems": [zlib.crc32(p.tokens.tobytes()) for p in (parts.train, parts.test) if p],
    }


def _build(config: TrainConfig, processes: hosts.Processes, run: run_files.Stored | None) -> Parts:
    mesh = mesh_lib.make(mesh_lib.parse(config.mesh) if config.mesh else None)
    if config.update.compute_dtype != "float32" and mesh.devices.flat[0].platform == "cpu":
        raise ValueError(
            f"update.compute_dtype is {config.update.compute_dtype!r}; expected float32 on a CPU, where "
            "XLA does not run products of bfloat16 that are summed in float32"
        )
    replaced = check_free(config, run)
    config = run_files.filled(run_files.absolute(config), run)
    ownership.check_room(config)
    footprint.check_small(config, footprint.memory(mesh))
    # Left out, it is the length of the longest completion.
    bounded = config.rollouts.max_tokens is not None
    settings = algorithm_settings(config)
    check_rounded(config, settings)
    train, test = load_sources(config)
    # What the algorithm reads decides how the policy is loaded, whatever the sizes.
    first = _algorithm(config, settings, train)
    # What takes longer is checked later: a wrong name must not wait for the policy to be loaded.
    specs, task = find_specs(config, first, train)
    if first.samples:
        check_rewards(config.rewards, specs)
    own, held = (Texts(x, first.collect.columns) if x else None for x in (train, test))
    check_columns(config, first, own)
    alphabet = find_alphabet(config, own, held, run) if config.policy == "small" else None
    config, policy, tokenizer, chosen = build_policy(config, first, own, held, alphabet)
    algorithm = _algorithm(config, settings, train)
    check_sizes(config, algorithm)
    footprint.check_run(config, policy.network, mesh, samples=algorithm.samples)
    abstract.check(
        algorithm,
        context_of(config, train),
        config.algorithm,
        preferences=config.rewards.preference is not None,
    )
    check_attention(config, policy.network, mesh)
    limit = policy.network.max_length - config.rollouts.max_tokens
    problems = tokenized(own, tokenizer, limit)
    algorithm = algorithm._replace(warnings=(*algorithm.warnings, *outlier(problems)))
    parts = Parts(
        config=dataclasses.replace(config, settings=settings),
        policy=policy,
        tokenizer=tokenizer,
        train=problems,
        test=tokenized(held, tokenizer, limit) if held and task else None,
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
    check_completions(parts, own, bounded)
    parts = _identified(parts)
    ownership.make_directories(config)
    return parts


def _identified(parts: Parts) -> Parts:
    """The same with what tells this run from others, compared with the run that goes on."""
    targets = [spec.target for spec in parts.reward_specs]
    prints = {
        "train_problems": parts.train.digest,
        "train_prompts": tokens_digest(parts.train),
        "reward_source": fingerprints.of_rewards(targets if parts.algorithm.samples else ()),
        "algorithm_source": fingerprints.of_algorithm(parts.config.settings),
        **fingerprints.of_policy(parts.policy, parts.tokenizer),
    }
    if parts.test is not None:
        prints |= {
            "test_problems": parts.test.digest,
            "test_prompts": tokens_digest(parts.test),
        }
    found: list[identity.Change] = []
    # The first process knows the run; what it raises ends the others, too.
    if parts.stored is not None and parts.processes.first:
        found = identity.changes(parts.stored, parts.config, prints)
        ownership.check_changes(parts, found)
    return dataclasses.replace(parts, fingerprints=prints, changes=tuple(found))


def _algorithm(config: TrainConfig, settings: Any, train: data.Source) -> Algorithm:
    """The algorithm for a run of this size; a completion's length may still be open."""
    return build_algorithm(config.algorithm, settings, context_of(config, train))
