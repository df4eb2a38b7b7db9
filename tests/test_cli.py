"""The command line: bad input is one line and exit code 2; good input does what it says."""

import errno
import json
import os
import pathlib
import re
import subprocess
import sys

import pytest

from polgrad import _outside, cli
from polgrad.cli import listing
from polgrad.cli.common import fail
from polgrad.training import reporting
from polgrad.training.runtime import host_memory, program_cache

SMALL = [
    "--small.layers",
    "1",
    "--small.width",
    "16",
    "--small.heads",
    "2",
    "--small.mlp",
    "32",
    "--mesh",
    "data=1",
]
SIZES = [
    "--rollouts.prompts",
    "4",
    "--rollouts.group-size",
    "4",
    "--rollouts.max-tokens",
    "3",
    "--steps",
    "1",
]


@pytest.fixture
def sums(tmp_path):
    path = tmp_path / "sums.jsonl"
    rows = [{"prompt": f"{a}+{b}=", "answer": str(a + b)} for a in range(6) for b in range(6)]
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


def run(capsys, *arguments):
    try:
        code = cli._run([str(a) for a in arguments])
    except SystemExit as stop:  # the option parser's own errors
        code = stop.code
    return code, *capsys.readouterr()


def train(capsys, sums, tmp_path, *more):
    usual = ["--task", sums, "--out", tmp_path / "run", *SMALL, *SIZES]
    pairs = zip(usual[::2], usual[1::2], strict=True)
    kept = [part for pair in pairs if pair[0] not in more for part in pair]
    return run(capsys, "train", *kept, *more)


def bad_files(tmp_path):
    empty, malformed, fieldless = (tmp_path / f"{n}.jsonl" for n in ("empty", "malformed", "other"))
    empty.write_text("")
    malformed.write_text('{"prompt": "1+1=", "answer": "2"}\n{"prompt": \n')
    fieldless.write_text('{"question": "1+1="}\n')
    return empty, malformed, fieldless


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--task", "chain_sun"], ["chain_sun", "chain_sum"]),
        (["--task", "missing.jsonl"], ["missing.jsonl"]),
        (["--algorithm", "grop"], ["grop", "did you mean grpo?"]),
        (["--algorithm", "absent.py:X"], ["absent.py"]),
        (["--policy", "smollm3-135m"], ["smollm3-135m", "smollm2-135m-instruct"]),
        (["--update.mini-batches", "3"], ["mini_batches", "3", "16"]),
        (["--algorithm", "rloo", "--update.epochs", "2"], ["rloo", "importance ratio", "epochs"]),
        (["--algorithm", "online_dpo", "--update.mini-batches", "8"], ["8", "the 4 rows"]),
        (["--optimizer.learning-rate", "0"], ["learning_rate", "in (0, 100]", "no update"]),
        (["--rollouts.temperature", "0"], ["temperature", "at least 1e-06"]),
        (["--rollouts.group-size", "0"], ["group_size", "at least 1"]),
        (["--mesh", "data=3,fsdp=3"], ["needs 9 devices", "8"]),
        (["--mesh", "rows=2"], ["rows", "data, fsdp, tensor"]),
        (["--out", "/proc/polgrad"], ["/proc/polgrad", "cannot be written"]),
        (["--rewards.functions", "absent.py:f"], ["absent.py"]),
        (["--steps", "0"], ["steps", "at least 1"]),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(capsys, sums, tmp_path, arguments, words):
    code, _, error = train(capsys, sums, tmp_path, *arguments)
    assert code == 2
    assert error.count("\n") == 1 and "Traceback" not in error
    assert all(word in error for word in words), error


def test_bad_files_name_the_line(capsys, tmp_path):
    empty, malformed, fieldless = bad_files(tmp_path)
    for path, words in [(empty, ["empty"]), (malformed, ["2"]), (fieldless, ["prompt"])]:
        code, _, error = train(capsys, path, tmp_path)
        assert code == 2 and error.count("\n") == 1
        assert path.name in error and all(w in error for w in words), error


def test_a_prompt_longer_than_the_context(capsys, tmp_path):
    path = tmp_path / "long.jsonl"
    rows = [{"prompt": "1" * n, "answer": "1"} for n in range(1, 40)]
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    from polgrad import policies

    shape = policies.TransformerConfig(vocab_size=300, width=8, layers=1, heads=2, max_length=20)
    network = policies.TransformerNetwork(shape)
    import jax

    from polgrad import data
    from polgrad.training.saving import description

    text = description.character_assets(data.CharacterTokenizer("1"))
    policies.export(tmp_path / "m", policies.Policy(network, network.init(jax.random.key(0)), text))
    code, _, error = train(capsys, path, tmp_path, "--policy", tmp_path / "m")
    assert code == 2 and "has 18 tokens; expected at most 17" in error
    assert "lower --rollouts.max-tokens" in error


def test_train_then_sample_evaluate_export(capsys, sums, tmp_path):
    code, output, _ = train(capsys, sums, tmp_path, "--settings.clip-high", "0.28")
    assert code == 0
    lines = output.strip().splitlines()
    # One step without a reward learns nothing, which is said last.
    assert lines[-1].startswith("warning: the run learned nothing: the gradient was exactly 0")
    assert lines[-2].startswith("held-out accuracy: ") and lines[-2].endswith(" problems, greedy)")
    assert any("reward.png" in line for line in lines[:-1])
    settings = json.loads((tmp_path / "run" / "config.json").read_text())
    assert settings["settings"]["clip_high"] == 0.28
    again, _, error = train(capsys, sums, tmp_path)
    assert again == 2 and "--resume" in error
    # The policy's context leaves room for three tokens, fewer than the usual 64.
    code, output, _ = run(
        capsys, "sample", "--policy", tmp_path / "run", "--prompt", "1+1=", "--temperature", "0",
        "--step", "1",
    )  # fmt: skip
    assert code == 0 and output.endswith("\n")
    results = tmp_path / "results.json"
    evaluated = ["evaluate", "--policy", tmp_path / "run", "--out", results]
    code, output, _ = run(capsys, *evaluated, "--task", sums, "--samples", "3")
    assert code == 0 and [line[:6] for line in output.splitlines()[:3]] == [
        f"pass@{k}" for k in (1, 2, 3)
    ]
    assert output.splitlines()[3].endswith(" 36 problems, greedy)")
    content = json.loads(results.read_text())
    assert content["problems"] == len(content["results"]) == 36
    solved = [result["solved"] for result in content["results"]]
    assert content["value"] == sum(solved) / 36 and list(content["pass_at_k"]) == ["1", "2", "3"]
    assert content["results"][1]["prompt"] == "0+1="
    again, _, error = run(capsys, *evaluated)
    assert again == 2 and "is there already" in error
    missing, _, error = run(capsys, *evaluated[:3], "--step", "9")
    assert missing == 2 and "9" in error and error.count("\n") == 1
    code, output, _ = run(capsys, "export", "--policy", tmp_path / "run", "--out", tmp_path / "hub")
    assert code == 0 and (tmp_path / "hub" / "model.safetensors").exists()
    code, _, _ = run(
        capsys, "sample", "--policy", tmp_path / "hub", "--prompt", "1+1=", "--max-tokens", "3",
        "--top-p", "0.9",
    )  # fmt: skip
    assert code == 0


def test_list_and_help(capsys):
    code, output, _ = run(capsys, "list", "algorithms")
    assert code == 0 and "grpo" in output and "nash_md" in output
    code, output, _ = run(capsys, "list", "tasks")
    assert code == 0 and "chain_sum" in output
    code, output, _ = run(capsys, "list", "rewards")
    assert code == 0 and "polgrad.rewards.verifiers:math_verify " in output
    code, output, _ = run(capsys, "train", "--algorithm", "f_dpg", "--help")
    assert code == 0 and "--settings.target.beta" in output and "--rollouts.group-size" in output
    code, _, error = run(capsys, "trian")
    assert code == 2 and "did you mean train?" in error


def test_import_is_lazy():
    program = "import sys, polgrad; assert 'jax' not in sys.modules; polgrad.losses; " + (
        "bad = {'flax', 'optax', 'orbax', 'tensorflow_datasets', 'tokenizers', 'ray'} "
        "& set(sys.modules); assert not bad, bad"
    )
    subprocess.run([sys.executable, "-c", program], check=True, env=os.environ)


def raised(monkeypatch, capfd, error):
    """How `polgrad list` ends where this is raised in it: exit code and standard error."""

    def fail(_):
        raise error

    monkeypatch.setattr(listing, "main", fail)
    monkeypatch.setattr(cli._interrupt, "leave", sys.exit)
    with pytest.raises(SystemExit) as stop:
        cli.main(["list"])
    return stop.value.code, capfd.readouterr().err


FULL = OSError(errno.ENOSPC, "No space left on device", "runs/a/metrics.jsonl")
BACKEND = RuntimeError("Unable to initialize backend 'nosuch':\n\tnot in the list")


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (KeyboardInterrupt(), 130, "polgrad: interrupted"),
        (SystemExit(0), 2, "called ended with sys.exit(0)"),
        (SystemExit("bye"), 2, "sys.exit('bye')"),
        (MemoryError(), 1, "out of memory; lower"),
        (
            RuntimeError("RESOURCE_EXHAUSTED: Out of memory\nallocating"),
            1,
            "--update.micro-batches",
        ),
        (BACKEND, 2, "JAX_PLATFORMS is 'nosuch': Unable to initialize backend 'nosuch'"),
        (
            ModuleNotFoundError("No module named 'ray'", name="ray"),
            2,
            "package ray is not installed",
        ),
        (FULL, 1, "runs/a/metrics.jsonl: No space left on device"),
        (_outside.OutsideError("mine.py, line 3: KeyError: 'x'"), 2, "polgrad: mine.py, line 3"),
        (KeyError("x"), 70, "a fault of polgrad, please report it: KeyError: 'x'"),
        (RecursionError("a\nb"), 70, "RecursionError: a b"),
        (BrokenPipeError(errno.EPIPE, "Broken pipe"), 1, "polgrad: Broken pipe"),
        (BaseExceptionGroup("two", [ValueError("x")]), 70, "two (1 sub-exception)"),
    ],
)
def test_whatever_is_raised_is_one_line(error, code, words, monkeypatch, capfd):
    monkeypatch.setenv("JAX_PLATFORMS", "nosuch")
    found, text = raised(monkeypatch, capfd, error)
    assert found == code and text.count("\n") == 1 and words in text, text
    if code == 70:
        (place,) = re.findall(r"its traceback is in (\S+)", text)
        kept = pathlib.Path(place)
        assert "in fail" in kept.read_text()
        kept.unlink()


def full_disk(*_, **__):
    raise FULL


def test_the_traceback_is_shown_where_it_is_asked_for(monkeypatch, capfd):
    monkeypatch.setenv("POLGRAD_TRACEBACK", "1")
    monkeypatch.setattr(cli.tempfile, "NamedTemporaryFile", full_disk)
    code, text = raised(monkeypatch, capfd, KeyError("x"))
    assert code == 70 and "Traceback (most recent call last)" in text and "in fail" in text
    assert "could not be kept" in text.splitlines()[-1]


def test_a_reader_that_is_gone_is_no_fault(monkeypatch):
    read, write = os.pipe()
    os.close(read)
    # The process's own standard output stays as it is: the end of `main` closes this one.
    with open(write, "w") as closed:
        monkeypatch.setattr(sys, "stdout", closed)
        with pytest.raises(SystemExit) as stop:
            cli.main(["list", "policies"])
        assert stop.value.code == 0


@pytest.mark.parametrize("text", ["a\x1b[2Jb", "a\x9bb", "a\rb", "a\u202eb", "a\ud800b"])
def test_control_characters_of_others_do_not_reach_the_terminal(text, tmp_path, capsys):
    assert fail(f"no task {text}", 2) == 2
    reporter = reporting.Reporter.__new__(reporting.Reporter)
    reporter._quiet, reporter._progress = False, None
    reporter.say(f"prompt {text}\nthe next line")
    output, error = capsys.readouterr()
    assert error.startswith("polgrad: no task a ") and output.startswith("prompt a ")
    assert error.count("\n") == 1 and output.count("\n") == 2
    assert (error + output).replace("\n", "").isprintable()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--policy", "p", "--prompt", "--no-cache", "hello"], "--prompt has no value"),
        (["--policy", "--no-cache", "--prompt", "a"], "--policy has no value"),
        (["--policy", "p", "--prompt", "a", "--no-cache=1"], "takes no value"),
        (["--policy", "/no/such", "--no_cache", "--prompt", "a"], "/no/such"),
        (["--policy", "/no/such", "--prompt=--no-cache"], "/no/such"),
    ],
)
def test_no_cache_is_a_flag_and_no_value(arguments, expected, capsys, monkeypatch):
    monkeypatch.setattr(program_cache, "use", lambda: None)
    monkeypatch.setattr(host_memory, "keep", lambda: None)
    code, _, error = run(capsys, "sample", *arguments)
    assert code == 2 and expected in error and error.count("\n") == 1


def test_a_small_task_names_the_flag(capsys, tmp_path):
    parameters = ["--data.parameters", "max_terms=2", "max_digits=1"]
    code, _, error = train(capsys, "chain_sum", tmp_path, *parameters, "--evaluation.problems", "9")
    assert code == 2 and error.count("\n") == 1 and "(--data.test-size 17)" in error


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--resume"], "holds no run to go on with"),
        (["--resume-from=4"], "holds no run to go on with"),
        (["--allow-changed", "seed", "--task", "chain_sum"], "expected only with --resume"),
    ],
)
def test_a_run_that_is_not_there_is_not_gone_on_with(capsys, tmp_path, flags, told):
    code, _, error = run(capsys, "train", "--out", tmp_path / "none", *flags)
    assert code == 2 and told in error and error.count("\n") == 1
    assert not (tmp_path / "none").exists()


def test_a_file_of_settings_that_is_none_names_its_flag(capsys, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text("{}")
    for given, told in [
        (
            tmp_path / "run",
            f"--config is the directory {tmp_path}/run; did you mean {tmp_path}/run/",
        ),
        (tmp_path, f"--config is the directory {tmp_path}; expected a file of settings"),
        (tmp_path / "nope.json", f"--config is '{tmp_path}/nope.json', which does not exist"),
    ]:
        code, said, error = run(capsys, "train", "--config", given)
        assert (code, said) == (2, "") and error.startswith(f"polgrad: {told}"), error


def test_a_wrong_value_in_a_file_of_settings_names_the_file(capsys, tmp_path):
    path, whole = tmp_path / "c.json", {"task": "chain_sum", "algorithm": "grpo"}
    for change, told in [
        ({"steps": "30"}, "steps is '30'; expected a whole number"),
        (
            {"rollouts": {"prompts": 0}},
            "rollouts.prompts is 0; expected a whole number of at least",
        ),
        ({"settings": {"clip_low": "0.2"}}, "settings.clip_low is '0.2'; expected a number"),
        ({"stpes": 3}, "this version has no setting stpes; did you mean steps?"),
        ({"rollouts": {"promts": 3}}, "no setting rollouts.promts; did you mean rollouts.prompts?"),
        (
            {"settings": {"clip_lwo": 1}},
            "no setting clip_lwo in this version; did you mean clip_low?",
        ),
    ]:
        path.write_text(json.dumps(whole | change))
        code, _, error = run(capsys, "train", "--config", path)
        assert code == 2 and error.count("\n") == 1, error
        assert error.startswith(f"polgrad: {path}: ") and told in error, error


@pytest.mark.parametrize("name", [".lock", "identity.json"])
def test_a_run_that_saved_nothing_is_no_policy(capsys, tmp_path, name):
    (tmp_path / name).touch()
    code, _, error = run(capsys, "sample", "--no-cache", "--policy", tmp_path, "--prompt", "1")
    assert code == 2
    assert error == f"polgrad: policy {tmp_path}: this run holds no checkpoint; train it first\n"
