"""Data files that hold what they should not."""

import datetime
import decimal
import functools
import json
import pathlib

from attacks import Attack
from attacks.world import TRAIN, write_parquet, write_rows

GOOD = '{"prompt": "1+1=", "answer": "2"}\n'
JSONL = {
    "empty": b"",
    "blank lines": b"\n\n \n",
    "half a line": GOOD.encode() * 3 + b'{"prompt": "1',
    "an array": b"[1, 2]\n",
    "a number": b"7\n",
    "a text": b'"prompt"\n',
    "null": b"null\n",
    "not JSON": b"prompt,answer\n1+1=,2\n",
    "not UTF-8": GOOD.encode() + b'{"prompt": "\xff\xfe", "answer": "2"}\n',
    "binary": bytes(range(256)) * 8,
    "UTF-16": GOOD.encode("utf-16"),
    "no prompt": b'{"question": "1+1=", "answer": "2"}\n',
    "no answer": b'{"prompt": "1+1="}\n',
    "a prompt that is null": b'{"prompt": null, "answer": "2"}\n',
    "an answer that is null": GOOD.encode() + b'{"prompt": "1+1=", "answer": null}\n',
    "a prompt that is a list": b'{"prompt": [{"role": "user", "content": "1"}], "answer": "2"}\n',
    "an answer that is a number": b'{"prompt": "1+1=", "answer": 2}\n',
    "an answer that is an object": b'{"prompt": "1+1=", "answer": {"value": 2}}\n',
    "an empty prompt": GOOD.encode() + b'{"prompt": "", "answer": "2"}\n',
    "deep JSON": b'{"prompt": "1", "answer": "2", "x": ' + b"[" * 100_000 + b"\n",
    "a Git LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
    "a field that goes missing": GOOD.encode() + b'{"prompt": "2+2="}\n',
    "chosen without rejected": b'{"prompt": "1+1=", "chosen": "2"}\n',
}
PAIRS = {
    "an empty answer": {"prompt": "1+1=", "chosen": "", "rejected": "3"},
    "blank answers": {"prompt": "1+1=", "chosen": "2", "rejected": "  "},
    "rejected is null": {"prompt": "1+1=", "chosen": "2", "rejected": None},
    "chosen is a list": {"prompt": "1+1=", "chosen": ["2"], "rejected": "3"},
    "an answer that is too long": {"prompt": "1+1=", "chosen": "2" * 40, "rejected": "3"},
}
PARQUET = {
    "other columns": [{"question": "1+1=", "answer": "2"}],
    "only prompts": [{"prompt": "1+1="}],
    "no rows": [],
    "numbers": [{"prompt": "1+1=", "answer": 2}],
    "a null": [{"prompt": "1+1=", "answer": "2"}, {"prompt": "2+2=", "answer": None}],
    "lists": [{"prompt": ["1+1="], "answer": "2"}],
    "dates": [{"prompt": "1+1=", "answer": datetime.datetime(2026, 1, 1)}],
    "decimals": [{"prompt": "1+1=", "answer": decimal.Decimal("2.0")}],
}


def _bytes(content: bytes, name: str, place: pathlib.Path) -> None:
    (place / name).write_bytes(content)


def _pairs(row: dict, place: pathlib.Path) -> None:
    good = json.loads((place / "pairs.jsonl").read_text().splitlines()[0])
    write_rows(place / "bad.jsonl", [good, good, row])


def _parquet(rows: list[dict], place: pathlib.Path) -> None:
    write_parquet(place / "bad.parquet", rows)


def _cut(size: int, place: pathlib.Path) -> None:
    content = (place / "sums.parquet").read_bytes()
    (place / "bad.parquet").write_bytes(content[:size] if size else b"")


def _zeros(place: pathlib.Path) -> None:
    content = bytearray((place / "sums.parquet").read_bytes())
    content[8:120] = bytes(112)
    (place / "bad.parquet").write_bytes(content)


def attacks() -> list[Attack]:
    """Each file with `train`; some with `evaluate` too."""
    train = [w if w != "sums.jsonl" else "bad.jsonl" for w in TRAIN]
    parquet = [w if w != "sums.jsonl" else "bad.parquet" for w in TRAIN]
    dpo = (*train, "--algorithm", "dpo")
    found = []
    for name, content in JSONL.items():
        prepare = functools.partial(_bytes, content, "bad.jsonl")
        found.append(Attack(f"data: {name}", tuple(train), prepare))
    for name in ("half a line", "not UTF-8", "no answer", "deep JSON", "empty"):
        prepare = functools.partial(_bytes, JSONL[name], "bad.jsonl")
        words = ("evaluate", "--policy", "runs/a", "--task", "bad.jsonl")
        found.append(Attack(f"data: {name}, evaluated", words, prepare))
    for name, row in PAIRS.items():
        words = dpo if "too long" not in name else (*dpo, "--rollouts.max-tokens", "8")
        found.append(Attack(f"data: pairs, {name}", words, functools.partial(_pairs, row)))
    for name, rows in PARQUET.items():
        prepare = functools.partial(_parquet, rows)
        found.append(Attack(f"data: parquet, {name}", tuple(parquet), prepare))
    for size in (0, 3, 4, 100, 400):
        prepare = functools.partial(_cut, size)
        found.append(Attack(f"data: parquet, cut to {size} bytes", tuple(parquet), prepare))
    found.append(Attack("data: parquet, zeros inside", tuple(parquet), _zeros))
    for name, content in (("bad.csv", b"prompt,answer\n1,2\n"), ("bad.json", b"[]")):
        words = [w if w != "sums.jsonl" else name for w in TRAIN]
        prepare = functools.partial(_bytes, content, name)
        found.append(Attack(f"data: {name}", tuple(words), prepare))
    long = json.dumps({"prompt": "1" * 5000, "answer": "2"}).encode() + b"\n"
    model = (*train, "--policy", "model")
    found += [
        Attack(
            "data: a prompt longer than the context",
            model,
            functools.partial(_bytes, GOOD.encode() * 3 + long, "bad.jsonl"),
        ),
        Attack(
            "data: a folder that is called a file",
            tuple(train),
            lambda place: (place / "bad.jsonl").mkdir(),
        ),
        Attack(
            "data: a demonstration that is too long",
            (*train, "--algorithm", "sft"),
            functools.partial(
                _bytes,
                GOOD.encode() * 3 + GOOD.encode().replace(b'"2"', b'"22222222"'),
                "bad.jsonl",
            ),
        ),
    ]
    return found
