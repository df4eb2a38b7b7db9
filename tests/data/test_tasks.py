import pytest

from polgrad.data import load_task, task_names
from polgrad.data.tasks import default_data_dir


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("chain_sm", {}, "unknown task 'chain_sm'; did you mean chain_sum"),
        ("composite", {}, "unknown task 'composite'.*`polgrad list tasks`"),
        ("chain_sum", {"size": None}, "size must be given"),
        ("chain_sum", {"parameters": {"min_term": 2}}, "no parameter 'min_term'; did you mean"),
        ("chain_sum", {"parameters": {"zzz": 2}}, r"\(it has: min_terms, max_terms, min_digits"),
        ("chain_sum", {"parameters": {"size": 2}}, "no parameter 'size'"),
        (
            "chain_sum",
            {"parameters": {"min_terms": "2"}},
            "'min_terms' .* must be a whole number, got '2'",
        ),
        ("chain_sum", {"parameters": {"min_terms": True}}, "must be a whole number, got True"),
        ("chain_sum", {"parameters": {"min_terms": 9}}, "max_terms must be >= min_terms"),
        ("chain_sum", {"held_out": 0, "split": "test"}, "split 'test' is empty with held_out=0"),
        ("chain_sum", {"held_out": 1, "split": "train"}, "split 'train' is empty with held_out=1"),
    ],
)
def test_mistakes_are_told_in_one_line(tmp_path, name, settings, message):
    with pytest.raises(ValueError, match=message) as caught:
        load_task(name, **{"size": 4, "data_dir": tmp_path, **settings})
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_names():
    names = task_names()
    assert {"chain_sum", "basic_arithmetic", "gsm_symbolic"} <= set(names)
    assert names == sorted(names) and "composite" not in names


def test_data_dir_from_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("POLGRAD_DATA", str(tmp_path))
    assert default_data_dir() == tmp_path
    assert len(load_task("chain_sum", size=2)) == 2
    assert [path.name.split("-")[0] for path in tmp_path.iterdir()] == ["chain_sum"]
    monkeypatch.delenv("POLGRAD_DATA")
    assert default_data_dir().parts[-3:] == (".cache", "polgrad", "data")
