"""Files that polgrad writes: whole or not at all, never through a link, by one process at a time."""

import contextlib
import errno
import fcntl
import os
import re
import secrets
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

__all__ = ["alone", "append", "sync", "write"]


def write(path: str | os.PathLike, content: str | bytes) -> None:
    """Replaces a file in one move: a reader sees the old content or the new one.

    The content goes to a new file beside it, which then takes the name. So a link at `path` is
    replaced, and what it points to stays as it is.

    Args:
      path: the file.
      content: text, written as UTF-8, or bytes.

    Raises:
      OSError: if it cannot be written; the old content then still stands.
    """
    path = Path(path)
    body = content.encode("utf-8") if isinstance(content, str) else content
    draft = path.with_name(f".{path.name[:100]}.{secrets.token_hex(6)}.new")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    handle = os.open(draft, flags, 0o666)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(body)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(draft)
        raise


def append(path: str | os.PathLike, text: str, *, durable: bool = False) -> None:
    """Adds text at the end of a file, which is made where it is missing.

    Args:
      path: the file; a link is refused.
      text: written as UTF-8.
      durable: return only when the text is on the disk.

    Raises:
      OSError: if it cannot be written.
    """
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW
    with os.fdopen(os.open(path, flags, 0o666), "ab") as file:
        file.write(text.encode("utf-8"))
        file.flush()
        if durable:
            os.fsync(file.fileno())


def sync(path: str | os.PathLike) -> None:
    """Returns when a file's content, or the names in a directory, are on the disk.

    Args:
      path: the file or the directory.

    Raises:
      OSError: if the disk does not take it.
    """
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a file system that cannot do so for a directory
            raise
    finally:
        os.close(handle)


@contextlib.contextmanager
def alone(directory: str | os.PathLike) -> Iterator[None]:
    """Locks a directory for this process. The system releases the lock when the process dies.

    Args:
      directory: an existing directory; the lock is its file `.lock`.

    Raises:
      ValueError: if another process holds it.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW
    with os.fdopen(os.open(Path(directory) / ".lock", flags, 0o666), "r+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                holder = file.read(300).decode("ascii", "replace").strip()
                known = re.fullmatch(r"process \d+ on [\w.-]+", holder, re.ASCII)
                who = holder if known else "another process"
                raise ValueError(
                    f"{directory} is in use by {who}, which is still running; wait for it, or give "
                    "another directory"
                ) from None
            # Some network file systems know no locks. Refusing them would refuse whole clusters.
            print(
                f"polgrad: {directory} cannot be locked ({error.strerror}); see to it that only one "
                "run uses it",
                file=sys.stderr,
            )
        else:
            file.truncate(0)
            # A number alone would be looked for on the wrong machine where hosts share the directory.
            holder = f"process {os.getpid()} on {socket.gethostname()}"
            file.write(holder.encode("ascii", "replace"))
            file.flush()
        yield
