"""LMSDiscreteScheduler."""

from .base import BASE
from .sigma_space import common


def cases():
    yield from common(("epsilon", "v_prediction", "sample"), conversions=True)
    for steps in (4, 5, 6):
        yield steps, dict(BASE), {}
    yield 12, dict(BASE), dict(begin=6)
