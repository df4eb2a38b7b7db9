import concurrent.futures
import datetime
import decimal
import json
import os
import re
import uuid

import hypothesis
import hypothesis.strategies as st
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given

from polgrad.data import codec, load_task, sources

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


def deep(levels):
    return json.loads("[" * levels + "]" * levels)


FINE = {
    "BOM": b"\xef\xbb\xbf" + json.dumps(GOOD).encode() + b"\n",
    "CRLF": json.dumps(GOOD).encode() + b"\r\n\r\n" + json.dumps(GOOD).encode() + b"\r\n",
    "no line end": json.dumps(GOOD).encode(),
    "blanks around": b" \t" + json.dumps(GOOD).encode() + b"  \n  \n",
    "line separators in text": '{"prompt": "p", "answer": "a", "x": "\u2028\x85"}'.encode(),
    "NaN and Infinity": b'{"prompt": "p", "answer": "a", "x": NaN, "y": -Infinity, "z": 1e999}',
    "a long number": b'{"prompt": "p", "answer": "a", "x": ' + b"9" * 4000 + b"}",
    "63 levels": json.dumps({**GOOD, "x": deep(63)}).encode(),
    "many flat lists": json.dumps({**GOOD, "x": [[]] * 500}).encode(),
    "half a pair in metadata": rb'{"prompt": "p", "answer": "a", "x": "\ud800"}',
    "tags of ours": b'{"prompt": "p", "answer": "a", "x": {"__tuple__": [1]}}',
    "a pair": rb'{"prompt": "p", "answer": "a", "x": "\ud83d\ude00"}',
}


@pytest.mark.parametrize("name", FINE)
def test_what_a_line_may_be(tmp_path, name):
    (tmp_path / "x.jsonl").write_bytes(FINE[name])
    source = load_task(tmp_path / "x.jsonl", split="all")
    for i in range(len(source)):
        assert (source[i]["prompt"], source[i]["answer"]) == ("p", "a")
        # A reward's process gets the example through this.
        assert repr(codec.loads(codec.dumps(source[i]))) == repr(source[i])


def test_places_are_those_of_the_file(files):
    for kind, first in (("jsonl", "line 1"), ("parquet", "row 1")):
        source = load_task(files[kind], split="all")
        assert source.place(0) == f"{files[kind]} {first}"
    assert load_task(files["jsonl"], split="all").place(1).endswith("line 3")  # line 2 is blank
    assert load_task(files["jsonl"], split="all").place(-1).endswith("line 301")
    for kind, offset in (("jsonl", 2), ("parquet", 1)):
        test = load_task(files[kind], split="test", held_out=0.2)
        for i in (0, 7):
            number = int(test.place(i).rpartition(" ")[2])
            assert ROWS[max(0, number - offset)]["prompt"] == test[i]["prompt"]


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_a_file_that_changes_while_it_is_used_is_named(files, kind, tmp_path):
    path = tmp_path / files[kind].name
    path.write_bytes(files[kind].read_bytes())
    source = load_task(path, split="all")
    path.write_bytes(files[kind].read_bytes()[:700])
    with pytest.raises(ValueError, match=rf"{path.name} (line 301|row 300): ") as caught:
        source[299]
    assert "\n" not in str(caught.value)


def example(number, **more):
    return json.dumps({"prompt": f"question {number:03}", "answer": "1", **more}) + "\n"


def test_a_file_that_is_touched_extended_or_replaced_is_read_on(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_text("".join(example(i, note="x" * 400 * i) for i in range(60)), "utf-8-sig")
    source = load_task(path, split="all")
    wanted = [source[i] for i in range(60)]
    assert [len(row["metadata"]["note"]) for row in wanted] == [400 * i for i in range(60)]
    os.utime(path, (1, 1))
    assert [source[i] for i in range(60)] == wanted
    with path.open("a") as file:
        file.write("half a li")
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert list(pool.map(source.__getitem__, [*range(60)] * 5)) == wanted * 5
    (tmp_path / "new").write_text(example(7))
    os.replace(tmp_path / "new", path)
    assert [source[i] for i in range(60)] == wanted


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: ["\n", *rows], "the file was changed after"),
        (lambda rows: ["x", *rows], "the file was changed after"),
        (lambda rows: rows[1:], "the file was changed after"),
        (lambda rows: [row.replace("answer", "result") for row in rows], "'answer' is missing"),
        (lambda rows: [row.replace('"1"', "111") for row in rows], "'answer' must be a string"),
        (lambda rows: [row.replace("question", "QUESTION") for row in rows], "of another split"),
    ],
)
def test_a_row_that_is_no_more_what_it_was_is_named(change, message, tmp_path):
    path, rows = tmp_path / "data.jsonl", [example(i) for i in range(60)]
    path.write_text("".join(rows))
    source = load_task(path, split="train", held_out=0.5)
    with path.open("r+") as file:
        file.write("".join(change(rows)))
        file.truncate()
    found = []
    for i in range(len(source)):
        try:
            source[i]
        except ValueError as error:
            found.append(str(error))
    assert found and message in found[-1] and f"{path} line " in found[-1]


@hypothesis.settings(max_examples=60)
@given(st.lists(st.binary(max_size=30) | st.sampled_from(sorted(FINE.values())), max_size=4))
def test_any_bytes_are_examples_or_one_line(tmp_path_factory, lines):
    path = tmp_path_factory.mktemp("bytes") / "x.jsonl"
    path.write_bytes(b"\n".join(lines))
    try:
        source = load_task(path, split="all")
    except ValueError as error:
        assert str(path) in str(error) and "\n" not in str(error)
    else:
        assert all(source[i]["prompt"] == "p" for i in range(len(source)))


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([GOOD, '{"prompt": "p",}'], "line 2: malformed JSON: .* \\(column"),
        ([GOOD, "", "nonsense"], "line 3: malformed JSON"),
        (
            [GOOD, {"prompt": [{"role": "user", "content": "p"}], "answer": "a"}],
            r"line 2: .*got a list \(a chat\): .*row\['prompt'\] = row\['prompt'\]\[-1\]\['content'\]",
        ),
        ([{"messages": [{"role": "user", "content": "p"}]}], "line 1: .*'messages' is a chat: wri"),
        ([GOOD, {"prompt": "p", "answer": None}], "line 2: .*null.*answer as text, or take this"),
        ([GOOD, {"prompt": "p", "answer": 7}], 'line 2: .*, got a number: write "7", in quotes'),
        (
            [GOOD, {"prompt": "p", "answer": float("nan")}],
            r"line 2: .* got a number \(nan\): write the answer as text, or take this example out",
        ),
        ([GOOD, "null"], "line 2: expected an object, got null"),
        ([GOOD, "12"], "line 2: expected an object, got a number"),
        ([GOOD, '"text"'], "line 2: expected an object, got a string"),
        ([GOOD, '{"prompt": "p"'], "line 2: malformed JSON"),
        ([GOOD, "{'prompt': 'p'}"], "line 2: malformed JSON"),
        ([GOOD, json.dumps(GOOD) * 2], "line 2: malformed JSON: Extra data"),
        ([GOOD, '{"prompt": "a\tb", "answer": ""}'], "line 2: malformed JSON: Invalid control"),
        ([GOOD, "[" * 100_000], "line 2: nested deeper than 64 levels"),
        ([GOOD, '{"a":' * 100_000], "line 2: nested deeper than 64 levels"),
        ([GOOD, json.dumps({**GOOD, "x": deep(64)})], "line 2: nested deeper than 64 levels"),
        ([{**GOOD, "x": [[]] * 99, "y": deep(99)}], "line 1: nested deeper than 64 levels"),
        ([GOOD, '{"prompt": "p", "prompt": "q", "answer": ""}'], "line 2: the key 'prompt' occurs"),
        (
            [{**GOOD}, '{"prompt": "", "answer": "", "m": {"a": 1, "a": 2}}'],
            "the key 'a' occurs tw",
        ),
        ([GOOD, '{"prompt": "p", "answer": ' + "1" * 5000 + "}"], "line 2: Exceeds the limit"),
        (
            [GOOD, r'{"prompt": "p", "answer": "\ud83d"}'],
            "line 2: field 'answer' holds U\\+D83D, ha",
        ),
        ([r'{"prompt": "\udc00 a", "answer": ""}'], "line 1: field 'prompt' holds U\\+DC00, half"),
        (
            [GOOD, {"prompt": ["p"], "answer": "a"}],
            "line 2: field 'prompt' must be a string, got a list",
        ),
        (
            [GOOD, {"prompt": {}, "answer": "a"}],
            "line 2: field 'prompt' must be a string, got an object",
        ),
        (
            [GOOD, {"prompt": "p", "answer": True}],
            "line 2: field 'answer' must be a string, got (true|false)",
        ),
        (
            [GOOD, {"prompt": "p", "answer": 0.5}],
            "line 2: field 'answer' must be a string, got a number",
        ),
        ([{"question": "q", "solution": "s"}], r"found \['question', 'solution'\]"),
        ([{str(i): 0 for i in range(99)}], r"line 1: field 'prompt' is missing; .* \.\.\.\]"),
        ([{"prompt": "p", "chosen": "c", "rejected": None}], "line 1: field 'rejected' is null"),
        (["version https://git-lfs.github.com/spec/v1", "oid x"], "is a Git LFS pointer and not"),
        ([GOOD, [1]], "line 2: expected an object, got a list"),
        ([{"prompt": "p"}], "line 1: field 'answer' is missing"),
        ([GOOD, {"answer": "a"}], "line 2: field 'prompt' is missing"),
        ([GOOD, {"prompt": "p", "answer": None}], "line 2: field 'answer' is null"),
        ([{"prompt": "p", "chosen": "c"}], "line 1: field 'rejected' is missing"),
        ([{"prompt": "p", "answer": 3}], "line 1: field 'answer' must be a string, got a number"),
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
        ("folder.jsonl", "folder.jsonl is a directory; expected one file ending"),
        ("folder.parquet", "folder.parquet is a directory; expected one file ending"),
        ("link.jsonl", "no such file"),
        ("x" * 300 + ".jsonl", "File name too long"),
        ("nul\0.jsonl", "no such file"),
    ],
)
def test_files_that_cannot_be_opened(tmp_path, name, message):
    (tmp_path / "folder.jsonl").mkdir()
    (tmp_path / "folder.parquet").mkdir()
    (tmp_path / "link.jsonl").symlink_to("nowhere")
    with pytest.raises(ValueError, match=message):
        load_task(tmp_path / name)


def test_bad_parquet(tmp_path):
    path = tmp_path / "x.parquet"
    path.write_bytes(b"not parquet at all")
    with pytest.raises(ValueError, match="is not a Parquet file"):
        load_task(path)
    table = pyarrow.Table.from_pylist([GOOD, {"prompt": "p", "answer": None}])
    pyarrow.parquet.write_table(table, path)
    with pytest.raises(ValueError, match="row 2: field 'answer' is null"):
        load_task(path, split="all")
    renamed = pyarrow.Table.from_pylist([{"question": "q", "solution": "s"}])
    pyarrow.parquet.write_table(renamed, path)
    with pytest.raises(ValueError, match="has the columns question, solution, expected prompt and"):
        load_task(path)


def parquet(path, **columns):
    """A file of two rows with prompt and answer, and further columns."""
    table = {"prompt": ["p", "q"], "answer": ["a", "b"], **columns}
    pyarrow.parquet.write_table(pyarrow.table(table), path)
    return path


WHEN = datetime.datetime(2024, 7, 26, 12, 30, 1)
# A column, and what a reward gets of its first row.
COLUMNS = {
    "timestamp": (pyarrow.array([WHEN, None]), "2024-07-26T12:30:01"),
    "zoned": (
        pyarrow.array([WHEN, None], pyarrow.timestamp("ms", "UTC")),
        "2024-07-26T12:30:01+00:00",
    ),
    "nanoseconds": (
        pyarrow.array([1721997001000000001, 0], pyarrow.timestamp("ns")),
        "2024-07-26T12:30:01.000000001",
    ),
    "whole nanoseconds": (
        pyarrow.array([1721997001000000000, 0], pyarrow.timestamp("ns", "UTC")),
        "2024-07-26T12:30:01+00:00",
    ),
    "before 1970": (
        pyarrow.array([-1, 0], pyarrow.timestamp("ns")),
        "1969-12-31T23:59:59.999999999",
    ),
    "date": (pyarrow.array([WHEN.date(), None]), "2024-07-26"),
    "time": (pyarrow.array([WHEN.time(), None]), "12:30:01"),
    "time in nanoseconds": (
        pyarrow.array([3600 * 10**9 + 1, 0], pyarrow.time64("ns")),
        "01:00:00.000000001",
    ),
    "duration in nanoseconds": (pyarrow.array([1, 0], pyarrow.duration("ns")), 1e-9),
    "duration": (pyarrow.array([datetime.timedelta(hours=1), None]), 3600.0),
    "decimal": (pyarrow.array([decimal.Decimal("1.50"), None]), "1.50"),
    "small decimal": (
        pyarrow.array([decimal.Decimal("0.00000001"), None], pyarrow.decimal128(20, 8)),
        "0.00000001",
    ),
    "bytes": (pyarrow.array([b"caf\xc3\xa9", None]), "caf\u00e9"),
    "struct": (
        pyarrow.array([{"when": WHEN, "b": b"x"}, None]),
        {"when": "2024-07-26T12:30:01", "b": "x"},
    ),
    "list": (pyarrow.array([[WHEN.date()], []]), ["2024-07-26"]),
    "map": (
        pyarrow.array([[("k", 1)], []], pyarrow.map_(pyarrow.string(), pyarrow.int8())),
        [["k", 1]],
    ),
    "dictionary": (pyarrow.array(["x", None]).dictionary_encode(), "x"),
    "large": (pyarrow.array([2**63, 0], pyarrow.uint64()), 2**63),
    "float16": (pyarrow.array([0.5, None], pyarrow.float16()), 0.5),
    "null": (pyarrow.nulls(2), None),
    "bool": (pyarrow.array([True, None]), True),
    "uuid": (pyarrow.array([uuid.UUID(int=1).bytes, None], pyarrow.uuid()), str(uuid.UUID(int=1))),
}


@pytest.mark.parametrize("name", COLUMNS)
def test_columns_that_json_cannot_hold_are_read_as_text(tmp_path, name, capsys):
    column, expected = COLUMNS[name]
    source = load_task(parquet(tmp_path / "x.parquet", extra=column), split="all")
    told = source[0]["metadata"].get("extra")
    assert told == expected and type(told) is type(expected)
    assert codec.loads(codec.dumps(source[0])) == source[0]
    assert not capsys.readouterr().err


def test_bytes_that_are_no_text_are_left_out_and_said_once(tmp_path, capsys):
    image = pyarrow.array([{"bytes": b"\x89PNG", "path": "a"}, None])
    path = parquet(tmp_path / "x.parquet", image=image, level=[1, 2])
    for _ in range(2):
        assert load_task(path, split="all")[0]["metadata"] == {"level": 1}
    said = capsys.readouterr().err
    assert said == f"polgrad: {path}: left out, bytes that are no text: ['image']\n"


def unicode_column(*texts):
    """A column of strings whose bytes nobody has looked at."""
    return pyarrow.array(texts, pyarrow.binary()).cast(pyarrow.binary()).view(pyarrow.string())


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"answer": [1, 2]}, "x.parquet: column 'answer' must hold text, got int64 .the columns"),
        ({"prompt": [["p"], ["q"]]}, "column 'prompt' must hold text, got list"),
        ({"answer": [b"a", b"b"]}, "column 'answer' must hold text, got binary"),
        (
            {"answer": ["a", None]},
            r"row 2: field 'answer' is null; .* found \['answer', 'extra', 'pr",
        ),
        ({"answer": pyarrow.nulls(2)}, "row 1: field 'answer' is null"),
        (
            {"answer": unicode_column(b"a", b"\xff")},
            "row 2: column 'answer': not UTF-8 text: byte 0",
        ),
        ({"extra": unicode_column(b"\xff", b"x")}, "row 1: column 'extra': not UTF-8 text: byte 0"),
        (
            {"extra": pyarrow.array([0, 2**62], pyarrow.timestamp("ms"))},
            "row 2: column 'extra': ",
        ),
    ],
)
def test_columns_that_cannot_be_used_are_named_with_their_row(tmp_path, columns, message):
    path = parquet(tmp_path / "x.parquet", **{"extra": [1, 2], **columns})
    with pytest.raises(ValueError, match=message) as caught:
        load_task(path, split="all")
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


def test_a_column_that_is_there_twice_is_refused(tmp_path):
    table = pyarrow.table([["p"], ["a"], ["b"]], names=["prompt", "answer", "answer"])
    pyarrow.parquet.write_table(table, tmp_path / "x.parquet")
    with pytest.raises(ValueError, match="x.parquet has the column 'answer' twice"):
        load_task(tmp_path / "x.parquet", split="all")


def test_damaged_parquet_files_end_in_one_line(tmp_path, files):
    """Cut, emptied, replaced, and with one byte in turn changed all over."""
    content = files["parquet"].read_bytes()
    path = tmp_path / "data.parquet"
    others = [b"", b"PAR1", b"PAR1PAR1", b"[" * 99_999, content[4:], content + content[:40]]
    others += [b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"]
    others += [content[: len(content) * i // 20] for i in range(1, 20)]
    others += [
        content[:place] + bytes([content[place] ^ 0x55]) + content[place + 1 :]
        for place in range(4, len(content), len(content) // 150)
    ]
    others += [
        content[:-8] + n.to_bytes(4, "little") + b"PAR1" for n in (0, 9, 2**31 - 1, 2**32 - 1)
    ]
    bad, loaded = [], 0
    for i, other in enumerate(others):
        path.write_bytes(other)
        try:
            source = load_task(path, split="all")
            [source[i] for i in (0, len(source) - 1)]
            loaded += 1
        except ValueError as error:
            if str(path) not in str(error) or "\n" in str(error):
                bad.append((i, str(error)))
        except BaseException as error:  # noqa: BLE001  (nothing else may come out)
            bad.append((i, repr(error)))
    assert not bad, bad[:5]
    # Parquet has no checksums here: a changed letter of a prompt is a prompt.
    assert loaded < len(others) - 60


def test_a_chat_in_a_parquet_file_is_told(tmp_path):
    rows = [{"prompt": [{"role": "user", "content": "p"}], "answer": "a"}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "x.parquet")
    with pytest.raises(ValueError, match="column 'prompt' must hold text.*a chat: write the last"):
        load_task(tmp_path / "x.parquet")


def test_a_directory_is_told_with_the_files_in_it(files, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"is a directory; .*such as .*/data\.jsonl$"):
        load_task(files["jsonl"].parent)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    with pytest.raises(ValueError, match="mine is a directory; .*of which it holds none"):
        load_task("mine")
    (tmp_path / "chain_sum").mkdir()  # a task of this name is found all the same
    with pytest.raises(ValueError, match="size must be given"):
        load_task("chain_sum")


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_another_split_is_had_without_reading_the_file_again(files, kind, monkeypatch):
    train = load_task(files[kind], split="train", held_out=0.2, size=5)
    wanted = load_task(files[kind], split="test", held_out=0.2)
    monkeypatch.setattr(type(train), "_records", lambda _: pytest.fail("read again"))
    test = train.with_split("test")
    assert len(train) == 5 and len(test) == len(wanted)
    del train  # the file stays open
    assert [test[i] for i in range(len(test))] == [wanted[i] for i in range(len(wanted))]
    assert test.place(3) == wanted.place(3)


def test_a_chat_that_ends_with_an_answer_is_cut_at_the_users_message(tmp_path):
    chat = [{"role": role, "content": "x"} for role in ("user", "assistant", "user", "assistant")]
    path = write(tmp_path / "chat.jsonl", [{"messages": chat, "answer": "1"}])
    with pytest.raises(ValueError, match=r"row\['messages'\]\[-2\]\['content'\]"):
        load_task(path)


OTHERS_NAMES = [
    ({"prompt": "p", "ground_truth": "a"}, "; write 'ground_truth' as 'answer', if that is meant"),
    ({"prompt": "p", "solution": "a"}, "; write 'solution' as 'answer', if that is meant"),
    (
        {"question": "p", "target": "a"},
        "; write 'question' as 'prompt' and 'target' as 'answer', if that is meant",
    ),
    (
        {
            "data_source": "gsm8k",
            "prompt": [{"role": "user", "content": "p"}],
            "reward_model": {"style": "rule", "ground_truth": "a"},
        },
        "; this is verl's layout: write row['prompt'][-1]['content'] as prompt and "
        "row['reward_model']['ground_truth'] as answer (docs/porting.md)",
    ),
]


@pytest.mark.parametrize(("row", "told"), OTHERS_NAMES)
def test_the_names_of_other_libraries_are_known(tmp_path, row, told):
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row]), tmp_path / "x.parquet")
    with pytest.raises(ValueError, match=re.escape(told) + "$"):
        load_task(tmp_path / "x.parquet")
    if isinstance(row.get("prompt"), list):
        row = {**row, "prompt": "p"}
    path = write(tmp_path / "x.jsonl", [row])
    with pytest.raises(ValueError, match=re.escape(told) + "$"):
        load_task(path)
