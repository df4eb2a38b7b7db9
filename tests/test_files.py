"""Files are written whole, not through links, and by one process at a time."""

import os
import re
import socket
import subprocess
import sys

import pytest

from polgrad import _files

HOST = re.escape(socket.gethostname())


def test_a_file_is_replaced_whole(tmp_path):
    path = tmp_path / "a.json"
    _files.write(path, "one")
    _files.write(path, b"two")
    assert path.read_text() == "two" and os.listdir(tmp_path) == ["a.json"]
    mask = os.umask(0o027)
    try:
        _files.write(path, "three")
    finally:
        os.umask(mask)
    assert path.stat().st_mode & 0o777 == 0o640


def test_a_link_is_replaced_and_what_it_points_to_stays(tmp_path):
    notes = tmp_path / "notes.txt"
    notes.write_text("mine")
    (tmp_path / "report.html").symlink_to(notes)
    _files.write(tmp_path / "report.html", "page")
    assert notes.read_text() == "mine"
    assert (tmp_path / "report.html").read_text() == "page"
    assert not (tmp_path / "report.html").is_symlink()


def test_text_is_not_appended_through_a_link(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "metrics.jsonl").symlink_to(tmp_path / "notes.txt")
    with pytest.raises(OSError):
        _files.append(tmp_path / "metrics.jsonl", "row\n")
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_write_that_fails_leaves_the_old_content(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    _files.write(path, "one")

    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        _files.write(path, "two")
    assert path.read_text() == "one" and os.listdir(tmp_path) == ["a.json"]


def test_a_directory_is_held_by_one_process(tmp_path):
    hold = (
        "import sys, time; from polgrad import _files\n"
        "with _files.alone(sys.argv[1]): print('held', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", hold, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    refused = pytest.raises(ValueError, match=f"in use by process {process.pid} on {HOST}, which")
    with refused, _files.alone(tmp_path):
        pass
    process.kill()
    process.wait()
    process.stdout.close()
    refused = pytest.raises(ValueError, match=f"in use by process {os.getpid()} on {HOST}, which")
    with _files.alone(tmp_path), refused, _files.alone(tmp_path):  # the dead hold nothing
        pass


def test_a_link_is_no_lock(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / ".lock").symlink_to(tmp_path / "notes.txt")
    with pytest.raises(OSError), _files.alone(tmp_path):
        pass
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_what_is_no_holder_is_not_shown(tmp_path):
    """The file may be an older one, or anything."""
    for text in ("4711", "process 1 on a\nprocess 2 on b", "\x1b[2J"):
        with _files.alone(tmp_path):
            (tmp_path / ".lock").write_text(text)
            with (
                pytest.raises(ValueError, match="in use by another process, which"),
                _files.alone(tmp_path),
            ):
                pass
