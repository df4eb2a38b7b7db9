"""The small world that every attack starts from."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
from worlds import WORLD

TINY = """--small.layers 1 --small.width 16 --small.heads 2 --small.mlp 32 --rollouts.prompts 4
  --rollouts.group-size 2 --rollouts.max-tokens 4 --evaluation.problems 0 --no-track-kl
  --saving.every 2 --saving.no-tensorboard"""
TRAIN = ("train", "--task", "sums.jsonl", *TINY.split(), "--steps", "4", "--out", "runs/new")
REWARD = '''"""A reward that is all right."""


def length(prompt, completion, example):
    """One point a character."""
    return float(len(completion))
'''
ALGORITHM = '''"""An algorithm of one's own."""

import dataclasses

from polgrad import algorithms


@dataclasses.dataclass(frozen=True)
class Mine(algorithms.GRPO):
    """GRPO under another name."""
'''
TEMPLATE = "{% for m in messages %}{{ m['content'] }}{% endfor %}"


def build(place: pathlib.Path) -> None:
    """Makes the world: files by hand, a run, its export, a GGUF file, an experiment's run, a sweep."""
    place.mkdir(parents=True)
    rows = [{"prompt": f"{a}+{b}=", "answer": str(a + b)} for a in range(5) for b in range(5)]
    write_rows(place / "sums.jsonl", rows)
    pairs = [{"prompt": r["prompt"], "chosen": r["answer"], "rejected": "x"} for r in rows]
    write_rows(place / "pairs.jsonl", pairs)
    write_parquet(place / "sums.parquet", rows)
    (place / "mine.py").write_text(REWARD)
    (place / "algorithm.py").write_text(ALGORITHM)
    (place / "own").mkdir()
    (place / "own" / "trial.py").write_text(WORLD)
    (place / "notes.txt").write_text("somebody's work\n")
    os.mkdir(place / "empty")
    _polgrad(place, *TRAIN[:-1], "runs/a")
    _polgrad(place, "export", "--policy", "runs/a", "--out", "model")
    edit(place / "model" / "tokenizer_config.json", chat_template=TEMPLATE)
    write_gguf(place / "model.gguf", place / "model")
    _polgrad(place, "run", "own/trial.py", "--out", "runs/trial")
    _polgrad(place, "sweep", "own/trial.py", "--set", "gain=1,2", "--out", "runs/sweep")


def _polgrad(place: pathlib.Path, *words: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "polgrad", *words], cwd=place, capture_output=True, text=True
    )
    if done.returncode:
        sys.exit(f"the world cannot be built: polgrad {' '.join(words)}\n{done.stderr}")


def write_rows(path: pathlib.Path, rows: list[dict]) -> None:
    """A JSONL file."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_parquet(path: pathlib.Path, rows: list[dict]) -> None:
    """A Parquet file."""
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)


def edit(path: pathlib.Path, **entries) -> None:
    """Changes entries of a JSON object; `...` deletes one."""
    content = json.loads(path.read_text()) | entries
    path.write_text(json.dumps({k: v for k, v in content.items() if v is not ...}))


def write_gguf(path: pathlib.Path, model: pathlib.Path) -> None:
    """A small GGUF file of the family qwen2, whose attention needs no other order of rows."""
    import gguf

    shape = json.loads((model / "config.json").read_text())
    width, vocabulary, context = 16, 260, shape["max_position_embeddings"]
    letters = [chr(c) for c in (*range(33, 127), *range(161, 173), *range(174, 256))]
    letters += [chr(256 + i) for i in range(256 - len(letters))]
    writer = gguf.GGUFWriter(path, "qwen2")
    writer.add_embedding_length(width)
    writer.add_block_count(1)
    writer.add_head_count(2)
    writer.add_head_count_kv(2)
    writer.add_feed_forward_length(32)
    writer.add_context_length(context)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(10_000.0)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(["<|endoftext|>", "<|im_start|>", "<|im_end|>", *letters, "ab"])
    writer.add_token_types([3, 3, 3] + [1] * 257)
    writer.add_token_merges(["a b"])
    writer.add_eos_token_id(0)
    random = np.random.default_rng(0)
    shapes = {"token_embd.weight": (vocabulary, width), "output_norm.weight": (width,)}
    layer = {"attn_norm": (16,), "attn_q": (16, 16), "attn_k": (16, 16), "attn_v": (16, 16)}
    layer |= {"attn_output": (16, 16), "ffn_norm": (16,)}
    layer |= {"ffn_gate": (32, 16), "ffn_up": (32, 16), "ffn_down": (16, 32)}
    shapes |= {f"blk.0.{name}.weight": shape for name, shape in layer.items()}
    shapes |= {f"blk.0.attn_{name}.bias": (16,) for name in "qkv"}
    for name, shape in shapes.items():
        writer.add_tensor(name, random.normal(size=shape).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
