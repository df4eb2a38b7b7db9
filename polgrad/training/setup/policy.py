"""The policy of a run with its tokenizer: loaded, or a small one made for the characters of the data."""

import jax

from polgrad import data, policies
from polgrad.contract import Algorithm
from polgrad.training.config import TrainConfig
from polgrad.training.setup import defaults, fingerprints, run_files
from polgrad.training.setup.problems import Texts, held_out_problems


def build_policy(
    config: TrainConfig,
    algorithm: Algorithm,
    train: Texts,
    test: Texts | None,
    alphabet: str | None,
) -> tuple[TrainConfig, policies.Policy, data.Tokenizer, str | None]:
    """The policy with its tokenizer, and the settings with what was left out filled in."""
    value_head = algorithm.needs.values
    if config.policy == "small":
        texts = [texts for texts in (train, test) if texts]
        return _small_policy(config, algorithm, texts, value_head, alphabet)
    policy = policies.load(config.policy, value_head=value_head)
    if policy.text is None:
        raise ValueError(f"policy {config.policy} has no tokenizer (tokenizer.json)")
    policy = policy._replace(text=_text_assets(config, policy.text))
    tokenizer = data.from_assets(policy.text, rows=policy.network.config.vocab_size)
    chosen = defaults.choose(
        config,
        algorithm,
        parameters=sum(x.size for x in jax.tree.leaves(policy.params)),
        context=policy.network.max_length,
        longest=_longest_completion(config, algorithm, train, tokenizer),
    )
    return chosen.config, policy, tokenizer, chosen.line


def _longest_completion(
    config: TrainConfig, algorithm: Algorithm, train: Texts, tokenizer: data.Tokenizer
) -> int | None:
    """Tokens of the longest completion in the data; None for algorithms that sample their own."""
    fields = algorithm.collect.columns
    if not fields or config.rollouts.max_tokens is not None:
        return None
    return max(train.size(i, f, tokenizer) for i in range(len(train.rows)) for f in fields)


def find_alphabet(
    config: TrainConfig, train: Texts, test: Texts | None, run: run_files.Stored | None
) -> str:
    """The characters of policy small: those of the problems, the held-out ones among them.

    A run may stop to evaluate when it goes on, or begin to; it keeps the alphabet that it began
    with, which its record tells.
    """
    found = _characters([texts for texts in (train, test) if texts])
    known = run.record.get("fingerprints", {}).get("tokenizer") if run else None
    if not known or fingerprints.of_alphabet(found) == known or config.data.held_out == 0:
        return found
    others = (
        [train] if test else [train, Texts(held_out_problems(config, train.source), train.columns)]
    )
    other = _characters(others)
    return other if fingerprints.of_alphabet(other) == known else found


def _characters(each: list[Texts]) -> str:
    alphabet = set()
    for row in (row for texts in each for row in texts.rows):
        alphabet.update(*row.values())
    return "".join(sorted(alphabet))


def _small_policy(
    config: TrainConfig,
    algorithm: Algorithm,
    each: list[Texts],
    value_head: bool,
    alphabet: str,
) -> tuple[TrainConfig, policies.Policy, data.Tokenizer, str | None]:
    """A transformer from nothing, whose tokens are the characters of the data."""
    if config.rollouts.stop:
        raise ValueError(
            f"rollouts.stop is {config.rollouts.stop}; expected none, because policy small is "
            "trained to end with its own end token"
        )
    longest = max(len(row["prompt"]) for texts in each for row in texts.rows)
    tokenizer = data.CharacterTokenizer(alphabet)

    def network(max_tokens):
        shape = config.small
        return policies.TransformerNetwork(
            policies.TransformerConfig(
                vocab_size=tokenizer.vocab_size,
                width=shape.width,
                layers=shape.layers,
                heads=shape.heads,
                mlp_width=shape.mlp,
                unroll=shape.layers,
                max_length=longest + max_tokens,
                value_head=value_head,
            )
        )

    chosen = defaults.choose(
        config,
        algorithm,
        parameters=0,
        context=0,
        longest=_longest_completion(config, algorithm, each[0], tokenizer),
    )
    network = network(chosen.config.rollouts.max_tokens)
    params = network.init(jax.random.fold_in(jax.random.key(config.seed), 0))
    return chosen.config, policies.Policy(network, params, None), tokenizer, chosen.line


def _text_assets(config: TrainConfig, text: policies.TextAssets) -> policies.TextAssets:
    """The policy's text conventions with the run's changes; checkpoints and exports keep them."""
    if not config.data.chat_template:
        text = text._replace(chat_template=None)
    tokenizer = data.from_assets(text)
    stops = [i for c in config.rollouts.stop for i in tokenizer.ids_holding(c)]
    # In order and once each.
    return text._replace(stop_ids=tuple(dict.fromkeys((*tokenizer.stop_ids, *stops))))
