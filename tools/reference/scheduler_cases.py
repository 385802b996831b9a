"""Scheduler trajectories: which configurations are recorded and how one is run."""

import inspect

import diffusers
import torch

# Calls of the longest case: 25 steps, each of the first three of them four Runge-Kutta calls.
MAX_CALLS = 40
SEED = 77

STEPS = (1, 2, 3, 10, 25)
SPACINGS = ("leading", "trailing", "linspace")

# scheduler_config.json of the public checkpoints.
BASE = dict(
    num_train_timesteps=1000,
    beta_start=0.00085,
    beta_end=0.012,
    beta_schedule="scaled_linear",
    steps_offset=1,
    set_alpha_to_one=False,
    skip_prk_steps=True,
    clip_sample=False,
)
# A short schedule given number by number.
TRAINED = dict(num_train_timesteps=20, trained_betas=[round(0.001 + 0.012 * i, 4) for i in range(20)])


def ddim():
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


def pndm():
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


def dpm():
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


FAMILIES = {
    "ddim": ("DDIMScheduler", ddim),
    "pndm": ("PNDMScheduler", pndm),
    "dpm": ("DPMSolverMultistepScheduler", dpm),
}


def cases():
    """Every case as plain data: name, class, config, num_inference_steps, eta, timesteps, seed."""
    made = []
    for short, (cls, family) in FAMILIES.items():
        for number, (steps, config, extra) in enumerate(family()):
            made.append(
                {
                    "name": f"{short}/{number:03}",
                    "class": cls,
                    "config": config,
                    "num_inference_steps": steps,
                    "eta": extra.get("eta", 0.0),
                    "timesteps": extra.get("timesteps"),
                    "seed": SEED,
                }
            )
    return made


def run(case, model_outputs, sample):
    """Returns the scheduler and the sample after each step, [calls, 1, 4, 4, 4]."""
    scheduler = getattr(diffusers, case["class"]).from_config(case["config"])
    if case["timesteps"] is None:
        scheduler.set_timesteps(case["num_inference_steps"])
    else:
        scheduler.set_timesteps(timesteps=case["timesteps"])
    # The arguments that a pipeline passes to this scheduler.
    accepted = inspect.signature(scheduler.step).parameters
    arguments = {"eta": case["eta"], "generator": torch.Generator("cpu").manual_seed(case["seed"])}
    arguments = {key: value for key, value in arguments.items() if key in accepted}
    states, state = [], sample * scheduler.init_noise_sigma
    for call, timestep in enumerate(scheduler.timesteps):
        model_input = scheduler.scale_model_input(state, timestep)
        if not torch.equal(model_input, state):
            raise AssertionError("none of these schedulers scales the model's input")
        state = scheduler.step(model_outputs[call], timestep, state, **arguments).prev_sample
        states.append(state)
    return scheduler, torch.stack(states)
