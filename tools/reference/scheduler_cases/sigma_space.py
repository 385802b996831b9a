"""Cases that all schedulers with sigmas share."""

from .base import BASE, SPACINGS, TRAINED

CONVERSIONS = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas")


def common(prediction_types, conversions):
    """Yields every setting that the classes share: of timesteps, betas and sigmas."""
    for number, prediction_type in enumerate(prediction_types):
        for spacing in SPACINGS:
            # Ten steps with one spacing are enough to show all orders of a multistep method.
            for steps in (1, 3, 10) if spacing == "trailing" and number == 0 else (3,):
                yield steps, dict(BASE, prediction_type=prediction_type, timestep_spacing=spacing), {}
    for conversion in CONVERSIONS if conversions else ():
        change = {conversion: True}
        for steps in (1, 6):
            yield steps, dict(BASE, **change), {}
        yield 3, dict(BASE, **change, timestep_spacing="leading", prediction_type="v_prediction"), {}
        yield 3, dict(BASE, **change, sigma_min=0.1, sigma_max=10.0), {}
        yield 3, dict(BASE, **change, beta_schedule="squaredcos_cap_v2"), {}
        yield 4, dict(BASE, **change), dict(begin=2)
    for change in (
        dict(steps_offset=0, timestep_spacing="leading"),
        dict(beta_schedule="linear"),
        dict(beta_schedule="squaredcos_cap_v2"),
        # Settings of some classes; the others ignore them.
        dict(rescale_betas_zero_snr=True, prediction_type="v_prediction", timestep_spacing="trailing"),
        TRAINED,
    ):
        yield 3, dict(BASE, **change), {}
    yield 4, {}, {}
    for begin in (0, 3):
        yield 5, dict(BASE), dict(begin=begin)
    yield 3, dict(BASE, timestep_spacing="leading", prediction_type="v_prediction"), dict(begin=1)
