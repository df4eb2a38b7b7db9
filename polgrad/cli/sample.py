"""`polgrad sample`: completions of a policy."""

import dataclasses
from typing import Annotated

from polgrad import _flags
from polgrad._ranges import COUNT, FILLED, SEED, Range, documented
from polgrad.cli.common import GREEDY, MIN_P, NO_CACHE, STEP, TOP_K, TOP_P, fail


@documented
@dataclasses.dataclass(frozen=True)
class Sample:
    """Print completions of a policy.

    Attributes:
      policy: `smollm2-135m-instruct`, a Hugging Face directory, a `.gguf` file, or a run.
      prompt: the text; the chat template is applied where the policy has one.
      step: which checkpoint of a run; the newest when left out.
      remote: read checkpoints at an address, such as `gs://bucket/run`, that the run names.
      temperature: 0 takes the likeliest token.
      top_k: keep only the k likeliest tokens; 0 keeps all.
      top_p: keep the likeliest tokens up to this mass.
      min_p: keep tokens at least this likely, relative to the likeliest.
      max_tokens: longest completion; when left out what the policy's context leaves, up to 64.
      samples: how many completions.
      seed: of the sampler.
    """

    policy: Annotated[str, FILLED]
    prompt: str
    step: Annotated[int | None, STEP] = None
    remote: bool = False
    temperature: Annotated[float, GREEDY] = 1.0
    top_k: Annotated[int, TOP_K] = 0
    top_p: Annotated[float, TOP_P] = 1.0
    min_p: Annotated[float, MIN_P] = 0.0
    max_tokens: Annotated[int | None, COUNT] = None
    samples: Annotated[int, Range(at_least=1, at_most=65536)] = 1
    seed: Annotated[int, SEED] = 0


def main(arguments: list[str]) -> int:
    """Prints samples of a policy."""
    options = _flags.parsed(Sample, arguments, "polgrad sample", (NO_CACHE,))
    from polgrad.serving import sampling

    try:
        texts = sampling.sample(
            options.policy,
            options.prompt,
            step=options.step,
            remote=options.remote,
            samples=options.samples,
            seed=options.seed,
            max_tokens=options.max_tokens,
            temperature=options.temperature,
            top_k=options.top_k,
            top_p=options.top_p,
            min_p=options.min_p,
        )
    except (ValueError, OSError) as error:
        return fail(error, 2)
    print("\n---\n".join(texts))
    return 0
