import jax
import jax.numpy as jnp
import pytest

from polgrad import _checks, losses


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
