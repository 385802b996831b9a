"""KDPM2DiscreteScheduler, and with the same settings KDPM2AncestralDiscreteScheduler."""

from .sigma_space import common


def cases():
    yield from common(("epsilon", "v_prediction", "sample"), conversions=True)
