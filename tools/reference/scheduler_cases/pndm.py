"""PNDMScheduler."""

from .base import BASE, SPACINGS, STEPS, TRAINED


def cases():
    for prediction_type in ("epsilon", "v_prediction"):
        for spacing in SPACINGS:
            for steps in STEPS:
                yield steps, dict(BASE, prediction_type=prediction_type, timestep_spacing=spacing), {}
    for change in (
        dict(set_alpha_to_one=True),
        dict(steps_offset=0),
        dict(beta_schedule="linear"),
        dict(beta_schedule="squaredcos_cap_v2"),
        TRAINED,
    ):
        for steps in (3, 10):
            yield steps, dict(BASE, **change), {}
    for steps in (1, 2, 3, 4, 10, 25):
        yield steps, dict(BASE, skip_prk_steps=False), {}
        yield steps, dict(BASE, skip_prk_steps=False, prediction_type="v_prediction"), {}
    yield 10, {}, {}
    for begin in (0, 1, 3, 6):
        yield 7, dict(BASE), dict(begin=begin)
    yield 7, dict(BASE, timestep_spacing="trailing"), dict(begin=4)
