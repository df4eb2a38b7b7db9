"""Exceptions of files and of people's code become one line with the file."""

import json
import os
import textwrap

import pytest

from polgrad import _outside, _user_files


def test_a_librarys_exception_names_the_file(tmp_path):
    class Odd(Exception):
        pass

    told = pytest.raises(_outside.OutsideError, match=r"model\.bin: Odd: two lines$")
    with told, _outside.reading(tmp_path / "model.bin"):
        raise Odd("two\n   lines")


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (KeyError("weight_map"), "x: the entry 'weight_map' is missing"),
        (RecursionError("maximum"), "x: it is nested too deeply"),
        (MemoryError(), "x: it asks for more memory than there is"),
        (FileNotFoundError(2, "No such file or directory"), "x: No such file or directory"),
        (ValueError("has 3 columns"), "x: has 3 columns"),
        (ValueError("x: has 3 columns"), "x: has 3 columns"),
        (ValueError(), "x: ValueError"),
        (TypeError("no len()"), "x: TypeError: no len()"),
    ],
)
def test_what_an_exception_says(error, text):
    with pytest.raises(_outside.OutsideError) as caught, _outside.reading("x"):
        raise error
    assert str(caught.value) == text


def test_interrupts_pass():
    for kind in (KeyboardInterrupt, SystemExit):
        with pytest.raises(kind), _outside.reading("x"):
            raise kind


def test_a_git_lfs_pointer_is_called_that(tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(_outside.OutsideError, match="Git LFS pointer.*git lfs pull"):
        _outside.read_json(path)


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    told = pytest.raises(_outside.OutsideError, match="pipe: is no file")
    with told, _outside.reading(tmp_path / "pipe"):
        raise ValueError("is no file")


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"{", r"not valid JSON: .*\(line 1, column 2\)"),
        (b"[]", "holds list; expected an object"),
        (b"null", "holds null; expected an object"),
        (b"\xff", "not UTF-8 text: byte 0 is 0xff"),
        (b"[" * 200_000, "nested too deeply"),
    ],
)
def test_json_that_cannot_be_used(tmp_path, content, text):
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(_outside.OutsideError, match=f"config.json: .*{text}"):
        _outside.read_json(path)


def test_json_that_can_be_used(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"a": [1]}))
    assert _outside.read_json(path) == {"a": [1]}


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("x = 1\ny = = 2", "line 2: SyntaxError: invalid syntax"),
        ("x = 1\n\nraise RuntimeError('no')", "line 3: RuntimeError: no"),
        ("import sys\nsys.exit(0)", r"line 2: called sys.exit\(0\)"),
        ("import sys\nsys.exit()", r"line 2: called sys.exit\(\)"),
        ("import nosuchmodule", "line 1: ModuleNotFoundError: No module named 'nosuchmodule'"),
        ("def f():\n  import json\n  json.loads('{')\nf()", "line 3: JSONDecodeError: Expecting"),
        ("class Odd(BaseException): pass\nraise Odd('no')", "line 2: Odd: no"),
        (
            "class Odd(Exception):\n  def __str__(self): raise ValueError\nraise Odd",
            r"line 3: Odd: \(its text cannot be had\)",
        ),
    ],
)
def test_peoples_code_is_told_with_its_line(tmp_path, code, text):
    path = tmp_path / "mine.py"
    path.write_text(textwrap.dedent(code))
    told = pytest.raises(_outside.OutsideError, match=rf"reward f: .*mine\.py, {text}")
    with told as caught, _outside.calling(path, "reward f"):
        _user_files.load(path)
    assert "\n" not in str(caught.value)


def test_a_path_stands_in_a_line_once(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("y = = 2")
    with (
        pytest.raises(_outside.OutsideError) as caught,
        _outside.calling(path, f"reward '{path}:f'"),
    ):
        _user_files.load(path)
    assert str(caught.value) == f"reward '{path}:f': mine.py, line 1: SyntaxError: invalid syntax"
