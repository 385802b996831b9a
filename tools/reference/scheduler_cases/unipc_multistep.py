"""UniPCMultistepScheduler."""

from .base import BASE, SPACINGS, TRAINED


def cases():
    for prediction_type in ("epsilon", "v_prediction", "sample"):
        for spacing in SPACINGS:
            yield 3, dict(BASE, prediction_type=prediction_type, timestep_spacing=spacing), {}
        yield 10, dict(BASE, prediction_type=prediction_type), {}
    for solver_order in (1, 2, 3, 4):
        for steps in (1, 3, 10):
            yield steps, dict(BASE, solver_order=solver_order), {}
        for predict_x0 in (True, False):
            for solver_type in ("bh1", "bh2"):
                change = dict(solver_order=solver_order, predict_x0=predict_x0, solver_type=solver_type)
                yield 6, dict(BASE, final_sigmas_type="sigma_min", **change), {}
    for prediction_type in ("v_prediction", "sample"):
        change = dict(predict_x0=False, final_sigmas_type="sigma_min", prediction_type=prediction_type)
        yield 6, dict(BASE, **change), {}
    for solver_order in (2, 3):
        yield 6, dict(BASE, lower_order_final=False, final_sigmas_type="sigma_min", solver_order=solver_order), {}
        yield 6, dict(BASE, disable_corrector=[0, 1, 3], solver_order=solver_order), {}
    # Cases that are not finite with the default final sigma.
    for change in (dict(predict_x0=False), dict(solver_type="bh1"), dict(lower_order_final=False)):
        yield 3, dict(BASE, **change), {}
    for sigmas in ("use_karras_sigmas", "use_beta_sigmas", "use_exponential_sigmas"):
        for steps in (1, 3, 10):
            yield steps, dict(BASE, **{sigmas: True}), {}
        yield 10, dict(BASE, **{sigmas: True}, final_sigmas_type="sigma_min", solver_order=3), {}
        yield 5, dict(BASE, **{sigmas: True}, sigma_min=0.1, sigma_max=5.0), {}
    yield 10, dict(BASE, use_karras_sigmas=True, beta_schedule="squaredcos_cap_v2"), {}
    yield 3, dict(BASE, use_karras_sigmas=True, use_beta_sigmas=True), {}
    for change in (
        dict(thresholding=True),
        dict(thresholding=True, dynamic_thresholding_ratio=0.9, sample_max_value=1.5),
        dict(steps_offset=0, timestep_spacing="leading"),
        dict(beta_schedule="linear"),
        dict(beta_schedule="squaredcos_cap_v2"),
        dict(rescale_betas_zero_snr=True, prediction_type="v_prediction", timestep_spacing="trailing"),
        TRAINED,
        # Settings of other classes.
        dict(solver_type="midpoint"),
        dict(solver_type="heun", algorithm_type="sde-dpmsolver++", euler_at_final=True),
        dict(solver_type="logrho", algorithm_type="deis", lambda_min_clipped=-5.1, use_lu_lambdas=True),
    ):
        yield 6, dict(BASE, **change), {}
    yield 10, {}, {}
    for begin in (0, 1, 4):
        yield 5, dict(BASE, solver_order=3), dict(begin=begin)
