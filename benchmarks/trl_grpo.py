"""GRPO steps a second on a tiny Llama, ours over TRL's GRPOTrainer.

    python benchmarks/trl_grpo.py [--steps 12] [--repetitions 3]

The same weights (4 layers, 128 wide, 1,024 words), prompts and reward; 16 prompts x 8 samples of 16
tokens a step, float32, two threads, no reference policy, no gradient checkpointing. A turn is a run
from the start; its time is the median step's, the first three left out. TRL is installed in an
environment of its own at first use.
"""

import argparse
import json
import pathlib
import statistics
import sys
import tempfile

import peers

WORDS, PROMPTS, GROUP, WIDTH, TOKENS = 1024, 16, 8, 16, 16
WARM_UP = 3
REWARD = (
    "def distinct(prompt, completion, example):\n    return len(set(completion.split())) / 16\n"
)


def make_task(folder: pathlib.Path) -> None:
    """The policy, the prompts and the reward, in `folder`."""
    import jax
    import tokenizers
    from tokenizers import models, pre_tokenizers

    from polgrad import policies

    vocabulary = {f"w{i}": i for i in range(WORDS - 2)} | {"<eos>": WORDS - 2, "<pad>": WORDS - 1}
    words = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.add_special_tokens(["<eos>", "<pad>"])
    network = policies.TransformerNetwork(
        policies.TransformerConfig(
            vocab_size=WORDS, width=128, layers=4, heads=4, kv_heads=4, mlp_width=384, max_length=64
        )
    )
    text = policies.TextAssets(
        tokenizer_json=words.to_str(),
        chat_template=None,
        bos_id=None,
        eos_id=WORDS - 2,
        pad_id=WORDS - 1,
        stop_ids=(WORDS - 2,),
        eos_token="<eos>",
        pad_token="<pad>",
    )
    params = network.init(jax.random.key(0))
    policies.export(folder / "model", policies.Policy(network, params, text))
    prompts = [
        " ".join(f"w{(31 * i + 17 * j) % 1000}" for j in range(WIDTH)) for i in range(PROMPTS)
    ]
    lines = [json.dumps({"prompt": prompt, "answer": ""}) + "\n" for prompt in prompts]
    (folder / "prompts.jsonl").write_text("".join(lines))
    (folder / "reward.py").write_text(REWARD)


def ours(options) -> None:
    """What `polgrad train` runs, whose metrics tell each step's time."""
    import itertools

    import jax

    import polgrad
    from polgrad import training
    from polgrad.training import config
    from polgrad.training.runtime import host_memory

    host_memory.keep()  # as `polgrad train` does
    folder, number = pathlib.Path(options.folder), itertools.count()

    def work():
        result = training.train(
            config.TrainConfig(
                task=str(folder / "prompts.jsonl"),
                policy=str(folder / "model"),
                steps=options.steps,
                out=str(folder / f"run{next(number)}"),
                track_kl=False,
                data=config.Data(held_out=0.0),
                rollouts=config.Rollouts(prompts=PROMPTS, group_size=GROUP, max_tokens=TOKENS),
                optimizer=config.Optimizer(learning_rate=1e-5),
                rewards=config.Rewards(functions=(f"{folder / 'reward.py'}:distinct",)),
                evaluation=config.Evaluation(problems=0),
                saving=config.Saving(every=10**6, samples_every=0, tensorboard=False),
            ),
            quiet=True,
        )
        rows = [json.loads(r) for r in (result.directory / "metrics.jsonl").open()]
        return [statistics.median(row["seconds"] for row in rows[WARM_UP:])]

    peers.serve(f"polgrad {polgrad.__version__}, jax {jax.__version__}", work)


def theirs(options) -> None:
    """TRL's trainer, with a callback that tells each step's time."""
    import time

    import datasets
    import torch
    import transformers
    import trl

    torch.set_num_threads(2)
    folder = pathlib.Path(options.folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "model")
    lines = [json.loads(line) for line in (folder / "prompts.jsonl").open()]
    prompts = datasets.Dataset.from_list([{"prompt": line["prompt"]} for line in lines])

    def distinct(completions, **_):
        return [len(set(completion.split())) / 16 for completion in completions]

    class Clock(transformers.TrainerCallback):
        def __init__(self):
            self.ends = [time.perf_counter()]

        def on_step_end(self, *arguments, **settings):
            self.ends.append(time.perf_counter())

    def work():
        model = transformers.AutoModelForCausalLM.from_pretrained(
            folder / "model", dtype=torch.float32
        )
        settings = trl.GRPOConfig(
            output_dir=str(folder / "trl"),
            per_device_train_batch_size=PROMPTS * GROUP,
            num_generations=GROUP,
            max_completion_length=TOKENS,
            max_steps=options.steps,
            learning_rate=1e-5,
            lr_scheduler_type="constant",
            beta=0.0,
            temperature=1.0,
            loss_type="grpo",
            gradient_checkpointing=False,
            use_cpu=True,
            bf16=False,
            logging_strategy="no",
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
        )
        clock = Clock()
        trainer = trl.GRPOTrainer(
            model=model,
            reward_funcs=distinct,
            args=settings,
            train_dataset=prompts,
            processing_class=tokenizer,
            callbacks=[clock],
        )
        trainer.train()
        steps = [after - before for before, after in zip(clock.ends, clock.ends[1:])]
        return [statistics.median(steps[WARM_UP:])]

    peers.serve(f"trl {trl.__version__}, torch {torch.__version__}", work)


def compare(description: str, script: str, theirs, environment) -> None:
    """Prints the seconds a step of both sides, and steps a second as a ratio.

    Args:
      description: of the command, for its help.
      script: the command's path.
      theirs: the peer's side, given the options; it runs in the peer's environment.
      environment: makes that environment and returns its Python.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--side", choices=("ours", "theirs"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        return {"ours": ours, "theirs": theirs}[options.side](options)
    if options.steps <= WARM_UP:
        parser.error(f"--steps is {options.steps}; expected more than {WARM_UP}, which warm up")
    python = environment()
    with tempfile.TemporaryDirectory() as folder:
        make_task(pathlib.Path(folder))
        arguments = (script, "--folder", folder, "--steps", str(options.steps), "--side")
        sides = {
            "ours": peers.Side(sys.executable, *arguments, "ours"),
            "theirs": peers.Side(python, *arguments, "theirs"),
        }
        turns = peers.take_turns(sides, options.repetitions)
    for name, found in turns.items():
        print(f"{name}: {', '.join(f'{seconds:.3f}' for (seconds,) in found)} s a step")
    ratio = peers.median(turns["theirs"]) / peers.median(turns["ours"])
    print(f"steps a second, ours over theirs: {ratio:.2f}")


def main() -> None:
    """The comparison with TRL."""

    def environment():
        return peers.environment("trl", "torch", "transformers", "trl")

    compare(__doc__.splitlines()[0], __file__, theirs, environment)


if __name__ == "__main__":
    main()
