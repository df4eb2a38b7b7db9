import datetime
import json
import types

import chat_families
import hypothesis.strategies as st
import pytest
from hypothesis import given

from polgrad.data import CharacterTokenizer, HubTokenizer, from_assets
from polgrad.data.chat_templates import ChatTemplate

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + "
    "message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def tokenizer_json():
    """A byte-free word-level tokenizer with special tokens, as its JSON text."""
    specials = ["<|end|>", "<|im_start|>", "<|im_end|>"]
    words = ["user", "assistant", "\n", "hi", "there", " ", "[UNK]"]
    vocabulary = {word: i for i, word in enumerate(specials + words)}
    return json.dumps(
        {
            "version": "1.0",
            "truncation": {
                "direction": "Right",
                "max_length": 2,
                "strategy": "LongestFirst",
                "stride": 0,
            },
            "padding": None,
            "added_tokens": [
                {
                    "id": i,
                    "content": token,
                    "single_word": False,
                    "lstrip": False,
                    "rstrip": False,
                    "normalized": False,
                    "special": True,
                }
                for i, token in enumerate(specials)
            ],
            "normalizer": None,
            "pre_tokenizer": {
                "type": "Split",
                "pattern": {"Regex": "\\s"},
                "behavior": "Isolated",
                "invert": False,
            },
            "post_processor": None,
            "decoder": {"type": "Fuse"},
            "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "[UNK]"},
        }
    )


@given(st.text("0123456789+-= "))
def test_characters_come_back(text):
    tokenizer = CharacterTokenizer("0123456789+-= ")
    ids = tokenizer.encode(text)
    assert len(ids) == len(text) and all(2 <= i < tokenizer.vocab_size for i in ids)
    assert tokenizer.decode([*ids, tokenizer.eos_id, tokenizer.pad_id]) == text
    assert tokenizer.prompt_ids(text) == ids


def test_character_ids_are_the_alphabets_order():
    tokenizer = CharacterTokenizer("ab")
    assert (tokenizer.vocab_size, tokenizer.pad_id, tokenizer.eos_id) == (4, 0, 1)
    assert tokenizer.stop_ids == (1,) and tokenizer.encode("ba") == [3, 2]


def test_an_unknown_character_is_named_with_the_alphabet():
    with pytest.raises(ValueError, match=r"'x' at position 2 .* not in the alphabet '0123'"):
        CharacterTokenizer("0123").encode("12x")


def test_a_long_text_is_cut_behind_its_quote():
    with pytest.raises(ValueError, match=r"'x' at position 0 of 'x{60}'\.\.\. is .*its own task; "):
        CharacterTokenizer("0123").encode("x" * 99)


@pytest.mark.parametrize("alphabet", ["", "aba"])
def test_bad_alphabets_raise(alphabet):
    with pytest.raises(ValueError, match="alphabet must hold"):
        CharacterTokenizer(alphabet)


@pytest.mark.parametrize("bad", [-1, 4])
def test_an_id_out_of_range_raises(bad):
    with pytest.raises(ValueError, match="outside"):
        CharacterTokenizer("ab").decode([bad])


def test_hub_prompt_with_a_template():
    tokenizer = HubTokenizer(tokenizer_json(), chat_template=CHATML, eos_id=2)
    ids = tokenizer.prompt_ids("hi there")
    # <|im_start|> user \n hi ' ' there <|im_end|> \n <|im_start|> assistant \n
    assert ids == [1, 3, 5, 6, 8, 7, 2, 5, 1, 4, 5]
    assert tokenizer.stop_ids == (2,) and tokenizer.pad_id == 2 and tokenizer.vocab_size == 10


def test_hub_prompt_without_a_template_begins_as_the_tokenizer_begins_a_text():
    plain = HubTokenizer(tokenizer_json(), eos_id=2)
    assert plain.prompt_ids("hi") == [6] and plain.start_ids == ()
    # A post-processor may also end a text, which a prompt must not be.
    processor = {
        "type": "TemplateProcessing",
        "single": [
            {"SpecialToken": {"id": "<|end|>", "type_id": 0}},
            {"Sequence": {"id": "A", "type_id": 0}},
            {"SpecialToken": {"id": "<|im_end|>", "type_id": 0}},
        ],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {
            "<|end|>": {"id": "<|end|>", "ids": [0], "tokens": ["<|end|>"]},
            "<|im_end|>": {"id": "<|im_end|>", "ids": [2], "tokens": ["<|im_end|>"]},
        },
    }
    begun = json.dumps({**json.loads(tokenizer_json()), "post_processor": processor})
    assert HubTokenizer(begun, eos_id=2).prompt_ids("hi") == [0, 6]
    assert HubTokenizer(begun, eos_id=2).prompt_ids("") == [0]
    # A template says itself how a conversation begins.
    chat = HubTokenizer(begun, eos_id=2, chat_template=CHATML)
    assert chat.prompt_ids("hi")[0] == 1


@pytest.mark.parametrize("family", chat_families.FAMILIES)
@pytest.mark.parametrize("answer", ["42", "<think>3 + 4</think>7", "a b\n\nc"])
def test_a_prompt_and_its_answer_are_the_conversation_as_the_template_writes_it(family, answer):
    tokenizer, whole = of_family(family, answer)
    ids = tokenizer.prompt_ids("3 + 4?") + tokenizer.completion_ids("3 + 4?", answer)
    template, _, _, turn, _ = chat_families.FAMILIES[family]
    if family == "qwen3" and "<think>" in answer:
        # The template would write the thought in another form: the answer stays as it is.
        expected = f"{answer}<|im_end|>\n"
        assert tokenizer.completion_ids("3 + 4?", answer) == tokenizer.encode(expected)
    else:
        assert ids == tokenizer.encode(whole)
    end = tokenizer.encode(turn)[0]
    assert end in tokenizer.stop_ids and end in ids[-2:]


def of_family(family, answer, **changes):
    """The tokenizer, and the conversation of a question and an answer as its template writes it."""
    template, bos, eos, _, begins = chat_families.FAMILIES[family]
    hub = chat_families.tokenizer(bos if begins else None)
    special = {"bos_token": bos, "eos_token": eos}
    settings = {"chat_template": template, "eos_id": hub.token_to_id(eos), **changes}
    made = HubTokenizer(
        hub.to_str(), special_tokens={k: v for k, v in special.items() if v}, **settings
    )
    if made.chat_template is None:
        return made, None
    turns = [{"role": "user", "content": "3 + 4?"}, {"role": "assistant", "content": answer}]
    return made, made.render(turns, add_generation_prompt=False)


@pytest.mark.parametrize("family", chat_families.FAMILIES)
def test_without_a_template_an_answer_ends_with_the_end_of_text(family):
    tokenizer, _ = of_family(family, "", chat_template=None)
    _, bos, eos, _, begins = chat_families.FAMILIES[family]
    start = tokenizer.encode(bos) if begins else []
    assert tokenizer.prompt_ids("hi") == start + tokenizer.encode("hi")
    assert tokenizer.completion_ids("hi", "42") == tokenizer.encode(f"42{eos}")


@pytest.mark.parametrize(
    ("template", "end"),
    [
        ("{{ messages[-1]['content'] }}", [2]),  # it ends no turn
        ("{% if messages | length > 1 %}{{ raise_exception('no') }}{% endif %}", [2]),
        ("{% for m in messages %}{{ m['content'] }}<|end|>{% endfor %}", [0]),
        ("{% for m in messages %}{{ m['content'] }}\n<|im_end|>{% endfor %}", [5, 2]),
        # It changes the text: "there" holds none of these letters, or all of them.
        ("{% for m in messages %}{{ m['content']|replace('a', 'b') }}<|im_end|>{% endfor %}", [2]),
        ("{% for m in messages %}{{ m['content']|upper }}<|end|>{% endfor %}", [0]),
    ],
)
def test_an_answer_always_ends_with_a_stop_token(template, end):
    tokenizer = HubTokenizer(tokenizer_json(), chat_template=template, eos_id=2)
    ids = tokenizer.completion_ids("hi", "there")
    assert ids == [7, *end] and set(end) & set(tokenizer.stop_ids)


@pytest.mark.parametrize("text", ["i", "end", "im", "", "<|im_end|> there"])
def test_an_answer_ends_once_whatever_its_text(text):
    """Texts that are a part of the turn's end, too, and one that holds a stop token itself."""
    changes = CHATML.replace("message['content']", "message['content']|replace('a', 'b')")
    for template in (CHATML, changes):
        tokenizer = HubTokenizer(tokenizer_json(), chat_template=template, eos_id=2)
        assert tokenizer.completion_ids("hi", text) == tokenizer.encode(f"{text}<|im_end|>\n")
    # Without a turn's end, the end of text is added behind whatever the text holds.
    bare = HubTokenizer(tokenizer_json(), chat_template="{{ messages[-1]['content'] }}", eos_id=2)
    assert bare.completion_ids("hi", text) == [*bare.encode(text), 2]


def test_a_token_without_a_row_is_refused():
    tokenizer = HubTokenizer(tokenizer_json(), eos_id=2, rows=7)
    assert tokenizer.prompt_ids("hi") == [6]
    for refused in (
        tokenizer.encode,
        tokenizer.prompt_ids,
        lambda t: tokenizer.completion_ids("", t),
    ):
        with pytest.raises(
            ValueError, match="token 'there' with id 7, which has no row in .* of 7"
        ):
            refused("there")


def test_decode_drops_stop_and_special_tokens():
    tokenizer = HubTokenizer(tokenizer_json(), eos_id=2, stop_ids=(2, 7))
    # 7 ("there") is an ordinary word that stops; 999 is a row of a padded embedding.
    assert tokenizer.decode([1, 6, 8, 6, 7, 2, 0, 999]) == "hi hi"


def test_tokens_that_hold_a_character():
    tokenizer = HubTokenizer(tokenizer_json(), eos_id=0)
    assert tokenizer.ids_holding("\n") == (5,)
    assert tokenizer.ids_holding("h") == (6, 7)  # "hi" and "there"; not the special tokens


@pytest.mark.parametrize("bad", ["", "##", "é", "z"])
def test_a_stop_that_no_token_decides_is_refused(bad):
    with pytest.raises(ValueError, match=f"stop is {bad!r}"):
        HubTokenizer(tokenizer_json(), eos_id=0).ids_holding(bad)


def test_from_assets():
    assets = types.SimpleNamespace(
        tokenizer_json=tokenizer_json(),
        chat_template="{{ bos_token }}{{ messages[0]['content'] }}",
        bos_id=0,
        eos_id=2,
        pad_id=None,
        stop_ids=(2,),
        bos_token="<|end|>",
    )
    assert from_assets(assets).prompt_ids("hi") == [0, 6]


def test_a_tokenizer_needs_an_end():
    with pytest.raises(ValueError, match="eos_id or stop_ids"):
        HubTokenizer(tokenizer_json())
    with pytest.raises(ValueError, match="not JSON"):
        HubTokenizer("{", eos_id=1)


@pytest.mark.parametrize(
    "template",
    [
        "{{ messages.__class__.__mro__ }}",
        "{{ messages[0].__init__.__globals__ }}",
        "{{ cycler.__init__.__globals__.os.system('true') }}",
        "{{ messages.append(1) }}",
    ],
)
def test_the_sandbox_refuses_internals_and_changes(template):
    tokenizer = HubTokenizer(tokenizer_json(), chat_template=template, eos_id=2)
    with pytest.raises(ValueError, match="SecurityError"):
        tokenizer.prompt_ids("hi")


def test_internals_that_are_only_printed_are_undefined():
    assert ChatTemplate("<{{ ''.__class__ }}>").render() == "<>"


def test_template_conventions():
    def render(source, **given):
        return ChatTemplate(source).render(**given)

    assert render("  {% if true %}\nx\n  {% endif %}\ny") == "x\ny"
    assert render("{{ x | tojson }}", x={"a": "<é>"}) == '{"a": "<é>"}'
    assert render("{{ [1] | tojson(indent=1) }}") == "[\n 1\n]"
    loop = "{% for i in x %}{% if i > 1 %}{% break %}{% endif %}{{ i }}{% endfor %}"
    assert render(loop, x=[1, 2, 3]) == "1"
    assert render("a{% generation %}b{% endgeneration %}c") == "abc"
    now = datetime.datetime(2024, 7, 26)
    dated = ChatTemplate("{{ strftime_now('%d %b %Y') }}", now=now)
    assert dated.render() == "26 Jul 2024"


def test_a_template_that_fails_on_an_answer_only_ends_it():
    adds = (
        "{% for m in messages %}"
        "{{ m['content'] + (none if loop.last and loop.length > 1 else '') }}{% endfor %}"
    )
    tokenizer = HubTokenizer(tokenizer_json(), chat_template=adds, eos_id=2)
    assert tokenizer.prompt_ids("hi") == [6] and tokenizer.completion_ids("hi", "hi") == [6, 2]
    with pytest.raises(ValueError, match="chat_template: TypeError"):
        HubTokenizer(tokenizer_json(), chat_template="{{ 1 + none }}", eos_id=2).prompt_ids("hi")


def test_a_template_may_refuse_and_may_be_malformed():
    refusing = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(ValueError, match="roles must alternate"):
        HubTokenizer(tokenizer_json(), chat_template=refusing, eos_id=2).prompt_ids("hi")
    with pytest.raises(ValueError, match="chat_template line 2"):
        HubTokenizer(tokenizer_json(), chat_template="x\n{% if %}", eos_id=2)
    with pytest.raises(ValueError, match="no chat_template"):
        HubTokenizer(tokenizer_json(), eos_id=2).render([])
