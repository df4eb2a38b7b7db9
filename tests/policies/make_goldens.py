"""Makes the golden files of this folder's tests with transformers (and torch) as the reference.

python tests/policies/make_goldens.py            # small random configurations
python tests/policies/make_goldens.py smollm2    # also the real checkpoint (about a minute)
"""

import json
import sys
from pathlib import Path

import numpy as np

TESTS = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(TESTS / "support"))

import small_checkpoints  # noqa: E402  (found through the line above)

GOLDEN = TESTS / "golden"
TEXTS = (
    "The capital of France is",
    "<|im_start|>user\nWhat is 12 + 345?<|im_end|>\n<|im_start|>assistant\n",
    "def add(a, b):\n    return",
)


def small_families() -> None:
    """Logits of every small configuration, with the settings and shapes that rebuild it."""
    import torch
    import transformers

    arrays = {"tokens": small_checkpoints.tokens()}
    for name, (family, settings) in small_checkpoints.FAMILIES.items():
        config = transformers.AutoConfig.for_model(family, **settings)
        model = transformers.AutoModelForCausalLM.from_config(
            config, attn_implementation="eager"
        ).float()
        state = model.state_dict()
        if settings["tie_word_embeddings"]:
            state.pop("lm_head.weight")
        weights = {
            key: torch.from_numpy(small_checkpoints.tensor(key, tuple(value.shape)))
            for key, value in state.items()
        }
        model.load_state_dict(weights, strict=False)
        model.tie_weights()
        with torch.no_grad():
            logits = model.eval()(torch.from_numpy(arrays["tokens"])).logits
        arrays[f"{name}/logits"] = logits.numpy().astype(np.float32)
        shapes = {key: list(value.shape) for key, value in state.items()}
        arrays[f"{name}/settings"] = np.array(json.dumps(config.to_diff_dict()))
        arrays[f"{name}/shapes"] = np.array(json.dumps(shapes))
    np.savez_compressed(GOLDEN / "families.npz", **arrays)


def smollm2() -> None:
    """The sixteen largest logits at some positions, from transformers' own GGUF reader."""
    import torch
    import transformers

    from polgrad.policies.hub import checkpoints

    file = checkpoints.smollm2_path()
    places = {"pretrained_model_name_or_path": file.parent, "gguf_file": file.name}
    tokenizer = transformers.AutoTokenizer.from_pretrained(**places)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        **places, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    arrays = {}
    for row, text in enumerate(TEXTS):
        ids = tokenizer(text, return_tensors="pt").input_ids
        with torch.no_grad():
            logits = model(ids).logits[0]
        top = logits.topk(16, dim=-1)
        arrays[f"{row}/tokens"] = ids[0].numpy().astype(np.int32)
        arrays[f"{row}/top_ids"] = top.indices.numpy().astype(np.int32)
        arrays[f"{row}/top_logits"] = top.values.numpy()
        arrays[f"{row}/normalizer"] = logits.logsumexp(-1).numpy()
    np.savez_compressed(GOLDEN / "smollm2.npz", **arrays)


if __name__ == "__main__":
    small_families()
    if "smollm2" in sys.argv[1:]:
        smollm2()
