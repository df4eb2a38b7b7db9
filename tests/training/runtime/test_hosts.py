"""What hosts tell each other: barriers that name who is missing, and who works on which rows."""

import threading
import time
import types
from typing import NamedTuple

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from polgrad.training.config import Hosts
from polgrad.training.runtime import hosts
from polgrad.training.runtime.hosts import HostError, Processes
from polgrad.training.saving import checksums
from polgrad.training.saving.checkpoints import Checkpoints
from polgrad.training.saving.errors import DamagedError

POD = {"coordinator_address": "a:1", "num_processes": 4, "process_id": 2}
VARIABLES = {
    "JAX_COORDINATOR_ADDRESS": "a:1",
    "JAX_NUM_PROCESSES": "4",
    "JAX_PROCESS_ID": "2",
}


class Service:
    """A coordination service for threads: the calls of JAX's client that are used."""

    def __init__(self):
        self.values, self.changed = {}, threading.Condition()

    def key_value_set(self, key, value, allow_overwrite=False):
        with self.changed:
            if key in self.values and not allow_overwrite:
                raise jax.errors.JaxRuntimeError(f"ALREADY_EXISTS: key {key} already exists.")
            self.values[key] = value
            self.changed.notify_all()

    def blocking_key_value_get(self, key, milliseconds):
        with self.changed:
            if not self.changed.wait_for(lambda: key in self.values, milliseconds / 1000):
                raise jax.errors.JaxRuntimeError("DEADLINE_EXCEEDED")
            return self.values[key]

    def key_value_dir_get(self, place):
        with self.changed:
            return [(k, v) for k, v in self.values.items() if k.startswith(place + "/")]

    def key_value_delete(self, key):
        with self.changed:
            del self.values[key]


def together(program, count=3, deadline=20.0, service=None):
    """Runs `program(processes)` as so many processes; what each returned or raised."""
    service = service or Service()
    outcome = [None] * count

    def one(index):
        try:
            processes = Processes(deadline, client=service, index=index, count=count)
            outcome[index] = program(processes)
        except Exception as error:  # noqa: BLE001  (looked at by the test)
            outcome[index] = error

    threads = [threading.Thread(target=one, args=(i,)) for i in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return outcome


def test_all_get_what_each_did_in_the_order_of_the_processes():
    def program(processes):
        time.sleep(0.02 * (3 - processes.index))
        return processes.gather("a", lambda: [processes.index])

    assert together(program) == [[[0], [1], [2]]] * 3


def test_one_process_needs_no_service():
    alone = Processes(index=0, count=1)
    assert alone.first and alone.gather("a", lambda: np.arange(2))[0].tolist() == [0, 1]
    alone.agree("b", lambda: 1)


def test_who_does_not_come_is_named_after_the_deadline():
    def program(processes):
        if processes.index == 1:
            return None
        began = time.monotonic()
        with pytest.raises(
            HostError, match=r"process 1 \(.+\) did not come to 'rewards of step 7'"
        ):
            processes.gather("rewards of step 7", int)
        return time.monotonic() - began

    waited = together(program, deadline=0.5)
    assert waited[1] is None and all(0.4 < w < 5 for w in (waited[0], waited[2])), waited


def test_a_failure_is_raised_where_it_happened_and_told_to_the_others():
    def program(processes):
        def work():
            if processes.index == 2:
                raise ValueError("no such file")
            return 0

        return processes.gather("problems", work)

    first, second, failed = together(program)
    assert isinstance(failed, ValueError)
    for other in (first, second):
        assert isinstance(other, HostError)
        assert "process 2" in str(other) and "ValueError: no such file" in str(other)


def test_what_the_first_does_alone_is_known_to_all_and_so_is_its_failure():
    done = []

    def program(processes):
        assert processes.alone("a", lambda: done.append(processes.index) or "said") == "said"
        return processes.alone("metrics", lambda: open("/nowhere/metrics.jsonl"))

    failed, *others = together(program)
    assert done == [0] and isinstance(failed, FileNotFoundError)
    for other in others:
        assert isinstance(other, HostError)
        assert "process 0" in str(other) and "failed at metrics: FileNotFoundError" in str(other)


def test_a_failure_between_two_meetings_is_told_at_the_next():
    def program(processes):
        processes.gather("a", int)
        if processes.index == 1:
            processes.fail(OSError(28, "No space left on device"))
            return processes.failed
        with pytest.raises(HostError, match=r"process 1 .* failed: OSError: .*No space left"):
            processes.gather("b", int)
        return processes.failed

    assert together(program) == [True] * 3


def test_a_failure_explains_the_program_that_fails_with_it():
    def program(processes):
        if processes.index == 1:
            return processes.fail(OSError("no space left"))
        ends = time.monotonic() + 20
        while not (told := processes._told()) and time.monotonic() < ends:
            time.sleep(0.01)
        return told and processes.lost(RuntimeError("connection reset"), wait=0.1)

    first, _, third = together(program)
    assert "process 1" in str(first) and "OSError: no space left" in str(first) == str(third)


def test_who_says_that_it_works_is_waited_for_beyond_the_deadline():
    def program(processes):
        def work():
            ends = time.monotonic() + 2.5
            while processes.index == 1 and time.monotonic() < ends:
                time.sleep(0.02)
                processes.working()
            return processes.index

        return processes.gather("files", work)

    assert together(program, deadline=1.0) == [[0, 1, 2]] * 3


def test_processes_read_a_checkpoint_together_and_end_alike(tmp_path):
    for step in ("2", "4"):
        for name in ("_METADATA", "manifest.ocdbt", "d/a", "d/b"):
            path = tmp_path / step / "default" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(name)
        checksums.write(tmp_path, step)

    def program(processes):
        checkpoints = Checkpoints.__new__(Checkpoints)
        checkpoints._root, checkpoints._processes = epath.Path(tmp_path), processes
        return checkpoints.check(4)

    assert together(program) == [None] * 3
    (tmp_path / "4" / "default" / "d" / "b").write_text("x")
    lines = together(program)
    assert all(isinstance(line, DamagedError) for line in lines)
    assert len({str(line) for line in lines}) == 1
    assert "d/b has 1 bytes" in str(lines[0]) and "give --resume-from 2" in str(lines[0])


def test_processes_at_different_places_are_told_so():
    outcome = together(lambda p: p.gather("a" if p.index else "b", int))
    assert all(isinstance(o, HostError) for o in outcome)
    assert "'a'" in str(outcome[0]) and "'b'" in str(outcome[0])


def test_what_must_agree_is_compared():
    assert together(lambda p: p.agree("shapes", lambda: {"x": [2, 3]})) == [None] * 3
    outcome = together(lambda p: p.agree("shapes", lambda: {"x": 2 + (p.index == 2)}))
    for error in outcome:
        assert isinstance(error, HostError)
        assert "{'x': 2} on process 0" in str(error) and "{'x': 3} on process 2" in str(error)


def test_a_long_run_leaves_nothing_behind_in_the_service():
    service = Service()
    together(lambda p: [p.gather(f"step {i}", int) for i in range(20)], service=service)
    assert len(service.values) <= 2 * 3


def test_a_failed_program_tells_who_does_not_answer():
    def program(processes):
        if processes.index == 1:
            return None
        return processes.lost(RuntimeError("connection reset\nmore"), wait=1.0)

    first, _, third = together(program)
    for error in (first, third):
        assert isinstance(error, HostError) and "no answer from: process 1" in str(error)
        assert "connection reset)" in str(error) and "process 0" not in str(error)


@pytest.mark.parametrize(
    "settings, variables, expected",
    [
        (Hosts(), {}, None),
        (Hosts(), VARIABLES, POD),
        (Hosts(coordinator="a:1", processes=4, process=2), {}, POD),
        (Hosts(process=3), VARIABLES, POD | {"process_id": 3}),
        (Hosts(auto=True), {}, {}),
        (Hosts(), {"SLURM_STEP_NODELIST": "n[1-4]", "SLURM_NTASKS": "4"}, {}),
        (Hosts(), {"SLURM_NTASKS": "4"}, None),
        (Hosts(), {"SLURM_STEP_NODELIST": "n1", "SLURM_NTASKS": "1"}, None),
        (Hosts(), {"TPU_WORKER_HOSTNAMES": "a,b"}, {}),
        (Hosts(), {"TPU_WORKER_HOSTNAMES": "a"}, None),
        (Hosts(), {"OMPI_COMM_WORLD_SIZE": "2"}, {}),
        (Hosts(), {"MEGASCALE_NUM_SLICES": "2"}, {}),
    ],
)
def test_who_to_join_comes_from_flags_then_environment_then_launcher(settings, variables, expected):
    assert hosts._arguments(settings, variables) == expected


@pytest.mark.parametrize(
    "settings, variables, message",
    [
        (Hosts(coordinator="a:1"), {}, "missing: --hosts.processes, --hosts.process"),
        (Hosts(processes=2, process=0), {}, "missing: --hosts.coordinator"),
        (
            Hosts(coordinator="a:1", processes=2, process=2),
            {},
            "hosts.process is 2; expected 0 to 1",
        ),
        (Hosts(), VARIABLES | {"JAX_PROCESS_ID": "two"}, "JAX_PROCESS_ID is 'two'"),
        (Hosts(deadline=0), {}, "hosts.deadline is 0"),
    ],
)
def test_half_of_what_is_needed_is_refused(settings, variables, message):
    with pytest.raises(ValueError, match=message):
        hosts.join(settings, variables)


class Device(NamedTuple):
    block: int
    process_index: int


def layout(blocks):
    """A sharding that puts block k of the rows on devices of the processes in `blocks[k]`."""

    def devices_indices_map(shape):
        size = shape[0] // len(blocks)
        return {
            Device(k, p): (slice(k * size, (k + 1) * size),)
            for k, holders in enumerate(blocks)
            for p in holders
        }

    return types.SimpleNamespace(devices_indices_map=devices_indices_map)


@hypothesis.given(
    st.lists(st.sets(st.integers(0, 3), min_size=1), min_size=1, max_size=4), st.integers(1, 6)
)
def test_every_row_has_one_owner_that_holds_it(blocks, size):
    count = size * len(blocks)
    owned = [hosts.own_rows(layout(blocks), count, p) for p in range(4)]
    assert sorted(np.concatenate(owned).tolist()) == list(range(count))
    for process, rows in enumerate(owned):
        assert all(process in blocks[row // size] for row in rows)


def test_rows_that_several_hold_are_dealt_out_evenly():
    owned = [hosts.own_rows(layout([{0, 1}]), 8, p).tolist() for p in (0, 1)]
    assert owned == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_shapes_tell_arrays_of_another_size_or_type_apart():
    batch = {"a": jnp.zeros((2, 3)), "b": np.zeros(4, np.int32)}
    same = hosts.shapes({"a": jnp.ones((2, 3)), "b": np.ones(4, np.int32)})
    assert hosts.shapes(batch) == same and same["['a']"] == "float32[2, 3]"
    assert hosts.shapes(batch)["hash"] != hosts.shapes(batch | {"a": jnp.zeros((3, 2))})["hash"]
    assert hosts.shapes(batch)["hash"] != hosts.shapes(batch | {"b": np.zeros(4)})["hash"]
