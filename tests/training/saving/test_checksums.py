"""Checksums of a checkpoint: whatever happens to its files is noticed."""

import itertools
import json
import os
import shutil
import threading
from concurrent import futures

import pytest

from polgrad.training.saving import checksums

FILES = {
    "_CHECKPOINT_METADATA": b"{}",
    "default/_METADATA": b'{"tree": 1}',
    "default/manifest.ocdbt": bytes(range(64)),
    "default/d/0abc": bytes(range(256)) * 9,
    "default/ocdbt.process_0/d/1def": b"\0" * 300,
}


@pytest.fixture
def place(tmp_path):
    """A place with a checkpoint of step 4 and its checksums."""
    for name, body in FILES.items():
        path = tmp_path / "4" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(body)
    checksums.write(tmp_path, "4")
    return tmp_path


def flip(path, bit):
    body = bytearray(path.read_bytes())
    body[bit // 8] ^= 1 << bit % 8
    path.write_bytes(body)


def as_directory(path):
    path.unlink()
    path.mkdir()


DAMAGE = {
    "deleted": lambda path: path.unlink(),
    "emptied": lambda path: path.write_bytes(b""),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"\0"),
    "first bit": lambda path: flip(path, 0),
    "last bit": lambda path: flip(path, 8 * path.stat().st_size - 1),
    "a directory": as_directory,
    "a pointer": lambda path: path.write_bytes(b"version https://git-lfs.github.com/spec/v1\n"),
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_to_any_file_is_noticed(place, name, damage):
    assert checksums.fault(place, "4") is None
    DAMAGE[damage](place / "4" / name)
    assert name in checksums.fault(place, "4")


@pytest.mark.parametrize("damage", ["emptied", "cut", "first bit", "last bit", "a directory"])
def test_damage_to_the_checksums_is_noticed(place, damage):
    DAMAGE[damage](checksums.path_of(place, "4"))
    assert "4.checksums.json" in checksums.fault(place, "4")


@pytest.mark.parametrize("text", ["[]", "{}", '{"sha256": 1}', '{"sha256": {"a": 1}}', "null"])
def test_checksums_of_another_form_are_noticed(place, text):
    checksums.path_of(place, "4").write_text(text)
    assert "cannot be read" in checksums.fault(place, "4")


def test_every_bit_of_the_checksums_counts(place):
    path = checksums.path_of(place, "4")
    body = path.read_bytes()
    for bit in range(0, 8 * len(body), 37):
        path.write_bytes(body)
        flip(path, bit)
        assert checksums.fault(place, "4") is not None, bit


@pytest.mark.parametrize("name", ["default/_METADATA", "default/manifest.ocdbt"])
def test_a_checkpoint_without_checksums_needs_its_manifests(place, name):
    checksums.forget(place, "4")
    assert checksums.fault(place, "4") is None and not checksums.has(place, "4")
    (place / "4" / name).write_bytes(b"")
    assert f"its file {name} is empty" == checksums.fault(place, "4")
    (place / "4" / name).unlink()
    assert f"its file {name} is missing" == checksums.fault(place, "4")


def test_an_emptied_or_missing_checkpoint(place):
    shutil.rmtree(place / "4")
    assert "is missing" in checksums.fault(place, "4")
    (place / "4").mkdir()
    assert "is missing" in checksums.fault(place, "4")


def test_checksums_go_with_their_checkpoint_and_follow_no_link(place, tmp_path_factory):
    other = tmp_path_factory.mktemp("other") / "notes.txt"
    other.write_text("work")
    shutil.copytree(place / "4", place / "6")
    shutil.rmtree(place / "4")
    os.symlink(other, checksums.path_of(place, "6"))
    checksums.write(place, "6")
    assert other.read_text() == "work" and checksums.fault(place, "6") is None
    assert not checksums.path_of(place, "4").exists()
    assert set(json.loads(checksums.path_of(place, "6").read_text())["sha256"]) == set(FILES)


def test_each_file_is_in_the_share_of_one_process(place):
    for name in FILES:
        before = (place / "4" / name).read_bytes()
        (place / "4" / name).write_bytes(before + b"x")
        found = [checksums.fault(place, "4", share=(index, 3)) for index in range(3)]
        assert sum(f is not None for f in found) == 1, name
        (place / "4" / name).write_bytes(before)


def test_only_the_files_that_are_read_are_compared(place):
    flip(place / "4" / "default/d/0abc", 3)
    assert "0abc" in checksums.fault(place, "4")
    assert checksums.fault(place, "4", reads=lambda path: not path.startswith("default/d")) is None


def test_after_the_first_difference_no_other_file_is_begun(tmp_path, monkeypatch):
    (tmp_path / "4").mkdir()
    for name in "abcdefgh":
        (tmp_path / "4" / name).write_text(name)
    checksums.write(tmp_path, "4")
    begun, ending = [], threading.Event()

    def compare(path, *rest):
        begun.append(path.name)
        if path.name != "a":
            ending.wait(20)
        return f"differs {path.name}" if path.name == "a" else None

    class Pool(futures.ThreadPoolExecutor):
        def shutdown(self, wait=True, *, cancel_futures=False):
            super().shutdown(wait=False, cancel_futures=cancel_futures)
            ending.set()
            super().shutdown(wait)

    monkeypatch.setattr(checksums, "_difference", compare)
    monkeypatch.setattr(checksums, "READERS", 2)
    monkeypatch.setattr(checksums.futures, "ThreadPoolExecutor", Pool)
    monkeypatch.setattr(checksums, "_missing_manifest", lambda directory: None)
    path = checksums.path_of(tmp_path, "4")
    kept = json.loads(path.read_text())["sha256"]
    # The files are compared in the order of their sizes and digests: the wrong one is the first.
    kept["a"][0] = 0
    path.write_text(json.dumps({"sha256": kept}))
    assert checksums.fault(tmp_path, "4") == "its file a differs a"
    assert len(begun) <= 3


def test_work_is_announced_while_files_are_read(place, monkeypatch):
    monkeypatch.setattr(checksums, "BLOCK", 256)
    for act in (checksums.fault, checksums.write):
        told = itertools.count()
        act(place, "4", working=told.__next__)
        assert next(told) > len(FILES)


def test_an_address_has_no_checksums_of_ours():
    checksums.write("gs://bucket/run", "4")
    assert checksums.fault("gs://bucket/run", "4") is None
