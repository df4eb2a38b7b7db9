"""The state that a run begins with, or goes on from, and what its files say from then on."""

import json
from collections.abc import Callable
from typing import Any

from polgrad import _files, _outside
from polgrad.training.evaluation import Accuracy
from polgrad.training.saving import description
from polgrad.training.saving.checkpoints import Checkpoints
from polgrad.training.saving.places import INITIAL
from polgrad.training.setup import identity, ownership, run_files
from polgrad.training.setup.opening import starting
from polgrad.training.setup.parts import Parts
from polgrad.training.state import TrainState
from polgrad.training.step import Programs
from polgrad.training.warm_start import warm_start


class Beginning:
    """One start of a run: from nothing, from a policy that was warmed up, or from a checkpoint.

    Args:
      parts: the run.
      programs: of the run.
      checkpoints: of the run.
      reporter: writes what the run says.
      number: the run's own.
      measure: the held-out accuracy of parameters at a step; None without held-out problems.
    """

    def __init__(
        self,
        parts: Parts,
        programs: Programs,
        checkpoints: Checkpoints,
        reporter,
        number: str,
        *,
        measure: Callable[[Any, int], Accuracy] | None,
    ):
        self.parts, self.config, self.programs = parts, parts.config, programs
        self.checkpoints, self.reporter, self.number = checkpoints, reporter, number
        self._measure = measure
        self.before_path = parts.directory / "before.json"

    def state(self, step: int | None) -> tuple[TrainState, Any, Accuracy | None]:
        """The first state, or that of checkpoint `step`; the policy that training started from; the accuracy before."""
        like, found = self.programs.abstract_state, []

        def read():
            found.append(self._read_before())
            if self.config.resume:
                self.reporter.read()

        with starting():
            self.parts.processes.gather("what an earlier start has written", read)
        before = found[0]
        if step is None:
            return self._begin(like)
        state = self.checkpoints.restore(step, like)
        initial = self._initial(like) if self.programs.needs_initial else None
        self._record(step)
        self.reporter.say(f"resumes after step {step} of {self.config.steps}")
        for line in self._notes(step, self.checkpoints.seal(step)):
            self.reporter.say(line)
        return state, initial, before

    def _initial(self, like: TrainState) -> Any:
        self.checkpoints.check(INITIAL)
        return self.programs.hold(self._restored_initial(like))

    def _restored_initial(self, like: TrainState) -> Any:
        """The policy that training started from; it gets the checksums that a kill kept from it."""
        params = self.checkpoints.restore_initial(like.params)
        self.checkpoints.seal(INITIAL)
        return params

    def _begin(self, like: TrainState) -> tuple[TrainState, Any, Accuracy | None]:
        """The first state; a starting policy that is there and whole was warmed up before."""
        whole = False
        if self.config.resume:
            self.reporter.say("there is no checkpoint yet; the run begins with its first step")
            whole = self.parts.processes.alone("the starting policy", self._initial_is_kept)
        else:
            with starting():
                self.parts.processes.alone("what an earlier run has left", self._clear)
        self._record(0)
        if whole:
            params = self._restored_initial(like)
        else:
            params = self.programs.place_params(self.parts.policy.params)
            params = warm_start(self.parts, params, self.reporter)
            self.checkpoints.save_initial(params)
        initial = self.programs.hold(params) if self.programs.needs_initial else None
        return self.programs.first_state(params), initial, self._before(params)

    def _clear(self) -> None:
        """Removes what a run that is taken over has left and that would be read as this one's."""
        if self.parts.replaced is None:
            return
        ownership.clear_replaced(self.parts)
        self.checkpoints.discard_initial()
        for path in (self.before_path, self.parts.directory / run_files.CHANGES):
            path.unlink(missing_ok=True)

    def _initial_is_kept(self) -> bool:
        """Whether the starting policy is there, whole, and the one that these settings give.

        One that other settings gave is removed before the settings are written: after a kill in
        between it would be taken for theirs.
        """
        if not self.checkpoints.has_initial():
            return False
        decided = [c.name for c in self.parts.changes if identity.decides_start(c.name)]
        if self.parts.stored is None or decided:
            self.checkpoints.discard_initial()
            return False
        return self.checkpoints.initial_is_whole()

    def _record(self, step: int) -> None:
        """The run is what its files say from now on; what it did after `step` is forgotten.

        Later checkpoints go first: after a kill in between, the run would go on from a checkpoint
        that other settings made.
        """
        if self.config.resume:
            self.checkpoints.discard_after(step)

        def write():
            ownership.record(self.parts, self.number, step)
            description.save_description(
                self.parts.directory, self.parts.policy, self.parts.tokenizer
            )
            self.reporter.begin(step, self.number)

        self.parts.processes.alone("the settings of the run", write)

    def _notes(self, step: int, sealed: bool) -> list[str]:
        """What the user should know of a run that goes on."""
        if not self.parts.processes.first:
            return []
        notes = [f"changed: {change}" for change in self.parts.changes if change.name != "out"]
        if run := self.parts.stored:
            notes.append(identity.schedule_note(self.config, run, step))
            notes.append(ownership.version_note(self.parts))
        if step == self.config.steps:
            notes.append(f"checkpoint {step} is the end: steps is {self.config.steps}")
        if sealed:
            notes.append(
                f"note: checkpoint {step} has no checksums, as where a run was killed before they "
                "were written; it could be read"
            )
        return [note for note in notes if note]

    def _read_before(self) -> Accuracy | None:
        """The accuracy before the first step, as an earlier start of this run measured it."""
        if self._measure is None or not self.config.resume or not self.before_path.exists():
            return None
        with _outside.reading(self.before_path):
            raw = _outside.read_json(self.before_path)
            raw["pass_at_k"] = {int(k): float(v) for k, v in raw["pass_at_k"].items()}
            numbers = {k: float(raw[k]) for k in ("value", "low", "high")}
            counts = {k: int(raw[k]) for k in ("problems", "invalid")}
            return Accuracy(**numbers, **counts, pass_at_k=raw["pass_at_k"])

    def _before(self, params) -> Accuracy | None:
        if self._measure is None:
            return None
        accuracy = self._measure(params, 0)
        text = json.dumps(accuracy._asdict())
        self.parts.processes.alone(
            "the accuracy before", lambda: _files.write(self.before_path, text)
        )
        self.reporter.say(f"held-out accuracy before: {accuracy.value:.3f}")
        return accuracy
