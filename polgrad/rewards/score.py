"""What a reward says of one sample."""

from typing import NamedTuple


class Score(NamedTuple):
    """The verdict on one completion.

    Args:
        value: the reward, a finite number within the range of float32 (3.4e38), in which batches
            hold rewards; meaningless where `valid` is false.
        valid: false when the reward could not be computed: the sample then leaves the group
            statistics and the loss, and is counted. A wrong answer is valid, with a low value.
        reason: why a sample is invalid, or any remark; goes to `samples.jsonl`.
    """

    value: float
    valid: bool = True
    reason: str = ""


class Failure(Score):
    """An invalid score that the reward did not give: it raised, gave no number, or did not end."""

    __slots__ = ()
