"""Flags that do not exist, and values out of range."""

from attacks import Attack
from attacks.world import TRAIN

NUMBERS = {
    "steps": ("0", "-1", "1.5", "many"),
    "seed": ("-1", "4294967296", str(2**70), "x"),
    "parity-tolerance": ("nan", "-1"),
    "rollouts.prompts": ("0", "-4"),
    "rollouts.group-size": ("0", "-1"),
    "rollouts.max-tokens": ("0", "-1", "1000000000"),
    "rollouts.temperature": ("0", "-1", "nan", "inf"),
    "rollouts.slots": ("0", "-1"),
    "update.epochs": ("0", "-1"),
    "update.mini-batches": ("0", "3"),
    "update.micro-batches": ("0", "5"),
    "update.chunk": ("0", "-8"),
    "update.max-skipped": ("0", "-1"),
    "optimizer.learning-rate": ("0", "-1", "nan", "inf"),
    "optimizer.b1": ("1", "2", "-1", "nan"),
    "optimizer.b2": ("1", "-1"),
    "optimizer.epsilon": ("-1", "nan"),
    "optimizer.weight-decay": ("-1", "nan", "inf"),
    "optimizer.max-gradient-norm": ("-1", "nan"),
    "optimizer.warmup": ("-1",),
    "warm-start.steps": ("-1",),
    "warm-start.batch": ("0", "-1"),
    "warm-start.demonstrations": ("0", "-1"),
    "rewards.workers": ("0", "-1"),
    "rewards.timeout": ("0", "-1", "nan", "inf"),
    "rewards.failure-limit": ("-0.1", "2", "nan"),
    "evaluation.every": ("-1",),
    "evaluation.problems": ("-1",),
    "evaluation.samples": ("-1",),
    "saving.every": ("0", "-1"),
    "saving.keep": ("0", "-1"),
    "saving.samples-every": ("-1",),
    "data.train-size": ("0", "-1"),
    "data.test-size": ("0", "-1"),
    "data.seed": ("-1",),
    "data.held-out": ("-0.1", "1.5", "nan"),
    "small.layers": ("0", "-1"),
    "small.width": ("0", "-16", "15"),
    "small.heads": ("0", "3"),
    "small.mlp": ("0",),
    "hosts.deadline": ("0", "-1", "nan"),
    "settings.clip-low": ("nan", "-0.1", "1.5"),
    "settings.clip-high": ("nan", "-0.1"),
    "settings.kl.coefficient": ("nan", "-1", "inf"),
    "settings.entropy-bonus": ("nan", "inf"),
}
CHOICES = {
    "mesh": ("data", "data=0", "data=1,data=1", "rows=1", "data=3000", "data=x"),
    "out": ("", "notes.txt", "notes.txt/below", "/proc/none"),
    "algorithm": ("", "nosuch", "nosuch.py:X", "algorithm.py:", ":X", "json:loads", "a b", "..:X"),
    "policy": ("", "nosuch", "nosuch.gguf", "notes.txt", "empty"),
    "task": ("", "nosuch", "nosuch.jsonl", "notes.txt", "empty", "sums.jsonl/x", "composite"),
    "update.remat": ("nosuch",),
    "update.compute-dtype": ("float16", "bfloat16"),
    "update.attention": ("nosuch", "splash", "cudnn"),
    "optimizer.method": ("nosuch",),
    "optimizer.schedule": ("nosuch",),
    "rollouts.weights": ("int4",),
    "rollouts.stop": (".",),
    "data.prompt-pattern": ("(", "nogroup", "(a)(b)", "(z)"),
    "data.prompt-template": ("none", "{prompt}{prompt}"),
    "data.parameters": ("min_terms=2", "=", "x"),
    "probe": ("maybe",),
    "rewards.functions": ("", "nosuch", "nosuch:f", "nosuch.py:f", "mine.py:nosuch", "mine.py:"),
    "rewards.preference": ("nosuch:f", "mine.py:nosuch"),
    "saving.checkpoints": ("notes.txt", "notes.txt/below", "nosuch://bucket", ""),
    "hosts.coordinator": ("junk",),
    "hosts.processes": ("0", "-1", "2"),
    "hosts.process": ("-1", "2"),
}
UNKNOWN = {
    "train": ("--lr=1", "--batch-size=8", "--model=x", "--beta=1", "--settings.gian=2", "-x", "x"),
    "sample": ("--promt=x", "--temperatur=1"),
    "evaluate": ("--sample=1",),
    "export": ("--output=x",),
    "run": ("--seed=1",),
    "sweep": ("--grid=x",),
    "report": ("--metrics=x",),
    "compile": ("--model=x",),
    "list": ("nosuch", "algorithms tasks", "--all"),
}
VALUES = {
    "sample --policy runs/a --prompt 1+1=": {
        "temperature": ("-1", "nan", "inf"),
        "top-k": ("-1", "1.5"),
        "top-p": ("0", "1.5", "nan", "-1"),
        "min-p": ("-0.1", "1.5", "nan"),
        "max-tokens": ("0", "-1", "1000000"),
        "samples": ("0", "-1"),
        "seed": ("-1", "4294967296"),
        "step": ("-1", "3", "x"),
    },
    "evaluate --policy runs/a": {
        "problems": ("0", "-1"),
        "samples": ("-1",),
        "temperature": ("nan", "-1"),
        "top-p": ("0", "2"),
        "max-tokens": ("0", "-1", "1000000"),
        "seed": ("-1",),
        "task": ("nosuch", "nosuch.jsonl", "pairs.jsonl", "notes.txt"),
        "parameters": ("x",),
    },
    "run own/trial.py --out runs/other": {
        "seeds": ("0", "-1", "x"),
        "arms": ("nosuch", "only,nosuch"),
        "set": ("gain", "gian=1", "gain=x", "__class__=1", "gain=1,2", "=1"),
    },
    "sweep own/trial.py --out runs/other": {
        "seeds": ("0", "-1"),
        "arms": ("nosuch",),
        "set": ("gain", "gian=1", "gain=1,x", "gain=1,1.0", "__class__=1", "gain="),
        "workers": ("0", "-1", "x"),
        "cpus": ("-1", "nan"),
        "gpus": ("-1",),
    },
    "compile --policy smollm2-135m --sequences 8 --length 64 --prompt-length 8": {
        "topology": ("nosuch", "v5e", "v5e:0x0", "v99:2x2"),
        "mesh": ("data=0", "rows=1", "data=7"),
        "sequences": ("0", "-8", "7"),
        "length": ("0", "8", "-1"),
        "prompt-length": ("0", "64", "-1"),
        "group-size": ("0", "3"),
        "micro-batches": ("0", "3"),
        "remat": ("nosuch",),
        "compute-dtype": ("float16",),
        "algorithm": ("nosuch", "nosuch.py:X"),
        "policy": ("nosuch",),
        "optimizer": ("nosuch",),
    },
    "report": {"metric": ("score",)},
}
MISSING = ("sample", "sample --policy runs/a", "evaluate", "export", "export --policy runs/a")
MISSING += ("run", "sweep", "report", "compile", "train --task", "sample --policy")


def attacks() -> list[Attack]:
    """Every value of every flag above, each alone."""
    found = [Attack("flags: no such command", ("nosuch",)), Attack("flags: nothing", ("Train",))]
    for flag, values in (NUMBERS | CHOICES).items():
        for value in values:
            found.append(Attack(f"flags: train --{flag}={value}", (*TRAIN, f"--{flag}={value}")))
    for command, flags in UNKNOWN.items():
        needed = {
            "sample": ("--policy=runs/a", "--prompt=1"),
            "evaluate": ("--policy=runs/a",),
            "export": ("--policy=runs/a", "--out=new"),
            "run": ("own/trial.py",),
            "sweep": ("own/trial.py",),
            "compile": ("--policy=smollm2-135m",),
            "train": TRAIN[1:],
        }.get(command, ())
        for flag in flags:
            words = (command, *needed, *flag.split())
            found.append(Attack(f"flags: {command} {flag}", words))
    for command, flags in VALUES.items():
        for flag, values in flags.items():
            for value in values:
                name = f"flags: {command.split()[0]} --{flag}={value}"
                found.append(Attack(name, (*command.split(), f"--{flag}={value}")))
    found += [Attack(f"flags: only {words!r}", tuple(words.split())) for words in MISSING]
    found += [
        Attack("flags: a platform that is none", TRAIN, environment={"JAX_PLATFORMS": "nosuch"}),
        Attack("flags: wandb is not there", (*TRAIN, "--saving.wandb", "project")),
        Attack("flags: a bucket without its library", (*TRAIN, "--saving.checkpoints", "gs://b/r")),
        Attack("flags: only resume, of nothing", ("train", "--resume", "--out", "runs/none")),
        Attack("flags: a change without a run", (*TRAIN, "--allow-changed", "seed")),
        Attack("flags: config of nothing", (*TRAIN, "--config", "nosuch.json")),
        Attack("flags: config that is no object", (*TRAIN, "--config", "sums.jsonl")),
        Attack(
            "flags: an overlong buffer that is longer than an answer",
            (*TRAIN, "--algorithm", "dapo", "--settings.overlong.buffer", "100"),
        ),
        Attack("flags: a group of one", (*TRAIN, "--rollouts.group-size", "1")),
        Attack("flags: dpo on answers", (*TRAIN, "--algorithm", "dpo")),
        Attack("flags: deep JSON", (*TRAIN, "--data.parameters", "x=" + "[" * 100_000)),
    ]
    return found
