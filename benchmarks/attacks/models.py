"""Model directories, tokenizers, templates and GGUF files that are damaged or hostile."""

import functools
import json
import os
import pathlib
import struct

from attacks import Attack
from attacks.world import TRAIN, edit

SAMPLE = ("sample", "--policy", "model", "--prompt", "1+1=", "--max-tokens", "2")
GGUF = ("sample", "--policy", "model.gguf", "--prompt", "1+1=", "--max-tokens", "2")
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
ENTRIES = {
    "model_type": (..., None, 7, "nosuch", []),
    "vocab_size": (..., None, 0, -1, 1.5, "x", 10**14),
    "hidden_size": (..., None, 0, 17, "x", 10**12),
    "num_hidden_layers": (..., None, 0, -1, 2.5, "x", [], 10**9),
    "num_attention_heads": (..., None, 0, 2.7, 3, "x"),
    "num_key_value_heads": (0, -1, 2.5, "x", 7),
    "intermediate_size": (..., None, 0, "x"),
    "max_position_embeddings": (0, -1, "x", 1.5),
    "rms_norm_eps": (-1.0, float("nan"), "x"),
    "rope_theta": (0, -1, float("nan"), "x"),
    "eos_token_id": (99999, "x", [99999], 1.5),
    "head_dim": (0, -1, "x", 3),
    "rope_scaling": ("x", [], {"rope_type": "nosuch"}, {"rope_type": "linear"}),
}
TOKENS = {"eos_token": (["x"], 7, "nosuch", {}), "chat_template": (7, [7], {"default": 7})}
FILES = ("config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors")
TEMPLATES = {
    "division by zero": "{{ 1 / 0 }}",
    "adds a text to a number": "{{ 1 + 'a' }}",
    "includes a file": "{% include 'x' %}",
    "does not parse": "{% for %}",
    "unknown filter": "{{ 'a' | nosuch }}",
    "a long range": "{% for i in range(10**9) %}x{% endfor %}",
    "nested loops": "{% for i in range(99999) %}{% for j in range(99999) %}x{% endfor %}{% endfor %}",
    "a long text": "{{ 'a' * 10**10 }}",
    "recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "a wide format": "{{ '%1000000000d' % 1 }}",
    "raises": "{{ raise_exception('roles must alternate') }}",
    "a class's way out": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "a great power": "{{ 9**(9**9) }}",
}


def _entry(name: str, value, place: pathlib.Path) -> None:
    # Where this entry is, it alone says what the two entries below mean.
    other = {"rope_parameters": ...} if name in ("rope_theta", "rope_scaling") else {}
    edit(place / "model" / "config.json", **{name: value}, **other)


def _token(name: str, value, place: pathlib.Path) -> None:
    edit(place / "model" / "tokenizer_config.json", **{name: value})


def _content(file: str, content: bytes, place: pathlib.Path) -> None:
    (place / "model" / file).write_bytes(content)


def _half(file: str, place: pathlib.Path) -> None:
    path = place / file
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _header(length: int, place: pathlib.Path) -> None:
    path = place / "model" / "model.safetensors"
    path.write_bytes(struct.pack("<Q", length) + path.read_bytes()[8:])


def _index(weights, place: pathlib.Path) -> None:
    (place / "model" / "model.safetensors.index.json").write_text(json.dumps(weights))


def _pickled(place: pathlib.Path) -> None:
    (place / "model" / "model.safetensors").rename(place / "model" / "pytorch_model.bin")


def _not_finite(place: pathlib.Path) -> None:
    from safetensors.numpy import load_file, save_file

    path = place / "model" / "model.safetensors"
    tensors = load_file(path)
    first = sorted(tensors)[0]
    tensors[first] = tensors[first] * float("nan")
    save_file(tensors, path, metadata={"format": "pt"})


def _bytes_at(offset: int, content: bytes, place: pathlib.Path) -> None:
    path = place / "model.gguf"
    old = path.read_bytes()
    path.write_bytes(old[:offset] + content + old[offset + len(content) :])


def _cut(size: float, place: pathlib.Path) -> None:
    path = place / "model.gguf"
    path.write_bytes(path.read_bytes()[: int(size * path.stat().st_size)])


def _link(place: pathlib.Path) -> None:
    os.symlink("model", place / "linked")


def _foreign(place: pathlib.Path) -> None:
    (place / "site").mkdir()
    (place / "site" / "config.json").write_text("{}")
    (place / "site" / "thesis.tex").write_text("work")


def _added(place: pathlib.Path) -> None:
    (place / "model" / "thesis.tex").write_text("work")


def attacks() -> list[Attack]:
    """Damaged models are sampled from, trained and exported; exports go where they may not."""
    found = []
    for name, values in ENTRIES.items():
        for value in values:
            shown = "missing" if value is ... else repr(value)
            found.append(
                Attack(f"models: {name} {shown}", SAMPLE, functools.partial(_entry, name, value))
            )
    for name, values in TOKENS.items():
        for value in values:
            prepare = functools.partial(_token, name, value)
            found.append(Attack(f"models: {name} {value!r}", SAMPLE, prepare))
    contents = {"empty": b"", "a pointer": POINTER, "[]": b"[]", "not UTF-8": b"\xff\xfe{}"}
    for file in FILES:
        for name, content in contents.items():
            prepare = functools.partial(_content, file, content)
            found.append(Attack(f"models: {file} is {name}", SAMPLE, prepare))
        prepare = functools.partial(_half, f"model/{file}")
        found.append(Attack(f"models: half of {file}", SAMPLE, prepare))
        for command in ("train", "export", "evaluate"):
            words = {
                "train": (*TRAIN, "--policy", "model"),
                "export": ("export", "--policy", "model", "--out", "new"),
                "evaluate": ("evaluate", "--policy", "model", "--task", "sums.jsonl"),
            }[command]
            found.append(Attack(f"models: half of {file}, {command}", words, prepare))
    indices = ({}, [], {"weight_map": 7}, {"weight_map": {"x": 7}}, {"weight_map": {"x": "none"}})
    indices += ({"weight_map": {"x": "../../x.safetensors"}}, {"weight_map": {"x": "/etc/passwd"}})
    for index in indices[1:]:
        found.append(
            Attack(f"models: index {json.dumps(index)}", SAMPLE, functools.partial(_index, index))
        )
    for length in (0, 1, 2**40, 2**63):
        prepare = functools.partial(_header, length)
        found.append(Attack(f"models: a header of {length} bytes", SAMPLE, prepare))
    found += [
        Attack("models: pickled weights", SAMPLE, _pickled),
        Attack("models: weights that are not finite", SAMPLE, _not_finite),
    ]
    for name, template in TEMPLATES.items():
        prepare = functools.partial(_token, "chat_template", template)
        found.append(Attack(f"models: template, {name}", SAMPLE, prepare))
    for name in ("division by zero", "nested loops", "a long text"):
        prepare = functools.partial(_token, "chat_template", TEMPLATES[name])
        words = (*TRAIN, "--policy", "model")
        found.append(Attack(f"models: template, {name}, trained on", words, prepare))
    huge = struct.pack("<Q", 2**62)
    for name, offset, content in (
        ("no magic", 0, b"XXXX"),
        ("another version", 4, struct.pack("<I", 99)),
        ("too many tensors", 8, huge),
        ("too many entries", 16, huge),
        ("a name without end", 24, huge),
    ):
        prepare = functools.partial(_bytes_at, offset, content)
        found.append(Attack(f"models: GGUF, {name}", GGUF, prepare))
    for share in (0, 0.01, 0.1, 0.5, 0.9, 0.999):
        found.append(Attack(f"models: GGUF cut to {share}", GGUF, functools.partial(_cut, share)))
    export = ("export", "--policy", "runs/a", "--out")
    found += [
        Attack("models: export over the run itself", (*export, "runs/a")),
        Attack("models: export over another's folder", (*export, "site"), _foreign),
        Attack("models: export over a file", (*export, "notes.txt")),
        Attack("models: export through a link", (*export, "linked"), _link),
        Attack("models: export to the working directory", (*export, ".")),
        Attack("models: export to nothing", (*export, "")),
        Attack("models: export over an export with more in it", (*export, "model"), _added),
        Attack("models: export of a step that is not there", (*export, "new", "--step", "3")),
        Attack("models: export of nothing", ("export", "--policy", "nosuch", "--out", "new")),
        Attack("models: export below a file", (*export, "notes.txt/new")),
    ]
    return found
