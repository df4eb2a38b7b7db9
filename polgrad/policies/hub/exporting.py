"""Writing a policy as a directory in the Hugging Face layout, whole or not at all."""

import json
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from polgrad import _files
from polgrad._outside import OutsideError, read_json
from polgrad.policies.hub import assets, tensor_names
from polgrad.policies.hub.assets import Policy, TextAssets
from polgrad.policies.hub.config_json import settings_from_config
from polgrad.policies.hub.weights import HEADS_FILE, check_finite
from polgrad.policies.transformer import TransformerNetwork

# Says that export wrote a directory, and which files.
MARK = "polgrad_export.json"
_SCHEMA = 1


def export_directory(path: Path, policy: Policy) -> list[str]:
    """Writes a directory that `transformers` and the serving engines read. See `export`."""
    if not isinstance(policy.network, TransformerNetwork):
        raise ValueError(
            f"only a TransformerNetwork can be exported, got {type(policy.network).__name__}"
        )
    settings = settings_from_config(policy.network.config)
    # Without resolving links: a link at the end of the path is refused, and never followed.
    path = Path(os.path.abspath(path))
    _replaceable(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    _tell_of_old(path)
    scratch = Path(tempfile.mkdtemp(prefix=f".{path.name[:100]}.", dir=path.parent))
    try:
        scratch.chmod(0o755)
        names = _write(scratch, settings, policy)
        for file in (*scratch.iterdir(), scratch):
            _files.sync(file)
        _swap(scratch, path)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return names


def _replaceable(path: Path) -> list[str]:
    """The files that an export at `path` replaces: those that an earlier export wrote there.

    Raises:
        ValueError: there is something at `path` that no export wrote; nothing was changed.
    """
    if path.is_symlink():
        raise ValueError(f"{path} is a link; give the directory itself")
    if not path.exists():
        return []
    if not path.is_dir():
        raise ValueError(f"{path} exists and is no directory")
    if Path.cwd().is_relative_to(path.resolve()):
        raise ValueError(f"{path} is the working directory, or holds it; give a new directory")
    return _written(path)


def _written(path: Path) -> list[str]:
    """The files of a directory, each of which an export wrote there."""
    there = sorted(os.listdir(path))
    if not there:
        return []
    rest = "so it is not replaced; give a new directory, or remove this one yourself"
    if MARK not in there:
        raise ValueError(f"{path} holds {there[0]!r} and no {MARK}: no export wrote it, {rest}")
    try:
        mark = read_json(path / MARK)
    except OutsideError as error:
        raise ValueError(f"{error}; {rest}") from None
    files = mark.get("files")
    if mark.get("schema") != _SCHEMA or not isinstance(files, list):
        raise ValueError(f"{path / MARK} has another form than an export gives it, {rest}")
    for name in there:
        if (name != MARK and name not in files) or not os.path.isfile(path / name):
            raise ValueError(f"{path} holds {name!r}, which no export wrote there, {rest}")
    return there


def _swap(scratch: Path, path: Path) -> None:
    """Puts `scratch` at `path`. What was there leaves last, and file by file: nothing else goes."""
    if not path.exists():
        os.replace(scratch, path)
        _files.sync(path.parent)
        return
    old = Path(tempfile.mkdtemp(prefix=_old_prefix(path), dir=path.parent))
    try:
        os.replace(path, old)
    except OSError:
        os.rmdir(old)
        raise
    # A crash between these two moves leaves nothing at `path`, and `_tell_of_old` says what to do.
    try:
        os.replace(scratch, path)
    except BaseException:
        os.replace(old, path)
        raise
    try:
        files = _written(old)  # looked at again where nobody adds to it any more
    except BaseException:
        os.replace(path, scratch)
        os.replace(old, path)
        raise
    _files.sync(path.parent)
    for name in sorted(files, key=lambda name: name != MARK):  # what has a mark is whole
        os.unlink(old / name)
    os.rmdir(old)


def _old_prefix(path: Path) -> str:
    return f".{path.name[:100]}.old."


def _tell_of_old(path: Path) -> None:
    """Says where an export lies that another one was about to replace when that one died."""
    for old in sorted(path.parent.iterdir()):
        if old.name.startswith(_old_prefix(path)) and (old / MARK).is_file():
            print(
                f"polgrad: {old} is an earlier export to {path}, left by an export that was cut off "
                "(or still goes on); keep it under another name, or remove it",
                file=sys.stderr,
            )


def _write(path: Path, settings: dict[str, Any], policy: Policy) -> list[str]:
    from safetensors.numpy import save_file

    model, heads = tensor_names.tensors_from_params(policy.network.config, policy.params)
    for name, tensor in {**model, **heads}.items():
        check_finite(name, tensor)
    # Loaders look for this note before they trust the layout.
    save_file(model, path / "model.safetensors", metadata={"format": "pt"})
    if heads:
        save_file(heads, path / HEADS_FILE)
    text, generation = policy.text, {}
    if text is not None:
        ids = {
            "bos_token_id": text.bos_id,
            "eos_token_id": text.eos_id,
            "pad_token_id": text.pad_id,
        }
        settings = {**settings, **ids}
        generation = {**ids, "eos_token_id": list(text.stop_ids) or None}
        (path / "tokenizer.json").write_text(text.tokenizer_json, encoding="utf-8")
        _write_json(path / "tokenizer_config.json", _tokenizer_settings(text, settings))
    _write_json(path / "config.json", settings)
    _write_json(path / "generation_config.json", generation)
    names = sorted([*os.listdir(path), MARK])
    _write_json(path / MARK, {"schema": _SCHEMA, "files": names})
    for file in path.iterdir():
        file.chmod(0o644)  # safetensors writes for the owner alone
    return names


def _tokenizer_settings(text: TextAssets, settings: dict[str, Any]) -> dict[str, Any]:
    told = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": settings["max_position_embeddings"],
        "clean_up_tokenization_spaces": False,
        "bos_token": text.bos_token,
        "eos_token": text.eos_token,
        "pad_token": text.pad_token,
        "unk_token": text.unk_token,
        # The post-processor in tokenizer.json says the same to newer readers.
        "add_bos_token": assets.begins_with_bos(text),
        "chat_template": text.chat_template,
    }
    return {name: value for name, value in told.items() if value is not None}


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
