"""Checksums of checkpoints: a file beside each, written when it is complete, tested on reading.

The arrays of a checkpoint lie in compressed files that protect nothing: a bit that flips on a disk
gives other parameters without a word. `4.checksums.json` beside the directory `4` holds the size
and the SHA-256 of each of its files.

A checkpoint whose run was killed before its checksums were written has none. Such a checkpoint is
protected by its own manifests alone, and is accepted if they are whole. Checkpoints at an address
such as `gs://bucket` have no checksums of ours: the store compares its own on every transfer.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

from polgrad import _files, _outside

BLOCK = 8 * 2**20
READERS = 4
"""Files that are read at once; a digest is computed outside Python's lock."""


def path_of(root: str | os.PathLike, name: str) -> Path:
    """The file that holds the checksums of a checkpoint.

    Args:
      root: where the checkpoints are.
      name: of the checkpoint: its step, or `initial`.

    Returns:
      The path, whether there is such a file or not.
    """
    return Path(root) / f"{name}.checksums.json"


def is_local(root: str | os.PathLike) -> bool:
    """Whether checkpoints lie in a directory of this machine, and so have checksums."""
    return "://" not in str(root)


def write(root: str | os.PathLike, name: str, working: Callable[[], Any] = int) -> None:
    """Computes and keeps the checksums of a complete checkpoint.

    Args:
      root: where the checkpoints are; nothing is done for an address.
      name: of the checkpoint.
      working: is called after every block that was read.

    Raises:
      OSError: if a file cannot be read, or the checksums cannot be written.
    """
    if not is_local(root):
        return
    directory = Path(root) / name
    paths = list(_files_of(directory))
    with futures.ThreadPoolExecutor(READERS) as pool:
        found = pool.map(lambda path: _entry(directory / path, working), paths)
        entries = dict(zip(paths, found))
    _files.write(path_of(root, name), json.dumps({"sha256": entries}, separators=(",", ":")))
    forget_deleted(root)


def forget(root: str | os.PathLike, name: str) -> None:
    """Removes the checksums of a checkpoint that is about to be written anew."""
    if is_local(root):
        path_of(root, name).unlink(missing_ok=True)


def fault(
    root: str | os.PathLike,
    name: str,
    *,
    reads: Callable[[str], bool] = lambda path: True,
    share: tuple[int, int] = (0, 1),
    working: Callable[[], Any] = int,
) -> str | None:
    """What is wrong with a checkpoint's files.

    Args:
      root: where the checkpoints are.
      name: of the checkpoint.
      reads: which of its files are compared, by their paths in the checkpoint's directory.
      share: number of this process, and of how many that read the files together.
      working: is called after every block that was read.

    Returns:
      A sentence without a subject for the first file that differs; None where all are as they were
      written, or where there are no checksums and no file is missing that every checkpoint has.
    """
    if not is_local(root):
        return None
    directory, kept = Path(root) / name, path_of(root, name)
    if not directory.is_dir():
        return f"{directory} is missing"
    if not kept.exists():
        return _missing_manifest(directory)
    try:
        entries = _outside.read_json(kept)["sha256"]
        expected = {str(path): (int(size), digest) for path, (size, digest) in entries.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return f"its checksums in {kept.name} cannot be read ({_outside.reason(error)})"
    index, count = share
    # Dealt out by size, so that all processes read about as much.
    mine = sorted(filter(reads, expected), key=expected.__getitem__)[index::count]
    with futures.ThreadPoolExecutor(READERS) as pool:
        found = pool.map(lambda p: _difference(directory / p, *expected[p], working), mine)
        for path, difference in zip(mine, found):
            if difference:
                # Leaving the block would wait for the files that no reader has begun.
                pool.shutdown(cancel_futures=True)
                return f"its file {path} {difference}"
    return None


def has(root: str | os.PathLike, name: str) -> bool:
    """Whether there are checksums of a checkpoint."""
    return is_local(root) and path_of(root, name).exists()


def _files_of(directory: Path) -> Iterator[str]:
    for folder, _, names in os.walk(directory):
        for name in sorted(names):
            yield os.path.relpath(os.path.join(folder, name), directory)


def _entry(path: Path, working: Callable[[], Any]) -> tuple[int, str]:
    """Size and SHA-256 of a file, read in blocks."""
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
            size += len(block)
            working()
    return size, digest.hexdigest()


def _difference(path: Path, size: int, digest: str, working: Callable[[], Any]) -> str | None:
    try:
        if path.stat().st_size != size:
            return f"has {path.stat().st_size} bytes; expected {size}"
        return None if _entry(path, working)[1] == digest else "has other bytes than were written"
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"cannot be read ({error.strerror})"


def _missing_manifest(directory: Path) -> str | None:
    """Without checksums: the files that Orbax cannot do without are there and not empty."""
    item = directory / "default" if (directory / "default").is_dir() else directory
    for name in ("_METADATA", "manifest.ocdbt"):
        path = item / name
        if not path.is_file() or not path.stat().st_size:
            state = "is empty" if path.is_file() else "is missing"
            return f"its file {path.relative_to(directory)} {state}"
    return None


def forget_deleted(root: str | os.PathLike) -> None:
    """Removes the checksums of checkpoints that are no longer kept."""
    for path in Path(root).glob("*.checksums.json"):
        if not (Path(root) / path.name.removesuffix(".checksums.json")).is_dir():
            with contextlib.suppress(OSError):
                path.unlink()
