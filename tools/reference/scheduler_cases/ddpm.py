"""DDPMScheduler."""

from .base import BASE, SPACINGS, TRAINED


def cases():
    for prediction_type in ("epsilon", "v_prediction", "sample"):
        for spacing in SPACINGS:
            yield 3, dict(BASE, prediction_type=prediction_type, timestep_spacing=spacing), {}
        for steps in (1, 10):
            yield steps, dict(BASE, prediction_type=prediction_type), {}
    for variance_type in ("fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log"):
        for steps in (3, 10):
            yield steps, dict(BASE, variance_type=variance_type), {}
    for change in (
        dict(thresholding=True),
        dict(thresholding=True, dynamic_thresholding_ratio=0.9, sample_max_value=1.5),
        dict(clip_sample=True),
        dict(clip_sample=True, clip_sample_range=2.0),
        dict(steps_offset=0),
        dict(steps_offset=0, timestep_spacing="linspace", variance_type="fixed_large"),
        dict(beta_schedule="linear"),
        dict(beta_schedule="squaredcos_cap_v2"),
        dict(rescale_betas_zero_snr=True, prediction_type="v_prediction", timestep_spacing="trailing"),
        dict(rescale_betas_zero_snr=True, prediction_type="sample", timestep_spacing="leading"),
        TRAINED,
    ):
        yield 10, dict(BASE, **change), {}
    for timesteps in ([999, 700, 300, 0], [980, 500], [600]):
        yield len(timesteps), dict(BASE), dict(timesteps=timesteps)
    yield 10, {}, {}
    for begin in (1, 4):
        yield 5, dict(BASE), dict(begin=begin)
        yield 5, dict(BASE, timestep_spacing="trailing"), dict(begin=begin)
    # Settings of a checkpoint for another class.
    yield 3, dict(BASE, _class_name="PNDMScheduler", solver_type="bh2", algorithm_type="deis"), {}
