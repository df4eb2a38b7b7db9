"""What every loss of chosen and rejected answers asks of them."""

from jaxtyping import Array

from polgrad import _checks
from polgrad._scalars import in_range
from polgrad.ratios import finite

__all__ = ["finite_pair"]


def finite_pair(
    chosen_logratio: Array, rejected_logratio: Array, beta: float
) -> tuple[Array, Array]:
    """Both log-ratios, checked to be [B] and made finite; `beta` is checked to be positive."""
    _checks.rank("chosen_logratio", chosen_logratio, 1, "[B], one value an answer")
    _checks.same_shape("[B]", chosen_logratio=chosen_logratio, rejected_logratio=rejected_logratio)
    in_range("beta", beta, low=0.0, above=True)
    return finite(chosen_logratio), finite(rejected_logratio)
