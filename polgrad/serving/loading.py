"""Loading a policy: the checkpoint of a run, or whatever `policies.load` knows."""

import pathlib
import sys

import jax

from polgrad import _outside, data, policies
from polgrad.policies.hub.assets import missing_template
from polgrad.training.saving.description import POLICY_FILE, read_description
from polgrad.training.saving.places import place_of, steps_in
from polgrad.training.saving.reading import restore_params, shape_difference
from polgrad.training.setup import run_files


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
        network, tokenizer, text = read_description(_outside.read_json(path))
    params, _ = restore_params(directory, step, remote=remote)
    expected = jax.eval_shape(network.init, jax.random.key(0))
    if difference := shape_difference(params, expected):
        raise _outside.OutsideError(f"{path}: describes another network: {difference}")
    return policies.Policy(network, params, text), tokenizer


def _is_begun(directory: pathlib.Path) -> bool:
    """Whether a run has locked a directory and ended before it wrote its settings."""
    if (directory / run_files.CONFIG).exists() or steps_in(place_of(directory, None)):
        return False
    return any((directory / name).is_file() for name in (".lock", run_files.IDENTITY))


def say_missing_template(name: str, policy: policies.Policy) -> None:
    """A line where turns are known and a template is not; a run was told so when it began."""
    is_run = (pathlib.Path(name).expanduser() / POLICY_FILE).is_file()
    if not is_run and (note := missing_template(policy.text)):
        print(f"polgrad: {_outside.printable(note)}", file=sys.stderr)
