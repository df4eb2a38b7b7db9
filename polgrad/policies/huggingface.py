"""Directories in the Hugging Face layout: reading and writing. Nothing is ever unpickled."""

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401  (teaches numpy the name bfloat16, which safetensors asks for)
import numpy as np

from polgrad.policies import assets, layout
from polgrad.policies.assets import Policy, TextAssets
from polgrad.policies.settings import config_from_settings, of_text, settings_from_config
from polgrad.policies.transformer import TransformerNetwork

# Scalar heads have no place in the family's own file, and engines refuse tensors they do not know.
HEADS_FILE = "polgrad_heads.safetensors"


def load_directory(path: Path, *, value_head: bool = False, reward_head: bool = False) -> Policy:
    """Reads `config.json`, `*.safetensors` (one file or an index of shards) and the tokenizer.

    Of a Gemma 3 that also sees images, the text model is read (and exported) alone.

    Args:
        path: the directory.
        value_head: adds a value head: the stored one, or zeros.
        reward_head: adds a reward head, likewise.

    Returns:
        The policy, parameters in float32.

    Raises:
        ValueError: an unsupported family or feature, pickled weights, or a missing file or tensor.
    """
    if not (path / "config.json").is_file():
        raise ValueError(f"{path} has no config.json, so it is no Hugging Face model directory")
    told = _read_json(path / "config.json")
    files, settings = _weight_files(path), of_text(told)
    sees = told.get("model_type") == "gemma3"
    names = layout.of_text(files) if sees else {name: name for name in files}
    tied = settings.get("tie_word_embeddings")
    heads = {"value_head": value_head, "reward_head": reward_head}
    config = config_from_settings(
        settings, tied="lm_head.weight" not in names if tied is None else bool(tied), **heads
    )
    with _Shards(files) as shards:
        params = layout.params_from_tensors(config, names, lambda name: shards.read(names[name]))
    stored = path / HEADS_FILE
    if stored.is_file():
        _fill_heads(params, stored)
    text = _load_text(path, settings, config.vocab_size)
    return Policy(TransformerNetwork(config), params, text)


def _read_json(path: Path) -> dict[str, Any]:
    """A JSON object; an absent file is an empty one."""
    if not path.is_file():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error


def _weight_files(path: Path) -> dict[str, Path]:
    """Tensor name to the safetensors file that holds it."""
    from safetensors import safe_open

    index = _read_json(path / "model.safetensors.index.json")
    if index:
        return {name: path / file for name, file in index["weight_map"].items()}
    files = sorted(f for f in path.glob("*.safetensors") if f.name != HEADS_FILE)
    if not files:
        pickled = sorted(f.name for f in path.iterdir() if f.suffix in (".bin", ".pt", ".pth"))
        if pickled:
            raise ValueError(
                f"{path} holds pickled weights only ({pickled[0]}); unpickling runs code from the "
                "file, so polgrad reads safetensors: convert the checkpoint first"
            )
        raise ValueError(f"{path} has no .safetensors file")
    found = {}
    for file in files:
        with safe_open(file, "np") as tensors:
            found.update(dict.fromkeys(tensors.keys(), file))
    return found


class _Shards:
    """Opens each safetensors file once and reads tensors from it as float32."""

    def __init__(self, files: dict[str, Path]):
        self.files, self.open = files, {}

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.open.clear()

    def read(self, name: str) -> np.ndarray:
        from safetensors import safe_open

        file = self.files[name]
        if file not in self.open:
            if not file.is_file():
                raise ValueError(f"{file} is named by the index but does not exist")
            self.open[file] = safe_open(file, "np")
        tensor = self.open[file].get_tensor(name)
        if tensor.dtype.kind not in "fV" or tensor.dtype.itemsize < 2:
            raise ValueError(f"tensor {name} is {tensor.dtype}; quantised weights are not read")
        return tensor.astype(np.float32)


def _fill_heads(params, file: Path) -> None:
    from safetensors.numpy import load_file

    for name, array in load_file(file).items():
        head, leaf = name.split(".")
        if head in params:
            if params[head][leaf].shape != array.shape:
                raise ValueError(f"{name} in {file} has shape {array.shape}")
            params[head][leaf] = array


def _load_text(path: Path, settings: dict[str, Any], rows: int) -> TextAssets | None:
    """The tokenizer and its conventions; None where the directory has no tokenizer.json."""
    if not (path / "tokenizer.json").is_file():
        return None
    import tokenizers

    tokenizer_json = (path / "tokenizer.json").read_text(encoding="utf-8")
    tokenizer = tokenizers.Tokenizer.from_str(tokenizer_json)
    told = _read_json(path / "tokenizer_config.json")
    generation = _read_json(path / "generation_config.json")
    ids: dict[str, int | None] = {}
    for name in ("bos", "eos", "pad", "unk"):
        ids[name] = _token_id(path, tokenizer, told, name)
    stops = []
    for file, source in (("config.json", settings), ("generation_config.json", generation)):
        for name, listed in _listed_ids(path / file, source, rows).items():
            if ids[name] is None and listed:
                ids[name] = listed[0]
            if name == "eos":
                stops += listed
    # Where tokenizer.json has a post-processor, that alone decides: transformers reads it so too.
    starts = told.get("add_bos_token") is True and ids["bos"] is not None
    if starts and json.loads(tokenizer_json).get("post_processor") is None:
        tokenizer_json = assets.begin_texts_with(tokenizer_json, ids["bos"])
    template = _chat_template(path, told)
    text = assets.text_assets(tokenizer_json, template, ids=ids, stop_ids=stops)
    assets.check_ids(text, rows, f"{path / 'tokenizer.json'}")
    return text


def _token_id(path: Path, tokenizer, told: dict[str, Any], name: str) -> int | None:
    """The id of a special token that tokenizer_config.json names; None where it names none."""
    token = told.get(f"{name}_token")
    token = token["content"] if isinstance(token, dict) else token
    index = None if token is None else tokenizer.token_to_id(token)
    # The others may be missing: nothing reads padding, and what begins a text, the tokenizer knows.
    if index is None and token is not None and name == "eos":
        raise ValueError(
            f"{path / 'tokenizer_config.json'}: eos_token is {token!r}, expected a token of "
            "tokenizer.json"
        )
    return index


def _listed_ids(file: Path, source: dict[str, Any], rows: int) -> dict[str, list[int]]:
    """The ids of special tokens that a settings file lists, each seen to have a row."""
    found = {}
    for name in ("bos", "eos", "pad", "unk"):
        listed = source.get(f"{name}_token_id")
        listed = listed if isinstance(listed, list) else [] if listed is None else [listed]
        if name in ("bos", "eos"):
            for index in listed:
                assets.check_row(index, rows, f"{file}: {name}_token_id")
        # Older files say -1 for "no padding".
        found[name] = [index for index in listed if isinstance(index, int) and 0 <= index < rows]
    return found


def _chat_template(path: Path, told: dict[str, Any]) -> str | None:
    """The default template, from the first place that has any, in the order of transformers.

    The files chat_template.jinja and additional_chat_templates/*.jinja, then the entry of
    tokenizer_config.json, then chat_template.json, in which older processors keep theirs.
    """
    named = {f.stem: f for f in sorted((path / "additional_chat_templates").glob("*.jinja"))}
    if (path / "chat_template.jinja").is_file():
        named["default"] = path / "chat_template.jinja"
    if named:
        return named["default"].read_text(encoding="utf-8") if "default" in named else None
    for template in (
        told.get("chat_template"),
        _read_json(path / "chat_template.json").get("chat_template"),
    ):
        if isinstance(template, list):
            template = {entry["name"]: entry["template"] for entry in template}
        if isinstance(template, dict):
            template = template.get("default")
        if template is not None:
            return template
    return None


def export_directory(path: Path, policy: Policy) -> None:
    """Writes a directory that `transformers` and the serving engines read. See `export`."""
    if not isinstance(policy.network, TransformerNetwork):
        raise ValueError(
            f"only a TransformerNetwork can be exported, got {type(policy.network).__name__}"
        )
    settings = settings_from_config(policy.network.config)
    if path.exists() and (not path.is_dir() or (any(path.iterdir()) and not _is_model(path))):
        raise ValueError(f"{path} exists and is no model directory; refusing to replace it")
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        scratch.chmod(0o755)
        _write(scratch, settings, policy)
        _swap(scratch, path)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _is_model(path: Path) -> bool:
    return (path / "config.json").is_file()


def _swap(scratch: Path, path: Path) -> None:
    """Puts `scratch` at `path`; what was there leaves last."""
    if not path.exists():
        os.replace(scratch, path)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    os.replace(path, old)
    os.replace(scratch, path)
    shutil.rmtree(old)


def _write(path: Path, settings: dict[str, Any], policy: Policy) -> None:
    from safetensors.numpy import save_file

    model, heads = layout.tensors_from_params(policy.network.config, policy.params)
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
    for file in path.iterdir():
        file.chmod(0o644)  # safetensors writes for the owner alone


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
