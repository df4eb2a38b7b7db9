"""Settings of a run: frozen dataclasses, each field a flag of `polgrad train`.

Every number has its range beside its type; `polgrad._ranges.check` holds a run to them before
anything is computed, and `documented` adds them to the texts of `--help`.
"""

import dataclasses
from typing import Annotated, Any, Literal

import jax.numpy as jnp

from polgrad import _parts
from polgrad._ranges import COUNT, FILLED, SEED, Range, documented
from polgrad.training.optimizers import Optimizer

SECONDS = Range(above=0, at_most=1_000_000)
TEMPERATURE = Range(at_least=1e-6, reason="at 0 all samples of a prompt are the same")


@documented
@dataclasses.dataclass(frozen=True)
class Data:
    """Which problems, and how they are shown to the policy.

    Attributes:
      parameters: `key=value` settings of a reasoning-gym task, e.g. `max_terms=2`.
      train_size: how many training problems a reasoning-gym task generates.
      test_size: how many held-out problems it generates.
      seed: seed of the training problems; the held-out problems have another.
      held_out: share of a file's rows that is kept for evaluation.
      distinct: give each training problem once (held-out problems always are distinct).
      prompt_pattern: regular expression whose first group replaces the prompt, so that a small
        policy need not read the task's instructions.
      prompt_template: the prompt with `{prompt}` in it.
      chat_template: show prompts through the policy's chat template, where it has one; without
        it the policy continues the prompt as plain text.
    """

    parameters: tuple[str, ...] = ()
    train_size: Annotated[int, Range(at_least=1, at_most=100_000_000)] = 10_000
    test_size: Annotated[int, Range(at_least=1, at_most=100_000_000)] = 500
    seed: Annotated[int, SEED] = 0
    held_out: Annotated[float, Range(at_least=0, below=1)] = 0.1
    distinct: bool = False
    prompt_pattern: str | None = None
    prompt_template: str = "{prompt}"
    chat_template: bool = True


@documented
@dataclasses.dataclass(frozen=True)
class Small:
    """The small transformer trained from nothing, with characters as tokens.

    Attributes:
      layers: number of blocks.
      width: numbers that stand for a token between the blocks.
      heads: attention heads of a block.
      mlp: width of the gated MLP.
    """

    layers: Annotated[int, Range(at_least=1, at_most=1024)] = 2
    width: Annotated[int, Range(at_least=1, at_most=65536)] = 128
    heads: Annotated[int, Range(at_least=1, at_most=1024)] = 4
    mlp: Annotated[int, Range(at_least=1, at_most=262144)] = 256


@documented
@dataclasses.dataclass(frozen=True)
class Rollouts:
    """How samples are drawn.

    Attributes:
      prompts: prompts in a step; rows in a step where the algorithm learns from a data file. When
        left out 64 for a small policy; for pretrained weights 16, and 32 rows.
      group_size: samples of each prompt.
      max_tokens: longest completion, in tokens. When left out 8 for a small policy and 256 for
        pretrained weights; the longest completion of the data where the algorithm reads
        completions.
      temperature: divides the logits, in the sampler and in the trainer; a higher one makes samples
        more random.
      slots: sequences decoded at once; when left out all of them, up to 128 a device.
      stop: characters that end a completion, besides the policy's own stop tokens. A token with such
        a character ends the completion and is not part of its text.
      weights: `"int8"` samples with matrices rounded to eight bits. Decoding then reads half as many
        bytes as in bfloat16. The samples come from a slightly different policy than the one that is
        trained. With one update a rollout, the algorithm's `sampler_correction` must be set; with
        more, the importance ratio corrects for it.
      gather: `"always"` gathers the weights over the mesh's `fsdp` axis once before a rollout, in the
        type of the products. `"never"` gathers one layer at a time for every token, which needs less
        memory and is far slower. `"auto"` gathers once where the weights take at most a third of the
        memory of a TPU or GPU.
    """

    prompts: Annotated[int | None, COUNT] = None
    group_size: Annotated[int, COUNT] = 8
    max_tokens: Annotated[int | None, COUNT] = None
    temperature: Annotated[float, TEMPERATURE] = 1.0
    slots: Annotated[int | None, Range(at_least=2)] = None
    stop: tuple[str, ...] = ()
    weights: Literal["full", "int8"] = "full"
    gather: Literal["auto", "always", "never"] = "auto"


@documented
@dataclasses.dataclass(frozen=True)
class Update:
    """How a batch becomes optimiser updates.

    Attributes:
      epochs: passes over each rollout.
      mini_batches: optimiser updates in a pass.
      micro_batches: parts of a batch that are computed one after the other, to save memory.
      remat: what the backward pass computes again to save memory: nothing, all but products, or all.
      attention: the program that computes attention: `"xla"`; `"splash"`, the TPU kernel; `"cudnn"`, on
        NVIDIA GPUs, in bfloat16; or `"auto"`, the kernel of the mesh's devices where it can.
      chunk: positions whose logits are computed at once; chosen by size when left out.
      compute_dtype: dtype of the network's products; parameters stay float32.
      packing: put several sequences into one row of a batch, so that less of it is padding.
      share_prompts: read a prompt once for all its samples, where they lie together in a batch; not in
        the update of an algorithm that selects from its batch.
      max_skipped: an update whose loss or gradient is not finite is skipped; after this many in a
        row the run stops.
    """

    epochs: Annotated[int, COUNT] = 1
    mini_batches: Annotated[int, COUNT] = 1
    micro_batches: Annotated[int, COUNT] = 1
    remat: Literal["none", "dots", "full"] = "none"
    attention: Literal["auto", "xla", "splash", "cudnn"] = "auto"
    chunk: Annotated[int | None, COUNT] = None
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    packing: bool = False
    share_prompts: bool = True
    max_skipped: Annotated[int, COUNT] = 5

    @property
    def dtype(self) -> Any:
        """`compute_dtype` as a dtype."""
        return jnp.dtype(self.compute_dtype)


@documented
@dataclasses.dataclass(frozen=True)
class Rewards:
    """Where rewards are computed.

    Attributes:
      functions: `module:name`, `file.py:name`, or a name of `polgrad list rewards`; the task's own
        scorer when left out.
      preference: a function with the same signature that reads the other completion from
        `example["opponent"]` and returns the probability that this one is preferred.
      workers: processes that run them.
      timeout: seconds a sample may take before it is invalid.
      failure_limit: share of invalid samples in a step above which the run stops.
      memory: MiB of memory that a worker may take; a sample that needs more is invalid. `None` sets
        no limit. Linux only.
      environment: names of environment variables that the workers see besides the usual ones, such
        as a judge's key.
    """

    functions: tuple[str, ...] = ()
    preference: Annotated[str | None, FILLED] = None
    workers: Annotated[int, Range(at_least=1, at_most=1024)] = 1
    timeout: Annotated[float, SECONDS] = 5.0
    failure_limit: Annotated[float, Range(at_least=0, at_most=1)] = 0.1
    memory: Annotated[int | None, Range(at_least=256)] = 4096
    environment: tuple[str, ...] = ()


@documented
@dataclasses.dataclass(frozen=True)
class WarmStart:
    """Supervised training on demonstrations before the first rollout.

    Attributes:
      steps: updates; 0 skips the warm start.
      demonstrations: how many solved training problems it may see.
      batch: demonstrations in an update.
      optimizer: the optimiser of the warm start; the run's own starts anew after it.
    """

    steps: Annotated[int, Range(at_least=0)] = 0
    demonstrations: Annotated[int, COUNT] = 512
    batch: Annotated[int, COUNT] = 64
    optimizer: Optimizer = Optimizer(schedule="cosine")


@documented
@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Held-out accuracy.

    Attributes:
      every: steps between evaluations; 0 evaluates before the first and after the last only.
      problems: held-out problems used.
      samples: samples of each problem at the training temperature, for pass@k; 0 leaves pass@k out.
    """

    every: Annotated[int, Range(at_least=0)] = 0
    problems: Annotated[int, Range(at_least=0)] = 500
    samples: Annotated[int, Range(at_least=0, at_most=65536)] = 0


@documented
@dataclasses.dataclass(frozen=True)
class Saving:
    """What a run leaves in its directory.

    Attributes:
      every: steps between checkpoints.
      keep: checkpoints kept.
      checkpoints: where they are kept, such as `gs://bucket/run`; `checkpoints` in the run's
        directory when left out.
      samples_every: steps between entries of `samples.jsonl`.
      tensorboard: also write TensorBoard events.
      wandb: Weights & Biases project, when that package is installed.
    """

    every: Annotated[int, COUNT] = 50
    keep: Annotated[int, COUNT] = 2
    checkpoints: Annotated[str | None, FILLED] = None
    samples_every: Annotated[int, COUNT] = 20
    tensorboard: bool = True
    wandb: Annotated[str | None, FILLED] = None


@documented
@dataclasses.dataclass(frozen=True)
class Hosts:
    """The processes of a run over several hosts; docs/pods.md has a recipe for each launcher.

    Attributes:
      coordinator: `host:port` of the first process; `JAX_COORDINATOR_ADDRESS` when left out.
      processes: how many there are; `JAX_NUM_PROCESSES` when left out.
      process: which one this is, from 0; `JAX_PROCESS_ID` when left out.
      auto: let JAX find the three settings above, as it can on TPU pods, under Slurm and Open MPI.
        Where environment variables of these name several processes, JAX does so without this flag.
      deadline: seconds that a process waits for the others.
    """

    coordinator: Annotated[str | None, FILLED] = None
    processes: Annotated[int | None, COUNT] = None
    process: Annotated[int | None, Range(at_least=0)] = None
    auto: bool = False
    deadline: Annotated[float, SECONDS] = 600.0


@documented
@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Train a policy. `config.json` in the run's directory keeps these settings.

    Attributes:
      task: a reasoning-gym task, or a `.jsonl` or `.parquet` file.
      policy: `small`, `smollm2-135m-instruct`, a directory in Hugging Face form, or a `.gguf` file.
      algorithm: a name from `polgrad list algorithms`, or `file.py:NAME` for a class of your own.
      settings: the algorithm's own settings.
      steps: how many steps; each trains on one rollout, or on one batch of data for algorithms that
        learn from data.
      seed: all random numbers of the run follow from it.
      out: directory of the run. A directory that holds a run is accepted only with `resume`, or if
        that run failed before the end of its first step and has trained no warm start.
      resume: go on from the newest checkpoint in `out`. A flag that you leave out has the value that
        it has in the run's `config.json`.
      resume_from: go on from the checkpoint of this step instead; what the run did after it is
        discarded.
      allow_changed: names of settings that you change when a run goes on, such as
        `optimizer.learning_rate`. A change of a setting that the results depend on is refused if its
        name is not given here. A change of the policy's or the optimiser's shape is always refused.
      mesh: how many devices each axis has, e.g. `data=2,fsdp=2,tensor=2`; when left out, all devices
        are on `data`.
      parity_tolerance: the sampler and the trainer compute the log-probability of each token. If the
        two differ by more than this, in nats, the run stops. When left out 0.01; 0.5 where products
        are computed in bfloat16, whose logits of size 16 to 32 lie 0.125 apart; 1 where the
        sampler's weights are rounded to eight bits.
      probe: test the compiler before the first step: compute the gradient of the first batch whole
        and in two parts, and stop if the two differ. When left out, `"on"` on TPUs and for versions
        of jaxlib that are known to return wrong numbers.
      profile: write a trace of steps 5 to 7 to `profile` in the run's directory, for XProf or
        Perfetto.
      track_kl: report `kl_reference`, the divergence from the initial policy, also where the
        algorithm does not need it. The initial policy then stays in memory.
    """

    task: Annotated[str, FILLED] = "chain_sum"
    policy: Annotated[str, FILLED] = "small"
    algorithm: Annotated[str, FILLED] = "grpo"
    settings: Any = None
    steps: Annotated[int, COUNT] = 200
    seed: Annotated[int, SEED] = 0
    out: Annotated[str, FILLED] = "runs/latest"
    resume: bool = False
    resume_from: Annotated[int | None, Range(at_least=0)] = None
    allow_changed: tuple[str, ...] = ()
    mesh: str = ""
    parity_tolerance: Annotated[float | None, Range(at_least=0)] = None
    probe: Literal["on", "off"] | None = None
    track_kl: bool = True
    profile: bool = False
    data: Data = Data()
    small: Small = Small()
    rollouts: Rollouts = Rollouts()
    update: Update = Update()
    optimizer: Optimizer = Optimizer()
    rewards: Rewards = Rewards()
    warm_start: WarmStart = WarmStart()
    evaluation: Evaluation = Evaluation()
    saving: Saving = Saving()
    hosts: Hosts = Hosts()

    @property
    def on_policy(self) -> bool:
        """One optimiser update for each rollout: every importance ratio is 1."""
        return self.update.epochs * self.update.mini_batches == 1

    @property
    def parity_limit(self) -> float:
        """`parity_tolerance`, or its default."""
        if self.parity_tolerance is not None:
            return self.parity_tolerance
        if self.rollouts.weights == "int8":
            return 1.0
        return 0.01 if self.update.compute_dtype == "float32" else 0.5


def as_json(config: TrainConfig) -> dict[str, Any]:
    """Settings as plain data, as `config.json` holds them."""
    plain = {
        f.name: getattr(config, f.name)
        for f in dataclasses.fields(config)
        if f.name not in ("settings", "resume", "resume_from", "allow_changed")
    }
    plain = {
        k: dataclasses.asdict(v) if dataclasses.is_dataclass(v) else v for k, v in plain.items()
    }
    is_settings = dataclasses.is_dataclass(config.settings)
    return plain | {"settings": _parts.as_json(config.settings) if is_settings else None}
