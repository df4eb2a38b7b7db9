"""Which files of a checkpoint hold an array: Orbax packs many arrays into few files.

A checkpoint is a database of TensorStore's OCDBT format. A tree of nodes names for each chunk of an
array the file, the place and the length of its bytes.
"""

import os
from pathlib import Path

DATA = "d"
"""The name of the folders that hold nodes and values, and nothing else."""


def files_of(item: str | os.PathLike, name: str) -> set[str] | None:
    """The files that reading a part of a checkpoint needs, of those that hold nodes and values.

    Args:
      item: the directory of the checkpoint's tree, on this machine.
      name: the first key of the part, such as `params`.

    Returns:
      Paths relative to `item`; None where the nodes cannot be read, or name no such part.
    """
    # The key of a part that is a single array ends with its name.
    wanted, found, matches = (f"{name}.".encode(), f"{name}/".encode()), set(), []

    def walk(location: str, prefix: bytes) -> None:
        found.add(_file(location))
        for entry in tensorstore.ocdbt.dump(base, location).result()["entries"]:
            if "location" in entry:
                # Keys below a node lack the beginning that they share.
                walk(entry["location"], prefix + entry["subtree_common_prefix"])
            elif (key := prefix + entry["key"]).startswith(wanted):
                matches.append(key)
                if "indirect_value" in entry:
                    found.add(_file(entry["indirect_value"]))

    try:
        import tensorstore

        base = tensorstore.KvStore.open({"driver": "file", "path": f"{item}{os.sep}"}).result()
        newest = tensorstore.ocdbt.dump(base).result()["versions"][-1]
        walk(newest["root"]["location"], b"")
    except (ValueError, LookupError, TypeError, RecursionError, OSError):
        return None
    except (ImportError, AttributeError):  # a version of tensorstore without this function
        return None
    return found if matches else None


def is_data(path: str) -> bool:
    """Whether a file of a checkpoint is one of those that hold nodes and values."""
    return Path(path).parent.name == DATA


def _file(location: str) -> str:
    """`value:ocdbt.process_0/:d/1965:0:55473` names a kind, a folder, a file in it and a place."""
    _, folder, path, _, _ = location.split(":")
    return f"{folder}{path}"
