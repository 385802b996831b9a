"""LCMScheduler."""

from .base import BASE, TRAINED


def cases():
    for prediction_type in ("epsilon", "v_prediction", "sample"):
        for steps in (1, 2, 4, 10):
            yield steps, dict(BASE, prediction_type=prediction_type), {}
    for original_inference_steps in (10, 50, 100, 333):
        for steps in (3, 8):
            yield steps, dict(BASE, original_inference_steps=original_inference_steps), {}
    for change in (
        dict(timestep_scaling=0.001),
        dict(timestep_scaling=7.3),
        dict(thresholding=True),
        dict(thresholding=True, dynamic_thresholding_ratio=0.9, sample_max_value=1.5),
        dict(clip_sample=True),
        dict(clip_sample=True, clip_sample_range=2.0),
        dict(set_alpha_to_one=True),
        dict(timestep_spacing="trailing", steps_offset=7),
        dict(beta_schedule="linear"),
        dict(beta_schedule="squaredcos_cap_v2"),
        dict(rescale_betas_zero_snr=True, prediction_type="v_prediction"),
        dict(TRAINED, original_inference_steps=10),
    ):
        yield 4, dict(BASE, **change), {}
    for timesteps in ([999, 700, 300, 0], [980, 500], [600]):
        yield len(timesteps), dict(BASE), dict(timesteps=timesteps)
    yield 4, {}, {}
    # Schedule, clipping and steps with the defaults of another class.
    yield 4, dict(_class_name="DDIMScheduler", clip_sample=True), {}
    for begin in (0, 1, 4):
        yield 5, dict(BASE), dict(begin=begin)
    # More steps than the distillation, and more distillation steps than training steps.
    yield 20, dict(BASE, original_inference_steps=10), {}
    yield 20, dict(BASE, original_inference_steps=1001), {}
