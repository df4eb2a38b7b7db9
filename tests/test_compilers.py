"""Right numbers from the compiler: which versions of jaxlib need a flag, and who sets it."""

import json
import os
import pathlib
import platform
import subprocess
import sys
import warnings

import eager
import jax
import numpy as np
import pytest

from polgrad import _compilers
from polgrad.experiments import cells

FAULT = _compilers.fault("cpu")
FLAG = "--xla_cpu_experimental_ynn_fusion_type="


def environment(**changes):
    """That of a user: none of the flags and caches that the tests run with."""
    ours = ("XLA_FLAGS", "POLGRAD_FIX_COMPILER", "JAX_COMPILATION_CACHE_DIR")
    kept = {name: value for name, value in os.environ.items() if name not in ours}
    return {**kept, "JAX_PLATFORMS": "cpu"} | changes


def errors(what, **changes):
    """What `eager.py` prints in a fresh process."""
    command = [sys.executable, eager.__file__, what]
    done = subprocess.run(
        command, env=environment(**changes), stdout=subprocess.PIPE, text=True, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def wrong(errors):
    """The cases whose error is larger than allowed."""
    return {name: error for name, error in errors.items() if not error <= 1}


def imports(code="import polgrad", **changes):
    """`XLA_FLAGS` after some code in a fresh process, and what the process printed as a warning."""
    code += "; import os, sys; print(os.environ.get('XLA_FLAGS', ''), 'jax' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment(**changes),
        capture_output=True,
        text=True,
        check=True,
    )
    flags, _, jax_loaded = done.stdout.strip("\n").rpartition(" ")
    return flags, done.stderr, jax_loaded == "True"


# --- The compiler itself --------------------------------------------------------------------------


def test_the_reproducers_fail_exactly_where_the_table_says_so():
    found = wrong(errors("reproducers"))
    if FAULT is None:
        assert not found
    elif platform.machine() == "x86_64":
        assert found, f"jaxlib {_compilers.version()} is right: take it out of the table"


@pytest.mark.skipif(FAULT is None, reason="this version of jaxlib needs no flag")
def test_the_flag_cures_a_version_of_the_table():
    assert not wrong(errors("reproducers", XLA_FLAGS=FAULT.flag))


def test_a_wrong_entry_is_an_error():
    right = np.ones(40_000, np.float32)
    one_wrong = right.copy()
    one_wrong[-1] = 1.01
    assert eager.error(one_wrong, right) > 1
    assert eager.error(np.full_like(right, np.nan), right) > 1
    assert eager.error(right * (1 + 1e-5), right) <= 1


def test_ten_functions_compiled_are_what_they_are_uncompiled(tmp_path):
    file = tmp_path / "compiled.npz"
    command = [sys.executable, eager.__file__, "shapes", str(file)]
    subprocess.run(command, env=environment(POLGRAD_FIX_COMPILER="1"), check=True)
    with jax.disable_jit():
        expected = eager.shapes()
    assert len(expected) == 10
    with np.load(file) as compiled:
        for name, leaves in expected.items():
            got = tuple(compiled[f"{name}/{i}"] for i in range(len(leaves)))
            assert eager.error(got, leaves) <= 1, name


@pytest.mark.slow
def test_every_loss_compiled_is_what_it_is_uncompiled():
    found = errors("losses", POLGRAD_FIX_COMPILER="1")
    assert len(found) > 50
    assert not wrong(found)


# --- Who sets the flag ----------------------------------------------------------------------------


@pytest.fixture
def faulty(monkeypatch):
    """As if the installed jaxlib were one of the table, and nothing were set."""
    monkeypatch.setattr(_compilers, "version", lambda: "0.10.2")
    monkeypatch.setattr(_compilers, "_jax_has_computed", lambda: False)
    for name in ("XLA_FLAGS", "POLGRAD_FIX_COMPILER"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")


@pytest.mark.parametrize(
    "version", ["0.10.0", "0.10.1", "0.10.2", "0.11.0", "0.11.1", "0.11.2", "0.12.0", None]
)
def test_only_versions_of_the_table_get_the_flag(monkeypatch, faulty, version):
    monkeypatch.setattr(_compilers, "version", lambda: version)
    known = version in ("0.10.2", "0.11.0", "0.11.1", "0.11.2")
    assert _compilers.protect() is known
    assert os.environ.get("XLA_FLAGS") == (FLAG if known else None)


@pytest.mark.parametrize(
    "platforms, appended",
    [("", True), ("cpu", True), ("cuda,cpu", True), ("tpu", False), ("cuda", False)],
)
def test_only_platforms_of_the_table_get_the_flag(faulty, platforms, appended):
    os.environ["JAX_PLATFORMS"] = platforms
    assert _compilers.protect() is appended
    assert (_compilers.fault() is not None) is appended
    assert _compilers.fault("cpu") is not None
    assert _compilers.fault("tpu") is None


def test_other_flags_stay_and_the_flag_is_appended_once(faulty):
    os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
    assert _compilers.protect()
    assert os.environ["XLA_FLAGS"] == f"--xla_force_host_platform_device_count=8 {FLAG}"
    assert not _compilers.protect()
    assert os.environ["XLA_FLAGS"].count(FLAG) == 1


@pytest.mark.parametrize("flags", [FLAG, f"{FLAG}dot --xla_other=1", f"  --xla_other=1 {FLAG}"])
def test_a_flag_that_the_user_named_stays(faulty, flags):
    os.environ["XLA_FLAGS"] = flags
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not _compilers.protect()
        _compilers.check_import()
    assert os.environ["XLA_FLAGS"] == flags


def test_a_file_of_flags_is_read(faulty, tmp_path):
    file = tmp_path / "flags"
    file.write_text("--xla_a=1\n--xla_b=2\n")
    os.environ["XLA_FLAGS"] = str(file)
    assert _compilers.protect()
    assert os.environ["XLA_FLAGS"] == f"--xla_a=1 --xla_b=2 {FLAG}"
    file.write_text(f"--xla_a=1\n{FLAG}\n")
    os.environ["XLA_FLAGS"] = str(file)
    assert not _compilers.protect()


def test_the_import_warns_and_sets_nothing(faulty):
    with pytest.warns(RuntimeWarning, match="jaxlib is 0.10.2.*0.10.1.*XLA_FLAGS=") as seen:
        _compilers.check_import()
    assert len(seen) == 1 and "\n" not in str(seen[0].message)
    assert "XLA_FLAGS" not in os.environ


def test_the_import_sets_the_flag_where_that_is_asked_for(faulty):
    os.environ["POLGRAD_FIX_COMPILER"] = "1"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _compilers.check_import()
    assert os.environ["XLA_FLAGS"] == FLAG


def test_a_flag_that_comes_too_late_is_told(monkeypatch, faulty):
    monkeypatch.setattr(_compilers, "_jax_has_computed", lambda: True)
    with pytest.warns(RuntimeWarning, match="jax has computed already"):
        _compilers.protect()


def test_it_is_known_whether_jax_has_computed(monkeypatch):
    jax.numpy.zeros(()).block_until_ready()
    assert _compilers._jax_has_computed()
    monkeypatch.delitem(sys.modules, "jax._src.xla_bridge")
    assert not _compilers._jax_has_computed()


@pytest.mark.parametrize(
    "interpreter, argv",
    [
        (["python", "/x/bin/polgrad"], ["/x/bin/polgrad", "train"]),
        (["python", "-m", "polgrad"], ["-m", "train", "-m"]),
        (["python", "-X", "dev", "-mpolgrad"], ["-m"]),
        (["python", "-Im", "polgrad.cli"], ["-m", "train"]),
    ],
)
def test_the_command_needs_no_warning(monkeypatch, faulty, interpreter, argv):
    monkeypatch.setattr(sys, "argv", argv)
    monkeypatch.setattr(sys, "orig_argv", [*interpreter, *argv[1:]])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _compilers.check_import()
    assert os.environ["XLA_FLAGS"] == FLAG


@pytest.mark.parametrize(
    "interpreter, argv",
    [
        (["python", "train.py"], ["train.py", "-m", "polgrad"]),
        (["python", "-m", "mine"], ["-m", "polgrad"]),
        (["python", "-c", "import polgrad"], ["-c", "polgrad.cli"]),
        (["python"], [""]),
    ],
)
def test_another_program_is_warned(monkeypatch, faulty, interpreter, argv):
    monkeypatch.setattr(sys, "argv", argv)
    monkeypatch.setattr(sys, "orig_argv", [*interpreter, *argv[1:]])
    with pytest.warns(RuntimeWarning, match="jaxlib is 0.10.2"):
        _compilers.check_import()
    assert "XLA_FLAGS" not in os.environ


def test_a_cell_of_a_sweep_is_protected(faulty, tmp_path):
    cell = cells.Cell("a", str(tmp_path / "nowhere.py"), {}, 1, (), True)
    assert cells.run(cell, str(tmp_path / "cell"))  # there is no such experiment
    assert os.environ["XLA_FLAGS"] == FLAG
    del os.environ["XLA_FLAGS"]
    file = tmp_path / "family" / "broken.py"
    file.parent.mkdir()
    error, _ = cells.packed(cell._replace(experiment=str(file)), "raise ValueError('no')")
    assert error
    assert os.environ["XLA_FLAGS"] == FLAG


@pytest.fixture
def as_of_the_table(tmp_path):
    """The search path of a process in which jaxlib seems to be 0.10.2."""
    (tmp_path / "jaxlib-0.10.2.dist-info").mkdir()
    root = pathlib.Path(_compilers.__file__).parents[1]
    return {"PYTHONPATH": f"{tmp_path}{os.pathsep}{root}"}


def test_a_fresh_import(as_of_the_table):
    flags, warned, jax_loaded = imports(**as_of_the_table)
    assert flags == "" and warned.count("jaxlib is 0.10.2") == 1 and not jax_loaded
    assert "<string>:1: RuntimeWarning" in warned  # the user's line, not one of polgrad's
    flags, warned, _ = imports(POLGRAD_FIX_COMPILER="1", **as_of_the_table)
    assert flags == FLAG and not warned
    flags, warned, _ = imports(JAX_PLATFORMS="tpu", **as_of_the_table)
    assert flags == "" and not warned


def test_the_command_line_sets_the_flag(as_of_the_table):
    code = (
        "import warnings; warnings.simplefilter('ignore'); from polgrad import cli\n"
        "try: cli.main(['--version'])\n"
        "except SystemExit: pass\n"
        "pass"
    )
    assert imports(code, **as_of_the_table)[0].splitlines()[-1] == FLAG


@pytest.mark.parametrize("module", ["polgrad", "polgrad.cli"])
def test_the_command_line_as_a_module_does_not_warn(as_of_the_table, module):
    done = subprocess.run(
        [sys.executable, "-m", module, "--version"],
        env=environment(**as_of_the_table),
        capture_output=True,
        text=True,
        check=True,
    )
    assert "0.10.2" not in done.stderr


def test_the_installed_version_is_found():
    assert _compilers.version() == jax.lib.__version__
