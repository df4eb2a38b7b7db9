"""The files that hold a part of a checkpoint."""

import pathlib
import sys

import numpy as np
import pytest
import tensorstore

from polgrad.training.saving import ocdbt


@pytest.mark.parametrize("node_bytes", [300, 10**6])
def test_the_files_of_a_part_are_enough_to_read_it_and_not_all(tmp_path, node_bytes):
    store = tensorstore.KvStore.open(
        {
            "driver": "ocdbt",
            "base": f"file://{tmp_path}/",
            "config": {"max_decoded_node_bytes": node_bytes, "max_inline_value_bytes": 2},
            "target_data_file_size": 200,
        }
    ).result()
    names = [f"{part}.k{i}/0" for part in ("optimizer", "params", "params_too") for i in range(40)]
    with tensorstore.Transaction() as transaction:
        for name in names:
            store.with_transaction(transaction)[name] = name.encode() * 3
    found = ocdbt.files_of(tmp_path, "params")
    rest = [p for p in (tmp_path / "d").iterdir() if f"d/{p.name}" not in found]
    assert rest and all(ocdbt.is_data(name) for name in found)
    for path in rest:
        path.unlink()
    again = tensorstore.KvStore.open({"driver": "ocdbt", "base": f"file://{tmp_path}/"}).result()
    for name in names[40:80]:
        assert again[name] == name.encode() * 3


@pytest.mark.parametrize("damage", ["missing", "cut", "noise"])
def test_of_nodes_that_cannot_be_read_nothing_is_told(tmp_path, damage):
    store = tensorstore.KvStore.open({"driver": "ocdbt", "base": f"file://{tmp_path}/"}).result()
    store["params.k/0"] = b"x" * 2000
    assert ocdbt.files_of(tmp_path, "params")
    for path in [tmp_path / "manifest.ocdbt", *(tmp_path / "d").iterdir()]:
        body = path.read_bytes()
        if damage == "missing":
            path.unlink()
        else:
            path.write_bytes(body[:-1] if damage == "cut" else np.random.default_rng(0).bytes(99))
        if path.parent == tmp_path:
            assert ocdbt.files_of(tmp_path, "params") is None
    assert ocdbt.files_of(tmp_path, "params") is None


def test_a_part_that_is_one_array_is_found_and_an_unknown_part_is_not(tmp_path):
    store = tensorstore.KvStore.open({"driver": "ocdbt", "base": f"file://{tmp_path}/"}).result()
    for name in ("params/0", "params_too/0", "other.k/0"):
        store[name] = name.encode() * 300
    files = [ocdbt.files_of(tmp_path, name) for name in ("params", "params_too", "other")]
    assert all(files) and len({*map(frozenset, files)}) == 3
    assert ocdbt.files_of(tmp_path, "param") is None
    # A short value lies in a node, and not in a file of its own.
    store["short.k/0"] = b"x"
    assert ocdbt.files_of(tmp_path, "short")


@pytest.mark.parametrize("lacking", ["the package", "the function", "the store"])
def test_without_the_library_that_reads_nodes_nothing_is_told(tmp_path, monkeypatch, lacking):
    store = tensorstore.KvStore.open({"driver": "ocdbt", "base": f"file://{tmp_path}/"}).result()
    store["params.k/0"] = b"x" * 2000
    if lacking == "the package":
        monkeypatch.setitem(sys.modules, "tensorstore", None)
    elif lacking == "the function":
        monkeypatch.delattr(tensorstore.ocdbt, "dump")
    else:

        def refuse(*given):
            raise ValueError("NOT_FOUND")

        monkeypatch.setattr(tensorstore.KvStore, "open", refuse)
    assert ocdbt.files_of(tmp_path, "params") is None
    setup = (pathlib.Path(__file__).parents[3] / "setup.py").read_text()
    assert '"tensorstore>=' in setup
