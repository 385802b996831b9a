"""DEISMultistepScheduler."""

from .base import BASE, SPACINGS, TRAINED


def cases():
    for prediction_type in ("epsilon", "v_prediction", "sample"):
        for spacing in SPACINGS:
            yield 3, dict(BASE, prediction_type=prediction_type, timestep_spacing=spacing), {}
        yield 10, dict(BASE, prediction_type=prediction_type), {}
    for solver_order in (1, 2, 3):
        for steps in (1, 3, 10):
            yield steps, dict(BASE, solver_order=solver_order), {}
        yield 6, dict(BASE, solver_order=solver_order, lower_order_final=False), {}
        # From 15 steps on lower_order_final does nothing.
        yield 15, dict(BASE, solver_order=solver_order), {}
    for sigmas in ("use_karras_sigmas", "use_beta_sigmas", "use_exponential_sigmas"):
        for steps in (1, 3, 10):
            yield steps, dict(BASE, **{sigmas: True}), {}
        yield 15, dict(BASE, **{sigmas: True}, solver_order=3), {}
        yield 5, dict(BASE, **{sigmas: True}, sigma_min=0.1, sigma_max=5.0), {}
    yield 10, dict(BASE, use_karras_sigmas=True, beta_schedule="squaredcos_cap_v2"), {}
    yield 3, dict(BASE, use_karras_sigmas=True, use_beta_sigmas=True), {}
    for change in (
        dict(thresholding=True),
        dict(thresholding=True, dynamic_thresholding_ratio=0.9, sample_max_value=1.5),
        dict(steps_offset=0, timestep_spacing="leading"),
        dict(beta_schedule="linear"),
        dict(beta_schedule="squaredcos_cap_v2"),
        TRAINED,
        # Settings of other classes.
        dict(rescale_betas_zero_snr=True, prediction_type="v_prediction", timestep_spacing="trailing"),
        dict(solver_type="midpoint", algorithm_type="dpmsolver++", final_sigmas_type="zero"),
        dict(solver_type="heun", algorithm_type="dpmsolver", euler_at_final=True, use_lu_lambdas=True),
        dict(solver_type="bh2", predict_x0=False, lambda_min_clipped=-5.1),
        dict(algorithm_type="sde-dpmsolver++"),
    ):
        yield 6, dict(BASE, **change), {}
    yield 10, {}, {}
    for begin in (0, 1, 4):
        yield 5, dict(BASE, solver_order=3), dict(begin=begin)
