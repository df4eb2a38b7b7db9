"""Maximum likelihood by hand, on the samples of `tests/support/hand_made.py`."""

import math

from hand_made import Numbers, by_hand

HAND_COMPUTED = {
    # -log p, the mean over the 6 tokens; rewards are not read.
    "supervised": Numbers(
        prepared={"weights": [[1 / 6, 1 / 6], [1 / 6, 0], [1 / 6, 1 / 6], [0, 1 / 6]]},
        loss=-math.log(0.75 * 0.25 * 0.25 * 0.75 * 0.45 * 0.6) / 6,
        gradient=[-1 / 6] * 4,
    ),
    # Means over the tokens of an answer (2, 1, 2, 1), then over the 4 answers.
    "supervised, by answers": Numbers(
        settings={"aggregation": "sequence"},
        prepared={"weights": [[1 / 8, 1 / 8], [1 / 4, 0], [1 / 8, 1 / 8], [0, 1 / 4]]},
        loss=-math.log(0.75 * 0.25) / 8
        - math.log(0.25) / 4
        - math.log(0.75 * 0.45) / 8
        - math.log(0.6) / 4,
        gradient=[-1 / 8, -1 / 4, -1 / 8, -1 / 4],
    ),
}

test_by_hand = by_hand(HAND_COMPUTED)
