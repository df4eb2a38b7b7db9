"""What `polgrad compile` prints."""

from polgrad.rehearsal import compiling
from polgrad.rehearsal.compiling import Program, Rehearsal, Slice, TooLarge
from polgrad.rehearsal.costs import Costs
from polgrad.rollouts import sampling_weights
from polgrad.training.runtime import mesh as mesh_lib

__all__ = ["run"]

_SHARE = 0.95  # of the memory that a program may hold; the rest is the runtime's


def run(what: Rehearsal, topology: str, mesh: str | None) -> bool:
    """Compiles and prints; without a mesh, the three most promising ones.

    Returns:
      Whether a mesh was found on which everything fits.

    Raises:
      ValueError: for a topology, mesh or policy that cannot be used.
    """
    where = compiling.describe(topology)
    limit = f", {_size(where.chip.memory)} each" if where.chip else ""
    kind = where.chip.name if where.chip else where.devices[0].device_kind
    print(
        f"{what.policy}, {what.algorithm}: {what.sequences} sequences of {what.length} tokens on "
        f"{where.name} ({len(where.devices)} x {kind}{limit})"
    )
    ranked = compiling.candidates(what, where)
    if not ranked and mesh is None:
        raise ValueError(
            f"no mesh divides {what.sequences} sequences in {what.micro_batches} micro-batches over "
            f"{len(where.devices)} devices; change sequences or micro_batches"
        )
    chosen = [mesh_lib.parse(mesh)] if mesh else [c.sizes for c in ranked[:3]]
    found = [_one(what, where, sizes) for sizes in chosen]
    if mesh and not found[0] and where.chip and ranked:
        best = ranked[0]
        print(
            f"\ntry --mesh {_mesh(best.sizes)} (about {_size(best.held)} and {best.seconds:.1f} s for "
            "decoding and the update, by rules of thumb); more micro-batches, or remat full, shrink "
            "what is temporary"
        )
    return any(found)


def _one(what: Rehearsal, where: Slice, sizes: dict[str, int]) -> bool:
    print(f"\nmesh {_mesh(sizes)}")
    fits = True
    devices = compiling.make_mesh(where, sizes)
    memory = where.chip.memory if where.chip else sampling_weights.memory_of(devices)
    for program in compiling.rehearse(what, devices, memory):
        if isinstance(program, TooLarge):
            fits = False
            print(
                f"  {program.name:7} DOES NOT FIT: {_size(program.needed)} of temporaries, "
                f"{_size(program.available)} available"
            )
            continue
        fits &= where.chip is None or program.held <= _SHARE * where.chip.memory
        _print(program, where)
    verdict = "fits" if fits else "does not fit"
    print(f"  {verdict}" if where.chip else "  compiled; the memory of this machine is not checked")
    return fits


def _print(program: Program, where: Slice) -> None:
    parts = ("parameters", "optimizer", "batch", "temporary", "code")
    held = ", ".join(f"{part} {_size(getattr(program, part))}" for part in parts)
    print(
        f"  {program.name:7} {_size(program.held)}: {held}  (compiled in {program.seconds:.0f} s)"
    )
    if program.costs is None:
        print("          operations and time are not counted: jaxlib cannot read this program back")
        return
    for phase, costs in program.costs.items():
        _print_costs(phase if len(program.costs) > 1 else "", costs, where)


def _print_costs(phase: str, costs: Costs, where: Slice) -> None:
    print(
        f"  {phase:7} {costs.flops / 1e12:.3g} TFLOP, {costs.bytes / 1e9:.3g} GB of memory traffic"
    )
    for kind, found in costs.collectives.items():
        print(f"          {found.count:,.0f} {kind}, {found.bytes / 1e9:.3g} GB sent")
    if where.chip is None:
        return
    times = compiling.times(costs, where.chip)
    slowest = max(times, key=times.get)
    each = ", ".join(f"{name} {seconds:.3g} s" for name, seconds in times.items())
    print(f"          at published rates: {each}; {slowest} binds")


def _mesh(sizes: dict[str, int]) -> str:
    return ",".join(f"{axis}={size}" for axis, size in sizes.items())


def _size(number: float) -> str:
    for unit, power in (("GiB", 30), ("MiB", 20), ("KiB", 10)):
        if number >= 2**power:
            return f"{number / 2**power:.2f} {unit}"
    return f"{number:.0f} B"
