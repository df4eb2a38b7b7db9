"""`polgrad compile`: memory and time of a training step on devices that are not there."""

import dataclasses
import os

from polgrad import _flags
from polgrad.cli.common import fail, value_of


def main(arguments: list[str]) -> int:
    """Compiles a train step for devices that are not there, and prints what it will cost."""
    if value_of(arguments, "--topology") not in (None, "local"):
        # Where libtpu is installed and no TPU is, jax would look for one.
        os.environ.setdefault("JAX_PLATFORMS", "cpu")
        # Reading a program back that jaxlib does not know is told in a line, not in a trace of C++.
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    from polgrad.rehearsal import compiling, report

    schema = dataclasses.make_dataclass(
        "Compile",
        [
            ("topology", str, dataclasses.field(default="local")),
            ("mesh", str | None, dataclasses.field(default=None)),
        ],
        bases=(compiling.Rehearsal,),
        frozen=True,
    )
    schema.__doc__ = (compiling.Rehearsal.__doc__ or "").rstrip() + (
        "\n      topology: a slice such as v5e:16x16 (v4, v5e, v5p, v6e), or local.\n"
        "      mesh: such as data=1,fsdp=64,tensor=4; the best three are tried when left out.\n    "
    )
    try:
        options = _flags.parsed(schema, arguments, "polgrad compile")
        names = [f.name for f in dataclasses.fields(compiling.Rehearsal)]
        what = compiling.Rehearsal(**{name: getattr(options, name) for name in names})
        fits = report.run(what, options.topology, options.mesh)
    except ValueError as error:
        return fail(error, 2)
    return 0 if fits else 1
