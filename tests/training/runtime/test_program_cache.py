"""Compiled programs between commands: where they are kept, and who decides."""

import os
import pathlib
import subprocess
import sys

import jaxlib

from polgrad import cli
from polgrad.training.runtime import host_memory, program_cache

ASK = "import jax, polgrad.training, polgrad.losses; print(jax.config.jax_compilation_cache_dir)"


def python(code, *arguments, **variables):
    environment = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env=environment | {k: str(v) for k, v in variables.items()},
        capture_output=True,
        text=True,
        check=True,
    ).stdout


def test_the_folder_is_the_users_and_named_after_jaxlib_and_the_cpu(monkeypatch):
    at = program_cache.place({"XDG_CACHE_HOME": "/x"})
    assert at.parent == pathlib.Path("/x/polgrad") and jaxlib.__version__ in at.name
    assert program_cache.place({}).is_relative_to(pathlib.Path.home() / ".cache")
    monkeypatch.setattr(program_cache, "_machine", lambda: "other")
    assert program_cache.place({"XDG_CACHE_HOME": "/x"}) != at


def test_the_environment_wins_and_nothing_is_made(tmp_path):
    variables = {"XDG_CACHE_HOME": str(tmp_path), "JAX_COMPILATION_CACHE_DIR": "/mine"}
    assert program_cache.use(variables) is None
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_made_is_no_error(tmp_path):
    (tmp_path / "polgrad").write_text("a file")
    assert program_cache.use({"XDG_CACHE_HOME": str(tmp_path)}) is None


def test_an_import_sets_no_cache():
    assert python(ASK).strip() == "None"


def test_a_command_keeps_its_programs_unless_told_not_to(monkeypatch):
    asked = []
    monkeypatch.setattr(program_cache, "use", lambda: asked.append(1))
    monkeypatch.setattr(host_memory, "keep", lambda: None)
    arguments = ["sample", "--policy", "/no/such/policy", "--prompt", "a"]
    assert cli._run([*arguments, "--no-cache"]) == 2 and not asked
    assert cli._run(arguments) == 2 and asked
    asked.clear()
    assert cli._run(["list", "policies"]) == 0 and not asked


def test_what_is_compiled_lands_in_a_folder_of_the_user_alone(tmp_path):
    code = "from polgrad.training.runtime import program_cache as c; c.use(); import jax; "
    code += "jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.0); "
    code += "jax.jit(lambda x: jax.numpy.sin(x) @ x)(jax.numpy.ones((3, 3)))"
    python(code, XDG_CACHE_HOME=tmp_path)
    (folder,) = (tmp_path / "polgrad").glob("programs-*")
    assert folder.stat().st_mode & 0o077 == 0 and list(folder.glob("*-cache"))
