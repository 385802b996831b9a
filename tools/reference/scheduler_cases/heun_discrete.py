"""HeunDiscreteScheduler."""

from .base import BASE
from .sigma_space import CONVERSIONS, common


def cases():
    yield from common(("epsilon", "v_prediction", "sample"), conversions=True)
    for change in (
        dict(clip_sample=True),
        dict(clip_sample=True, clip_sample_range=2.0, prediction_type="v_prediction"),
        dict(beta_schedule="exp"),
    ):
        yield 3, dict(BASE, **change), {}
    for timesteps in ([999, 700, 300], [600], [900, 900, 300]):
        yield len(timesteps), dict(BASE), dict(timesteps=timesteps)
    for conversion in CONVERSIONS:
        yield 2, dict(BASE, **{conversion: True}), dict(timesteps=[900, 300])
