"""Text to token ids and back: characters for small worlds, `tokenizers` for real policies."""

import contextlib
import datetime
import functools
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

from polgrad._outside import reason
from polgrad.data.chat_templates import ChatTemplate, RunawayTemplate


class Tokenizer(Protocol):
    """What the trainer needs of a tokenizer; `pad_id` only fills arrays, no mask depends on it."""

    vocab_size: int
    eos_id: int
    pad_id: int
    stop_ids: tuple[int, ...]

    def encode(self, text: str) -> list[int]: ...

    def decode(self, ids: Sequence[int]) -> str: ...

    def shown(self, ids: Sequence[int]) -> str: ...

    def prompt_ids(self, text: str) -> list[int]: ...

    def completion_ids(self, prompt: str, text: str) -> list[int]: ...


class CharacterTokenizer:
    """One token a character: id 0 is padding, 1 ends a text, 2 and on are the alphabet.

    Args:
        alphabet: the characters, each once; their order gives the ids.

    Raises:
        ValueError: an empty alphabet, or a character that occurs twice.
    """

    pad_id = 0
    eos_id = 1

    def __init__(self, alphabet: str):
        if not alphabet:
            raise ValueError("alphabet must hold at least one character, got ''")
        repeated = sorted({c for c in alphabet if alphabet.count(c) > 1})
        if repeated:
            raise ValueError(f"alphabet must hold each character once, {repeated} repeat")
        self.alphabet = alphabet
        self.vocab_size = len(alphabet) + 2
        self.stop_ids = (self.eos_id,)
        self._ids = {character: i + 2 for i, character in enumerate(alphabet)}

    def encode(self, text: str) -> list[int]:
        """Ids of the characters of `text`, without an end token.

        Args:
            text: characters of the alphabet.

        Returns:
            As many ids as characters, each in [2, vocab_size).

        Raises:
            ValueError: a character outside the alphabet, with its position.
        """
        try:
            return [self._ids[character] for character in text]
        except KeyError as error:
            character = error.args[0]
            shown = f"{text[:60]!r}{'...' if len(text) > 60 else ''}"
            raise ValueError(
                f"character {character!r} at position {text.index(character)} of {shown} is not in "
                f"the alphabet {self.alphabet!r}: a small policy knows only the characters of its "
                "own task; write the text in these, or train a policy on a task that has the others"
            ) from None

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids`; padding and end tokens are dropped.

        Args:
            ids: token ids in [0, vocab_size).

        Returns:
            The characters.

        Raises:
            ValueError: an id out of range.
        """
        ids = [int(i) for i in ids]
        for i in ids:
            if not 0 <= i < self.vocab_size:
                raise ValueError(f"token id {i} is outside [0, {self.vocab_size})")
        return "".join(self.alphabet[i - 2] for i in ids if i >= 2)

    def shown(self, ids: Sequence[int]) -> str:
        """Text of `ids` for a person to read: the characters.

        Args:
            ids: token ids in [0, vocab_size).

        Returns:
            The same as `decode`.
        """
        return self.decode(ids)

    def prompt_ids(self, text: str) -> list[int]:
        """Ids that a policy is prompted with: the characters alone.

        Args:
            text: characters of the alphabet.

        Returns:
            The same ids as `encode`.

        Raises:
            ValueError: a character outside the alphabet.
        """
        return self.encode(text)

    def completion_ids(self, prompt: str, text: str) -> list[int]:
        """Ids of a whole completion: the characters and the end token.

        Args:
            prompt: not used: what follows a prompt does not depend on it.
            text: characters of the alphabet.

        Returns:
            The ids.

        Raises:
            ValueError: a character outside the alphabet.
        """
        del prompt
        return [*self.encode(text), self.eos_id]


@contextlib.contextmanager
def _library(what: str) -> Iterator[None]:
    """Turns what the library `tokenizers` raises into one ValueError: panics are no Exceptions."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit, ValueError):
        raise
    except BaseException as error:  # noqa: BLE001
        raise ValueError(f"{what}: {reason(error)}") from None


class HubTokenizer:
    """A tokenizer of the Hugging Face hub, with its chat template.

    Args:
        tokenizer_json: the text of a `tokenizer.json`.
        chat_template: jinja2 text, or None for a base policy.
        eos_id: id of the token that ends a text.
        pad_id: id that fills arrays; None takes `eos_id`.
        stop_ids: ids that end a completion; empty takes `(eos_id,)`. The token with which the
            template ends a turn is added where it is not among them.
        rows: rows of the policy's embedding; a text with a token beyond them is refused. None
            checks nothing.
        special_tokens: strings by name (`bos_token`, `eos_token`, ...) for the template.
        now: the date that a template may print, see `ChatTemplate`.

    Raises:
        ValueError: no end token, or text that is no tokenizer or no template.
    """

    def __init__(
        self,
        tokenizer_json: str,
        *,
        chat_template: str | None = None,
        eos_id: int | None = None,
        pad_id: int | None = None,
        stop_ids: Sequence[int] = (),
        special_tokens: Mapping[str, str] | None = None,
        now: datetime.datetime | None = None,
        rows: int | None = None,
    ):
        import tokenizers

        try:
            json.loads(tokenizer_json)
        except ValueError as error:
            raise ValueError(f"tokenizer_json is not JSON: {error}") from None
        with _library("tokenizer_json is no tokenizer"):
            self._tokenizer = tokenizers.Tokenizer.from_str(tokenizer_json)
        # A stored tokenizer.json may carry the truncation or padding of somebody's last call.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        stop_ids = tuple(int(i) for i in stop_ids)
        if eos_id is None:
            if not stop_ids:
                raise ValueError("eos_id or stop_ids must be given, got neither")
            eos_id = stop_ids[0]
        self.eos_id = int(eos_id)
        self.pad_id = self.eos_id if pad_id is None else int(pad_id)
        self.stop_ids = stop_ids or (self.eos_id,)
        self.vocab_size = self._tokenizer.get_vocab_size(with_added_tokens=True)
        self.special_tokens = dict(special_tokens or {})
        self.chat_template = chat_template
        self._now = now
        self._rows = rows
        if chat_template is not None:
            _ = self._template  # a bad template shows at start, not at the first prompt
            self.stop_ids += self._unknown_stop()

    @functools.cached_property
    def _template(self):
        return ChatTemplate(self.chat_template, now=self._now)

    def encode(self, text: str) -> list[int]:
        """Ids of `text`; special tokens written out in it become their ids, none is added.

        Args:
            text: any text.

        Returns:
            The ids.

        Raises:
            ValueError: text with lone surrogates, which has no UTF-8 form, or a token without a
                row in the policy's embedding.
        """
        with _library(f"the tokenizer fails on {text!r:.80}"):
            try:
                ids = self._tokenizer.encode(text, add_special_tokens=False).ids
            except UnicodeEncodeError as error:
                told = f"text {text!r:.80} is not valid Unicode: {error.reason}"
                raise ValueError(told) from None
        return self._checked(ids, text)

    def _checked(self, ids: list[int], text: str) -> list[int]:
        """The ids, where each has a row in the embedding."""
        if self._rows is not None and ids and max(ids) >= self._rows:
            token = self._tokenizer.id_to_token(max(ids))
            raise ValueError(
                f"text {text!r:.80} holds token {token!r} with id {max(ids)}, which has no row in "
                f"the policy's embedding of {self._rows}"
            )
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids`; stop and special tokens are dropped.

        Args:
            ids: token ids; those that the tokenizer does not know (a padded embedding has
                more rows than the vocabulary) give no text.

        Returns:
            The text; bytes that are no UTF-8 become replacement characters.
        """
        stops = set(self.stop_ids)
        kept = [int(i) for i in ids if int(i) not in stops]
        return self._tokenizer.decode(kept, skip_special_tokens=True)

    def shown(self, ids: Sequence[int]) -> str:
        """Text of `ids` for a person to read, special tokens written out.

        Args:
            ids: token ids.

        Returns:
            The text.
        """
        return self._tokenizer.decode([int(i) for i in ids], skip_special_tokens=False)

    def ids_holding(self, character: str) -> tuple[int, ...]:
        """Ids of all tokens whose text holds a character, such as all with a line break.

        Args:
            character: one ASCII character; in byte-level vocabularies others may be cut into
                several tokens, and then no token holds them.

        Returns:
            The ids, ascending; special tokens are not among them.

        Raises:
            ValueError: anything but one ASCII character, or no token holds it.
        """
        if len(character) != 1 or not character.isascii():
            raise ValueError(
                f"stop is {character!r}; expected one ASCII character, because longer text may be "
                "cut into tokens in several ways"
            )
        each = [[i] for i in range(self.vocab_size)]
        texts = self._tokenizer.decode_batch(each, skip_special_tokens=True)
        ids = tuple(i for i, text in enumerate(texts) if character in text)
        if not ids:
            raise ValueError(f"stop is {character!r}, which is in no token of the vocabulary")
        return ids

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        **variables: Any,
    ) -> str:
        """The chat template's text for a conversation.

        Args:
            messages: dictionaries with `role` and `content`.
            add_generation_prompt: end with the opening of the assistant's turn.
            **variables: whatever else the template reads (`tools`, `enable_thinking`, ...).

        Returns:
            The text that `encode` turns into ids.

        Raises:
            ValueError: there is no template, it refuses the conversation or fails, or it passes
                the bounds of `ChatTemplate`.
        """
        if self.chat_template is None:
            raise ValueError("this tokenizer has no chat_template, so it renders no messages")
        return self._template.render(
            messages=[dict(message) for message in messages],
            add_generation_prompt=add_generation_prompt,
            **{**self.special_tokens, **variables},
        )

    def prompt_ids(self, text: str) -> list[int]:
        """Ids that the policy is prompted with.

        With a chat template: `text` as one user turn and the opening of the assistant's. Without:
        `text`, begun as the tokenizer's post-processor begins a text.

        Args:
            text: the prompt.

        Returns:
            The ids.

        Raises:
            ValueError: the template refuses the prompt.
        """
        if self.chat_template is not None:
            return self.encode(self.render([{"role": "user", "content": text}]))
        return [*self.start_ids, *self.encode(text)]

    @functools.cached_property
    def start_ids(self) -> tuple[int, ...]:
        """Ids that the tokenizer's post-processor puts before a text; none for most families."""
        # Any text serves that has ids at all; the text of some token has.
        for token in self._tokenizer.get_vocab():
            with _library(f"the tokenizer fails on {token!r:.80}"):
                encoded = self._tokenizer.encode(token)
            owners = encoded.sequence_ids
            if 0 in owners:
                return tuple(self._checked(encoded.ids[: owners.index(0)], ""))
        return ()

    def completion_ids(self, prompt: str, text: str) -> list[int]:
        """Ids of a whole answer: `text`, and how the policy ends a turn.

        With a chat template, `prompt_ids(prompt) + completion_ids(prompt, text)` are the ids of
        the conversation of both as the template writes it. A template that changes the text, or
        that begins the assistant's turn otherwise in a whole conversation than in a prompt, only
        gives the turn's end. Without a template: `text` and the end-of-text token.

        Args:
            prompt: the prompt's text.
            text: the answer.

        Returns:
            The ids; a stop token is among the last.

        Raises:
            ValueError: the template refuses the prompt, or as `encode`.
        """
        if self.chat_template is None:
            return [*self.encode(text), self.eos_id]
        opening = self.render([{"role": "user", "content": prompt}])
        whole = self._conversation(prompt, text)
        answer, words = text + self._turn_end, text.strip()
        if whole.startswith(opening) and words in whole[len(opening) :]:
            answer = whole[len(opening) :]
        # A stop token inside of the text itself ends no turn.
        behind = answer.partition(words)[2] if words else answer
        stops = set(self.encode(behind)) & set(self.stop_ids)
        return [*self.encode(answer), *([] if stops else [self.eos_id])]

    def _conversation(self, prompt: str, text: str) -> str:
        """A question and its answer as the template writes them; empty where it refuses answers."""
        turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": text}]
        try:
            return self.render(turns, add_generation_prompt=False)
        except RunawayTemplate:
            raise
        except ValueError:
            return ""

    @functools.cached_property
    def _turn_end(self) -> str:
        """What the template writes behind an answer, also where it changes the answer itself."""
        one, two = (self._conversation("?", answer)[::-1] for answer in ("polgrad", "12"))
        return os.path.commonprefix([one, two])[::-1] if one != two else ""

    @functools.cached_property
    def _turn_end_ids(self) -> list[int]:
        return self.encode(self._turn_end)

    def _unknown_stop(self) -> tuple[int, ...]:
        """The token with which the template ends a turn, where it is no stop token yet."""
        if set(self._turn_end_ids) & set(self.stop_ids):
            return ()
        added = self._tokenizer.get_added_tokens_decoder()
        return tuple(i for i in self._turn_end_ids if i in added)[:1]


def from_assets(
    assets: Any, *, rows: int | None = None, now: datetime.datetime | None = None
) -> HubTokenizer:
    """The tokenizer of a loaded policy.

    Args:
        assets: an object with the fields of `policies.TextAssets`: `tokenizer_json`,
            `chat_template`, `eos_id`, `pad_id`, `stop_ids`, and the strings of special tokens,
            either in a mapping `special_tokens` or as fields `bos_token`, ....
        rows: rows of the policy's embedding, see `HubTokenizer`.
        now: the date that a template may print, see `ChatTemplate`.

    Returns:
        A `HubTokenizer`.

    Raises:
        ValueError: as `HubTokenizer`.
    """
    special = dict(getattr(assets, "special_tokens", None) or {})
    for name in ("bos_token", "eos_token", "pad_token", "unk_token"):
        if isinstance(getattr(assets, name, None), str):
            special.setdefault(name, getattr(assets, name))
    return HubTokenizer(
        assets.tokenizer_json,
        chat_template=assets.chat_template,
        eos_id=assets.eos_id,
        pad_id=assets.pad_id,
        stop_ids=assets.stop_ids,
        special_tokens=special,
        rows=rows,
        now=now,
    )
