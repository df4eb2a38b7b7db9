"""TOPR by hand, on the samples of `tests/support/hand_made.py`."""

import math

from hand_made import Numbers, by_hand, samples

# Log-probabilities of the answers: 0.75 x 0.25, 0.25, 0.75 x 0.45, 0.6.
LOG = [math.log(0.1875), math.log(0.25), math.log(0.3375), math.log(0.6)]

HAND_COMPUTED = {
    # -stop(w) R log p, R = 2 (reward - 0.5). w = 1 where R > 0, and the ratio of the answers, 0.5 and
    # 1.35, but no more than 1, where R < 0.
    "topr": Numbers(
        experience=samples([1.0, 0.0, 0.0, 1.0]),
        prepared={"signed_rewards": [1, -1, -1, 1], "weights": [1 / 4] * 4},
        loss=-(LOG[0] - 0.5 * LOG[1] - LOG[2] + LOG[3]) / 4,
        gradient=[-1 / 4, 0.5 / 4, 1 / 4, -1 / 4],
    ),
    # Both classes are truncated to [0.6, 1.2]: ratios 0.75, 0.5, 1.35, 6. Of 1, 0, 1, 3 less 1 two
    # have R = 0 and no loss.
    "topr, other limits": Numbers(
        settings={"baseline": 1.0, "scale": 0.5, "positive": (0.6, 1.2), "negative": (0.6, 1.2)},
        prepared={"signed_rewards": [0, -0.5, 0, 1], "weights": [1 / 4] * 4},
        loss=-(-0.5 * 0.6 * LOG[1] + 1.2 * LOG[3]) / 4,
        gradient=[0, 0.5 * 0.6 / 4, 0, -1.2 / 4],
    ),
}

test_by_hand = by_hand(HAND_COMPUTED)
