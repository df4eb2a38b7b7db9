"""Memory that was freed is kept: the next block of the same size needs no new pages."""

import os
import subprocess
import sys

import pytest

from polgrad import cli
from polgrad.training.runtime import host_memory

FAULTS = """
import resource, sys
import numpy as np
from polgrad.training.runtime import host_memory
kept = host_memory.keep() if sys.argv[1] == "keep" else False
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def use():
    block = np.empty(5 * 2**29, np.uint8)  # more than 2 GiB: the heap's end is cut off by default
    block[: 2**27] = 1
use()
before = faults()
for _ in range(4):
    use()
print(int(kept), faults() - before)
"""


def run(argument):
    own = ("MALLOC_", "GLIBC_TUNABLES", "LD_PRELOAD")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(own)}
    out = subprocess.run(
        [sys.executable, "-c", FAULTS, argument],
        env=environment | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    return map(int, out.split())


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="of the GNU C library")
def test_a_block_is_written_again_without_new_pages():
    kept, faults = run("keep")
    if not kept:
        pytest.skip("another C library")
    assert faults < 100  # a fresh block would be 4 x 64 large pages and more


@pytest.mark.parametrize(
    "variables", [{"MALLOC_ARENA_MAX": "2"}, {"GLIBC_TUNABLES": ""}, {"LD_PRELOAD": "/x.so"}]
)
def test_the_environment_wins(variables):
    assert not host_memory.keep(variables)


def test_an_accelerators_host_is_left_alone(monkeypatch):
    monkeypatch.setattr(host_memory, "_on_cpu", lambda: False)
    assert not host_memory.keep({})


def test_commands_keep_memory(monkeypatch):
    asked = []
    monkeypatch.setattr(host_memory, "keep", lambda: asked.append(1))
    assert cli._run(["sample", "--policy", "/no/such/policy", "--prompt", "a", "--no-cache"]) == 2
    assert asked
    asked.clear()
    assert cli._run(["list", "policies"]) == 0 and not asked
