"""Directories in the Hugging Face layout: round trips, shards, refusals."""

import contextlib
import itertools
import json
import os
from pathlib import Path

import chat_families
import ml_dtypes
import numpy as np
import pytest
import tokenizers
from safetensors.numpy import load_file, save_file
from tiny_policies import GEMMA, GEMMA2, GEMMA3, TEMPLATE, policy, text
from tokenizers import models

from polgrad import _files, data, policies
from polgrad.policies.hub import assets, exporting


def assert_same(one, two):
    assert one.network == two.network
    assert one.text == two.text
    assert _names(one.params) == _names(two.params)
    for name in _names(one.params):
        ours, theirs = _at(one.params, name), _at(two.params, name)
        assert theirs.dtype == np.float32
        np.testing.assert_array_equal(ours, theirs)


def _names(tree, prefix=()):
    if not isinstance(tree, dict):
        return [prefix]
    return [name for key in sorted(tree) for name in _names(tree[key], (*prefix, key))]


def _at(tree, name):
    for key in name:
        tree = tree[key]
    return tree


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"tied": False, "with_text": True},
        {"qkv_bias": True, "norm_epsilon": 1e-5},
        {"qk_norm": True, "head_dim": 6, "rope_theta": 5e5},
        {"rope_scaling": policies.RopeScaling("llama3", 8.0, 1.0, 4.0, 4096)},
        {"rope_scaling": policies.RopeScaling("linear", 2.0)},
        {**GEMMA2, "query_scalar": 7, "layers": 5},
        {**GEMMA, "logit_cap": 30.0},
        {**GEMMA3, "rope_theta": 1e6, "rope_scaling": policies.RopeScaling("linear", 8.0)},
        {**GEMMA3, "layers": 8, "global_every": 3, "logit_cap": 20.0},
        {**GEMMA, "qk_norm": True},
    ],
)
def test_export_and_load_are_inverse(changes, tmp_path):
    before = policy(**changes)
    policies.export(tmp_path / "model", before)
    assert_same(before, policies.load(tmp_path / "model"))
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_scalar_heads_are_kept_apart_and_come_back_when_asked_for(tmp_path):
    before = policy(value_head=True, reward_head=True)
    policies.export(tmp_path / "model", before)
    assert not [n for n in load_file(tmp_path / "model" / "model.safetensors") if "_head." in n]
    assert_same(before, policies.load(tmp_path / "model", value_head=True, reward_head=True))
    plain = policies.load(tmp_path / "model")
    assert "value_head" not in plain.params
    policies.export(tmp_path / "plain", plain)
    fresh = policies.load(tmp_path / "plain", value_head=True)
    assert np.all(fresh.params["value_head"]["kernel"] == 0)


def test_shards_and_half_precision_are_read(tmp_path):
    before = policy()
    policies.export(tmp_path, before)
    tensors = load_file(tmp_path / "model.safetensors")
    os.remove(tmp_path / "model.safetensors")
    names = sorted(tensors)
    shards = {"a.safetensors": names[:5], "b.safetensors": names[5:]}
    for file, held in shards.items():
        half = {name: tensors[name].astype(ml_dtypes.bfloat16) for name in held}
        save_file(half, tmp_path / file)
    where = {name: file for file, held in shards.items() for name in held}
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": where}))
    after = policies.load(tmp_path)
    rounded = before.params["embed"].astype(ml_dtypes.bfloat16).astype(np.float32)
    np.testing.assert_array_equal(after.params["embed"], rounded)
    os.remove(tmp_path / "b.safetensors")
    with pytest.raises(ValueError, match="b.safetensors"):
        policies.load(tmp_path)


def test_an_export_replaces_an_export(tmp_path):
    before = policy(with_text=True, value_head=True)
    names = policies.export(tmp_path / "model", before)
    assert sorted(os.listdir(tmp_path / "model")) == names
    assert "polgrad_heads.safetensors" in names and "tokenizer.json" in names
    changed = policy(tied=False)
    assert policies.export(tmp_path / "model", changed) == sorted(os.listdir(tmp_path / "model"))
    assert_same(changed, policies.load(tmp_path / "model"))
    assert "tokenizer.json" not in os.listdir(tmp_path / "model")
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def _run(path):
    (path / "checkpoints" / "4").mkdir(parents=True)
    (path / "config.json").write_text("{}")


def _site(path):
    path.mkdir()
    (path / "config.json").write_text("{}")
    (path / "thesis.tex").write_text("work")


def _export_and(change):
    def make(path):
        policies.export(path, policy())
        change(path)

    return make


def _mark(**content):
    return _export_and(lambda path: write(path / "polgrad_export.json", content))


KEPT = {
    "a run": (_run, "no polgrad_export.json: no export wrote it, so it is not replaced"),
    "a folder with config.json": (_site, "no polgrad_export.json"),
    "a file": (lambda path: path.write_text("work"), "exists and is no directory"),
    "a file more": (_export_and(lambda p: (p / "notes.txt").write_text("work")), "'notes.txt'"),
    "a folder more": (_export_and(lambda p: (p / "logs").mkdir()), "holds 'logs', which no"),
    "a listed folder": (
        _export_and(lambda p: (os.remove(p / "config.json"), (p / "config.json").mkdir())),
        "holds 'config.json', which no export wrote",
    ),
    "an export without its mark": (
        _export_and(lambda p: os.remove(p / "polgrad_export.json")),
        "no polgrad_export.json",
    ),
    "a cut mark": (
        _export_and(lambda p: (p / "polgrad_export.json").write_text("{")),
        "polgrad_export.json: not valid JSON",
    ),
    "another schema": (_mark(schema=2, files=[]), "has another form"),
    "no list": (_mark(schema=1, files={"config.json": 1}), "has another form"),
    "a shorter list": (_mark(schema=1, files=["config.json"]), "which no export wrote"),
}


def contents(path):
    return {p.relative_to(path): p.read_bytes() if p.is_file() else None for p in path.rglob("*")}


@pytest.mark.parametrize("name", KEPT)
def test_what_no_export_wrote_stays(name, tmp_path):
    make, message = KEPT[name]
    make(tmp_path / "model")
    before = contents(tmp_path)
    with pytest.raises(ValueError, match=message) as caught:
        policies.export(tmp_path / "model", policy())
    assert "\n" not in str(caught.value) and str(tmp_path / "model") in str(caught.value)
    assert contents(tmp_path) == before  # and no scratch folder


def test_a_link_and_the_working_directory_are_no_place_for_an_export(tmp_path, monkeypatch):
    policies.export(tmp_path / "model", policy())
    (tmp_path / "link").symlink_to("model")
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "empty" / "inner").mkdir(parents=True)
    before = contents(tmp_path)
    for link in ("link", "dangling"):
        with pytest.raises(ValueError, match=f"{link} is a link; give the directory itself"):
            policies.export(tmp_path / link, policy())
    monkeypatch.chdir(tmp_path / "empty" / "inner")
    for name in (".", "..", "../inner"):
        with pytest.raises(ValueError, match="is the working directory, or holds it"):
            policies.export(name, policy())
    with pytest.raises(OSError):
        policies.export(tmp_path / "model" / "config.json" / "below", policy())
    assert contents(tmp_path) == before


def test_what_comes_while_an_export_is_written_stays(tmp_path, monkeypatch):
    policies.export(tmp_path / "model", policy())
    writing = exporting._write

    def slow(scratch, settings, made):
        names = writing(scratch, settings, made)
        (tmp_path / "model" / "late.txt").write_text("work")
        return names

    monkeypatch.setattr(exporting, "_write", slow)
    with pytest.raises(ValueError, match="late.txt"):
        policies.export(tmp_path / "model", policy(tied=False))
    assert (tmp_path / "model" / "late.txt").read_text() == "work"
    assert_same(policy(), policies.load(tmp_path / "model"))
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


class Killed(BaseException):
    """Nothing of an export goes on after it."""


def test_an_export_that_dies_between_its_moves_loses_nothing(tmp_path, monkeypatch, capsys):
    """Killed before every move and every removal of a file."""
    replace, unlink, left = os.replace, os.unlink, []
    monkeypatch.setattr(exporting.shutil, "rmtree", lambda *args, **options: None)
    for deadly in itertools.count():
        place, count = tmp_path / str(deadly) / "model", itertools.count()
        policies.export(place, policy())

        def dying(move, count=count, deadly=deadly):
            def moved(*args):
                if next(count) >= deadly:
                    raise Killed
                move(*args)

            return moved

        monkeypatch.setattr(os, "replace", dying(replace))
        monkeypatch.setattr(os, "unlink", dying(unlink))
        with contextlib.suppress(Killed):
            policies.export(place, policy(tied=False))
        monkeypatch.setattr(os, "replace", replace)
        monkeypatch.setattr(os, "unlink", unlink)
        if next(count) <= deadly:
            break
        whole = [p for p in place.parent.iterdir() if (p / exporting.MARK).exists()]
        left.append([p.name.split(".old.")[0] for p in sorted(whole) if ".old." in p.name])
        capsys.readouterr()
        policies.export(place, policy(tied=False))
        told = capsys.readouterr().err
        assert all((str(p) in told) == (".old." in p.name) for p in whole if p != place)
        assert_same(policy(tied=False), policies.load(place))
    # Before the first move; between the two; before the first removal, which is that of the mark.
    assert left[:3] == [[], [".model"], [".model"]] and not any(left[3:]) and len(left) > 4


def test_an_export_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    done, replace, sync = [], os.replace, _files.sync
    monkeypatch.setattr(_files, "sync", lambda p: (done.append(Path(p).name), sync(p)))
    monkeypatch.setattr(os, "replace", lambda *a: (done.append("move"), replace(*a)))
    names = policies.export(tmp_path / "model", policy())
    move = done.index("move")
    assert set(names) < set(done[:move]) and done[move + 1 :] == [tmp_path.name]


def test_parameters_that_are_not_finite_are_not_exported(tmp_path):
    broken = policy()
    broken.params["embed"][3, 2] = np.nan
    with pytest.raises(ValueError, match="model.embed_tokens.weight holds 1 numbers that are not"):
        policies.export(tmp_path / "model", broken)
    assert not list(tmp_path.iterdir())


def test_a_failed_export_leaves_the_old_one(tmp_path):
    before = policy()
    policies.export(tmp_path / "model", before)
    broken = before._replace(text=text()._replace(tokenizer_json=None))
    with pytest.raises(TypeError):
        policies.export(tmp_path / "model", broken)
    assert_same(before, policies.load(tmp_path / "model"))
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"qkv_bias": True, "qk_norm": True}, "has qkv_bias and qk_norm and no other trait"),
        ({"post_norms": True}, "has post_norms and no other"),
        ({"window": 3, "global_every": 2}, "llama has no window, got 3"),
        ({"qk_norm": True, "logit_cap": 30.0}, "qwen3 has no logit_cap, got 30.0"),
        ({**GEMMA2, "local_rope_theta": 1e4}, "gemma2 has no local_rope_theta"),
        ({**GEMMA3, "local_rope_theta": None}, "gemma3_text has a local_rope_theta, got None"),
        ({**GEMMA3, "attention_cap": 50.0}, "gemma3_text has no attention_cap"),
    ],
)
def test_a_shape_of_no_family_is_not_exported(changes, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        policies.export(tmp_path / "model", policy(**changes))
    assert not list(tmp_path.iterdir())


def test_only_transformers_are_exported(tmp_path):
    linear = policies.Policy(policies.LinearNetwork(3, 2), {}, None)
    with pytest.raises(ValueError, match="LinearNetwork"):
        policies.export(tmp_path / "model", linear)
    assert not list(tmp_path.iterdir())


def test_special_tokens_are_found_where_others_write_them(tmp_path):
    policies.export(tmp_path, policy(with_text=True))
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "eos_token": {"content": "<|endoftext|>"},
                "bos_token": None,
                "chat_template": [{"name": "default", "template": TEMPLATE}],
            }
        )
    )
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [3, 0]}))
    settings = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**settings, "bos_token_id": None}))
    loaded = policies.load(tmp_path).text
    assert loaded.chat_template == TEMPLATE
    assert (loaded.bos_id, loaded.eos_id, loaded.pad_id) == (None, 0, 0)
    # End of text, what generation lists, and the template's end of turn.
    assert loaded.stop_ids == (0, 3, 2)


def test_chat_templates_are_read_in_the_order_of_transformers(tmp_path):
    before = policy(with_text=True)
    policies.export(tmp_path, before._replace(text=before.text._replace(chat_template=None)))

    def found():
        return policies.load(tmp_path).text.chat_template

    assert found() is None
    write(tmp_path / "chat_template.json", {"chat_template": "processor's"})
    assert found() == "processor's"
    told = json.loads((tmp_path / "tokenizer_config.json").read_text())
    named = [{"name": "rag", "template": "rag"}, {"name": "default", "template": "named"}]
    write(tmp_path / "tokenizer_config.json", {**told, "chat_template": named})
    assert found() == "named"
    write(tmp_path / "tokenizer_config.json", {**told, "chat_template": named[:1]})
    assert found() == "processor's"
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "rag.jinja").write_text("rag")
    assert found() is None  # files replace entries, and none of them is the default
    (tmp_path / "additional_chat_templates" / "default.jinja").write_text("additional")
    assert found() == "additional"
    (tmp_path / "chat_template.jinja").write_text("file")
    assert found() == "file"


def test_turn_tokens_without_a_template_are_told():
    known = text()._replace(chat_template=None)
    line = assets.missing_template(known)
    assert "<|im_start|>, <|im_end|>: prompts go to the policy as plain text" in line
    assert assets.missing_template(text()) == ""
    plain = tokenizers.Tokenizer(models.BPE({"<eos>": 0, "a": 1}, []))
    base = assets.text_assets(plain.to_str(), None, ids={"eos": 0})
    assert assets.missing_template(base) == ""


def write(path, content):
    path.write_text(json.dumps(content))


@pytest.mark.parametrize("family", chat_families.FAMILIES)
def test_an_export_begins_and_ends_texts_and_turns_as_before(family, tmp_path):
    template, bos, eos, turn, begins = chat_families.FAMILIES[family]
    hub = chat_families.tokenizer(bos if begins else None)
    ids = {"bos": None if bos is None else hub.token_to_id(bos), "eos": hub.token_to_id(eos)}
    own = assets.text_assets(hub.to_str(), template, ids=ids)
    before = policy(vocab_size=hub.get_vocab_size())._replace(text=own)
    policies.export(tmp_path, before)
    after = policies.load(tmp_path)
    assert after.text == own
    told = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert told["add_bos_token"] is begins
    for changes in ({}, {"chat_template": None}):
        one, two = (data.from_assets(p.text._replace(**changes)) for p in (before, after))
        assert one.prompt_ids("12 + 3 =") == two.prompt_ids("12 + 3 =")
        assert one.completion_ids("12 + 3 =", "15") == two.completion_ids("12 + 3 =", "15")
        assert one.stop_ids == two.stop_ids and hub.token_to_id(turn) in one.stop_ids
    start = [ids["bos"]] if begins else []
    assert two.prompt_ids("12")[: len(start) + 1] == [*start, hub.token_to_id("1")]


@pytest.mark.parametrize(
    ("processor", "told", "begins"),
    [(None, None, 0), (None, False, 0), (None, True, 1), ("own", False, 1), ("own", None, 1)],
)
def test_add_bos_token_counts_where_the_tokenizer_does_not_say(processor, told, begins, tmp_path):
    own = text()
    if processor is not None:
        own = own._replace(tokenizer_json=assets.begin_texts_with(own.tokenizer_json, own.bos_id))
    policies.export(tmp_path, policy()._replace(text=own._replace(chat_template=None)))
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    write(tmp_path / "tokenizer_config.json", {**settings, "add_bos_token": told})
    loaded = policies.load(tmp_path).text
    assert data.from_assets(loaded).prompt_ids("abc") == [own.bos_id] * begins + [3, 4, 5]


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        ("config.json", {"eos_token_id": 99999}, "config.json: eos_token_id is 99999, expected"),
        ("config.json", {"eos_token_id": -1}, "config.json: eos_token_id is -1, expected an id"),
        ("config.json", {"bos_token_id": 11}, "bos_token_id is 11, expected an id from 0 to 10"),
        ("generation_config.json", {"eos_token_id": [0, 11]}, "generation_config.json: eos_token"),
        ("generation_config.json", {"eos_token_id": ["0"]}, "eos_token_id is '0', expected an id"),
        ("tokenizer_config.json", {"eos_token": "<none>"}, "json: eos_token is '<none>', expected"),
    ],
)
def test_an_id_without_a_row_is_named_with_its_file(file, changes, message, tmp_path):
    policies.export(tmp_path, policy(with_text=True))
    settings = json.loads((tmp_path / file).read_text())
    write(tmp_path / file, {**settings, **changes})
    with pytest.raises(ValueError, match=message) as caught:
        policies.load(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_vocabulary_that_was_resized_without_its_embedding_is_named(tmp_path):
    grown = json.loads(text().tokenizer_json)
    grown["model"]["vocab"]["zz"] = 11
    own = text()._replace(tokenizer_json=json.dumps(grown))
    policies.export(tmp_path, policy()._replace(text=own))
    with pytest.raises(ValueError, match="tokenizer.json: token 'zz' is 11, expected an id from 0"):
        policies.load(tmp_path)


def test_an_added_token_without_a_row_is_refused_where_a_text_holds_it(tmp_path):
    # As in Gemma 3's text models, whose tokenizer knows an image token.
    hub = tokenizers.Tokenizer.from_str(text().tokenizer_json)
    hub.add_special_tokens(["<image>"])
    own = text()._replace(tokenizer_json=hub.to_str())
    policies.export(tmp_path, policy()._replace(text=own))
    loaded = policies.load(tmp_path)
    tokenizer = data.from_assets(loaded.text, rows=loaded.network.config.vocab_size)
    assert tokenizer.encode("ab") == [3, 4]
    with pytest.raises(ValueError, match="holds token '<image>' with id 11, which has no row"):
        tokenizer.prompt_ids("a<image>")


def test_a_padding_token_may_have_no_row(tmp_path):
    policies.export(tmp_path, policy(with_text=True))
    write_settings(tmp_path, pad_token_id=-1)
    told = json.loads((tmp_path / "tokenizer_config.json").read_text())
    write(tmp_path / "tokenizer_config.json", {**told, "pad_token": "<none>"})
    (tmp_path / "generation_config.json").unlink()
    assert policies.load(tmp_path).text.pad_id == 0


def test_an_end_of_turn_in_the_template_stops_a_completion():
    tokenizer = tokenizers.Tokenizer(models.BPE({"<eos>": 0, "<end_of_turn>": 1, "a": 2}, []))
    template = "<start_of_turn>user\n{{ messages[0]['content'] }}<end_of_turn>"
    for given, stops in ((template, (0, 1)), (None, (0,))):
        assert assets.text_assets(tokenizer.to_str(), given, ids={"eos": 0}).stop_ids == stops


def write_settings(path, **changes):
    settings = json.loads((path / "config.json").read_text())
    settings = {**settings, **changes}
    kept = {name: value for name, value in settings.items() if value != "absent"}
    (path / "config.json").write_text(json.dumps(kept))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "gpt2"}, "llama, qwen2, qwen3, gemma2, gemma3_text, got 'gpt2'"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"attention_bias": True}, "attention_bias"),
        ({"use_sliding_window": True}, "use_sliding_window"),
        ({"layer_types": ["sliding_attention"]}, "sliding_attention"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 2.0}}, "'yarn'"),
        ({"rope_parameters": None, "rope_scaling": {"type": "dynamic"}}, "'dynamic'"),
        ({"hidden_size": "absent"}, "config.json: lacks hidden_size; expected a whole number"),
        ({"hidden_size": None}, "json: hidden_size is null; expected a whole number of at least 1"),
        ({"num_hidden_layers": 3}, "num_hidden_layers is 3, but the weights hold 2 layers"),
        ({"num_hidden_layers": 1}, "num_hidden_layers is 1, but the weights hold 2 layers"),
        ({"intermediate_size": 13}, r"intermediate_size is 13, but .* has shape \(12, 8\)"),
        ({"num_attention_heads": 2.7}, "num_attention_heads is 2.7; expected a whole number"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps is NaN; expected a number"),
        ({"rope_parameters": {"rope_theta": 0}}, "rope_theta is 0; expected a number"),
        ({"rope_theta": -1, "rope_parameters": None}, "rope_theta is -1; expected a number"),
        (
            {"vocab_size": 10**14},
            "vocab_size is 100000000000000; expected a whole number of at most 2147483647",
        ),
        ({"vocab_size": 10**9}, "vocab_size is 1000000000, but the tensor model.embed_tokens"),
        ({"head_dim": 10**8}, "and head_dim is 100000000, but the tensor .*q_proj.* has shape"),
    ],
)
def test_what_is_not_covered_is_named(changes, message, tmp_path):
    policies.export(tmp_path, policy())
    write_settings(tmp_path, **changes)
    with pytest.raises(ValueError, match=message):
        policies.load(tmp_path)


@pytest.mark.parametrize(
    ("shape", "changes", "message"),
    [
        (GEMMA2, {"hidden_activation": "gelu"}, "hidden_activation must be 'gelu_pytorch_tanh'"),
        (GEMMA2, {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        (GEMMA3, {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping"),
        (GEMMA2, {"layer_types": ["chunked_attention"] * 2}, "chunked_attention are not"),
        (
            {**GEMMA3, "layers": 3},
            {"layer_types": ["full_attention", "sliding_attention", "full_attention"]},
            "layer_types must repeat",
        ),
        (
            GEMMA3,
            {"rope_parameters": {"sliding_attention": {"rope_type": "linear", "factor": 2.0}}},
            "rope type of sliding_attention must be 'default', got 'linear'",
        ),
    ],
)
def test_what_is_not_covered_of_gemma_is_named(shape, changes, message, tmp_path):
    policies.export(tmp_path, policy(**shape))
    write_settings(tmp_path, **changes)
    with pytest.raises(ValueError, match=message):
        policies.load(tmp_path)


def test_what_a_gemma_file_leaves_out_has_its_family_s_value(tmp_path):
    names = ["layer_types", "sliding_window_pattern", "attn_logit_softcapping", "rope_parameters"]
    names += ["final_logit_softcapping", "hidden_activation", "rope_local_base_freq"]
    absent = dict.fromkeys(names, "absent")
    before = policy(**GEMMA2)
    policies.export(tmp_path / "two", before)
    write_settings(tmp_path / "two", **absent)
    assert_same(before, policies.load(tmp_path / "two"))
    before = policy(**GEMMA3, rope_theta=1e6, rope_scaling=policies.RopeScaling("linear", 8.0))
    policies.export(tmp_path / "three", before)
    write_settings(tmp_path / "three", rope_theta="absent", **absent)
    assert_same(before, policies.load(tmp_path / "three"))


def test_the_text_model_of_a_gemma_that_sees_is_read(tmp_path):
    before = policy(**GEMMA3, heads=8, head_dim=2, with_text=True)
    policies.export(tmp_path, before)
    tensors = load_file(tmp_path / "model.safetensors")
    seeing = {f"language_model.{name}": tensor for name, tensor in tensors.items()}
    seeing["vision_tower.post_layernorm.weight"] = np.ones(3, np.float32)
    seeing["multi_modal_projector.mm_soft_emb_norm.weight"] = np.ones(3, np.float32)
    save_file(seeing, tmp_path / "model.safetensors")
    text = json.loads((tmp_path / "config.json").read_text())
    del text["num_attention_heads"], text["eos_token_id"]
    outer = {"model_type": "gemma3", "text_config": text, "vision_config": {}, "eos_token_id": [0]}
    (tmp_path / "config.json").write_text(json.dumps(outer))
    assert_same(before, policies.load(tmp_path))


def test_older_rope_spelling_is_read(tmp_path):
    before = policy(rope_scaling=policies.RopeScaling("linear", 2.0), rope_theta=5e4)
    policies.export(tmp_path, before)
    write_settings(tmp_path, rope_parameters="absent")
    assert_same(before, policies.load(tmp_path))
    write_settings(tmp_path, rope_scaling={"type": "linear", "factor": 2.0})
    assert_same(before, policies.load(tmp_path))


def test_files_that_are_missing_or_dangerous_are_named(tmp_path):
    with pytest.raises(ValueError, match="config.json"):
        policies.load(tmp_path)
    model = tmp_path / "model"
    policies.export(model, policy())
    os.remove(model / "model.safetensors")
    with pytest.raises(ValueError, match="no .safetensors"):
        policies.load(model)
    (model / "pytorch_model.bin").write_bytes(b"never read")
    with pytest.raises(ValueError, match="unpickling runs code"):
        policies.load(model)
    (model / "config.json").write_text("{")
    with pytest.raises(ValueError, match="not valid JSON"):
        policies.load(model)
