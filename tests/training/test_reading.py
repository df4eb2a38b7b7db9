"""Who reads a run from the command to the loss opens at most eight files: CONTRIBUTING lists them."""

import inspect
import json
import pathlib
import re
import traceback

import pytest

import polgrad
from polgrad import cli, losses

ROOT = pathlib.Path(polgrad.__file__).parents[1]
TEXT = (pathlib.Path(__file__).parents[2] / "CONTRIBUTING.md").read_text()
TINY = """
--no-cache --algorithm grpo --steps 1 --small.layers 1 --small.width 16 --small.heads 2
--rollouts.prompts 2 --rollouts.group-size 2 --rollouts.max-tokens 2 --evaluation.problems 0
"""


def of_polgrad(stack):
    """The files of polgrad in a stack, in order and once each."""
    files = [pathlib.Path(frame.filename) for frame in stack]
    return list(
        dict.fromkeys(str(f.relative_to(ROOT)) for f in files if ROOT / "polgrad" in f.parents)
    )


def test_the_files_from_the_command_to_the_loss(tmp_path, monkeypatch):
    loss, stacks = losses.ppo_clip, []

    def recorded(*given, **named):
        stacks.append(of_polgrad(traceback.extract_stack()))
        return loss(*given, **named)

    monkeypatch.setattr(losses, "ppo_clip", recorded)
    rows = [{"prompt": f"{a}+{b}=", "answer": str(a + b)} for a in range(4) for b in range(4)]
    (tmp_path / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = ["--task", str(tmp_path / "sums.jsonl"), "--out", str(tmp_path / "run")]
    with pytest.raises(SystemExit) as end:
        cli.main(["train", *task, *TINY.split()])
    assert end.value.code == 0
    # The checks before the first step call the loss, too.
    found = {tuple(files) for files in stacks if "polgrad/training/loop.py" in files}
    formula = str(pathlib.Path(inspect.getsourcefile(loss)).relative_to(ROOT))
    section = TEXT.partition("**From the command to the loss**")[2].partition("\n\n**")[0]
    listed = re.findall(r"(?m)^[0-9]+\. `(.*?)`", section)
    assert found == {tuple(listed[:-1])} and listed[-1] == formula
    assert len(listed) <= 8
