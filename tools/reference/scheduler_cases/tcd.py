"""TCDScheduler."""

from .base import BASE, TRAINED


def cases():
    for prediction_type in ("epsilon", "v_prediction", "sample"):
        for steps in (1, 2, 4, 10):
            yield steps, dict(BASE, prediction_type=prediction_type), {}
        for eta in (0.3, 1.0):
            for steps in (1, 4):
                yield steps, dict(BASE, prediction_type=prediction_type), dict(eta=eta)
    for original_inference_steps in (10, 100, 333):
        yield 8, dict(BASE, original_inference_steps=original_inference_steps), dict(eta=0.2)
    for change in (
        dict(thresholding=True),
        dict(clip_sample=True),
        dict(set_alpha_to_one=True),
        dict(timestep_spacing="trailing", steps_offset=7),
        dict(beta_schedule="linear"),
        dict(beta_schedule="squaredcos_cap_v2"),
        dict(rescale_betas_zero_snr=True, prediction_type="v_prediction"),
        dict(TRAINED, original_inference_steps=10),
    ):
        yield 4, dict(BASE, **change), {}
        yield 4, dict(BASE, **change), dict(eta=0.5)
    for timesteps in ([999, 700, 300, 0], [980, 500], [600]):
        yield len(timesteps), dict(BASE), dict(timesteps=timesteps, eta=0.7)
    yield 4, {}, {}
    for begin in (0, 1, 4):
        yield 5, dict(BASE), dict(begin=begin)
        yield 5, dict(BASE), dict(begin=begin, eta=0.3)
    yield 4, dict(BASE), dict(eta=1.1)
    yield 20, dict(BASE, original_inference_steps=10), {}
