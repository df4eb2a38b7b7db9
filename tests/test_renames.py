"""A renamed function keeps its old name, with a warning, and not for ever."""

import importlib

import pytest

import polgrad
from polgrad import _catalogue, _renames, losses


def test_an_old_name_is_the_new_function_and_warns(monkeypatch):
    monkeypatch.setitem(_renames.RENAMES, "losses.old_name", ("losses.ppo_clip", "9.0.0"))
    with pytest.warns(
        DeprecationWarning, match="losses.ppo_clip now; the old name goes in polgrad 9"
    ):
        assert losses.old_name is losses.ppo_clip
    with pytest.raises(AttributeError, match="no attribute 'never_was'"):
        losses.never_was  # noqa: B018


@pytest.mark.parametrize("room", _catalogue.ROOMS)
def test_every_room_asks_for_old_names(room, monkeypatch):
    monkeypatch.setitem(_renames.RENAMES, f"{room}.old_name", ("losses.ppo_clip", "9.0.0"))
    with pytest.warns(DeprecationWarning, match=room):
        importlib.import_module(f"polgrad.{room}").old_name  # noqa: B018


def test_old_names_lead_somewhere_and_have_not_outlived_their_release():
    now = tuple(map(int, polgrad.__version__.split(".")))
    names = {primitive.name for primitive in _catalogue.primitives()}
    for old, (new, until) in _renames.RENAMES.items():
        assert new in names and old not in names
        assert now < tuple(map(int, until.split("."))), f"remove {old} from polgrad/_renames.py"
