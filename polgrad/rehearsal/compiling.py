"""A whole RL step compiled for devices that are not there: what it holds, does and sends.

`topology` describes a TPU slice to XLA's own compiler (package `libtpu`, extra `tpu-aot`); the
programs are those of a run, lowered from shapes alone.
"""

import dataclasses
import importlib.util
import itertools
import math
import os
import re
import time
from collections.abc import Iterator
from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from polgrad import _ranges
from polgrad._ranges import COUNT, FILLED, Range, documented
from polgrad.contract import Context
from polgrad.policies import TransformerNetwork
from polgrad.rehearsal import costs as program_costs
from polgrad.rehearsal import shapes
from polgrad.rehearsal.chips import CHIPS, Chip
from polgrad.rollouts import Sampling, sampler, sampling_weights
from polgrad.rollouts.sampling_weights import bytes_of_a_device
from polgrad.training.optimizers import Optimizer
from polgrad.training.runtime import mesh as mesh_lib
from polgrad.training.scoring import Scoring
from polgrad.training.setup import abstract
from polgrad.training.setup.algorithm import build_algorithm, find_algorithm
from polgrad.training.step import Programs

__all__ = [
    "Candidate",
    "Program",
    "Rehearsal",
    "Slice",
    "TooLarge",
    "candidates",
    "describe",
    "make_mesh",
    "rehearse",
]


# As the compiler says it before it has laid out a program, and behind that.
_TOO_LARGE = (
    r"\(([\d.]+)G\) exceeds available HBM \(([\d.]+)G\)",
    r"Used ([\d.]+)G of ([\d.]+)G hbm",
)


@documented
@dataclasses.dataclass(frozen=True)
class Rehearsal:
    """Compile a training step for a TPU slice that you do not have: memory, time, what binds.

    Attributes:
      policy: a published model (`rehearsal.shapes`).
      algorithm: built in, or somebody's own by path.
      sequences: samples a step, all prompts together.
      length: tokens of a sequence, prompt and completion.
      prompt_length: of them the prompt's.
      group_size: samples of a prompt.
      slots: sequences that are decoded at once; when left out all of them, up to 128 a device.
      micro_batches: parts an update is accumulated from.
      remat: what the backward pass recomputes.
      attention: kernel of whole sequences; "splash" is for TPUs, "cudnn" for NVIDIA GPUs.
      gather: whether the weights are gathered over `fsdp` once before sampling; "auto" does so where
        that takes at most a third of the memory.
      chunk: positions of the vocabulary head handled at once.
      compute_dtype: dtype of the network's products; parameters and optimiser are float32.
      optimizer: method of the optimiser.
    """

    policy: Annotated[str, FILLED]
    algorithm: Annotated[str, FILLED] = "grpo"
    sequences: Annotated[int, COUNT] = 256
    length: Annotated[int, COUNT] = 4096
    prompt_length: Annotated[int, COUNT] = 512
    group_size: Annotated[int, COUNT] = 8
    slots: Annotated[int | None, Range(at_least=2)] = None
    micro_batches: Annotated[int, COUNT] = 1
    remat: Literal["none", "dots", "full"] = "full"
    attention: Literal["auto", "xla", "splash", "cudnn"] = "auto"
    gather: Literal["auto", "always", "never"] = "auto"
    chunk: Annotated[int | None, COUNT] = 512
    compute_dtype: Literal["float32", "bfloat16"] = "bfloat16"
    optimizer: Literal["adamw", "muon"] = "adamw"

    def __post_init__(self):
        _ranges.check(self)
        if not 0 < self.prompt_length < self.length:
            raise ValueError(
                f"prompt_length is {self.prompt_length}, expected 1 to length - 1 = {self.length - 1}"
            )
        if self.sequences % self.group_size:
            raise ValueError(
                f"sequences is {self.sequences}, expected a multiple of group_size {self.group_size}"
            )


class Slice(NamedTuple):
    """Devices to compile for: `chip` is None for those of this machine."""

    name: str
    devices: Any
    chip: Chip | None


class TooLarge(NamedTuple):
    """A program that the compiler gave up on.

    Attributes:
      name: "sample", "score" or "update".
      needed: bytes that it would take.
      available: bytes that the compiler may use.
    """

    name: str
    needed: float
    available: float


class Program(NamedTuple):
    """One compiled program, on each device.

    Attributes:
      name: "sample", "score" or "update".
      parameters: bytes of the parameters, and of those that are sampled from where these are others.
      optimizer: bytes of the optimiser's state, which stays while other programs run.
      batch: bytes of all its other arguments.
      temporary: bytes of activations, gradients and copies.
      code: bytes of the program.
      costs: what one run of it does, by phase (one, or prefill and decoding); None where jaxlib
        cannot read the compiled program back, as jaxlib 0.10 cannot some of libtpu 0.0.52's for
        TPU v5p.
      seconds: what compiling took.
    """

    name: str
    parameters: int
    optimizer: int
    batch: int
    temporary: int
    code: int
    costs: dict[str, program_costs.Costs] | None
    seconds: float

    @property
    def held(self) -> int:
        """Bytes that a device holds while it runs."""
        return self.parameters + self.optimizer + self.batch + self.temporary + self.code


def times(costs: program_costs.Costs, chip: Chip) -> dict[str, float]:
    """Seconds that arithmetic, memory and interconnect take at their published rates."""
    sent = sum(found.bytes for found in costs.collectives.values())
    return {
        "arithmetic": costs.flops / chip.flops,
        "memory": costs.bytes / chip.bandwidth,
        "interconnect": sent / chip.interconnect,
    }


def describe(topology: str) -> Slice:
    """The devices of a described slice, such as "v5e:16x16", or "local".

    Raises:
      ValueError: for a topology that libtpu does not know, or without libtpu.
    """
    if topology == "local":
        return Slice("local", jax.devices(), None)
    kind = topology.partition(":")[0]
    if kind not in CHIPS:
        raise ValueError(
            f"topology is {topology!r}, expected local, or {', '.join(CHIPS)} with a shape, such as v5e:16x16"
        )
    if importlib.util.find_spec("libtpu") is None:
        raise ValueError("topology needs the package libtpu: pip install 'polgrad[tpu-aot]'")
    # libtpu asks a machine without a TPU who it is; these answer.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    from jax.experimental import topologies

    try:
        described = topologies.get_topology_desc(platform="tpu", topology_name=topology)
    except Exception as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"topology {topology!r} is not one that libtpu knows: {reason}") from error
    return Slice(topology, described.devices, CHIPS[kind])


def make_mesh(where: Slice, sizes: dict[str, int]) -> Mesh:
    """A mesh of all devices of a slice.

    Raises:
      ValueError: if the sizes need another number of devices.
    """
    shape = tuple(sizes.get(axis, 1) for axis in mesh_lib.AXES)
    if math.prod(shape) != len(where.devices):
        wanted = ",".join(f"{a}={s}" for a, s in zip(mesh_lib.AXES, shape))
        raise ValueError(
            f"mesh {wanted} has {math.prod(shape)} devices; {where.name} has {len(where.devices)}"
        )
    devices = mesh_utils.create_device_mesh(
        shape, where.devices, allow_split_physical_axes=where.chip is not None
    )
    return Mesh(devices, mesh_lib.AXES, axis_types=(AxisType.Auto,) * len(mesh_lib.AXES))


def rehearse(
    what: Rehearsal, mesh: Mesh, memory: float | None = None
) -> Iterator[Program | TooLarge]:
    """Compiles the programs of one step, one after the other.

    Args:
      what: the step.
      mesh: the devices.
      memory: bytes of one of them, for `gather="auto"`; None where it is not known.

    Yields:
      Sampling (prefill and decoding), scoring where the algorithm needs it, and the update.
    """
    step = _Step(what, mesh, memory)
    yield step.sample()
    if step.programs.policies or step.algorithm.needs.values:
        yield step.score()
    yield step.update()


class _Step:
    """The abstract arguments of a run's programs, laid over a mesh."""

    def __init__(self, what: Rehearsal, mesh: Mesh, memory: float | None):
        self.what, self.mesh = what, mesh
        self.network = TransformerNetwork(shapes.find(what.policy))
        platform = mesh.devices.flat[0].platform
        # A kernel that cannot run is refused before anything is compiled.
        self.network.attention_kernel(
            what.attention, what.compute_dtype, what.length, platform=platform
        )
        self.tokens = what.length - what.prompt_length
        settings = find_algorithm(what.algorithm)
        settings = settings() if isinstance(settings, type) else settings
        self.context = Context(
            group_size=what.group_size,
            max_tokens=self.tokens,
            num_prompts=what.sequences,
            on_policy=True,
        )
        self.algorithm = build_algorithm(what.algorithm, settings, self.context)
        if self.algorithm.needs.values:
            config = dataclasses.replace(self.network.config, value_head=True)
            self.network = TransformerNetwork(config)
        self.programs = Programs(
            self.network,
            self.algorithm,
            Optimizer(method=what.optimizer, learning_rate=1e-6).build(
                1000, self.network.logical_axes()
            ),
            mesh,
            scoring=Scoring(
                compute_dtype=jnp.dtype(what.compute_dtype),
                remat=what.remat,
                attention=what.attention,
                chunk=what.chunk,
                values=self.algorithm.needs.values,
                entropy_gradient=self.algorithm.needs.entropy,
            ),
            micro_batches=what.micro_batches,
            samples=what.group_size,
            gather=what.gather,
            memory=memory,
        )
        self.params = self.programs.abstract_state.params
        held = self.programs.sampling_params
        self._converts = not sampling_weights.same(self.params, held)
        self.key = jax.ShapeDtypeStruct(
            (), jax.random.key(0).dtype, sharding=mesh_lib.replicated(mesh)
        )

    def sample(self) -> Program:
        """Prefill of every prompt and decoding of all samples, as `rollouts.generate` has it."""
        what = self.what
        prompts = what.sequences // what.group_size
        with jax.set_mesh(self.mesh):
            slots = what.slots or sampler.default_slots(what.sequences)
            # All samples run to the end, and each refills a slot once.
            decoded = self.tokens * math.ceil(what.sequences / slots)
            lowered = sampler._generate.lower(
                self.network,
                self.programs.sampling_params,
                None,
                self._array((prompts, what.prompt_length), jnp.int32),
                self._array((prompts,), jnp.int32),
                self._array((prompts,), jnp.uint32),
                self.key,
                sampling=Sampling(max_tokens=self.tokens, stop_ids=(0,)),
                group_size=what.group_size,
                slots=slots,
                compute_dtype=jnp.dtype(what.compute_dtype),
                reference_weight=0.0,
            )
        trips = (decoded, what.sequences / decoded)
        return self._compiled("sample", lowered, self.programs.sampling_params, trips)

    def score(self) -> Program:
        """Log-probabilities (and values) of the samples under fixed parameters."""
        with jax.set_mesh(self.mesh):
            lowered = self.programs.lower_scorer(self.params, self._experience())
        return self._compiled("score", lowered, self.params)

    def update(self) -> Program:
        """One optimiser update on the whole batch."""
        with jax.set_mesh(self.mesh):
            lowered = self.programs.lower_update(self._batch(), self.key)
        state = self.programs.abstract_state
        return self._compiled("update", lowered, (state.params, state.optimizer))

    def _array(self, shape, dtype):
        sharding = mesh_lib.batch_sharding(self.mesh, shape[0])
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    def _experience(self):
        shapes = abstract.experience(
            self.algorithm,
            self.context,
            prompts=self.what.sequences // self.what.group_size,
            prompt_length=self.what.prompt_length,
        )
        return {name: self._array(x.shape, x.dtype) for name, x in shapes.items()}

    def _batch(self):
        key = jax.eval_shape(lambda: jax.random.key(0))
        state = jax.eval_shape(self.algorithm.init, key)
        _, batch, _ = jax.eval_shape(self.algorithm.prepare, state, self._experience(), key)
        return jax.tree.map(lambda x: self._array(x.shape, x.dtype), batch)

    def _compiled(self, name, lowered, given, trips=(1.0,)) -> Program | TooLarge:
        """Compiles a program whose arguments are a batch and `given`, part of the run's state."""
        begun = time.monotonic()
        try:
            compiled = lowered.compile()
        except jax.errors.JaxRuntimeError as error:
            sizes = next(filter(None, (re.search(p, str(error)) for p in _TOO_LARGE)), None)
            if sizes is None:
                raise
            return TooLarge(name, float(sizes[1]) * 2**30, float(sizes[2]) * 2**30)
        memory = compiled.memory_analysis()
        state = self.programs.abstract_state
        given = bytes_of_a_device(given)
        parameters, moments = bytes_of_a_device(state.params), bytes_of_a_device(state.optimizer)
        # What is overwritten in place is an argument and a result, and is held once.
        results = memory.output_size_in_bytes - memory.alias_size_in_bytes
        others = memory.argument_size_in_bytes - given + max(results, 0)
        return Program(
            name=name,
            parameters=parameters + (given if name == "sample" and self._converts else 0),
            optimizer=moments,
            batch=max(others, 0),
            temporary=memory.temp_size_in_bytes,
            code=memory.generated_code_size_in_bytes,
            costs=_costs(compiled, name, trips),
            seconds=time.monotonic() - begun,
        )


def _costs(compiled, name, trips) -> dict[str, program_costs.Costs] | None:
    try:
        text = compiled.as_text()
    except jax.errors.JaxRuntimeError as error:
        if "RET_CHECK" not in str(error):
            raise
        return None
    costs = program_costs.measure(text, unknown_trips=trips)
    if name != "sample":
        return {name: costs}
    # Decoding is the one loop whose end the data decide.
    prefill = program_costs.measure(text, unknown_trips=(0.0,))
    return {"prefill": prefill, "decode": costs - prefill}


# --- Meshes, ranked without compiling -------------------------------------------------------------


class Candidate(NamedTuple):
    """A mesh and what it is estimated to hold and take.

    Attributes:
      sizes: by axis.
      held: bytes on a device during the update.
      seconds: of decoding and the update, each by its slowest part.
    """

    sizes: dict[str, int]
    held: float
    seconds: float


def candidates(what: Rehearsal, where: Slice) -> list[Candidate]:
    """Reasonable meshes, those that fit first and among them the fastest, by rules of thumb.

    Parameters, gradients and both moments are split over fsdp and tensor; activations of a
    micro-batch over data and fsdp, kept once a layer; each layer's parameters are gathered over
    fsdp three times a micro-batch, and its activations summed over tensor four times. For every
    token, decoding reads the weights of a device and half of a full cache, and gathers weights
    that are too large to be gathered before it (`sampling_weights`).
    """
    network = TransformerNetwork(shapes.find(what.policy))
    config, chip = network.config, where.chip or CHIPS["v5e"]
    params = jax.eval_shape(network.init, jax.random.key(0))
    count = sum(math.prod(x.shape) for x in jax.tree.leaves(params))
    devices, found = len(where.devices), []
    divisors = [n for n in range(1, devices + 1) if devices % n == 0]
    for data, tensor in itertools.product(divisors, (1, 2, 4, 8)):
        if devices % (data * tensor) or config.kv_heads % tensor:
            continue
        fsdp = devices // (data * tensor)
        rows = what.sequences / what.micro_batches
        if rows % (data * fsdp):
            continue
        tokens = rows * what.length / (data * fsdp)
        held = 16 * count / (fsdp * tensor)
        held += 2 * tokens * config.width * config.layers
        held += 2 * count / config.layers / tensor + 8 * tokens * config.mlp_width / tensor
        arithmetic = 8 * count * what.sequences * what.length / devices / chip.flops
        gathered = 3 * what.micro_batches * 2 * count / tensor * (fsdp > 1)
        summed = (
            4 * what.micro_batches * config.layers * 2 * tokens * config.width * 2 * (tensor > 1)
        )
        reduced = 2 * 4 * count / (fsdp * tensor) * (data > 1)
        seconds = max(arithmetic, (gathered + summed + reduced) / chip.interconnect)
        seconds += _decoding(what, config, count, chip, data * fsdp, fsdp, tensor)
        sizes = {"data": data, "fsdp": fsdp, "tensor": tensor}
        found.append(Candidate(sizes, held, seconds))
    return sorted(found, key=lambda c: (c.held > 0.9 * chip.memory, c.seconds, c.held))


def _decoding(what, config, count, chip, parts: int, fsdp: int, tensor: int) -> float:
    """Seconds that decoding all samples is estimated to take, with the batch in so many parts."""
    slots = what.slots or min(what.sequences, sampler.DEFAULT_SLOTS * parts)
    steps = (what.length - what.prompt_length) * math.ceil(what.sequences / slots)
    weights = 2 * count / tensor
    whole = fsdp == 1 or what.gather == "always"
    whole |= what.gather == "auto" and weights <= sampling_weights.SHARE * chip.memory
    cache = 4 * config.layers * config.kv_heads * config.head_dim * what.length / 2
    read = weights + math.ceil(slots / parts) * cache / tensor
    return steps * max(read / chip.bandwidth, 0.0 if whole else weights / chip.interconnect)
