"""DDIMScheduler."""

from .base import BASE, SPACINGS, STEPS, TRAINED


def cases():
    for prediction_type in ("epsilon", "v_prediction", "sample"):
        for spacing in SPACINGS:
            for steps in STEPS:
                yield steps, dict(BASE, prediction_type=prediction_type, timestep_spacing=spacing), {}
        for steps in (1, 3, 10):
            yield steps, dict(BASE, prediction_type=prediction_type), dict(eta=0.7)
    yield 10, dict(BASE), dict(eta=1.0)
    yield 10, dict(BASE, timestep_spacing="trailing"), dict(eta=0.7)
    for change in (
        dict(thresholding=True),
        dict(thresholding=True, dynamic_thresholding_ratio=0.9, sample_max_value=1.5),
        dict(clip_sample=True),
        dict(clip_sample=True, clip_sample_range=2.0),
        dict(set_alpha_to_one=True),
        dict(steps_offset=0),
        dict(beta_schedule="linear"),
        dict(beta_schedule="squaredcos_cap_v2"),
        dict(beta_start=0.0001, beta_end=0.02, prediction_type="v_prediction"),
        dict(rescale_betas_zero_snr=True, prediction_type="v_prediction", timestep_spacing="trailing"),
        dict(rescale_betas_zero_snr=True, prediction_type="v_prediction", timestep_spacing="leading"),
        dict(rescale_betas_zero_snr=True, prediction_type="epsilon", timestep_spacing="leading"),
        TRAINED,
    ):
        for steps in (3, 10):
            yield steps, dict(BASE, **change), {}
    yield 10, dict(BASE, clip_sample=True), dict(eta=0.7)
    yield 10, dict(BASE, thresholding=True), dict(eta=0.7)
    yield 10, {}, {}
    for begin in (1, 4):
        yield 5, dict(BASE), dict(begin=begin)
        yield 5, dict(BASE, timestep_spacing="trailing"), dict(begin=begin)
