"""Greedy continuations of SmolLM2 by transformers, for test_greedy_smollm2.py.

    python tests/rollouts/make_greedy_goldens.py

Exports polgrad's SmolLM2 to a temporary directory, lets transformers (float32, one prompt at a
time, no padding) continue a dozen prompts greedily, and writes prompts, tokens and the gaps
between the two largest logits to tests/golden/greedy_smollm2.json.
"""

import json
import tempfile
from pathlib import Path

GOLDEN = Path(__file__).parents[1] / "golden" / "greedy_smollm2.json"
MAX_TOKENS = 24
PROMPTS = [
    "Hi",
    "What is 2 + 3?",
    "Name the capital of France.",
    "Write one line about the sea.",
    "Is 17 a prime number? Answer yes or no.",
    "Translate to French: good morning",
    "List three fruits.",
    "Why is the sky blue? Explain it in one short sentence for a child of six.",
    "Complete the sentence: the quick brown fox",
    "Tom has 12 apples and gives 5 of them to Anna, who eats 2. How many apples has Anna now?",
    "Say nothing but the word 'done'.",
    "Summarise in a few words: A policy gradient method adjusts the parameters of a policy in the "
    "direction that makes well rewarded actions more likely and badly rewarded actions less so.",
]


def greedy(directory, prompts=PROMPTS, max_tokens=MAX_TOKENS):
    """Prompts through the chat template, and what transformers makes of them."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    stop = model.generation_config.eos_token_id
    stops = set(stop if isinstance(stop, list) else [stop])
    rows = []
    for prompt in prompts:
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
        )
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        tokens, gaps, feed, past = [], [], ids, None
        with torch.no_grad():
            while len(tokens) < max_tokens and not (tokens and tokens[-1] in stops):
                out = model(torch.tensor([feed]), past_key_values=past, use_cache=True)
                past = out.past_key_values
                top = out.logits[0, -1].topk(2)
                tokens.append(int(top.indices[0]))
                gaps.append(round(float(top.values[0] - top.values[1]), 5))
                feed = tokens[-1:]
        rows.append({"prompt": ids, "tokens": tokens, "gaps": gaps})
    return {"stop_ids": sorted(stops), "max_tokens": max_tokens, "rows": rows}


def main():
    from polgrad import policies

    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder) / "smollm2"
        policies.export(directory, policies.load("smollm2-135m-instruct"))
        golden = greedy(directory)
    rows = ",\n  ".join(json.dumps(row) for row in golden.pop("rows"))
    head = json.dumps(golden)[1:-1]
    GOLDEN.write_text(f'{{{head}, "rows": [\n  {rows}\n]}}\n')


if __name__ == "__main__":
    main()
