"""Bad inputs for the command line, by what they damage."""

import contextlib
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple


class Attack(NamedTuple):
    """A command that must be refused.

    Attributes:
      name: `kind: what is wrong`.
      command: the words after `polgrad`, run inside of the world.
      prepare: damages the world; its argument is the world's folder.
      environment: variables of the command.
      beside: another process that runs meanwhile, or None.
    """

    name: str
    command: tuple[str, ...]
    prepare: Callable[[pathlib.Path], None] | None = None
    environment: Mapping[str, str] = {}
    beside: Callable[[pathlib.Path], contextlib.AbstractContextManager] | None = None

    @contextlib.contextmanager
    def prepared(self, place: pathlib.Path) -> Iterator[None]:
        """The world as the command finds it."""
        if self.prepare is not None:
            self.prepare(place)
        with self.beside(place) if self.beside else contextlib.nullcontext():
            yield


def everything() -> list[Attack]:
    """All attacks. Names are unique."""
    from attacks import code, data, experiments, flags, models, runs

    rooms = (flags, data, models, code, runs, experiments)
    found = [attack for room in rooms for attack in room.attacks()]
    names = [attack.name for attack in found]
    assert len({*names}) == len(names), sorted(n for n in names if names.count(n) > 1)
    return found
