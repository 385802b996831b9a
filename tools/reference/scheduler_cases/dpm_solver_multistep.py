"""DPMSolverMultistepScheduler."""

from .base import BASE, SPACINGS, STEPS, TRAINED


def cases():
    for prediction_type in ("epsilon", "v_prediction", "sample"):
        for spacing in SPACINGS:
            for steps in STEPS:
                yield steps, dict(BASE, prediction_type=prediction_type, timestep_spacing=spacing), {}
    for algorithm_type in ("dpmsolver++", "dpmsolver", "sde-dpmsolver++", "sde-dpmsolver"):
        # The two older algorithms divide by the last sigma.
        ends = ("zero", "sigma_min") if algorithm_type.endswith("++") else ("sigma_min",)
        for final_sigmas_type in ends:
            for solver_order in (1, 2, 3):
                for solver_type in ("midpoint", "heun"):
                    change = dict(
                        algorithm_type=algorithm_type,
                        final_sigmas_type=final_sigmas_type,
                        solver_order=solver_order,
                        solver_type=solver_type,
                    )
                    for steps in (1, 3, 10) if solver_order > 1 else (3,):
                        yield steps, dict(BASE, **change), {}
        for prediction_type in ("v_prediction", "sample"):
            change = dict(algorithm_type=algorithm_type, final_sigmas_type=ends[-1], prediction_type=prediction_type)
            yield 10, dict(BASE, **change), {}
    # From 15 steps on, lower_order_final and euler_at_final no longer mean the same as below.
    for final_sigmas_type in ("zero", "sigma_min"):
        for lower_order_final in (True, False):
            for euler_at_final in (True, False):
                for solver_order in (2, 3):
                    change = dict(
                        final_sigmas_type=final_sigmas_type,
                        lower_order_final=lower_order_final,
                        euler_at_final=euler_at_final,
                        solver_order=solver_order,
                    )
                    for steps in (3, 14, 15):
                        yield steps, dict(BASE, **change), {}
    for sigmas in ("use_karras_sigmas", "use_lu_lambdas", "use_beta_sigmas", "use_exponential_sigmas"):
        for steps in STEPS:
            yield steps, dict(BASE, **{sigmas: True}), {}
        for change in (
            dict(algorithm_type="sde-dpmsolver++"),
            dict(final_sigmas_type="sigma_min"),
            dict(solver_order=3, prediction_type="v_prediction"),
            dict(beta_schedule="squaredcos_cap_v2"),
            dict(timestep_spacing="trailing", euler_at_final=True),
        ):
            yield 10, dict(BASE, **{sigmas: True}, **change), {}
    for change in (
        dict(thresholding=True),
        dict(thresholding=True, dynamic_thresholding_ratio=0.9, sample_max_value=1.5),
        dict(steps_offset=0, timestep_spacing="leading"),
        dict(beta_schedule="linear"),
        dict(beta_schedule="squaredcos_cap_v2"),
        dict(beta_schedule="squaredcos_cap_v2", lambda_min_clipped=-5.1),
        dict(lambda_min_clipped=-5.1, timestep_spacing="leading"),
        dict(lambda_min_clipped=-5.1, timestep_spacing="trailing"),
        dict(rescale_betas_zero_snr=True, prediction_type="v_prediction", timestep_spacing="trailing"),
        dict(rescale_betas_zero_snr=True, prediction_type="epsilon", timestep_spacing="trailing"),
        TRAINED,
    ):
        for steps in (3, 10):
            yield steps, dict(BASE, **change), {}
    for timesteps in ([999, 700, 300, 100], [980, 500], [600]):
        yield len(timesteps), dict(BASE), dict(timesteps=timesteps)
        yield len(timesteps), dict(BASE, algorithm_type="sde-dpmsolver++"), dict(timesteps=timesteps)
    yield 10, {}, {}
    for begin in (0, 1, 4):
        yield 5, dict(BASE), dict(begin=begin)
        yield 5, dict(BASE, algorithm_type="sde-dpmsolver++", solver_order=3), dict(begin=begin)
