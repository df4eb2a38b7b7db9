"""The process in which chat templates run: `chat_templates` starts it, and asks it for texts.

A chat template is a program, which anybody may have written. Here it has jinja2's immutable
sandbox, no environment variables, no file that it could write, and a limit of memory and of
processor time that the kernel keeps. So no loop, recursion, number or string of a template can
take more, whatever library function it calls.

A request is eight bytes of length and a text of `codec`; a reply is eight bytes of length and JSON.
"""

import contextlib
import datetime
import importlib.util
import json
import resource
import signal
import sys


def environment(now: datetime.datetime | None = None):
    """The jinja2 environment of chat templates, with the hub's conventions.

    Args:
        now: what `strftime_now` formats; None is the clock.

    Returns:
        An environment, whose `from_string` makes a template.
    """
    import jinja2
    from jinja2.ext import Extension
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """`{% generation %}` marks the assistant's text for training masks; here it is text."""

        tags = {"generation"}

        def parse(self, parser):
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def raise_exception(message):
        raise jinja2.TemplateError(message)

    def tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        # jinja2's own filter escapes HTML, which no chat format wants.
        return json.dumps(
            value,
            ensure_ascii=ensure_ascii,
            indent=indent,
            separators=separators,
            sort_keys=sort_keys,
        )

    def strftime_now(pattern):
        return (now or datetime.datetime.now()).strftime(pattern)

    made = ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[Generation, "jinja2.ext.loopcontrols"],
    )
    made.filters["tojson"] = tojson
    made.globals["raise_exception"] = raise_exception
    made.globals["strftime_now"] = strftime_now
    return made


def _answer(request: dict, templates: dict) -> dict:
    """The reply to a request: a text, or why there is none."""
    import jinja2

    try:
        if request["source"] is not None:
            now = request["now"] and datetime.datetime.fromisoformat(request["now"])
            made = environment(now).from_string(request["source"])
            templates[request["key"]] = made
        if request["variables"] is None:
            return {"text": ""}
        text = templates[request["key"]].render(**request["variables"])
    except jinja2.TemplateSyntaxError as error:
        return {"error": f"line {error.lineno}: {_line(error.message)}", "line": True}
    # A template may fail as any program: 1 + None is a TypeError.
    except Exception as error:  # noqa: BLE001
        told = "" if isinstance(error, (RecursionError, MemoryError)) else _line(error)
        return {"error": ": ".join(filter(None, [type(error).__name__, told]))}
    if len(text) > request["length"]:
        length = request["length"]
        return {"runaway": f"it wrote {len(text)} characters; expected at most {length}"}
    return {"text": text}


def _line(error) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= 300 else f"{text[:297]}..."


def limit(kind: int, most: int) -> None:
    """Sets a limit of this process and of those that it starts, where the system knows the limit.

    Args:
        kind: one of the `resource.RLIMIT_` numbers.
        most: the limit; a lower one that the process has already stays.
    """
    # macOS refuses limits of memory. Every limit is tried, so that the others hold there.
    with contextlib.suppress(ValueError, OSError):
        hard = resource.getrlimit(kind)[1]
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(kind, (most, most))


def _limit_all(memory: int) -> None:
    limit(resource.RLIMIT_AS, memory)
    limit(resource.RLIMIT_CORE, 0)
    limit(resource.RLIMIT_FSIZE, 0)
    limit(resource.RLIMIT_NOFILE, 32)


def main(codec_path: str, memory: int) -> None:
    """Answers requests until the input ends.

    Args:
        codec_path: the file of the module `codec`.
        memory: address space of this process in bytes.
    """
    spec = importlib.util.spec_from_file_location("codec", codec_path)
    codec = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(codec)
    environment()  # imports what a template needs, before the limits begin
    _limit_all(memory)
    source, sink = sys.stdin.buffer, sys.stdout.buffer
    templates: dict = {}
    while len(size := source.read(8)) == 8:
        request = codec.loads(source.read(int.from_bytes(size, "big")))
        # Nothing handles this signal: it ends the process in the midst of a library function too.
        signal.setitimer(signal.ITIMER_PROF, request["seconds"])
        reply = json.dumps(_answer(request, templates)).encode("ascii")
        signal.setitimer(signal.ITIMER_PROF, 0)
        sink.write(len(reply).to_bytes(8, "big") + reply)
        sink.flush()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
