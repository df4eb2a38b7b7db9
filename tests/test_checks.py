import inspect

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polgrad import _annotations, _checks, advantages, losses
from polgrad.conformance import catalogue


def test_messages_name_the_argument_what_came_and_what_was_expected():
    x = jnp.zeros((2, 3))
    with pytest.raises(ValueError, match=r"^values has shape \[2, 3\], expected \[B\] = \[any\]$"):
        _checks.shape("values", x, (None,), "[B]")
    with pytest.raises(ValueError, match=r"^logp has shape \[2, 3\], expected rank 1: \[B\]$"):
        _checks.rank("logp", x, 1, "[B]")
    with pytest.raises(ValueError, match=r"^b has shape \[3\], expected \[B, T\] = \[2, 3\], the"):
        _checks.same_shape("[B, T]", a=x, b=x[0])
    with pytest.raises(ValueError, match="^mode is 'x', expected one of 'a', 'b'$"):
        _checks.choice("mode", "x", ("a", "b"))
    with pytest.raises(
        ValueError, match=r"advantages has shape \[2\].*write advantages\[:, None\]"
    ):
        _checks.token_advantages(x[:, 0], x)


def test_rank_one_advantages_are_refused_even_where_they_would_broadcast():
    """B == T: the advantage of sequence t would silently land on token t. At trace time too."""
    square = jnp.zeros((3, 3))
    with pytest.raises(ValueError, match="advantages"):
        jax.jit(losses.reinforce)(square, jnp.zeros(3))
    with pytest.raises(ValueError, match="advantages"):
        jax.vmap(losses.reinforce)(square[None], jnp.zeros((1, 3)))


FLAT = jnp.arange(6.0) % 2
# Everything that takes [..., G].
GROUPED = {
    p.name: p.function
    for p in catalogue.primitives()
    if "[...,G]" in catalogue.signature(p)
    and not p.name.startswith(("distributions.", "advantages.gdpo"))
}


@pytest.mark.parametrize("name", GROUPED)
def test_a_flat_array_of_several_prompts_is_refused_by_every_group_function(name):
    """Two prompts of three samples as [6] would be one group of six."""
    function, arrays = GROUPED[name], {}
    for argument, parameter in inspect.signature(function).parameters.items():
        annotation = _annotations.array_annotation(parameter.annotation)
        if parameter.default is parameter.empty and annotation is not None:
            arrays[argument] = FLAT if annotation.dim_str == "... G" else jnp.asarray(0.0)
    settings = {"beta": 0.1} if name == "losses.copg_group" else {}
    message = r"has shape \[6\], expected \[..., G\].*reshape\(-1, G\) for groups"
    with pytest.raises(ValueError, match=message):
        function(**arrays, **settings)


def test_several_rewards_of_a_flat_array_are_refused_too():
    with pytest.raises(ValueError, match=r"rewards.reshape\(K, -1, G\)"):
        advantages.gdpo(jnp.ones((2, 6)), jnp.ones(2))


def test_a_list_is_an_array():
    loss = losses.dpo([0.1], [0.2], beta=1.0)
    np.testing.assert_allclose(loss, losses.dpo(jnp.array([0.1]), jnp.array([0.2]), beta=1.0))
    with pytest.raises(ValueError, match=r"chosen_logratio has shape \[1, 1\], expected rank 1"):
        losses.dpo([[0.1]], [[0.2]])


def test_checks_do_not_depend_on_the_asserts_of_another_library():
    chex.disable_asserts()
    try:
        with pytest.raises(ValueError, match="advantages"):
            losses.reinforce(jnp.zeros((3, 3)), jnp.zeros(3))
        with pytest.raises(ValueError, match="behavior_logp has shape"):
            losses.ppo_clip(jnp.zeros((3, 3)), jnp.zeros(3), jnp.zeros((3, 3)))
    finally:
        chex.enable_asserts()
