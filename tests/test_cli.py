"""The command line: bad input is one line and exit code 2; good input does what it says."""

import json
import os
import subprocess
import sys

import pytest

from polgrad import cli

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
        (["--algorithm", "grop"], ["grop", "did you mean"]),
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
    from polgrad.training import serving

    text = serving.character_assets(data.CharacterTokenizer("1"))
    policies.export(tmp_path / "m", policies.Policy(network, network.init(jax.random.key(0)), text))
    code, _, error = train(capsys, path, tmp_path, "--policy", tmp_path / "m")
    assert code == 2 and "tokens" in error and "expected 1 to 17" in error


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
    code, output, _ = run(
        capsys, "sample", "--policy", tmp_path / "run", "--prompt", "1+1=", "--temperature", "0",
        "--max-tokens", "3",
    )  # fmt: skip
    assert code == 0 and output.endswith("\n")
    code, output, _ = run(capsys, "evaluate", "--policy", tmp_path / "run", "--problems", "3")
    assert code == 0 and output.startswith("accuracy: ")
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
    assert code == 0 and "--settings.beta" in output and "--rollouts.group-size" in output
    code, _, error = run(capsys, "trian")
    assert code == 2 and "did you mean train?" in error


def test_import_is_lazy():
    program = "import sys, polgrad; assert 'jax' not in sys.modules; polgrad.losses; " + (
        "bad = {'flax', 'optax', 'orbax', 'tensorflow_datasets', 'tokenizers', 'ray'} "
        "& set(sys.modules); assert not bad, bad"
    )
    subprocess.run([sys.executable, "-c", program], check=True, env=os.environ)
