"""Directories in the Hugging Face layout: reading them. Nothing is ever unpickled."""

from pathlib import Path
from typing import Any

from polgrad._outside import read_json, reading
from polgrad.policies import entries
from polgrad.policies.hub import assets, tensor_names
from polgrad.policies.hub.assets import Policy, TextAssets
from polgrad.policies.hub.config_json import config_from_settings, of_text
from polgrad.policies.hub.weights import HEADS_FILE, Weights
from polgrad.policies.network import Params
from polgrad.policies.transformer import TransformerNetwork

_TOKENS = ("bos", "eos", "pad", "unk")


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
        OutsideError: an unsupported family or feature, pickled weights, or a file that is missing,
            damaged or at odds with another; names the file.
    """
    file = path / "config.json"
    if not (file.exists() or file.is_symlink()):
        raise ValueError(f"{path} has no config.json, so it is no Hugging Face model directory")
    told = read_json(file)
    weights = Weights.of_directory(path)
    heads = {"value_head": value_head, "reward_head": reward_head}
    with reading(file):
        settings = of_text(told)
        sees = told.get("model_type") == "gemma3"
        names = (
            tensor_names.of_text(weights.files) if sees else {name: name for name in weights.files}
        )
        tied = settings.get("tie_word_embeddings")
        if tied is None:
            tied = "lm_head.weight" not in names
        tied = entries.flag("tie_word_embeddings", tied)
        if not tied and "lm_head.weight" not in names:
            raise ValueError(
                "tie_word_embeddings is false, but the checkpoint lacks the tensor lm_head.weight"
            )
        shapes = {name: weights.shape(theirs) for name, theirs in names.items()}
        config = config_from_settings(settings, tied=tied, **heads)
        # What the file claims is held against the weights before any memory is taken for it.
        tensor_names.check_sizes(config, shapes)
    # What goes wrong here and is no file's own fault is a matter of all of them.
    with reading(path):
        params = tensor_names.params_from_tensors(
            config, shapes, lambda name: weights.read(names[name])
        )
    _fill_heads(params, path / HEADS_FILE)
    text = _load_text(path, settings, config.vocab_size)
    return Policy(TransformerNetwork(config), params, text)


def _fill_heads(params: Params, file: Path) -> None:
    """Puts stored scalar heads where the policy has such heads."""
    if not (file.exists() or file.is_symlink()):
        return
    stored = Weights.of_file(file)
    for name in stored.files:
        head, _, leaf = name.partition(".")
        if head not in tensor_names.HEADS:
            with reading(file):
                raise ValueError(f"tensor {name} is no part of {' or '.join(tensor_names.HEADS)}")
        if head not in params:
            continue
        with reading(file):
            wanted = params[head][leaf].shape
            if stored.shape(name) != wanted:
                raise ValueError(f"{name} has shape {stored.shape(name)}, expected {wanted}")
        params[head][leaf] = stored.read(name)


def _load_text(path: Path, settings: dict[str, Any], rows: int) -> TextAssets | None:
    """The tokenizer and its conventions; None where the directory has no tokenizer.json."""
    file = path / "tokenizer.json"
    if not (file.exists() or file.is_symlink()):
        return None
    with reading(file):
        document = read_json(file)
        tokenizer_json = file.read_text(encoding="utf-8")
        tokenizer = assets.tokenizer_from(tokenizer_json)
    told = _settings_file(path / "tokenizer_config.json")
    generation = _settings_file(path / "generation_config.json")
    ids: dict[str, int | None] = {}
    for name in _TOKENS:
        with reading(path / "tokenizer_config.json"):
            ids[name] = _token_id(tokenizer, told, name)
    stops = []
    for source_name, source in (("config.json", settings), ("generation_config.json", generation)):
        with reading(path / source_name):
            listed = _listed_ids(source, rows)
        for name in _TOKENS:
            if ids[name] is None and listed[name]:
                ids[name] = listed[name][0]
        stops += listed["eos"]
    with reading(path / "tokenizer_config.json"):
        # Where tokenizer.json has a post-processor, that alone decides, as in transformers.
        starts = told.get("add_bos_token") is not None and entries.flag(
            "add_bos_token", told["add_bos_token"]
        )
        template = _chat_template(path, told)
    with reading(file):
        if starts and document.get("post_processor") is None and ids["bos"] is not None:
            tokenizer_json = assets.begin_texts_with(tokenizer_json, ids["bos"])
        text = assets.text_assets(tokenizer_json, template, ids=ids, stop_ids=stops)
        assets.check_ids(text, rows, str(file))
    return text


def _settings_file(path: Path) -> dict[str, Any]:
    """A JSON object; an absent file is an empty one."""
    return read_json(path) if path.exists() or path.is_symlink() else {}


def _token_id(tokenizer, told: dict[str, Any], name: str) -> int | None:
    """The id of a special token that tokenizer_config.json names; None where it names none."""
    token = told.get(f"{name}_token")
    if token is None:
        return None
    token = token.get("content") if isinstance(token, dict) else token
    index = tokenizer.token_to_id(entries.text(f"{name}_token", token))
    # The others may be missing: nothing reads padding, and what begins a text, the tokenizer knows.
    if index is None and name == "eos":
        raise ValueError(f"eos_token is {token!r}, expected a token of tokenizer.json")
    return index


def _listed_ids(source: dict[str, Any], rows: int) -> dict[str, list[int]]:
    """The ids of special tokens that a settings file lists, each seen to have a row."""
    found = {}
    for name in _TOKENS:
        listed = source.get(f"{name}_token_id")
        listed = listed if isinstance(listed, list) else [] if listed is None else [listed]
        for index in listed:
            if name in ("bos", "eos"):
                assets.check_row(index, rows, f"{name}_token_id")
            else:
                # Older files say -1 for "no padding", and nothing reads a row of padding.
                entries.whole(f"{name}_token_id", index, least=-(2**31))
        found[name] = [index for index in listed if 0 <= index < rows]
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
        if "default" not in named:
            return None
        with reading(named["default"]):
            return named["default"].read_text(encoding="utf-8")
    template = _default_template(told.get("chat_template"))
    if template is None:
        older = path / "chat_template.json"
        content = _settings_file(older)
        with reading(older):
            template = _default_template(content.get("chat_template"))
    return template


def _default_template(told: Any) -> str | None:
    """The default of an entry that is one template, or several with names."""
    if isinstance(told, list):
        named = {}
        for i, entry in enumerate(told):
            entry = entries.mapping(f"chat_template[{i}]", entry)
            name = entries.text(f"chat_template[{i}].name", entry.get("name"))
            named[name] = entries.text(f"chat_template[{i}].template", entry.get("template"))
        told = named
    if isinstance(told, dict):
        told = told.get("default")
    return None if told is None else entries.text("chat_template", told)
