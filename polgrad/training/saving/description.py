"""`policy.json` of a run: what, with a checkpoint, makes a policy whole."""

import dataclasses
import json
import pathlib
from typing import Any

from polgrad import _files, data, policies
from polgrad.policies import configuration
from polgrad.policies.hub import assets

POLICY_FILE = "policy.json"


def save_description(directory: pathlib.Path, policy: policies.Policy, tokenizer: Any) -> None:
    """Writes what, with a checkpoint, makes a policy whole: its shape and its tokenizer."""
    description: dict[str, Any] = {"network": dataclasses.asdict(policy.network.config)}
    if isinstance(tokenizer, data.CharacterTokenizer):
        description["alphabet"] = tokenizer.alphabet
    else:
        description["text"] = policy.text._asdict()
    _files.write(directory / POLICY_FILE, json.dumps(description))


def read_description(
    description: dict[str, Any],
) -> tuple[policies.Network, data.Tokenizer, policies.TextAssets]:
    """The network, tokenizer and text conventions that `save_description` wrote."""
    network = policies.TransformerNetwork(configuration.from_fields(description["network"]))
    if "alphabet" in description:
        tokenizer = data.CharacterTokenizer(description["alphabet"])
        return network, tokenizer, character_assets(tokenizer)
    text = assets.from_fields(description["text"])
    return network, data.from_assets(text, rows=network.config.vocab_size), text


def character_assets(tokenizer: data.CharacterTokenizer) -> policies.TextAssets:
    """A character tokenizer in the form of the hub, so that other libraries read an export."""
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers

    vocabulary = {"<pad>": tokenizer.pad_id, "<eos>": tokenizer.eos_id}
    vocabulary |= {c: tokenizer.encode(c)[0] for c in tokenizer.alphabet}
    hub = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    hub.pre_tokenizer = pre_tokenizers.Split(tokenizers.Regex(r"[\s\S]"), behavior="isolated")
    hub.decoder = decoders.Fuse()
    hub.add_special_tokens(["<pad>", "<eos>"])
    return policies.TextAssets(
        tokenizer_json=hub.to_str(),
        chat_template=None,
        bos_id=None,
        eos_id=tokenizer.eos_id,
        pad_id=tokenizer.pad_id,
        stop_ids=tokenizer.stop_ids,
        eos_token="<eos>",
        pad_token="<pad>",
    )
