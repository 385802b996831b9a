"""EulerAncestralDiscreteScheduler."""

from .base import BASE
from .sigma_space import common


def cases():
    yield from common(("epsilon", "v_prediction", "sample"), conversions=False)
    # A setting that this class does not have.
    yield 3, dict(BASE, use_karras_sigmas=True), {}
