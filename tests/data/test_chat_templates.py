"""Chat templates that anybody may have written: every failure is one line, and time and memory are limited."""

import datetime
import os
import signal
import subprocess
import sys
import threading
import time

import chat_families
import hypothesis.strategies as st
import jinja2
import pytest
from hypothesis import given

from polgrad.data import HubTokenizer, _renderer, chat_templates
from polgrad.data.chat_templates import ChatTemplate, RunawayTemplate

TURNS = [
    {"role": "user", "content": "3 + 4?\n<é>"},
    {"role": "assistant", "content": "<think>7\n</think>7"},
]
# Pieces of templates of the hub, each with something that a boundary could get wrong.
PIECES = (
    "{{ messages | tojson }}{{ messages[0] | tojson(indent=2) }}",
    "{%- for m in messages if m.role != 'system' %}{{ loop.index0 }}{{ m.content | trim }}{% endfor %}",
    "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
    "{% macro turn(m) %}[{{ m['role'] }}]{% endmacro %}{{ turn(messages[0]) ~ turn(messages[1]) }}",
    "{{ '%-5s|%03d' % ('ab', 7) }}{{ 'x' * 3 }}{{ 2 ** 10 }}{{ '{:>4}'.format('y') }}",
    "{{ messages[0].content.split('+')[0].strip() }}{{ undefined_name is defined }}{{ missing }}",
    "{{ (1, 2) }}{{ [1, 2] }}{{ pair }}{{ pair is sequence }}{{ ratio }}{{ nothing }}",
    "{% if messages[0].role == 'user' %}{{ strftime_now('%d %b %Y') }}{% endif %}",
    "{% generation %}{{ messages[1]['content'] }}{% endgeneration %}",
)
NOW = datetime.datetime(2024, 7, 26, 12, 30)
VARIABLES = {"pair": (1, "a"), "ratio": 0.1, "nothing": None, "bos_token": "<s>", "eos_token": "é"}


def whole(source):
    """What jinja2 gives in this process, without any bound."""
    template = _renderer.environment(NOW).from_string(source)
    return template.render(messages=TURNS, add_generation_prompt=True, **VARIABLES)


@pytest.mark.parametrize("family", chat_families.FAMILIES)
def test_templates_of_the_families_are_unchanged(family):
    source = chat_families.FAMILIES[family][0]
    made = ChatTemplate(source, now=NOW)
    told = {"messages": TURNS, "add_generation_prompt": True, **VARIABLES}
    assert made.render(**told) == whole(source)


@pytest.mark.parametrize("source", PIECES)
def test_what_templates_use_is_unchanged(source):
    made = ChatTemplate(source, now=NOW)
    told = {"messages": TURNS, "add_generation_prompt": True, **VARIABLES}
    assert made.render(**told) == whole(source)


contents = st.text(st.characters())  # lone surrogates, line ends and NUL included


@given(st.lists(st.fixed_dictionaries({"role": st.sampled_from("ab"), "content": contents})))
def test_any_text_passes_unchanged(messages):
    source = "{% for m in messages %}{{ m.role }}:{{ m.content }};{% endfor %}"
    text = "".join(f"{m['role']}:{m['content']};" for m in messages)
    assert ChatTemplate(source).render(messages=messages) == text


FAILING = {
    "{{ 1 / 0 }}": "chat_template: ZeroDivisionError: division by zero",
    "{{ 1 + 'a' }}": "chat_template: TypeError: unsupported operand",
    "{{ missing.name }}": "chat_template: UndefinedError: 'missing' is undefined",
    "{{ messages[9].content }}": "chat_template: UndefinedError",
    "{{ 'a'.index('b') }}": "chat_template: ValueError: substring not found",
    "{{ 'é'.encode('ascii') }}": "chat_template: UnicodeEncodeError",
    "{% include 'x' %}": "chat_template: TypeError: no loader for this environment",
    "{{ 'x' | nosuch }}": "chat_template line 1: No filter named 'nosuch'",
    "a\n{% if %}": "chat_template line 2: Expected an expression",
    "{{ raise_exception('roles\n must alternate') }}": "TemplateError: roles must alternate$",
    "{{ raise_exception('x' * 9999) }}": r"chat_template: TemplateError: x{297}\.\.\.$",
    "{{ messages.__class__ .__mro__ }}": "chat_template: SecurityError",
    "{{ messages.append(1) }}": "chat_template: SecurityError",
    "{{ 9 ** 99 ** 1 | int }}": None,
}


@pytest.mark.parametrize("source", FAILING)
def test_every_exception_is_one_line(source):
    if FAILING[source] is None:
        assert ChatTemplate(source).render(messages=[]) == str(9**99)
        return
    with pytest.raises(ValueError, match=FAILING[source]) as caught:
        ChatTemplate(source).render(messages=[])
    assert "\n" not in str(caught.value) and not isinstance(caught.value, RunawayTemplate)


NESTED = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
DOUBLED = (
    "{%% set ns = namespace(x=%s) %%}{%% for i in range(99) %%}{%% set ns.x = %s %%}{%% endfor %%}"
)
HOSTILE = {
    "nested loops": NESTED,
    "a range": "{{ range(10 ** 9) | list }}",
    "repeated text": "{{ 'a' * 10 ** 10 }}",
    "repeated text in two steps": "{{ ('a' * 10 ** 6) * 10 ** 5 }}",
    "a repeated list": "{{ [0] * 10 ** 10 }}",
    "a power": "{{ 9 ** (9 ** 9) }}",
    "a format's width": "{{ '%999999999d' % 1 }}",
    "a format's width in braces": "{{ '{:>9999999999}'.format(1) }}",
    "a centred text": "{{ 'x' | center(10 ** 10) }}",
    "an indent": "{{ messages | tojson(indent=10 ** 10) }}",
    "words": "{{ lipsum(n=10 ** 7) }}",
    "recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "recursion in a loop": "{% for i in [[1]] recursive %}{{ loop([[1]]) }}{% endfor %}",
    "doubled text": DOUBLED % ("'ab'", "ns.x ~ ns.x") + "{{ ns.x }}",
    "a doubled list": DOUBLED % ("[1]", "[ns.x, ns.x]") + "{{ ns.x }}",
    "a doubled list compared": DOUBLED % ("[1]", "[ns.x, ns.x]") + "{{ ns.x | string | length }}",
    "a pattern of time": "{{ strftime_now('%Y' * 10 ** 9) }}",
    "replacements": "{{ ('a' * 10 ** 6).replace('a', 'b' * 10 ** 6) }}",
    "text that is too long": "{{ 'a' * 5000000 }}",
    "brackets": "{{ " + "(" * 10**5 + ")" * 10**5 + " }}",
    "blocks": "{% if 1 %}" * 5000 + "{% endif %}" * 5000,
    "lists": "{{ " + "[" * 3000 + "]" * 3000 + " }}",
}


@pytest.fixture
def hasty(monkeypatch):
    monkeypatch.setattr(chat_templates, "SECONDS", 0.1)
    monkeypatch.setattr(chat_templates, "LENGTH", 1000)


@pytest.mark.parametrize("name", HOSTILE)
def test_nothing_runs_away(name, hasty):
    with pytest.raises(ValueError, match=r"^chat_template: \w+") as caught:
        ChatTemplate(HOSTILE[name]).render(messages=[{"role": "user", "content": "x"}])
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400
    # The next template is not troubled.
    assert ChatTemplate("{{ x }}").render(x=1) == "1"


def test_what_a_bound_says(hasty):
    with pytest.raises(RunawayTemplate, match="one text took more than 0.1 seconds of processor"):
        ChatTemplate(NESTED).render()
    with pytest.raises(RunawayTemplate, match="it wrote 1001 characters; expected at most 1000"):
        ChatTemplate("{{ 'a' * 1001 }}").render()


def test_a_template_that_runs_away_shows_when_the_policy_is_loaded(hasty):
    hub = chat_families.tokenizer().to_str()
    with pytest.raises(RunawayTemplate, match="more than 0.1 seconds"):
        HubTokenizer(hub, chat_template=NESTED, eos_id=0)
    # Also where it does so for answers alone, which templates may refuse in silence.
    later = "{% if messages | length > 1 %}" + NESTED + "{% endif %}"
    with pytest.raises(RunawayTemplate, match="more than 0.1 seconds"):
        HubTokenizer(hub, chat_template=later, eos_id=0)


def test_values_of_other_types_are_named():
    with pytest.raises(ValueError, match="chat_template: cannot store a value of type object"):
        ChatTemplate("{{ x }}").render(x=object())


def test_a_template_sees_no_variable_of_the_environment(monkeypatch):
    monkeypatch.setenv("POLGRAD_SECRET", "token")
    monkeypatch.setattr(chat_templates, "_renderer", chat_templates._Renderer())
    process = chat_templates._renderer._running()
    assert ChatTemplate("{{ x }}").render(x="before") == "before"
    with open(f"/proc/{process.pid}/environ", "rb") as file:
        assert b"POLGRAD_SECRET" not in file.read()
    chat_templates._renderer.stop()


def test_a_limit_that_the_system_refuses_leaves_the_others(monkeypatch):
    asked = []

    def refuse(kind, bounds):
        asked.append(kind)
        raise ValueError("current limit exceeds maximum limit")

    monkeypatch.setattr(_renderer.resource, "setrlimit", refuse)
    _renderer._limit_all(1 << 30)
    assert len(asked) == 4


def test_a_renderer_that_was_ended_is_started_again():
    made = ChatTemplate("<{{ x }}>")
    before = chat_templates._renderer._process
    before.send_signal(signal.SIGKILL)
    before.wait()
    assert made.render(x=1) == "<1>"
    assert chat_templates._renderer._process.pid != before.pid


FORKED = """
import os
from polgrad.data import chat_templates
made = chat_templates.ChatTemplate("<{{ x }}>")
read, write = os.pipe()
child = os.fork()
if child == 0:
    os.write(write, made.render(x="child").encode())
    chat_templates._renderer.stop()
    os._exit(0)
assert made.render(x="parent") == "<parent>"
os.waitpid(child, 0)
assert os.read(read, 100) == b"<child>"
"""


def test_a_forked_process_has_a_renderer_of_its_own():
    # In a process without JAX, whose threads do not like a fork.
    path = os.pathsep.join(filter(None, sys.path))
    subprocess.run([sys.executable, "-c", FORKED], check=True, env={"PYTHONPATH": path})


def test_threads_get_their_own_texts():
    made = ChatTemplate("<{{ x }}>")
    wrong = []

    def ask(x):
        wrong.extend(x for _ in range(30) if made.render(x=x) != f"<{x}>")

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_an_interrupt_leaves_no_answer_for_the_next_question(monkeypatch):
    made = ChatTemplate("{{ x }}")
    exchange = chat_templates._exchange

    def interrupted(process, body):
        process.stdin.write(len(body).to_bytes(8, "big") + body)
        process.stdin.flush()
        time.sleep(0.05)
        raise KeyboardInterrupt

    monkeypatch.setattr(chat_templates, "_exchange", interrupted)
    with pytest.raises(KeyboardInterrupt):
        made.render(x="first")
    monkeypatch.setattr(chat_templates, "_exchange", exchange)
    assert made.render(x="second") == "second"


def test_more_templates_than_one_process_keeps(monkeypatch):
    monkeypatch.setattr(chat_templates, "_TEMPLATES", 3)
    made = [ChatTemplate(f"{i}{{{{ x }}}}") for i in range(5)]
    assert [one.render(x="!") for one in (*made, *made)] == [
        f"{i}!" for i in (*range(5), *range(5))
    ]


def test_jinja_is_the_sandboxed_one():
    assert isinstance(_renderer.environment(), jinja2.sandbox.ImmutableSandboxedEnvironment)
