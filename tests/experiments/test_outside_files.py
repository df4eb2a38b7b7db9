"""Experiments' files of other people, directories that something else has touched, and pages."""

import json
import os
import pathlib
import shutil

import numpy as np
import pytest
from worlds import WORLD

from polgrad import _files, cli, experiments
from polgrad.experiments import cells, command, discovery, ledger, pages, running, training_report


def line_of(text):
    return 1 + next(i for i, line in enumerate(WORLD.splitlines()) if text in line)


@pytest.fixture
def world(tmp_path, monkeypatch):
    path = tmp_path / "worlds" / "world.py"
    path.parent.mkdir()
    path.write_text(WORLD)
    monkeypatch.chdir(tmp_path)
    return path


def polgrad(*arguments):
    with pytest.raises(SystemExit) as stopped:
        cli.main([str(a) for a in arguments])
    return stopped.value.code


@pytest.mark.parametrize("name", ["run", "sweep"])
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1\nEXPERIMENT = = 2", "line 2: SyntaxError: invalid syntax"),
        ("import sys; sys.exit(0)", "line 1: called sys.exit(0)"),
        ("import no_such_thing", "line 1: ModuleNotFoundError: No module named 'no_such_thing'"),
        ("class Own(BaseException): pass\nraise Own('no')", "line 2: Own: no"),
        ("x = 1", "has no EXPERIMENT; expected an Experiment of that name"),
        ("EXPERIMENT = None", "has EXPERIMENT of type NoneType; expected an Experiment"),
        ("EXPERIMENT = 5", "has EXPERIMENT of type int"),
        ("def __getattr__(name): return 1 / 0", "line 1: ZeroDivisionError"),
        (WORLD.replace("2020", "'now'"), "ValueError: year is 'now', expected a whole number"),
        (WORLD.replace("settings=Settings()", "settings={}"), "TypeError: "),
        (WORLD.replace('{"only":', '{"../../only":'), "'../../only', which cannot name a file"),
        (WORLD.replace("smoke={}", "smoke={'king': 1}"), "smoke changes ['king']"),
        (WORLD.replace('kind: str = "good"', "kind: object = os"), "TypeError: "),
    ],
)
def test_a_file_that_fails_is_one_line_and_writes_nothing(world, capsys, name, text, message):
    world.write_text(text)
    code = polgrad(name, world)
    error = capsys.readouterr().err
    assert code == 2 and error.count("\n") == 1 and str(world) in error and message in error
    assert not pathlib.Path("runs").exists()


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("raises", f"line {line_of('no such world')}: RuntimeError: no such world at gain 1.0"),
        ("leaves", f"line {line_of('sys.exit(0)')}: called sys.exit(0)"),
        ("own", f"line {line_of('raise Own')}: Own: enough"),
        ("objects", "score is of type object, expected numbers"),
        ("seconds", "a metric is called seconds"),
        ("shapes", "seeds differ in the shape of step"),
        ("scalar", "'int' object has no attribute 'items'"),
        ("check", f"world: holds: {{world}}, line {line_of('1 / 0')}: ZeroDivisionError"),
        ("nothing", "holds returned NoneType; expected experiments.verdict"),
    ],
)
def test_an_arm_that_fails_is_one_line_and_its_trace_is_kept(world, capsys, kind, message):
    assert polgrad("run", world, "--set", f"kind={kind}", "--out", "r") == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and message.format(world=world) in error
    assert error.endswith(f"(traceback: {pathlib.Path('r', 'error.txt')})\n")
    assert "Traceback" in pathlib.Path("r", "error.txt").read_text()
    assert not pathlib.Path("r", "result.json").exists()


def test_in_a_sweep_the_other_cells_go_on(world, tmp_path):
    plan = experiments.find(str(world))
    from polgrad.experiments import cells, sweeping

    kinds = ("leaves", "own", "check", "good")
    plan = sweeping.plan(plan, tmp_path / "s", {"kind": kinds})
    errors = {c.changes["kind"]: cells.run(c, str(plan.place(c))) for c in plan.cells}
    assert errors.pop("good") == ""
    assert "called sys.exit(0)" in errors["leaves"] and "Own: enough" in errors["own"]
    assert "ZeroDivisionError" in errors["check"]
    assert all("\n" not in error for error in errors.values())
    assert [c.changes["kind"] for c in plan.open_cells()] == ["leaves", "own", "check"]
    # A directory that cannot be made is its cell's failure alone.
    place = plan.place(plan.cells[0])
    shutil.rmtree(place)
    place.write_text("a file")
    assert "File exists" in cells.run(plan.cells[0], str(place))
    assert place.read_text() == "a file"


def test_a_failed_run_goes_on_when_its_file_is_mended(world, capsys):
    found = experiments.find(str(world))
    with pytest.raises(experiments.ExperimentError):
        experiments.run(found, "r", changes={"kind": "own"})
    pathlib.Path("r", "error.txt").write_text("as the command leaves it")
    with pytest.raises(experiments.ExperimentError):
        experiments.run(found, "r", changes={"kind": "own"})


# What a run's directory may hold.


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    folder = tmp_path_factory.mktemp("done")
    path = folder / "worlds" / "world.py"
    path.parent.mkdir()
    path.write_text(WORLD)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert polgrad("run", path, "--out", "r") == 0
    return path, folder / "r"


def test_a_run_that_another_process_holds_is_refused(done, capsys):
    path, directory = done
    before = {p: p.read_bytes() for p in directory.rglob("*") if p.is_file() and p.name != ".lock"}
    with _files.alone(directory):
        assert polgrad("run", path, "--out", directory) == 2
    assert f"{directory} is in use by process {os.getpid()}" in capsys.readouterr().err
    assert before == {p: p.read_bytes() for p in before}


def test_the_directory_is_held_until_the_result_is_written(world, tmp_path):
    held = []

    def finish(run):
        with pytest.raises(ValueError, match="in use by"), _files.alone(run.directory):
            pass
        held.append(run)

    experiments.run(experiments.find(str(world)), tmp_path / "r", finish=finish)
    assert len(held) == 1


@pytest.mark.parametrize("name", ["metrics.jsonl", "thesis.tex", "result.json", "config.json"])
def test_a_directory_of_something_else_stays_as_it_is(world, capsys, name):
    pathlib.Path("r").mkdir()
    pathlib.Path("r", name).write_text("work")
    assert polgrad("run", world, "--out", "r") == 2
    error = capsys.readouterr().err
    assert f"r holds {name} and no run of an experiment" in error and error.count("\n") == 1
    assert pathlib.Path("r", name).read_text() == "work" and len(os.listdir("r")) == 1


def broken_arrays(path):
    whole = path.read_bytes()
    yield from (whole[:cut] for cut in (0, 1, 30, len(whole) // 2, len(whole) - 1))
    yield from (
        b"\0" * len(whole),
        b"PK\3\4" + b"x" * 50,
        b"version https://git-lfs.github.com/spec/v1\n",
    )
    with np.load(path) as saved:
        arrays = dict(saved)
    step, score = arrays["step"], arrays["score"]
    for change in (
        {"seconds": None},
        {"score": None},
        {"step": None},
        {"score": score[:, :1]},
        {"score": score[:1]},
        {"score": score * np.nan},
        {"score": score.astype(str)},
        {"step": step[0]},
        {"step": step[:, :0], "score": score[:, :0]},
        {"seconds": np.array("x")},
        {"seconds": np.ones(3)},
        {"score": np.array([None, None])},
    ):
        changed = {k: v for k, v in (arrays | change).items() if v is not None}
        np.savez(path, **changed)
        yield path.read_bytes()


def test_curves_that_are_damaged_are_one_line_with_the_file(done, tmp_path):
    path, directory = done
    shutil.copytree(directory, tmp_path / "r")
    arm = tmp_path / "r" / "arms" / "only.npz"
    found, count = experiments.find(str(path)), 0
    for content in [*broken_arrays(arm)]:
        arm.write_bytes(content)
        with pytest.raises(ValueError, match=r"only\.npz: .*") as caught:
            experiments.run(found, tmp_path / "r")
        assert "\n" not in str(caught.value) and "remove the file" in str(caught.value)
        count += 1
    assert count == 20
    arm.unlink()
    experiments.run(found, tmp_path / "r")  # what the message says to do helps
    seed = tmp_path / "r" / "arms" / "only-seed1" / "curves.npz"
    arm.unlink()
    seed.write_bytes(seed.read_bytes()[:40])
    with pytest.raises(ValueError, match=r"curves\.npz: .*remove the file"):
        experiments.run(found, tmp_path / "r")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b"[" * 100_000, b"null"])
def test_files_of_other_form_are_one_line(done, tmp_path, capsys, content):
    path, directory = done
    for name, arguments in [
        ("experiment.json", ("run", path, "--out", tmp_path / "r")),
        ("result.json", ("report", tmp_path / "r")),
        ("result.png", ("report", tmp_path / "r")),
    ]:
        shutil.rmtree(tmp_path / "r", ignore_errors=True)
        shutil.copytree(directory, tmp_path / "r")
        (tmp_path / "r" / name).write_bytes(content)
        assert polgrad(*arguments) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and f"{tmp_path / 'r' / name}: " in error


def test_a_committed_result_of_other_form_is_found_before_the_run(world, capsys):
    place = world.parents[1] / "results" / "world.json"
    place.parent.mkdir()
    place.write_text("{}")
    assert polgrad("run", world, "--out", "r") == 2
    assert "results/world.json: the entry 'name' is missing" in capsys.readouterr().err
    assert not pathlib.Path("r").exists()
    with pytest.raises(ValueError, match=r"world\.json: the entry 'name' is missing"):
        ledger.results(place.parent)


# Reports.


def test_a_report_replaces_links_and_not_what_they_point_to(done, tmp_path):
    shutil.copytree(done[1], tmp_path / "r")
    for name in ("report.md", "report.html", "report.png"):
        (tmp_path / f"notes of {name}").write_text("mine")
        (tmp_path / "r" / name).symlink_to(tmp_path / f"notes of {name}")
    command.report(str(tmp_path / "r"))
    for name in ("report.md", "report.html", "report.png"):
        assert (tmp_path / f"notes of {name}").read_text() == "mine"
        assert not (tmp_path / "r" / name).is_symlink()


def test_the_ledger_is_not_written_through_a_link(done, tmp_path):
    (tmp_path / "experiments" / "results").mkdir(parents=True)
    notes = tmp_path / "notes.md"
    notes.write_text(f"{ledger.BEGIN}\n{ledger.END}\n")
    (tmp_path / "README.md").symlink_to(notes)
    command.write_ledger(tmp_path)
    assert notes.read_text() == f"{ledger.BEGIN}\n{ledger.END}\n"


HOSTILE = [
    "# forged",
    "a\n# forged",
    "<script>alert(1)</script>",
    "a | b",
    "`code` ``` ````",
    "[x](javascript:alert(1))",
    "![x](http://example.org/a.png)",
    "*bold* _it_ __b__ ~~no~~",
    "&lt;b&gt; &#60;",
    "- item",
    "1. item",
    "---",
    "===",
    "a\\|b \\",
    "> quoted",
    "| a | b |\n|---|---|\n| c | d |",
    "[a]: http://example.org",
    "<!-- ",
    "``` \n# forged\n```",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_no_text_of_a_report_is_mark_up(text):
    markdown_it = pytest.importorskip("markdown_it")
    blocks = [
        pages.Heading(text),
        pages.Text(text),
        pages.Table([text, "b"], [[text, "c"]]),
        pages.Picture("report", text, b""),
        pages.Listing(text),
    ]
    tokens = (
        markdown_it.MarkdownIt("commonmark")
        .enable(["table", "strikethrough"])
        .parse(pages.markdown(text, blocks))
    )
    kinds = [t.type for t in tokens]
    assert kinds.count("heading_open") == 2 and kinds.count("table_open") == 1
    assert kinds.count("fence") == 1 and kinds.count("paragraph_open") == 2
    assert kinds.count("th_open") == kinds.count("td_open") == 2
    assert not {"html_block", "hr", "bullet_list_open", "ordered_list_open", "blockquote_open"} & {
        *kinds
    }
    inner = [one for t in tokens if t.type == "inline" for one in t.children]
    assert {one.type for one in inner} <= {"text", "image", "text_special", "softbreak"}
    flat = " ".join(text.split())
    shown = ["".join(one.content for one in t.children) for t in tokens if t.type == "inline"]
    assert [shown[i] for i in (0, 1, 2, 3, 5)] == [flat] * 5  # headings, paragraph, two cells


def test_a_hostile_result_forges_no_row_of_the_ledger():
    entry = {
        "name": "a`|b\n# x",
        "family": "f|<b>",
        "claim": "<script>\n# forged | x",
        "verdict": "holds](http://example.org)",
        "paper": {"authors": "A](x)", "year": 2020, "arxiv": "1|2) <b>"},
        "seeds": [0],
    }
    lines = ledger.table([entry]).splitlines()
    assert len(lines) == 3 and "<" not in lines[2]
    assert lines[2].replace("\\|", "").count("|") == 5
    assert "](http://example.org)" not in lines[2]


# A run of `polgrad train`.

ROWS = [
    {"step": 1, "reward_mean": 0.25, "loss": None, "entropy": 1.5},
    {"step": 2, "reward_mean": 0.5, "loss": -0.125, "entropy": 1.25, "accuracy": 0.75},
]


@pytest.fixture
def trained(tmp_path):
    config = {"policy": "small", "task": "chain_sum", "algorithm": "grpo", "steps": 4}
    config["optimizer"] = {"learning_rate": 1e-3}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in ROWS))
    return tmp_path


def test_a_report_of_a_training_run(trained, capsys):
    assert polgrad("report", trained) == 0
    assert "Algorithm grpo, 2 of 4 steps." in capsys.readouterr().out
    page = (trained / "report.md").read_text()
    assert (
        "# Training of small on chain\\_sum" in page or "# Training of small on chain_sum" in page
    )
    for row in (
        "| reward_mean | 0.5 |",
        "| loss | -0.125 |",
        "| optimizer.learning_rate | 0.001 |",
    ):
        assert row in page
    assert (trained / "report.png").read_bytes().startswith(b"\x89PNG")
    with (trained / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "rew')
    assert "is cut and left out" in pages.markdown("x", training_report.read(trained)[2])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", ": holds no whole line"),
        (b'{"step": 1', ": holds no whole line"),
        (b"[1]\n", " line 1: expected an object with a whole number 'step'"),
        (b"{}\n", " line 1: expected an object with a whole number 'step'"),
        (b'{"step": 1}\n{"step": "2"}\n', " line 2: expected"),
        (b'{"step": 1, "loss": "x"}\n', " line 1: loss is no number"),
        (b'{"step": 1, "loss": {}}\n', " line 1: loss is no number"),
        (b"\xff\n", " line 1: not UTF-8"),
        (b"{\n", " line 1: not valid JSON"),
        (b"[" * 100_000 + b"\n", " line 1: it is nested too deeply"),
    ],
)
def test_metrics_that_something_else_has_touched_are_one_line(trained, capsys, content, message):
    (trained / "metrics.jsonl").write_bytes(content)
    assert polgrad("report", trained) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and f"metrics.jsonl{message}" in error
    assert not (trained / "report.md").exists()


def test_a_missing_directory_is_told_with_those_that_are_there(tmp_path):
    (tmp_path / "sweep-clip_cov-smoke").mkdir()
    with pytest.raises(ValueError, match="does not exist; there is .*sweep-clip_cov-smoke;"):
        command.report(str(tmp_path / "sweep-clip_cov"))
    with pytest.raises(ValueError, match="does not exist; there is .*sweep-clip_cov-smoke;"):
        command.report(str(tmp_path / "sweep-clipcov-smoke"))
    with pytest.raises(ValueError, match="does not exist; expected the directory"):
        command.report(str(tmp_path / "no" / "x"))


# What lies about in the working directory.


@pytest.fixture
def lying(tmp_path, monkeypatch):
    """`experiments/` with files that leave a trace when they run, and with odd ones."""
    folder = tmp_path / "experiments" / "mine"
    folder.mkdir(parents=True)
    trap = f"import pathlib; pathlib.Path({str(tmp_path / 'ran')!r}).touch()\n"
    head = trap + "EXPERIMENT = experiments.Experiment("
    (folder / "told.py").write_text(trap + WORLD)
    (folder / "hidden.py").write_text(head + "claim=f'{1 + 1}')\n")
    (folder / "escape.py").write_text(head + "claim='a\\x1b[31m\\nb')\n")
    (folder / "nash_md.py").write_text(trap + WORLD)
    (folder / "plotting.py").write_text(trap)
    (folder / "latin.py").write_bytes(b"# \xe9\nEXPERIMENT = 1\n")
    (folder / "folder.py").mkdir()
    (folder / "typo.py").write_text("x = = 1\nEXPERIMENT = 2\n")
    (folder / "huge.py").write_bytes(b"#" * (2 << 20))
    (folder / "deep.py").write_text("x = " + "(" * 5000 + "\nEXPERIMENT = 2\n")
    (folder / "gone.py").symlink_to("nowhere")
    os.mkfifo(folder / "pipe.py")
    (tmp_path / "experiments" / "results").mkdir()
    (tmp_path / "experiments" / "results" / "told.json").write_text("{")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_list_runs_nothing_that_lies_about(lying, capsys):
    assert polgrad("list", "experiments") == 0
    lines = capsys.readouterr().out.splitlines()
    assert not (lying / "ran").exists()

    def line(name):
        (found,) = [one for one in lines if one.startswith(f"  {name} ")]
        return found

    assert "unreadable" in line("told")
    assert line("told").endswith("Scores are positive. (experiments/mine/told.py)")
    assert "(its text names no claim) (experiments/mine/hidden.py)" in line("hidden")
    assert "a [31m b (experiments/mine/escape.py)" in line("escape")
    both = [one for one in lines if one.startswith("  nash_md ")]
    assert len(both) == 2 and sum("to be run by this path" in one for one in both) == 1
    assert not any("plotting" in one for one in lines)
    skipped = {one.split(":")[1].rpartition("/")[2] for one in lines if one.startswith("skipped: ")}
    assert skipped == {
        f"{n}.py" for n in ("latin", "folder", "typo", "huge", "deep", "gone", "pipe")
    }
    assert "clip_cov" in discovery.names() and "latin" not in discovery.names()


@pytest.mark.parametrize("name", ["run", "sweep"])
def test_a_name_that_two_files_have_is_refused(lying, capsys, name):
    assert polgrad(name, "nash_md") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "experiments/mine/nash_md.py; give the path" in error
    assert not (lying / "ran").exists()
    assert polgrad(name, "typo") == 2
    assert "typo.py: SyntaxError" in capsys.readouterr().err


def test_a_clone_beside_the_same_polgrad_is_no_second_experiment(tmp_path, monkeypatch):
    own = discovery.names()["nash_md"]
    copy = tmp_path / "experiments" / "games" / "nash_md.py"
    copy.parent.mkdir(parents=True)
    shutil.copy(own, copy)
    monkeypatch.chdir(tmp_path)
    assert discovery._named("nash_md") == copy


def test_the_claims_of_polgrads_own_experiments_are_told_by_their_text():
    told = [one for one in discovery.listed() if one.own]
    assert len(told) >= 12 and all(one.claim and not one.problem for one in told)


def test_names_of_runs_that_differ_are_directories_that_differ():
    texts = ["kind=a b", "kind=a_b", "kind=a/b", "kind=" + "x" * 400, "kind=" + "x" * 399 + "y"]
    places = {command._place("world", False, [text], None) for text in texts}
    assert len(places) == len(texts)
    assert all(len(os.path.basename(place).encode()) < 200 for place in places)
    assert command._place("walk", True, ["a=1"], 3) == "runs/walk-smoke-a=1-seeds=3"
    # Directories of earlier versions are found again.
    assert cells.name({"kind": "a b"}) == "kind=a_b~f599c7c37ad4"
    assert command._place("world", False, ["kind=a b"], None) == "runs/world-kind=a_b~e412debac07a"


def test_an_arms_file_is_found_through_what_wraps_it():
    import functools

    def arm(key, settings):
        return {}

    for wrapped in (arm, functools.partial(arm), experiments.HostArm(arm), functools.cache(arm)):
        assert running._file_of(wrapped) == __file__
