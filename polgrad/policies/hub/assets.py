"""What a checkpoint holds: a network, its parameters, and what belongs to its text."""

import functools
import json
from collections.abc import Iterable
from typing import Any, NamedTuple

from polgrad._outside import reason
from polgrad.policies import entries
from polgrad.policies.network import Network, Params

# How instruct models end a turn; each is a stop token where the chat template speaks of it.
TURN_ENDS = ("<|im_end|>", "<|eot_id|>", "<|end_of_turn|>", "<|end|>", "<end_of_turn>")
# How they begin one.
TURN_STARTS = ("<|im_start|>", "<|start_header_id|>", "<start_of_turn>", "<|user|>", "[INST]")


class TextAssets(NamedTuple):
    """A tokenizer and its conventions.

    Args:
        tokenizer_json: the `tokenizers` library's JSON form. Its post-processor says with which
            tokens a text begins.
        chat_template: a jinja2 template over `messages`, or None.
        bos_id: id of the token called beginning of text, or None. Whether a text begins with
            this token is for the post-processor to say.
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
    tokenizer = tokenizer_from(tokenizer_json)
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


def begin_texts_with(tokenizer_json: str, index: int) -> str:
    """A tokenizer whose texts begin with one token, from a tokenizer without a post-processor.

    Args:
        tokenizer_json: the tokenizer.
        index: id of the token.

    Returns:
        The tokenizer with a post-processor that puts the token before a text.
    """
    document = json.loads(tokenizer_json)
    token = tokenizer_from(tokenizer_json).id_to_token(index)
    start, text = (
        {"SpecialToken": {"id": token, "type_id": 0}},
        {"Sequence": {"id": "A", "type_id": 0}},
    )
    document["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [start, text],
        "pair": [start, text, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {token: {"id": token, "ids": [index], "tokens": [token]}},
    }
    return json.dumps(document, ensure_ascii=False)


def begins_with_bos(text: TextAssets) -> bool:
    """Whether the tokenizer's post-processor puts the beginning-of-text token before a text.

    Args:
        text: a tokenizer and its conventions.

    Returns:
        True where the post-processor names that token.
    """
    processor = json.loads(text.tokenizer_json).get("post_processor")
    return text.bos_token is not None and json.dumps(text.bos_token) in json.dumps(processor)


def check_ids(text: TextAssets, rows: int, where: str) -> None:
    """Holds a tokenizer and its special tokens against the rows of the embedding.

    An index beyond the last row does not fail in XLA: it reads the last row. Added tokens beyond
    the rows pass, as long as nothing names them (the tokenizer of Gemma 3's text models knows an
    image token without a row); `data.HubTokenizer` refuses a text that holds one.

    Args:
        text: what was loaded.
        rows: rows of the embedding.
        where: the file of the tokenizer, for the message.

    Raises:
        ValueError: an id without a row; names file, token and id.
    """
    tokenizer = tokenizer_from(text.tokenizer_json)
    vocabulary = tokenizer.get_vocab(with_added_tokens=False)
    named = {f"token {token!r}": i for token, i in vocabulary.items() if i >= rows}
    named |= {"eos_token_id": text.eos_id, "bos_token_id": text.bos_id}
    named |= {f"stop token {tokenizer.id_to_token(i)!r}": i for i in text.stop_ids}
    for name, index in named.items():
        check_row(index, rows, f"{where}: {name}")


def from_fields(fields: Any) -> TextAssets:
    """Text assets from the JSON object that `json.dumps` made of `TextAssets._asdict()`.

    Args:
        fields: what was stored with a run.

    Returns:
        The assets.

    Raises:
        ValueError: an entry that is missing, unknown or of another type; names it.
    """
    fields = dict(entries.mapping("text", fields))
    for name in fields:
        if name not in TextAssets._fields:
            raise ValueError(f"text has no entry {name!r}; it has {', '.join(TextAssets._fields)}")
    for name in TextAssets._fields:
        if name not in fields and name not in TextAssets._field_defaults:
            raise ValueError(f"the entry {name!r} of text is missing")
    try:
        tokenizer_from(entries.text("tokenizer_json", fields["tokenizer_json"]))
    except ValueError as error:
        raise ValueError(f"tokenizer_json: {reason(error)}") from None
    for name in ("chat_template", "bos_token", "eos_token", "pad_token", "unk_token"):
        if fields.get(name) is not None:
            entries.text(name, fields[name])
    for name in ("bos_id", "eos_id", "pad_id"):
        if fields[name] is not None:
            entries.whole(name, fields[name], least=0)
    stops = fields["stop_ids"]
    if not isinstance(stops, list):
        raise ValueError(f"stop_ids is {entries.shown(stops)}; expected a list of ids")
    return TextAssets(
        **fields | {"stop_ids": tuple(entries.whole("stop_ids", i, least=0) for i in stops)}
    )


def check_row(index: Any, rows: int, what: str) -> None:
    """Raises ValueError unless `index` is None or the number of a row of the embedding."""
    if index is None:
        return
    if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < rows:
        raise ValueError(
            f"{what} is {index!r}, expected an id from 0 to {rows - 1}, the rows of the embedding"
        )


def missing_template(text: TextAssets) -> str:
    """A line for the user of a policy whose tokenizer knows turns, but which has no template.

    Args:
        text: what was loaded.

    Returns:
        The line; empty where nothing is missing.
    """
    tokenizer = tokenizer_from(text.tokenizer_json)
    known = [t for t in (*TURN_STARTS, *TURN_ENDS) if tokenizer.token_to_id(t) is not None]
    if text.chat_template is not None or not known:
        return ""
    return (
        f"no chat template was found, though the tokenizer has {', '.join(known)}: prompts go to "
        "the policy as plain text"
    )


@functools.lru_cache(maxsize=1)  # a large one takes a second to read, and loading asks thrice
def tokenizer_from(tokenizer_json: str):
    """The library's tokenizer, of a text that somebody else wrote.

    Args:
        tokenizer_json: the text of a `tokenizer.json`.

    Returns:
        A `tokenizers.Tokenizer`, which the caller must not change.

    Raises:
        ValueError: the text is no tokenizer; says why.
    """
    import tokenizers

    document = json.loads(tokenizer_json)
    entries.mapping("the whole", document)
    try:
        return tokenizers.Tokenizer.from_str(tokenizer_json)
    # The library raises plain Exceptions, and panics that are no Exceptions at all.
    except BaseException as error:
        if isinstance(error, (KeyboardInterrupt, SystemExit)):
            raise
        raise ValueError(f"no tokenizer of the library tokenizers: {reason(error)}") from None
