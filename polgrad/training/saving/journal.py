"""The journal of scores, which makes resuming exact."""

import json
import os
import pathlib
import zlib

import numpy as np

from polgrad import _files, _outside
from polgrad.training.saving.lines import cut_short, read_lines, rewrite_lines


class ScoreJournal:
    """Scores of the steps since the last checkpoint, replayed when a run is resumed.

    A reward under a deadline may time out in one attempt and not in the next. The journal is
    flushed to disk before a step's update, so the steps that are run again see the same scores.
    Each process writes the scores of its own samples and reads those of all: a run that goes on
    with other processes deals the samples out anew.

    Args:
      directory: of the run; the journal is its `scores.jsonl`, with `scores-1.jsonl` and so on
        of further processes.
      process: which of them this is.
      decided_by: fingerprint of what decides a score. Scores with another one, or with none as
        those of earlier versions, are computed anew.

    Raises:
      ValueError: a line is not what the journal writes; the message names file and line.
    """

    def __init__(self, directory: str | os.PathLike, process: int = 0, decided_by: str = ""):
        directory = pathlib.Path(directory)
        self._path = directory / (f"scores-{process}.jsonl" if process else "scores.jsonl")
        self._decided_by = decided_by
        self._entries: list[dict] = []
        self._scores: dict[tuple[int, str, int, int], list] = {}
        for path in sorted(directory.glob("scores*.jsonl")):
            for number, entry in enumerate(read_lines(path), 1):
                _check_entry(entry, f"{path} line {number}")
                if entry.get("decided_by", "") != decided_by:
                    continue
                self._remember(entry)
                if path == self._path:
                    self._entries.append(entry)
        if self._path.is_symlink() or cut_short(self._path):
            # What is added must begin a line, and must not go through a link.
            rewrite_lines(self._path, self._entries)

    def _remember(self, entry: dict) -> None:
        for row, digest, score in zip(
            entry.get("rows", ()), entry.get("digests", ()), entry["scores"]
        ):
            self._scores[entry["step"], entry["name"], row, digest] = score

    def get(self, step: int, name: str, rows, completions: np.ndarray) -> list[list] | None:
        """The scores of samples, if these are the ones that were scored."""
        keys = [(step, name, int(r), _digest(c)) for r, c in zip(rows, completions)]
        found = [self._scores.get(key) for key in keys]
        return None if None in found else found

    def put(self, step: int, name: str, rows, completions: np.ndarray, scores: list[list]) -> None:
        """Writes the scores of samples to disk."""
        entry = {
            "step": step,
            "name": name,
            "decided_by": self._decided_by,
            "rows": [int(r) for r in rows],
            "digests": [_digest(c) for c in completions],
            "scores": scores,
        }
        entry["crc"] = _crc(entry)
        self._entries.append(entry)
        self._remember(entry)
        _files.append(self._path, json.dumps(entry) + "\n", durable=True)

    def cut(self, step: int) -> None:
        """Forgets the scores up to a step that a checkpoint now covers."""
        self._entries = [entry for entry in self._entries if entry["step"] > step]
        self._scores = {key: score for key, score in self._scores.items() if key[0] > step}
        rewrite_lines(self._path, self._entries)


def _check_entry(entry: dict, place: str) -> None:
    """Refuses a line of the journal that it did not write, or that has changed since."""
    kinds = {"name": str, "scores": list, "rows": list, "digests": list}
    wrong = [k for k, kind in kinds.items() if not isinstance(entry.get(k, kind()), kind)]
    missing = [k for k in ("name", "scores") if k not in entry]
    # Entries of earlier versions have no checksum.
    if wrong or missing or entry.get("crc", _crc(entry)) != _crc(entry):
        raise _outside.OutsideError(
            f"{place}: not a line of scores as the run wrote it; remove the file to have the "
            "samples scored again"
        )


def _crc(entry: dict) -> int:
    return zlib.crc32(json.dumps({k: v for k, v in entry.items() if k != "crc"}).encode())


def _digest(array: np.ndarray) -> int:
    return zlib.crc32(np.ascontiguousarray(array).tobytes())
