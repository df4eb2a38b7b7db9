"""Which prompt comes next, and which sample is kept.

anna_karenina_select            all wrong samples and the first right one (balancing.py)
"""

from polgrad.curricula.balancing import anna_karenina_select

__all__ = ["anna_karenina_select"]
