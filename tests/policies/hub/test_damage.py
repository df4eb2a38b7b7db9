"""Model directories and GGUF files with one thing wrong: one line that names the file, or a policy.

Every entry of every JSON file of a valid directory is deleted, nulled and given other types and
values; every file is cut, emptied, filled with noise and replaced. What then loads must be able to
read a prompt: its network must have a forward pass by shape, its tokenizer must give ids.
"""

import copy
import functools
import json
import math
import os
import struct
import time

import gguf
import hypothesis
import hypothesis.strategies as st
import jax
import ml_dtypes
import numpy as np
import pytest
import tiny_policies
from hypothesis import given
from safetensors.numpy import load_file, save_file

from polgrad import data, policies
from polgrad.policies import configuration
from polgrad.policies.hub import assets, config_json

DELETED = object()
VALUES = (DELETED, None, True, False, -1, 0, 1.5, "x", [], {}, 10**14, math.nan, math.inf)
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
LLAMA3 = policies.RopeScaling("llama3", 8.0, 1.0, 4.0, 4096)
SHAPES = {
    "llama": {"rope_scaling": LLAMA3, "layers": 1},
    "gemma3": {**tiny_policies.GEMMA3, "layers": 3, "global_every": 3},
}
JSON_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer_config.json",
    "tokenizer.json",
    "model.safetensors.index.json",
)


@pytest.fixture(scope="module", params=SHAPES)
def model(request, tmp_path_factory):
    """A directory with every file that is read, and nothing wrong."""
    path = tmp_path_factory.mktemp(request.param) / "model"
    shape = {"with_text": True, "value_head": True, **SHAPES[request.param]}
    policies.export(path, tiny_policies.policy(**shape))
    tensors = load_file(path / "model.safetensors")
    index = {"metadata": {}, "weight_map": dict.fromkeys(tensors, "model.safetensors")}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert outcome(path) == "loaded"
    return path


@functools.cache
def forward(network):
    """Shape of the logits of two prompts of five tokens; nothing is computed."""
    ids = jax.ShapeDtypeStruct((2, 5), np.int32)

    def logits(params, tokens, positions, segments):
        hidden = network.hidden(params, tokens, positions, segments)
        return hidden @ network.head(params) if network.config.logit_cap is None else hidden

    return jax.eval_shape(logits, network.shapes(), ids, ids, ids).shape


def outcome(path, named=None):
    """`"loaded"`, `"refused"`, or what is wrong with the way that loading ended."""
    try:
        policy = policies.load(path, value_head=True)
    except ValueError as error:
        text = str(error)
        wanted = str(path if named is None else path / named)
        return "refused" if wanted in text and "\n" not in text and len(text) < 600 else text
    except BaseException as error:  # noqa: BLE001  (nothing else may come out)
        return f"{type(error).__name__}: {error}"
    rows = policy.network.config.vocab_size
    assert forward(policy.network)[:2] == (2, 5)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(policy.params))
    if policy.text is None:
        return "loaded"
    try:
        tokenizer = data.from_assets(policy.text, rows=rows)
        assert all(0 <= i < rows for i in tokenizer.prompt_ids("abc"))
    except ValueError as error:
        return "loaded" if "\n" not in str(error) else str(error)
    return "loaded"


def places(node, path=()):
    """Every entry of a JSON document; of a vocabulary, and of a list, the first one."""
    if isinstance(node, dict):
        items = list(node.items())
        items = items[:1] if path[-1:] in (("vocab",), ("weight_map",)) else items
    else:
        items = list(enumerate(node))[:1] if isinstance(node, list) else []
    for name, child in items:
        yield (*path, name)
        yield from places(child, (*path, name))


def damaged(document, path, value):
    """A copy of a document with one entry replaced or deleted."""
    document = copy.deepcopy(document)
    node = document
    for name in path[:-1]:
        node = node[name]
    if value is DELETED:
        del node[path[-1]]
    else:
        node[path[-1]] = value
    return document


@pytest.mark.parametrize("file", JSON_FILES)
def test_every_entry_of_every_json_file(model, file):
    if file != "config.json" and "gemma" in str(model):
        pytest.skip("the family matters for config.json alone")
    original = (model / file).read_bytes()
    document = json.loads(original)
    bad, tried = [], 0
    # A missing tensor, or a token that is gone, may be found where another file needs it.
    named = None if file in ("tokenizer.json", "model.safetensors.index.json") else file
    # What all families have is tried with the first of them.
    known = config_json.settings_from_config(tiny_policies.policy().network.config)
    skipped = set(known) - {"rope_parameters"} if "gemma" in str(model) else set()
    try:
        for path in places(document):
            if path[0] in skipped:
                continue
            for value in VALUES[:: 2 if file == "tokenizer.json" else 1]:
                (model / file).write_text(json.dumps(damaged(document, path, value)))
                ended = outcome(model, named)
                tried += 1
                if ended not in ("loaded", "refused"):
                    bad.append((".".join(map(str, path)), value, ended))
    finally:
        (model / file).write_bytes(original)
    assert not bad, bad[:10]
    assert tried >= 39


def damages(content):
    """Other contents of a file, by name; None stands for a directory, "missing" for no file."""
    random = np.random.default_rng(0)
    size = len(content)
    yield "missing", "missing"
    yield "a directory", None
    yield "a pipe", "pipe"
    yield "empty", b""
    yield "a pointer", POINTER
    yield "deep", b"[" * 100_000 + b"]" * 100_000
    yield "deep objects", b'{"a":' * 100_000
    yield "no UTF-8", b"\xff\xfe" + content
    yield "twice", content + content
    for share in (0.01, 0.3, 0.7, 0.99):
        yield f"{share} of it", content[: int(share * size)]
    yield "without its last byte", content[:-1]
    for seed in range(4):
        noise = bytearray(content)
        start = int(random.integers(size))
        noise[start : start + 16] = random.bytes(16)
        yield f"noise {seed}", bytes(noise)
    yield "all noise", random.bytes(size)
    for text in (b"[]", b"null", b"1", b'"x"', b"{}", b"{"):
        yield repr(text), text


FILES = (*JSON_FILES, "model.safetensors", "polgrad_heads.safetensors")


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    path = tmp_path_factory.mktemp("files") / "model"
    shape = {"with_text": True, "value_head": True, "layers": 1}
    policies.export(path, tiny_policies.policy(**shape))
    names = load_file(path / "model.safetensors")
    index = {"weight_map": dict.fromkeys(names, "model.safetensors")}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    (path / "chat_template.jinja").write_text(tiny_policies.TEMPLATE)
    return path


def put(file, content):
    """Replaces a file by a content, a directory (None), a pipe, or nothing ("missing")."""
    if file.is_dir():
        file.rmdir()
    elif file.exists():
        file.unlink()
    if content is None:
        file.mkdir()
    elif content == "pipe":
        os.mkfifo(file)
    elif content != "missing":
        file.write_bytes(content)


@pytest.mark.parametrize("name", [*FILES, "chat_template.jinja"])
def test_every_file_as_a_whole(llama, name):
    content = (llama / name).read_bytes()
    bad, refused = [], 0
    try:
        for what, other in damages(content):
            put(llama / name, other)
            # Noise may be found where another file needs what it has changed.
            elsewhere = what.startswith("noise") or (name, other) == ("config.json", "missing")
            ended = outcome(llama, named=None if elsewhere else name)
            refused += ended == "refused"
            if ended not in ("loaded", "refused"):
                bad.append((what, ended))
    finally:
        put(llama / name, content)
    assert not bad, bad
    assert refused >= (2 if name == "chat_template.jinja" else 9)


def test_a_pointer_says_what_to_do(llama):
    for name in FILES:
        content = (llama / name).read_bytes()
        put(llama / name, POINTER)
        message = f"{name}: this is a Git LFS pointer and not the file itself; run `git lfs pull`"
        try:
            with pytest.raises(ValueError, match=message):
                policies.load(llama, value_head=True)
        finally:
            put(llama / name, content)


def header(content, change):
    """A safetensors file with a changed header."""
    size = struct.unpack("<Q", content[:8])[0]
    told = json.loads(content[8 : 8 + size])
    change(told)
    text = json.dumps(told).encode()
    return struct.pack("<Q", len(text)) + text + content[8 + size :]


def entry(**changes):
    return lambda told: told["model.norm.weight"].update(changes)


HEADERS = {
    "shape of 10^14": entry(shape=[10**14]),
    "shape of 2^64": entry(shape=[2**64]),
    "negative shape": entry(shape=[-8]),
    "no shape": lambda told: told["model.norm.weight"].pop("shape"),
    "beyond the end": entry(data_offsets=[0, 10**14]),
    "backwards": entry(data_offsets=[32, 0]),
    "another type": entry(dtype="I32"),
    "fp8": entry(dtype="F8_E4M3", shape=[32]),
    "an unknown type": entry(dtype="Q4"),
    "a tensor less": lambda told: told.pop("model.norm.weight"),
    "a list": lambda told: told.update({"model.norm.weight": []}),
    "metadata": lambda told: told.update({"__metadata__": {"format": 1}}),
}


@pytest.mark.parametrize("name", HEADERS)
def test_claims_of_a_header(llama, name):
    file = llama / "model.safetensors"
    content = file.read_bytes()
    put(file, header(content, HEADERS[name]))
    try:
        assert outcome(llama, "model.safetensors") == "refused"
    finally:
        put(file, content)


@pytest.mark.parametrize("length", [0, 1, 2**24, 2**40, 2**63, 2**64 - 1])
def test_claimed_lengths_of_headers(llama, length):
    for name in FILES[-2:]:
        content = (llama / name).read_bytes()
        put(llama / name, struct.pack("<Q", length) + content[8:])
        try:
            assert outcome(llama, name) == "refused"
        finally:
            put(llama / name, content)


@pytest.mark.parametrize(
    ("file", "tensor", "value", "message"),
    [
        ("model", "model.norm.weight", np.nan, "tensor model.norm.weight holds 1 numbers that"),
        ("model", "lm_head.weight", -np.inf, "tensor lm_head.weight holds 1 numbers that are not"),
        (
            "model",
            "model.embed_tokens.weight",
            1e300,
            "tensor model.embed_tokens.weight holds 1 numbers",
        ),
        ("polgrad_heads", "value_head.kernel", np.nan, "tensor value_head.kernel holds 1 numbers"),
    ],
)
def test_weights_that_are_not_finite(tmp_path, file, tensor, value, message):
    policies.export(tmp_path, tiny_policies.policy(value_head=True, tied=False))
    tensors = load_file(tmp_path / f"{file}.safetensors")
    kind = ml_dtypes.bfloat16 if value is np.nan else np.float64
    tensors[tensor] = tensors[tensor].astype(kind)
    tensors[tensor].flat[2] = value
    save_file(tensors, tmp_path / f"{file}.safetensors")
    with pytest.raises(ValueError, match=rf"{file}\.safetensors: {message}"):
        policies.load(tmp_path, value_head=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"value_head.kernel": np.zeros(3, np.float32)}, r"value_head.kernel has shape \(3,\)"),
        ({"value_head.kernel": np.zeros(8, np.int32)}, "tensor value_head.kernel is I32"),
        ({"value_head": np.zeros(8, np.float32)}, "the entry '' is missing"),
        ({"value_head.bias.x": np.zeros(8, np.float32)}, "the entry 'bias.x' is missing"),
        ({"other.kernel": np.zeros(8, np.float32)}, "is no part of value_head or reward_head"),
    ],
)
def test_scalar_heads_of_another_form(tmp_path, change, message):
    policies.export(tmp_path, tiny_policies.policy(value_head=True))
    save_file(change, tmp_path / "polgrad_heads.safetensors")
    with pytest.raises(ValueError, match=f"polgrad_heads.safetensors: .*{message}"):
        policies.load(tmp_path, value_head=True)


@pytest.mark.parametrize(
    "shard", ["../model.safetensors", "/etc/passwd", "a/b", "", ".", "..", "x\0y", "gone", "dir"]
)
def test_shards_outside_of_the_directory(llama, shard):
    index = llama / "model.safetensors.index.json"
    content = index.read_bytes()
    (llama / "dir").mkdir(exist_ok=True)
    put(index, json.dumps({"weight_map": {"model.norm.weight": shard}}).encode())
    try:
        named = "dir" if shard == "dir" else "model.safetensors.index.json"
        assert outcome(llama, named) == "refused"
    finally:
        put(index, content)
        (llama / "dir").rmdir()


def test_a_hub_cache_of_links_is_read(llama, tmp_path):
    for file in llama.iterdir():
        (tmp_path / file.name).symlink_to(file)
    assert outcome(tmp_path) == "loaded"


# What a run keeps of its policy goes through the same checks.


def test_every_field_of_a_stored_network():
    made = tiny_policies.policy(**SHAPES["llama"], value_head=True).network.config
    stored = json.loads(json.dumps(configuration.dataclasses.asdict(made)))
    assert configuration.from_fields(stored) == made
    bad = []
    for path in places(stored):
        for value in (*VALUES[:3], *VALUES[4::2]):
            try:
                config = configuration.from_fields(damaged(stored, path, value))
                assert forward(policies.TransformerNetwork(config))[:2] == (2, 5)
            except ValueError as error:
                if "\n" in str(error):
                    bad.append((path, value, error))
            except BaseException as error:  # noqa: BLE001
                bad.append((path, value, error))
    assert not bad, bad[:5]


def test_every_field_of_stored_text():
    text = tiny_policies.text()
    stored = json.loads(json.dumps(text._asdict()))
    assert assets.from_fields(stored) == text
    bad = []
    for name in [*stored, "nonsense"]:
        for value in VALUES:
            fields = {**stored, name: value}
            if value is DELETED:
                del fields[name]
            try:
                assets.from_fields(fields)
            except ValueError as error:
                if name not in str(error) or "\n" in str(error):
                    bad.append((name, value, error))
            except BaseException as error:  # noqa: BLE001
                bad.append((name, value, error))
    assert not bad, bad[:5]


# GGUF files. The header of this one is written here, so that each entry can be of any type.

KINDS = gguf.GGUFValueType


def gguf_file(path, *, drop=None, change=None):
    """A GGUF file of a small Llama with a tokenizer, without one entry or with another value."""
    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *"abcdefgh", "ab"]
    told = {
        "llama.embedding_length": (8, KINDS.UINT32),
        "llama.block_count": (1, KINDS.UINT32),
        "llama.attention.head_count": (2, KINDS.UINT32),
        "llama.attention.head_count_kv": (1, KINDS.UINT32),
        "llama.attention.key_length": (4, KINDS.UINT32),
        "llama.feed_forward_length": (12, KINDS.UINT32),
        "llama.context_length": (64, KINDS.UINT32),
        "llama.attention.layer_norm_rms_epsilon": (1e-5, KINDS.FLOAT32),
        "llama.rope.freq_base": (1e4, KINDS.FLOAT32),
        "llama.rope.scaling.type": ("linear", KINDS.STRING),
        "llama.rope.scaling.factor": (2.0, KINDS.FLOAT32),
        "tokenizer.ggml.model": ("gpt2", KINDS.STRING),
        "tokenizer.ggml.pre": ("smollm", KINDS.STRING),
        "tokenizer.ggml.tokens": (tokens, KINDS.ARRAY),
        "tokenizer.ggml.token_type": ([3, 3, 4] + [1] * (len(tokens) - 3), KINDS.ARRAY),
        "tokenizer.ggml.merges": (["a b"], KINDS.ARRAY),
        "tokenizer.ggml.bos_token_id": (1, KINDS.UINT32),
        "tokenizer.ggml.eos_token_id": (0, KINDS.UINT32),
        "tokenizer.ggml.eot_token_id": (2, KINDS.UINT32),
        "tokenizer.ggml.add_bos_token": (True, KINDS.BOOL),
        "tokenizer.chat_template": ("{{ messages[0]['content'] }}", KINDS.STRING),
    }
    keys = list(told)
    told.pop(drop, None)
    told |= change or {}
    writer = gguf.GGUFWriter(path, "llama")
    for key, (value, kind) in told.items():
        writer.add_key_value(key, value, kind)
    random = np.random.default_rng(0)
    shapes = {"token_embd": (len(tokens), 8), "output_norm": (8,)}
    layer = {"attn_norm": (8,), "attn_q": (8, 8), "attn_k": (4, 8), "attn_v": (4, 8)}
    layer |= {"attn_output": (8, 8), "ffn_norm": (8,), "ffn_gate": (12, 8), "ffn_up": (12, 8)}
    layer |= {"ffn_down": (8, 12)}
    shapes |= {f"blk.0.{name}": shape for name, shape in layer.items()}
    for name, shape in shapes.items():
        numbers = random.standard_normal(shape).astype(np.float32)
        writer.add_tensor(f"{name}.weight", numbers)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return keys


OTHERS = (
    (-1, KINDS.INT32),
    (0, KINDS.UINT32),
    (2**63, KINDS.UINT64),
    (1.5, KINDS.FLOAT32),
    (math.nan, KINDS.FLOAT32),
    (True, KINDS.BOOL),
    ("x", KINDS.STRING),
    ([1, 2], KINDS.ARRAY),
    (["a"], KINDS.ARRAY),
)


def test_every_entry_of_a_gguf_file(tmp_path):
    path = tmp_path / "model.gguf"
    keys = gguf_file(path)
    assert outcome(path) == "loaded"
    bad = []
    for key in keys:
        for other in (DELETED, *OTHERS):
            path.unlink()
            gguf_file(path, drop=key, change={} if other is DELETED else {key: other})
            ended = outcome(path)
            if ended not in ("loaded", "refused"):
                bad.append((key, other, ended))
    assert not bad, bad[:10]


@pytest.fixture(scope="module")
def whole_gguf(tmp_path_factory):
    path = tmp_path_factory.mktemp("gguf") / "model.gguf"
    gguf_file(path)
    return path, path.read_bytes()


def test_gguf_files_that_are_cut_or_something_else(whole_gguf):
    path, content = whole_gguf
    cuts = {f"cut at {n}": content[:n] for n in np.linspace(1, len(content) - 1, 40).astype(int)}
    others = {
        name: other for name, other in damages(content) if name not in ("missing", "twice", "pipe")
    }
    bad = []
    for name, other in {**cuts, **others}.items():
        put(path, other)
        ended = outcome(path)
        if ended != "refused" and not (name.startswith("noise") and ended == "loaded"):
            bad.append((name, ended))
    put(path, content)
    assert not bad, bad


def test_lengths_that_a_gguf_file_claims(whole_gguf):
    """Every place in the header that may hold a length holds a huge one, in turn."""
    path, content = whole_gguf
    start = time.process_time()
    places = [*range(8, 24, 8), *range(24, 1200, 11)]
    bad = []
    for place in places:
        for length in (2**60,) if place % 3 else (2**31, 2**63 + 8):
            put(path, content[:place] + struct.pack("<Q", length) + content[place + 8 :])
            ended = outcome(path)
            if ended not in ("loaded", "refused"):
                bad.append((place, length, ended))
    put(path, content)
    assert not bad, bad[:5]
    assert time.process_time() - start < 60


def test_a_long_list_in_a_gguf_file_is_refused_before_it_is_read(tmp_path):
    path = tmp_path / "model.gguf"
    gguf_file(path, change={"tokenizer.ggml.scores": ([1, 2], KINDS.ARRAY)})
    content = path.read_bytes()
    place = content.index(b"tokenizer.ggml.scores") + len("tokenizer.ggml.scores") + 8
    with path.open("wb") as file:
        file.write(content[:place] + struct.pack("<Q", 2**28))
        file.truncate(2**31)  # the file could hold them: nothing but a hole
    assert outcome(path) == "refused"


@hypothesis.settings(max_examples=40)
@given(st.lists(st.tuples(st.integers(0, 900), st.integers(0, 255)), min_size=1, max_size=4))
def test_any_bytes_in_a_gguf_header(whole_gguf, changes):
    path, content = whole_gguf
    noisy = bytearray(content)
    for place, byte in changes:
        noisy[place] = byte
    put(path, bytes(noisy))
    assert outcome(path) in ("loaded", "refused")
