"""EulerDiscreteScheduler."""

from .base import BASE
from .sigma_space import CONVERSIONS, common


def cases():
    yield from common(("epsilon", "v_prediction", "sample"), conversions=True)
    for change in (
        dict(final_sigmas_type="sigma_min"),
        dict(final_sigmas_type="sigma_min", use_karras_sigmas=True),
        dict(interpolation_type="log_linear"),
        dict(interpolation_type="log_linear", use_exponential_sigmas=True),
        dict(interpolation_type="log_linear", timestep_type="continuous", prediction_type="v_prediction"),
        dict(timestep_type="continuous"),
        dict(timestep_type="continuous", prediction_type="v_prediction", timestep_spacing="leading"),
        dict(timestep_type="continuous", prediction_type="v_prediction", use_karras_sigmas=True, sigma_max=700.0),
    ):
        yield 3, dict(BASE, **change), {}
    for timesteps in ([999, 700, 300, 100], [980, 500], [600]):
        yield len(timesteps), dict(BASE), dict(timesteps=timesteps)
    yield 2, dict(BASE, interpolation_type="log_linear"), dict(timesteps=[900, 300])
    for conversion in CONVERSIONS:
        yield 2, dict(BASE, **{conversion: True}), dict(timesteps=[900, 300])
    continuous = dict(BASE, timestep_type="continuous", prediction_type="v_prediction")
    yield 2, continuous, dict(timesteps=[900, 300])
    for sigmas in ([14.6, 7.0, 2.5, 0.4, 0.0], [9.0, 0.5], [3, 1, 0.03]):
        yield len(sigmas) - 1, dict(BASE), dict(sigmas=sigmas)
    yield 2, dict(BASE, use_karras_sigmas=True), dict(sigmas=[9.0, 0.5, 0.1], begin=0)
    yield 2, continuous, dict(sigmas=[12.0, 1.5, 0.0])
    # The first two sigmas are above the range of the model and map to one timestep.
    yield 2, dict(BASE), dict(sigmas=[30.0, 20.0, 0.0])
    yield 2, dict(BASE), dict(sigmas=[30.0, 20.0, 0.0], begin=0)
