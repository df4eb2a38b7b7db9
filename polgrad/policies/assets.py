"""What a checkpoint holds: a network, its parameters, and what belongs to its text."""

from collections.abc import Iterable
from typing import NamedTuple

from polgrad.policies.network import Network, Params

# How instruct models end a turn; each is a stop token where the chat template speaks of it.
TURN_ENDS = ("<|im_end|>", "<|eot_id|>", "<|end_of_turn|>", "<|end|>", "<end_of_turn>")


class TextAssets(NamedTuple):
    """A tokenizer and its conventions.

    Args:
        tokenizer_json: the `tokenizers` library's JSON form.
        chat_template: a jinja2 template over `messages`, or None.
        bos_id: id put before a text, or None.
        eos_id: id that ends a text, or None.
        pad_id: id that fills a batch; may equal `eos_id`, so masks never come from it.
        stop_ids: ids at which sampling stops, `eos_id` first.
        bos_token: the strings of the special tokens, for the template.
        eos_token: see above.
        pad_token: see above.
        unk_token: see above.
    """

    tokenizer_json: str
    chat_template: str | None
    bos_id: int | None
    eos_id: int | None
    pad_id: int | None
    stop_ids: tuple[int, ...]
    bos_token: str | None = None
    eos_token: str | None = None
    pad_token: str | None = None
    unk_token: str | None = None


class Policy(NamedTuple):
    """A network with its parameters (nested dict, float32) and, for text, its assets."""

    network: Network
    params: Params
    text: TextAssets | None


def text_assets(
    tokenizer_json: str,
    chat_template: str | None,
    *,
    ids: dict[str, int | None],
    stop_ids: Iterable[int] = (),
) -> TextAssets:
    """Fills in what follows from the tokenizer: token strings, padding, stop tokens.

    Args:
        tokenizer_json: the tokenizer.
        chat_template: jinja2 text, or None.
        ids: `bos`, `eos`, `pad`, `unk` to their ids, where known.
        stop_ids: further ids that end a completion (generation settings).

    Returns:
        The assets. Padding falls back on the end-of-text id; end-of-turn tokens of the template
        are stop tokens.
    """
    import tokenizers

    tokenizer = tokenizers.Tokenizer.from_str(tokenizer_json)
    eos, pad = ids.get("eos"), ids.get("pad")
    turns = [tokenizer.token_to_id(token) for token in TURN_ENDS if token in (chat_template or "")]
    stops = [i for i in (eos, *stop_ids, *turns) if i is not None]

    def string(index):
        return None if index is None else tokenizer.id_to_token(index)

    return TextAssets(
        tokenizer_json=tokenizer_json,
        chat_template=chat_template,
        bos_id=ids.get("bos"),
        eos_id=eos,
        pad_id=eos if pad is None else pad,
        stop_ids=tuple(dict.fromkeys(stops)),
        bos_token=string(ids.get("bos")),
        eos_token=string(eos),
        pad_token=string(eos if pad is None else pad),
        unk_token=string(ids.get("unk")),
    )
