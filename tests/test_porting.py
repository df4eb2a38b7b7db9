"""Each row of docs/porting.md against what the peer's own function gave on the same batch."""

import json
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pages
import pytest

from polgrad import advantages, divergences, losses, masking, ratios, selection

PEERS = json.loads((pathlib.Path(__file__).parent / "golden" / "peers.json").read_text())
ROW = re.compile(r"\| ((?:trl|verl|openrlhf|tunix) [^|]+?) \| `([^|]+)` \| ([^|]*) ?\|")
ROWS = {m[1]: (m[2], m[3]) for m in map(ROW.match, pages.lines("porting")) if m}


def batch():
    arrays = {name: jnp.asarray(x) for name, x in PEERS["batch"].items()}
    mask, rewards = arrays["mask"], arrays.pop("rewards")
    lengths = mask.sum(-1).astype(int)
    return arrays | {
        "A": arrays.pop("advantages")[:, None],
        "rewards": rewards.reshape(2, 3),
        "second_rewards": arrays["second_rewards"].reshape(2, 3),
        "lengths": lengths.reshape(2, 3),
        "token_rewards": jnp.zeros_like(mask).at[jnp.arange(6), lengths - 1].set(rewards),
    }


ROOMS = {
    "advantages": advantages,
    "divergences": divergences,
    "jnp": jnp,
    "losses": losses,
    "ratios": ratios,
    "masking": masking,
    "selection": selection,
}


@pytest.mark.parametrize("setting", ROWS)
def test_a_row_gives_what_the_peer_gives(setting):
    expression, differences = ROWS[setting]
    code, expected = compile(expression, setting, "eval"), PEERS["settings"][setting]

    def evaluate(logp):
        return eval(code, ROOMS | batch() | {"logp": logp})

    with jax.enable_x64(True):
        logp = jnp.asarray(PEERS["batch"]["logp"])
        if isinstance(expected, list):
            found = jax.jit(evaluate)(logp)
            # The peers' deviations are float32 plus their epsilon.
            np.testing.assert_allclose(np.ravel(found), np.ravel(expected), rtol=2e-6, atol=1e-7)
            return
        value, gradient = jax.jit(jax.value_and_grad(evaluate))(logp)
        if not differences.startswith("gradient"):
            np.testing.assert_allclose(value, expected["value"], rtol=1e-6, atol=1e-8)
        if not differences.startswith("value"):
            np.testing.assert_allclose(gradient, expected["gradient"], rtol=1e-5, atol=1e-8)


def test_every_setting_that_was_run_has_a_row_or_a_sentence():
    sentences = "\n".join(pages.lines("porting"))
    for setting in PEERS["settings"]:
        assert setting in ROWS or setting.split()[-1] in sentences, setting
