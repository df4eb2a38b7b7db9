import json

import pyarrow
import pyarrow.parquet
import pytest

from polgrad.data import load_task, sources

ROWS = [{"prompt": f"q{i} é", "answer": str(i), "level": i % 3} for i in range(300)]


def write(path, lines):
    path.write_text(
        "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    )
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    jsonl = write(folder / "data.jsonl", [ROWS[0], "", *ROWS[1:]])
    parquet = folder / "data.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), parquet, row_group_size=37)
    return {"jsonl": jsonl, "parquet": parquet}


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_rows_are_read_at_random(files, kind):
    source = load_task(files[kind], split="all")
    assert len(source) == 300
    for i in (299, 0, 150, 37, 36):
        wanted = {"prompt": f"q{i} é", "answer": str(i), "index": i, "metadata": {"level": i % 3}}
        assert source[i] == wanted
    assert source[-1] == source[299]
    with pytest.raises(IndexError):
        source[300]


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_splits_share_no_prompt_and_leave_none_out(files, kind):
    splits = [
        {x["prompt"] for x in load_task(files[kind], split=s, held_out=0.2)}
        for s in ("train", "test")
    ]
    assert not splits[0] & splits[1] and len(splits[0] | splits[1]) == 300
    assert 30 < len(splits[1]) < 90


def test_held_out_share():
    shares = [sum(sources.is_held_out(str(i), f) for i in range(4000)) / 4000 for f in (0, 0.3, 1)]
    assert shares[0] == 0 and abs(shares[1] - 0.3) < 0.03 and shares[2] == 1
    # A larger share keeps every prompt that a smaller one holds out.
    assert all(
        sources.is_held_out(str(i), 0.3) for i in range(500) if sources.is_held_out(str(i), 0.1)
    )


def test_size_takes_the_first(files):
    assert [x["answer"] for x in load_task(files["jsonl"], split="all", size=3)] == ["0", "1", "2"]
    assert len(load_task(files["jsonl"], split="all", size=999)) == 300


def test_pattern_and_template(files):
    settings = {"prompt_pattern": r"q(\d+)", "prompt_template": "<{prompt}>{}"}
    assert load_task(files["jsonl"], split="all", **settings)[7]["prompt"] == "<7>{}"
    with pytest.raises(
        ValueError, match=r"data.jsonl line 1: prompt_pattern 'x\(.\)' does not match"
    ):
        load_task(files["jsonl"], split="all", prompt_pattern="x(.)")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prompt_pattern": "("}, "does not compile"),
        ({"prompt_pattern": "a"}, "has 0 groups, expected 1"),
        ({"prompt_template": "x"}, "must hold '{prompt}' exactly once"),
        ({"split": "valid"}, "split must be one of train, test, all"),
        ({"held_out": 1.5}, r"held_out must be in \[0, 1\]"),
        ({"size": 0}, "size must be a positive integer"),
        ({"seed": -1}, "seed must be a non-negative integer"),
        ({"parameters": {"a": 1}}, "is a file, which has no parameters"),
        ({"split": "test", "held_out": 0}, "none of its 300 examples falls into split 'test'"),
    ],
)
def test_bad_settings(files, settings, message):
    with pytest.raises(ValueError, match=message):
        load_task(files["jsonl"], **settings)


def test_pairs_and_metadata(tmp_path):
    row = {"prompt": "p", "chosen": "a", "rejected": "b", "metadata": {"x": 1}, "y": 2}
    source = load_task(write(tmp_path / "pairs.jsonl", [row]), split="all")
    wanted = {"prompt": "p", "chosen": "a", "rejected": "b", "index": 0}
    assert source[0] == {**wanted, "metadata": {"x": 1, "y": 2}}


GOOD = {"prompt": "p", "answer": "a"}


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([GOOD, '{"prompt": "p",}'], "line 2: malformed JSON: .* \\(column"),
        ([GOOD, "", "nonsense"], "line 3: malformed JSON"),
        ([GOOD, [1]], "line 2: expected an object, got list"),
        ([{"prompt": "p"}], "line 1: field 'answer' is missing"),
        ([GOOD, {"answer": "a"}], "line 2: field 'prompt' is missing"),
        ([GOOD, {"prompt": "p", "answer": None}], "line 2: field 'answer' is null"),
        ([{"prompt": "p", "chosen": "c"}], "line 1: field 'rejected' is missing"),
        ([{"prompt": "p", "answer": 3}], "line 1: field 'answer' must be a string, got int"),
        ([], "is empty"),
        (["", "  "], "is empty"),
    ],
)
def test_bad_lines_are_named(tmp_path, lines, message):
    path = write(tmp_path / "bad.jsonl", lines)
    with pytest.raises(ValueError, match=message) as caught:
        load_task(path, split="all")
    assert "\n" not in str(caught.value) and "bad.jsonl" in str(caught.value)


def test_bytes_that_are_no_text_are_named(tmp_path):
    path = tmp_path / "bad.jsonl"
    path.write_bytes(json.dumps(GOOD).encode() + b'\n{"prompt": "\xff", "answer": ""}')
    with pytest.raises(ValueError, match="line 2: malformed JSON"):
        load_task(path, split="all")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing.jsonl", "no such file"),
        ("data.csv", "expected a file ending in .jsonl or .parquet"),
        ("folder/data", "expected a file ending in"),
    ],
)
def test_files_that_cannot_be_opened(tmp_path, name, message):
    with pytest.raises(ValueError, match=message):
        load_task(tmp_path / name)


def test_bad_parquet(tmp_path):
    path = tmp_path / "x.parquet"
    path.write_bytes(b"not parquet at all")
    with pytest.raises(ValueError, match="is not a Parquet file"):
        load_task(path)
    table = pyarrow.Table.from_pylist([GOOD, {"prompt": "p", "answer": None}])
    pyarrow.parquet.write_table(table, path)
    with pytest.raises(ValueError, match="row 1: field 'answer' is null"):
        load_task(path, split="all")
    renamed = pyarrow.Table.from_pylist([{"question": "q", "solution": "s"}])
    pyarrow.parquet.write_table(renamed, path)
    with pytest.raises(ValueError, match="has the columns question, solution, expected prompt and"):
        load_task(path)
