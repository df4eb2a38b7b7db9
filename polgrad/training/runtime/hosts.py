"""The processes of a run: how they find each other, and how they agree on host-side work.

A pod runs one process a host. All compute the same programs, in step; what each does on its own
(rewards, reading files) must be exchanged, and waited for, before the next program that they run
together: a collective gives no name to whom it misses, and on some networks gives up after half
a minute. `Processes.gather` is that exchange. It goes through JAX's coordination service and not
through the devices, so it may wait as long as it is told to, and says which host did not come.
"""

import contextlib
import json
import os
import pathlib
import re
import socket
import time
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from polgrad import _ranges
from polgrad._outside import reason
from polgrad.training.config import Hosts


class HostError(RuntimeError):
    """A process of the run that did not come, failed, or is at another place."""


def join(settings: Hosts, environment: Mapping[str, str] | None = None) -> "Processes":
    """Makes this process one of a run's, before anything touches a device.

    Does nothing where settings and environment speak of one process, or where the caller has
    initialised `jax.distributed` already.

    Args:
      settings: who to join; empty fields are taken from the environment
        (`JAX_COORDINATOR_ADDRESS`, `JAX_NUM_PROCESSES`, `JAX_PROCESS_ID`), or found by JAX on a
        TPU pod, under Slurm's `srun` or Open MPI's `mpirun`.
      environment: `os.environ`.

    Returns:
      The processes.

    Raises:
      ValueError: for settings that contradict each other or name half of what is needed.
      HostError: if the others cannot be reached within the deadline.
    """
    environment = os.environ if environment is None else environment
    _ranges.check(settings, "hosts")
    if not jax.distributed.is_initialized():
        arguments = _arguments(settings, environment)
        if arguments is not None:
            _initialize(arguments, settings.deadline)
    return Processes(settings.deadline)


def _initialize(arguments: dict[str, Any], deadline: float) -> None:
    """Joins the others; what goes wrong there is told in one line."""
    address, index = arguments.get("coordinator_address"), arguments.get("process_id")
    if address and index == 0:
        _check_free(address)
    elif address and index:
        _wait_for(address, deadline)
    try:
        jax.distributed.initialize(**arguments, initialization_timeout=max(1, int(deadline)))
    except (ValueError, KeyError) as error:
        # What JAX says where it was to find the processes itself and no launcher tells of any.
        raise ValueError(
            f"hosts.auto: JAX finds no launcher that tells it the processes ({reason(error)}); give "
            "hosts.coordinator, hosts.processes and hosts.process"
        ) from error
    except RuntimeError as error:
        place = arguments.get("coordinator_address", "the coordinator")
        raise HostError(
            f"cannot join the run at {place} within {deadline:g} s (hosts.deadline): {reason(error)}"
        ) from error


def _arguments(settings: Hosts, environment: Mapping[str, str]) -> dict[str, Any] | None:
    """What `jax.distributed.initialize` is called with; None where there is one process."""
    given = {
        "coordinator_address": settings.coordinator or environment.get("JAX_COORDINATOR_ADDRESS"),
        "num_processes": _number(settings.processes, "JAX_NUM_PROCESSES", environment),
        "process_id": _number(settings.process, "JAX_PROCESS_ID", environment),
    }
    missing = [name for name, value in given.items() if value is None]
    if settings.auto or (len(missing) == 3 and several(environment)):
        return {name: value for name, value in given.items() if value is not None}
    if len(missing) == 3:
        return None
    if missing:
        flags = {"coordinator_address": "coordinator", "num_processes": "processes"}
        names = [f"--hosts.{flags.get(name, 'process')}" for name in missing]
        raise ValueError(
            "hosts.coordinator, hosts.processes and hosts.process go together (or "
            "JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID, or hosts.auto); "
            f"missing: {', '.join(names)}"
        )
    _check_address(given["coordinator_address"])
    count, index = given["num_processes"], given["process_id"]
    if count < 1:
        raise ValueError(f"JAX_NUM_PROCESSES is {count}; expected at least 1")
    if not 0 <= index < count:
        raise ValueError(f"hosts.process is {index}; expected 0 to {count - 1} (hosts.processes)")
    return given


def _number(given: int | None, name: str, environment: Mapping[str, str]) -> int | None:
    text = environment.get(name)
    if given is not None or text is None:
        return given
    if not re.fullmatch("[0-9]{1,9}", text):
        raise ValueError(f"environment variable {name} is {text!r:.80}; expected a number")
    return int(text)


def _check_free(address: str) -> None:
    """Whether the first process can listen. JAX crashes where somebody else does."""
    port = int(address.rpartition(":")[2])
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as there:
        there.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            there.bind(("", port))
        except OSError as error:
            raise ValueError(
                f"hosts.coordinator is {address!r}, but this process cannot listen at port {port}: "
                f"{reason(error)}"
            ) from None


def _wait_for(address: str, deadline: float) -> None:
    """Waits until the first process listens. JAX ends the process where nobody does in time."""
    host, _, port = address.rpartition(":")
    ends = time.monotonic() + deadline
    while True:
        try:
            with socket.create_connection((host.strip("[]"), int(port)), timeout=5):
                return
        except OSError as error:
            told = reason(error)
        if time.monotonic() >= ends:
            raise HostError(
                f"nobody listens at hosts.coordinator {address} after {deadline:g} s "
                f"(hosts.deadline): {told}"
            )
        time.sleep(min(0.5, max(0.0, ends - time.monotonic())))


def _check_address(address: str) -> None:
    """JAX waits minutes for an address that cannot be one, and then ends the process."""
    match = re.fullmatch(r"([^\s:/]+|\[[0-9a-fA-F:.]+\]):([0-9]{1,5})", address)
    if match is None or not 0 < int(match[2]) < 65536:
        raise ValueError(
            f"hosts.coordinator is {address!r:.120}; expected host:port of the first process, such as "
            "10.0.0.1:8476"
        )


def several(environment: Mapping[str, str]) -> bool:
    """Whether a launcher that JAX knows has started several processes.

    Run by each host for itself, a pod's command would train as many copies as there are hosts.
    """
    counts = [environment.get(n, "1") for n in ("OMPI_COMM_WORLD_SIZE", "MEGASCALE_NUM_SLICES")]
    if "SLURM_STEP_NODELIST" in environment:  # inside srun, not in salloc's own shell
        counts.append(environment.get("SLURM_NTASKS", "1"))
    addresses = [environment.get(n, "") for n in ("TPU_WORKER_HOSTNAMES", "TPU_PROCESS_ADDRESSES")]
    return any(c.isdigit() and int(c) > 1 for c in counts) or any("," in a for a in addresses)


class Processes:
    """What the processes of a run tell each other.

    Args:
      deadline: seconds that one waits for the others, counted anew when one of them says that it
        is still at work (`working`).
      client: JAX's coordination client; that of `jax.distributed` when left out.
      index: this process's number.
      count: of all processes.
    """

    def __init__(self, deadline: float = 600.0, *, client=None, index=None, count=None):
        self.index = jax.process_index() if index is None else index
        self.count = jax.process_count() if count is None else count
        self.deadline = deadline
        self.failed = False
        """Whether a process of the run has failed, so that not all will meet again."""
        self._round = 0
        self._said = 0.0
        if self.count > 1:
            self._client = _client() if client is None else client
            self._names = ["?"] * self.count
            self._names = self.gather("hosts of the run", socket.gethostname)

    @property
    def first(self) -> bool:
        """Whether this process writes what is written once."""
        return self.index == 0

    def gather(self, name: str, work: Callable[[], Any]) -> list[Any]:
        """Does `work` here and returns what every process's work gave, in their order.

        All processes call it with the same names in the same order, and none returns before all
        have come: between host-side work and a program with collectives it is the barrier.

        Args:
          name: what is being done, for messages.
          work: a function; what it returns goes through JSON.

        Returns:
          One result a process.

        Raises:
          HostError: if a process does not come within the deadline, failed in its `work`, or is at
            another place of the program. What `work` itself raises is raised here, after the
            others have been told.
        """
        if self.count == 1:
            return [work()]
        try:
            value = work()
        except Exception as error:
            self.fail(error, name)
            raise
        self._say({"name": name, "value": value})
        place = f"polgrad/{self._round}"
        messages = self._collect(place, name)
        if self._round > 1:
            # Who has come to this round has read the one before it.
            self._client.key_value_delete(f"polgrad/{self._round - 1}/{self.index}")
        for index, other in enumerate(messages):
            if "error" in other:
                raise self._failure(index, other)
            if other["name"] != name:
                self.failed = True
                raise HostError(
                    f"{self.who(index)} is at {other['name']!r}, {self.who(self.index)} at "
                    f"{name!r}: their runs are not the same"
                )
        return [other["value"] for other in messages]

    def alone(self, name: str, work: Callable[[], Any]) -> Any:
        """Does `work` on the first process alone, while the others wait for it.

        Args:
          name: as for `gather`.
          work: as for `gather`.

        Returns:
          What `work` gave, on every process.

        Raises:
          HostError: as `gather`.
        """
        return self.gather(name, lambda: work() if self.first else None)[0]

    def fail(self, error: BaseException, name: str = "") -> None:
        """Tells the others, at their next meeting, that this process will not come to it.

        Args:
          error: why.
          name: what was being done, for their message.
        """
        if self.count == 1 or self.failed:
            return
        self.failed = True
        text = " ".join(f"{type(error).__name__}: {error}".split())
        with contextlib.suppress(jax.errors.JaxRuntimeError):  # the coordinator may be gone
            self._say({"name": name, "error": text})

    def _say(self, message: dict[str, Any]) -> None:
        text = json.dumps(message)
        self._round += 1
        self._client.key_value_set(f"polgrad/{self._round}/{self.index}", text)

    def working(self) -> None:
        """Says that this process is still at work: the others go on waiting for it.

        To be called again and again by work that may take longer than the deadline.
        """
        now = time.monotonic()
        if self.count > 1 and now - self._said > self.deadline / 20:
            self._said = now
            self._client.key_value_set(
                f"polgrad/working/{self.index}", str(now), allow_overwrite=True
            )

    def _signs(self) -> list[tuple[str, str]] | None:
        """What processes have said of their work; None where the coordinator is gone."""
        try:
            return sorted(self._client.key_value_dir_get("polgrad/working"))
        except jax.errors.JaxRuntimeError:
            return None

    def _collect(self, place: str, name: str) -> list[dict[str, Any]]:
        ends, signs = time.monotonic() + self.deadline, None
        messages: list[dict[str, Any]] = []
        while len(messages) < self.count:
            key, left = f"{place}/{len(messages)}", max(0.001, ends - time.monotonic())
            # Asked in parts, so that a sign of work within the last part counts.
            part = max(1, int(1000 * min(left, self.deadline / 5)))
            try:
                messages.append(json.loads(self._client.blocking_key_value_get(key, part)))
                continue
            except jax.errors.JaxRuntimeError as error:
                missed = error
            before, signs = signs, self._signs()
            if signs and before is not None and signs != before:
                ends = time.monotonic() + self.deadline
            elif signs is None or time.monotonic() >= ends:
                self.failed = True
                raise HostError(self._missing(place, name, missed))
        return messages

    def _missing(self, place: str, name: str, error: Exception) -> str:
        try:
            came = self._present(place)
        except jax.errors.JaxRuntimeError:
            return f"the coordinator, {self.who(0)}, is gone: {error}"
        absent = ", ".join(self.who(i) for i in range(self.count) if i not in came)
        return (
            f"{absent or 'a process'} did not come to {name!r} within {self.deadline:g} s "
            "(hosts.deadline)"
        )

    def lost(self, error: Exception, wait: float = 10.0) -> HostError:
        """What to raise when a program that all run together has failed: who is not there.

        Args:
          error: of the program.
          wait: seconds that the others have to answer.
        """
        place = "polgrad/lost"
        came = {self.index}
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            if told := self._told():
                return told
            self._client.key_value_set(f"{place}/{self.index}", "")
            ends = time.monotonic() + wait
            while len(came) < self.count and time.monotonic() < ends:
                time.sleep(0.1)
                came |= self._present(place)
        reason = str(error).splitlines()[0]
        absent = ", ".join(self.who(i) for i in range(self.count) if i not in came)
        return HostError(
            f"a program of all hosts failed ({reason}); no answer from: {absent or 'none missing'}. "
            "Start all again with --resume"
        )

    def _told(self) -> HostError | None:
        """The failure that a process has told where all would have met next."""
        for key, text in self._client.key_value_dir_get(f"polgrad/{self._round + 1}"):
            message = json.loads(text)
            if "error" in message:
                return self._failure(int(key.rpartition("/")[2]), message)
        return None

    def _failure(self, index: int, message: Mapping[str, Any]) -> HostError:
        self.failed = True
        at = f" at {message['name']}" if message["name"] else ""
        return HostError(f"{self.who(index)} failed{at}: {message['error']}")

    def _present(self, place: str) -> set[int]:
        return {int(key.rpartition("/")[2]) for key, _ in self._client.key_value_dir_get(place)}

    def who(self, index: int) -> str:
        """A process by number and host name."""
        return f"process {index} ({self._names[index]})"

    def agree(self, name: str, work: Callable[[], Any]) -> None:
        """Does `work` and compares what it gives, which must be the same on every process.

        Args:
          name: what is compared.
          work: a function that returns plain data.

        Raises:
          HostError: as `gather`, or if a value differs; both are shown.
        """
        values = self.gather(name, work)
        for index, other in enumerate(values):
            if other != values[0]:
                raise HostError(
                    f"{name} differs between hosts: {_short(values[0])} on {self.who(0)}, "
                    f"{_short(other)} on {self.who(index)}"
                )


def joined() -> bool:
    """Whether JAX has brought this process together with others."""
    return _client() is not None


def end_together() -> None:
    """Waits until all processes end in order. After that, this one may leave at once."""
    if joined():
        jax.distributed.shutdown()


def part(wait: float = 5.0) -> None:
    """To be called before a process ends early: the first one waits until the others have gone.

    It holds the coordinator, and JAX aborts the processes that lose it, whatever they were saying.

    Args:
      wait: seconds that the first process gives the others, of which some may be dead.
    """
    client, place = _client(), "polgrad/parted"
    if client is None:
        return
    with contextlib.suppress(jax.errors.JaxRuntimeError):
        client.key_value_set(f"{place}/{jax.process_index()}", "")
        ends = time.monotonic() + wait
        while jax.process_index() == 0 and time.monotonic() < ends:
            if len(client.key_value_dir_get(place)) == jax.process_count():
                time.sleep(0.5)  # from saying so to being gone
                return
            time.sleep(0.1)


def _client():
    """JAX's coordination client. It has no public name; Orbax takes it from the same place."""
    from jax._src import distributed

    return distributed.global_state.client


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 300 else text[:297] + "..."


def shapes(tree: Any) -> dict[str, str]:
    """Shape and type of every array of a batch, with a hash of them all: what hosts compare."""
    found = {
        jax.tree_util.keystr(path): f"{np.dtype(x.dtype).name}{list(x.shape)}"
        for path, x in jax.tree_util.tree_leaves_with_path(tree)
    }
    return {"hash": f"{zlib.crc32(json.dumps(found, sort_keys=True).encode()):08x}", **found}


def own_rows(sharding: jax.sharding.Sharding, count: int, index: int) -> np.ndarray:
    """The rows of a batch that a process works on: some of those that lie on its devices.

    Every row has one owner. Rows that several processes hold (a tensor axis across hosts, a batch
    that is not split) are dealt out among them.

    Args:
      sharding: of an array whose leading axis is the batch's.
      count: rows.
      index: of the process.

    Returns:
      Row numbers, rising.
    """
    holders: dict[tuple[int, int], set[int]] = {}
    for device, (rows, *_) in sharding.devices_indices_map((count,)).items():
        start, stop, _ = rows.indices(count)
        holders.setdefault((start, stop), set()).add(device.process_index)
    own = []
    for (start, stop), held_by in sorted(holders.items()):
        parts = np.array_split(np.arange(start, stop), len(held_by))
        own += [part for part, holder in zip(parts, sorted(held_by)) if holder == index]
    return np.sort(np.concatenate(own)) if own else np.zeros(0, int)


def local(x: jax.Array) -> np.ndarray:
    """An array as NumPy, filled where this process holds it and 0 elsewhere."""
    if x.is_fully_addressable or x.is_fully_replicated:
        return np.asarray(x)
    full = np.zeros(x.shape, x.dtype)
    for shard in x.addressable_shards:
        full[shard.index] = np.asarray(shard.data)
    return full


def whole(tree: Any) -> Any:
    """Small arrays as NumPy, whole on every process. A collective: all processes call it."""
    from jax.experimental import multihost_utils

    def fetch(x):
        if not isinstance(x, jax.Array) or x.is_fully_addressable or x.is_fully_replicated:
            return np.asarray(x)
        return multihost_utils.process_allgather(x, tiled=True)

    return jax.tree.map(fetch, tree)


def check_shared(processes: Processes, directory: pathlib.Path) -> None:
    """Raises where the processes do not see one directory: their checkpoint is written to it.

    Args:
      processes: of the run.
      directory: there for all of them.

    Raises:
      HostError: names who does not see what the first process writes.
    """
    mark = directory / ".shared"
    processes.gather(f"writing to {directory}", mark.touch if processes.first else int)
    seen = processes.gather(f"looking into {directory}", mark.exists)
    processes.gather(f"having looked into {directory}", int)
    if processes.first:
        mark.unlink()
    if not all(seen):
        raise HostError(
            f"{processes.who(seen.index(False))} does not see what {processes.who(0)} writes to "
            f"{directory}; expected out on a file system that all hosts share (or give "
            "saving.checkpoints)"
        )
