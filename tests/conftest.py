"""Settings that must be in place before jax is imported, and shared test profiles."""

import atexit
import collections
import os
import shutil
import sys
import tempfile
from pathlib import Path

# Processes that tests start inherit this, whatever they make of XLA_FLAGS.
os.environ["POLGRAD_FIX_COMPILER"] = "1"

from polgrad import _compilers

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# One thread a process: the arrays are tiny, and test workers share the machine.
# Eight simulated devices, for the tests that shard; the others use the first.
_FLAGS = "--xla_cpu_multi_thread_eigen=false --xla_force_host_platform_device_count=8"
# Thousands of tiny programs run once each, and more than half of the time went into compiling them
# well. `make test-slow`, whose programs run long, and the notebooks compile as users do.
_QUICK = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
if (_compilers.version() or "").startswith("0.10."):
    # 0.11.1 no longer knows this flag, and XLA ends a process that names an unknown one.
    _QUICK = f"{_QUICK} --xla_cpu_use_fusion_emitters=false"
if os.environ.get("POLGRAD_TESTS_COMPILE", "quick") == "quick":
    _FLAGS = f"{_FLAGS} {_QUICK}"
# What the caller sets comes last and wins.
os.environ["XLA_FLAGS"] = f"{_FLAGS} {os.environ.get('XLA_FLAGS', '')}".strip()
_compilers.protect()
# Places in the source, which no test looks at, make lowering a program slower.
os.environ.setdefault("JAX_TRACEBACK_IN_LOCATIONS_LIMIT", "0")
for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(variable, "1")

# Many tests train the same small policy: what one of them, or another worker, has compiled is not
# compiled again. The first process makes the folder and its workers inherit it.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="polgrad-tests-")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)

# pytest runs with --import-mode=importlib, which leaves sys.path alone.
sys.path.insert(0, str(Path(__file__).parent / "support"))

import hypothesis  # noqa: E402  (after the environment is set)
import pytest  # noqa: E402

hypothesis.settings.register_profile(
    "polgrad",
    deadline=None,  # the first example pays for a compilation
    max_examples=15,
    derandomize=True,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("polgrad")


@pytest.hookimpl(tryfirst=True)  # before pytest selects by marker
def pytest_collection_modifyitems(items):
    """Leaves most parameters of a test that is marked `sampled(n)` to `make test-slow`.

    The n that stay are spread evenly. Such a test proves one thing many times over, and the quick
    suite has to stay quick.
    """
    tests = collections.defaultdict(list)
    for item in items:
        if item.get_closest_marker("sampled") and not item.get_closest_marker("slow"):
            tests[item.nodeid.partition("[")[0]].append(item)
    for same in tests.values():
        (kept,) = same[0].get_closest_marker("sampled").args
        stay = {index * len(same) // kept for index in range(kept)}
        for index, item in enumerate(same):
            if index not in stay:
                item.add_marker(pytest.mark.slow)
