"""Writes the pages that are made from the code: docs/primitives.md, guarantees.md, estimators.md.

python docs/generate.py [NAME ...]      all pages, or those named
"""

import functools
import inspect
import itertools
import os
import pathlib
import re
import sys
from collections.abc import Callable, Iterator

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Hundreds of small programs run once each: most of the time goes into compiling them well.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true "
    "--xla_cpu_use_fusion_emitters=false",
)

from polgrad import (
    _annotations,
    advantages,
    algorithms,
    conformance,
    divergences,
    losses,
)
from polgrad.conformance import catalogue, edges
from polgrad.conformance.catalogue import Primitive

HERE = pathlib.Path(__file__).parent


def table(*head: str) -> str:
    """The first two lines of a table."""
    return f"| {' | '.join(head)} |\n|{'---|' * len(head)}\n"


def line(*cells: str) -> str:
    """Another line of it, without its end."""
    return f"| {' | '.join(cell.replace('|', '&#124;') for cell in cells)} |"


# --- What every primitive is ------------------------------------------------------------------

PRIMITIVES = """# All primitives

Made by `python docs/generate.py` from the signatures and docstrings. Brackets are shapes: `B`
sequences, `T` steps or tokens, `G` samples of a prompt, `K` answers of a list, `V` vocabulary, `A`
actions, `N` of a table, `...` any. `help(losses.ppo_clip)` says more: ranges, units, errors, edges.
Which one to take: [choosing.md](choosing.md). What they return at the edges:
[guarantees.md](guarantees.md). Their bias and variance: [estimators.md](estimators.md).

Running means are no functions of arrays, but make such functions: `help(polgrad.running)` shows
`mean`, `exponential`, `window` and `log_mean`, each with `init`, `update` and `value`.
"""


def primitives() -> str:
    """An entry for each function, room by room."""
    parts = [PRIMITIVES]
    for room, members in itertools.groupby(catalogue.primitives(), lambda p: p.room):
        parts.append(f"\n# {room}\n")
        parts.extend(map(entry, members))
    return "".join(parts)


def entry(primitive: Primitive) -> str:
    """What it is, how it is called, its formula, when to use it, where it comes from."""
    description = inspect.getdoc(primitive.function).partition("\nArgs:\n")[0]
    call = catalogue.signature(primitive) + returned(primitive.function)
    when = situations().get(primitive.name)
    parts = [
        f"\n## `{primitive.name}`\n",
        primitive.summary,
        f"\n```\n{call}\n```\n",
        *formula(description.split("\n\n")[1:]),
        f"When: {'; '.join(when)}.\n" if when else "",
        f"*{references(primitive)}*\n" if references(primitive) else "",
    ]
    return "\n".join(filter(None, parts))


# A function is recommended by `name` or `name(settings)`; one in parentheses is only mentioned.
_NAMED = re.compile(r"`([\w.]+)(?:\(([^`]*)\))?`")
_ASIDE = re.compile(r"(`[^`]*`)|\([^()`]*(?:`[^`]*`[^()`]*)*\)")


@functools.cache
def situations() -> dict[str, list[str]]:
    """From each function to the situations in which choosing.md recommends it."""
    found = {}
    names = [p.name for p in catalogue.primitives()]
    for text in (HERE / "choosing.md").read_text().splitlines():
        cells = [cell.strip() for cell in text.strip("|").split("|")]
        row = len(cells) == 2 and text.startswith("|")
        for word, arguments in _NAMED.findall(_ASIDE.sub(r"\1", cells[1])) if row else ():
            for name in names:
                if name == word or ("." not in word and name.partition(".")[2] == word):
                    settings = f" (with `{arguments}`)" if arguments else ""
                    found.setdefault(name, []).append(cells[0] + settings)
    return {name: list(dict.fromkeys(lines)) for name, lines in found.items()}


def formula(paragraphs: list[str]) -> Iterator[str]:
    """The first equation or display, to the end of its sentence."""
    shows = (i for i, text in enumerate(paragraphs) if " = " in text or is_display(text))
    first = next(shows, len(paragraphs))
    for text, after in itertools.pairwise([*paragraphs[first:], ""]):
        yield shown(text)
        ended = is_display(text) or text.rstrip().endswith((".", ")"))
        if not (is_display(after) or (after and not ended) or after[:1].islower()):
            return


def is_display(paragraph: str) -> bool:
    """What is indented in a docstring is a display."""
    return paragraph.startswith("  ")


def shown(paragraph: str) -> str:
    """A paragraph of a page, a display as code."""
    text = inspect.cleandoc(paragraph)
    return f"```\n{text}\n```\n" if is_display(paragraph) else f"{text}\n"


def returned(function: Callable) -> str:
    """The shape of the result, where it is one array."""
    annotation = _annotations.array_annotation(inspect.signature(function).return_annotation)
    single = hasattr(inspect.signature(function).return_annotation, "dim_str")
    return f" -> [{','.join(annotation.dim_str.split())}]" if single else ""


# --- Where it comes from ------------------------------------------------------------------------

PAPERS = """# The papers, and what came of each

Made by `python docs/generate.py` from the references in the docstrings. Files are below `polgrad/`; the
proofs of `losses/tokens.py` are in `tests/losses/tokens/` or `tests/losses/test_tokens.py`. What a paper
claims, and whether it holds at small size, is another table: the ledger in the [README](../README.md).
"""
_CITATION = re.compile(r"((?:[^()]|\((?!arXiv)[^()]*\))*?)\(arXiv:(\d{4}\.\d{4,5})\)")


def papers() -> str:
    """A line for each arXiv identifier, the oldest first."""
    titles, functions = {}, {}
    for primitive in catalogue.primitives():
        for text, identifier in _CITATION.findall(references(primitive)):
            title = cleaned(text)
            titles[identifier] = max(titles.get(identifier, ""), title, key=len)
            functions.setdefault(identifier, {})[primitive.name] = primitive
    parts = [PAPERS, "\n", table("paper", "functions", "files")]
    for identifier in sorted(titles):
        names = ", ".join(f"`{name}`" for name in functions[identifier])
        files = sorted({module_of(p).replace(".", "/") for p in functions[identifier].values()})
        paper = f"{titles[identifier]} ([{identifier}](https://arxiv.org/abs/{identifier}))"
        parts.append(line(paper, names, ", ".join(f"`{file}.py`" for file in files)) + "\n")
    return "".join(parts)


def cleaned(citation: str) -> str:
    """Authors and title, without the end of the reference before and the year."""
    alone = re.split(r", \d{4}[.:] ", citation)[-1]
    alone = re.sub(r"^[^A-Z]+(?=[A-Z])", "", alone.strip(" .:;,"))
    return re.sub(r",? \d{4}$", "", alone.strip())


def references(primitive: Primitive) -> str:
    """The References section of a docstring, on one line."""
    doc = inspect.getdoc(primitive.function)
    found = re.search(r"^References:\n((?:  .*\n?|\n)+)", doc, re.MULTILINE)
    return " ".join(found.group(1).split()) if found else ""


def module_of(primitive: Primitive) -> str:
    """The module that defines a function, below polgrad, such as "losses.tokens"."""
    return inspect.getmodule(primitive.function).__name__.removeprefix("polgrad.")


def mirrored(primitive: Primitive) -> list[pathlib.Path]:
    """The test files of the file that holds a function: its mirror, and those in a folder of its name."""
    *rooms, module = module_of(primitive).split(".")
    place = HERE.parent.joinpath("tests", *rooms)
    folder = sorted((place / module).glob("test_*.py"))
    return folder + [path for path in [place / f"test_{module}.py"] if path.exists()]


# --- What it returns for the worst inputs -------------------------------------------------------

GUARANTEES = """# What every primitive returns for the worst inputs

Made by `python docs/generate.py` from calls of the functions; `tests/conformance/test_edges.py` makes
the same calls and fails where this page says something else. It also shows that each function gives
the same under `vmap` as alone, accumulates bfloat16 in float32 (but for `tabular`, which are exact
tables in float32 or float64), and has finite values and gradients in all of these situations, those
with several NaNs, with -900 nats and with minus infinity under the mask included. (Two kinds are
exempt, and say so: functions that map rewards to rewards or returns pass a NaN through, so that
later code can detect it; and logarithms of 0 are minus infinity.)

Each cell gives the function's value for the affected row (of a group, sequence or sample; the
affected entry for minus infinity and NaN): the number if it is always the same, else "finite". "No
gradient" means exactly 0. Results with several parts are separated by a slash. Empty: there is no
such input.

- *gradient reaches*: arguments with a gradient that is not 0. For a loss: what is learned.
- *nothing valid*, *one valid*: `mask` or `valid` is 0 in the whole row, or but for its first entry.
  Where all rows give one number, nothing is valid anywhere, and all rewards are NaN.
- *equal rewards*: all of the row's rewards are 0.5.
- *logp -inf*: the current policy excludes the first entry; *stopped -inf*: the behaviour, reference
  or teacher does; *both -inf*.
- *NaN reward*: the first reward is NaN.
"""


def guarantees() -> str:
    """One table a room."""
    parts = [GUARANTEES]
    for room, members in itertools.groupby(edges.examinable(), lambda p: p.room):
        parts.append(f"\n## {room}\n\n")
        parts.append(table("primitive", "gradient reaches", *edges.COLUMNS))
        parts.extend(guarantee(p, edges.examine(p)) + "\n" for p in members)
    return "".join(parts)


def guarantee(primitive: Primitive, found: edges.Examination) -> str:
    """The line of one primitive."""
    reached = ", ".join(f"`{name}`" for name in found.reached) or "nothing"
    cells = edges.cells(primitive, found).values()
    return line(f"`{primitive.name}`", reached if found.gradients[0] else "", *cells)


# --- Bias and variance --------------------------------------------------------------------------

ESTIMATORS = """# Which gradient every estimator follows

Made by `python docs/generate.py` with `polgrad.conformance`: nothing is sampled. A bandit of four
actions, and completions of one to three tokens, are summed over completely in float64, so bias and
variance are exact; `tests/conformance/test_card.py` and `test_estimators.py` measure them anew and
fail where this page says something else. `conformance.check(your_loss)` does it for any loss, and
`conformance.check(algorithms.GRPO(clip_high=0.28))` for any algorithm with its settings.
"""
LOSSES = """
## Losses

Four figures each: on-policy, and with noise of standard deviation 0.1, 0.5 and 1 on the logits of
the policy that sampled.

- *bias*: distance between the expected gradient and the policy gradient, over the latter's length.
  A gradient that is only shorter has a bias too; *cosine* tells the direction.
- *variance*: of a one-sample gradient (trace of its covariance), over that of on-policy REINFORCE
  with the same baseline. A smaller one may be bought with a shorter gradient.
- *follows*: the known gradients that it equals to 1e-7, from on-policy to the most stale.

"""
SETTINGS = """
## Whole algorithms

`conformance.check` takes settings too, yours as well as those of `polgrad.algorithms`. Every rollout (4 samples of the
bandit, or 2 of the completions; every labelled pair; every demonstration) goes through `prepare`, `select` and `loss`
with its exact probability. *Bias* and *variance* are now relative to REINFORCE with the mean of the other
samples as baseline, or to DPO with the same beta. A gradient that is a multiple of the known one
has a bias: *follows* tells the multiple, and adds the gradients of KL and entropy terms.

Division by the deviation of a group, as in GRPO, makes the gradient no policy gradient of the mean reward. With
rewards of 0 and 1 it is one, times a factor that differs between prompts: the card of GRPO says both.

"""
KL = """
## KL terms

Against a reference half a unit of noise away. *Value*: its expectation over KL(policy ||
reference), and the standard deviation of one sample. *Variance*: of the gradient, over that of the
score function estimator. As a loss, k1 has the expected gradient 0: `losses.kl_penalty` refuses it.

"""
ADVANTAGES = """
## Advantages of a group

REINFORCE with four samples of the bandit a group, each group on its own. *Scale*: length of the
expected gradient along the policy gradient, over the latter's. *Bias*: length of the component
orthogonal to the policy gradient, over the length of the parallel one. *Variance*: at unit scale, over that of `advantages.leave_one_out`.

"""
_partial = functools.partial
POLICY_LOSSES = {
    "reinforce": losses.reinforce,
    "ppo_clip": losses.ppo_clip,
    "ppo_clip(dual_clip=3)": _partial(losses.ppo_clip, dual_clip=3.0),
    "ppo_clip_sequence": losses.ppo_clip_sequence,
    "gspo": losses.gspo,
    "gspo_token": losses.gspo_token,
    "gmpo": losses.gmpo,
    "luspo": losses.luspo,
    "cispo": losses.cispo,
    "sapo": losses.sapo,
    "vespo": losses.vespo,
    "dppo_tv": losses.dppo_tv,
    "dppo_kl": losses.dppo_kl,
    "dro(beta=1)": _partial(losses.dro, beta=1.0),
    "clip_cov": losses.clip_cov,
    "kl_cov": losses.kl_cov,
    "topr": losses.topr,
    "topr(all ratios)": _partial(
        losses.topr, positive=(0.0, float("inf")), negative=(0.0, float("inf"))
    ),
}
ALGORITHMS = {
    "RLOO()": algorithms.RLOO(),
    "RLOO(kl=RewardKL(0.3))": algorithms.RLOO(kl=algorithms.RewardKL(0.3)),
    "Reinforce()": algorithms.Reinforce(),
    "DrGRPO()": algorithms.DrGRPO(),
    "GRPO()": algorithms.GRPO(),
    "GRPO(scale='none')": algorithms.GRPO(scale="none"),
    "NashMD()": algorithms.NashMD(),
    "DPO()": algorithms.DPO(),
    "IPO()": algorithms.IPO(),
}
KL_TERMS = {
    **{
        f"kl_estimate(kind={kind!r}) in the reward": (
            _partial(divergences.kl_estimate, kind=kind),
            "reward",
        )
        for kind in ("k1", "k2", "k3")
    },
    "k1 in the loss": (lambda logp, reference_logp: logp - reference_logp, "loss"),
    **{
        f"kl_penalty(gradient={kind!r}) in the loss": (
            _partial(losses.kl_penalty, gradient=kind),
            "loss",
        )
        for kind in ("k2", "k3")
    },
}
GROUP_ADVANTAGES = {
    "leave_one_out": advantages.leave_one_out,
    "group_relative": advantages.group_relative,
    "group_relative(scale='none')": _partial(advantages.group_relative, scale="none"),
    "gpg": advantages.gpg,
    "above_worst": advantages.above_worst,
}


def estimators() -> str:
    """Losses, algorithms, KL terms and advantages, a table each."""
    cards = {name: conformance.check(loss) for name, loss in POLICY_LOSSES.items()}
    return "".join(
        [
            ESTIMATORS,
            LOSSES,
            table("loss", "problem", "bias", "cosine", "variance", "follows"),
            *(f"{row}\n" for name, card in cards.items() for row in loss_lines(name, card)),
            SETTINGS,
            table("settings", "problem", "bias", "cosine", "variance", "follows"),
            *(
                f"{row}\n"
                for name, settings in ALGORITHMS.items()
                for row in loss_lines(name, conformance.check(settings))
            ),
            KL,
            table("term", "problem", "value", "deviation", "cosine", "variance", "follows"),
            *(f"{row}\n" for name in KL_TERMS for row in kl_lines(name)),
            ADVANTAGES,
            table("advantages", "scale", "bias", "variance"),
            *(advantage_line(name) + "\n" for name in GROUP_ADVANTAGES),
        ]
    )


def loss_lines(name: str, card: conformance.Card) -> Iterator[str]:
    """A line for each problem."""
    for problem, measured in itertools.groupby(card.measurements, lambda m: m.problem):
        found = list(measured)
        columns = (
            [number(m.bias) for m in found],
            [f"{m.cosine:.3f}" for m in found],
            [number(m.variance) for m in found],
        )
        follows = "; ".join(dict.fromkeys(m.follows for m in found))
        yield line(f"`{name}`", problem, *map(" · ".join, columns), follows)


def kl_lines(name: str) -> Iterator[str]:
    """A line for each problem."""
    term, place = KL_TERMS[name]
    for m in conformance.measure_kl(term, place=place):
        figures = number(m.value), number(m.deviation), f"{m.cosine:.3f}", number(m.variance)
        yield line(f"`{name}`", m.problem, *figures, m.follows)


def advantage_line(name: str) -> str:
    """One line."""
    return line(f"`{name}`", *map(number, conformance.measure_advantages(GROUP_ADVANTAGES[name])))


def number(x: float) -> str:
    """Three digits; what is only rounding is 0."""
    return f"{0.0 if abs(x) < 1e-9 else x:.3g}"


def signatures() -> str:
    """One a line: whoever changes the interface sees what users will see."""
    return "".join(f"{catalogue.signature(p)}\n" for p in catalogue.primitives())


PAGES = {
    "primitives": (primitives, HERE / "primitives.md"),
    "papers": (papers, HERE / "papers.md"),
    "guarantees": (guarantees, HERE / "guarantees.md"),
    "estimators": (estimators, HERE / "estimators.md"),
    "signatures": (signatures, HERE.parent / "tests" / "golden" / "signatures.txt"),
}


def main() -> None:
    """Writes the pages named on the command line, or all; none if one cannot be made."""
    made = {path: page() for page, path in (PAGES[name] for name in sys.argv[1:] or PAGES)}
    for path, text in made.items():
        path.write_text(text)


if __name__ == "__main__":
    main()
