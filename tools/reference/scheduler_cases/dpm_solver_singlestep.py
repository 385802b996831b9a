"""DPMSolverSinglestepScheduler."""

from .base import BASE, TRAINED


def cases():
    for prediction_type in ("epsilon", "v_prediction", "sample"):
        for steps in (1, 2, 10):
            yield steps, dict(BASE, prediction_type=prediction_type), {}
    for algorithm_type in ("dpmsolver++", "dpmsolver", "sde-dpmsolver++"):
        # The older algorithm divides by the last sigma.
        ends = ("zero", "sigma_min") if algorithm_type.endswith("++") else ("sigma_min",)
        for final_sigmas_type in ends:
            for solver_order in (1, 2, 3):
                for solver_type in ("midpoint", "heun") if solver_order > 1 else ("midpoint",):
                    change = dict(
                        algorithm_type=algorithm_type,
                        final_sigmas_type=final_sigmas_type,
                        solver_order=solver_order,
                        solver_type=solver_type,
                    )
                    yield 4, dict(BASE, **change), {}
        for prediction_type in ("v_prediction", "sample"):
            change = dict(algorithm_type=algorithm_type, final_sigmas_type=ends[-1], prediction_type=prediction_type)
            yield 4, dict(BASE, **change), {}
    # The orders of whole and of broken steps.
    for solver_order in (2, 3):
        for lower_order_final in (True, False):
            for final_sigmas_type in ("zero", "sigma_min"):
                change = dict(
                    solver_order=solver_order,
                    lower_order_final=lower_order_final,
                    final_sigmas_type=final_sigmas_type,
                )
                for steps in (3, 4, 5):
                    yield steps, dict(BASE, **change), {}
    for sigmas in ("use_karras_sigmas", "use_beta_sigmas", "use_exponential_sigmas"):
        for steps in (1, 7):
            yield steps, dict(BASE, **{sigmas: True}), {}
        yield 6, dict(BASE, **{sigmas: True}, final_sigmas_type="sigma_min", solver_order=3), {}
        yield 3, dict(BASE, **{sigmas: True}), dict(timesteps=[999, 500, 100])
    yield 6, dict(BASE, use_karras_sigmas=True, beta_schedule="squaredcos_cap_v2"), {}
    yield 3, dict(BASE, use_karras_sigmas=True, use_beta_sigmas=True), {}
    for change in (
        dict(thresholding=True),
        dict(thresholding=True, dynamic_thresholding_ratio=0.9, sample_max_value=1.5),
        dict(thresholding=True, algorithm_type="dpmsolver", final_sigmas_type="sigma_min"),
        dict(algorithm_type="dpmsolver"),
        dict(algorithm_type="sde-dpmsolver", final_sigmas_type="sigma_min"),
        dict(beta_schedule="linear"),
        dict(beta_schedule="squaredcos_cap_v2"),
        dict(beta_schedule="squaredcos_cap_v2", lambda_min_clipped=-5.1),
        TRAINED,
        # Settings of other classes.
        dict(rescale_betas_zero_snr=True, prediction_type="v_prediction", timestep_spacing="trailing"),
        dict(timestep_spacing="leading", euler_at_final=True, use_lu_lambdas=True, variance_type="fixed_small_log"),
        dict(solver_type="logrho", algorithm_type="deis", final_sigmas_type="sigma_min"),
        dict(solver_type="logrho", algorithm_type="deis"),
        dict(solver_type="bh1"),
    ):
        yield 5, dict(BASE, **change), {}
    for timesteps in ([999, 700, 300, 100], [980, 500], [600]):
        yield len(timesteps), dict(BASE), dict(timesteps=timesteps)
    yield 10, {}, {}
    for begin in (0, 1, 2, 4):
        yield 6, dict(BASE, solver_order=3), dict(begin=begin)
    yield 5, dict(BASE, algorithm_type="sde-dpmsolver++"), dict(begin=1)
