"""Safetensors files of a directory: which tensors there are, and reading them as float32."""

from pathlib import Path

import ml_dtypes  # noqa: F401  (teaches numpy the name bfloat16, which safetensors asks for)
import numpy as np

from polgrad._outside import read_json, reading
from polgrad.policies import entries

__all__ = ["HEADS_FILE", "INDEX_FILE", "Weights", "check_finite"]

# Scalar heads have no place in the family's own file, and engines refuse tensors they do not know.
HEADS_FILE = "polgrad_heads.safetensors"
INDEX_FILE = "model.safetensors.index.json"
_READ = ("F16", "BF16", "F32", "F64")


class Weights:
    """The tensors of one or several safetensors files, each file opened once.

    The header of a file is compared with its size before anything of its claims is believed, and
    a tensor's type and shape are known before its numbers are read.

    Args:
        files: name of each tensor to the file that holds it.

    Raises:
        OutsideError: a file that cannot be read, or that lacks one of its tensors.
    """

    def __init__(self, files: dict[str, Path]):
        self.files = files
        self._open = {file: _opened(file) for file in dict.fromkeys(files.values())}
        for file, opened in self._open.items():
            there = set(opened.keys())
            lacking = [n for n, held in files.items() if held == file and n not in there]
            if lacking:
                with reading(file):
                    raise ValueError(f"lacks the tensor {lacking[0]}, which {INDEX_FILE} promises")

    @classmethod
    def of_file(cls, file: Path) -> "Weights":
        """All tensors of one file.

        Args:
            file: the file.

        Returns:
            Its tensors.

        Raises:
            OutsideError: it cannot be read.
        """
        return cls(dict.fromkeys(_names(file), file))

    @classmethod
    def of_directory(cls, path: Path) -> "Weights":
        """All tensors of a model: those that an index names, or those of every file.

        Args:
            path: the directory. Files that an index names lie in it; they may be links, as they
                are in the hub's cache.

        Returns:
            The tensors.

        Raises:
            OutsideError: no safetensors file, one that cannot be read, an index that is none, or
                one that names a file outside of the directory.
        """
        index = path / INDEX_FILE
        if index.exists() or index.is_symlink():
            return cls(_indexed(index))
        files = sorted(f for f in path.glob("*.safetensors") if f.name != HEADS_FILE)
        if not files:
            with reading(path):
                raise ValueError(_no_weights(path))
        return cls({name: file for file in files for name in _names(file)})

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, from the header alone.

        Args:
            name: of the tensor.

        Returns:
            Its shape.
        """
        with reading(self.files[name]):
            return tuple(self._open[self.files[name]].get_slice(name).get_shape())

    def read(self, name: str) -> np.ndarray:
        """A tensor as float32.

        Args:
            name: of the tensor.

        Returns:
            The array.

        Raises:
            OutsideError: another type than float, or a number that is not finite in float32.
        """
        file = self.files[name]
        with reading(file):
            kind = self._open[file].get_slice(name).get_dtype()
            if kind not in _READ:
                raise ValueError(
                    f"tensor {name} is {kind}; quantised weights are not read, expected one of "
                    f"{', '.join(_READ)}"
                )
            with np.errstate(over="ignore"):  # what float64 holds beyond float32 becomes infinite
                array = self._open[file].get_tensor(name).astype(np.float32)
            check_finite(name, array)
            return array


def check_finite(name: str, array: np.ndarray) -> None:
    """Raises ValueError where a tensor holds a number that is not finite.

    Args:
        name: of the tensor, for the message.
        array: its numbers.

    Raises:
        ValueError: NaN or an infinity; names the tensor.
    """
    # Least and greatest take no memory, and NaN is in both.
    if array.size and not (np.isfinite(array.min()) and np.isfinite(array.max())):
        count = array.size - int(np.isfinite(array).sum())
        raise ValueError(f"tensor {name} holds {count} numbers that are not finite")


def _opened(file: Path):
    from safetensors import safe_open

    with reading(file):
        if not file.exists():
            raise ValueError("the file does not exist")
        if not file.is_file():
            raise ValueError("this is no file")
        return safe_open(file, "np")


def _names(file: Path) -> list[str]:
    return list(_opened(file).keys())


def _indexed(index: Path) -> dict[str, Path]:
    content = read_json(index)
    with reading(index):
        named = entries.mapping("weight_map", content.get("weight_map"))
        if not named:
            raise ValueError("weight_map is empty; expected the names of tensors and their files")
        for name, file in named.items():
            entries.text(f"weight_map.{name}", file)
            if file in ("", ".", "..") or Path(file).name != file or "\0" in file:
                raise ValueError(
                    f"weight_map.{name} is {entries.shown(file)}; expected a file of this "
                    "directory, without a path"
                )
        for file in sorted(set(named.values())):
            if not (index.parent / file).exists():
                raise ValueError(f"weight_map names {file}, which does not exist")
    return {name: index.parent / file for name, file in named.items()}


def _no_weights(path: Path) -> str:
    pickled = sorted(f.name for f in path.iterdir() if f.suffix in (".bin", ".pt", ".pth"))
    if not pickled:
        return "has no .safetensors file"
    return (
        f"holds pickled weights only ({pickled[0]}); unpickling runs code from the file, so "
        "polgrad reads safetensors: convert the checkpoint first"
    )
