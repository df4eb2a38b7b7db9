"""Evaluating a policy: which problems, what is refused, and what is written."""

import errno
import json
import os

import pytest

from polgrad.serving import evaluating


@pytest.fixture
def sums(tmp_path):
    path = tmp_path / "sums.jsonl"
    rows = [{"prompt": f"{a}+{b}=", "answer": str(a + b)} for a in range(6) for b in range(6)]
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


def problems(task, held_out=None, count=None, parameters=()):
    settings, source, tried = evaluating._evaluated("p", task, parameters, held_out, count, 0)
    return len(source), tried


def test_a_file_given_as_a_test_is_used_whole(sums):
    assert problems(str(sums)) == (36, 36)
    assert problems(str(sums), count=5) == (36, 5)
    share, tried = problems(str(sums), held_out=0.3)
    assert share == tried and 0 < share < 36
    assert problems("chain_sum", count=7) == (7, 7)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"task": "chain_sum", "held_out": 0.5}, "held_out is for a file"),
        ({"task": None, "held_out": 0.5}, "held_out is for a file"),
        ({"task": None, "parameters": ("a=1",)}, "give the task too"),
        ({"task": None}, "policy p is not a run; say which task"),
        (
            {"task": "chain_sum", "parameters": ("max_terms=2", "max_digits=1")},
            r"gave 17 distinct problems .* ask for at most 17 \(--problems 17\)",
        ),
    ],
)
def test_problems_that_cannot_be_had_are_told(arguments, expected):
    with pytest.raises(ValueError, match=expected):
        problems(**arguments)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"problems": 0}, "problems is 0"),
        ({"samples": -1}, "samples is -1"),
        ({"temperature": float("nan")}, "temperature"),
        ({"top_p": 0.0}, "top_p"),
        ({"out": "/proc/nosuch/x.json"}, "cannot be written"),
        ({"out": "/"}, "is there already"),
    ],
)
def test_an_evaluation_is_refused_before_the_policy_is_loaded(changes, expected, monkeypatch):
    monkeypatch.setattr(evaluating, "load", lambda *_, **__: pytest.fail("went on"))
    with pytest.raises(ValueError, match=expected):
        evaluating.evaluate_policy("p", **changes)


def test_the_results_of_an_evaluation_are_written_where_they_were_checked(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    place = evaluating._new_file("~/r.json")
    assert place == tmp_path / "r.json" and not list(tmp_path.iterdir())
    evaluating._write_results(place, {"value": 0.5})
    assert json.loads((tmp_path / "r.json").read_text()) == {"value": 0.5}
    with pytest.raises(ValueError, match="is there already"):
        evaluating._new_file("~/r.json")

    def refuse(**_):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(evaluating.tempfile, "TemporaryFile", refuse)
    with pytest.raises(ValueError, match="'~/s.json' cannot be written: Read-only file system"):
        evaluating._new_file("~/s.json")


def test_results_that_cannot_be_written_are_told(tmp_path):
    content = {"value": 0.5, "low": 0.25, "high": 0.75, "problems": 8}
    told = r"No such file or directory; the accuracy is 0\.500 \(95% interval 0\.250 to 0\.750, 8 "
    with pytest.raises(ValueError, match=told):
        evaluating._write_results(tmp_path / "gone" / "r.json", content)
