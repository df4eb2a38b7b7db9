"""Small transformer policies with random weights, for tests of files."""

import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from polgrad import policies

SHAPE = {"vocab_size": 11, "width": 8, "layers": 2, "heads": 2, "kv_heads": 1, "mlp_width": 12}
GEMMA = {"activation": "gelu_tanh"} | dict.fromkeys(
    ("embedding_scale", "centered_norms", "post_norms"), True
)
GEMMA2 = {**GEMMA, "window": 3, "global_every": 2, "attention_cap": 50.0, "logit_cap": 30.0}
GEMMA3 = {**GEMMA, "qk_norm": True, "window": 3, "global_every": 6, "local_rope_theta": 1e4}
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m['content'] }}<|im_end|>{% endfor %}"


def random_params(network, seed=0):
    """Normal numbers in the tree of a network's parameters."""
    random = np.random.default_rng(seed)

    def fill(node):
        if isinstance(node, dict):
            return {name: fill(child) for name, child in node.items()}
        return random.standard_normal(node.shape).astype(np.float32)

    return fill(network.shapes())


def text():
    """A byte-level tokenizer of eleven tokens with a chat template."""
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    vocabulary = {token: i for i, token in enumerate([*special, *"abcdefgh"])}
    tokenizer = tokenizers.Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(special)
    return policies.TextAssets(
        tokenizer_json=tokenizer.to_str(),
        chat_template=TEMPLATE,
        bos_id=1,
        eos_id=0,
        pad_id=0,
        stop_ids=(0, 2),
        bos_token="<|im_start|>",
        eos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
        unk_token=None,
    )


def policy(*, with_text=False, **changes):
    """A policy of the small shape, with changes."""
    network = policies.TransformerNetwork(policies.TransformerConfig(**{**SHAPE, **changes}))
    return policies.Policy(network, random_params(network), text() if with_text else None)
